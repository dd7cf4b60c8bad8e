//! A world: processes, coordinators, a network and two stores on one virtual clock. Everything that happens is an event of
//! one queue; after each the invariants are looked at.

use crate::Outcome;
use crate::check::{Checks, Violation};
use crate::config::Config;
use crate::data::Data;
use crate::effects::{self, Effects};
use crate::etcd::{Etcd, Op, Reply};
use crate::faults::Fault;
use crate::leader::Coordinator;
use crate::net::{Net, Node};
use crate::objects::{Objects, Trouble};
use crate::process::{Frame, Process, Stage, Upload};
use crate::queue::{Ms, Queue};
use crate::sick::{Poison, Unreadable};
use crate::trace::Trace;
use argosy_common::events::{FromWorker, ToWorker};
use argosy_common::ids::{Generation, StateName, Term, WorkerId};
use argosy_common::rng::{Draws, Purpose};
use argosy_common::rules::Rules;
use argosy_common::shape::{RunShape, SourceShape};
use argosy_common::steplog::StepRecord;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A world that has not ended so long after its last fault never will.
const PATIENCE_MS: Ms = 30 * 60_000;
/// More events than any world of a sane size has.
const EVENTS_MAX: u64 = 5_000_000;

/// What happens.
#[derive(Debug)]
pub(crate) enum Ev {
    /// The platform or the parent starts a process.
    Start {
        process: usize,
    },
    Connect {
        process: usize,
    },
    Warm {
        process: usize,
    },
    Beat {
        process: usize,
    },
    FollowerTick {
        process: usize,
    },
    Down {
        session: usize,
        message: Box<ToWorker>,
        number: u64,
    },
    Up {
        session: usize,
        message: Box<FromWorker>,
        number: u64,
    },
    LostAtProcess {
        session: usize,
    },
    LostAtCoordinator {
        session: usize,
    },
    /// The parent reaped a process.
    Reaped {
        process: usize,
        coordinator: usize,
        life: u32,
    },
    Frame {
        to: usize,
        frame: Box<Frame>,
    },
    PeerGone {
        to: usize,
        generation: Generation,
        from: usize,
    },
    /// The trainer's own work is done.
    WorkDone {
        process: usize,
        token: u64,
    },
    Primed {
        process: usize,
        generation: Generation,
        lanes: Vec<u32>,
    },
    HealDone {
        process: usize,
        token: u64,
        took: Option<(StateName, u64)>,
    },
    Uploading {
        process: usize,
        upload: Box<Upload>,
    },
    /// A coordinator process starts.
    Boot {
        coordinator: usize,
        life: u32,
    },
    Tick {
        coordinator: usize,
        life: u32,
        at: Ms,
    },
    Request {
        coordinator: usize,
        life: u32,
        op: Op,
    },
    Answer {
        coordinator: usize,
        life: u32,
        op: Op,
        reply: Option<Reply>,
        sent: Ms,
    },
    Renew {
        coordinator: usize,
        life: u32,
    },
    Watch {
        coordinator: usize,
        life: u32,
        revision: u64,
    },
    PutManifest {
        coordinator: usize,
        life: u32,
        attempt: u64,
        name: StateName,
        tries: u32,
    },
    Strike {
        fault: usize,
    },
    Kill {
        process: usize,
    },
}

/// One end-to-end stream between a process and a coordinator.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) process: usize,
    pub(crate) coordinator: usize,
    pub(crate) life: u32,
    pub(crate) worker: WorkerId,
    pub(crate) at_process: bool,
    pub(crate) at_coordinator: bool,
    /// When the last message of each direction arrives, and its number.
    pub(crate) down: (Ms, u64),
    pub(crate) up: (Ms, u64),
    /// Highest number delivered in each direction.
    pub(crate) seen: (u64, u64),
}

/// A member that dies, or loses its connections, in a phase.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Doom {
    pub(crate) fault: usize,
    pub(crate) stage: Stage,
    pub(crate) who: u32,
    pub(crate) dies: bool,
}

/// See the module.
pub(crate) struct World<R: Rules> {
    pub(crate) config: Config,
    pub(crate) shape: RunShape,
    pub(crate) queue: Queue<Ev>,
    pub(crate) draws: Draws,
    pub(crate) net: Net,
    pub(crate) etcd: Etcd,
    pub(crate) objects: Objects,
    pub(crate) processes: Vec<Process<R>>,
    pub(crate) coordinators: Vec<Coordinator<R>>,
    pub(crate) sessions: Vec<Session>,
    pub(crate) data: Data,
    pub(crate) logs: BTreeMap<String, Vec<StepRecord>>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) effects: Effects,
    pub(crate) dooms: Vec<Doom>,
    /// The next process that heals from another loses its source, on behalf of this fault.
    pub(crate) heal_doom: Option<usize>,
    /// What befalls the object store, until when, on behalf of which fault.
    pub(crate) trouble: Option<(Trouble, Ms, usize)>,
    /// Transactions get no answer until then.
    pub(crate) unknown_until: (Ms, usize),
    /// The store does not answer until then.
    pub(crate) down_until: (Ms, usize),
    pub(crate) poison: Vec<Poison>,
    pub(crate) unreadable: Option<Unreadable>,
    /// The next process that is started dies again, or begins with an old state.
    pub(crate) flapping: Option<Ms>,
    pub(crate) old_states: Option<u32>,
    pub(crate) checks: Checks,
    pub(crate) trace: Trace,
    pub(crate) ended: Option<argosy_common::events::Outcome>,
    pub(crate) events: u64,
}

impl<R: Rules> World<R> {
    pub(crate) fn new(seed: u64, config: Config, faults: Vec<Fault>) -> Self {
        let shape = shape(seed, &config);
        let data = Data::new(&shape);
        let ttl = config.failure_budget_ms.max(2_000);
        let coordinators = (0..config.coordinators.max(1))
            .map(|_| Coordinator::default())
            .collect();
        let trace = Trace::new(config.log);
        Self {
            shape,
            queue: Queue::new(),
            draws: Draws::new(seed, Purpose::Jitter, 0x776f, 0),
            net: Net::new(seed, 1),
            etcd: Etcd::new(ttl, !R::term_holds(Term(2), Term(1))),
            objects: Objects::default(),
            processes: Vec::new(),
            coordinators,
            sessions: Vec::new(),
            checks: Checks::default(),
            data,
            logs: BTreeMap::new(),
            faults,
            effects: Effects::default(),
            dooms: Vec::new(),
            heal_doom: None,
            trouble: None,
            unknown_until: (0, 0),
            down_until: (0, 0),
            flapping: None,
            poison: Vec::new(),
            unreadable: None,
            old_states: None,
            trace,
            ended: None,
            events: 0,
            config,
        }
    }

    pub(crate) fn now(&self) -> Ms {
        self.queue.now()
    }

    /// Runs to the end of the run or to the first violation. A brain that stops at an assertion of its own has found one.
    pub(crate) fn run(mut self, seed: u64) -> Outcome {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.go())) {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned()));
            let said = said.unwrap_or_else(|| "a panic without a word".to_owned());
            let word = said.split(' ').next().unwrap_or_default();
            let id = if word.starts_with("INV") {
                word.to_owned()
            } else {
                "PANIC".to_owned()
            };
            self.violate(&id, said);
        }
        self.into_outcome(seed)
    }

    fn go(&mut self) {
        for (fault, at) in self.faults.iter().map(|f| f.at_ms).enumerate() {
            self.queue.at(at, Ev::Strike { fault });
        }
        for coordinator in 0..self.coordinators.len() {
            self.queue
                .after(coordinator as Ms * 10, Ev::Boot { coordinator, life: 0 });
        }
        if !self.config.spawns {
            for worker in 1..=self.config.workers {
                let late = if worker == self.config.workers {
                    self.config.last_comes_ms
                } else {
                    0
                };
                self.platform_starts(self.config.step_ms + late);
            }
        }
        let last_fault = self.faults.iter().map(|f| f.at_ms + f.for_ms).max().unwrap_or(0);
        while self.ended.is_none() && self.checks.violation.is_none() {
            let Some(event) = self.queue.pop() else {
                self.violate("LIVE", "nothing will ever happen again".into());
                break;
            };
            self.events += 1;
            if self.now() > last_fault + PATIENCE_MS || self.events > EVENTS_MAX {
                let views: Vec<_> = self.coordinators.iter().filter_map(Coordinator::view).collect();
                let detail = format!("no end {} s after the last fault: {views:?}", PATIENCE_MS / 1000);
                self.violate("LIVE", detail);
                break;
            }
            self.dispatch(event);
        }
        self.verdict();
    }

    fn dispatch(&mut self, event: Ev) {
        if let Some(until) = self.sleeper(&event) {
            self.queue.at(until, event);
            return;
        }
        match event {
            Ev::Start { process } => self.start(process),
            Ev::Connect { process } => self.connect(process),
            Ev::Warm { process } => self.warmed_up(process),
            Ev::Beat { process } => self.beat(process),
            Ev::FollowerTick { process } => self.follower_ticked(process),
            Ev::Down {
                session,
                message,
                number,
            } => self.arrives_down(session, *message, number),
            Ev::Up {
                session,
                message,
                number,
            } => self.arrives_up(session, *message, number),
            Ev::LostAtProcess { session } => self.lost_at_process(session),
            Ev::LostAtCoordinator { session } => self.lost_at_coordinator(session),
            Ev::Reaped {
                process,
                coordinator,
                life,
            } => self.reaped(process, coordinator, life),
            Ev::Frame { to, frame } => self.frame_arrives(to, *frame),
            Ev::PeerGone { to, generation, from } => self.peer_gone(to, generation, from),
            Ev::WorkDone { process, token } => self.work_done(process, token),
            Ev::Primed {
                process,
                generation,
                lanes,
            } => self.primed(process, generation, lanes),
            Ev::HealDone { process, token, took } => self.heal_done(process, token, took),
            Ev::Uploading { process, upload } => self.upload(process, *upload),
            Ev::Boot { coordinator, life } => self.boot(coordinator, life),
            Ev::Tick { coordinator, life, at } => self.ticked(coordinator, life, at),
            Ev::Request { coordinator, life, op } => self.request(coordinator, life, op),
            Ev::Answer {
                coordinator,
                life,
                op,
                reply,
                sent,
            } => self.answered(coordinator, life, &op, reply, sent),
            Ev::Renew { coordinator, life } => self.renew(coordinator, life),
            Ev::Watch {
                coordinator,
                life,
                revision,
            } => self.watch(coordinator, life, revision),
            Ev::PutManifest {
                coordinator,
                life,
                attempt,
                name,
                tries,
            } => {
                self.put_manifest(coordinator, life, attempt, name, tries);
            }
            Ev::Strike { fault } => self.strike(fault),
            Ev::Kill { process } => self.kill(process),
        }
    }

    /// A stopped process takes nothing in; what was meant for it waits in its sockets, in order.
    fn sleeper(&self, event: &Ev) -> Option<Ms> {
        let process = match event {
            Ev::Down { session, .. } | Ev::LostAtProcess { session } => Some(self.sessions[*session].process),
            Ev::Beat { process }
            | Ev::FollowerTick { process }
            | Ev::Warm { process }
            | Ev::WorkDone { process, .. }
            | Ev::HealDone { process, .. }
            | Ev::Primed { process, .. }
            | Ev::Uploading { process, .. }
            | Ev::Frame { to: process, .. }
            | Ev::PeerGone { to: process, .. } => Some(*process),
            _ => None,
        };
        let coordinator = match event {
            Ev::Up { session, .. } | Ev::LostAtCoordinator { session } => Some(self.sessions[*session].coordinator),
            Ev::Tick { coordinator, .. }
            | Ev::Answer { coordinator, .. }
            | Ev::Renew { coordinator, .. }
            | Ev::Watch { coordinator, .. }
            | Ev::Reaped { coordinator, .. }
            | Ev::PutManifest { coordinator, .. } => Some(*coordinator),
            _ => None,
        };
        let mut until = process.map_or(0, |p| self.processes[p].asleep_until);
        if let Ev::WorkDone { process, .. }
        | Ev::Warm { process }
        | Ev::Primed { process, .. }
        | Ev::HealDone { process, .. } = event
        {
            until = until.max(self.processes[*process].stuck_until);
        }
        until = until.max(coordinator.map_or(0, |c| self.coordinators[c].asleep_until));
        (until > self.now()).then_some(until)
    }

    pub(crate) fn violate(&mut self, id: &str, detail: String) {
        let (at_ms, event) = (self.now(), self.events);
        self.trace.note(at_ms, "violated", &[], || format!("{id}: {detail}"));
        self.checks.violation.get_or_insert(Violation {
            id: id.into(),
            detail,
            at_ms,
            event,
        });
    }

    /// Something changed at `node`: perhaps a fault has to answer for it.
    pub(crate) fn effect(&mut self, node: Node) {
        let now = self.now();
        self.effects.saw(&[node], now, &self.faults);
    }

    /// A leader gives something up for `reason`. Who is named had a part in it; where nobody planned it, the leader and the
    /// store had one as well.
    pub(crate) fn effect_of(&mut self, coordinator: usize, reason: &str) {
        let now = self.now();
        let named = effects::named(reason);
        let processes = self.processes.iter().enumerate();
        let mut nodes: Vec<Node> = processes
            .filter(|(_, p)| p.worker.is_some_and(|w| named.contains(&w)))
            .map(|(process, _)| Node::Process(process))
            .collect();
        if !effects::is_planned(reason) {
            nodes.extend([Node::Coordinator(coordinator), Node::Store]);
        }
        self.effects.saw(&nodes, now, &self.faults);
    }

    fn into_outcome(self, seed: u64) -> Outcome {
        let mut injected = BTreeMap::new();
        for fault in self.faults.iter().filter(|f| f.at_ms <= self.queue.now()) {
            *injected.entry(fault.kind).or_default() += 1;
        }
        let generations = self.etcd.records().iter().filter(|r| is_formed(r)).count() as u64;
        Outcome {
            seed,
            hash: self.trace.hash(),
            events: self.events,
            sim_ms: self.queue.now(),
            generations,
            checks: self.checks.count,
            injected,
            effective: self.effects.counts(),
            violation: self.checks.violation,
            log: self.trace.into_lines(),
        }
    }
}

fn is_formed(record: &argosy_common::events::Record) -> bool {
    matches!(record, argosy_common::events::Record::GenerationFormed { .. })
}

/// A little data set that makes every pass uneven.
fn shape(seed: u64, config: &Config) -> RunShape {
    let batch = config.lanes * config.lane_rows;
    RunShape {
        seed,
        sources: vec![SourceShape {
            name: "s".into(),
            shard_rows: vec![11, 23, 0, 14],
        }],
        batch,
        lanes: config.lanes,
        window_factor: 3,
        // One position less than whole steps: the last step is partial.
        total_positions: u64::from(batch) * config.steps - 1,
    }
}
