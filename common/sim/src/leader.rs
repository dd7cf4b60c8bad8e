//! A coordinator process of the world: election by lease, the real conductor, and a shell that executes its commands as the
//! production shell does. A transaction whose outcome is unknown ends the process; the next life reads the store.

use crate::etcd::{Op, Reply};
use crate::net::Node;
use crate::objects::{Object, Put, Trouble};
use crate::queue::Ms;
use crate::world::{Ev, World};
use argosy_common::conductor::{Command, Conductor, Event, Restored, Settings, View};
use argosy_common::events::{Outcome, Record, RunEvent};
use argosy_common::ids::{StateName, Term, WorkerId};
use argosy_common::ledger::Keep;
use argosy_common::rules::Rules;
use std::collections::{BTreeMap, VecDeque};

/// A transaction without an answer for so long has an unknown outcome.
const ANSWER_MS: Ms = 1_500;
/// A commit that takes longer was delayed.
const COMMIT_LATE_MS: Ms = 40;

/// See the module.
#[derive(Debug)]
pub(crate) struct Coordinator<R: Rules> {
    pub(crate) life: u32,
    /// Its machine does not come back.
    pub(crate) gone: bool,
    pub(crate) asleep_until: Ms,
    term: Option<Term>,
    brain: Option<Conductor<R>>,
    began: Ms,
    /// It believes to lead until then, by its own clock.
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
    pub(crate) fn boot(&mut self, coordinator: usize, life: u32) {
        if self.coordinators[coordinator].life != life || self.coordinators[coordinator].gone {
            return;
        }
        // On one machine the run folder's lock is free only when all of the old house are gone (rule G5).
        if self.config.spawns && self.processes.iter().any(|p| p.alive) {
            self.queue.after(100, Ev::Boot { coordinator, life });
            return;
        }
        self.ask(coordinator, Op::Campaign);
    }

    /// Sends a transaction to the store.
    pub(crate) fn ask(&mut self, coordinator: usize, op: Op) {
        let life = self.coordinators[coordinator].life;
        let wait = 1 + self.draws.below(4);
        self.queue.after(wait, Ev::Request { coordinator, life, op });
    }

    pub(crate) fn request(&mut self, coordinator: usize, life: u32, op: Op) {
        let now = self.now();
        let sent = now;
        let node = Node::Coordinator(coordinator);
        let append = matches!(op, Op::Append { .. });
        let cut = self.net.is_cut(node, Node::Store, now);
        let (down, fault) = self.down_until;
        if cut || down > now {
            let until = if down > now { down } else { now + ANSWER_MS };
            if down > now && append {
                self.effects.credit(fault, &self.faults);
            }
            let answer = until - now < ANSWER_MS && !cut;
            if answer {
                self.queue.at(until, Ev::Request { coordinator, life, op });
            } else {
                self.queue.after(
                    ANSWER_MS,
                    Ev::Answer {
                        coordinator,
                        life,
                        op,
                        reply: None,
                        sent,
                    },
                );
            }
            return;
        }
        let (unknown, fault) = self.unknown_until;
        let lost = unknown > now && append;
        if lost {
            self.effects.credit(fault, &self.faults);
        }
        // Half of the answers that never come are to requests that came.
        if !lost || self.draws.below(2) == 0 {
            let before = self.etcd.records().len();
            let reply = self.etcd.execute(op.clone(), coordinator, life, now);
            if self.etcd.records().len() > before {
                self.recorded();
            }
            if !lost {
                let wait = 1 + self.draws.below(4);
                self.queue.after(
                    wait,
                    Ev::Answer {
                        coordinator,
                        life,
                        op,
                        reply: Some(reply),
                        sent,
                    },
                );
                return;
            }
        }
        self.queue.after(
            ANSWER_MS,
            Ev::Answer {
                coordinator,
                life,
                op,
                reply: None,
                sent,
            },
        );
    }

    pub(crate) fn answered(&mut self, coordinator: usize, life: u32, op: &Op, reply: Option<Reply>, sent: Ms) {
        let now = self.now();
        if self.coordinators[coordinator].life != life {
            return;
        }
        match (op, reply) {
            (_, Some(Reply::Elected { term })) => self.reign(coordinator, term, sent),
            (_, Some(Reply::Taken { revision })) => {
                self.queue.after(
                    100,
                    Ev::Watch {
                        coordinator,
                        life,
                        revision,
                    },
                );
            }
            (Op::Campaign, _) => self.queue.after(200, Ev::Boot { coordinator, life }),
            (_, Some(Reply::Renewed { .. })) => {
                // Counted from when it was asked for: the store may have begun to count then.
                let until = sent + self.etcd.ttl();
                let c = &mut self.coordinators[coordinator];
                c.lease_until = c.lease_until.max(until);
                self.leads_on(coordinator);
            }
            (Op::Renew { .. }, None) => {} // the local deadline decides
            (_, Some(Reply::Appended)) => {
                let c = &mut self.coordinators[coordinator];
                c.in_flight = false;
                c.records += 1;
                let told = c.writing.pop_front().is_some_and(|(_, told)| told);
                if now > sent + COMMIT_LATE_MS {
                    self.effect(Some(Node::Store));
                }
                if told {
                    self.tell(coordinator, Event::Persisted);
                }
                self.write_next(coordinator);
            }
            (_, Some(Reply::Refused)) => self.falls(coordinator, "the store refuses its term"),
            (Op::Append { .. }, None) => self.falls(coordinator, "the outcome of a write is unknown"),
        }
    }

    /// Elected: reads the store and goes on from there.
    fn reign(&mut self, coordinator: usize, term: Term, sent: Ms) {
        let now = self.now();
        let restored = Restored::from_records(self.etcd.records());
        self.checks.plan_changed();
        self.trace.note(now, "leads", &[coordinator as u64, term.0], || {
            format!("c{coordinator} in {term}")
        });
        if let Some(name) = restored.finished {
            self.ended = Some(Outcome::Succeeded { name, manifest: None });
            return;
        }
        let settings = self.settings(term);
        let ttl = self.etcd.ttl();
        let reason = "the coordinator ended before it was complete";
        let abandoned = |attempt: &u64| {
            (
                Record::CheckpointAbandoned {
                    attempt: *attempt,
                    reason: reason.into(),
                },
                false,
            )
        };
        let c = &mut self.coordinators[coordinator];
        c.term = Some(term);
        c.began = now;
        c.lease_until = sent + ttl;
        c.records = self.etcd.records().len();
        c.writing = restored.open_attempts.iter().map(abandoned).collect();
        c.brain = Some(Conductor::new(settings, restored));
        let life = c.life;
        self.queue.after(ttl / 3, Ev::Renew { coordinator, life });
        self.write_next(coordinator);
        self.leads_on(coordinator);
    }

    /// Tells the brain until when it leads, on its own clock.
    fn leads_on(&mut self, coordinator: usize) {
        let c = &self.coordinators[coordinator];
        let until = c.lease_until.saturating_sub(c.began);
        self.tell(coordinator, Event::LeadershipHeld { until });
    }

    fn settings(&self, term: Term) -> Settings {
        let c = &self.config;
        Settings {
            run: "world".into(),
            term,
            lanes: self.shape.lanes,
            total_steps: self.shape.total_steps(),
            workers_min: c.workers_min,
            workers_target: c.workers,
            workers_max: c.workers + 1,
            spawns: c.spawns,
            failure_budget_ms: c.failure_budget_ms,
            worker_errors_max: 1_000,
            checkpoint_steps: c.checkpoint_steps,
            checkpoint_ms: 0,
            keep: Keep {
                last: 2,
                every_steps: 0,
            },
            parts_total: c.parts,
            seed: 0,
            policy: argosy_common::conductor::Policy {
                outage_max_ms: if c.leases { 5 * c.failure_budget_ms } else { 0 },
                unreadable_after_ms: c.unreadable_after_ms,
                // Skipped steps are told by the worlds; a run that fails for them would only be shorter.
                nonfinite_max: 1_000,
                ..argosy_common::conductor::Policy::default()
            },
        }
    }

    /// One life of a coordinator ends; its connections with it.
    pub(crate) fn falls(&mut self, coordinator: usize, why: &str) {
        let now = self.now();
        self.trace
            .note(now, "falls", &[coordinator as u64], || format!("c{coordinator}: {why}"));
        self.effect(Some(Node::Coordinator(coordinator)));
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

    pub(crate) fn renew(&mut self, coordinator: usize, life: u32) {
        let now = self.now();
        let c = &self.coordinators[coordinator];
        let Some(term) = c.term.filter(|_| c.life == life) else {
            return;
        };
        if now >= c.lease_until {
            return self.falls(coordinator, "its lease has run out");
        }
        self.ask(coordinator, Op::Renew { term });
        let wait = self.etcd.ttl() / 3;
        self.queue.after(wait, Ev::Renew { coordinator, life });
    }

    /// A standby hears of the leader's key.
    pub(crate) fn watch(&mut self, coordinator: usize, life: u32, revision: u64) {
        let now = self.now();
        if self.coordinators[coordinator].life != life {
            return;
        }
        let (down, _) = self.down_until;
        if down > now || self.net.is_cut(Node::Store, Node::Coordinator(coordinator), now) {
            self.queue.after(
                100,
                Ev::Watch {
                    coordinator,
                    life,
                    revision,
                },
            );
            return;
        }
        self.etcd.expire(now);
        match self.etcd.watch(revision) {
            Ok(changes)
                if !changes
                    .iter()
                    .any(|c| c.deleted && R::passes_watch_event(revision, c.revision)) =>
            {
                self.queue.after(
                    100,
                    Ev::Watch {
                        coordinator,
                        life,
                        revision,
                    },
                );
            }
            Ok(_) => self.ask(coordinator, Op::Campaign),
            Err(_) => {
                self.effect(Some(Node::Coordinator(coordinator)));
                self.ask(coordinator, Op::Campaign);
            }
        }
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
            let commands = brain.step(event, now - c.began);
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
        let at = at + c.began;
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
                self.effect(None);
            }
            RunEvent::CheckpointAbandoned { attempt, reason } => {
                self.trace
                    .note(now, "abandoned", &[*attempt], || format!("attempt {attempt}: {reason}"));
                self.effect(None);
            }
            RunEvent::WorkerLost { worker, reason } => {
                self.checks.lost_one();
                self.trace
                    .note(now, "lost", &[u64::from(worker.0)], || format!("{worker}: {reason}"));
                let process = self.coordinators[coordinator]
                    .sessions
                    .get(worker)
                    .map(|s| self.sessions[*s].process);
                self.effect(process.map(Node::Process));
            }
            RunEvent::GenerationActivated { generation } => {
                self.trace
                    .note(now, "activated", &[generation.0], || generation.to_string());
            }
            _ => {}
        }
    }

    fn write_next(&mut self, coordinator: usize) {
        let c = &mut self.coordinators[coordinator];
        if c.in_flight {
            return;
        }
        let (Some((record, _)), Some(term)) = (c.writing.front(), c.term) else {
            return;
        };
        c.in_flight = true;
        let op = Op::Append {
            term,
            expected: c.records,
            record: Box::new(record.clone()),
        };
        self.ask(coordinator, op);
    }

    /// Create-only; after an unclear answer it is read back and compared (rule K3).
    pub(crate) fn put_manifest(&mut self, coordinator: usize, life: u32, attempt: u64, name: StateName, tries: u32) {
        if self.coordinators[coordinator].life != life {
            return;
        }
        let now = self.now();
        let key = format!("{attempt}/manifest.json");
        let trouble = self.trouble.filter(|(_, until, _)| *until > now);
        if let Some((_, _, fault)) = trouble {
            self.effects.credit(fault, &self.faults);
        }
        let trouble = trouble.map(|(t, _, _)| t);
        if let Some(Trouble::Slow(more)) = trouble.filter(|_| tries == 0) {
            self.queue.after(
                more,
                Ev::PutManifest {
                    coordinator,
                    life,
                    attempt,
                    name,
                    tries: 1,
                },
            );
            return;
        }
        let bits = self.bits_of(name);
        let object = Object {
            name,
            bits,
            whole: true,
        };
        let put = self.objects.put(&key, object, true, trouble);
        let same = put == Put::Exists
            && self
                .objects
                .peek(&key)
                .is_some_and(|o| o.name == name && o.bits == bits);
        if put == Put::Stored || same {
            self.tell(coordinator, Event::ManifestWritten { attempt, key });
        } else if tries < 6 {
            let wait = 50 << tries;
            self.queue.after(
                wait,
                Ev::PutManifest {
                    coordinator,
                    life,
                    attempt,
                    name,
                    tries: tries + 1,
                },
            );
        } else {
            let reason = "the object store does not take it".into();
            self.tell(coordinator, Event::ManifestFailed { attempt, reason });
        }
    }
}
