//! Waiting longer after each failure, with jitter that is drawn from a key: the same failures wait the same everywhere, and
//! two workers that failed together do not come back together.

use crate::rng::{Draws, Purpose};

/// How long to wait between tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first wait is at most so long.
    pub first_ms: u64,
    /// No wait is longer.
    pub max_ms: u64,
    /// What jitter is drawn from: the run's seed.
    pub seed: u64,
    /// Who waits: a worker's id, 0 for the coordinator.
    pub who: u32,
}

impl Backoff {
    /// The wait after failure number `failures` (from 1) in a row: between half and all of `first_ms * 2^(failures-1)`, which
    /// stops growing at `max_ms`. 0 without a failure.
    #[must_use]
    pub fn wait_ms(&self, failures: u32) -> u64 {
        if failures == 0 {
            return 0;
        }
        let doublings = (failures - 1).min(32);
        let full = self.first_ms.saturating_mul(1u64 << doublings).min(self.max_ms);
        let half = full / 2;
        half + Draws::new(self.seed, Purpose::Jitter, self.who, u64::from(failures)).below(full - half + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn backoff_any_failure_waits_between_half_and_all_and_the_same_each_time(
            first in 1u64..10_000, max in 1u64..1_000_000, seed: u64, who: u32, failures in 1u32..200,
        ) {
            let backoff = Backoff { first_ms: first, max_ms: max, seed, who };
            let full = (u128::from(first) << (failures - 1).min(32)).min(u128::from(max)) as u64;
            let wait = backoff.wait_ms(failures);
            prop_assert!(full / 2 <= wait && wait <= full, "{wait} of {full}");
            prop_assert_eq!(backoff.wait_ms(failures), wait);
        }
    }

    #[test]
    fn backoff_of_many_workers_that_fail_together_spreads_them() {
        let waits: std::collections::BTreeSet<u64> = (0..100)
            .map(|who| {
                Backoff {
                    first_ms: 1_000,
                    max_ms: 60_000,
                    seed: 1,
                    who,
                }
                .wait_ms(3)
            })
            .collect();
        assert!(waits.len() > 80, "{} different waits", waits.len());
    }
}
