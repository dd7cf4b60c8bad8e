//! When a cloud takes its machines back: by itself (Poisson), many of a zone at once (correlated), by the hour (diurnal).
//!
//! Exact integers: waiting times are geometric on a grid of milliseconds, drawn by inversion over a table of powers of two,
//! so that every machine draws the same trace.

use crate::queue::Ms;
use argosy_common::rng::{Draws, Purpose};

/// Shape of a spot trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trace {
    /// Each worker by itself, at a constant rate.
    Poisson,
    /// Half of the reclaims take a tenth of a zone with them.
    Correlated,
    /// The rate swings over a period between a quarter and seven quarters of its mean.
    Diurnal,
}

impl Trace {
    /// All shapes.
    pub const ALL: [Self; 3] = [Self::Poisson, Self::Correlated, Self::Diurnal];
}

/// How often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Workers there are.
    pub workers: u32,
    /// Mean life of one worker.
    pub mean_life_ms: Ms,
    /// Zones they are spread over.
    pub zones: u32,
    /// Period of the diurnal swing.
    pub period_ms: Ms,
}

/// One reclaim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reclaim {
    /// When.
    pub at_ms: Ms,
    /// Whom, as a place in the fleet.
    pub worker: u32,
}

/// Q32 fixed-point `-ln(u)` of a uniform 32-bit draw: the exponential law in integers.
fn exponential_q32(draws: &mut Draws) -> u64 {
    // -ln(u) = ln2 * (leading zeros) - ln(mantissa in [1, 2)); the mantissa's logarithm by squaring, bit by bit.
    let u = draws.next_u64() | 1;
    let shift = u.leading_zeros();
    let mut mantissa = u128::from(u << shift); // in [2^63, 2^64)
    let mut log2_fraction: u64 = 0; // Q32
    for bit in (0..32).rev() {
        mantissa = (mantissa * mantissa) >> 63;
        if mantissa >= 1 << 64 {
            mantissa >>= 1;
            log2_fraction |= 1 << bit;
        }
    }
    const LN2_Q32: u128 = 2_977_044_472;
    // u / 2^64 = mantissa * 2^-(shift + 1), mantissa in [1, 2).
    let log2 = (u128::from(shift + 1) << 32) - u128::from(log2_fraction);
    ((log2 * LN2_Q32) >> 32) as u64
}

/// An exponential waiting time of mean `mean` milliseconds, rounded down.
pub(crate) fn wait(mean: Ms, draws: &mut Draws) -> Ms {
    ((u128::from(mean) * u128::from(exponential_q32(draws))) >> 32) as Ms
}

/// Reclaims without end, in order of time.
#[derive(Clone, Debug)]
pub struct Reclaims {
    trace: Trace,
    draws: Draws,
    workers: u64,
    zones: u64,
    burst: u64,
    mean: Ms,
    half_period: Ms,
    at: Ms,
    /// The rest of a burst: how many, and the place of the next.
    left: (u64, u64),
}

impl Reclaims {
    /// The trace of a seed.
    #[must_use]
    pub fn new(trace: Trace, rates: &Rates, seed: u64) -> Self {
        let workers = u64::from(rates.workers.max(1));
        let burst = u64::from((rates.workers / rates.zones.max(1) / 10).max(2));
        // A correlated trace has fewer occasions, each of which takes (1 + burst) / 2 on average.
        let per_occasion = match trace {
            Trace::Correlated => (1 + burst).div_ceil(2),
            Trace::Poisson | Trace::Diurnal => 1,
        };
        let mean = (rates.mean_life_ms * per_occasion / workers).max(1);
        // The diurnal trace is thinned from its highest rate.
        let mean = match trace {
            Trace::Diurnal => (mean * 4 / 7).max(1),
            Trace::Poisson | Trace::Correlated => mean,
        };
        Self {
            trace,
            draws: Draws::new(seed, Purpose::Jitter, 0x7370, trace as u64),
            workers,
            zones: u64::from(rates.zones.max(1)),
            burst,
            mean,
            half_period: (rates.period_ms / 2).max(1),
            at: 0,
            left: (0, 0),
        }
    }
}

impl Iterator for Reclaims {
    type Item = Reclaim;

    fn next(&mut self) -> Option<Reclaim> {
        loop {
            let (count, place) = self.left;
            if count > 0 {
                // Places of one zone are `zones` apart.
                self.left = (count - 1, (place + self.zones) % self.workers);
                let worker = place as u32;
                return Some(Reclaim { at_ms: self.at, worker });
            }
            self.at += wait(self.mean, &mut self.draws).max(1);
            let first = self.draws.below(self.workers);
            let count = match self.trace {
                Trace::Poisson => 1,
                Trace::Correlated if self.draws.below(2) == 0 => 1,
                Trace::Correlated => self.burst,
                Trace::Diurnal => {
                    // A triangle wave from 1 to 7 of 7 and back.
                    let half = self.half_period;
                    let phase = self.at % (2 * half);
                    let up = phase.min(2 * half - phase);
                    u64::from(self.draws.below(7) < 1 + 6 * up / half)
                }
            };
            self.left = (count, first);
        }
    }
}

/// Reclaims before `until_ms`, in order of time.
#[must_use]
pub fn reclaims(trace: Trace, rates: &Rates, until_ms: Ms, seed: u64) -> Vec<Reclaim> {
    Reclaims::new(trace, rates, seed)
        .take_while(|reclaim| reclaim.at_ms < until_ms)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates {
        workers: 1_000,
        mean_life_ms: 10_000_000,
        zones: 4,
        period_ms: 1_000_000,
    };

    #[test]
    fn traces_of_every_shape_reclaim_at_about_the_rate_asked_for() {
        for trace in Trace::ALL {
            let count = reclaims(trace, &RATES, 10_000_000, 5).len() as f64;
            // A thousand workers, one mean life: about a thousand reclaims; the triangle's mean is 4/7 of its top.
            assert!((850.0..1_200.0).contains(&count), "{trace:?}: {count}");
        }
    }

    #[test]
    fn exponential_waits_have_their_mean_and_spread() {
        let mut draws = Draws::new(1, Purpose::Jitter, 0, 0);
        let waits: Vec<f64> = (0..50_000).map(|_| wait(1_000_000, &mut draws) as f64 / 1e6).collect();
        let mean = waits.iter().sum::<f64>() / waits.len() as f64;
        let variance = waits.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / waits.len() as f64;
        assert!(
            (0.98..1.02).contains(&mean) && (0.95..1.05).contains(&variance),
            "{mean} {variance}"
        );
    }

    #[test]
    fn correlated_reclaims_come_in_bursts_and_diurnal_ones_by_the_hour() {
        let correlated = reclaims(Trace::Correlated, &RATES, 10_000_000, 5);
        let together = correlated.windows(2).filter(|w| w[0].at_ms == w[1].at_ms).count();
        assert!(together * 2 > correlated.len(), "{together} of {}", correlated.len());
        let diurnal = reclaims(Trace::Diurnal, &RATES, 10_000_000, 5);
        let at_noon = |r: &&Reclaim| (250_000..750_000).contains(&(r.at_ms % 1_000_000));
        let noon = diurnal.iter().filter(at_noon).count();
        assert!(noon * 5 > diurnal.len() * 3, "{noon} of {}", diurnal.len());
    }
}
