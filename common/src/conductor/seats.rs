//! Everybody the conductor has heard of: from the order to start a process to its loss.

use super::Tick;
use crate::ids::{StateName, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

/// A process may take so long from its start until it is warm.
const WARM_UP_MS: u64 = 120_000;

/// How far a worker has come.
#[derive(Clone, Debug, PartialEq)]
enum Stage {
    /// A process was ordered or started; nothing heard yet.
    Spawning { since: Tick },
    /// Connected, loading its model and index.
    Warming { since: Tick },
    /// Can take a plan.
    Ready { addr: String, name: StateName },
}

#[derive(Clone, Debug, PartialEq)]
struct Seat {
    stage: Stage,
    heard: Tick,
    connected: bool,
}

/// The seats, by id.
#[derive(Debug)]
pub(super) struct Seats {
    seats: BTreeMap<WorkerId, Seat>,
    last_id: WorkerId,
    budget_ms: u64,
    /// Nobody is overdue before this. Whoever is heard moves his deadline only further away, so that this is looked at again
    /// when it has come, not with every heartbeat.
    earliest: Tick,
    /// Ready workers that are in no plan.
    newcomers: BTreeSet<WorkerId>,
    /// Those who are not ready yet.
    warming: BTreeSet<WorkerId>,
    /// How many are ready.
    ready: usize,
}

impl Seats {
    pub(super) fn new(last_id: WorkerId, budget_ms: u64) -> Self {
        Self {
            seats: BTreeMap::new(),
            last_id,
            budget_ms,
            earliest: Tick::MAX,
            newcomers: BTreeSet::new(),
            warming: BTreeSet::new(),
            ready: 0,
        }
    }

    /// An id that was never used, with a seat kept for its process.
    pub(super) fn reserve(&mut self, now: Tick) -> WorkerId {
        let worker = self.name();
        self.seat(worker, Stage::Spawning { since: now }, now, false);
        worker
    }

    /// An id that was never used, for somebody who takes a seat by himself.
    pub(super) fn name(&mut self) -> WorkerId {
        self.last_id = WorkerId(self.last_id.0 + 1);
        self.last_id
    }

    /// The process of a reserved seat is up; a seat that was given up meanwhile is not brought back.
    pub(super) fn spawned(&mut self, worker: WorkerId, now: Tick) {
        if let Some(seat) = self.seats.get_mut(&worker) {
            seat.heard = now;
        }
    }

    pub(super) fn connected(&mut self, worker: WorkerId, now: Tick) {
        self.last_id = self.last_id.max(worker);
        self.seat(worker, Stage::Warming { since: now }, now, true);
    }

    fn seat(&mut self, worker: WorkerId, stage: Stage, heard: Tick, connected: bool) {
        let seat = Seat {
            stage,
            heard,
            connected,
        };
        self.earliest = self.earliest.min(Self::deadline(&seat, self.budget_ms).0);
        let before = self.seats.insert(worker, seat);
        self.count_out(before.as_ref());
        self.newcomers.remove(&worker);
        self.warming.insert(worker);
    }

    /// Notes that `worker` spoke; false if it has no seat.
    pub(super) fn heard(&mut self, worker: WorkerId, now: Tick) -> bool {
        self.seats.get_mut(&worker).map(|seat| seat.heard = now).is_some()
    }

    /// Counts everybody as heard now.
    pub(super) fn forgive(&mut self, now: Tick) {
        for seat in self.seats.values_mut() {
            seat.heard = now;
            if let Stage::Spawning { since } | Stage::Warming { since } = &mut seat.stage {
                *since = now;
            }
        }
    }

    /// Said once on every stream: what comes a second time is old, and a member is no newcomer.
    pub(super) fn set_ready(&mut self, worker: WorkerId, addr: String, name: StateName) {
        let fresh = |seat: &&mut Seat| !matches!(seat.stage, Stage::Ready { .. });
        if let Some(seat) = self.seats.get_mut(&worker).filter(fresh) {
            seat.stage = Stage::Ready { addr, name };
            self.earliest = self.earliest.min(Self::deadline(seat, self.budget_ms).0);
            self.newcomers.insert(worker);
            self.warming.remove(&worker);
            self.ready += 1;
        }
    }

    fn count_out(&mut self, seat: Option<&Seat>) {
        let was_ready = seat.is_some_and(|seat| matches!(seat.stage, Stage::Ready { .. }));
        self.ready -= usize::from(was_ready);
    }

    pub(super) fn set_name(&mut self, worker: WorkerId, new: StateName) {
        if let Some(Seat {
            stage: Stage::Ready { name, .. },
            ..
        }) = self.seats.get_mut(&worker)
        {
            *name = new;
        }
    }

    /// Gives the seat up; true if there was one.
    pub(super) fn remove(&mut self, worker: WorkerId) -> bool {
        self.newcomers.remove(&worker);
        self.warming.remove(&worker);
        let seat = self.seats.remove(&worker);
        self.count_out(seat.as_ref());
        seat.is_some()
    }

    pub(super) fn contains(&self, worker: WorkerId) -> bool {
        self.seats.contains_key(&worker)
    }

    pub(super) fn len(&self) -> usize {
        self.seats.len()
    }

    /// Workers that can take a plan, by id.
    pub(super) fn ready(&self) -> Vec<WorkerId> {
        self.seats
            .iter()
            .filter(|(_, s)| matches!(s.stage, Stage::Ready { .. }))
            .map(|(w, _)| *w)
            .collect()
    }

    /// How many there are of them.
    pub(super) fn ready_count(&self) -> usize {
        self.ready
    }

    /// Address and state of a ready worker.
    pub(super) fn ready_at(&self, worker: WorkerId) -> Option<(&str, StateName)> {
        match self.seats.get(&worker).map(|s| &s.stage) {
            Some(Stage::Ready { addr, name }) => Some((addr, *name)),
            _ => None,
        }
    }

    pub(super) fn connected_workers(&self) -> Vec<WorkerId> {
        self.seats
            .iter()
            .filter(|(_, s)| s.connected)
            .map(|(w, _)| *w)
            .collect()
    }

    fn deadline(seat: &Seat, budget_ms: u64) -> (Tick, &'static str) {
        match seat.stage {
            Stage::Spawning { since } => (since + WARM_UP_MS, "a started process connects"),
            Stage::Warming { since } if !seat.connected => (since + WARM_UP_MS, "a started process connects"),
            Stage::Warming { since } => ((since + WARM_UP_MS).min(seat.heard + budget_ms), "a worker warms up"),
            Stage::Ready { .. } => (seat.heard + budget_ms, "a worker is heard"),
        }
    }

    /// The highest id that was given.
    pub(super) fn last_id(&self) -> WorkerId {
        self.last_id
    }

    /// These are in a plan now.
    pub(super) fn seated(&mut self, members: &[WorkerId]) {
        self.newcomers = self.ready().into_iter().collect();
        for worker in members {
            self.newcomers.remove(worker);
        }
    }

    /// Ready workers that are in no plan.
    pub(super) fn newcomers(&self) -> &BTreeSet<WorkerId> {
        &self.newcomers
    }

    /// Whether somebody is on the way who could join.
    pub(super) fn any_warming(&self) -> bool {
        !self.warming.is_empty()
    }

    /// Workers not heard of since `since`, also those that are still starting.
    pub(super) fn silent(&self, since: Tick) -> BTreeSet<WorkerId> {
        let silent = self.seats.iter().filter(|(_, seat)| seat.heard < since);
        silent.map(|(worker, _)| *worker).collect()
    }

    /// Nobody is overdue before this; perhaps nobody is then.
    pub(super) fn next_deadline(&self) -> Option<(Tick, &'static str)> {
        (!self.seats.is_empty()).then_some((self.earliest, "a worker is heard"))
    }

    /// Workers whose deadline has passed. They are to be given up.
    pub(super) fn overdue(&mut self, now: Tick) -> Vec<(WorkerId, &'static str)> {
        if now < self.earliest {
            return Vec::new();
        }
        let mut overdue = Vec::new();
        self.earliest = Tick::MAX;
        for (worker, seat) in &self.seats {
            let (deadline, why) = Self::deadline(seat, self.budget_ms);
            if deadline <= now {
                overdue.push((*worker, why));
            } else {
                self.earliest = self.earliest.min(deadline);
            }
        }
        overdue
    }
}
