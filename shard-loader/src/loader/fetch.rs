//! Windows of lanes as bytes: few large requests, cached until their last position is handed out.

use super::LoaderConfig;
use super::stats::{Counters, Stage};
use crate::error::LoaderError;
use crate::index::Index;
use crate::store::Store;
use argosy_common::ids::SampleId;
use argosy_common::sampling::{Sampler, Window};
use argosy_common::steplog::MaskReason;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Rows closer than this in a shard are read in one request: reading on is cheaper than asking again.
const GAP_BYTES_MAX: u64 = 64 << 10;
/// Largest request, so that one slow read does not hold a whole window.
const REQUEST_BYTES_MAX: u64 = 32 << 20;

/// The bytes of one row, or why there are none.
#[derive(Clone, Debug)]
pub(super) enum RawBytes {
    /// Headers and data of its members.
    Found(Bytes),
    /// It cannot be trained.
    Masked(MaskReason),
}

/// One row of one step.
#[derive(Clone, Debug)]
pub(super) struct RawRow {
    pub(super) sample: SampleId,
    pub(super) position: u64,
    pub(super) bytes: RawBytes,
}

/// The rows of one lane at one step.
#[derive(Clone, Debug)]
pub(super) struct RawLane {
    pub(super) lane: u32,
    pub(super) rows: Vec<RawRow>,
}

/// A window with what has been fetched of it.
#[derive(Debug)]
struct Cached {
    window: Window,
    rows: Vec<Option<RawBytes>>,
}

/// Fetches the rows of steps.
#[derive(Debug)]
pub(super) struct Fetcher {
    index: Arc<Index>,
    store: Store,
    sampler: Sampler,
    sample_bytes_max: u64,
    counters: Arc<Counters>,
    /// Windows by lane and first position.
    lanes: BTreeMap<u32, BTreeMap<u64, Cached>>,
}

impl Fetcher {
    pub(super) fn new(index: Arc<Index>, store: Store, config: &LoaderConfig, counters: Arc<Counters>) -> Self {
        let sampler = Sampler::new(config.shape.clone());
        let sample_bytes_max = config.data.max_sample_bytes;
        Self {
            index,
            store,
            sampler,
            sample_bytes_max,
            counters,
            lanes: BTreeMap::new(),
        }
    }

    /// Drops the windows of other lanes and those that end before `step`.
    pub(super) fn forget(&mut self, lanes: &[u32], step: u64) {
        let shape = self.sampler.shape();
        self.lanes.retain(|lane, windows| {
            let from = shape.step_range(*lane, step).start;
            windows.retain(|_, cached| cached.window.positions.end > from);
            lanes.binary_search(lane).is_ok()
        });
    }

    /// The rows of `step`, lane by lane.
    ///
    /// A lane that was not owned before gets exactly this step's rows, so that the first batch comes soon; from its second
    /// step on whole windows are read (rule L7).
    pub(super) fn step(&mut self, lanes: &[u32], step: u64) -> Result<Vec<RawLane>, LoaderError> {
        let started = Instant::now();
        let raw = lanes.iter().map(|lane| self.lane(*lane, step)).collect();
        self.counters.spent(Stage::Fetch, started.elapsed());
        raw
    }

    fn lane(&mut self, lane: u32, step: u64) -> Result<RawLane, LoaderError> {
        let wanted = self.sampler.shape().step_range(lane, step);
        let primed = self.lanes.get(&lane).is_some_and(|windows| !windows.is_empty());
        let mut windows = self.lanes.remove(&lane).unwrap_or_default();
        let mut rows = Vec::with_capacity((wanted.end - wanted.start) as usize);
        let mut position = wanted.start;
        while position < wanted.end {
            let known = windows
                .range(..=position)
                .next_back()
                .filter(|(_, c)| c.window.positions.contains(&position));
            let start = match known {
                Some((start, _)) => *start,
                None => {
                    let window = self.sampler.window(lane, position);
                    let start = window.positions.start;
                    let empty = vec![None; window.samples.len()];
                    windows.insert(start, Cached { window, rows: empty });
                    start
                }
            };
            let Some(cached) = windows.get_mut(&start) else { break };
            let until = cached.window.positions.end.min(wanted.end);
            let needed = (position - start) as usize..(until - start) as usize;
            if let Err(error) = self.fill(lane, cached, needed.clone(), primed) {
                // What was fetched stays, for the next try.
                self.lanes.insert(lane, windows);
                return Err(error);
            }
            rows.extend(needed.map(|i| RawRow {
                sample: cached.window.samples[i],
                position: start + i as u64,
                bytes: cached.rows[i].clone().unwrap_or(RawBytes::Masked(MaskReason::Missing)),
            }));
            position = until;
        }
        self.lanes.insert(lane, windows);
        Ok(RawLane { lane, rows })
    }

    /// Fetches what `needed` lacks: only that for a new lane, everything the window lacks otherwise.
    fn fill(&self, lane: u32, cached: &mut Cached, needed: Range<usize>, primed: bool) -> Result<(), LoaderError> {
        if cached.rows[needed.clone()].iter().all(Option::is_some) {
            return Ok(());
        }
        let asked = if primed { 0..cached.rows.len() } else { needed };
        let mut places = Vec::new();
        for i in asked {
            if cached.rows[i].is_some() {
                continue;
            }
            let sample = cached.window.samples[i];
            match self.index.place(sample) {
                Some(place) if place.range.end - place.range.start > self.sample_bytes_max => {
                    cached.rows[i] = Some(RawBytes::Masked(MaskReason::Bytes));
                }
                Some(place) => places.push((sample.source, sample.shard, place.range, i)),
                None => cached.rows[i] = Some(RawBytes::Masked(MaskReason::Missing)),
            }
        }
        places.sort_unstable_by_key(|(source, shard, range, _)| (*source, *shard, range.start));
        for group in places.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let ranges: Vec<Range<u64>> = group.iter().map(|(_, _, range, _)| range.clone()).collect();
            for request in merge(&ranges) {
                let span = ranges[request.start].start..ranges[request.end - 1].end;
                let bytes = self.request(lane, cached.window.samples[group[request.start].3], span.clone())?;
                for (_, _, range, i) in &group[request] {
                    let slice = (range.start - span.start) as usize..(range.end - span.start) as usize;
                    cached.rows[*i] = Some(RawBytes::Found(bytes.slice(slice)));
                }
            }
        }
        Ok(())
    }

    fn request(&self, lane: u32, sample: SampleId, range: Range<u64>) -> Result<Bytes, LoaderError> {
        let blocked = |shard: &str, error: String| LoaderError::LaneBlocked {
            lane,
            shard: shard.to_owned(),
            range: range.clone(),
            error,
        };
        let place = self
            .index
            .place(sample)
            .ok_or_else(|| blocked("?", format!("the index lacks {sample}")))?;
        let bytes = self
            .store
            .read(&place.read(range.clone()))
            .map_err(|e| blocked(place.location, e.to_string()))?;
        self.counters.read(bytes.len() as u64);
        Ok(bytes)
    }
}

/// Groups sorted ranges into requests; gives index ranges.
fn merge(ranges: &[Range<u64>]) -> Vec<Range<usize>> {
    let mut requests: Vec<Range<usize>> = Vec::new();
    for (i, range) in ranges.iter().enumerate() {
        match requests.last_mut() {
            Some(last)
                if range.start <= ranges[last.end - 1].end.saturating_add(GAP_BYTES_MAX)
                    && range.end - ranges[last.start].start <= REQUEST_BYTES_MAX =>
            {
                last.end = i + 1;
            }
            _ => requests.push(i..i + 1),
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_joins_over_small_gaps_only() {
        let gap = GAP_BYTES_MAX;
        let ranges = [0..100, 100..300, 300 + gap..400 + gap, 500 + 2 * gap..600 + 2 * gap];
        assert_eq!(merge(&ranges), vec![0..3, 3..4]);
        let big = [0..REQUEST_BYTES_MAX, REQUEST_BYTES_MAX..REQUEST_BYTES_MAX + 1];
        assert_eq!(merge(&big), vec![0..1, 1..2]);
        assert!(merge(&[]).is_empty());
    }
}
