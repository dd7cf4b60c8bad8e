//! What is counted while a fleet is simulated.

use super::flow;
use crate::queue::Ms;
use argosy_common::conductor::Command;
use argosy_common::events::{FromWorker, Record, RunEvent, ToWorker};

/// How much of a fleet a decision is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scale {
    /// Something happened to one worker, and that is noted.
    One,
    /// All members are told something: a plan, to train, to stop.
    TellsAll,
    /// Lanes are shared out over all members: for a move, or for a generation's plan.
    Forms,
}

impl Scale {
    pub(crate) const ALL: [Self; 3] = [Self::One, Self::TellsAll, Self::Forms];

    /// Of a decision about a fleet of so many workers.
    pub(super) fn of(commands: &[Command], workers: u32) -> Self {
        let forms = |c: &Command| match c {
            Command::Persist { record } => matches!(record, Record::GenerationFormed { .. }),
            Command::Announce { event } => matches!(event, RunEvent::LanesMoving { .. }),
            _ => false,
        };
        if commands.iter().any(forms) {
            Self::Forms
        } else if commands.len() > workers as usize / 2 {
            Self::TellsAll
        } else {
            Self::One
        }
    }

    pub(super) fn what(self) -> &'static str {
        match self {
            Self::One => "note what happened to one worker",
            Self::TellsAll => "tell all members something",
            Self::Forms => "share all lanes out",
        }
    }
}

/// How long decisions took, counted in buckets of an eighth of a power of two of nanoseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latency {
    buckets: Vec<u64>,
    pub(super) slowest_ns: u64,
}

impl Latency {
    fn add(&mut self, ns: u64) {
        let at = bucket(ns);
        if self.buckets.len() <= at {
            self.buckets.resize(at + 1, 0);
        }
        self.buckets[at] += 1;
        self.slowest_ns = self.slowest_ns.max(ns);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.buckets.resize(self.buckets.len().max(other.buckets.len()), 0);
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.slowest_ns = self.slowest_ns.max(other.slowest_ns);
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// So many of a thousand took at most so long, to an eighth; never more than the slowest.
    pub(super) fn ns(&self, of_thousand: u64) -> u64 {
        let wanted = (self.count() * of_thousand).div_ceil(1_000);
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return edge(at).min(self.slowest_ns);
            }
        }
        0
    }
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

/// When every so many steps were done: how much the figures of parts of a run differ says how far the whole can be trusted.
#[derive(Clone, Debug)]
struct Marks {
    every: u64,
    at: Vec<Ms>,
}

/// So many marks at most; then every second is dropped.
const MARKS: usize = 64;

impl Default for Marks {
    fn default() -> Self {
        Self {
            every: 1,
            at: Vec::new(),
        }
    }
}

impl Marks {
    fn step(&mut self, step: u64, now: Ms) {
        if !step.is_multiple_of(self.every) {
            return;
        }
        self.at.push(now);
        if self.at.len() == MARKS {
            let mut nth = 0;
            self.at.retain(|_| {
                nth += 1;
                nth % 2 == 0
            });
            self.every *= 2;
        }
    }

    /// Half of the 95 % interval of the mean time between marks, as a share of it.
    fn spread(&self) -> Option<f64> {
        let parts: Vec<f64> = self.at.windows(2).map(|w| (w[1] - w[0]) as f64).collect();
        let n = parts.len() as f64;
        if parts.len() < 8 {
            return None;
        }
        let mean = parts.iter().sum::<f64>() / n;
        let variance = parts.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (mean > 0.0).then(|| 2.0 * (variance / n).sqrt() / mean)
    }
}

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
    /// The most that the conductor's ledgers held.
    pub(crate) ledger_bytes: usize,
    pub(crate) broken_at: Option<Ms>,
    pub(crate) boundary_at: Option<Ms>,
    first_step_at: Option<Ms>,
    last_step_at: Ms,
    marks: Marks,
    pub(super) recoveries: Vec<Ms>,
    pub(super) joins: Vec<Ms>,
    pub(super) latency: [Latency; 3],
    pub(super) down_bytes: u64,
    pub(super) up_bytes: u64,
    pub(super) record_bytes: u64,
}

impl Book {
    pub(super) fn decision(&mut self, ns: u64, scale: Scale) {
        self.latency[scale as usize].add(ns);
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
        if step > self.steps {
            self.steps = step;
            self.last_step_at = now;
            self.marks.step(step, now);
        }
        self.first_step_at.get_or_insert(now.saturating_sub(step_ms));
        let boundary = self.boundary_at.take();
        if let Some(at) = self.broken_at.take() {
            self.recoveries.push(now - at);
        } else if let Some(at) = boundary {
            self.joins.push(now - at);
        }
    }

    /// From the first step's begin to the last one's end, or to where a run that did not make `steps` was left. Warming up a
    /// whole fleet once is nobody's goodput, nor is the last checkpoint.
    pub(super) fn training_ms(&self, steps: u64) -> Ms {
        let from = self.first_step_at.unwrap_or(0);
        let until = if self.steps >= steps {
            self.last_step_at
        } else {
            self.elapsed_ms
        };
        until.saturating_sub(from).max(1)
    }

    /// Half of the 95 % interval of the goodput, as a share of it; none from too few steps.
    pub(super) fn spread(&self) -> Option<f64> {
        self.marks.spread()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_percentiles_are_within_an_eighth() {
        let mut latency = Latency::default();
        for ns in 1..=100_000u64 {
            latency.add(ns);
        }
        for (of_thousand, exact) in [(500, 50_000.0), (990, 99_000.0)] {
            let ratio = latency.ns(of_thousand) as f64 / exact;
            assert!((0.99..1.13).contains(&ratio), "{of_thousand}: {ratio}");
        }
        let mut both = Latency::default();
        both.merge(&latency);
        both.merge(&latency);
        assert_eq!((both.count(), both.ns(500)), (200_000, latency.ns(500)));
    }

    #[test]
    fn marks_of_a_long_run_are_few_and_tell_its_spread() {
        let mut even = Marks::default();
        let mut uneven = Marks::default();
        let mut draws = argosy_common::rng::Draws::new(1, argosy_common::rng::Purpose::Jitter, 0, 0);
        let mut at = 0;
        for step in 1..=100_000 {
            even.step(step, step * 10);
            at += crate::spot::wait(10, &mut draws);
            uneven.step(step, at);
        }
        assert!((MARKS / 2..MARKS).contains(&even.at.len()), "{}", even.at.len());
        assert_eq!(even.spread(), Some(0.0));
        // A step's time spreads as much as it lasts: two over the root of a hundred thousand.
        let spread = uneven.spread().expect("many steps");
        assert!((0.003..0.013).contains(&spread), "{spread}");
        assert_eq!(Marks::default().spread(), None);
    }
}
