//! What trainers without elasticity do with losses of the same rates.
//!
//! Each gets what its keeper would give it: a trace of its own of some thousand losses, so that neither luck nor the end of
//! a trace decides, and the best interval between checkpoints. Young (1974) and Daly (2006) put that near
//! `sqrt(2 * save * mean time between losses)`, which holds while losses are rare against saves and restarts; here the best
//! of a geometric grid round it is taken, by trying each on the very trace it is judged by.

use super::Fleet;
use crate::queue::Ms;
use argosy_common::hash::mix64;

/// How one of them comes back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Restart {
    /// From the loss being noticed to the first step again.
    pub(super) pause_ms: Ms,
    /// A silent loss is noticed so much later: every process waits in a collective for who is gone.
    pub(super) hang_ms: Ms,
    /// Nobody trains while a checkpoint is saved.
    pub(super) save_ms: Ms,
}

/// A loss on a baseline's trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) at_ms: Ms,
    pub(super) silent: bool,
}

/// Losses of a baseline, up to `until_ms`.
#[derive(Clone, Debug, Default)]
pub(super) struct Trace {
    pub(super) losses: Vec<Loss>,
    pub(super) until_ms: Ms,
}

/// So many losses make a figure that another seed would not change much.
const LOSSES: usize = 2_000;
/// Never more windows, however rare losses are.
const WINDOWS: u64 = 5_000;

impl Trace {
    /// The window that Argosy trained through, again and again with other seeds: the same hours of the same days.
    pub(super) fn of(fleet: &Fleet, window_ms: Ms) -> Self {
        let window_ms = window_ms.max(1);
        let mut trace = Self::default();
        if fleet.faults.mean_life_s == 0 {
            trace.until_ms = window_ms;
            return trace;
        }
        for window in 0..WINDOWS {
            let seed = mix64(fleet.seed.wrapping_add(1) ^ mix64(window));
            let reclaims = fleet.reclaims(seed).take_while(|r| r.at_ms < window_ms);
            let losses = reclaims.enumerate().map(|(index, reclaim)| Loss {
                at_ms: window * window_ms + reclaim.at_ms,
                silent: fleet.is_silent(seed, index as u64),
            });
            trace.losses.extend(losses);
            trace.until_ms += window_ms;
            if trace.losses.len() >= LOSSES {
                break;
            }
        }
        trace
    }
}

/// Share of a trace's time in which steps were made that lasted, with a checkpoint every `every` steps.
pub(super) fn goodput(trace: &Trace, step_ms: Ms, every: u64, restart: Restart) -> f64 {
    let cycle = every * step_ms + restart.save_ms;
    // Of training for so long: steps in saved checkpoints, and all steps.
    let steps_in = |ms: Ms| {
        let saved = ms / cycle * every;
        (saved, saved + (ms % cycle / step_ms).min(every))
    };
    let (mut saved, mut noticed, mut since) = (0, 0, 0);
    for loss in &trace.losses {
        let at = loss.at_ms;
        if let Some(trained) = at.checked_sub(since) {
            saved += steps_in(trained).0;
            noticed = at + if loss.silent { restart.hang_ms } else { 0 };
        } else if at >= noticed || !loss.silent {
            // In the pause processes are started and connected: who is missing then is seen at once, and all begin again.
            // While all hang for one that fell silent, another that breaks its connections ends that at once.
            noticed = at;
        }
        since = noticed + restart.pause_ms;
    }
    // What is not saved yet at the end is not lost either.
    let steps = saved + steps_in(trace.until_ms.saturating_sub(since)).1;
    (steps * step_ms) as f64 / trace.until_ms.max(1) as f64
}

/// The best goodput and its interval in steps. 0: never saved, because nobody is ever lost.
pub(super) fn best(trace: &Trace, step_ms: Ms, restart: Restart) -> (f64, u64) {
    if trace.losses.is_empty() {
        return (1.0, 0);
    }
    let most = (trace.until_ms / step_ms).max(1);
    // Steps of about an eighth, so that the best lies within a sixteenth of one that was tried.
    let grid = std::iter::successors(Some(1u64), |every| Some(every + (every / 8).max(1)));
    let tried = grid
        .take_while(|every| *every <= most)
        .map(|every| (goodput(trace, step_ms, every, restart), every));
    tried
        .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)))
        .unwrap_or((0.0, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RESTART: Restart = Restart {
        pause_ms: 50,
        hang_ms: 30,
        save_ms: 4,
    };

    fn trace(losses: &[(Ms, bool)], until_ms: Ms) -> Trace {
        let loss = |(at_ms, silent): &(Ms, bool)| Loss {
            at_ms: *at_ms,
            silent: *silent,
        };
        Trace {
            losses: losses.iter().map(loss).collect(),
            until_ms,
        }
    }

    #[test]
    fn loss_costs_the_steps_since_the_checkpoint_the_pause_and_the_time_until_it_is_seen() {
        let steps = |losses: &[(Ms, bool)], until| {
            let trace = trace(losses, until);
            (goodput(&trace, 10, 4, RESTART) * until as f64 / 10.0).round()
        };
        // 44 ms are four steps and their save.
        assert_eq!(steps(&[], 88), 8.0);
        assert_eq!(steps(&[], 87), 8.0, "all made, the last ones not saved yet");
        // Six steps made, thrown back to four, 50 ms pause, 75 ms are left.
        assert_eq!(steps(&[(75, false)], 200), 4.0 + 7.0);
        assert_eq!(steps(&[(75, true)], 200), 4.0 + 4.0, "45 ms are left");
        // A loss in the pause begins it again, silent or not.
        assert_eq!(steps(&[(75, false), (100, true)], 200), 4.0 + 4.0);
        // While all hang, a second silent one changes nothing, and one that is seen ends the hanging.
        assert_eq!(steps(&[(75, true), (76, true)], 200), 4.0 + 4.0);
        assert_eq!(steps(&[(75, true), (76, false)], 200), 4.0 + 7.0);
        // A save that a loss falls into is lost.
        assert_eq!(steps(&[(43, false)], 43 + 50), 0.0);
    }

    #[test]
    fn best_interval_of_rare_losses_is_near_the_one_of_young_and_daly() {
        let gap = 1_000_000.0f64;
        let mut draws = argosy_common::rng::Draws::new(7, argosy_common::rng::Purpose::Jitter, 0, 0);
        let mut at = 0;
        let losses: Vec<(Ms, bool)> = (0..4_000)
            .map(|_| {
                at += crate::spot::wait(gap as Ms, &mut draws);
                (at, false)
            })
            .collect();
        let restart = Restart {
            pause_ms: 1_000,
            hang_ms: 0,
            save_ms: 500,
        };
        let trace = trace(&losses, at);
        let (share, every) = best(&trace, 10, restart);
        let young = (2.0 * 500.0 * gap).sqrt() / 10.0;
        assert!(
            (every as f64 / young).ln().abs() < 0.4,
            "{every} steps, Young has {young}"
        );
        // Daly's estimate of what is lost with it: save / interval + interval / (2 gap) + restart / gap.
        let lost = 500.0 / (young * 10.0) + young * 10.0 / (2.0 * gap) + 1_000.0 / gap;
        assert!((1.0 - share - lost).abs() < 0.005, "{share}, expected {}", 1.0 - lost);
    }

    proptest! {
        /// The plain reference: the machine, millisecond by millisecond.
        #[test]
        fn goodput_any_trace_matches_a_machine_told_millisecond_by_millisecond(
            gaps in proptest::collection::vec((1u64..120, any::<bool>()), 0..12), step_ms in 1u64..9, every in 1u64..6,
            pause_ms in 0u64..40, hang_ms in 0u64..30, save_ms in 0u64..7, rest in 0u64..100,
        ) {
            let restart = Restart { pause_ms, hang_ms, save_ms };
            let mut at = 0;
            let losses: Vec<(Ms, bool)> = gaps.iter().map(|(gap, silent)| { at += gap; (at, *silent) }).collect();
            let until = at + rest + 1;
            // Steps that are saved, steps since, progress in the step or the save at hand; what is left of hanging and pause.
            let (mut saved, mut fresh, mut progress) = (0u64, 0u64, 0u64);
            let (mut hangs, mut pauses) = (0u64, 0u64);
            for now in 0..until {
                for (_, silent) in losses.iter().filter(|(at, _)| *at == now) {
                    (fresh, progress) = (0, 0);
                    match (hangs, pauses, silent) {
                        (0, 0, true) => (hangs, pauses) = (hang_ms, pause_ms),
                        (1.., _, true) => (),
                        _ => (hangs, pauses) = (0, pause_ms),
                    }
                }
                if hangs > 0 {
                    hangs -= 1;
                    continue;
                }
                if pauses > 0 {
                    pauses -= 1;
                    continue;
                }
                progress += 1;
                if fresh < every && progress == step_ms {
                    (fresh, progress) = (fresh + 1, 0);
                }
                if fresh == every && progress >= save_ms {
                    (saved, fresh, progress) = (saved + every, 0, 0);
                }
            }
            let told = (saved + fresh) * step_ms;
            let share = goodput(&trace(&losses, until), step_ms, every, restart);
            prop_assert!((share - told as f64 / until as f64).abs() < 1e-9, "{share} for {told} of {until}");
        }
    }
}
