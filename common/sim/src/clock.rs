//! Clocks of machines: no two run equally fast. A step lease is counted by its holder's and waited for by the coordinator's,
//! with a tenth to spare (rule G5); here they differ by up to nine hundredths.

use crate::queue::Ms;
use argosy_common::rng::Draws;

/// At most so many thousandths too fast or too slow. Real ones are a hundred times better.
const DRIFT_MAX: u64 = 45;

/// A clock that began with the world, or with its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clock {
    /// What it counts in a thousand milliseconds.
    rate: u64,
}

impl Default for Clock {
    fn default() -> Self {
        Self { rate: 1_000 }
    }
}

impl Clock {
    pub(crate) fn drawn(draws: &mut Draws) -> Self {
        Self {
            rate: 1_000 - DRIFT_MAX + draws.below(2 * DRIFT_MAX + 1),
        }
    }

    /// What it shows after so long.
    pub(crate) fn shows(self, after: Ms) -> Ms {
        after * self.rate / 1_000
    }

    /// After how long it shows `at`, or more for the first time.
    pub(crate) fn when(self, at: Ms) -> Ms {
        (at * 1_000).div_ceil(self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use argosy_common::rng::Purpose;

    #[test]
    fn clock_of_any_rate_shows_a_moment_when_it_has_come_and_not_before() {
        let mut draws = Draws::new(1, Purpose::Jitter, 0, 0);
        let mut rates = std::collections::BTreeSet::new();
        for at in 0..2_000 {
            let clock = Clock::drawn(&mut draws);
            let when = clock.when(at);
            assert!(clock.shows(when) >= at && (when == 0 || clock.shows(when - 1) < at));
            rates.insert(clock.rate);
        }
        assert_eq!((rates.first(), rates.last()), (Some(&955), Some(&1_045)));
    }
}
