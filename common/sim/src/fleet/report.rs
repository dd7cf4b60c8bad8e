//! The figures of a fleet. All of them are simulated, except how long this machine took over a decision.

use super::baseline::{Restart, Trace, best};
use super::book::{Latency, Scale};
use super::{Fleet, Run};
use crate::queue::Ms;
use serde::Serialize;
use std::sync::atomic::{AtomicUsize, Ordering};

fn percentile(sorted: &[Ms], of_hundred: usize) -> Ms {
    let at = (sorted.len() * of_hundred).div_ceil(100).max(1) - 1;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
}

/// Goodput: undisturbed time of the steps done, as a share of the time they took.
///
/// The baselines see losses of the same rates and the same kinds on a trace of their own, some thousand of them; each takes
/// its checkpoints at the interval that is best for it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Goodput {
    /// Mean life of one worker in hours; 0: nobody is ever lost.
    pub mean_life_h: f64,
    /// Mean time between two losses in the whole fleet, in seconds; 0: nobody is ever lost.
    pub loss_every_s: f64,
    /// Losses Argosy met.
    pub losses: u64,
    /// Argosy.
    pub argosy: f64,
    /// Half of its 95 % interval, from how much parts of the run differ; none of a run of a few steps.
    pub argosy_pm: Option<f64>,
    /// All processes restart from the last checkpoint at every loss, with whoever is left (torchrun's way).
    pub stop_the_world: f64,
    /// Its interval between checkpoints in steps; 0: none is needed.
    pub stop_the_world_every_steps: u64,
    /// The job is queued again at every loss and waits for a full fleet.
    pub checkpoint_restart: f64,
    /// Its interval between checkpoints in steps; 0: none is needed.
    pub checkpoint_restart_every_steps: u64,
    /// Losses the baselines met.
    pub baseline_losses: u64,
}

/// How long this machine took over decisions of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Decisions {
    /// The kind.
    pub what: &'static str,
    /// How many.
    pub count: u64,
    /// Median in microseconds.
    pub p50_us: f64,
    /// 99th percentile in microseconds.
    pub p99_us: f64,
    /// The slowest in microseconds.
    pub max_us: f64,
}

impl Decisions {
    fn new(what: &'static str, latency: &Latency) -> Self {
        Self {
            what,
            count: latency.count(),
            p50_us: latency.ns(500) as f64 / 1e3,
            p99_us: latency.ns(990) as f64 / 1e3,
            max_us: latency.slowest_ns as f64 / 1e3,
        }
    }
}

/// What a fleet would do. Every figure is simulated but `decision_*_us`, which this machine needed while it simulated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sizing {
    /// Always true.
    pub simulated: bool,
    /// As asked.
    pub workers: u32,
    /// As asked.
    pub shards: u32,
    /// As asked.
    pub samples: u64,
    /// Lanes.
    pub lanes: u32,
    /// Global batch.
    pub batch: u32,
    /// As asked.
    pub seed: u64,
    /// Steps made.
    pub steps: u64,
    /// All steps of the pass were made.
    pub complete: bool,
    /// Time they took.
    pub hours: f64,
    /// Steps in a day.
    pub steps_per_day: f64,
    /// Passes over the data in a day.
    pub epochs_per_day: f64,
    /// Samples a second.
    pub samples_per_second: f64,
    /// At the asked failure rate, and its two baselines.
    pub goodput: Goodput,
    /// Workers lost.
    pub losses: u64,
    /// Generations formed.
    pub generations: u64,
    /// Times the run went back to a checkpoint.
    pub resumed: u64,
    /// Checkpoints committed.
    pub checkpoints: u64,
    /// From a loss to the next step applied, median.
    pub recovery_p50_ms: u64,
    /// The same, 99th percentile.
    pub recovery_p99_ms: u64,
    /// From a boundary at which somebody joins to the next step applied, median.
    pub join_p50_ms: u64,
    /// What the conductor needed for an event, median, in microseconds of this machine.
    pub decision_p50_us: f64,
    /// The same, 99th percentile.
    pub decision_p99_us: f64,
    /// The same, the slowest.
    pub decision_max_us: f64,
    /// What the slowest was about.
    pub decision_max_what: &'static str,
    /// Events the conductor decided on.
    pub decisions: u64,
    /// The same by how much of the fleet a decision is about: those over all members grow with their number.
    pub decisions_by_kind: Vec<Decisions>,
    /// Transactions on the metadata store, by second.
    pub store_writes_per_second: f64,
    /// Largest record, about.
    pub record_bytes_max: u64,
    /// Control messages to and from one worker, bytes by second, about.
    pub bytes_per_worker_per_second: f64,
    /// The most that the conductor held at once to know what was trained, by whom and where it is saved: checkpoint attempts
    /// and commits, owners of lanes, ends of generations, rows given up.
    pub ledger_bytes: u64,
    /// Shards that one worker touches in a pass, at most.
    pub shards_per_worker: u64,
    /// Events simulated.
    pub events: u64,
    /// Goodput at other failure rates; see [`rates`].
    pub rates: Vec<Goodput>,
}

impl Run<'_> {
    fn goodput(&self) -> Goodput {
        let (fleet, book) = (self.fleet, &self.book);
        let faults = &fleet.faults;
        let took = self.training_ms();
        let trace = Trace::of(fleet, took);
        let base = |pause_ms| {
            let restart = Restart {
                pause_ms,
                hang_ms: faults.hang_ms,
                save_ms: faults.save_ms,
            };
            best(&trace, fleet.step_ms, restart)
        };
        let (stop_the_world, stop_the_world_every_steps) = base(faults.restart_ms);
        let (checkpoint_restart, checkpoint_restart_every_steps) = base(faults.requeue_ms.max(faults.replace_ms));
        let argosy = (book.steps * fleet.step_ms) as f64 / took as f64;
        Goodput {
            mean_life_h: faults.mean_life_s as f64 / 3_600.0,
            loss_every_s: faults.mean_life_s as f64 / f64::from(fleet.workers.max(1)),
            losses: book.faults,
            argosy,
            argosy_pm: book.spread().map(|share| share * argosy),
            stop_the_world,
            stop_the_world_every_steps,
            checkpoint_restart,
            checkpoint_restart_every_steps,
            baseline_losses: trace.losses.len() as u64,
        }
    }

    fn training_ms(&self) -> Ms {
        self.book.training_ms(self.fleet.steps())
    }

    pub(super) fn sizing(&self) -> Sizing {
        let (fleet, book) = (self.fleet, &self.book);
        let took = self.training_ms();
        let day = 86_400_000.0 / took as f64;
        let steps_per_day = book.steps as f64 * day;
        let samples = (book.steps * u64::from(fleet.batch)).min(fleet.samples);
        let seconds = took as f64 / 1_000.0;
        let (mut recoveries, mut joins) = (book.recoveries.clone(), book.joins.clone());
        recoveries.sort_unstable();
        joins.sort_unstable();
        let mut latency = Latency::default();
        book.latency.iter().for_each(|kind| latency.merge(kind));
        let all = Decisions::new("all", &latency);
        let slowest = Scale::ALL
            .into_iter()
            .max_by_key(|scale| book.latency[*scale as usize].slowest_ns)
            .unwrap_or(Scale::One);
        let workers = fleet.workers.max(1);
        let lanes_each = u64::from(fleet.lanes.div_ceil(workers));
        let shards_each = u64::from(fleet.shards).div_ceil(u64::from(fleet.lanes.max(1))) + 1;
        Sizing {
            simulated: true,
            workers: fleet.workers,
            shards: fleet.shards,
            samples: fleet.samples,
            lanes: fleet.lanes,
            batch: fleet.batch,
            seed: fleet.seed,
            steps: book.steps,
            complete: book.steps >= fleet.steps(),
            hours: seconds / 3_600.0,
            steps_per_day,
            epochs_per_day: samples as f64 * day / fleet.samples.max(1) as f64,
            samples_per_second: samples as f64 / seconds,
            goodput: self.goodput(),
            losses: book.faults,
            generations: book.generations,
            resumed: book.resumed,
            checkpoints: book.checkpoints,
            recovery_p50_ms: percentile(&recoveries, 50),
            recovery_p99_ms: percentile(&recoveries, 99),
            join_p50_ms: percentile(&joins, 50),
            decision_p50_us: all.p50_us,
            decision_p99_us: all.p99_us,
            decision_max_us: all.max_us,
            decision_max_what: slowest.what(),
            decisions: all.count,
            decisions_by_kind: Scale::ALL
                .map(|scale| Decisions::new(scale.what(), &book.latency[scale as usize]))
                .into(),
            store_writes_per_second: book.writes as f64 / seconds,
            record_bytes_max: book.record_bytes,
            bytes_per_worker_per_second: self.all_bytes(seconds) as f64 / f64::from(workers) / seconds,
            ledger_bytes: book.ledger_bytes as u64,
            shards_per_worker: lanes_each * shards_each,
            events: book.events,
            rates: Vec::new(),
        }
    }

    /// What is said both ways, with what `lazy` left out: every report and every heartbeat. With each goes a wish for a step
    /// lease and comes its answer; those decide nothing in a fleet that is not cut off, so they are only counted.
    fn all_bytes(&self, seconds: f64) -> u64 {
        let workers = u64::from(self.fleet.workers);
        let beats = (seconds * 5_000.0 / self.fleet.faults.failure_budget_ms as f64) as u64;
        let up = self.book.up_bytes.max(workers * (160 * self.book.steps + 24 * beats));
        up + self.book.down_bytes + workers * (24 + 24) * beats
    }
}

/// Losses after which a figure of another rate is known well enough.
const RATE_LOSSES: u64 = 200;
/// A worker's steps that a figure of another rate may cost in all, and its least and most steps.
const RATE_WORKER_STEPS: u64 = 100_000_000;
const RATE_STEPS: (u64, u64) = (3_000, 1_000_000);

/// Goodput at each of these mean lives: over 200 losses, or as many steps as can be afforded. The data are taken to be
/// endless. `threads` of them are simulated at once; `done` is told how many are ready.
#[must_use]
pub fn rates(fleet: &Fleet, mean_lives_s: &[u64], threads: usize, done: &(dyn Fn(usize) + Sync)) -> Vec<Goodput> {
    let at = |life: u64| {
        let mut other = fleet.clone();
        other.faults.mean_life_s = life;
        let (least, most) = RATE_STEPS;
        other.steps_max = match life {
            0 => least, // nothing happens in more of them either
            _ => (RATE_WORKER_STEPS / u64::from(fleet.workers.max(1))).clamp(least, most),
        };
        other.samples = u64::from(fleet.batch).saturating_mul(other.steps_max);
        let mut run = Run::new(&other, &|| 0);
        run.losses_max = RATE_LOSSES;
        run.go(&mut |_, _| ());
        run.goodput()
    };
    let (next, ready) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let mut mine = Vec::new();
        while let Some((index, life)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, mean_lives_s.get(i)?)))
        {
            mine.push((index, at(*life)));
            done(ready.fetch_add(1, Ordering::Relaxed) + 1);
        }
        mine
    };
    let mut all: Vec<(usize, Goodput)> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(mean_lives_s.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let mut all = work();
        // A thread that panicked had a bug: that goes on here.
        for other in others {
            all.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        all
    });
    all.sort_unstable_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, goodput)| goodput).collect()
}
