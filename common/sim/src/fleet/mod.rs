//! What a fleet would do: the real conductor and ten thousand real followers over a step of fixed cost, months in seconds.
//!
//! `lazy` leaves out what only repeats: heartbeats of those who live on, and all reports of a step but the first. `exact`
//! sends them all. Both make the same decisions at the same moments; a test compares them.

mod baseline;
mod book;
mod faults;
mod flow;
mod report;

use crate::queue::{Ms, Queue};
use crate::spot::{Rates, Reclaims};
use argosy_common::conductor::{Conductor, Event, Policy, Restored, Settings};
use argosy_common::events::{FromWorker, ToWorker};
use argosy_common::follower::Follower;
use argosy_common::hash::mix64;
use argosy_common::ids::{Generation, StateName, Term, WorkerId};
use argosy_common::ledger::Keep;
use argosy_common::plan::Plan;
use argosy_common::rules::Shipped;
use std::collections::BTreeMap;

pub use faults::{FaultsError, FaultsFile};
pub use report::{Decisions, Goodput, Sizing, rates};

/// A fleet that has not come further in so long, beyond many times its undisturbed length, never will.
const GIVE_UP_MS: Ms = 6 * 3_600_000;

/// How much is simulated of what only repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Heartbeats and all but the first report of a step are left out.
    Lazy,
    /// Every message.
    Exact,
}

/// A fleet and its job.
#[derive(Clone, Debug, PartialEq)]
pub struct Fleet {
    /// Workers wanted.
    pub workers: u32,
    /// Shards of the data set.
    pub shards: u32,
    /// Samples of one pass.
    pub samples: u64,
    /// Lanes `Q`.
    pub lanes: u32,
    /// Global batch `B`.
    pub batch: u32,
    /// Length of a step when all workers are there.
    pub step_ms: Ms,
    /// Stop after so many steps of the pass; 0: the whole pass.
    pub steps_max: u64,
    /// What befalls it.
    pub faults: FaultsFile,
    /// Seed of everything drawn.
    pub seed: u64,
    /// See [`Mode`].
    pub mode: Mode,
}

impl Fleet {
    /// Steps to simulate.
    #[must_use]
    pub fn steps(&self) -> u64 {
        let pass = self.samples.div_ceil(u64::from(self.batch.max(1)));
        if self.steps_max == 0 {
            pass
        } else {
            pass.min(self.steps_max)
        }
    }

    /// A step when the busiest of the members holds `lanes` lanes: a tenth of it does not depend on that.
    fn step_at(&self, lanes: u32) -> Ms {
        let full = u64::from(self.lanes.div_ceil(self.workers.max(1)).max(1));
        (self.step_ms / 10 + self.step_ms * 9 * u64::from(lanes) / (10 * full)).max(1)
    }

    /// Reclaims of workers, without end; there must be some.
    fn reclaims(&self, seed: u64) -> Reclaims {
        let rates = Rates {
            workers: self.workers,
            mean_life_ms: self.faults.mean_life_s * 1_000,
            zones: self.faults.zones,
            period_ms: self.faults.period_s * 1_000,
        };
        Reclaims::new(self.faults.trace, &rates, seed)
    }

    /// Whether a loss comes without a word: the machine vanishes.
    fn is_silent(&self, seed: u64, index: u64) -> bool {
        let one_in = u64::from(self.faults.silent_one_in);
        one_in > 0 && drawn(seed, index, 2).is_multiple_of(one_in)
    }
}

/// What happens. Millions of these wait in a heap that moves them about, so what is large is boxed.
#[derive(Debug)]
enum Ev {
    Join { place: u32 },
    Warm { worker: usize },
    Beat { worker: usize, number: u64 },
    Down { worker: usize, message: Box<ToWorker> },
    Up { worker: usize, message: Box<FromWorker> },
    Lost { worker: usize },
    PeersGone { generation: Generation },
    FollowerTick { worker: usize },
    Formed { worker: usize, generation: Generation },
    Uploaded { worker: usize, message: Box<FromWorker> },
    Strike { place: u32, index: u64 },
    Dies { worker: usize, silent: bool },
    Step { generation: Generation, token: u64 },
    Persisted,
    ManifestWritten { attempt: u64 },
    Tick { at: Ms },
}

#[derive(Debug)]
struct Worker {
    alive: bool,
    place: u32,
    follower: Follower<Shipped>,
    name: StateName,
    inside: Option<Generation>,
    stop_after: Option<u64>,
    /// It falls silent then, as the trace has it: its last signs of life decide when that is noticed.
    silent_at: Ms,
    copies: Option<(u64, u64, Vec<u32>)>,
    /// The attempt whose state was copied last.
    copied: Option<(u64, StateName)>,
}

/// The generation that trains, as a whole: its members go in step.
#[derive(Debug)]
struct Ring {
    plan: Plan,
    members: Vec<usize>,
    running: u32,
    steps: u64,
    step_ms: Ms,
    token: u64,
    broken: bool,
}

/// A fleet under way.
pub(crate) struct Run<'a> {
    fleet: &'a Fleet,
    queue: Queue<Ev>,
    brain: Conductor<Shipped>,
    workers: Vec<Worker>,
    /// Who sits in each place of the fleet.
    places: Vec<Option<usize>>,
    ring: Option<Ring>,
    /// What is still to come of the trace.
    reclaims: Option<Reclaims>,
    /// Enough is known after so many losses.
    losses_max: u64,
    armed: Option<Ms>,
    decisions: Vec<Decision>,
    pub(crate) book: book::Book,
    ended: bool,
    /// Nanoseconds since some moment; what a decision takes is measured with it and decides nothing.
    clock: &'a dyn Fn() -> u64,
}

/// Simulates one pass, or as much of it as asked for. `clock` gives nanoseconds; `progress` is told steps now and then.
#[must_use]
pub fn size(fleet: &Fleet, clock: &dyn Fn() -> u64, progress: &mut dyn FnMut(u64, u64)) -> Sizing {
    let mut run = Run::new(fleet, clock);
    run.go(progress);
    run.sizing()
}

/// Something that the conductor decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// When.
    pub at_ms: Ms,
    /// What it was about.
    pub what: &'static str,
    /// Its numbers: a plan's hash, a generation, an attempt, a worker, a step.
    pub numbers: (u64, u64),
}

/// What the conductor of a fleet decides: equal in both modes.
#[must_use]
pub fn decisions(fleet: &Fleet) -> Vec<Decision> {
    let mut run = Run::new(fleet, &|| 0);
    run.go(&mut |_, _| ());
    run.decisions
}

impl<'a> Run<'a> {
    fn new(fleet: &'a Fleet, clock: &'a dyn Fn() -> u64) -> Self {
        let steps = fleet.steps();
        let settings = Settings {
            run: "fleet".into(),
            term: Term(1),
            lanes: fleet.lanes,
            total_steps: steps,
            workers_min: fleet.workers * 9 / 10,
            workers_target: fleet.workers,
            workers_max: fleet.workers,
            spawns: false,
            failure_budget_ms: fleet.faults.failure_budget_ms,
            worker_errors_max: 1_000_000,
            checkpoint_steps: fleet.faults.checkpoint_steps,
            checkpoint_ms: 0,
            keep: Keep {
                last: 3,
                every_steps: 0,
            },
            parts_total: fleet.faults.parts(),
            seed: fleet.seed,
            // A fleet is modelled at steps and decisions; its leases cost one small answer a heartbeat.
            policy: Policy {
                outage_max_ms: 0,
                ..Policy::default()
            },
        };
        Self {
            fleet,
            queue: Queue::new(),
            brain: Conductor::new(settings, Restored::default()),
            workers: Vec::new(),
            places: vec![None; fleet.workers as usize],
            ring: None,
            reclaims: (fleet.faults.mean_life_s > 0).then(|| fleet.reclaims(fleet.seed)),
            losses_max: u64::MAX,
            armed: None,
            decisions: Vec::new(),
            book: book::Book::default(),
            ended: false,
            clock,
        }
    }

    fn go(&mut self, progress: &mut dyn FnMut(u64, u64)) {
        for place in 0..self.fleet.workers {
            self.queue
                .after(1 + self.drawn(place.into(), 1) % 2_000, Ev::Join { place });
        }
        self.next_strike(0);
        let steps = self.fleet.steps();
        let mut events = 0u64;
        let limit = steps.saturating_mul(self.fleet.step_ms).saturating_mul(64) + GIVE_UP_MS;
        while !self.ended && self.book.faults < self.losses_max {
            // Some fleets get nowhere: too few are ever there at once.
            let Some(event) = self.queue.pop().filter(|_| self.queue.now() < limit) else {
                break;
            };
            events += 1;
            if events.is_multiple_of(100_000) {
                progress(self.book.steps, steps);
            }
            self.happens(event);
        }
        self.book.events = events;
        self.book.elapsed_ms = self.queue.now();
    }

    /// The trace's next reclaim; it never ends before the run does.
    fn next_strike(&mut self, index: u64) {
        if let Some(reclaim) = self.reclaims.as_mut().and_then(Iterator::next) {
            let place = reclaim.worker;
            self.queue.at(reclaim.at_ms, Ev::Strike { place, index });
        }
    }

    /// A number drawn for `what` about `who`.
    fn drawn(&self, who: u64, what: u64) -> u64 {
        drawn(self.fleet.seed, who, what)
    }

    fn happens(&mut self, event: Ev) {
        match event {
            Ev::Join { place } => self.join(place),
            Ev::Warm { worker } => self.warm(worker),
            Ev::Beat { worker, number } => self.beat(worker, number),
            Ev::Down { worker, message } => self.follow(worker, argosy_common::follower::Event::Heard(*message)),
            Ev::Up { worker, message } => {
                let id = self.id(worker);
                self.tell(Event::Said {
                    worker: id,
                    message: *message,
                });
            }
            Ev::Lost { worker } => {
                let id = self.id(worker);
                self.tell(Event::StreamLost { worker: id });
            }
            Ev::PeersGone { generation } => self.peers_gone(generation),
            Ev::FollowerTick { worker } => self.follow(worker, argosy_common::follower::Event::Ticked),
            Ev::Formed { worker, generation } => self.formed(worker, generation),
            Ev::Uploaded { worker, message } => self.follow(worker, argosy_common::follower::Event::Passed(*message)),
            Ev::Strike { place, index } => {
                self.next_strike(index + 1);
                self.strike(place, index);
            }
            Ev::Dies { worker, silent } => self.dies(worker, silent),
            Ev::Step { generation, token } => self.stepped(generation, token),
            Ev::Persisted => self.tell(Event::Persisted),
            Ev::ManifestWritten { attempt } => {
                let key = format!("{attempt}/manifest.json");
                self.tell(Event::ManifestWritten { attempt, key });
            }
            Ev::Tick { at } => {
                if self.armed == Some(at) {
                    self.armed = None;
                }
                self.tell(Event::Ticked);
            }
        }
    }

    fn id(&self, worker: usize) -> WorkerId {
        WorkerId(worker as u32 + 1)
    }
}

/// A number drawn for `what` about `who`.
fn drawn(seed: u64, who: u64, what: u64) -> u64 {
    mix64(seed ^ mix64(who << 8 | what))
}

/// Lanes of the busiest member.
fn busiest(plan: &Plan) -> u32 {
    let mut held: BTreeMap<u32, u32> = BTreeMap::new();
    for owner in plan.lanes.iter() {
        *held.entry(*owner).or_default() += 1;
    }
    held.values().max().copied().unwrap_or(1)
}
