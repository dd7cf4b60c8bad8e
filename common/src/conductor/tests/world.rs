//! A toy shell round the real brains: messages in order per link, everything else in random order, no time but deadlines.

use super::toy::{self, Worker};
use crate::audit::{AuditInput, audit};
use crate::conductor::{Command, Conductor, Event, Policy, Restored, Settings, View};
use crate::events::{Outcome, Record, RunEvent, StepReport};
use crate::follower;
use crate::ids::{StateName, Term, WorkerId};
use crate::ledger::Keep;
use crate::plan::Plan;
use crate::rng::{Draws, Purpose};
use crate::sampling::{Sampler, lane_digest};
use crate::shape::{RunShape, SourceShape};
use crate::steplog::StepRecord;
use std::collections::{BTreeMap, VecDeque};

mod faults;

/// More turns than any story needs; reaching it means that the world hangs.
const TURNS_MAX: u64 = 200_000;

pub(super) struct World {
    seed: u64,
    draws: Draws,
    now: u64,
    shape: RunShape,
    settings: Settings,
    /// Workers that somebody starts by hand.
    joiners: u32,
    last_joiner: u32,
    conductor: Conductor,
    records: Vec<Record>,
    persists: VecDeque<Record>,
    workers: BTreeMap<WorkerId, Worker>,
    spawning: VecDeque<WorkerId>,
    exits: VecDeque<WorkerId>,
    manifests: BTreeMap<String, (StateName, u64)>,
    to_write: VecDeque<(u64, StateName)>,
    bits_of: BTreeMap<StateName, u64>,
    logs: BTreeMap<String, Vec<StepRecord>>,
    outcome: Option<Outcome>,
    kill_all_at: Option<u64>,
    kills_left: u64,
    events: Vec<RunEvent>,
}

impl World {
    pub(super) fn new(seed: u64, workers: u32) -> Self {
        Self::with(seed, workers, 1, true)
    }

    /// A world whose workers are started by hand: nobody reports their end but their stream.
    pub(super) fn by_hand(seed: u64, workers: u32, min: u32) -> Self {
        let mut world = Self::with(seed, workers, min, false);
        world.joiners = workers;
        world
    }

    fn with(seed: u64, workers: u32, workers_min: u32, spawns: bool) -> Self {
        let shape = RunShape {
            seed,
            sources: vec![SourceShape {
                name: "s".into(),
                shard_rows: vec![11, 23, 0, 14],
            }],
            batch: 12,
            lanes: 6,
            window_factor: 3,
            total_positions: 48 * 4,
        };
        let settings = Settings {
            run: "world".into(),
            term: Term(1),
            lanes: shape.lanes,
            total_steps: shape.total_steps(),
            workers_min,
            workers_target: workers,
            workers_max: workers + 1,
            spawns,
            failure_budget_ms: 5_000,
            worker_errors_max: 1_000,
            checkpoint_steps: 4,
            checkpoint_ms: 0,
            keep: Keep {
                last: 2,
                every_steps: 0,
            },
            parts_total: 3,
            seed,
            policy: Policy {
                outage_max_ms: 0,
                ..Policy::default()
            },
        };
        Self {
            seed,
            draws: Draws::new(seed, Purpose::Jitter, 1, 0),
            now: 0,
            conductor: Conductor::new(settings.clone(), Restored::default()),
            settings,
            joiners: 0,
            last_joiner: 0,
            shape,
            records: Vec::new(),
            persists: VecDeque::new(),
            workers: BTreeMap::new(),
            spawning: VecDeque::new(),
            exits: VecDeque::new(),
            manifests: BTreeMap::new(),
            to_write: VecDeque::new(),
            bits_of: BTreeMap::from([(StateName::INITIAL, 7)]),
            logs: BTreeMap::new(),
            outcome: None,
            kill_all_at: None,
            kills_left: 0,
            events: Vec::new(),
        }
    }

    pub(super) fn kill_all_at_step(&mut self, step: u64) {
        self.kill_all_at = Some(step);
    }

    pub(super) fn conductor_view(&self) -> View {
        self.conductor.observe()
    }

    pub(super) fn resumed(&self) -> usize {
        self.records
            .iter()
            .filter(|r| matches!(r, Record::Resumed { .. }))
            .count()
    }

    /// Losses that made a generation end.
    pub(super) fn effective_faults(&self) -> usize {
        self.events
            .iter()
            .filter(|e| matches!(e, RunEvent::GenerationClosing { .. }))
            .count()
    }

    /// Turns the world until the conductor ends the run; kills `kills` workers on the way.
    pub(super) fn run_to_the_end(&mut self, kills: u64) {
        self.kills_left = kills;
        self.tell(Event::Ticked);
        for _ in 0..TURNS_MAX {
            if self.outcome.is_some() {
                return;
            }
            self.turn();
        }
        panic!("seed {}: the world hangs in {:?}", self.seed, self.conductor.observe());
    }

    pub(super) fn assert_exactly_once(&self) {
        let outcome = self.outcome.clone();
        let Some(Outcome::Succeeded { name, .. }) = outcome else {
            panic!("seed {}: {outcome:?}", self.seed)
        };
        let report = audit(&AuditInput {
            shape: &self.shape,
            records: &self.records,
            logs: &self.logs,
        });
        assert!(
            report.holds && report.finished,
            "seed {}: {:?}",
            self.seed,
            report.findings
        );
        assert_eq!(report.positions, self.shape.total_positions, "seed {}", self.seed);
        let mut expected = self.bits_of[&StateName::INITIAL];
        let mut sampler = Sampler::new(self.shape.clone());
        for step in 0..self.shape.total_steps() {
            expected = Self::next_bits(&self.shape, &mut sampler, expected, step);
        }
        assert_eq!(
            self.bits_of[&name], expected,
            "seed {}: not the undisturbed state",
            self.seed
        );
    }

    fn next_bits(shape: &RunShape, sampler: &mut Sampler, bits: u64, step: u64) -> u64 {
        (0..shape.lanes).fold(bits, |bits, lane| {
            crate::hash::mix64(bits ^ lane_digest(lane, &sampler.step_samples(lane, step)))
        })
    }

    fn turn(&mut self) {
        let step_done = self.conductor.observe().steps_done;
        if self.kill_all_at.is_some_and(|at| step_done >= at) {
            self.kill_all_at = None;
            let all: Vec<WorkerId> = self.workers.keys().copied().collect();
            for worker in all {
                self.kill(worker);
            }
        }
        match self.draws.below(10) {
            0 => self.persist_one(),
            1 => self.spawn_one(),
            2 => self.exit_one(),
            3 => self.write_one(),
            4 | 5 => self.deliver_to_worker(),
            6 | 7 => self.deliver_to_conductor(),
            8 => self.collective_step(),
            _ => self.pass_time(),
        }
        if self.kills_left > 0 && self.draws.below(60) == 0 {
            self.kills_left -= 1;
            if let Some(worker) = self.any_worker() {
                self.kill(worker);
            }
        }
    }

    fn any_worker(&mut self) -> Option<WorkerId> {
        let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
        if ids.is_empty() {
            None
        } else {
            Some(ids[self.draws.below(ids.len() as u64) as usize])
        }
    }

    /// Whether there were too few workers after the run had begun.
    pub(super) fn waited(&self) -> bool {
        let began = self
            .events
            .iter()
            .position(|e| matches!(e, RunEvent::GenerationActivated { .. }));
        began.is_some_and(|at| self.events[at..].iter().any(|e| matches!(e, RunEvent::Waiting { .. })))
    }

    pub(super) fn attempts(&self) -> usize {
        self.records
            .iter()
            .filter(|r| matches!(r, Record::CheckpointOpened { .. }))
            .count()
    }

    fn exit_one(&mut self) {
        if let Some(worker) = self.exits.pop_front() {
            self.tell(Event::WorkerExited {
                worker,
                pid: worker.0,
                code: None,
                signal: Some(9),
            });
        }
    }

    fn spawn_one(&mut self) {
        if !self.settings.spawns && (self.workers.len() as u32) < self.joiners {
            self.last_joiner += 1;
            self.spawning.push_back(WorkerId(self.last_joiner));
        }
        let Some(worker) = self.spawning.pop_front() else {
            return;
        };
        if self.settings.spawns {
            self.tell(Event::WorkerSpawned { worker, pid: worker.0 });
        }
        self.tell(Event::WorkerConnected { worker });
        let new = Worker::new(self.bits_of[&StateName::INITIAL]);
        self.workers.insert(worker, new);
    }

    fn persist_one(&mut self) {
        if let Some(record) = self.persists.pop_front() {
            self.records.push(record);
            self.tell(Event::Persisted);
        }
    }

    fn write_one(&mut self) {
        if let Some((attempt, name)) = self.to_write.pop_front() {
            let key = format!("{attempt}/manifest.json");
            let bits = self.bits_of[&name];
            assert!(
                self.manifests.insert(key.clone(), (name, bits)).is_none(),
                "manifests are created once"
            );
            self.tell(Event::ManifestWritten { attempt, key });
        }
    }

    /// Time passes: everybody who lives sends a heartbeat, and a due deadline comes.
    fn pass_time(&mut self) {
        self.now += self.draws.below(100);
        let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
        for worker in ids {
            self.follow(worker, follower::Event::HeartbeatDue);
        }
        if self.conductor.next_deadline().is_some_and(|(at, _)| at <= self.now) {
            self.tell(Event::Ticked);
        }
    }

    fn deliver_to_conductor(&mut self) {
        let Some(worker) = self.any_worker() else { return };
        if let Some(message) = self.workers.get_mut(&worker).and_then(|w| w.outbox.pop_front()) {
            self.tell(Event::Said { worker, message });
        }
    }

    fn deliver_to_worker(&mut self) {
        let Some(worker) = self.any_worker() else { return };
        let Some(w) = self.workers.get_mut(&worker) else { return };
        if !w.warm {
            w.warm = true;
            let ready = follower::Event::TrainerReady {
                addr: format!("{worker}"),
                name: w.name,
            };
            self.follow(worker, ready);
        } else if let Some(message) = w.inbox.pop_front() {
            self.follow(worker, follower::Event::Heard(message));
        }
    }

    fn tell(&mut self, event: Event) {
        for command in self.conductor.step(event, self.now) {
            match command {
                Command::Persist { record } => self.persists.push_back(record),
                Command::Send { to, message } => {
                    if let Some(w) = self.workers.get_mut(&to) {
                        w.inbox.push_back(message);
                    }
                }
                Command::SpawnWorker { worker } => self.spawning.push_back(worker),
                Command::GiveId { .. } => unreachable!("nobody asks"),
                Command::Dismiss { worker, .. } => {
                    if self.workers.remove(&worker).is_some() && self.settings.spawns {
                        self.exits.push_back(worker);
                    }
                }
                Command::WriteManifest { attempt, name, .. } => self.to_write.push_back((attempt, name)),
                Command::CollectGarbage { attempts, .. } => {
                    let head = self.conductor.observe().head.map(|h| h.key);
                    for attempt in attempts {
                        let key = format!("{attempt}/manifest.json");
                        assert_ne!(head.as_ref(), Some(&key), "seed {}: the head is no garbage", self.seed);
                        self.manifests.remove(&key);
                    }
                }
                Command::Announce { event } => self.events.push(event),
                Command::End { outcome } => self.outcome = Some(outcome),
            }
        }
    }

    fn follow(&mut self, worker: WorkerId, event: follower::Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(w) = self.workers.get_mut(&worker) else { return };
            for command in w.follower.step(event, self.now) {
                match command {
                    follower::Command::Tell(message) => w.outbox.push_back(message),
                    follower::Command::Order(order) => {
                        let log = self.logs.entry(worker.to_string()).or_default();
                        log.extend(toy::healed(worker, &order));
                        events.extend(w.order(&self.manifests, &self.bits_of, order));
                    }
                    follower::Command::AbortCollective { generation } => {
                        events.extend(w.stop(generation, Some("aborted")));
                    }
                    follower::Command::Lease { .. } | follower::Command::Reconnect { .. } => {}
                    follower::Command::Exit { .. } => {
                        w.running = false;
                    }
                }
            }
            if let Some(w) = self.workers.get_mut(&worker) {
                events.extend(w.copy_parts(worker));
            }
        }
    }

    /// One step of the newest generation, if all its members run; now and then somebody dies when only some have applied.
    fn collective_step(&mut self) {
        let Some(plan) = self
            .workers
            .values()
            .filter(|w| w.running)
            .filter_map(|w| w.plan.clone())
            .max_by_key(|p| p.generation)
        else {
            return;
        };
        let members: Vec<WorkerId> = plan.members.iter().map(|m| m.worker).collect();
        let in_step = |w: &&Worker| w.running && w.plan.as_ref().is_some_and(|p| p.generation == plan.generation);
        let there: Vec<&Worker> = members
            .iter()
            .filter_map(|m| self.workers.get(m))
            .filter(in_step)
            .collect();
        let step = there[0].name.step;
        let total = self.shape.total_steps();
        if there.len() < members.len() {
            let gone_for_good = members.iter().any(|m| !self.workers.contains_key(m));
            let left = members
                .iter()
                .any(|m| self.workers.get(m).is_some_and(|w| w.plan.as_ref() != Some(&plan)));
            if (gone_for_good || left) && step < total {
                self.abort_those_in(&plan, &members);
            }
            return;
        }
        if step >= total {
            return;
        }
        assert!(
            there.iter().all(|w| w.name == there[0].name && w.bits == there[0].bits),
            "equal names, equal bits"
        );
        let dies_inside = self.kills_left > 0 && self.draws.below(12) == 0;
        let applied = if dies_inside {
            self.draws.below(members.len() as u64) as usize
        } else {
            members.len()
        };
        for member in &members[..applied] {
            self.apply(*member, &plan, step);
        }
        if dies_inside {
            self.kills_left -= 1;
            self.kill(members[applied]);
            self.abort_those_in(&plan, &members[applied..]);
        }
    }

    fn abort_those_in(&mut self, plan: &Plan, members: &[WorkerId]) {
        for member in members {
            let stopped = self
                .workers
                .get_mut(member)
                .and_then(|w| w.stop(plan.generation, Some("a peer is gone")));
            if let Some(event) = stopped {
                self.follow(*member, event);
            }
        }
    }

    fn apply(&mut self, member: WorkerId, plan: &Plan, step: u64) {
        let mut sampler = Sampler::new(self.shape.clone());
        let name = StateName {
            step: step + 1,
            applied_gen: plan.generation,
        };
        let Some(w) = self.workers.get_mut(&member) else { return };
        w.bits = Self::next_bits(&self.shape, &mut sampler, w.bits, step);
        w.name = name;
        let known = *self.bits_of.entry(name).or_insert(w.bits);
        assert_eq!(known, w.bits, "seed {}: equal names mean equal bits", self.seed);
        let lanes: Vec<_> = (0..self.shape.lanes)
            .map(|lane| sampler.step_samples(lane, step))
            .collect();
        let record = StepRecord::Applied {
            name,
            plan_hash: plan.hash(),
            valid: lanes.iter().map(|l| l.len() as u32).sum(),
            lanes: lanes
                .iter()
                .enumerate()
                .map(|(lane, ids)| lane_digest(lane as u32, ids))
                .collect(),
            masked: Vec::new(),
            skipped: None,
            loss: Some(1.0),
        };
        self.logs.entry(member.to_string()).or_default().push(record);
        let stop = w.stop_after.is_some_and(|at| name.step >= at);
        let stopped = if stop { w.stop(plan.generation, None) } else { None };
        let report = StepReport {
            generation: plan.generation,
            name,
            loss: Some(1.0),
            ..StepReport::default()
        };
        self.follow(member, follower::Event::Stepped { report });
        if let Some(event) = stopped {
            self.follow(member, event);
        }
    }
}
