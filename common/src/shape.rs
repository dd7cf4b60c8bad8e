//! The shape of a run's data: how many rows each shard keeps, and how lanes share them (rules L1 to L6).

use serde::{Deserialize, Serialize};

/// Kept rows of every shard of one (joined) source, in the order of the index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceShape {
    /// Name for people and for the ledger.
    pub name: String,
    /// Kept rows per shard; positions number kept rows only.
    pub shard_rows: Vec<u32>,
}

impl SourceShape {
    /// Kept rows of one pass.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.shard_rows.iter().map(|r| u64::from(*r)).sum()
    }
}

/// Everything that decides which sample stands at which position, besides the seed.
///
/// Sources of one job are joined into one permutation (rule L4 without weights); `SampleId::source` tells them apart, so
/// the ledger still counts per source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunShape {
    /// Seed of the run.
    pub seed: u64,
    /// The sources in job order.
    pub sources: Vec<SourceShape>,
    /// Global batch `B`.
    pub batch: u32,
    /// Number of lanes `Q`, a divisor of `B`.
    pub lanes: u32,
    /// Window factor `m`: a window is `m*b` positions.
    pub window_factor: u32,
    /// Length of the run `T` in positions.
    pub total_positions: u64,
}

impl RunShape {
    /// Rows of one lane in one step, `b = B/Q`.
    #[must_use]
    pub fn lane_rows(&self) -> u32 {
        self.batch / self.lanes
    }

    /// Kept rows of one pass over all (joined) sources.
    #[must_use]
    pub fn pass_rows(&self) -> u64 {
        self.sources.iter().map(SourceShape::rows).sum()
    }

    /// Steps of the run: enough that the longest lane has trained its share.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        let longest = self.total_positions.div_ceil(u64::from(self.lanes));
        longest.div_ceil(u64::from(self.lane_rows()))
    }

    /// Positions that lane `lane` trains in the whole run: `floor(T/Q) + (q < T mod Q)` (rule L2).
    #[must_use]
    pub fn lane_positions(&self, lane: u32) -> u64 {
        let lanes = u64::from(self.lanes);
        self.total_positions / lanes + u64::from(u64::from(lane) < self.total_positions % lanes)
    }

    /// Positions that lane `lane` takes at step `step`: the range is empty or short at the end of the run only.
    #[must_use]
    pub fn step_range(&self, lane: u32, step: u64) -> std::ops::Range<u64> {
        let rows = u64::from(self.lane_rows());
        let end = self.lane_positions(lane);
        let from = step.saturating_mul(rows).min(end);
        from..from.saturating_add(rows).min(end)
    }

    /// Positions of all lanes before step `step`; what schedules count (rule L3) is `step * B`, this is what was trained.
    #[must_use]
    pub fn positions_before(&self, step: u64) -> u64 {
        (0..self.lanes).map(|lane| self.step_range(lane, step).start).sum()
    }
}

/// Most lanes of a run: plans list them all, and a plan must fit a message.
pub const LANES_MAX: u32 = 65_536;

/// The default number of lanes (rule L5): the largest divisor of `batch` with `Q <= B/8` and
/// `Q <= max(1024, 8*workers_max)`, at least 1.
#[must_use]
pub fn default_lanes(batch: u32, workers_max: u32) -> u32 {
    let limit = (batch / 8).min(1024.max(workers_max.saturating_mul(8))).min(LANES_MAX);
    (1..=limit.max(1)).rev().find(|q| batch.is_multiple_of(*q)).unwrap_or(1)
}

/// Lowers the window factor until `m*B` samples of the mean size fit `window_bytes_max` (rule L7); at least 1.
#[must_use]
pub fn fit_window_factor(wanted: u32, batch: u32, mean_sample_bytes: u64, window_bytes_max: u64) -> u32 {
    let per_factor = u64::from(batch).saturating_mul(mean_sample_bytes).max(1);
    let fits = (window_bytes_max / per_factor).clamp(1, u64::from(u32::MAX)) as u32;
    wanted.clamp(1, fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_lanes_is_the_largest_divisor_within_the_limits() {
        assert_eq!(default_lanes(256, 2), 32);
        assert_eq!(default_lanes(32_768, 4), 1024);
        assert_eq!(default_lanes(7, 4), 1);
        assert_eq!(default_lanes(90, 1), 10);
        assert_eq!(default_lanes(1 << 16, 512), 4096);
    }

    #[test]
    fn run_length_not_divisible_by_lanes_ends_with_a_partial_step() {
        let shape = RunShape {
            seed: 0,
            sources: vec![SourceShape {
                name: "s".into(),
                shard_rows: vec![30],
            }],
            batch: 8,
            lanes: 4,
            window_factor: 4,
            total_positions: 30,
        };
        assert_eq!(shape.total_steps(), 4);
        let taken: u64 = (0..4)
            .flat_map(|lane| (0..4).map(move |step| (lane, step)))
            .map(|(lane, step)| {
                let r = shape.step_range(lane, step);
                r.end - r.start
            })
            .sum();
        assert_eq!(taken, 30, "no position is dropped or repeated to fill a batch");
        assert_eq!(shape.positions_before(4), 30);
        assert!(shape.step_range(0, 9).is_empty());
    }

    #[test]
    fn window_factor_shrinks_to_the_byte_limit_but_never_to_zero() {
        assert_eq!(fit_window_factor(4, 100, 1000, 1_000_000), 4);
        assert_eq!(fit_window_factor(4, 100, 1000, 200_000), 2);
        assert_eq!(fit_window_factor(4, 100, 1000, 1), 1);
    }
}
