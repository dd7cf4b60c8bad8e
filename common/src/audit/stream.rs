//! The ids of all lanes, step after step, by walking window by window: running sums instead of the sampler's closed forms.

use super::arithmetic::{SHARDS, WINDOW, permutation, rows_of_a_step, share};
use crate::ids::SampleId;
use crate::shape::RunShape;
use std::collections::{BTreeMap, VecDeque};

/// One pass over the data, as the lanes divide it.
#[derive(Debug)]
struct Pass {
    /// Shards in the order of this pass, each with the number of rows before it.
    shards: Vec<(u16, u32, u64)>,
    /// Where each lane's range begins; the end of the last one behind.
    edges: Vec<u64>,
}

/// A walk along one lane.
#[derive(Debug, Default)]
struct Lane {
    pass: u64,
    /// Rows of this pass that were walked.
    inside: u64,
    /// Positions that were walked, including those in `ahead`.
    walked: u64,
    ahead: VecDeque<SampleId>,
}

/// A walk along all lanes.
#[derive(Debug)]
pub(super) struct Streams<'a> {
    shape: &'a RunShape,
    lanes: Vec<Lane>,
    passes: BTreeMap<u64, Pass>,
    /// Rows of a pass.
    rows: u64,
}

/// Passes kept: lanes are less than one apart.
const PASSES: usize = 3;

impl<'a> Streams<'a> {
    pub(super) fn new(shape: &'a RunShape) -> Self {
        let counts = shape.sources.iter().flat_map(|s| &s.shard_rows);
        Self {
            shape,
            lanes: (0..shape.lanes).map(|_| Lane::default()).collect(),
            passes: BTreeMap::new(),
            rows: counts.map(|rows| u64::from(*rows)).sum(),
        }
    }

    /// The samples of every lane at step `step`; steps must be taken in order.
    pub(super) fn take(&mut self, step: u64) -> Vec<Vec<SampleId>> {
        let rows = rows_of_a_step(self.shape);
        let wanted = |lane| rows.min(share(self.shape, lane).saturating_sub(step.saturating_mul(rows)));
        let wanted: Vec<u64> = (0..self.shape.lanes).map(wanted).collect();
        wanted
            .into_iter()
            .enumerate()
            .map(|(lane, wanted)| self.take_of(lane, wanted))
            .collect()
    }

    fn take_of(&mut self, lane: usize, wanted: u64) -> Vec<SampleId> {
        // Without any row there is nothing to walk; the samples are wrong then, and that is found.
        while (self.lanes[lane].ahead.len() as u64) < wanted && self.rows > 0 {
            self.walk_a_window(lane);
        }
        let walk = &mut self.lanes[lane];
        let there = walk.ahead.len().min(wanted as usize);
        walk.ahead.drain(..there).collect()
    }

    /// Walks the lane's next window, or over the edge of its pass.
    fn walk_a_window(&mut self, lane: usize) {
        let at = &self.lanes[lane];
        let (number, inside, walked) = (at.pass, at.inside, at.walked);
        let shape = self.shape;
        let pass = self.pass(number);
        let (from, until) = (pass.edges[lane] + inside, pass.edges[lane + 1]);
        if from == until {
            self.lanes[lane].pass += 1;
            self.lanes[lane].inside = 0;
            return;
        }
        // Windows are `m*b` long; the first of a pass is shorter by lane, and a pass's edge cuts the last one (rule L7).
        let factor = u64::from(shape.window_factor);
        let parts = if inside == 0 {
            factor - lane as u64 % factor
        } else {
            factor
        };
        let size = (rows_of_a_step(shape) * parts).min(until - from);
        let window: Vec<SampleId> = pass.rows(from, size);
        let order = permutation(shape.seed, WINDOW, lane as u32, walked, window.len());
        let walk = &mut self.lanes[lane];
        walk.ahead.extend(order.into_iter().map(|i| window[i]));
        walk.inside += size;
        walk.walked += size;
    }

    fn pass(&mut self, number: u64) -> &Pass {
        if !self.passes.contains_key(&number) && self.passes.len() >= PASSES {
            self.passes.pop_first();
        }
        let shape = self.shape;
        self.passes.entry(number).or_insert_with(|| Pass::new(shape, number))
    }
}

impl Pass {
    fn new(shape: &RunShape, number: u64) -> Self {
        let mut listed = Vec::new();
        for (source, s) in shape.sources.iter().enumerate() {
            for (shard, rows) in s.shard_rows.iter().enumerate() {
                listed.push((source as u16, shard as u32, u64::from(*rows)));
            }
        }
        let mut before = 0;
        let mut shards = Vec::with_capacity(listed.len());
        for index in permutation(shape.seed, SHARDS, 0, number, listed.len()) {
            let (source, shard, rows) = listed[index];
            shards.push((source, shard, before));
            before += rows;
        }
        let lanes = u64::from(shape.lanes);
        // The longer ranges go round: those of this pass begin where those of the passes before ended (rule L2).
        let longer = before % lanes;
        let mut is_longer = vec![false; shape.lanes as usize];
        let first = (0..number).fold(0, |first, _| (first + longer) % lanes);
        for turn in 0..longer {
            is_longer[((first + turn) % lanes) as usize] = true;
        }
        let mut edges = vec![0];
        let mut edge = 0;
        for longer in is_longer {
            edge += before / lanes + u64::from(longer);
            edges.push(edge);
        }
        Self { shards, edges }
    }

    /// `count` rows from the `from`-th of the pass on.
    fn rows(&self, from: u64, count: u64) -> Vec<SampleId> {
        // The last shard that begins at or before it; empty ones begin where the next one does.
        let mut at = self
            .shards
            .partition_point(|(_, _, before)| *before <= from)
            .saturating_sub(1);
        let mut rows = Vec::with_capacity(count as usize);
        for row in from..from + count {
            while self.shards.get(at + 1).is_some_and(|(_, _, before)| *before <= row) {
                at += 1;
            }
            let (source, shard, before) = self.shards[at];
            rows.push(SampleId {
                source,
                shard,
                row: (row - before) as u32,
            });
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{Sampler, lane_digest};
    use crate::shape::SourceShape;
    use proptest::prelude::*;

    proptest! {
        /// Written twice, and equal: what trains and what judges.
        #[test]
        fn streams_of_any_shape_are_the_samplers(
            shards in proptest::collection::vec(0u32..30, 1..8), lanes in 1u32..9, per_lane in 1u32..6,
            factor in 1u32..5, passes in 1u64..4, cut in 0u64..9, seed: u64,
        ) {
            let rows: u64 = shards.iter().map(|r| u64::from(*r)).sum();
            prop_assume!(rows >= u64::from(lanes));
            let (a, b) = shards.split_at(shards.len() / 2);
            let source = |name: &str, rows: &[u32]| SourceShape { name: name.into(), shard_rows: rows.to_vec() };
            let shape = RunShape {
                seed, sources: vec![source("a", a), source("b", b)], batch: lanes * per_lane, lanes, window_factor: factor,
                total_positions: (rows * passes).saturating_sub(cut).max(1),
            };
            prop_assert_eq!(super::super::arithmetic::total_steps(&shape), shape.total_steps());
            let (mut streams, mut sampler) = (Streams::new(&shape), Sampler::new(shape.clone()));
            for step in 0..shape.total_steps() {
                for (lane, ids) in (0..).zip(streams.take(step)) {
                    let expected = sampler.step_samples(lane, step);
                    prop_assert_eq!(super::super::arithmetic::digest(lane, &ids), lane_digest(lane, &expected));
                    prop_assert_eq!(ids, expected);
                }
                let positions = super::super::arithmetic::positions(&shape, step);
                prop_assert_eq!(positions, shape.positions_before(step));
            }
        }
    }
}
