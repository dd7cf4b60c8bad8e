//! Forming a generation: whether, with whom, from which state (rules G1, G5).

use super::words::leave_off;
use super::{AfterPersist, Conductor, Phase, Turn};
use crate::blame::ring_order;
use crate::events::{Outcome, Record, RunEvent, ToWorker};
use crate::exit::Exit;
use crate::ids::{Generation, StateName, WorkerId};
use crate::invariants::{
    debug_assert_holds, durable_first, generations_grow, lanes_owned, plan_has_source, truth_is_newest,
};
use crate::plan::{Member, Plan, StateSource};
use crate::rules::Rules;
use std::collections::{BTreeMap, BTreeSet};

/// Members may take so long to heal and to connect, beyond the failure budget.
pub(super) const FORMING_MS: u64 = 60_000;
/// Generations in a row without an applied step that end the run: something is wrong that a retry does not mend.
const FRUITLESS_MAX: u32 = 30;

impl<R: Rules> Conductor<R> {
    pub(super) fn form_if_possible(&mut self, turn: &mut Turn) {
        if self
            .ledger
            .head()
            .is_some_and(|h| h.name.step >= self.settings.total_steps)
        {
            self.finish(turn);
            return;
        }
        // With processes of our own, wait for all that are on their way at the start: one generation instead of several.
        let first = !self.has_history && self.settings.spawns;
        let needed = if first {
            self.settings.workers_target
        } else {
            self.settings.workers_min
        };
        // Asked with every event while too few are there: they are counted, and listed only when they are enough.
        let have = match self.moves.under_way {
            Some(_) => self.candidates().len(),
            None => self.eligible_count(),
        } as u32;
        if self.stopping && have < self.settings.workers_min {
            self.interrupt(turn); // nobody is started any more, so nobody will train towards a checkpoint
            return;
        }
        if have < needed.max(self.settings.workers_min) || self.not_before.is_some() {
            // Somebody else can come for those who drain, and has to where they are too few to go on.
            self.let_drained_go(turn);
            if self.announced_waiting != Some((have, needed)) {
                self.announced_waiting = Some((have, needed));
                turn.announce(RunEvent::Waiting { have, need: needed });
            }
            return;
        }
        let ready = self.candidates();
        debug_assert_eq!(ready.len(), have as usize, "who was counted is there");
        // Without an acknowledgement of leaving the old generation, its members must be proven gone first. Of processes that
        // are not ours nobody reports the end: until the step lease exists (rule G5), a worker that loses its stream ends
        // itself, and that is all there is to rely on.
        let unproven = self.unproven.iter().filter(|w| ready.binary_search(w).is_err()).count();
        if self.lease.guards(&self.settings) && !R::may_succeed(unproven, self.lease.is_over(turn.now)) {
            return;
        }
        // Members that can be reached say first which state they hold (rule G1).
        if self.lease.is_awaited() || self.may_yet_keep() {
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

    /// What `worker` holds, unless its bits are in doubt.
    fn clean_state(&self, worker: WorkerId) -> Option<StateName> {
        let (_, name) = self.seats.ready_at(worker)?;
        (!self.suspects.contains(&worker)).then_some(name)
    }

    /// Those of `ready` for whom there is room, by id: first who holds the state that the generation starts from, then who
    /// trained before and has its lanes at hand.
    fn chosen(&self, ready: &[WorkerId], best_live: Option<StateName>) -> Vec<WorkerId> {
        let room = self.settings.workers_max as usize;
        let mut chosen = ready.to_vec();
        if chosen.len() > room {
            let before: BTreeSet<WorkerId> = self.lanes.iter().copied().collect();
            let holds = |w: WorkerId| best_live.is_some() && self.clean_state(w) == best_live;
            chosen.sort_by_key(|w| (!holds(*w), !before.contains(w), *w));
            chosen.truncate(room);
            chosen.sort_unstable();
        }
        chosen
    }

    fn form(&mut self, ready: &[WorkerId], turn: &mut Turn) {
        let counts = |name: &StateName| R::counts(*name, self.floor) && self.on_lineage(*name);
        // Of all who are ready, also of those for whom there is no room.
        let names = || ready.iter().filter_map(|w| self.clean_state(*w)).filter(counts);
        let best_live = names().max_by(|a, b| R::compare(*a, *b));
        let members = self.chosen(ready, best_live);
        let head = self.ledger.head().cloned();
        let (base, source) = match (best_live, &head) {
            (Some(live), Some(head)) if R::compare(head.name, live).is_gt() => {
                (head.name, StateSource::Manifest { key: head.key.clone() })
            }
            (Some(live), _) => (live, StateSource::Peers),
            (None, Some(head)) => (head.name, StateSource::Manifest { key: head.key.clone() }),
            (None, None) => (StateName::INITIAL, StateSource::Seed),
        };
        debug_assert_holds::<R>(|| truth_is_newest(base, names(), head.as_ref().map(|h| h.name)));
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
        // Members may have trained while this reign could not be reached: their base tells what no report did.
        self.any_update |= base.step > self.steps_done;
        self.steps_done = base.step;
        // Whoever comes back now was too late: the generation that was to be kept is followed by this one.
        self.keep_no_more(turn);
        self.stop_step = self.stop_step.min(base.step);
        self.give_up_rows(base.step, turn);
        if self.has_history && best_live != Some(base) {
            self.resume(generation, base, &source, turn);
        }
        let members = ring_order(&members, &self.trouble.apart);
        let owners = self.owners_for(&members);
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
        // A member's lanes mostly lie side by side: it is looked up once a run of them.
        let runs = owners.chunk_by(|a, b| a == b);
        let lanes = runs.flat_map(|run| std::iter::repeat_n(run.first().map_or(0, rank), run.len()));
        let plan = Plan {
            run: self.settings.run.clone(),
            generation,
            term: self.settings.term,
            base,
            source: source.clone(),
            lanes: lanes.collect(),
            members: members.into(),
            skip: self.trouble.skip_at(base.step),
            quarantine: self.trouble.quarantine.revisions().to_vec(),
        };
        debug_assert_holds::<R>(|| lanes_owned(&plan, self.settings.lanes));
        debug_assert_holds::<R>(|| generations_grow(self.generation, generation));
        debug_assert_holds::<R>(|| plan_has_source(&plan));
        self.fruitless += 1;
        self.generation = generation;
        let reason = match (self.has_history, self.why.is_empty()) {
            (false, _) => "the run begins".to_owned(),
            (true, true) => "the run goes on".to_owned(),
            (true, false) => std::mem::take(&mut self.why),
        };
        self.why.clone_from(&reason);
        leave_off(&mut self.ends, base);
        let seated: Vec<WorkerId> = plan.members.iter().map(|m| m.worker).collect();
        self.seats.seated(&seated);
        self.moves.formed(&seated, &owners);
        self.lanes = owners;
        self.lease.formed();
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
        self.phase = Phase::Persisting { plan, reason };
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
        debug_assert_holds::<R>(|| durable_first(plan.generation, self.durable));
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
