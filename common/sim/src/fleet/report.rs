//! The figures of a fleet. All of them are simulated, except how long this machine took over a decision.

use super::baseline::{Restart, elapsed};
use super::{Fleet, Run, flow};
use crate::queue::Ms;
use argosy_common::events::{FromWorker, Record, ToWorker};
use serde::Serialize;

/// What is counted on the way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    pub(crate) events: u64,
    pub(crate) elapsed_ms: Ms,
    pub(crate) steps: u64,
    pub(crate) faults: u64,
    pub(crate) generations: u64,
    pub(crate) resumed: u64,
    pub(crate) checkpoints: u64,
    pub(crate) writes: u64,
    pub(crate) written_until: Ms,
    pub(crate) ledger_bytes: usize,
    pub(crate) broken_at: Option<Ms>,
    pub(crate) boundary_at: Option<Ms>,
    first_step_at: Option<Ms>,
    recoveries: Vec<Ms>,
    joins: Vec<Ms>,
    /// Nanoseconds of decisions, counted in buckets of an eighth of a power of two.
    latency: Vec<u64>,
    slowest_ns: u64,
    down_bytes: u64,
    up_bytes: u64,
    record_bytes: u64,
}

/// Of a bucket's eighth: the upper edge in nanoseconds.
fn edge(bucket: usize) -> u64 {
    let (power, eighth) = (bucket / 8, bucket as u64 % 8);
    (8 + eighth + 1) << power >> 3
}

fn bucket(ns: u64) -> usize {
    let ns = ns.max(1);
    let power = 63 - ns.leading_zeros() as usize;
    let eighth = if power >= 3 {
        (ns >> (power - 3)) & 7
    } else {
        (ns << (3 - power)) & 7
    };
    power * 8 + eighth as usize
}

impl Book {
    pub(super) fn decision(&mut self, ns: u64) {
        let at = bucket(ns);
        if self.latency.len() <= at {
            self.latency.resize(at + 1, 0);
        }
        self.latency[at] += 1;
        self.slowest_ns = self.slowest_ns.max(ns);
    }

    fn latency_ns(&self, of_thousand: u64) -> u64 {
        let all: u64 = self.latency.iter().sum();
        let wanted = (all * of_thousand).div_ceil(1_000);
        let mut seen = 0;
        for (at, count) in self.latency.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return edge(at);
            }
        }
        0
    }

    pub(super) fn sent(&mut self, message: &ToWorker) {
        self.down_bytes += flow::wire_bytes(message);
    }

    pub(super) fn heard(&mut self, message: &FromWorker) {
        self.up_bytes += if matches!(message, FromWorker::StepDone { .. }) {
            160
        } else {
            24
        };
    }

    pub(super) fn record_bytes(&mut self, record: &Record) {
        if let Record::GenerationFormed { members, lanes, .. } = record {
            self.record_bytes = self
                .record_bytes
                .max(120 + 6 * members.len() as u64 + 6 * lanes.len() as u64);
        }
    }

    /// A step was applied by all.
    pub(super) fn stepped(&mut self, step: u64, now: Ms, step_ms: Ms) {
        self.steps = self.steps.max(step);
        self.first_step_at.get_or_insert(now.saturating_sub(step_ms));
        let boundary = self.boundary_at.take();
        if let Some(at) = self.broken_at.take() {
            self.recoveries.push(now - at);
        } else if let Some(at) = boundary {
            self.joins.push(now - at);
        }
    }
}

fn percentile(sorted: &[Ms], of_hundred: usize) -> Ms {
    let at = (sorted.len() * of_hundred).div_ceil(100).max(1) - 1;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
}

/// Goodput: undisturbed time of the steps done, as a share of the time they took. Each three are simulated over one trace.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Goodput {
    /// Mean life of one worker in hours; 0: nobody is ever lost.
    pub mean_life_h: f64,
    /// Losses in that time.
    pub losses: u64,
    /// Argosy.
    pub argosy: f64,
    /// All processes restart from the last checkpoint at every loss (torchrun's way).
    pub stop_the_world: f64,
    /// The job is queued again at every loss and waits for a full fleet.
    pub checkpoint_restart: f64,
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
    /// Events the conductor decided on.
    pub decisions: u64,
    /// Transactions on the metadata store, by second.
    pub store_writes_per_second: f64,
    /// Largest record, about.
    pub record_bytes_max: u64,
    /// Control messages to and from one worker, bytes by second, about.
    pub bytes_per_worker_per_second: f64,
    /// What the checkpoint ledger holds in memory.
    pub ledger_bytes: u64,
    /// Shards that one worker touches in a pass, at most.
    pub shards_per_worker: u64,
    /// Events simulated.
    pub events: u64,
    /// Goodput at other failure rates, over at most a few hundred steps each.
    pub rates: Vec<Goodput>,
}

impl Run<'_> {
    fn goodput(&self) -> Goodput {
        let fleet = self.fleet;
        let book = &self.book;
        let ideal = book.steps * fleet.step_ms;
        let took = self.training_ms();
        let horizon = took.max(1) * 1_000;
        let share = |elapsed: Option<Ms>| elapsed.map_or(0.0, |ms| ideal as f64 / ms.max(1) as f64);
        let base = |pause_ms, replace_ms| {
            let restart = Restart { pause_ms, replace_ms };
            let every = fleet.faults.checkpoint_steps;
            share(elapsed(
                &self.reclaims,
                book.steps,
                fleet.step_ms,
                every,
                restart,
                horizon,
            ))
        };
        Goodput {
            mean_life_h: fleet.faults.mean_life_s as f64 / 3_600.0,
            losses: book.faults,
            argosy: share(Some(took)),
            stop_the_world: base(fleet.faults.restart_ms, 0),
            checkpoint_restart: base(fleet.faults.requeue_ms, fleet.faults.replace_ms),
        }
    }

    /// From the first step's begin to the end: warming up a whole fleet once is nobody's goodput.
    fn training_ms(&self) -> Ms {
        let from = self.book.first_step_at.unwrap_or(0);
        self.book.elapsed_ms.saturating_sub(from).max(1)
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
            decision_p50_us: book.latency_ns(500) as f64 / 1e3,
            decision_p99_us: book.latency_ns(990) as f64 / 1e3,
            decision_max_us: book.slowest_ns as f64 / 1e3,
            decisions: book.latency.iter().sum(),
            store_writes_per_second: book.writes as f64 / seconds,
            record_bytes_max: book.record_bytes,
            bytes_per_worker_per_second: (book.down_bytes + self.all_up_bytes(seconds)) as f64
                / f64::from(workers)
                / seconds,
            ledger_bytes: book.ledger_bytes as u64,
            shards_per_worker: lanes_each * shards_each,
            events: book.events,
            rates: Vec::new(),
        }
    }

    /// What workers say, with what `lazy` left out: every report and every heartbeat.
    fn all_up_bytes(&self, seconds: f64) -> u64 {
        let workers = u64::from(self.fleet.workers);
        let beats = (seconds * 5_000.0 / self.fleet.faults.failure_budget_ms as f64) as u64;
        self.book.up_bytes.max(workers * (160 * self.book.steps + 24 * beats))
    }
}

/// Goodput at each of these mean lives, over at most `steps` steps.
#[must_use]
pub fn rates(fleet: &Fleet, mean_lives_s: &[u64], steps: u64) -> Vec<Goodput> {
    let at = |life: &u64| {
        let mut other = fleet.clone();
        other.faults.mean_life_s = *life;
        other.steps_max = steps;
        let mut run = Run::new(&other, &|| 0);
        run.go(&mut |_, _| ());
        run.goodput()
    };
    mean_lives_s.iter().map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_percentiles_are_within_an_eighth() {
        let mut book = Book::default();
        for ns in 1..=100_000u64 {
            book.decision(ns);
        }
        for (of_thousand, exact) in [(500, 50_000.0), (990, 99_000.0)] {
            let ratio = book.latency_ns(of_thousand) as f64 / exact;
            assert!((0.99..1.13).contains(&ratio), "{of_thousand}: {ratio}");
        }
    }
}
