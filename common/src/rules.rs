//! The decisions on which exactly-once stands, each as one small function that a test can break.
//!
//! The brains take them as a type parameter: [`crate::conductor::Conductor`] and [`crate::follower::Follower`] run
//! [`Shipped`], which overrides nothing; a planted bug is a type in a test that overrides one function, and a simulator that
//! does not notice it proves nothing. What a trainer or a store decides by itself (frames, heals, watches) stands here too,
//! so that simulated trainers and stores can be broken in the same way.

use crate::ids::{Generation, StateName, Term};
use std::cmp::Ordering;
use std::fmt::Debug;

/// What a collective frame carries besides its payload (rule G6); a run is fenced by its secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The generation.
    pub generation: Generation,
    /// Digest of its plan.
    pub plan_hash: u64,
    /// The step it belongs to (count of applied steps before it).
    pub step: u64,
}

/// The rules. Every default is what ships.
pub trait Rules: Debug + Send + Sync + 'static {
    /// Whether a debug build stops where a brain sees one of its own invariants broken. Planted bugs turn it off: the
    /// simulator has to notice by itself.
    const ASSERTS: bool = true;

    /// Whether a message of generation `theirs` speaks of the generation at hand (rule G6).
    #[must_use]
    fn is_current(ours: Generation, theirs: Generation) -> bool {
        ours == theirs
    }

    /// Whether a message or a write of reign `theirs` is heeded by who has heard of reign `known` (rule G6).
    #[must_use]
    fn term_holds(known: Term, theirs: Term) -> bool {
        theirs >= known
    }

    /// Whether a frame belongs to the exchange that waits for it (rule G6).
    #[must_use]
    fn accepts_frame(waiting: Fence, frame: Fence) -> bool {
        waiting == frame
    }

    /// Which of two states is the truth (rule G1).
    #[must_use]
    fn compare(a: StateName, b: StateName) -> Ordering {
        a.cmp(&b)
    }

    /// Whether who holds `name` holds the state `base` and need not heal (rule G1).
    #[must_use]
    fn holds(name: StateName, base: StateName) -> bool {
        name == base
    }

    /// Whether a state counts after the last durable `Resumed`, which raised `floor` (rule G1).
    #[must_use]
    fn counts(name: StateName, floor: Generation) -> bool {
        name != StateName::INITIAL && name.applied_gen >= floor
    }

    /// Whether a state of another generation than the present one lies on the lineage, `end` being the step at which its
    /// generation was left, if it is one of the lineage (rule G1).
    #[must_use]
    fn on_lineage(name: StateName, end: Option<u64>) -> bool {
        end.is_some_and(|end| name.step <= end)
    }

    /// Whether a generation may be entered by who has closed all up to `closed` (rule G3).
    #[must_use]
    fn may_enter(closed: Generation, generation: Generation) -> bool {
        generation > closed
    }

    /// Whether the next generation may be formed when nobody acknowledged leaving the last, so many of its members are not
    /// proven gone, and its step lease has run out or not (rule G5).
    #[must_use]
    fn may_succeed(unproven: usize, lease_over: bool) -> bool {
        unproven == 0 || lease_over
    }

    /// After so long a step lease that lasts `lasts_ms` has surely run out, though its holder's clock may go more slowly: a
    /// tenth to spare (rule G5).
    #[must_use]
    fn lease_surely_over_ms(lasts_ms: u64) -> u64 {
        lasts_ms.saturating_add(lasts_ms / 10 + 1)
    }

    /// Whether a step lease of generation `leased` until `until` allows an APPLY in `generation` at `now` (rule G5).
    #[must_use]
    fn lease_allows(leased: Generation, generation: Generation, until: u64, now: u64) -> bool {
        leased == generation && now < until
    }

    /// Whether a step lease is taken from the trainer when it leaves its generation (rule G5).
    #[must_use]
    fn clears_lease() -> bool {
        true
    }

    /// How often a trainer runs APPLY when a step is complete.
    #[must_use]
    fn applies() -> u32 {
        1
    }

    /// Whether a trainer may still apply in a generation that it has closed (rule G3).
    #[must_use]
    fn applies_after_closing() -> bool {
        false
    }

    /// Whether a heal writes over the only copy instead of a second buffer (rule G7).
    #[must_use]
    fn heals_in_place() -> bool {
        false
    }

    /// Whether the event at `revision` of a watch is passed on, `seen` being the last (a watch goes on from where it was).
    #[must_use]
    fn passes_watch_event(seen: u64, revision: u64) -> bool {
        revision > seen
    }

    /// Whether a lane may be moved by plan to an owner that has it `primed` or not (rule L8).
    #[must_use]
    fn lane_may_move(primed: bool) -> bool {
        primed
    }

    /// Whether a manifest may be written with so many of its parts stored (rule K3).
    #[must_use]
    fn manifest_ready(stored: usize, parts_total: u32) -> bool {
        stored as u64 == u64::from(parts_total)
    }
}

/// The rules as they ship.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shipped;

impl Rules for Shipped {}
