//! The ids of a lane, step after step, by walking: vectors and running sums instead of the sampler's closed forms.

use crate::ids::SampleId;
use crate::rng::{Draws, Purpose};
use crate::shape::RunShape;
use std::collections::VecDeque;

/// A walk along one lane's stream.
#[derive(Debug)]
pub(super) struct LaneStream {
    lane: u32,
    next_pass: u64,
    /// Longer lanes of the next pass begin here.
    first_longer: u64,
    /// Positions walked so far, including those in `ahead`.
    walked: u64,
    ahead: VecDeque<SampleId>,
}

impl LaneStream {
    pub(super) fn new(_shape: &RunShape, lane: u32) -> Self {
        Self {
            lane,
            next_pass: 0,
            first_longer: 0,
            walked: 0,
            ahead: VecDeque::new(),
        }
    }

    /// The samples of step `step`; steps must be taken in order.
    pub(super) fn take(&mut self, shape: &RunShape, step: u64) -> Vec<SampleId> {
        let rows = u64::from(shape.batch / shape.lanes);
        let lanes = u64::from(shape.lanes);
        // This lane's share of the run's T positions.
        let share = (shape.total_positions + lanes - 1 - u64::from(self.lane)) / lanes;
        let wanted = rows.min(share.saturating_sub(step * rows));
        while (self.ahead.len() as u64) < wanted {
            self.walk_a_pass(shape);
        }
        self.ahead.drain(..wanted as usize).collect()
    }

    /// Appends the lane's range of one whole pass.
    fn walk_a_pass(&mut self, shape: &RunShape) {
        let mut shards = Vec::new();
        for (source, s) in shape.sources.iter().enumerate() {
            for (shard, rows) in s.shard_rows.iter().enumerate() {
                shards.push((source as u16, shard as u32, u64::from(*rows)));
            }
        }
        let order = Draws::new(shape.seed, Purpose::ShardOrder, 0, self.next_pass).permutation(shards.len());
        let rows: u64 = shards.iter().map(|s| s.2).sum();
        let lanes = u64::from(shape.lanes);
        let longer: Vec<u64> = (0..rows % lanes).map(|i| (self.first_longer + i) % lanes).collect();
        let length = |lane: u64| rows / lanes + u64::from(longer.contains(&lane));
        let start: u64 = (0..u64::from(self.lane)).map(length).sum();
        let end = start + length(u64::from(self.lane));
        let mut mine = Vec::new();
        let mut before = 0;
        for index in order {
            let (source, shard, count) = shards[index as usize];
            let overlap = start.max(before)..end.min(before + count);
            mine.extend(overlap.map(|at| SampleId {
                source,
                shard,
                row: (at - before) as u32,
            }));
            before += count;
        }
        let b = u64::from(shape.batch / shape.lanes);
        let m = u64::from(shape.window_factor);
        let mut size = b * (m - u64::from(self.lane) % m);
        let mut rest = mine.as_slice();
        while !rest.is_empty() {
            let (window, later) = rest.split_at(rest.len().min(size as usize));
            let order = Draws::new(shape.seed, Purpose::WindowOrder, self.lane, self.walked).permutation(window.len());
            self.ahead.extend(order.iter().map(|i| window[*i as usize]));
            self.walked += window.len() as u64;
            rest = later;
            size = b * m;
        }
        self.first_longer = (self.first_longer + rows % lanes) % lanes;
        self.next_pass += 1;
    }
}

/// Digest of one lane's ids, written out byte by byte: lane u32, then source u16, shard u32, row u32, little endian.
pub(super) fn digest(lane: u32, ids: &[SampleId]) -> u64 {
    let mut bytes: Vec<u8> = lane.to_le_bytes().to_vec();
    for id in ids {
        bytes.extend(id.source.to_le_bytes());
        bytes.extend(id.shard.to_le_bytes());
        bytes.extend(id.row.to_le_bytes());
    }
    crate::hash::digest64(&bytes)
}
