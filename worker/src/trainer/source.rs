//! Where a trainer's batches come from.

use argosy_common::quarantine::Quarantined;
use argosy_shard_loader::{LaneBatch, Loader, LoaderError};
use std::time::Duration;

/// Batches of the own lanes, step by step: from shards, or made up by a test.
pub trait BatchSource: std::fmt::Debug + Send {
    /// A new plan: batches of `lanes` from `from_step` on are wanted.
    fn assign(&mut self, lanes: &[u32], from_step: u64);

    /// The plan's quarantine ledger: its rows take no part, each from its step on (rule M2).
    fn leave_out(&mut self, revisions: &[Quarantined]);

    /// The next step's batches in lane order; `None` when `timeout` passes first.
    ///
    /// # Errors
    /// As [`Loader::next`].
    fn next(&mut self, timeout: Duration) -> Result<Option<Vec<LaneBatch>>, LoaderError>;
}

impl BatchSource for Loader {
    fn assign(&mut self, lanes: &[u32], from_step: u64) {
        Self::assign(self, lanes, from_step);
    }

    fn leave_out(&mut self, revisions: &[Quarantined]) {
        Self::leave_out(self, revisions);
    }

    fn next(&mut self, timeout: Duration) -> Result<Option<Vec<LaneBatch>>, LoaderError> {
        Self::next(self, timeout)
    }
}
