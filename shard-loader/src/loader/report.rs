//! Where a loader's time went, stage by stage, and one sentence that says what holds the trainer up.

use super::LoaderStats;
use crate::cache::CacheStats;
use crate::store::StoreStats;
use serde_json::{Value, json};

/// The stages of a loader since its first plan.
#[derive(Clone, Debug, PartialEq)]
pub struct StageReport {
    /// Seconds since the first plan.
    pub elapsed_seconds: f64,
    /// Threads that decode, resize and tokenise.
    pub threads: usize,
    /// What was done.
    pub stats: LoaderStats,
    /// What reading took.
    pub store: StoreStats,
    /// What the disk cache did.
    pub cache: CacheStats,
    /// Mean number of fetched steps that waited to be decoded, when the trainer came for one.
    pub fetched_depth: f64,
    /// Mean number of finished steps that waited then.
    pub ready_depth: f64,
}

/// A trainer that waits for less than this share of its time is not held up.
const WAIT_SHARE_OK: f64 = 0.05;

impl StageReport {
    fn per_second(&self, amount: f64) -> f64 {
        if self.elapsed_seconds > 0.0 {
            amount / self.elapsed_seconds
        } else {
            0.0
        }
    }

    /// Cores that decode, resize and tokenise kept busy.
    fn busy_cores(&self) -> f64 {
        let s = &self.stats;
        self.per_second(s.decode_seconds + s.transform_seconds + s.tokenize_seconds)
    }

    /// Share of its time that the trainer waited.
    #[must_use]
    pub fn wait_share(&self) -> f64 {
        self.per_second(self.stats.wait_seconds).min(1.0)
    }

    /// What holds the trainer up, in one sentence.
    ///
    /// A trainer that never waited would take steps `1 / (1 - wait share)` times as fast, and would need as many times the
    /// cores that are busy now.
    #[must_use]
    pub fn verdict(&self) -> String {
        let waits = self.wait_share();
        if self.stats.images == 0 {
            return "nothing was loaded".into();
        }
        if waits < WAIT_SHARE_OK {
            return format!("not data-bound: the trainer waited {:.0} % of its time", waits * 100.0);
        }
        let s = &self.stats;
        let megabytes = self.per_second(s.bytes as f64) / 1e6;
        let fetching = self.per_second(s.fetch_seconds);
        if fetching > self.busy_cores() / self.threads.max(1) as f64 {
            return format!(
                "read-bound: shards come at {megabytes:.1} MB/s, the trainer waited {:.0} % of its time",
                waits * 100.0
            );
        }
        let stages = [
            ("decode", s.decode_seconds),
            ("resize", s.transform_seconds),
            ("tokenise", s.tokenize_seconds),
        ];
        let most = stages
            .iter()
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map_or("decode", |s| s.0);
        // Waiting all the time, as in a bench without a trainer, asks for cores without end.
        if waits > 0.95 {
            return format!(
                "{most}-bound: {:.0} images/s is what {} threads give",
                self.per_second(s.images as f64),
                self.threads
            );
        }
        let short = self.busy_cores() * waits / (1.0 - waits);
        format!(
            "{most}-bound: {short:.1} cores short, the trainer waited {:.0} % of its time",
            waits * 100.0
        )
    }

    /// All of it for machines, `version` 1.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let s = &self.stats;
        json!({
            "version": 1,
            "elapsed_seconds": self.elapsed_seconds,
            "threads": self.threads,
            "images": s.images,
            "images_per_second": self.per_second(s.images as f64),
            "bytes": s.bytes,
            "bytes_per_second": self.per_second(s.bytes as f64),
            "fetch_seconds": s.fetch_seconds,
            "decode_seconds": s.decode_seconds,
            "resize_seconds": s.transform_seconds,
            "tokenise_seconds": s.tokenize_seconds,
            "wait_seconds": s.wait_seconds,
            "fetched_depth": self.fetched_depth,
            "ready_depth": self.ready_depth,
            "requests": self.store.requests,
            "retries": self.store.retries,
            "hedges": self.store.hedges,
            "stalls": self.store.stalls,
            "cache_rows": self.cache.rows,
            "cache_bytes": self.cache.bytes,
            "cache_kept": self.cache.kept,
            "cache_broken": self.cache.broken,
            "cache_refused": self.cache.refused,
            "cache_busy": self.cache.busy,
            "rows_beyond": s.rows_beyond,
            "verdict": self.verdict(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(fetch: f64, decode: f64, resize: f64, wait: f64) -> StageReport {
        StageReport {
            elapsed_seconds: 10.0,
            threads: 2,
            stats: LoaderStats {
                images: 1000,
                bytes: 50_000_000,
                fetch_seconds: fetch,
                decode_seconds: decode,
                transform_seconds: resize,
                wait_seconds: wait,
                ..LoaderStats::default()
            },
            store: StoreStats::default(),
            cache: CacheStats::default(),
            fetched_depth: 0.0,
            ready_depth: 0.0,
        }
    }

    #[test]
    fn verdict_names_the_stage_that_holds_the_trainer_up() {
        let verdict = |f, d, r, w| report(f, d, r, w).verdict();
        assert_eq!(
            verdict(1.0, 5.0, 3.0, 0.2),
            "not data-bound: the trainer waited 2 % of its time"
        );
        // 1.8 cores busy, half the time waited: as many again are missing.
        assert_eq!(
            verdict(1.0, 12.0, 6.0, 5.0),
            "decode-bound: 1.8 cores short, the trainer waited 50 % of its time"
        );
        assert!(verdict(1.0, 6.0, 12.0, 5.0).starts_with("resize-bound"));
        assert_eq!(
            verdict(9.0, 3.0, 2.0, 5.0),
            "read-bound: shards come at 5.0 MB/s, the trainer waited 50 % of its time"
        );
        assert_eq!(
            verdict(1.0, 12.0, 6.0, 10.0),
            "decode-bound: 100 images/s is what 2 threads give"
        );
        assert_eq!(report(1.0, 1.0, 1.0, 1.0).to_json()["bytes_per_second"], 5e6);
    }
}
