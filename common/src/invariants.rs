//! What must hold whatever happens, with ids: one module for the simulator, for debug assertions and for the audit.
//!
//! Every check is a function of plain values, so that a simulated world, a brain and a reader of logs can all call it. The
//! same ids stand in `ARCHITECTURE.md`; a test compares who uses which.

use crate::ids::{Generation, StateName, Term, WorkerId};
use crate::plan::{Plan, StateSource};
use crate::rules::Rules;
use serde::Serialize;
use std::cmp::Ordering;
use std::fmt;

macro_rules! invariants {
    ($($id:ident = $number:literal, $meaning:literal;)*) => {
        /// An invariant. `Display` writes `INV7`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum InvariantId {
            $(#[doc = $meaning] $id = $number,)*
        }

        impl InvariantId {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$id,)*];

            /// One line.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$id => $meaning,)* }
            }

            /// How the source spells it.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$id => stringify!($id),)* }
            }
        }
    };
}

invariants! {
    EqualNamesEqualBits = 1, "Two states with one name have equal bits (G1).";
    NothingAfterClosed = 2, "Who has closed a generation applies nothing more in it (G3).";
    LanesOwned = 3, "Every lane of a plan has exactly one owner, and the owner is a member.";
    DurableFirst = 4, "A generation is durable before anyone hears of it (G5).";
    GenerationsGrow = 5, "Generations are unique and grow (G5).";
    TruthIsNewest = 6, "A generation starts from the newest state that counts, or from the manifest if that is newer (G1).";
    OneStepLost = 7, "A generation that was followed by another trained at most one step beyond the other's base (G3, G5).";
    HeadComplete = 8, "The head names a manifest whose parts are all stored and of one state, and never goes back (K1, K3).";
    ExactlyOnce = 9, "Along the lineage every position is trained, masked, quarantined or skipped exactly once (AU2).";
    LoggedFirst = 10, "A step is logged before its name is reported or served (AU1).";
    CleanSources = 11, "States are taken over from clean holders of the base only, whole, and into a second buffer (G2, G7).";
    LeaseHeld = 12, "Nothing is applied without a step lease of its generation that has not run out (G5).";
    LanesHandedOver = 13, "A lane that leaves a living member by plan is primed at its new owner first (L8).";
    CountsAddUp = 14, "positions = trained + masked + quarantined + skipped (M4).";
    TermsFence = 15, "What a reign writes or says after a later one has begun changes nothing (G6).";
    OneAttempt = 16, "One checkpoint attempt is open at a time, and no attempt's number is used twice (K3).";
}

impl fmt::Display for InvariantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "INV{}", *self as u32)
    }
}

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{id} does not hold: {detail}; {meaning}", meaning = id.meaning())]
pub struct Violation {
    /// Which.
    pub id: InvariantId,
    /// What was seen.
    pub detail: String,
}

/// `Ok` or why not.
pub type Checked = Result<(), Violation>;

/// A check of one's own: `id` is violated unless `holds`.
///
/// # Errors
/// The violation, with `detail`.
pub fn ensure(id: InvariantId, holds: bool, detail: impl FnOnce() -> String) -> Checked {
    if holds {
        Ok(())
    } else {
        Err(Violation { id, detail: detail() })
    }
}

/// Stops a debug build whose shipped brain broke an invariant. A planted bug is left for the simulator to find.
pub fn debug_assert_holds<R: Rules>(check: impl FnOnce() -> Checked) {
    if cfg!(debug_assertions)
        && R::ASSERTS
        && let Err(violation) = check()
    {
        debug_assert!(false, "{violation}");
    }
}

/// INV1: `bits` under `name`, where `known` were seen under it before.
///
/// # Errors
/// [`InvariantId::EqualNamesEqualBits`].
pub fn equal_bits(name: StateName, known: u64, bits: u64) -> Checked {
    ensure(InvariantId::EqualNamesEqualBits, known == bits, || {
        format!("{name} has bits {known:016x} and {bits:016x}")
    })
}

/// INV2: a member applied `name`, having closed all generations up to `closed`.
///
/// # Errors
/// [`InvariantId::NothingAfterClosed`].
pub fn open_when_applied(worker: WorkerId, closed: Generation, name: StateName) -> Checked {
    ensure(InvariantId::NothingAfterClosed, name.applied_gen > closed, || {
        format!("{worker} applied {name} after it had closed {closed}")
    })
}

/// INV3: `plan` gives each of `lanes` lanes one owner among its members, who are all different.
///
/// # Errors
/// [`InvariantId::LanesOwned`].
pub fn lanes_owned(plan: &Plan, lanes: u32) -> Checked {
    let mut members: Vec<WorkerId> = plan.members.iter().map(|m| m.worker).collect();
    members.sort_unstable();
    members.dedup();
    let owned = plan.lanes.iter().all(|owner| (*owner as usize) < plan.members.len());
    let holds = plan.lanes.len() == lanes as usize && owned && members.len() == plan.members.len();
    ensure(InvariantId::LanesOwned, holds, || {
        format!(
            "{} of {} members: owners {:?}",
            plan.generation,
            members.len(),
            plan.lanes
        )
    })
}

/// INV4: somebody hears of `generation` while `durable` is the highest recorded.
///
/// # Errors
/// [`InvariantId::DurableFirst`].
pub fn durable_first(generation: Generation, durable: Generation) -> Checked {
    ensure(InvariantId::DurableFirst, generation <= durable, || {
        format!("{generation} was sent out while the newest record is of {durable}")
    })
}

/// INV5: `next` follows `previous`.
///
/// # Errors
/// [`InvariantId::GenerationsGrow`].
pub fn generations_grow(previous: Generation, next: Generation) -> Checked {
    ensure(InvariantId::GenerationsGrow, next > previous, || {
        format!("{next} was formed after {previous}")
    })
}

/// INV6: `base` is the newest of `counting` (the clean names that count) and the head's name.
///
/// # Errors
/// [`InvariantId::TruthIsNewest`].
pub fn truth_is_newest(
    base: StateName,
    counting: impl IntoIterator<Item = StateName>,
    head: Option<StateName>,
) -> Checked {
    let newest = counting.into_iter().chain(head).max().unwrap_or(StateName::INITIAL);
    ensure(InvariantId::TruthIsNewest, base.cmp(&newest) == Ordering::Equal, || {
        format!("the base is {base}, the newest state is {newest}")
    })
}

/// INV7: `trained` is the highest count of steps applied in a generation whose successor starts at `base`.
///
/// # Errors
/// [`InvariantId::OneStepLost`].
pub fn one_step_lost(generation: Generation, trained: u64, base: StateName) -> Checked {
    ensure(InvariantId::OneStepLost, trained <= base.step + 1, || {
        format!("{generation} trained up to step {trained}, its successor starts from {base}")
    })
}

/// INV8: a manifest of `parts_total` parts that names `parts`, each with its state; `head` is the one before.
///
/// # Errors
/// [`InvariantId::HeadComplete`].
pub fn head_complete(
    name: StateName,
    parts: &[(u32, StateName)],
    parts_total: u32,
    head: Option<StateName>,
) -> Checked {
    let mut indices: Vec<u32> = parts.iter().map(|(index, _)| *index).collect();
    indices.sort_unstable();
    let complete = indices.iter().copied().eq(0..parts_total);
    let one_state = parts.iter().all(|(_, of)| *of == name);
    let forward = head.is_none_or(|head| name > head);
    ensure(InvariantId::HeadComplete, complete && one_state && forward, || {
        let others = parts.iter().filter(|(_, of)| *of != name).count();
        let before = head.map_or("none".into(), |h| h.to_string());
        format!("{name} with parts {indices:?} of {parts_total}, {others} of other states, after {before}")
    })
}

/// INV10: `worker` reports or serves `name`; `logged` says whether its log has it.
///
/// # Errors
/// [`InvariantId::LoggedFirst`].
pub fn logged_first(worker: WorkerId, name: StateName, logged: bool) -> Checked {
    ensure(InvariantId::LoggedFirst, logged || name == StateName::INITIAL, || {
        format!("{worker} showed {name}, which nobody has logged")
    })
}

/// INV11: a state is taken over as `base`; `holds` is the source's clean name, `None` if it is dirty or half written.
///
/// # Errors
/// [`InvariantId::CleanSources`].
pub fn clean_source(base: StateName, holds: Option<StateName>) -> Checked {
    ensure(InvariantId::CleanSources, holds == Some(base), || match holds {
        Some(name) => format!("{base} was taken from a holder of {name}"),
        None => format!("{base} was taken from a state that is not clean"),
    })
}

/// INV11 for a plan: if peers are the source, one of them holds the base.
///
/// # Errors
/// [`InvariantId::CleanSources`].
pub fn plan_has_source(plan: &Plan) -> Checked {
    let needs = plan.source == StateSource::Peers;
    ensure(
        InvariantId::CleanSources,
        !needs || plan.holders().next().is_some(),
        || {
            format!(
                "{} takes {} from peers, but all of them heal",
                plan.generation, plan.base
            )
        },
    )
}

/// INV12: something is applied at `now` under a lease of `leased` until `until`, in generation `generation`.
///
/// # Errors
/// [`InvariantId::LeaseHeld`].
pub fn lease_held(generation: Generation, leased: Generation, until: u64, now: u64) -> Checked {
    ensure(InvariantId::LeaseHeld, generation == leased && now < until, || {
        format!("{generation} at {now} ms, under a lease of {leased} until {until} ms")
    })
}

/// INV13: `lane` moves by plan from a member that stays; `primed` says whether its new owner had its first rows.
///
/// # Errors
/// [`InvariantId::LanesHandedOver`].
pub fn lane_handed_over(lane: u32, from: WorkerId, to: WorkerId, primed: bool) -> Checked {
    ensure(InvariantId::LanesHandedOver, primed, || {
        format!("lane {lane} moved from {from} to {to}, where it was not primed")
    })
}

/// INV14: the counts of one step, or of a whole run.
///
/// # Errors
/// [`InvariantId::CountsAddUp`].
pub fn counts_add_up(positions: u64, trained: u64, masked: u64, quarantined: u64, skipped: u64) -> Checked {
    let sum = trained + masked + quarantined + skipped;
    ensure(InvariantId::CountsAddUp, sum == positions, || {
        format!(
            "{positions} positions, but {trained} trained, {masked} masked, {quarantined} quarantined, {skipped} skipped"
        )
    })
}

/// INV15: something of reign `term` took effect where `known` had been heard of.
///
/// # Errors
/// [`InvariantId::TermsFence`].
pub fn term_fences(known: Term, term: Term) -> Checked {
    ensure(InvariantId::TermsFence, term >= known, || {
        format!("{term} took effect after {known}")
    })
}

/// INV16: attempt `next` is opened after `last`; `open` says whether one is under way.
///
/// # Errors
/// [`InvariantId::OneAttempt`].
pub fn one_attempt(last: u64, next: u64, open: bool) -> Checked {
    ensure(InvariantId::OneAttempt, !open && next > last, || {
        format!("attempt {next} after {last}, another one open: {open}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invariant_ids_are_numbered_without_gaps_and_spelled_once() {
        for (i, id) in InvariantId::ALL.iter().enumerate() {
            assert_eq!(id.to_string(), format!("INV{}", i + 1));
            assert!(id.meaning().ends_with('.'), "{id}");
        }
    }

    /// Names of the checks of each, where it has some of its own.
    const CHECKS: [(InvariantId, &str); 16] = [
        (InvariantId::EqualNamesEqualBits, "equal_bits"),
        (InvariantId::NothingAfterClosed, "open_when_applied"),
        (InvariantId::LanesOwned, "lanes_owned"),
        (InvariantId::DurableFirst, "durable_first"),
        (InvariantId::GenerationsGrow, "generations_grow"),
        (InvariantId::TruthIsNewest, "truth_is_newest"),
        (InvariantId::OneStepLost, "one_step_lost"),
        (InvariantId::HeadComplete, "head_complete"),
        (InvariantId::LoggedFirst, "logged_first"),
        (InvariantId::CleanSources, "plan_has_source"),
        (InvariantId::CleanSources, "clean_source"),
        (InvariantId::LeaseHeld, "lease_held"),
        (InvariantId::LanesHandedOver, "lane_handed_over"),
        (InvariantId::CountsAddUp, "counts_add_up"),
        (InvariantId::TermsFence, "term_fences"),
        (InvariantId::OneAttempt, "one_attempt"),
    ];

    /// All sources below `folder` but tests and this file, as one text.
    fn sources(folder: &std::path::Path, wanted: &dyn Fn(&std::path::Path) -> bool) -> String {
        let mut text = String::new();
        let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for path in entries.map(|e| e.expect("an entry").path()).filter(|path| wanted(path)) {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if path.is_dir() && name != "tests" {
                text += &sources(&path, wanted);
            } else if name.ends_with(".rs") && !["tests.rs", "invariants.rs"].contains(&name) {
                text += &std::fs::read_to_string(&path).expect("a source file");
            }
        }
        text
    }

    /// Invariants that `text` checks or names. A definition is no call, so a check defined there does not count.
    fn used(text: &str) -> Vec<InvariantId> {
        let called =
            |check: &str| text.matches(&format!("{check}(")).count() > text.matches(&format!("fn {check}(")).count();
        let by_check = |id: &InvariantId| CHECKS.iter().any(|(of, check)| of == id && called(check));
        let named = |id: &&InvariantId| text.contains(&format!("InvariantId::{}", id.word())) || by_check(id);
        InvariantId::ALL.iter().filter(named).copied().collect()
    }

    #[test]
    fn invariants_of_the_document_the_simulator_the_brains_and_the_audit_are_the_same() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let document = std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
        let lines: Vec<&str> = document.lines().filter(|line| line.starts_with("| INV")).collect();
        let is_audit = |path: &std::path::Path| path.ends_with("audit") || path.ends_with("audit.rs");
        let of_audit = |path: &std::path::Path| path.ancestors().any(is_audit);
        let common = root.join("common/src");
        let simulator = used(&sources(&root.join("common/sim/src"), &|_| true));
        let brains = used(&sources(&common, &|path| !of_audit(path)));
        let audit = used(&sources(&common, &of_audit));
        let word = |set: &[InvariantId], id| if set.contains(&id) { "yes" } else { "-" };
        let line = |id: &InvariantId| {
            let (simulated, asserted, audited) = (word(&simulator, *id), word(&brains, *id), word(&audit, *id));
            format!("| {id} | {} | {simulated} | {asserted} | {audited} |", id.meaning())
        };
        let expected: Vec<String> = InvariantId::ALL.iter().map(line).collect();
        assert_eq!(
            lines, expected,
            "ARCHITECTURE.md has one line for each, in order, with who looks at it"
        );
        assert_eq!(simulator, InvariantId::ALL, "the simulator looks at all");
        let judged = |id: &&InvariantId| brains.contains(id) || audit.contains(id);
        assert_eq!(InvariantId::ALL.iter().filter(judged).count(), InvariantId::ALL.len());
    }

    #[test]
    fn violation_reads_as_a_sentence_with_id_and_meaning() {
        let error = durable_first(Generation(3), Generation(2)).expect_err("not durable");
        assert_eq!(
            error.to_string(),
            "INV4 does not hold: gen 3 was sent out while the newest record is of gen 2; A generation is durable before \
             anyone hears of it (G5)."
        );
    }

    #[test]
    fn head_with_a_hole_or_of_two_states_or_going_back_is_refused() {
        let name = |step| StateName {
            step,
            applied_gen: Generation(1),
        };
        assert!(head_complete(name(4), &[(0, name(4)), (1, name(4))], 2, Some(name(2))).is_ok());
        assert!(head_complete(name(4), &[(0, name(4))], 2, None).is_err());
        assert!(head_complete(name(4), &[(0, name(4)), (1, name(3))], 2, None).is_err());
        assert!(head_complete(name(4), &[(0, name(4)), (1, name(4))], 2, Some(name(5))).is_err());
    }
}
