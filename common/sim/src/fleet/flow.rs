//! What flows between the conductor and the fleet.

use super::book::Scale;
use super::{Decision, Ev, Mode, Ring, Run, Worker, busiest};
use argosy_common::conductor::{Command, Event};
use argosy_common::events::{FromWorker, PartFailure, PartInfo, Record, RunEvent, StepReport, ToWorker};
use argosy_common::follower::{self, Follower, TrainerOrder};
use argosy_common::ids::{Generation, StateName};
use argosy_common::plan::Plan;
use std::collections::BTreeMap;

/// A message takes so long.
const WIRE_MS: u64 = 1;
/// A record is durable after so long.
const STORE_MS: u64 = 5;
/// Of the heartbeats of those who live on, one in so many is sent in `lazy`: enough to be heard within the budget.
const BEATS: u64 = 4;

impl Run<'_> {
    /// Steps the conductor and does what it says.
    pub(super) fn tell(&mut self, event: Event) {
        let now = self.queue.now();
        let began = (self.clock)();
        let commands = self.brain.step(event, now);
        let took = (self.clock)().saturating_sub(began);
        self.book.decision(took, Scale::of(&commands, self.fleet.workers));
        if !commands.is_empty() {
            self.book.ledger_bytes = self.book.ledger_bytes.max(self.brain.ledger_bytes());
        }
        for command in commands {
            self.execute(command, now);
        }
        let due = self.brain.next_deadline().map(|(at, _)| at.max(now + 1));
        if let Some(at) = due.filter(|at| self.armed.is_none_or(|armed| armed > *at)) {
            self.armed = Some(at);
            self.queue.at(at, Ev::Tick { at });
        }
    }

    fn decide(&mut self, what: &'static str, a: u64, b: u64) {
        let at_ms = self.queue.now();
        let numbers = (a, b);
        self.decisions.push(Decision { at_ms, what, numbers });
    }

    fn execute(&mut self, command: Command, now: u64) {
        match command {
            Command::Persist { record } => {
                self.book.writes += 1;
                match &record {
                    Record::GenerationFormed {
                        generation,
                        base,
                        plan_hash,
                        ..
                    } => {
                        self.book.generations += 1;
                        self.book.record_bytes(&record);
                        self.decide("form", *plan_hash, generation.0 ^ base.step);
                    }
                    Record::CheckpointOpened { attempt, at_step } => self.decide("open", *attempt, *at_step),
                    Record::CheckpointCommitted { attempt, name, .. } => self.decide("commit", *attempt, name.step),
                    Record::CheckpointAbandoned { attempt, .. } => self.decide("abandon", *attempt, 0),
                    Record::Resumed { generation, name, .. } => {
                        self.book.resumed += 1;
                        self.decide("resume", generation.0, name.step);
                    }
                    _ => self.decide("record", 0, 0),
                }
                // One at a time, in order.
                self.book.written_until = self.book.written_until.max(now) + STORE_MS;
                self.queue.at(self.book.written_until, Ev::Persisted);
            }
            Command::Send { to, message } => {
                self.book.sent(&message);
                let worker = to.0 as usize - 1;
                let message = Box::new(message);
                self.queue.after(WIRE_MS, Ev::Down { worker, message });
            }
            Command::Dismiss { worker, .. } => {
                self.decide("dismiss", worker.0.into(), 0);
                let worker = worker.0 as usize - 1;
                if self.workers[worker].alive {
                    self.follow(worker, follower::Event::StreamLost);
                }
            }
            Command::WriteManifest { attempt, .. } => {
                self.queue
                    .after(self.fleet.faults.upload_ms / 4 + 1, Ev::ManifestWritten { attempt });
            }
            Command::Announce {
                event: RunEvent::CheckpointCommitted { .. },
            } => self.book.checkpoints += 1,
            Command::End { .. } => {
                self.decide("end", self.book.steps, 0);
                self.ended = true;
            }
            Command::SpawnWorker { .. }
            | Command::GiveId { .. }
            | Command::CollectGarbage { .. }
            | Command::Announce { .. } => {}
        }
    }

    /// A machine is there: its process warms up outside the generation (rule G8).
    pub(super) fn join(&mut self, place: u32) {
        let worker = self.workers.len();
        let settings = follower::Settings {
            worker: worker as u32 + 1,
            seed: self.fleet.seed,
            grace_ms: self.fleet.faults.notice_ms,
            ..follower::Settings::default()
        };
        self.workers.push(Worker {
            alive: true,
            place,
            follower: Follower::new(settings),
            name: StateName::INITIAL,
            inside: None,
            stop_after: None,
            silent_at: u64::MAX,
            copies: None,
            copied: None,
        });
        self.places[place as usize] = Some(worker);
        self.tell(Event::WorkerConnected {
            worker: self.id(worker),
        });
        let beat = self.beat_ms();
        self.queue.after(beat, Ev::Beat { worker, number: 1 });
        self.queue.after(self.fleet.faults.warm_up_ms, Ev::Warm { worker });
    }

    fn beat_ms(&self) -> u64 {
        (self.fleet.faults.failure_budget_ms / 5).max(1)
    }

    pub(super) fn warm(&mut self, worker: usize) {
        let addr = format!("f{worker}");
        let name = self.workers[worker].name;
        self.follow(worker, follower::Event::TrainerReady { addr, name });
    }

    /// Whether every sign of life of this worker counts: it will fall silent, and the last one decides when that is seen.
    fn is_watched(&self, worker: usize) -> bool {
        let soon = self.queue.now() + 4 * self.fleet.faults.failure_budget_ms;
        self.fleet.mode == Mode::Exact || self.workers[worker].silent_at <= soon
    }

    pub(super) fn beat(&mut self, worker: usize, number: u64) {
        if !self.workers[worker].alive {
            return;
        }
        let beat = self.beat_ms();
        if self.is_watched(worker) {
            self.follow(worker, follower::Event::HeartbeatDue);
            self.queue.after(
                beat,
                Ev::Beat {
                    worker,
                    number: number + 1,
                },
            );
            return;
        }
        if number.is_multiple_of(BEATS) {
            // What its follower would say, and no more.
            let (worker, message) = (self.id(worker), FromWorker::Heartbeat);
            self.book.heard(&message);
            self.tell(Event::Said { worker, message });
        }
        let next = BEATS - number % BEATS;
        // Who falls silent later is watched in time: beats until then may be left out.
        self.queue.after(
            beat * next,
            Ev::Beat {
                worker,
                number: number + next,
            },
        );
    }

    pub(super) fn follow(&mut self, worker: usize, event: follower::Event) {
        if !self.workers[worker].alive {
            return;
        }
        let now = self.queue.now();
        for command in self.workers[worker].follower.step(event, now) {
            match command {
                follower::Command::Tell(message) => {
                    self.book.heard(&message);
                    let message = Box::new(message);
                    self.queue.after(WIRE_MS, Ev::Up { worker, message });
                }
                follower::Command::Order(order) => self.order(worker, order),
                follower::Command::AbortCollective { generation } => self.stops(worker, generation, None),
                follower::Command::Exit { .. } => self.dies(worker, false),
                follower::Command::Lease { .. } | follower::Command::Reconnect { .. } => {}
            }
        }
        let due = self.workers[worker].follower.next_deadline();
        if let Some((at, _)) = due.filter(|_| self.workers[worker].alive) {
            self.queue.at(at, Ev::FollowerTick { worker });
        }
    }

    fn order(&mut self, worker: usize, order: TrainerOrder) {
        match order {
            TrainerOrder::Form { plan } => {
                let (generation, base) = (plan.generation, plan.base);
                let heals = self.workers[worker].name != base;
                self.ring_of(&plan);
                let w = &mut self.workers[worker];
                w.inside = Some(generation);
                w.stop_after = None;
                w.copies = None;
                let heal = if heals && base != StateName::INITIAL {
                    self.fleet.faults.heal_ms
                } else {
                    0
                };
                self.queue
                    .after(self.fleet.faults.connect_ms + heal, Ev::Formed { worker, generation });
            }
            TrainerOrder::Run { generation } => self.runs(generation),
            TrainerOrder::StopAfter { generation, step } => {
                let w = &mut self.workers[worker];
                if w.inside == Some(generation) {
                    w.stop_after = Some(w.stop_after.unwrap_or(u64::MAX).min(step));
                }
            }
            TrainerOrder::Checkpoint {
                attempt,
                at_step,
                parts,
                spare,
                ..
            } => {
                let holds = !parts.is_empty() || !spare.is_empty();
                self.workers[worker].copies = holds.then_some((attempt, at_step, parts));
                let name = self.workers[worker].name;
                if name.step >= self.fleet.steps() {
                    self.copies_due(worker, name); // no step is under way any more
                }
            }
            TrainerOrder::UploadSpare { attempt, parts } => self.uploads(worker, attempt, parts),
            TrainerOrder::Prime { generation, lanes, .. } => {
                let message = Box::new(FromWorker::Primed { generation, lanes });
                self.queue.after(self.fleet.step_ms, Ev::Uploaded { worker, message });
            }
            TrainerOrder::EmergencyCopy | TrainerOrder::Quit => {}
        }
    }

    /// The ring of a plan, made when its first member hears of it.
    fn ring_of(&mut self, plan: &Plan) {
        if self.ring.as_ref().is_some_and(|r| r.plan.generation >= plan.generation) {
            return;
        }
        let members: Vec<usize> = plan.members.iter().map(|m| m.worker.0 as usize - 1).collect();
        let broken = members.iter().any(|m| !self.workers[*m].alive);
        let token = self.ring.as_ref().map_or(0, |r| r.token + 1);
        self.ring = Some(Ring {
            step_ms: self.fleet.step_at(busiest(plan)),
            steps: plan.base.step,
            plan: plan.clone(),
            members,
            running: 0,
            token,
            broken,
        });
    }

    pub(super) fn formed(&mut self, worker: usize, generation: Generation) {
        let w = &mut self.workers[worker];
        let Some(ring) = self.ring.as_ref().filter(|r| r.plan.generation == generation) else {
            return;
        };
        if w.inside == Some(generation) && w.alive {
            w.name = ring.plan.base;
            self.follow(worker, follower::Event::TrainerFormed { generation });
        }
    }

    fn runs(&mut self, generation: Generation) {
        let total = self.fleet.steps();
        let Some(ring) = self.ring.as_mut().filter(|r| r.plan.generation == generation) else {
            return;
        };
        ring.running += 1;
        let all = ring.running as usize == ring.members.len();
        if all && !ring.broken && ring.steps < total {
            let (token, wait) = (ring.token, ring.step_ms);
            self.queue.after(wait, Ev::Step { generation, token });
        }
    }

    /// All members have applied a step.
    pub(super) fn stepped(&mut self, generation: Generation, token: u64) {
        let now = self.queue.now();
        let total = self.fleet.steps();
        let Some(ring) = self
            .ring
            .as_mut()
            .filter(|r| r.plan.generation == generation && r.token == token && !r.broken)
        else {
            return;
        };
        ring.steps += 1;
        let name = StateName {
            step: ring.steps,
            applied_gen: generation,
        };
        let (wait, members) = (ring.step_ms, ring.members.clone());
        self.book.stepped(name.step, now, self.fleet.step_ms);
        let (mut leaving, mut copied) = (false, false);
        for (rank, member) in members.iter().enumerate() {
            let w = &mut self.workers[*member];
            w.name = name;
            leaving |= w.stop_after.is_some_and(|step| name.step >= step);
            if rank == 0 || self.is_watched(*member) {
                let report = StepReport {
                    generation,
                    name,
                    loss: Some(1.0),
                    phase_ms: BTreeMap::from([("step".to_string(), wait as f32)]),
                    ..StepReport::default()
                };
                self.follow(*member, follower::Event::Stepped { report });
            }
            copied |= self.copies_due(*member, name);
        }
        // The copy runs beside the next step, which has to wait for it before it changes the weights (rule K2).
        let wait = wait + if copied { self.fleet.faults.copy_ms } else { 0 };
        if leaving {
            self.book.boundary_at.get_or_insert(now);
            for member in members {
                self.stops(member, generation, None);
            }
        } else if name.step < total {
            self.queue.after(wait, Ev::Step { generation, token });
        }
    }

    /// Whether a copy of this state is made now.
    fn copies_due(&mut self, worker: usize, name: StateName) -> bool {
        let Some((attempt, at_step, parts)) = self.workers[worker].copies.take() else {
            return false;
        };
        if at_step > name.step {
            self.workers[worker].copies = Some((attempt, at_step, parts));
            return false;
        }
        let now = at_step == name.step;
        if now {
            self.workers[worker].copied = Some((attempt, name));
            self.uploads(worker, attempt, parts);
        } else if !parts.is_empty() {
            self.part_failed(worker, attempt, PartFailure::Late, format!("past step {at_step}"));
        }
        now
    }

    fn part_failed(&mut self, worker: usize, attempt: u64, failure: PartFailure, reason: String) {
        let message = Box::new(FromWorker::PartFailed {
            attempt,
            failure,
            reason,
        });
        self.queue
            .after(self.fleet.faults.upload_ms, Ev::Uploaded { worker, message });
    }

    /// Parts of a copied state, own ones or those of a lost owner.
    fn uploads(&mut self, worker: usize, attempt: u64, parts: Vec<u32>) {
        let Some((_, name)) = self.workers[worker].copied.filter(|c| c.0 == attempt) else {
            return self.part_failed(worker, attempt, PartFailure::Store, "no copy".into());
        };
        for index in parts {
            let part = PartInfo {
                index,
                key: format!("{attempt}/{index}"),
                bytes: 64 << 20,
                checksum: 0,
            };
            let message = Box::new(FromWorker::PartUploaded { attempt, part, name });
            self.queue
                .after(self.fleet.faults.upload_ms, Ev::Uploaded { worker, message });
        }
    }

    /// A member leaves a generation, clean.
    pub(super) fn stops(&mut self, worker: usize, generation: Generation, cause: Option<String>) {
        let w = &mut self.workers[worker];
        if w.inside != Some(generation) || !w.alive {
            return;
        }
        w.inside = None;
        w.copies = None;
        let name = w.name;
        if let Some(ring) = self.ring.as_mut().filter(|r| r.plan.generation == generation) {
            ring.broken = true;
        }
        self.follow(
            worker,
            follower::Event::TrainerStopped {
                generation,
                name,
                cause,
            },
        );
    }

    pub(super) fn peers_gone(&mut self, generation: Generation) {
        let Some(ring) = self.ring.as_ref().filter(|r| r.plan.generation == generation) else {
            return;
        };
        for member in ring.members.clone() {
            self.stops(member, generation, Some("a peer is gone".into()));
        }
    }

    /// The trace takes the worker of a place.
    pub(super) fn strike(&mut self, place: u32, index: u64) {
        let Some(worker) = self.places[place as usize] else {
            return;
        };
        // Taken already, or soon.
        if !self.workers[worker].alive || self.workers[worker].silent_at < u64::MAX {
            return;
        }
        self.book.faults += 1;
        let faults = &self.fleet.faults;
        if self.fleet.is_silent(self.fleet.seed, index) {
            // It is known beforehand here, so that its last signs of life are simulated one by one.
            let at = self.queue.now() + 6 * faults.failure_budget_ms;
            self.workers[worker].silent_at = at;
            self.queue.at(at, Ev::Dies { worker, silent: true });
            return;
        }
        if faults.notice_ms > 0 {
            self.follow(worker, follower::Event::SignalReceived);
        }
        self.queue.after(faults.notice_ms, Ev::Dies { worker, silent: false });
    }

    pub(super) fn dies(&mut self, worker: usize, silent: bool) {
        let now = self.queue.now();
        let w = &mut self.workers[worker];
        if !std::mem::replace(&mut w.alive, false) {
            return;
        }
        let (place, inside) = (w.place, w.inside.take());
        self.places[place as usize] = None;
        let faults = &self.fleet.faults;
        let wait = faults.replace_ms / 2 + self.drawn(worker as u64, 3) % (faults.replace_ms + 1);
        self.queue.after(wait, Ev::Join { place });
        if !silent {
            self.queue.after(WIRE_MS, Ev::Lost { worker });
        }
        let Some(generation) = inside else { return };
        self.book.broken_at.get_or_insert(now);
        if let Some(ring) = self.ring.as_mut().filter(|r| r.plan.generation == generation) {
            ring.broken = true;
            if !silent {
                // Sockets close, and the neighbours stop by themselves.
                self.queue.after(WIRE_MS, Ev::PeersGone { generation });
            }
        }
    }
}

/// About as many bytes as a message takes on the wire.
pub(super) fn wire_bytes(message: &ToWorker) -> u64 {
    match message {
        // Per member an id, an address and a flag; per lane a number of two or three bytes.
        ToWorker::Form { plan } => 64 + 30 * plan.members.len() as u64 + 3 * plan.lanes.len() as u64,
        ToWorker::Checkpoint { parts, .. } => 16 + 2 * parts.len() as u64,
        _ => 16,
    }
}
