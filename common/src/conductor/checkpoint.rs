//! When a checkpoint is taken, and how an attempt ends (rules K1, K3).

use super::{AfterPersist, Command, Conductor, Phase, Turn};
use crate::events::{Outcome, PartFailure, PartInfo, Record, RunEvent, ToWorker};
use crate::exit::Exit;
use crate::ids::{Generation, StateName, WorkerId};
use crate::ledger::Loss;
use crate::rules::Rules;

/// The order to copy must be there before the boundary is: so many steps ahead, doubled after each miss.
const STEPS_AHEAD: u64 = 2;
/// The first wait after an attempt that the store did not take; doubled after each further one.
const RETRY_MS: u64 = 1_000;
/// Longest such wait.
const RETRY_MS_MAX: u64 = 60_000;
/// Attempts in a row that the store does not take, after which a run that only waits for its last checkpoint ends.
const LAST_TRIES: u32 = 5;
/// The same after a stop: somebody waits for it.
const STOP_TRIES: u32 = 2;

impl<R: Rules> Conductor<R> {
    /// What is held in memory to know what was trained, by whom and where it is saved, in bytes: checkpoints, owners of lanes,
    /// ends of generations, rows given up.
    #[must_use]
    pub fn ledger_bytes(&self) -> usize {
        let lanes = self.lanes.capacity() * size_of::<WorkerId>();
        // Nodes of a map are at least half full.
        let ends = 2 * self.ends.len() * size_of::<(Generation, u64)>();
        self.ledger.bytes() + self.trouble.quarantine.bytes() + lanes + ends
    }

    /// Opens an attempt when the cadence, the end of the run or a stop wants one.
    pub(super) fn maybe_open_attempt(&mut self, turn: &mut Turn) {
        if !matches!(self.phase, Phase::Running { .. }) || self.ledger.is_open() {
            return;
        }
        let since = *self.checkpoint_since.get_or_insert(turn.now);
        if turn.now < self.retry_at {
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
        let (every, old) = (self.settings.checkpoint_ms, turn.now.saturating_sub(since));
        let late = every > 0 && old >= every && self.steps_done > committed;
        let at_step = if self.stopping || late || self.saves_before_drain() {
            soonest.min(total)
        } else if soonest >= due && committed < total {
            soonest.min(total).max(due)
        } else {
            return;
        };
        let attempt = self.ledger.open::<R>(at_step);
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
        let at = |part: u32| members[part as usize % members.len()];
        let owners: Vec<WorkerId> = (0..parts_total).map(at).collect();
        // The member behind the owner in the ring keeps a copy as well, or the next one that stays if the owner leaves.
        let buddy = |part: u32| {
            let behind = || (1..members.len() as u32).map(|i| at(part + i));
            let stays = |w: &WorkerId| self.may_train(*w);
            behind()
                .find(|b| stays(b) || stays(&at(part)))
                .or_else(|| behind().next())
        };
        let buddies: Vec<Option<WorkerId>> = (0..parts_total).map(buddy).collect();
        let since = self.ledger.head().map_or(0, |head| head.name.step);
        for worker in &members {
            let all = 0..parts_total;
            let (mine, spare) = (owners[..].iter(), buddies[..].iter());
            let parts = all.clone().zip(mine).filter(|(_, o)| *o == worker).map(|(p, _)| p);
            let spare = all.zip(spare).filter(|(_, b)| **b == Some(*worker)).map(|(p, _)| p);
            let order = ToWorker::Checkpoint {
                attempt,
                at_step,
                parts: parts.collect(),
                spare: spare.collect(),
                parts_total,
                since,
            };
            turn.send(*worker, order);
        }
        self.ledger.assign(owners, buddies);
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
        let said = |after: &AfterPersist| matches!(after, AfterPersist::Commit { attempt: n, .. } if *n == attempt);
        if self.pending.iter().any(said) {
            return; // told twice: one commit of it is on its way
        }
        let record = Record::CheckpointCommitted {
            attempt,
            key: key.clone(),
            name,
        };
        self.persist(record, AfterPersist::Commit { attempt, key, name }, turn);
    }

    /// The head points to the new manifest.
    pub(super) fn committed(&mut self, attempt: u64, key: String, name: StateName, turn: &mut Turn) {
        let attempts = self.ledger.committed(attempt, key.clone(), name);
        self.checkpoint_since = Some(turn.now);
        self.retry_at = 0;
        turn.announce(RunEvent::CheckpointCommitted { key: key.clone(), name });
        if !attempts.is_empty() {
            let keep_logs = true;
            turn.commands.push(Command::CollectGarbage { attempts, keep_logs });
        }
        if name.step >= self.settings.total_steps {
            self.finish(turn);
        } else if self.stopping && name.step >= self.stop_step {
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

    /// A worker is gone. The buddies of its parts have copies, if they came as far.
    pub(super) fn ledger_lost(&mut self, worker: WorkerId, turn: &mut Turn) {
        match self.ledger.lost(worker) {
            Loss::None => {}
            Loss::Hopeless(attempt) => {
                self.abandon_attempt(attempt, &format!("{worker} was lost with its parts"), turn);
            }
            Loss::Spare(parts) => {
                let Some((attempt, _)) = self.ledger.opened() else {
                    return;
                };
                for (buddy, parts) in parts {
                    turn.send(buddy, ToWorker::UploadSpare { attempt, parts });
                }
            }
        }
    }

    /// A part or the manifest did not get there. Training goes on; the next attempt waits a while if it was the store.
    pub(super) fn part_failed(&mut self, attempt: u64, failure: PartFailure, reason: &str, turn: &mut Turn) {
        if self.ledger.opened().is_none_or(|(open, _)| open != attempt) {
            return;
        }
        match failure {
            PartFailure::Late => self.ledger.missed(attempt),
            PartFailure::Store => {
                self.ledger.failed(attempt);
                let wait = (RETRY_MS << self.ledger.failures().saturating_sub(1).min(16)).min(RETRY_MS_MAX);
                self.retry_at = self.retry_at.max(turn.now + wait);
            }
        }
        self.abandon_attempt(attempt, reason, turn);
        let tries = self.ledger.failures();
        if self.stopping && tries >= STOP_TRIES {
            self.interrupt(turn);
        } else if self.steps_done >= self.settings.total_steps && tries >= LAST_TRIES {
            let exit = Exit::NoCapacity.code();
            let message = format!("all is trained, but the last checkpoint could not be written: {reason}");
            self.end(Outcome::Failed { exit, message }, turn);
        }
    }

    /// A worker could not read the checkpoint it was to start from. A damaged one is passed over for good; of a store that
    /// cannot be reached another try is made.
    pub(super) fn restore_failed(&mut self, key: String, damaged: bool, reason: &str, turn: &mut Turn) {
        if !damaged {
            return; // the worker leaves the generation, and says why
        }
        let Some(attempt) = self.ledger.reject(&key) else {
            return; // another worker said so before
        };
        let reason = reason.to_owned();
        turn.announce(RunEvent::CheckpointRejected {
            key: key.clone(),
            reason: reason.clone(),
        });
        let message = format!("no checkpoint of this run can be read, the oldest is {key}: {reason}");
        self.persist(
            Record::CheckpointRejected { attempt, key, reason },
            AfterPersist::Nothing,
            turn,
        );
        if self.ledger.head().is_none() {
            let exit = Exit::JobFailed.code();
            self.end(Outcome::Failed { exit, message }, turn);
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
        // Nothing is deleted before: the number may be another reign's by now, and only the store knows (rules G6, K3).
        self.persist(record, AfterPersist::Collect { attempt }, turn);
    }
}
