//! Processes and their streams: starting, connecting, speaking, dying.

use crate::clock::Clock;
use crate::data::SEED_BITS;
use crate::net::{Fate, Node};
use crate::process::Process;
use crate::queue::Ms;
use crate::world::{Ev, Session, World};
use argosy_common::conductor::Event;
use argosy_common::events::{FromWorker, ToWorker};
use argosy_common::follower::{self, Follower};
use argosy_common::ids::{StateName, WorkerId};
use argosy_common::rules::Rules;

/// A late message that carries a decision counts as an effect of the fault that held it back.
const LATE_MS: Ms = 50;

impl<R: Rules> World<R> {
    /// The platform of a fleet starts one more process.
    pub(crate) fn platform_starts(&mut self, wait: Ms) -> usize {
        self.process_with(StateName::INITIAL, SEED_BITS, wait)
    }

    pub(crate) fn process_with(&mut self, name: StateName, bits: u64, wait: Ms) -> usize {
        let process = self.processes.len();
        let clock = Clock::drawn(&mut self.draws);
        self.processes.push(Process::new(name, bits, clock));
        self.queue.after(wait, Ev::Start { process });
        process
    }

    pub(crate) fn start(&mut self, process: usize) {
        let wait = 20 + self.draws.below(100);
        self.queue.after(wait, Ev::Connect { process });
    }

    /// Looks the leader up and connects; tries again until somebody leads.
    pub(crate) fn connect(&mut self, process: usize) {
        let now = self.now();
        let p = &self.processes[process];
        if !p.alive || p.session.is_some() {
            return;
        }
        // A child of an earlier life of its parent has nobody to go to.
        if p.reserved.is_some_and(|(_, life)| self.coordinators[0].life != life) {
            return self.kill(process);
        }
        let leader = self.etcd.leader().filter(|l| l.expires > now);
        let node = Node::Process(process);
        let reached = leader.filter(|l| {
            let c = &self.coordinators[l.coordinator];
            let there = Node::Coordinator(l.coordinator);
            c.leads_as(l.life, l.term)
                && c.asleep_until <= now
                && !self.net.is_cut(node, there, now)
                && !self.net.is_cut(there, node, now)
        });
        let Some(leader) = reached else {
            if p.worker.is_some() {
                return self.follow(process, follower::Event::Unreachable);
            }
            self.queue.after(200, Ev::Connect { process });
            return;
        };
        let worker = match (p.worker, p.reserved) {
            (Some(worker), _) | (None, Some((worker, _))) => worker,
            (None, None) => self.etcd.name_worker(),
        };
        let first = p.worker.is_none();
        let coordinator = &mut self.coordinators[leader.coordinator];
        if coordinator.sessions.contains_key(&worker) {
            // Its old stream has to break at the other end first: of two streams of one worker the elder's end would be
            // taken for its own.
            return self.follow(process, follower::Event::Unreachable);
        }
        let session = self.sessions.len();
        self.sessions.push(Session {
            process,
            coordinator: leader.coordinator,
            life: leader.life,
            worker,
            at_process: true,
            at_coordinator: true,
            down: (now, 0),
            up: (now, 0),
            seen: (0, 0),
        });
        coordinator.sessions.insert(worker, session);
        let p = &mut self.processes[process];
        p.session = Some(session);
        p.worker = Some(worker);
        self.trace
            .note(now, "connected", &[process as u64, u64::from(worker.0)], || {
                format!("p{process} is {worker} of c{}", leader.coordinator)
            });
        self.tell(leader.coordinator, Event::WorkerConnected { worker });
        if first {
            self.processes[process].follower = Follower::new(self.follower_settings(worker));
        }
        self.follow(process, follower::Event::Welcomed { term: leader.term });
        if !first {
            return;
        }
        let beat = (self.config.failure_budget_ms / 5).max(50);
        self.queue.after(beat, Ev::Beat { process });
        let warm = 50 + self.draws.below(400);
        self.queue.after(warm, Ev::Warm { process });
    }

    fn follower_settings(&self, worker: WorkerId) -> follower::Settings {
        follower::Settings {
            worker: worker.0,
            seed: self.shape.seed,
            leases: self.config.leases,
            orphan_max_ms: self.config.orphan_max_ms,
            grace_ms: self.config.grace_ms,
        }
    }

    pub(crate) fn warmed_up(&mut self, process: usize) {
        let p = &mut self.processes[process];
        if !p.alive || p.warm {
            return;
        }
        p.warm = true;
        let name = p.trainer.name;
        if let Some(wait) = p.flaps.take() {
            self.queue.after(wait, Ev::Kill { process });
        }
        let addr = format!("p{process}");
        self.follow(process, follower::Event::TrainerReady { addr, name });
    }

    pub(crate) fn beat(&mut self, process: usize) {
        if self.processes[process].alive {
            self.follow(process, follower::Event::HeartbeatDue);
            let beat = (self.config.failure_budget_ms / 5).max(50);
            self.queue.after(beat, Ev::Beat { process });
        }
    }

    /// When a message of a stream arrives, whether again, and how it is numbered; `None` when the stream breaks instead.
    fn ship(&mut self, session: usize, down: bool, heartbeat: bool) -> Option<(Ms, Option<Ms>, u64)> {
        let now = self.now();
        let s = &self.sessions[session];
        let (process, coordinator) = (Node::Process(s.process), Node::Coordinator(s.coordinator));
        let (from, to) = if down {
            (coordinator, process)
        } else {
            (process, coordinator)
        };
        let mut touched = Vec::new();
        let fate: Fate = self.net.carry(from, to, now, &mut touched);
        let keep_alive = self.config.failure_budget_ms;
        let mut at = now + fate.delay;
        if let Some(until) = fate.cut_until {
            if until > now + keep_alive {
                // Neither end hears the other's acknowledgements any more: both give up, each by itself.
                self.break_both(session, keep_alive);
                return None;
            }
            at = until + fate.delay;
        }
        let late = at > now + LATE_MS || fate.again.is_some();
        if late && !heartbeat {
            for fault in touched {
                self.effects.credit(fault, &self.faults);
            }
        }
        let s = &mut self.sessions[session];
        let side = if down { &mut s.down } else { &mut s.up };
        side.1 += 1;
        if !fate.overtakes {
            side.0 = side.0.max(at);
            at = side.0;
        }
        let number = side.1;
        Some((at, fate.again.map(|wait| at + wait), number))
    }

    pub(crate) fn break_both(&mut self, session: usize, after: Ms) {
        let patience = if self.config.late_members { 3 * after } else { 1 };
        let (here, there) = (self.draws.below(patience), self.draws.below(after));
        self.queue.after(after / 2 + here, Ev::LostAtProcess { session });
        self.queue.after(after / 2 + there, Ev::LostAtCoordinator { session });
    }

    /// From a coordinator to a worker.
    pub(crate) fn send_down(&mut self, session: usize, message: ToWorker) {
        if let Some((at, again, number)) = self.ship(session, true, false) {
            if let Some(again) = again {
                let message = Box::new(message.clone());
                self.queue.at(
                    again,
                    Ev::Down {
                        session,
                        message,
                        number,
                    },
                );
            }
            let message = Box::new(message);
            self.queue.at(
                at,
                Ev::Down {
                    session,
                    message,
                    number,
                },
            );
        }
    }

    /// From a worker to its coordinator.
    pub(crate) fn send_up(&mut self, process: usize, message: FromWorker) {
        let Some(session) = self.processes[process].session else {
            return;
        };
        self.says(process, &message);
        let heartbeat = message == FromWorker::Heartbeat;
        if let Some((at, again, number)) = self.ship(session, false, heartbeat) {
            if let Some(again) = again {
                let message = Box::new(message.clone());
                self.queue.at(
                    again,
                    Ev::Up {
                        session,
                        message,
                        number,
                    },
                );
            }
            let message = Box::new(message);
            self.queue.at(
                at,
                Ev::Up {
                    session,
                    message,
                    number,
                },
            );
        }
    }

    pub(crate) fn arrives_down(&mut self, session: usize, message: ToWorker, number: u64) {
        let s = &mut self.sessions[session];
        let process = s.process;
        if !s.at_process || !self.processes[process].alive {
            return;
        }
        let overtaken = number < s.seen.0;
        s.seen.0 = s.seen.0.max(number);
        if overtaken {
            self.effect(Node::Process(process));
        }
        self.follow(process, follower::Event::Heard(message));
    }

    pub(crate) fn arrives_up(&mut self, session: usize, message: FromWorker, number: u64) {
        let s = &mut self.sessions[session];
        if !s.at_coordinator || self.coordinators[s.coordinator].life != s.life {
            return;
        }
        let overtaken = number < s.seen.1 && message != FromWorker::Heartbeat;
        s.seen.1 = s.seen.1.max(number);
        let (worker, coordinator, process) = (s.worker, s.coordinator, s.process);
        if overtaken {
            self.effect(Node::Process(process));
        }
        self.tell(coordinator, Event::Said { worker, message });
    }

    pub(crate) fn lost_at_process(&mut self, session: usize) {
        let s = &mut self.sessions[session];
        if !std::mem::replace(&mut s.at_process, false) {
            return;
        }
        let process = s.process;
        if self.processes[process].alive && self.processes[process].session == Some(session) {
            self.processes[process].session = None;
            self.effect(Node::Process(process));
            self.follow(process, follower::Event::StreamLost);
        }
    }

    pub(crate) fn lost_at_coordinator(&mut self, session: usize) {
        let s = &mut self.sessions[session];
        if !std::mem::replace(&mut s.at_coordinator, false) || self.coordinators[s.coordinator].life != s.life {
            return;
        }
        let (worker, coordinator) = (s.worker, s.coordinator);
        // Only the newest stream of a seat says that its worker is lost.
        let of = &mut self.coordinators[coordinator].sessions;
        if of.get(&worker) == Some(&session) {
            of.remove(&worker);
            self.tell(coordinator, Event::StreamLost { worker });
        }
    }

    /// Steps a follower and does what it says.
    pub(crate) fn follow(&mut self, process: usize, event: follower::Event) {
        if !self.processes[process].alive {
            return;
        }
        let now = self.processes[process].clock.shows(self.now());
        for command in self.processes[process].follower.step(event, now) {
            match command {
                follower::Command::Lease { generation, until } => self.leased(process, generation, until),
                follower::Command::Reconnect { after_ms } => self.queue.after(after_ms, Ev::Connect { process }),
                follower::Command::Tell(message) => self.send_up(process, message),
                follower::Command::Order(order) => self.order(process, order),
                follower::Command::AbortCollective { generation } => self.cut_off(process, generation, None),
                follower::Command::Exit { code, reason } => {
                    self.trace
                        .note(self.queue.now(), "exits", &[process as u64, u64::from(code)], || {
                            format!("p{process} with code {code}: {reason}")
                        });
                    self.dies(process);
                }
            }
        }
        let p = &mut self.processes[process];
        let due = p.follower.next_deadline().map(|(at, _)| p.clock.when(at));
        if let Some(at) = due.filter(|at| p.armed.is_none_or(|armed| armed > *at)) {
            p.armed = Some(at);
            self.queue.at(at, Ev::FollowerTick { process });
        }
    }

    pub(crate) fn follower_ticked(&mut self, process: usize) {
        self.processes[process].armed = None;
        self.follow(process, follower::Event::Ticked);
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, process: usize) {
        if self.processes[process].alive {
            self.trace
                .note(self.queue.now(), "killed", &[process as u64], || format!("p{process}"));
            self.dies(process);
        }
    }

    /// A process is gone: its sockets close, its parent reaps it or its platform starts another.
    fn dies(&mut self, process: usize) {
        let p = &mut self.processes[process];
        if !std::mem::replace(&mut p.alive, false) {
            return;
        }
        p.asleep_until = 0; // what waits for it need not wait longer
        let session = p.session.take();
        let reserved = p.reserved;
        let (name, bits) = (p.trainer.name, p.trainer.bits);
        if p.trainer.inside.is_some() {
            self.effect(Node::Process(process));
            self.tell_peers(process);
        }
        self.processes[process].trainer.inside = None;
        if let Some(session) = session {
            self.sessions[session].at_process = false;
            // What it said before is still on its way; the end of the stream comes behind it.
            if let Some((at, _, _)) = self.ship(session, false, true) {
                self.queue.at(at, Ev::LostAtCoordinator { session });
            }
        }
        let wait = 5 + self.draws.below(100);
        match reserved {
            Some((_, life)) => {
                let coordinator = 0;
                self.queue.after(
                    wait,
                    Ev::Reaped {
                        process,
                        coordinator,
                        life,
                    },
                );
            }
            None => self.replace(process, name, bits, wait),
        }
    }

    fn replace(&mut self, process: usize, name: StateName, bits: u64, wait: Ms) {
        let old_state = self.old_state(process, name, bits);
        let wait = 200 + wait + self.draws.below(1_000);
        let next = self.process_with(old_state.0, old_state.1, wait);
        self.inherits(process, next);
    }

    /// The parent saw it end.
    pub(crate) fn reaped(&mut self, process: usize, coordinator: usize, life: u32) {
        let Some((worker, _)) = self.processes[process].reserved else {
            return;
        };
        if self.coordinators[coordinator].life == life {
            self.coordinators[coordinator].children.remove(&worker);
            let event = Event::WorkerExited {
                worker,
                pid: process as u32,
                code: None,
                signal: Some(9),
            };
            self.tell(coordinator, event);
        }
    }

    /// A child of the parent under a reserved id.
    pub(crate) fn spawn(&mut self, coordinator: usize, worker: WorkerId) {
        let life = self.coordinators[coordinator].life;
        let wait = 10 + self.draws.below(100);
        let process = self.platform_starts(wait);
        self.processes[process].reserved = Some((worker, life));
        self.coordinators[coordinator].children.insert(worker, process);
        let pid = process as u32;
        self.tell(coordinator, Event::WorkerSpawned { worker, pid });
    }
}
