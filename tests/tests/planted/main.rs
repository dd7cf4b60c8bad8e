//! Bugs planted on purpose: a simulator that does not find them proves nothing. Each is a broken rule; the worlds that find
//! it are the worlds in which the shipped rules hold.

use argosy_common::ids::{Generation, StateName, Term};
use argosy_common::rules::{Fence, Rules, Shipped};
use argosy_sim::{Config, run};
use std::cmp::Ordering;

/// A bug is found within so many seeds.
const SEEDS: u64 = 1_000;

macro_rules! bug {
    ($name:ident, $(#[$doc:meta])* $($body:tt)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        struct $name;

        impl Rules for $name {
            const ASSERTS: bool = false;
            $($body)*
        }
    };
}

bug! { NoFencing, fn term_holds(_: Term, _: Term) -> bool { true } }
bug! {
    LeaseNotCleared,
    fn clears_lease() -> bool { false }
    fn lease_allows(_: Generation, _: Generation, until: u64, now: u64) -> bool { now < until }
}
bug! { LeaseForEver, fn lease_allows(_: Generation, _: Generation, _: u64, _: u64) -> bool { true } }
bug! { AppliesTwice, fn applies() -> u32 { 2 } }
bug! { MovesUnprimed, fn lane_may_move(_: bool) -> bool { true } }
bug! { AppliesAfterClosing, fn applies_after_closing() -> bool { true } }
bug! { DropsWatchEvents, fn passes_watch_event(_: u64, _: u64) -> bool { false } }
bug! { ManifestBeforeParts, fn manifest_ready(stored: usize, total: u32) -> bool { stored as u64 + 1 >= u64::from(total) } }
bug! { AcceptsStaleFrames, fn accepts_frame(_: Fence, _: Fence) -> bool { true } }
bug! { HealsInPlace, fn heals_in_place() -> bool { true } }
bug! {
    ComparesStepsOnly,
    fn compare(a: StateName, b: StateName) -> Ordering { a.step.cmp(&b.step) }
    fn holds(name: StateName, base: StateName) -> bool { name.step == base.step }
    fn counts(name: StateName, _: Generation) -> bool { name.step > 0 }
    fn on_lineage(_: StateName, _: Option<u64>) -> bool { true }
}
bug! { SparesNothing, fn lease_surely_over_ms(lasts_ms: u64) -> u64 { lasts_ms } }
bug! { SucceedsWithoutProof, fn may_succeed(_: usize, _: bool) -> bool { true } }

/// The first seed whose world does not hold under `R`.
fn seeds_until_found<R: Rules>() -> Option<(u64, String)> {
    (0..SEEDS).find_map(|seed| {
        let violation = run::<R>(seed, &Config::for_seed(seed)).violation?;
        Some((seed, format!("{}: {}", violation.id, violation.detail)))
    })
}

macro_rules! found {
    ($($test:ident: $bug:ident;)*) => {
        $(
            #[test]
            fn $test() {
                let found = seeds_until_found::<$bug>();
                let (seed, why) = found.unwrap_or_else(|| panic!("{} lived through {SEEDS} seeds", stringify!($bug)));
                println!("SEED planted {} was found after {} seeds: {why}", stringify!($bug), seed + 1);
            }
        )*
    };
}

found! {
    planted_store_without_fencing_is_found: NoFencing;
    planted_lease_that_outlives_its_generation_is_found: LeaseNotCleared;
    planted_lane_moved_without_handover_is_found: MovesUnprimed;
    planted_lease_that_never_ends_is_found: LeaseForEver;
    planted_second_apply_is_found: AppliesTwice;
    planted_apply_after_the_report_is_found: AppliesAfterClosing;
    planted_loss_of_watch_events_is_found: DropsWatchEvents;
    planted_manifest_before_its_parts_is_found: ManifestBeforeParts;
    planted_stale_frame_is_found: AcceptsStaleFrames;
    planted_heal_in_place_is_found: HealsInPlace;
    planted_state_compared_by_its_step_only_is_found: ComparesStepsOnly;
    planted_successor_without_proof_is_found: SucceedsWithoutProof;
    planted_lease_waited_for_without_a_tenth_to_spare_is_found: SparesNothing;
}

#[test]
fn shipped_rules_hold_over_the_same_seeds() {
    for seed in 0..SEEDS {
        let violation = run::<Shipped>(seed, &Config::for_seed(seed)).violation;
        assert_eq!(violation, None, "seed {seed}; again: argosy sim --seed {seed} --story");
    }
}
