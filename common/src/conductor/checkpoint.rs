//! When a checkpoint is taken, and how an attempt ends (rules K1, K3).

use super::{AfterPersist, Command, Conductor, Phase, Turn};
use crate::events::{Outcome, PartInfo, Record, RunEvent, ToWorker};
use crate::exit::Exit;
use crate::ids::{StateName, WorkerId};
use crate::rules::Rules;

/// The order to copy must be there before the boundary is: so many steps ahead, doubled after each miss.
const STEPS_AHEAD: u64 = 2;

impl<R: Rules> Conductor<R> {
    /// What the checkpoint ledger holds in memory, in bytes.
    #[must_use]
    pub fn ledger_bytes(&self) -> usize {
        self.ledger.bytes()
    }

    /// Opens an attempt when the cadence, the end of the run or a stop wants one.
    pub(super) fn maybe_open_attempt(&mut self, turn: &mut Turn) {
        if !matches!(self.phase, Phase::Running { .. }) || self.ledger.is_open() {
            return;
        }
        let ahead = STEPS_AHEAD << self.ledger.misses().min(8);
        let soonest = self.steps_done + ahead;
        let total = self.settings.total_steps;
        let cadence = self.settings.checkpoint_steps;
        let committed = self.ledger.head().map_or(0, |h| h.name.step);
        let due = match committed.checked_div(cadence) {
            Some(done) => (done + 1).saturating_mul(cadence).min(total),
            None => total,
        };
        let at_step = if self.stopping {
            soonest.min(total)
        } else if soonest >= due && committed < total {
            soonest.min(total).max(due)
        } else {
            return;
        };
        let attempt = self.ledger.open(at_step);
        self.persist(
            Record::CheckpointOpened { attempt, at_step },
            AfterPersist::StartAttempt { attempt },
            turn,
        );
    }

    /// The attempt's record is durable: give every member its parts.
    pub(super) fn start_attempt(&mut self, attempt: u64, turn: &mut Turn) {
        // Given up while its record was on the way: there is nothing to start.
        let Some(at_step) = self
            .ledger
            .opened()
            .filter(|(n, _)| *n == attempt)
            .map(|(_, step)| step)
        else {
            return;
        };
        let Phase::Running { plan } = &self.phase else {
            self.abandon_open_attempt("the generation ended before the checkpoint began", turn);
            return;
        };
        let members: Vec<WorkerId> = plan.members.iter().map(|m| m.worker).collect();
        let parts_total = self.settings.parts_total;
        let owners: Vec<WorkerId> = (0..parts_total).map(|p| members[p as usize % members.len()]).collect();
        for worker in &members {
            let parts = (0..parts_total).filter(|p| owners[*p as usize] == *worker).collect();
            turn.send(
                *worker,
                ToWorker::Checkpoint {
                    attempt,
                    at_step,
                    parts,
                    parts_total,
                },
            );
        }
        self.ledger.assign(owners);
    }

    pub(super) fn part_uploaded(
        &mut self,
        worker: WorkerId,
        attempt: u64,
        part: PartInfo,
        name: StateName,
        turn: &mut Turn,
    ) {
        match self.ledger.part_uploaded::<R>(worker, attempt, part, name) {
            Ok(None) => {}
            Ok(Some((name, parts))) => {
                let parent = self.ledger.head().map(|h| h.key.clone());
                turn.commands.push(Command::WriteManifest {
                    attempt,
                    name,
                    parent,
                    parts,
                });
            }
            Err(reason) => self.abandon_attempt(attempt, &reason, turn),
        }
    }

    pub(super) fn manifest_written(&mut self, attempt: u64, key: String, turn: &mut Turn) {
        let Some(name) = self.ledger.complete_name(attempt) else {
            return;
        };
        let record = Record::CheckpointCommitted {
            attempt,
            key: key.clone(),
            name,
        };
        self.persist(record, AfterPersist::Commit { attempt, key, name }, turn);
    }

    /// The head points to the new manifest.
    pub(super) fn committed(&mut self, attempt: u64, key: String, name: StateName, turn: &mut Turn) {
        let garbage = self.ledger.committed(attempt, key.clone(), name);
        turn.announce(RunEvent::CheckpointCommitted { key: key.clone(), name });
        if !garbage.is_empty() {
            turn.commands.push(Command::CollectGarbage { attempts: garbage });
        }
        if name.step >= self.settings.total_steps {
            self.finish(turn);
        } else if self.stopping {
            self.end(Outcome::Interrupted { name }, turn);
        }
    }

    /// The head holds the last step. A run in which nothing could be trained has not succeeded, though.
    pub(super) fn finish(&mut self, turn: &mut Turn) {
        if self
            .pending
            .iter()
            .any(|after| matches!(after, AfterPersist::End { .. }))
        {
            return;
        }
        let Some(head) = self.ledger.head().cloned() else {
            return;
        };
        if !self.any_update {
            let message =
                "nothing was trained: no step had two usable rows; `argosy audit` counts the rows by reason".into();
            let exit = Exit::JobFailed.code();
            self.end(Outcome::Failed { exit, message }, turn);
            return;
        }
        let name = head.name;
        let manifest = Some(head.key);
        let outcome = Outcome::Succeeded { name, manifest };
        self.persist(Record::RunFinished { name }, AfterPersist::End { outcome }, turn);
    }

    /// An owner left: its parts will not come.
    pub(super) fn ledger_lost(&mut self, worker: WorkerId, turn: &mut Turn) {
        if let Some(attempt) = self.ledger.owned_by(worker) {
            self.abandon_attempt(attempt, &format!("{worker} was lost with its parts"), turn);
        }
    }

    pub(super) fn abandon_open_attempt(&mut self, reason: &str, turn: &mut Turn) {
        if let Some((attempt, _)) = self.ledger.opened() {
            self.abandon_attempt(attempt, reason, turn);
        }
    }

    pub(super) fn abandon_attempt(&mut self, attempt: u64, reason: &str, turn: &mut Turn) {
        if !self.ledger.abandon(attempt) {
            return;
        }
        turn.announce(RunEvent::CheckpointAbandoned {
            attempt,
            reason: reason.into(),
        });
        let record = Record::CheckpointAbandoned {
            attempt,
            reason: reason.into(),
        };
        self.persist(record, AfterPersist::Nothing, turn);
        turn.commands.push(Command::CollectGarbage {
            attempts: vec![attempt],
        });
    }
}
