//! Forming, running and closing generations (rules G1, G3, G5).

use super::forming::FORMING_MS;
use super::{AfterPersist, Conductor, Phase, Turn};
use crate::backoff::Backoff;
use crate::events::{Outcome, Record, RunEvent, ToWorker};
use crate::exit::Exit;
use crate::ids::{Generation, StateName, WorkerId};
use crate::rules::Rules;

/// Longest wait between two tries when workers keep dying.
const BACK_OFF_MS_MAX: u64 = 5_000;
/// First wait between two tries.
const BACK_OFF_MS_FIRST: u64 = 400;
/// Worker ids are made durable so many at a time.
const NAMES_AT_ONCE: u32 = 16;
/// A planned close happens so many steps ahead, so that the order is there before the boundary is.
pub(super) const CLOSE_STEPS_AHEAD: u64 = 2;

impl<R: Rules> Conductor<R> {
    /// Takes `worker` off the list, and with it out of the generation.
    pub(super) fn lose(&mut self, worker: WorkerId, reason: &str, turn: &mut Turn) {
        let was_ready = self.seats.ready_at(worker).is_some();
        if !self.seats.remove(worker) {
            return;
        }
        self.lease.left(worker);
        self.keep_without(worker, turn);
        // Uploads that it had not ended are its buddies' now, however it went (rules K1, G13).
        self.ledger_lost(worker, turn);
        if self.moves.left(worker) {
            // Its own word of leaving may be lost or late: nobody waits for it any more.
            if let Phase::Closing { awaiting, .. } = &mut self.phase {
                awaiting.remove(&worker);
            }
            // It went because it was told to: no error of anybody's. What is left of its process goes as well.
            let reason = "it drained".to_owned();
            turn.commands.push(super::Command::Dismiss { worker, reason });
            if !matches!(self.phase, Phase::Closing { .. }) {
                self.lost_member(worker, "it drained", turn);
            }
            return;
        }
        self.losses_in_a_row += 1;
        if !was_ready {
            self.failed_starts += 1;
        }
        turn.announce(RunEvent::WorkerLost {
            worker,
            reason: reason.into(),
        });
        // The stream may be broken while the process lives: it must not train on in the old generation.
        turn.commands.push(super::Command::Dismiss {
            worker,
            reason: reason.into(),
        });
        self.back_off(turn);
        // All of a full house may go at once, for one reason from outside; that alone is no error of theirs.
        let allowed = self
            .settings
            .worker_errors_max
            .saturating_add(self.settings.workers_target);
        if self.losses_in_a_row > allowed {
            let message = format!(
                "{} workers were lost in a row without a step in between, the last because {reason}; see the workers' logs",
                self.losses_in_a_row
            );
            self.end(
                Outcome::Failed {
                    exit: Exit::JobFailed.code(),
                    message,
                },
                turn,
            );
            return;
        }
        self.lost_member(worker, reason, turn);
    }

    /// The generation ends without it, if it was a member.
    fn lost_member(&mut self, worker: WorkerId, reason: &str, turn: &mut Turn) {
        let reason = format!("{worker} was lost: {reason}");
        let current = match &self.phase {
            Phase::Running { plan } | Phase::Forming { plan, .. } | Phase::Closing { plan, .. } => plan,
            Phase::Waiting | Phase::Persisting { .. } | Phase::Ended => return,
        };
        if current.rank_of(worker).is_some() {
            self.leave_generation(Some(worker), &reason, None, turn);
        }
    }

    /// The first loss is answered at once; a series of them ever more slowly.
    fn back_off(&mut self, turn: &Turn) {
        let series = self.losses_in_a_row.max(self.failed_starts).max(self.fruitless);
        if series > 1 {
            let backoff = Backoff {
                first_ms: BACK_OFF_MS_FIRST,
                max_ms: BACK_OFF_MS_MAX,
                seed: self.settings.seed,
                who: 0,
            };
            self.not_before = self.not_before.max(Some(turn.now + backoff.wait_ms(series - 1)));
        }
    }

    /// Begins to close the current generation, if there is one. `gone` cannot answer any more.
    pub(super) fn leave_generation(
        &mut self,
        gone: Option<WorkerId>,
        reason: &str,
        after_step: Option<u64>,
        turn: &mut Turn,
    ) {
        let (plan, mut awaiting, acknowledged, was_asked, was_planned, was_lost) = match &self.phase {
            Phase::Running { plan } | Phase::Forming { plan, .. } => {
                let awaiting = plan
                    .members
                    .iter()
                    .map(|m| m.worker)
                    .filter(|w| self.seats.contains(*w))
                    .collect();
                (plan.clone(), awaiting, false, false, after_step.is_some(), false)
            }
            Phase::Closing {
                plan,
                awaiting,
                acknowledged,
                planned,
                lost,
                ..
            } => {
                let planned = *planned && after_step.is_some();
                (plan.clone(), awaiting.clone(), *acknowledged, true, planned, *lost)
            }
            // A plan whose record is under way cannot be taken back; it is closed as soon as it is durable.
            Phase::Waiting | Phase::Persisting { .. } | Phase::Ended => {
                return;
            }
        };
        if let Some(worker) = gone {
            awaiting.remove(&worker);
        }
        let generation = plan.generation;
        if !was_asked {
            self.why = reason.into();
            if after_step.is_none() {
                self.moves.under_way = None;
            }
            self.back_off(turn);
            turn.announce(RunEvent::GenerationClosing {
                generation,
                reason: reason.into(),
            });
        }
        // Somebody lost while a planned close is under way: the boundary will never be reached together.
        if !was_asked || gone.is_some() {
            for worker in &awaiting {
                turn.send(*worker, ToWorker::Close { generation, after_step });
            }
        }
        let patience = self.settings.failure_budget_ms + (self.step_ms * 4.0) as u64;
        let patience = if self.step_ms == 0.0 {
            patience.max(FORMING_MS)
        } else {
            patience
        };
        self.phase = Phase::Closing {
            plan,
            awaiting,
            acknowledged,
            planned: was_planned,
            lost: was_lost || gone.is_some(),
            deadline: turn.now + patience,
        };
    }

    pub(super) fn member_formed(&mut self, worker: WorkerId, generation: Generation, turn: &mut Turn) {
        let Phase::Forming { plan, formed, .. } = &mut self.phase else {
            return;
        };
        if !R::is_current(plan.generation, generation) || plan.rank_of(worker).is_none() {
            return;
        }
        formed.insert(worker);
        let base = plan.base;
        self.seats.set_name(worker, base);
        if formed.len() < plan.members.len() {
            return;
        }
        let plan = plan.clone();
        for member in plan.members.iter() {
            turn.send(member.worker, ToWorker::Activate { generation });
        }
        turn.announce(RunEvent::GenerationActivated { generation });
        self.steps_done = base.step;
        self.states.begin_generation();
        self.suspects.retain(|w| plan.rank_of(*w).is_none());
        self.phase = Phase::Running { plan };
    }

    pub(super) fn member_closed(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        name: StateName,
        cause: Option<String>,
        turn: &mut Turn,
    ) {
        if self.returned(worker, generation, name, turn) || self.leaves_kept(worker, generation, name, turn) {
            return;
        }
        let current = match &self.phase {
            Phase::Running { plan } | Phase::Forming { plan, .. } | Phase::Closing { plan, .. } => plan,
            Phase::Waiting | Phase::Persisting { .. } | Phase::Ended => return,
        };
        if !R::is_current(current.generation, generation) || current.rank_of(worker).is_none() {
            return;
        }
        self.seats.set_name(worker, name);
        if let Some(attempt) = self.ledger.never_copied(worker, name) {
            let reason = format!("{worker} left the generation before the boundary");
            self.abandon_attempt(attempt, &reason, turn);
        }
        if !matches!(self.phase, Phase::Closing { .. }) {
            let reason = cause.unwrap_or_else(|| "it left".into());
            self.leave_generation(None, &format!("{worker}: {reason}"), None, turn);
        }
        if let Phase::Closing {
            awaiting, acknowledged, ..
        } = &mut self.phase
        {
            awaiting.remove(&worker);
            *acknowledged = true;
        }
    }

    /// Loses whoever is overdue.
    pub(super) fn check_deadlines(&mut self, turn: &mut Turn) {
        self.not_before = self.not_before.filter(|tick| *tick > turn.now);
        self.give_up_unreadable(turn);
        self.check_kept(turn);
        for worker in self.lease.overdue(turn.now) {
            self.lose(worker, "it did not leave its generation in time", turn);
        }
        for (worker, why) in self.seats.overdue(turn.now) {
            self.lose(worker, &format!("too long until {why}"), turn);
        }
        let late: Vec<WorkerId> = match &self.phase {
            Phase::Closing { awaiting, deadline, .. } if *deadline <= turn.now => awaiting.iter().copied().collect(),
            Phase::Forming { plan, formed, deadline } if *deadline <= turn.now => plan
                .members
                .iter()
                .map(|m| m.worker)
                .filter(|w| !formed.contains(w))
                .collect(),
            _ => Vec::new(),
        };
        for worker in late {
            self.lose(worker, "it did not answer in time", turn);
        }
    }

    /// What follows from where things stand, whatever happened last.
    pub(super) fn settle(&mut self, turn: &mut Turn) {
        if self.phase == Phase::Ended {
            return;
        }
        self.admit_drains(turn);
        self.spawn_missing(turn);
        self.give_ids(turn);
        if let Phase::Closing {
            plan,
            awaiting,
            acknowledged,
            planned,
            lost,
            ..
        } = &self.phase
            && awaiting.is_empty()
        {
            let (plan, judged) = (plan.clone(), !planned && !lost);
            if !acknowledged {
                // Nobody confirmed leaving: those who are not proven gone might still train on (rule G5).
                let members = plan.members.iter().map(|m| m.worker);
                self.unproven.extend(members.filter(|w| !self.exited.contains(w)));
                self.lease.runs_out::<R>(turn.now);
            }
            self.phase = Phase::Waiting;
            self.let_drained_go(turn);
            if judged {
                self.judge_failure(&plan, turn);
            }
            self.trouble.forget_reports();
        }
        self.maybe_open_attempt(turn);
        match &self.phase {
            Phase::Waiting => self.form_if_possible(turn),
            Phase::Running { .. } => self.consider_moves(turn),
            Phase::Closing { .. } | Phase::Persisting { .. } | Phase::Forming { .. } | Phase::Ended => {}
        }
    }

    /// Gives ids to those who came without one.
    fn give_ids(&mut self, turn: &mut Turn) {
        while self.ids_wanted > 0 && self.may_name(turn) {
            self.ids_wanted -= 1;
            let worker = self.seats.name();
            turn.commands.push(super::Command::GiveId { worker });
        }
    }

    /// An id is given only when the store knows that it was: a later reign begins behind it.
    fn may_name(&mut self, turn: &mut Turn) -> bool {
        if self.seats.last_id() < self.named_upto {
            return true;
        }
        let naming = |after: &AfterPersist| matches!(after, AfterPersist::Name { .. });
        if !self.pending.iter().any(naming) {
            let upto = WorkerId(self.seats.last_id().0.saturating_add(NAMES_AT_ONCE));
            self.persist(Record::WorkersNamed { upto }, AfterPersist::Name { upto }, turn);
        }
        false
    }

    fn spawn_missing(&mut self, turn: &mut Turn) {
        if !self.settings.spawns || self.stopping || self.not_before.is_some() {
            return;
        }
        let leaving = self.moves.draining.len() + self.moves.held_back.len();
        let staying = self.seats.len().saturating_sub(leaving);
        let missing = (self.settings.workers_target as usize).saturating_sub(staying);
        for _ in 0..missing {
            if !self.may_name(turn) {
                return;
            }
            let worker = self.seats.reserve(turn.now);
            turn.commands.push(super::Command::SpawnWorker { worker });
        }
    }
}
