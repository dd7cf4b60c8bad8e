//! What a world trains: the rows of every step, what is left out of them, and the arithmetic of the toy.
//!
//! The sum of a step is exact and does not know who computed which lane. The state after it also holds the plan under which
//! it was applied, as real weights hold the order in which their sums were rounded: a step that is done again by another
//! generation is another state, and only its name says so (rule G1).

use argosy_common::hash::mix64;
use argosy_common::ids::SampleId;
use argosy_common::quarantine::Quarantined;
use argosy_common::sampling::{Sampler, lane_digest};
use argosy_common::shape::RunShape;
use argosy_common::steplog::{MaskReason, MaskedRow};

/// Bits of the seeded state.
pub(crate) const SEED_BITS: u64 = 0x5eed;

/// See the module.
#[derive(Debug)]
pub(crate) struct Data {
    /// Ids by step and lane.
    rows: Vec<Vec<Vec<SampleId>>>,
    /// Digests of them.
    digests: Vec<Vec<u64>>,
}

impl Data {
    pub(crate) fn new(shape: &RunShape) -> Self {
        let mut sampler = Sampler::new(shape.clone());
        let mut of = |step| -> Vec<Vec<SampleId>> { (0..shape.lanes).map(|q| sampler.step_samples(q, step)).collect() };
        let rows: Vec<_> = (0..shape.total_steps()).map(&mut of).collect();
        let digest = |lanes: &Vec<Vec<SampleId>>| (0..).zip(lanes).map(|(q, ids)| lane_digest(q, ids)).collect();
        let digests = rows.iter().map(digest).collect();
        Self { rows, digests }
    }

    pub(crate) fn digest(&self, step: u64, lane: u32) -> u64 {
        self.digests[step as usize][lane as usize]
    }

    pub(crate) fn rows(&self, step: u64, lane: u32) -> &[SampleId] {
        &self.rows[step as usize][lane as usize]
    }

    /// Rows of a step that a ledger leaves out.
    pub(crate) fn left_out(&self, step: u64, ledger: &[Quarantined]) -> Vec<MaskedRow> {
        if ledger.is_empty() {
            return Vec::new();
        }
        let out = |id: &SampleId| ledger.iter().any(|r| r.holds_from <= step && r.rows.contains(*id));
        let mut masked = Vec::new();
        for (lane, ids) in (0..).zip(&self.rows[step as usize]) {
            for (row, _) in (0..).zip(ids).filter(|(_, id)| out(id)) {
                let reason = MaskReason::Quarantined;
                masked.push(MaskedRow { lane, row, reason });
            }
        }
        masked
    }

    /// One lane's part of the sum of a step.
    pub(crate) fn part(&self, step: u64, lane: u32, ledger: &[Quarantined]) -> u64 {
        let masked = self.left_out(step, ledger);
        let missing = masked.iter().filter(|m| m.lane == lane);
        missing.fold(mix64(self.digest(step, lane) ^ u64::from(lane)), |part, m| {
            mix64(part ^ u64::from(m.row + 1))
        })
    }

    /// The sum of a whole step.
    pub(crate) fn sum(&self, step: u64, ledger: &[Quarantined]) -> u64 {
        let lanes = 0..self.digests[step as usize].len() as u32;
        lanes.fold(0, |sum, lane| sum.wrapping_add(self.part(step, lane, ledger)))
    }
}

/// The state after a step with this sum under this plan.
pub(crate) fn next_bits(bits: u64, sum: u64, plan_hash: u64) -> u64 {
    mix64(bits ^ sum ^ mix64(plan_hash))
}
