//! Which sample stands at which position of which lane (rules L1, L2, L7): pure arithmetic, no cursor, no state.
//!
//! A pass's shard order is a seeded permutation. The rows of the pass in that order are cut into one range per lane; a
//! lane's positions run through its range of pass 0, then of pass 1, and so on, shuffled inside windows.

use crate::ids::SampleId;
use crate::rng::{Draws, Purpose};
use crate::shape::RunShape;
use std::collections::BTreeMap;
use std::ops::Range;

/// Where a position falls: its pass, its window, and the row it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Pass over the data, from 0.
    pub pass: u64,
    /// Positions of the lane that share this position's window.
    pub window: Range<u64>,
    /// The sample.
    pub sample: SampleId,
}

/// One window of a lane: consecutive positions that trade places among themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Pass over the data, from 0.
    pub pass: u64,
    /// Positions of the lane's stream that it covers.
    pub positions: Range<u64>,
    /// `samples[i]` stands at position `positions.start + i`.
    pub samples: Vec<SampleId>,
}

/// The order of one pass: shards in permuted order with the running count of kept rows.
#[derive(Debug)]
struct PassOrder {
    /// (source, shard) in permuted order.
    shards: Vec<(u16, u32)>,
    /// Rows before the i-th shard of the order; one longer than `shards`.
    starts: Vec<u64>,
}

impl PassOrder {
    fn new(shape: &RunShape, pass: u64) -> Self {
        let all: Vec<(u16, u32, u32)> = shape
            .sources
            .iter()
            .enumerate()
            .flat_map(|(s, source)| {
                source
                    .shard_rows
                    .iter()
                    .enumerate()
                    .map(move |(i, rows)| (s as u16, i as u32, *rows))
            })
            .collect();
        // Joined sources share one permutation, keyed as source 0 (rule L4).
        let order = Draws::new(shape.seed, Purpose::ShardOrder, 0, pass).permutation(all.len());
        let mut shards = Vec::with_capacity(all.len());
        let mut starts = Vec::with_capacity(all.len() + 1);
        let mut rows_before = 0u64;
        starts.push(0);
        for index in order {
            let (source, shard, rows) = all[index as usize];
            shards.push((source, shard));
            rows_before += u64::from(rows);
            starts.push(rows_before);
        }
        Self { shards, starts }
    }

    /// The sample at offset `offset` of the pass.
    fn sample(&self, offset: u64) -> SampleId {
        // The last start not above `offset`; empty shards share a start with their successor and are stepped over.
        let index = self.starts.partition_point(|s| *s <= offset) - 1;
        debug_assert!(index < self.shards.len(), "offset {offset} is beyond the pass");
        let (source, shard) = self.shards[index];
        SampleId {
            source,
            shard,
            row: (offset - self.starts[index]) as u32,
        }
    }
}

/// Resolves positions of one run. Keeps the orders of the passes in use, so that a lookup is a binary search.
#[derive(Debug)]
pub struct Sampler {
    shape: RunShape,
    passes: BTreeMap<u64, PassOrder>,
}

/// Passes kept in memory at once: a lane at a pass's edge needs two, lanes drift apart by less than one pass.
const PASSES_KEPT: usize = 3;

impl Sampler {
    /// A sampler for `shape`, which must have rows in every pass (see `config`, which refuses an empty source).
    #[must_use]
    pub fn new(shape: RunShape) -> Self {
        Self {
            shape,
            passes: BTreeMap::new(),
        }
    }

    /// The shape it resolves.
    #[must_use]
    pub fn shape(&self) -> &RunShape {
        &self.shape
    }

    /// The lane's range of offsets in pass `pass`. Ranges differ by at most one row; the `r` longer ones of pass `t` are
    /// lanes `t*r mod Q` and following (rule L2).
    #[must_use]
    pub fn lane_range(&self, lane: u32, pass: u64) -> Range<u64> {
        let (base, longer) = self.base_and_longer();
        let lanes = u64::from(self.shape.lanes);
        let first_longer = (u128::from(pass) * u128::from(longer) % u128::from(lanes)) as u64;
        let is_longer = |q: u64| (q + lanes - first_longer) % lanes < longer;
        let lane = u64::from(lane);
        // Longer lanes before this one: the longer block is cyclic and contiguous.
        let wrapped = (first_longer + longer).saturating_sub(lanes);
        let longer_before = lane.min(wrapped) + lane.saturating_sub(first_longer).min(longer - wrapped);
        let start = lane * base + longer_before;
        start..start + base + u64::from(is_longer(lane))
    }

    /// Positions of lane `lane` before pass `pass` begins.
    #[must_use]
    pub fn positions_before_pass(&self, lane: u32, pass: u64) -> u64 {
        let (base, longer) = self.base_and_longer();
        let lanes = u128::from(self.shape.lanes);
        // Longer turns go round the lanes one after the other, so they can be counted instead of summed.
        let turns = u128::from(pass) * u128::from(longer);
        let extra = turns / lanes + u128::from(u128::from(lane) < turns % lanes);
        pass * base + extra as u64
    }

    fn base_and_longer(&self) -> (u64, u64) {
        let rows = self.shape.pass_rows();
        let lanes = u64::from(self.shape.lanes);
        (rows / lanes, rows % lanes)
    }

    /// The pass that holds position `position` of lane `lane`.
    #[must_use]
    pub fn pass_of(&self, lane: u32, position: u64) -> u64 {
        let rows = self.shape.pass_rows().max(1);
        let lanes = u64::from(self.shape.lanes);
        // A first guess by the mean length, then at most a step or two: ranges of one lane differ by one row only.
        let mut pass = (u128::from(position) * u128::from(lanes) / u128::from(rows)) as u64;
        while pass > 0 && self.positions_before_pass(lane, pass) > position {
            pass -= 1;
        }
        while self.positions_before_pass(lane, pass + 1) <= position {
            pass += 1;
        }
        pass
    }

    /// The window that holds position `position` of lane `lane`, with its samples in trained order.
    ///
    /// Windows are `m*b` positions, cut at every pass's edge; the first of a pass is shorter by lane so that not all lanes
    /// refill at once (rule L7).
    pub fn window(&mut self, lane: u32, position: u64) -> Window {
        let pass = self.pass_of(lane, position);
        let first = self.positions_before_pass(lane, pass);
        let range = self.lane_range(lane, pass);
        let length = range.end - range.start;
        let rows = u64::from(self.shape.lane_rows());
        let factor = u64::from(self.shape.window_factor);
        let full = rows * factor;
        let short = rows * (factor - u64::from(lane) % factor);
        let offset = position - first;
        let (start, end) = if offset < short {
            (0, short)
        } else {
            let start = short + (offset - short) / full * full;
            (start, start + full)
        };
        let end = end.min(length);
        let positions = first + start..first + end;
        debug_assert!(
            positions.contains(&position),
            "window {positions:?} misses position {position} of lane {lane}"
        );
        let order = Draws::new(self.shape.seed, Purpose::WindowOrder, lane, positions.start)
            .permutation((end - start) as usize);
        let pass_order = self.pass(pass);
        let samples = order
            .iter()
            .map(|i| pass_order.sample(range.start + start + u64::from(*i)))
            .collect();
        Window {
            pass,
            positions,
            samples,
        }
    }

    /// The samples of lane `lane` at step `step`; shorter than `b` at the end of the run only.
    pub fn step_samples(&mut self, lane: u32, step: u64) -> Vec<SampleId> {
        let wanted = self.shape.step_range(lane, step);
        let mut samples = Vec::with_capacity((wanted.end - wanted.start) as usize);
        let mut position = wanted.start;
        while position < wanted.end {
            let window = self.window(lane, position);
            let until = window.positions.end.min(wanted.end);
            let from = (position - window.positions.start) as usize;
            samples.extend_from_slice(&window.samples[from..from + (until - position) as usize]);
            position = until;
        }
        samples
    }

    fn pass(&mut self, pass: u64) -> &PassOrder {
        if !self.passes.contains_key(&pass) && self.passes.len() >= PASSES_KEPT {
            let farthest = self.passes.keys().copied().max_by_key(|p| p.abs_diff(pass));
            if let Some(old) = farthest {
                self.passes.remove(&old);
            }
        }
        let shape = &self.shape;
        self.passes.entry(pass).or_insert_with(|| PassOrder::new(shape, pass))
    }
}

/// Digest of what one lane trains at one step: the ids, in order (rule AU1).
#[must_use]
pub fn lane_digest(lane: u32, samples: &[SampleId]) -> u64 {
    let mut bytes = Vec::with_capacity(4 + samples.len() * 10);
    bytes.extend_from_slice(&lane.to_le_bytes());
    for sample in samples {
        bytes.extend_from_slice(&sample.source.to_le_bytes());
        bytes.extend_from_slice(&sample.shard.to_le_bytes());
        bytes.extend_from_slice(&sample.row.to_le_bytes());
    }
    crate::hash::digest64(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::SourceShape;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn shape(rows: Vec<Vec<u32>>, lanes: u32, per_lane: u32, factor: u32, total: u64) -> RunShape {
        let sources = rows
            .into_iter()
            .enumerate()
            .map(|(i, r)| SourceShape {
                name: format!("s{i}"),
                shard_rows: r,
            })
            .collect();
        RunShape {
            seed: 7,
            sources,
            batch: lanes * per_lane,
            lanes,
            window_factor: factor,
            total_positions: total,
        }
    }

    /// The plain reference: walk a lane pass by pass, window by window, with vectors and no closed forms.
    fn reference_stream(shape: &RunShape, lane: u32, upto: usize) -> Vec<SampleId> {
        let rows: u64 = shape.pass_rows();
        let lanes = u64::from(shape.lanes);
        let (base, longer) = (rows / lanes, rows % lanes);
        let mut out = Vec::new();
        for pass in 0.. {
            let mut flat = Vec::new();
            let all: Vec<(u16, u32, u32)> = shape
                .sources
                .iter()
                .enumerate()
                .flat_map(|(s, src)| {
                    src.shard_rows
                        .iter()
                        .enumerate()
                        .map(move |(i, r)| (s as u16, i as u32, *r))
                })
                .collect();
            for index in Draws::new(shape.seed, Purpose::ShardOrder, 0, pass).permutation(all.len()) {
                let (source, shard, n) = all[index as usize];
                flat.extend((0..n).map(|row| SampleId { source, shard, row }));
            }
            let longer_lanes: Vec<u64> = (0..longer).map(|i| (pass * longer + i) % lanes).collect();
            let length = |q: u64| base + u64::from(longer_lanes.contains(&q));
            let start: u64 = (0..u64::from(lane)).map(length).sum();
            let mine = &flat[start as usize..(start + length(u64::from(lane))) as usize];
            let b = shape.lane_rows() as usize;
            let m = shape.window_factor as usize;
            let mut size = b * (m - lane as usize % m);
            let mut at = 0;
            let pass_start = out.len();
            while at < mine.len() {
                let window = &mine[at..(at + size).min(mine.len())];
                let key = (pass_start + at) as u64;
                let order = Draws::new(shape.seed, Purpose::WindowOrder, lane, key).permutation(window.len());
                out.extend(order.iter().map(|i| window[*i as usize]));
                at += window.len();
                size = b * m;
            }
            if out.len() >= upto {
                out.truncate(upto);
                return out;
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn sampler_any_shape_matches_the_plain_reference(
            shards in proptest::collection::vec(0u32..40, 1..8),
            lanes in 1u32..9, per_lane in 1u32..6, factor in 1u32..5,
        ) {
            let total: u64 = shards.iter().map(|r| u64::from(*r)).sum();
            prop_assume!(total >= u64::from(lanes));
            let shape = shape(vec![shards], lanes, per_lane, factor, total * 3);
            let mut sampler = Sampler::new(shape.clone());
            for lane in 0..lanes {
                let expected = reference_stream(&shape, lane, shape.lane_positions(lane) as usize);
                let got: Vec<SampleId> =
                    (0..shape.total_steps()).flat_map(|k| sampler.step_samples(lane, k)).collect();
                prop_assert_eq!(&got, &expected);
            }
        }

        #[test]
        fn whole_passes_hold_every_row_equally_often(
            shards in proptest::collection::vec(1u32..30, 1..6), lanes in 1u32..9, passes in 1u64..4,
        ) {
            let rows: u64 = shards.iter().map(|r| u64::from(*r)).sum();
            prop_assume!(rows >= u64::from(lanes));
            let shape = shape(vec![shards], lanes, 3, 4, rows * passes);
            let mut sampler = Sampler::new(shape.clone());
            let mut seen: BTreeMap<SampleId, u64> = BTreeMap::new();
            for lane in 0..lanes {
                for step in 0..shape.total_steps() {
                    for sample in sampler.step_samples(lane, step) {
                        *seen.entry(sample).or_default() += 1;
                    }
                }
            }
            prop_assert_eq!(seen.len() as u64, rows);
            prop_assert!(seen.values().all(|n| *n == passes), "T = passes * rows trains each row once a pass");
        }
    }

    #[test]
    fn two_sources_without_weights_share_one_permutation() {
        let shape = shape(vec![vec![5, 5], vec![10]], 2, 2, 2, 20);
        let mut sampler = Sampler::new(shape.clone());
        let mut per_source = [0u32; 2];
        for lane in 0..2 {
            for step in 0..shape.total_steps() {
                for s in sampler.step_samples(lane, step) {
                    per_source[s.source as usize] += 1;
                }
            }
        }
        assert_eq!(per_source, [10, 10]);
    }

    #[test]
    fn window_at_a_pass_edge_never_holds_two_passes() {
        let shape = shape(vec![vec![11]], 2, 4, 3, 66);
        let mut sampler = Sampler::new(shape);
        for position in 0..33 {
            let window = sampler.window(1, position);
            let first = sampler.pass_of(1, window.positions.start);
            assert_eq!(first, sampler.pass_of(1, window.positions.end - 1));
        }
    }
}
