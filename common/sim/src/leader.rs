//! A coordinator process of the world: election by lease, the real conductor, and a shell that executes its commands as the
//! production shell does. A transaction whose outcome is unknown ends the process; the next life reads the store.

mod election;
mod writes;

use crate::clock::Clock;
use crate::net::Node;
use crate::queue::Ms;
use crate::world::{Ev, World};
use argosy_common::conductor::{Command, Conductor, Event, View};
use argosy_common::events::{Record, RunEvent};
use argosy_common::ids::{Term, WorkerId};
use argosy_common::rules::Rules;
use std::collections::{BTreeMap, VecDeque};

/// See the module.
#[derive(Debug)]
pub(crate) struct Coordinator<R: Rules> {
    pub(crate) life: u32,
    /// Its machine does not come back.
    pub(crate) gone: bool,
    pub(crate) asleep_until: Ms,
    term: Option<Term>,
    brain: Option<Conductor<R>>,
    clock: Clock,
    began: Ms,
    /// It knows that it leads until then.
    lease_until: Ms,
    /// Records to append in order; whether the brain waits for them.
    writing: VecDeque<(Record, bool)>,
    in_flight: bool,
    /// Records in the store, as this leader knows them.
    records: usize,
    pub(crate) sessions: BTreeMap<WorkerId, usize>,
    pub(crate) children: BTreeMap<WorkerId, usize>,
    armed: Option<Ms>,
    inbox: VecDeque<Event>,
    driving: bool,
}

impl<R: Rules> Default for Coordinator<R> {
    fn default() -> Self {
        Self {
            life: 0,
            gone: false,
            asleep_until: 0,
            term: None,
            brain: None,
            clock: Clock::default(),
            began: 0,
            lease_until: 0,
            writing: VecDeque::new(),
            in_flight: false,
            records: 0,
            sessions: BTreeMap::new(),
            children: BTreeMap::new(),
            armed: None,
            inbox: VecDeque::new(),
            driving: false,
        }
    }
}

impl<R: Rules> Coordinator<R> {
    pub(crate) fn leads_as(&self, life: u32, term: Term) -> bool {
        self.life == life && self.term == Some(term) && self.brain.is_some()
    }

    pub(crate) fn leads(&self) -> bool {
        self.brain.is_some()
    }

    pub(crate) fn view(&self) -> Option<View> {
        self.brain.as_ref().map(Conductor::observe)
    }
}

impl<R: Rules> World<R> {
    /// One life of a coordinator ends; its connections with it.
    pub(crate) fn falls(&mut self, coordinator: usize, why: &str) {
        let now = self.now();
        self.trace
            .note(now, "falls", &[coordinator as u64], || format!("c{coordinator}: {why}"));
        self.effect(Node::Coordinator(coordinator));
        let c = &mut self.coordinators[coordinator];
        let (life, gone) = (c.life + 1, c.gone);
        let sessions = std::mem::take(&mut c.sessions);
        *c = Coordinator {
            life,
            gone,
            ..Coordinator::default()
        };
        for session in sessions.into_values() {
            self.sessions[session].at_coordinator = false;
            let wait = 2 + self.draws.below(30);
            self.queue.after(wait, Ev::LostAtProcess { session });
        }
        let wait = 100 + self.draws.below(400);
        self.queue.after(wait, Ev::Boot { coordinator, life });
    }

    /// Steps the conductor of a coordinator and does what it says, in order.
    pub(crate) fn tell(&mut self, coordinator: usize, event: Event) {
        let now = self.now();
        let c = &mut self.coordinators[coordinator];
        c.inbox.push_back(event);
        if c.driving {
            return;
        }
        c.driving = true;
        let life = c.life;
        while let Some(event) = self.coordinators[coordinator].inbox.pop_front() {
            let c = &mut self.coordinators[coordinator];
            let Some(brain) = &mut c.brain else { break };
            let commands = brain.step(event, c.clock.shows(now - c.began));
            for command in commands {
                if self.coordinators[coordinator].life == life {
                    self.execute(coordinator, command);
                }
            }
        }
        let c = &mut self.coordinators[coordinator];
        c.driving = false;
        self.arm(coordinator);
    }

    fn arm(&mut self, coordinator: usize) {
        let c = &mut self.coordinators[coordinator];
        let Some((at, _)) = c.brain.as_ref().and_then(Conductor::next_deadline) else {
            return;
        };
        let at = c.began + c.clock.when(at);
        if c.armed.is_some_and(|armed| armed <= at) {
            return;
        }
        c.armed = Some(at);
        let life = c.life;
        let at = at.max(self.queue.now() + 1);
        self.queue.at(at, Ev::Tick { coordinator, life, at });
    }

    pub(crate) fn ticked(&mut self, coordinator: usize, life: u32, _at: Ms) {
        let c = &mut self.coordinators[coordinator];
        if c.life == life {
            c.armed = None;
            self.tell(coordinator, Event::Ticked);
        }
    }

    fn execute(&mut self, coordinator: usize, command: Command) {
        let now = self.now();
        match command {
            Command::Persist { record } => {
                self.coordinators[coordinator].writing.push_back((record, true));
                self.write_next(coordinator);
            }
            Command::Send { to, message } => {
                if let Some(session) = self.coordinators[coordinator].sessions.get(&to).copied() {
                    self.heard_of(&message);
                    self.send_down(session, message);
                }
            }
            Command::SpawnWorker { worker } => self.spawn(coordinator, worker),
            Command::GiveId { .. } => {} // workers of these worlds bring their own
            Command::Dismiss { worker, reason } => {
                self.trace.note(now, "dismisses", &[u64::from(worker.0)], || {
                    format!("c{coordinator} {worker}: {reason}")
                });
                let c = &mut self.coordinators[coordinator];
                let child = c.children.get(&worker).copied();
                if let Some(session) = c.sessions.remove(&worker) {
                    self.sessions[session].at_coordinator = false;
                    let wait = 2 + self.draws.below(20);
                    self.queue.after(wait, Ev::LostAtProcess { session });
                }
                if let Some(process) = child {
                    self.queue.after(1, Ev::Kill { process });
                }
            }
            Command::WriteManifest {
                attempt, name, parts, ..
            } => {
                self.manifest_of(attempt, name, &parts);
                let life = self.coordinators[coordinator].life;
                let wait = 5 + self.draws.below(20);
                self.queue.after(
                    wait,
                    Ev::PutManifest {
                        coordinator,
                        life,
                        attempt,
                        name,
                        tries: 0,
                    },
                );
            }
            Command::CollectGarbage { attempts, .. } => {
                for attempt in attempts {
                    self.collects(attempt);
                    self.objects.delete_attempt(attempt);
                }
            }
            Command::Announce { event } => self.announced(coordinator, &event),
            Command::End { outcome } => self.ended = Some(outcome),
        }
    }

    fn announced(&mut self, coordinator: usize, event: &RunEvent) {
        let now = self.now();
        match event {
            RunEvent::Blamed { worker, reason } => {
                let who = worker.map_or(0, |w| u64::from(w.0));
                self.trace.note(now, "judged", &[who], || reason.clone());
            }
            RunEvent::Quarantined { entry } => {
                self.trace.note(now, "gives up", &[entry.revision], || {
                    format!(
                        "rows {}..{} of shard {}: {}",
                        entry.rows.from, entry.rows.until, entry.rows.shard, entry.reason
                    )
                });
            }
            RunEvent::LanesMoving { reason, lanes, .. } => {
                self.trace.note(now, "prepares", &[(*lanes).into()], || {
                    format!("{reason}: {lanes} lanes move")
                });
            }
            RunEvent::WorkerDraining { worker, grace_ms } => {
                self.checks.plan_changed();
                self.trace.note(now, "drains", &[u64::from(worker.0)], || {
                    format!("{worker} within {grace_ms} ms")
                });
            }
            RunEvent::GenerationClosing { generation, reason } => {
                let term = self.coordinators[coordinator].term.unwrap_or_default();
                self.checks.closing(term, *generation, reason);
                self.trace
                    .note(now, "closing", &[generation.0], || format!("{generation}: {reason}"));
                self.effect_of(coordinator, reason);
            }
            RunEvent::CheckpointAbandoned { attempt, reason } => {
                self.trace
                    .note(now, "abandoned", &[*attempt], || format!("attempt {attempt}: {reason}"));
                self.effect_of(coordinator, reason);
            }
            RunEvent::WorkerLost { worker, reason } => {
                self.checks.lost_one();
                self.trace
                    .note(now, "lost", &[u64::from(worker.0)], || format!("{worker}: {reason}"));
                let process = self.coordinators[coordinator]
                    .sessions
                    .get(worker)
                    .map(|s| self.sessions[*s].process);
                if let Some(process) = process {
                    self.effect(Node::Process(process));
                }
            }
            RunEvent::GenerationActivated { generation } => {
                self.trace
                    .note(now, "activated", &[generation.0], || generation.to_string());
            }
            _ => {}
        }
    }
}
