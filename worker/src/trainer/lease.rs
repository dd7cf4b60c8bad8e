//! The right to apply steps, shared between the agent, which hears of it, and the trainer, which needs it (rule G5).

use crate::collective::AbortHandle;
use argosy_common::ids::Generation;
use argosy_common::rules::{Rules as _, Shipped};
use argosy_rpc::clock;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A trainer that waits looks at its abort handle and at the clock so often.
const LOOK: Duration = Duration::from_millis(20);

/// Generation and end of the lease at hand, in milliseconds of [`clock`], which counts suspended time.
type Held = (Generation, u64);

/// A step lease. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Lease {
    /// `None`: steps need none.
    board: Option<Arc<(Mutex<Held>, Condvar)>>,
}

impl Lease {
    /// Steps need none: the worker ends with its coordinator.
    #[must_use]
    pub fn not_needed() -> Self {
        Self::default()
    }

    /// Steps need one, and there is none yet.
    #[must_use]
    pub fn needed() -> Self {
        Self {
            board: Some(Arc::default()),
        }
    }

    /// Replaces the lease at hand: `generation` may be applied in until `until_ms` of [`clock`]; 0 takes it away.
    pub fn set(&self, generation: Generation, until_ms: u64) {
        if let Some(board) = &self.board {
            *lock(&board.0) = (generation, until_ms);
            board.1.notify_all();
        }
    }

    /// Waits in place until an APPLY in `generation` is allowed; false if the generation was aborted first. To be asked
    /// directly before the first write.
    pub(super) fn allows(&self, generation: Generation, abort: &AbortHandle) -> bool {
        let Some(board) = &self.board else { return true };
        let mut held = lock(&board.0);
        let mut waits = false;
        loop {
            if abort.is_aborted() {
                return false;
            }
            let (leased, until) = *held;
            if Shipped::lease_allows(leased, generation, until, clock::now_ms()) {
                if waits {
                    tracing::info!(%generation, "steps may be applied again");
                }
                return true;
            }
            if !std::mem::replace(&mut waits, true) {
                tracing::warn!(%generation, "no step lease: waiting in place before APPLY");
            }
            held = board
                .1
                .wait_timeout(held, LOOK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    // Two numbers, replaced at once: a panic elsewhere leaves nothing half done.
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: u64 = u64::MAX;

    /// What a trainer that asks for `generation` is told in the end, `then` being done meanwhile.
    fn told(lease: &Lease, generation: u64, then: impl FnOnce(&AbortHandle)) -> bool {
        let abort = AbortHandle::new();
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| lease.allows(Generation(generation), &abort));
            then(&abort);
            asking.join().unwrap()
        })
    }

    #[test]
    fn lease_of_the_generation_allows_until_its_end_and_no_other_does() {
        assert!(told(&Lease::not_needed(), 1, |_| {}));
        let lease = Lease::needed();
        assert!(told(&lease, 1, |_| lease.set(Generation(1), LATER)));
        assert!(!told(&lease, 2, AbortHandle::abort), "that was another generation's");
        lease.set(Generation(2), clock::now_ms());
        assert!(!told(&lease, 2, AbortHandle::abort), "it has run out");
        assert!(told(&lease, 2, |_| lease.set(Generation(2), LATER)));
        lease.set(Generation(2), 0);
        assert!(!told(&lease, 2, AbortHandle::abort), "it was taken away");
    }
}
