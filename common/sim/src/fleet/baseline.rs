//! What trainers without elasticity do with the same losses.

use crate::queue::Ms;
use crate::spot::Reclaim;

/// How one of them comes back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Restart {
    /// From the loss to the first step again.
    pub(super) pause_ms: Ms,
    /// It needs the full fleet: the lost machine must have been replaced.
    pub(super) replace_ms: Ms,
}

/// Wall time of `steps` steps of `step_ms` when every loss throws the run back to its last checkpoint; `None` when it gets
/// nowhere within `horizon`.
pub(super) fn elapsed(
    reclaims: &[Reclaim],
    steps: u64,
    step_ms: Ms,
    every: u64,
    restart: Restart,
    horizon: Ms,
) -> Option<Ms> {
    let mut saved = 0;
    let mut since = 0; // training goes on from step `saved` at this time
    for reclaim in reclaims.iter().filter(|r| r.at_ms <= horizon) {
        let done = saved + reclaim.at_ms.saturating_sub(since) / step_ms;
        if done >= steps {
            return Some(since + (steps - saved) * step_ms);
        }
        saved = saved.max(done / every * every);
        since = since.max(reclaim.at_ms + restart.pause_ms.max(restart.replace_ms));
    }
    let end = since + (steps - saved) * step_ms;
    (end <= horizon).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_costs_the_steps_since_the_checkpoint_and_the_pause() {
        let restart = Restart {
            pause_ms: 50,
            replace_ms: 0,
        };
        let at = |at_ms| Reclaim { at_ms, worker: 0 };
        assert_eq!(elapsed(&[], 10, 10, 4, restart, 1_000), Some(100));
        // Seven steps done, thrown back to four, 50 ms pause, six steps to go.
        assert_eq!(elapsed(&[at(75)], 10, 10, 4, restart, 1_000), Some(75 + 50 + 60));
        // A loss in the pause begins it again.
        assert_eq!(
            elapsed(&[at(75), at(100)], 10, 10, 4, restart, 1_000),
            Some(100 + 50 + 60)
        );
        let often: Vec<Reclaim> = (1..100).map(|i| at(i * 30)).collect();
        assert_eq!(elapsed(&often, 10, 10, 4, restart, 2_000), None, "it gets nowhere");
    }
}
