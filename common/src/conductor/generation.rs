//! Forming, running and closing generations (rules G1, G3, G5).

use super::{AfterPersist, Conductor, Phase, Turn};
use crate::assignment::assign;
use crate::events::{Outcome, Record, RunEvent, ToWorker};
use crate::exit::Exit;
use crate::ids::{Generation, StateName, WorkerId};
use crate::plan::{Member, Plan, StateSource};
use crate::rules::Rules;
use std::collections::{BTreeMap, BTreeSet};

/// Longest wait between two tries when workers keep dying.
const BACK_OFF_MS_MAX: u64 = 5_000;
/// Members may take so long to heal and to connect, beyond the failure budget.
const FORMING_MS: u64 = 60_000;
/// Generations in a row without an applied step that end the run: something is wrong that a retry does not mend.
const FRUITLESS_MAX: u32 = 30;
/// A planned close happens so many steps ahead, so that the order is there before the boundary is.
const CLOSE_STEPS_AHEAD: u64 = 2;

impl<R: Rules> Conductor<R> {
    /// Takes `worker` off the list, and with it out of the generation.
    pub(super) fn lose(&mut self, worker: WorkerId, reason: &str, turn: &mut Turn) {
        let was_ready = self.seats.ready_at(worker).is_some();
        if !self.seats.remove(worker) {
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
        self.ledger_lost(worker, turn);
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
            let wait = (100u64 << series.min(16)).min(BACK_OFF_MS_MAX);
            self.not_before = self.not_before.max(Some(turn.now + wait));
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
        let (plan, mut awaiting, acknowledged, was_asked) = match &self.phase {
            Phase::Running { plan } | Phase::Forming { plan, .. } => {
                let awaiting = plan
                    .members
                    .iter()
                    .map(|m| m.worker)
                    .filter(|w| self.seats.contains(*w))
                    .collect();
                (plan.clone(), awaiting, false, false)
            }
            Phase::Closing {
                plan,
                awaiting,
                acknowledged,
                ..
            } => (plan.clone(), awaiting.clone(), *acknowledged, true),
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
        self.spawn_missing(turn);
        if let Phase::Closing {
            plan,
            awaiting,
            acknowledged,
            ..
        } = &self.phase
            && awaiting.is_empty()
        {
            if !acknowledged {
                // Nobody confirmed leaving: those who are not proven gone might still train on (rule G5).
                let lost = plan.members.iter().map(|m| m.worker);
                self.unproven.extend(lost.filter(|w| !self.exited.contains(w)));
            }
            self.phase = Phase::Waiting;
        }
        self.maybe_open_attempt(turn);
        match &self.phase {
            Phase::Waiting => self.form_if_possible(turn),
            Phase::Running { plan } => {
                let seen = (self.seats.version(), plan.generation);
                let known = self.joiners.filter(|(at, _)| *at == seen).map(|(_, any)| any);
                let joiners = known.unwrap_or_else(|| self.seats.ready().iter().any(|w| plan.rank_of(*w).is_none()));
                self.joiners = Some((seen, joiners));
                let room = (plan.members.len() as u32) < self.settings.workers_max;
                let at_end = self.steps_done + CLOSE_STEPS_AHEAD >= self.settings.total_steps;
                // A join waits for a checkpoint to be copied, and pays no more in the last steps or after a stop.
                let copied = self.ledger.opened().is_none_or(|(_, at)| self.steps_done >= at);
                if joiners && room && !at_end && !self.stopping && copied {
                    let after = self.steps_done + CLOSE_STEPS_AHEAD;
                    self.leave_generation(None, "a worker joins", Some(after), turn);
                }
            }
            Phase::Closing { .. } | Phase::Persisting { .. } | Phase::Forming { .. } | Phase::Ended => {}
        }
    }

    fn spawn_missing(&mut self, turn: &mut Turn) {
        if !self.settings.spawns || self.stopping || self.not_before.is_some() {
            return;
        }
        while self.seats.len() < self.settings.workers_target as usize {
            let worker = self.seats.reserve(turn.now);
            turn.commands.push(super::Command::SpawnWorker { worker });
        }
    }

    fn form_if_possible(&mut self, turn: &mut Turn) {
        if self
            .ledger
            .head()
            .is_some_and(|h| h.name.step >= self.settings.total_steps)
        {
            self.finish(turn);
            return;
        }
        // With processes of our own, wait for all that are on their way at the start: one generation instead of several.
        let ready = self.seats.ready();
        let first = !self.has_history && self.settings.spawns;
        let needed = if first {
            self.settings.workers_target
        } else {
            self.settings.workers_min
        };
        let have = ready.len() as u32;
        if self.stopping && have < self.settings.workers_min {
            self.interrupt(turn); // nobody is started any more, so nobody will train towards a checkpoint
            return;
        }
        if have < needed.max(self.settings.workers_min) || self.not_before.is_some() {
            if self.announced_waiting != Some((have, needed)) {
                self.announced_waiting = Some((have, needed));
                turn.announce(RunEvent::Waiting { have, need: needed });
            }
            return;
        }
        // Without an acknowledgement of leaving the old generation, its members must be proven gone first. Of processes that
        // are not ours nobody reports the end: until the step lease exists (rule G5), a worker that loses its stream ends
        // itself, and that is all there is to rely on.
        let unproven = self.unproven.iter().filter(|w| !ready.contains(w)).count();
        if self.settings.spawns && !R::may_succeed(unproven) {
            return;
        }
        if self.fruitless > FRUITLESS_MAX {
            let message = format!("{FRUITLESS_MAX} generations in a row made no step; see the workers' logs");
            self.end(
                Outcome::Failed {
                    exit: Exit::JobFailed.code(),
                    message,
                },
                turn,
            );
            return;
        }
        self.unproven.clear();
        self.announced_waiting = None;
        self.form(&ready, turn);
    }

    fn form(&mut self, ready: &[WorkerId], turn: &mut Turn) {
        let members: Vec<WorkerId> = ready.iter().copied().take(self.settings.workers_max as usize).collect();
        let counts = |name: &StateName| R::counts(*name, self.floor);
        let best_live = members
            .iter()
            .filter(|w| !self.suspects.contains(w))
            .filter_map(|w| self.seats.ready_at(*w))
            .map(|(_, n)| n)
            .filter(counts)
            .max_by(|a, b| R::compare(*a, *b));
        let head = self.ledger.head().cloned();
        let (base, source) = match (best_live, &head) {
            (Some(live), Some(head)) if R::compare(head.name, live).is_gt() => {
                (head.name, StateSource::Manifest { key: head.key.clone() })
            }
            (Some(live), _) => (live, StateSource::Peers),
            (None, Some(head)) => (head.name, StateSource::Manifest { key: head.key.clone() }),
            (None, None) => (StateName::INITIAL, StateSource::Seed),
        };
        let generation = Generation(self.generation.0 + 1);
        // A manifest under way of a newer state would be committed behind the record that passes it over, and leave the
        // lineage. Its writing answers in any case; this is looked at again then.
        if self
            .ledger
            .sealed_name()
            .is_some_and(|name| R::compare(name, base).is_gt())
        {
            return;
        }
        // One that was taken behind the base is none of this lineage any more.
        if self.ledger.opened().is_some_and(|(_, at)| at > base.step) {
            self.abandon_open_attempt("the run went back behind its state", turn);
        }
        if self.has_history && best_live != Some(base) {
            self.resume(generation, base, &source, turn);
        }
        let owners = assign(self.settings.lanes, &members, &self.lanes);
        let seat = |worker: &WorkerId| {
            let (addr, name) = self.seats.ready_at(*worker)?;
            Some(Member {
                worker: *worker,
                addr: addr.to_string(),
                heals: !R::holds(name, base) || self.suspects.contains(worker),
            })
        };
        let members: Vec<Member> = members.iter().filter_map(seat).collect();
        let ranks: BTreeMap<WorkerId, u32> = members.iter().zip(0..).map(|(m, rank)| (m.worker, rank)).collect();
        let rank = |owner: &WorkerId| ranks.get(owner).copied().unwrap_or(0);
        let plan = Plan {
            run: self.settings.run.clone(),
            generation,
            term: self.settings.term,
            base,
            source: source.clone(),
            lanes: owners.iter().map(rank).collect(),
            members: members.into(),
            skip: None,
            quarantine: Vec::new(),
        };
        debug_assert!(
            plan.lanes.len() == self.settings.lanes as usize,
            "A1: every lane has an owner"
        );
        debug_assert!(generation > self.generation, "generations grow");
        self.fruitless += 1;
        self.generation = generation;
        self.lanes = owners;
        let reason = if self.has_history {
            "membership changed"
        } else {
            "the run begins"
        };
        self.has_history = true;
        let record = Record::GenerationFormed {
            generation,
            term: plan.term,
            base,
            source,
            members: plan.members.iter().map(|m| m.worker).collect(),
            lanes: plan.lanes.to_vec(),
            plan_hash: plan.hash(),
        };
        self.phase = Phase::Persisting {
            plan,
            reason: reason.into(),
        };
        self.persist(record, AfterPersist::SendPlan, turn);
    }

    /// Nobody holds what was trained last: go back to the manifest or the seed, durably, so that a state from before that
    /// turns up later does not count (rule G1).
    fn resume(&mut self, generation: Generation, name: StateName, source: &StateSource, turn: &mut Turn) {
        let manifest = match source {
            StateSource::Manifest { key } => Some(key.clone()),
            StateSource::Seed | StateSource::Peers => None,
        };
        self.floor = generation;
        self.persist(
            Record::Resumed {
                generation,
                name,
                manifest: manifest.clone(),
            },
            AfterPersist::Nothing,
            turn,
        );
        turn.announce(RunEvent::Resumed { name, manifest });
    }

    /// The plan's record is durable: now its members may hear of it.
    pub(super) fn send_plan(&mut self, turn: &mut Turn) {
        let Phase::Persisting { plan, reason } = &self.phase else {
            return;
        };
        let (plan, reason) = (plan.clone(), reason.clone());
        turn.announce(RunEvent::GenerationFormed {
            generation: plan.generation,
            members: plan.members.iter().map(|m| m.worker).collect(),
            base: plan.base,
            healing: plan.members.iter().filter(|m| m.heals).map(|m| m.worker).collect(),
            reason,
        });
        for member in plan.members.iter() {
            turn.send(member.worker, ToWorker::Form { plan: plan.clone() });
        }
        let missing = plan.members.iter().map(|m| m.worker).find(|w| !self.seats.contains(*w));
        let deadline = turn.now + self.settings.failure_budget_ms + FORMING_MS;
        self.phase = Phase::Forming {
            plan,
            formed: BTreeSet::new(),
            deadline,
        };
        if let Some(worker) = missing {
            self.leave_generation(
                Some(worker),
                &format!("{worker} was lost before the plan was sent"),
                None,
                turn,
            );
        }
    }
}
