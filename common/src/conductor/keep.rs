//! A new leader keeps the generation that it finds, unless somebody has left it (rules G5, G9): its members have trained on,
//! their names tell how far, and nothing needs to be formed.

use super::{Conductor, OpenGeneration, Phase, Restored, Settings, Tick, Turn};
use crate::events::RunEvent;
use crate::follower::RETRY_MAX_MS;
use crate::ids::{Generation, StateName, WorkerId};
use crate::plan::{Member, Plan};
use crate::rules::Rules;
use std::collections::BTreeMap;

/// Members of a generation that come back one by one.
#[derive(Debug)]
pub(super) struct Kept {
    open: OpenGeneration,
    back: BTreeMap<WorkerId, (String, StateName)>,
    /// All are back within so long of the first look round, or it is closed: orphans look for a coordinator ever more rarely.
    patience_ms: u64,
    until: Option<Tick>,
}

impl Kept {
    /// Only under leases do members outlive their leader.
    pub(super) fn new(settings: &Settings, restored: &Restored) -> Option<Self> {
        let leased = settings.policy.outage_max_ms > 0;
        let open = restored.open.clone().filter(|_| leased)?;
        Some(Self {
            open,
            back: BTreeMap::new(),
            patience_ms: settings.failure_budget_ms + RETRY_MAX_MS,
            until: None,
        })
    }

    pub(super) fn starts(&mut self, now: Tick) {
        self.until.get_or_insert(now + self.patience_ms);
    }

    pub(super) fn next_deadline(&self) -> Option<(Tick, &'static str)> {
        self.until.map(|at| (at, "members of the last generation come back"))
    }

    /// The plan as far as its record and its members tell it; nobody is healing any more.
    fn plan(&self, run: &str, quarantine: &crate::quarantine::QuarantineLedger) -> Plan {
        let member = |worker: &WorkerId| Member {
            worker: *worker,
            addr: self.back.get(worker).map(|(addr, _)| addr.clone()).unwrap_or_default(),
            heals: false,
        };
        Plan {
            run: run.into(),
            generation: self.open.generation,
            term: self.open.term,
            base: self.open.base,
            source: self.open.source.clone(),
            members: self.open.members.iter().map(member).collect(),
            lanes: self.open.lanes.as_slice().into(),
            skip: None,
            quarantine: quarantine.revisions().to_vec(),
        }
    }
}

impl<R: Rules> Conductor<R> {
    /// A member is back inside the last generation. True if it may stay there for now.
    pub(super) fn may_keep(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        addr: &str,
        name: StateName,
        turn: &mut Turn,
    ) -> bool {
        let Some(kept) = &mut self.kept else {
            // Said twice, or by a newer stream of one that trains on: it is where it belongs.
            return matches!(&self.phase, Phase::Running { plan }
                if plan.generation == generation && plan.rank_of(worker).is_some());
        };
        // Who has applied nothing in it may still wait for a word of the old leader: then it is closed and formed anew.
        let trains = kept.open.members.contains(&worker) && name.applied_gen == generation;
        if self.phase != Phase::Waiting || kept.open.generation != generation || !trains || self.stopping {
            self.keep_no_more(turn);
            return false;
        }
        kept.back.insert(worker, (addr.into(), name));
        if kept.back.len() == kept.open.members.len()
            && let Some(kept) = self.kept.take()
        {
            self.keep(kept, turn);
        }
        true
    }

    /// All are back: this reign goes on with them.
    fn keep(&mut self, kept: Kept, turn: &mut Turn) {
        let plan = kept.plan(&self.settings.run, &self.trouble.quarantine);
        for (worker, (addr, name)) in kept.back {
            self.seats.set_ready(worker, addr, name);
            self.steps_done = self.steps_done.max(name.step);
            turn.announce(RunEvent::WorkerReady { worker });
        }
        self.lanes = plan
            .lanes
            .iter()
            .filter_map(|rank| plan.members.get(*rank as usize).map(|m| m.worker))
            .collect();
        self.unproven.clear(); // they are all accounted for
        self.lease.formed();
        self.seats.seated(&kept.open.members);
        self.moves.formed(&kept.open.members, &self.lanes);
        self.states.begin_generation();
        self.why = "kept by a new leader".into();
        self.any_update = true;
        self.phase = Phase::Running { plan };
    }

    /// Somebody is missing or has left: those who are back leave it, too.
    pub(super) fn keep_no_more(&mut self, turn: &mut Turn) {
        let Some(kept) = self.kept.take() else { return };
        for (worker, (addr, _)) in kept.back {
            self.returns(worker, addr, kept.open.generation, turn);
        }
    }

    /// A member says that it has left the generation that is to be kept: it came back inside and was then broken off by its
    /// peers, or its word of coming back is still on the way. True if that was so.
    pub(super) fn leaves_kept(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        name: StateName,
        turn: &mut Turn,
    ) -> bool {
        let Some(kept) = &mut self.kept else { return false };
        if kept.open.generation != generation || !kept.open.members.contains(&worker) {
            return false;
        }
        let back = kept.back.remove(&worker);
        self.keep_no_more(turn);
        if let Some((addr, _)) = back {
            self.rejoined(worker, addr, name, None, generation, turn);
        }
        true
    }

    /// `worker` has left or is lost; that matters if it was a member.
    pub(super) fn keep_without(&mut self, worker: WorkerId, turn: &mut Turn) {
        let Some(kept) = &mut self.kept else { return };
        if kept.open.members.contains(&worker) {
            kept.back.remove(&worker);
            self.keep_no_more(turn);
        }
    }

    /// Whether somebody who is back waits to be kept: its state is within reach.
    pub(super) fn may_yet_keep(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| !kept.back.is_empty())
    }

    /// Closes what could not be kept in time. Nobody trains on in it when its last lease is over.
    pub(super) fn check_kept(&mut self, turn: &mut Turn) {
        let over = self.lease.is_over(turn.now);
        let late = |kept: &Kept| over || kept.until.is_some_and(|at| at <= turn.now);
        if self.kept.as_ref().is_some_and(late) {
            self.keep_no_more(turn);
        }
    }
}
