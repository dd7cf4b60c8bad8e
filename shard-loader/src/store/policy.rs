//! When a failed read is tried again, when a second request helps a slow first one, and when it is over.

use object_store::Error;
use std::collections::VecDeque;
use std::error::Error as StdError;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How patient reads are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Longest first pause after a failure; doubled after each further one. The pause is drawn between 0 and that.
    pub backoff_first_ms: u64,
    /// Longest pause.
    pub backoff_max_ms: u64,
    /// Failures in a row without a single new byte that end a read.
    pub failures_max: u32,
    /// Time after which a read that failed is not tried again.
    pub budget_ms: u64,
    /// A request that gave no answer for so long, or less than [`RetryPolicy::stall_bytes_min`] of its body, is given up
    /// and its rest asked for again.
    pub stall_ms: u64,
    /// See [`RetryPolicy::stall_ms`]; a body that trickles is as dead as one that stops.
    pub stall_bytes_min: u64,
    /// A second request is sent when the first has no answer after three times the slowest of twenty usual answers, but
    /// never sooner than this.
    pub hedge_min_ms: u64,
    /// Second requests per hundred reads, at most.
    pub hedges_max_percent: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            backoff_first_ms: 200,
            backoff_max_ms: 10_000,
            failures_max: 8,
            budget_ms: 120_000,
            stall_ms: 15_000,
            stall_bytes_min: 64 << 10,
            hedge_min_ms: 300,
            hedges_max_percent: 5,
        }
    }
}

impl RetryPolicy {
    /// The pause before try `failures + 1`: full jitter, so that reads that failed together do not come back together,
    /// whether they are of one process or of many.
    pub(super) fn pause(&self, failures: u32) -> Duration {
        let most = self
            .backoff_first_ms
            .saturating_mul(1 << failures.saturating_sub(1).min(16))
            .min(self.backoff_max_ms);
        Duration::from_millis(drawn() % (most + 1))
    }
}

/// A number that differs from call to call and from process to process. Process ids would not do: the workers of many
/// containers are all number 1. When a read is tried again decides nothing that is trained, so it may be left to chance.
fn drawn() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    static CALLS: AtomicU64 = AtomicU64::new(0);
    // The standard library's only way to the system's random numbers.
    let seed = *SEED.get_or_init(|| RandomState::new().hash_one(0u8));
    xxh3_64_with_seed(&CALLS.fetch_add(1, Ordering::Relaxed).to_le_bytes(), seed)
}

/// What a failure calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may pass: server busy, connection broken, answer of another kind.
    Again,
    /// The store does not let us.
    Denied,
    /// There is no such object.
    Missing,
    /// The object is not the one that was pinned.
    Changed,
    /// It will not pass.
    Final,
}

/// Judges a store's error.
pub(super) fn verdict(error: &Error) -> Verdict {
    match error {
        Error::NotFound { .. } => Verdict::Missing,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Verdict::Denied,
        Error::Precondition { .. } | Error::NotModified { .. } => Verdict::Changed,
        Error::Generic { source, .. } => match status_of(source.as_ref()) {
            // S3 tells expired tokens with a 400.
            Some(400) if told(error, &["ExpiredToken", "InvalidToken", "TokenRefreshRequired"]) => Verdict::Denied,
            Some(408 | 425 | 429) => Verdict::Again,
            Some(400..=499) => Verdict::Final,
            _ => Verdict::Again,
        },
        _ => Verdict::Final,
    }
}

/// The status in an error's words; object_store's type for it is not public.
fn status_of(error: &(dyn StdError + 'static)) -> Option<u16> {
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if let Some((_, tail)) = text.split_once("status code: ") {
            let digits: String = tail.chars().take_while(char::is_ascii_digit).collect();
            return digits.parse().ok();
        }
        next = error.source();
    }
    None
}

fn told(error: &Error, words: &[&str]) -> bool {
    let text = error.to_string();
    words.iter().any(|word| text.contains(word))
}

/// How long answers take, to know what is slow.
#[derive(Debug, Default)]
pub(super) struct Latency {
    state: Mutex<Measured>,
}

#[derive(Debug, Default)]
struct Measured {
    recent_ms: VecDeque<u64>,
    reads: u64,
    hedges: u64,
}

/// Answers that are remembered.
const REMEMBERED: usize = 64;
/// Answers needed before one can be called slow.
const KNOWN_MIN: usize = 8;

impl Latency {
    fn with<T>(&self, work: impl FnOnce(&mut Measured) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A request got its answer.
    pub(super) fn answered(&self, after: Duration) {
        let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        self.with(|m| {
            if m.recent_ms.len() == REMEMBERED {
                m.recent_ms.pop_front();
            }
            m.recent_ms.push_back(ms);
        });
    }

    /// A read begins: after which time without an answer a second request is due, if any is.
    pub(super) fn hedge_after(&self, policy: &RetryPolicy) -> Option<Duration> {
        self.with(|m| {
            m.reads += 1;
            if m.recent_ms.len() < KNOWN_MIN || m.hedges * 100 > m.reads * policy.hedges_max_percent {
                return None;
            }
            let mut sorted: Vec<u64> = m.recent_ms.iter().copied().collect();
            sorted.sort_unstable();
            let usual = sorted[(sorted.len() - 1) * 95 / 100];
            Some(Duration::from_millis(usual.saturating_mul(3).max(policy.hedge_min_ms)))
        })
    }

    /// A second request was sent.
    pub(super) fn hedged(&self) {
        self.with(|m| m.hedges += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> Error {
        Error::Generic {
            store: "s",
            source: text.to_owned().into(),
        }
    }

    #[test]
    fn verdict_of_a_status_follows_what_may_pass() {
        let of = |code: u16| {
            verdict(&generic(&format!(
                "Server returned non-2xx status code: {code} Name: body"
            )))
        };
        for code in [408, 429, 500, 502, 503, 504] {
            assert_eq!(of(code), Verdict::Again, "{code}");
        }
        for code in [400, 405, 416] {
            assert_eq!(of(code), Verdict::Final, "{code}");
        }
        let expired = generic("x status code: 400 Bad Request: <Code>ExpiredToken</Code>");
        assert_eq!(verdict(&expired), Verdict::Denied);
        assert_eq!(verdict(&generic("connection reset")), Verdict::Again);
    }

    #[test]
    fn pause_grows_to_its_limit_and_is_spread() {
        let policy = RetryPolicy::default();
        let mut seen = std::collections::BTreeSet::new();
        for failures in 1..40 {
            let most = (200u64 << (failures - 1).min(16)).min(10_000);
            let pause = policy.pause(failures);
            assert!(pause <= Duration::from_millis(most), "{failures}: {pause:?}");
            seen.insert(pause);
        }
        assert!(seen.len() > 30, "{seen:?}");
    }

    #[test]
    fn pause_of_reads_that_failed_together_differs() {
        let policy = RetryPolicy::default();
        let pauses: std::collections::BTreeSet<Duration> = (0..64).map(|_| policy.pause(5)).collect();
        // Of 3201 milliseconds; two of 64 draws may well be equal, half of them may not.
        assert!(pauses.len() > 32, "{pauses:?}");
    }

    #[test]
    fn hedge_waits_for_what_is_usual_and_keeps_its_share() {
        let policy = RetryPolicy {
            hedge_min_ms: 1,
            ..RetryPolicy::default()
        };
        let latency = Latency::default();
        assert_eq!(latency.hedge_after(&policy), None, "nothing is known yet");
        for ms in 1..=20 {
            latency.answered(Duration::from_millis(ms));
        }
        assert_eq!(latency.hedge_after(&policy), Some(Duration::from_millis(57)));
        latency.hedged();
        assert_eq!(
            latency.hedge_after(&policy),
            None,
            "one in three reads is more than its share"
        );
        for _ in 0..20 {
            latency.hedge_after(&policy);
        }
        assert!(latency.hedge_after(&policy).is_some());
    }
}
