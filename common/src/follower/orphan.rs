//! Without a coordinator (rule G9).

use super::{Command, Follower, Phase, Tick};
use crate::backoff::Backoff;
use crate::events::FromWorker;
use crate::exit::Exit;
use crate::ids::Term;
use crate::rules::Rules;
use std::collections::VecDeque;

/// Reports kept for a coordinator that comes back; of step reports the oldest go first.
const KEPT_MAX: usize = 256;
const RETRY_FIRST_MS: u64 = 200;
/// No orphan waits longer between two looks for a coordinator.
pub(crate) const RETRY_MAX_MS: u64 = 10_000;

/// What an orphan remembers.
#[derive(Debug)]
pub(super) struct Orphan {
    pub(super) since: Tick,
    tries: u32,
    kept: VecDeque<FromWorker>,
}

impl Orphan {
    pub(super) fn keep(&mut self, message: FromWorker) {
        let of_a_moment = |message: &FromWorker| {
            matches!(
                message,
                FromWorker::Heartbeat | FromWorker::LeaseWanted { .. } | FromWorker::Primed { .. }
            )
        };
        if of_a_moment(&message) {
            return; // it has passed, and a move of lanes does not outlive its leader
        }
        if self.kept.len() >= KEPT_MAX {
            let step = self.kept.iter().position(|m| matches!(m, FromWorker::StepDone { .. }));
            self.kept.remove(step.unwrap_or(0));
        }
        self.kept.push_back(message);
    }
}

impl<R: Rules> Follower<R> {
    /// The generation goes on: its members still have each other, and the lease says for how long.
    pub(super) fn stream_lost(&mut self, now: Tick) -> Vec<Command> {
        if self.settings.orphan_max_ms == 0 {
            return self.exit(Exit::Unavailable.code(), "the coordinator is gone");
        }
        if self.orphan.is_some() {
            return Vec::new();
        }
        self.orphan = Some(Orphan {
            since: now,
            tries: 0,
            kept: VecDeque::new(),
        });
        self.try_again()
    }

    /// Waits longer after each try, and not as long as the others do.
    pub(super) fn try_again(&mut self) -> Vec<Command> {
        let Some(orphan) = &mut self.orphan else {
            return Vec::new();
        };
        orphan.tries = orphan.tries.saturating_add(1);
        let backoff = Backoff {
            first_ms: RETRY_FIRST_MS,
            max_ms: RETRY_MAX_MS,
            seed: self.settings.seed,
            who: self.settings.worker,
        };
        let after_ms = backoff.wait_ms(orphan.tries);
        vec![Command::Reconnect { after_ms }]
    }

    /// Tells a coordinator of at least the last reign where this worker stands, then what it had to keep.
    pub(super) fn welcomed(&mut self, term: Term) -> Vec<Command> {
        self.stream_term = term;
        if !R::term_holds(self.term, term) {
            return self.try_again(); // it has been deposed and does not know yet
        }
        self.term = self.term.max(term);
        let Some(orphan) = self.orphan.take() else {
            return Vec::new();
        };
        if self.phase == Phase::Warming {
            return orphan.kept.into_iter().map(Command::Tell).collect(); // not ready yet; it will say so
        }
        let rejoined = FromWorker::Rejoined {
            addr: self.addr.clone(),
            name: self.name,
            inside: self.current(),
            left: self.closed,
        };
        std::iter::once(rejoined)
            .chain(orphan.kept)
            .map(Command::Tell)
            .collect()
    }
}
