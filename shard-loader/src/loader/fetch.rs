//! Windows of lanes as bytes: few large requests, cached until their last position is handed out.

use super::LoaderConfig;
use super::blocked::{LeftOut, blocked};
use super::rows::RowCache;
use super::stats::{Counters, Stage};
use super::walked::Walked;
use crate::error::LoaderError;
use crate::index::Index;
use crate::store::{ReadRequest, Store};
use argosy_common::ids::SampleId;
use argosy_common::quarantine::RowRange;
use argosy_common::sampling::{Sampler, Window};
use argosy_common::steplog::MaskReason;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Rows closer than this in a shard are read in one request: reading on is cheaper than asking again.
const GAP_BYTES_MAX: u64 = 64 << 10;
/// Largest request, so that one slow read does not hold a whole window.
const REQUEST_BYTES_MAX: u64 = 8 << 20;
/// Requests on their way at the same time; with the size above it bounds what a read holds beyond the windows.
const REQUESTS_AT_ONCE: usize = 16;

/// The bytes of one row, or why there are none.
#[derive(Clone, Debug)]
pub(super) enum RawBytes {
    /// Headers and data of its members.
    Found {
        /// Its first byte in the shard.
        start: u64,
        /// What the store gave.
        bytes: Bytes,
    },
    /// The cache has it; these are its bytes in the shard.
    OnDisk(Range<u64>),
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

impl Cached {
    /// Whether row `i` must be fetched, `b` being the rows of a step: neither is it here nor left out at its step.
    fn lacks(&self, i: usize, b: u64, left_out: &LeftOut) -> bool {
        let step = (self.window.positions.start + i as u64) / b.max(1);
        self.rows[i].is_none() && !left_out.holds(self.window.samples[i], step)
    }
}

/// A row to fetch: `row` of the window of `lane` that begins at position `window`.
#[derive(Clone, Debug)]
struct Need {
    lane: u32,
    window: u64,
    row: usize,
    sample: SampleId,
    /// Its bytes in the shard, once they are known.
    range: Range<u64>,
}

/// Fetches the rows of steps.
#[derive(Debug)]
pub(super) struct Fetcher {
    index: Arc<Index>,
    store: Store,
    cache: RowCache,
    sampler: Sampler,
    sample_bytes_max: u64,
    counters: Arc<Counters>,
    /// Windows by lane and first position.
    lanes: BTreeMap<u32, BTreeMap<u64, Cached>>,
    walked: Walked,
    /// Rows that are not read any more.
    left_out: LeftOut,
}

impl Fetcher {
    pub(super) fn new(
        index: Arc<Index>,
        store: Store,
        cache: RowCache,
        config: &LoaderConfig,
        counters: Arc<Counters>,
    ) -> Self {
        let sampler = Sampler::new(config.shape.clone());
        let sample_bytes_max = config.data.max_sample_bytes;
        Self {
            index,
            store,
            cache,
            sampler,
            sample_bytes_max,
            counters,
            lanes: BTreeMap::new(),
            walked: Walked::default(),
            left_out: LeftOut::default(),
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

    /// Rows of the quarantine ledger are not read; what was read of them before takes no part all the same.
    pub(super) fn leave_out(&mut self, rows: LeftOut) {
        self.left_out = rows;
    }

    /// The rows of `step`, lane by lane.
    ///
    /// A lane that was not owned before gets exactly this step's rows, so that the first batch comes soon; from its second
    /// step on whole windows are read (rule L7).
    pub(super) fn step(&mut self, lanes: &[u32], step: u64) -> Result<Vec<RawLane>, LoaderError> {
        let started = Instant::now();
        let wanted = |lane: u32, sampler: &Sampler| sampler.shape().step_range(lane, step);
        let needs: Vec<Need> = lanes
            .iter()
            .flat_map(|lane| self.open_windows(*lane, &wanted(*lane, &self.sampler)))
            .collect();
        let filled = if needs.is_empty() { Ok(()) } else { self.fill(needs) };
        // What was asked for ahead may fail: it is asked for again when its step comes.
        let whole = filled.is_ok()
            || lanes
                .iter()
                .all(|lane| self.is_whole(*lane, wanted(*lane, &self.sampler)));
        let raw = lanes
            .iter()
            .map(|lane| self.lane(*lane, step, wanted(*lane, &self.sampler)));
        let raw = match filled {
            Err(error) if !whole => Err(error),
            ahead => {
                if let Err(error) = ahead {
                    tracing::warn!(%error, "rows of later steps cannot be read yet");
                }
                Ok(raw.collect())
            }
        };
        self.counters.spent(Stage::Fetch, started.elapsed());
        raw
    }

    /// Opens the windows of `wanted` and says which of their rows must be fetched.
    fn open_windows(&mut self, lane: u32, wanted: &Range<u64>) -> Vec<Need> {
        let primed = self.lanes.get(&lane).is_some_and(|windows| !windows.is_empty());
        let windows = self.lanes.entry(lane).or_default();
        let mut needs = Vec::new();
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
                    let rows = vec![None; window.samples.len()];
                    windows.insert(start, Cached { window, rows });
                    start
                }
            };
            let Some(cached) = windows.get(&start) else { break };
            let until = cached.window.positions.end.min(wanted.end);
            let now = (position - start) as usize..(until - start) as usize;
            let (left_out, rows) = (&self.left_out, u64::from(self.sampler.shape().lane_rows()));
            let lacks = |i: &usize| cached.lacks(*i, rows, left_out);
            if now.clone().any(|i| lacks(&i)) {
                let asked = if primed { 0..cached.rows.len() } else { now };
                needs.extend(asked.filter(lacks).map(|i| Need {
                    lane,
                    window: start,
                    row: i,
                    sample: cached.window.samples[i],
                    range: 0..0,
                }));
            }
            position = until;
        }
        needs
    }

    /// Fetches rows: neighbours in one request, those needed first asked for first, several requests at a time.
    fn fill(&mut self, needs: Vec<Need>) -> Result<(), LoaderError> {
        let mut placed = Vec::with_capacity(needs.len());
        // Shards whose rows cannot be found, with the first one's error: rows of others are fetched all the same.
        let (mut lost, mut first_error) = (BTreeSet::new(), None);
        for mut need in needs {
            let shard = (need.sample.source, need.sample.shard);
            if lost.contains(&shard) {
                continue;
            }
            let place = match self.place(&need) {
                Ok(place) => place,
                Err(error) => {
                    lost.insert(shard);
                    first_error.get_or_insert(error);
                    continue;
                }
            };
            match place {
                Some(range) if range.end - range.start > self.sample_bytes_max => {
                    self.put(&need, RawBytes::Masked(MaskReason::Bytes));
                }
                Some(range) if self.cache.has(need.sample, range.start) => self.put(&need, RawBytes::OnDisk(range)),
                Some(range) => {
                    need.range = range;
                    placed.push(need);
                }
                None => self.put(&need, RawBytes::Masked(MaskReason::Missing)),
            }
        }
        placed.sort_unstable_by_key(|n| (n.sample.source, n.sample.shard, n.range.start));
        let mut groups: Vec<&[Need]> = Vec::new();
        for shard in placed.chunk_by(|a, b| (a.sample.source, a.sample.shard) == (b.sample.source, b.sample.shard)) {
            let ranges: Vec<Range<u64>> = shard.iter().map(|n| n.range.clone()).collect();
            groups.extend(merge(&ranges).into_iter().map(|rows| &shard[rows]));
        }
        groups.sort_by_key(|group| group.iter().map(|n| (n.window + n.row as u64, n.lane)).min());
        let (index, store) = (Arc::clone(&self.index), self.store.clone());
        let requests: Vec<ReadRequest<'_>> = groups
            .iter()
            .filter_map(|group| {
                let whole = index.whole_shard(group[0].sample.source, group[0].sample.shard)?;
                Some(whole.read(group[0].range.start..group[group.len() - 1].range.end))
            })
            .collect();
        debug_assert_eq!(requests.len(), groups.len(), "a row with a place has a shard");
        let read = store.read_all(&requests, REQUESTS_AT_ONCE, |i, bytes| {
            self.counters.read(bytes.len() as u64);
            let ranges = groups[i].iter().map(|need| need.range.clone());
            let rows = cut(&bytes, requests[i].range.start, ranges);
            for (need, bytes) in groups[i].iter().zip(rows) {
                let start = need.range.start;
                self.cache.keep_bytes(need.sample, start, &bytes, false);
                self.put(need, RawBytes::Found { start, bytes });
            }
        });
        // What was fetched stays, for the next try.
        read.map_err(|(i, error)| {
            let (first, group) = (groups[i][0].sample, groups[i].iter().map(|n| n.sample.row));
            let rows = RowRange {
                source: first.source,
                shard: first.shard,
                from: group.clone().min().unwrap_or(first.row),
                until: group.max().unwrap_or(first.row).saturating_add(1),
            };
            let rows = self.left_out.widened(rows, index.shard_rows(first.source, first.shard));
            blocked((&index, &store), groups[i][0].lane, rows, &requests[i], &error)
        })?;
        first_error.map_or(Ok(()), Err)
    }

    /// Whether all rows of `wanted` are there.
    fn is_whole(&self, lane: u32, wanted: Range<u64>) -> bool {
        let (windows, b) = (self.lanes.get(&lane), u64::from(self.sampler.shape().lane_rows()));
        let mut positions = wanted;
        positions.all(|position| {
            let cached = windows.and_then(|w| w.range(..=position).next_back());
            cached.is_some_and(|(start, c)| {
                c.window.positions.contains(&position) && !c.lacks((position - start) as usize, b, &self.left_out)
            })
        })
    }

    fn put(&mut self, need: &Need, bytes: RawBytes) {
        if let Some(cached) = self.lanes.get_mut(&need.lane).and_then(|w| w.get_mut(&need.window)) {
            cached.rows[need.row] = Some(bytes);
        }
    }

    /// Where a row lies; a shard that nobody has read yet is walked first (rules L6, L7).
    fn place(&mut self, need: &Need) -> Result<Option<Range<u64>>, LoaderError> {
        let (source, shard, row) = (need.sample.source, need.sample.shard, need.sample.row);
        let index = Arc::clone(&self.index);
        let placed = if index.is_verified(source, shard) {
            index.place(need.sample).map(|place| place.map(|place| place.range))
        } else {
            let (lanes, counters) = (self.lanes.len(), &self.counters);
            let beyond = |rows| counters.beyond(rows);
            self.walked
                .place(&self.store, &index, ((source, shard), row), lanes, beyond)
        };
        placed.map_err(|error| match index.whole_shard(source, shard) {
            Some(whole) => {
                // The shard as a whole: where its rows lie is not known.
                let rows = RowRange {
                    source,
                    shard,
                    from: 0,
                    until: index.shard_rows(source, shard).max(row.saturating_add(1)),
                };
                let request = whole.read(whole.range.clone());
                blocked((&index, &self.store), need.lane, rows, &request, &error)
            }
            // What the index does not have has no place either, and no error.
            None => LoaderError::Stopped(error.to_string()),
        })
    }

    /// The rows of one lane at one step, all of which are there or known to be missing.
    fn lane(&self, lane: u32, step: u64, wanted: Range<u64>) -> RawLane {
        let windows = self.lanes.get(&lane);
        let rows = wanted.filter_map(|position| {
            let (start, cached) = windows?.range(..=position).next_back()?;
            let i = (position - start) as usize;
            let sample = *cached.window.samples.get(i)?;
            let bytes = match self.left_out.holds(sample, step) {
                true => RawBytes::Masked(MaskReason::Quarantined),
                false => cached.rows[i].clone().unwrap_or(RawBytes::Masked(MaskReason::Missing)),
            };
            Some(RawRow {
                sample,
                position,
                bytes,
            })
        });
        RawLane {
            lane,
            rows: rows.collect(),
        }
    }
}

/// The rows in `whole`, the bytes of a request that began at byte `start` of its shard. A slice keeps the whole request in memory
/// until it is trained; where that is mostly gaps, rows are copied out of it.
fn cut(whole: &Bytes, start: u64, rows: impl Iterator<Item = Range<u64>> + Clone) -> Vec<Bytes> {
    let used: u64 = rows.clone().map(|row| row.end - row.start).sum();
    let gaps = used < whole.len() as u64 / 2;
    rows.map(|row| {
        let row = whole.slice((row.start - start) as usize..(row.end - start) as usize);
        if gaps { Bytes::copy_from_slice(&row) } else { row }
    })
    .collect()
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
    fn rows_of_a_request_of_gaps_do_not_keep_it_in_memory() {
        let whole = Bytes::from((0..100).collect::<Vec<u8>>());
        for (rows, kept) in [([1010..1030, 1050..1070], false), ([1010..1040, 1050..1090], true)] {
            let cut = cut(&whole, 1000, rows.clone().into_iter());
            for (row, range) in cut.iter().zip(rows) {
                assert_eq!(
                    *row,
                    whole.slice(range.start as usize - 1000..range.end as usize - 1000)
                );
                // A slice has the whole's memory in common with it.
                assert_eq!(whole.as_ptr_range().contains(&row.as_ptr()), kept);
            }
        }
    }

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
