//! The step lease and the return of workers that had lost their stream (rules G5, G9).

use super::forming::FORMING_MS;
use super::{Conductor, Phase, Restored, Settings, Tick, Turn};
use crate::events::{RunEvent, ToWorker};
use crate::ids::{Generation, StateName, WorkerId};
use crate::rules::Rules;
use std::collections::{BTreeMap, BTreeSet};

/// What is known of the leases of the generation at hand.
#[derive(Debug, Default)]
pub(super) struct LeaseBook {
    /// How long one lasts; 0: there are none.
    lasts_ms: u64,
    /// A reign before this one may still renew for so long after this one began.
    reign_ms: u64,
    last_sent: Option<Tick>,
    leads_until: Option<Tick>,
    /// When the last one has run out with a tenth to spare.
    over_at: Option<Tick>,
    /// A reign before this one sent leases: they are counted from our own beginning, or from when that reign
    /// at last believed itself deposed.
    from_start: bool,
    /// Workers that came back inside a generation, until they have left it; with their address and when that is late.
    returning: BTreeMap<WorkerId, (String, Tick)>,
}

impl LeaseBook {
    pub(super) fn new(settings: &Settings, restored: &Restored) -> Self {
        let lasts_ms = settings.policy.outage_max_ms;
        Self {
            lasts_ms,
            reign_ms: settings.policy.reign_ms,
            from_start: lasts_ms > 0 && !restored.members.is_empty(),
            ..Self::default()
        }
    }

    /// Who may still train in the last generation of a reign before this one.
    pub(super) fn unproven(settings: &Settings, restored: &Restored) -> BTreeSet<WorkerId> {
        let leased = settings.policy.outage_max_ms > 0;
        let members = restored.members.iter().copied();
        members.filter(|_| leased).collect()
    }

    pub(super) fn starts<R: Rules>(&mut self, now: Tick) {
        if std::mem::take(&mut self.from_start) {
            let last = self.reign_ms.saturating_add(self.lasts_ms);
            self.over_at = Some(now.saturating_add(R::lease_surely_over_ms(last)));
        }
    }

    pub(super) fn leads_until(&mut self, until: Tick) {
        self.leads_until = Some(until);
    }

    /// Nobody acknowledged leaving: the lease has to run out, unless all are proven gone.
    pub(super) fn runs_out<R: Rules>(&mut self, now: Tick) {
        if self.lasts_ms > 0 {
            let from = self.last_sent.unwrap_or(now);
            self.over_at = Some(from.saturating_add(R::lease_surely_over_ms(self.lasts_ms)));
        }
    }

    pub(super) fn over_at(&self) -> Option<Tick> {
        self.over_at
    }

    pub(super) fn is_over(&self, now: Tick) -> bool {
        self.over_at.is_some_and(|at| at <= now)
    }

    /// Whether members of an old generation have to be accounted for. Of processes that are not ours and have no lease
    /// nobody reports the end: they end themselves with their stream, and that is all there is to rely on.
    pub(super) fn guards(&self, settings: &Settings) -> bool {
        settings.spawns || self.lasts_ms > 0
    }

    /// A lease is of one generation.
    pub(super) fn formed(&mut self) {
        self.over_at = None;
        self.last_sent = None;
    }

    pub(super) fn left(&mut self, worker: WorkerId) {
        self.returning.remove(&worker);
    }

    /// Whether somebody who can be reached has yet to say which state it left its generation with.
    pub(super) fn is_awaited(&self) -> bool {
        !self.returning.is_empty()
    }

    /// Who should have said it by now.
    pub(super) fn overdue(&self, now: Tick) -> Vec<WorkerId> {
        let late = self.returning.iter().filter(|(_, (_, until))| *until <= now);
        late.map(|(worker, _)| *worker).collect()
    }

    pub(super) fn next_deadline(&self) -> Option<(Tick, &'static str)> {
        let until = self.returning.values().map(|(_, until)| *until).min();
        until.map(|at| (at, "who is back leaves its generation"))
    }
}

impl<R: Rules> Conductor<R> {
    /// Renews only while this reign holds, and not for a generation that is being broken off.
    pub(super) fn lease_wanted(&mut self, worker: WorkerId, generation: Generation, asked_at: Tick, turn: &mut Turn) {
        let broken_off = matches!(self.phase, Phase::Closing { planned: false, .. });
        let deposed = self.lease.leads_until.is_some_and(|until| until <= turn.now);
        let lasts_ms = self.lease.lasts_ms;
        if lasts_ms == 0 || broken_off || deposed || !self.member_of(worker, generation) {
            return;
        }
        self.lease.last_sent = Some(turn.now);
        turn.send(
            worker,
            ToWorker::Lease {
                generation,
                asked_at,
                lasts_ms,
            },
        );
    }

    /// A worker that had lost its stream is back with its state. One that is still inside a generation leaves it first.
    pub(super) fn rejoined(
        &mut self,
        worker: WorkerId,
        addr: String,
        name: StateName,
        inside: Option<Generation>,
        left: Generation,
        turn: &mut Turn,
    ) {
        if let Some(generation) = inside {
            if self.may_keep(worker, generation, &addr, name, turn) {
                return;
            }
            // A word that was late: it has left that one since, and entered a later one of this reign.
            let entered = match &self.phase {
                Phase::Persisting { plan, .. }
                | Phase::Forming { plan, .. }
                | Phase::Running { plan }
                | Phase::Closing { plan, .. } => plan.generation > generation && plan.rank_of(worker).is_some(),
                Phase::Waiting | Phase::Ended => false,
            };
            if entered {
                return;
            }
            self.returns(worker, addr, generation, turn);
            return;
        }
        self.keep_without(worker, turn);
        if left >= self.generation && self.unproven.contains(&worker) {
            self.unproven.clear(); // one acknowledgement is enough (rule G5)
        }
        self.seats.set_ready(worker, addr, name);
        turn.announce(RunEvent::WorkerReady { worker });
        self.keep_out(worker, turn);
    }

    /// True if `worker` had come back inside `generation` and has now left it.
    pub(super) fn returned(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        name: StateName,
        turn: &mut Turn,
    ) -> bool {
        let Some((addr, _)) = self.lease.returning.remove(&worker) else {
            return false;
        };
        self.rejoined(worker, addr, name, None, generation, turn);
        true
    }

    /// A worker that is still inside a generation that is not kept.
    pub(super) fn returns(&mut self, worker: WorkerId, addr: String, generation: Generation, turn: &mut Turn) {
        let until = turn.now.saturating_add(self.settings.failure_budget_ms + FORMING_MS);
        self.lease.returning.insert(worker, (addr, until));
        let after_step = None;
        turn.send(worker, ToWorker::Close { generation, after_step });
    }

    /// Whether `name` is a state of the lineage: one applied beyond where its generation was left is superseded.
    pub(super) fn on_lineage(&self, name: StateName) -> bool {
        name.applied_gen == self.generation || R::on_lineage(name, self.ends.get(&name.applied_gen).copied())
    }
}
