//! What the audit can find wrong.

use crate::ids::{Generation, StateName, Term};
use crate::invariants::InvariantId;
use serde::Serialize;
use std::fmt;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// The records do not form a chain.
    BrokenLineage {
        /// Where and why.
        detail: String,
    },
    /// A reign formed a generation after a later one had begun.
    LateReign {
        /// The generation.
        generation: Generation,
        /// The reign.
        term: Term,
        /// The later one.
        after: Term,
    },
    /// Nobody logged a step of the lineage.
    MissingStep {
        /// The step (0-based).
        step: u64,
        /// The generation that should have applied it.
        generation: Generation,
    },
    /// One worker logged one name twice.
    DoubledStep {
        /// The name.
        name: StateName,
        /// The log.
        log: String,
    },
    /// Two workers logged one name differently.
    Disagreement {
        /// The name.
        name: StateName,
        /// The logs.
        logs: Vec<String>,
    },
    /// A lane's digest is not that of the ids that the plan gives it.
    WrongSamples {
        /// The step.
        step: u64,
        /// The lane.
        lane: u32,
    },
    /// The logged plan is not the durable one.
    WrongPlan {
        /// The step.
        step: u64,
        /// The generation.
        generation: Generation,
    },
    /// Valid and masked rows of a step do not add up to its positions.
    WrongCount {
        /// The step.
        step: u64,
        /// Positions of the step.
        positions: u64,
        /// Valid rows logged.
        valid: u64,
        /// Masked rows logged.
        masked: u64,
    },
    /// Rows that the quarantine ledger leaves out at this step, and rows that were logged as left out, are not the same.
    WrongQuarantine {
        /// The step.
        step: u64,
        /// Rows the ledger leaves out.
        ledger: u64,
        /// Rows logged as quarantined.
        logged: u64,
    },
    /// A revision of the quarantine ledger is missing, doubled or empty.
    BrokenLedger {
        /// Which and why.
        detail: String,
    },
    /// A worker's log is no way from state to state.
    BrokenLog {
        /// The log.
        log: String,
        /// Where and why.
        detail: String,
    },
    /// A worker went on in a generation that it had left for a later one.
    AfterClosing {
        /// The log.
        log: String,
        /// What it logged.
        name: StateName,
        /// The later generation, which it had entered before.
        entered: Generation,
    },
    /// An attempt at a checkpoint did not go as attempts go.
    BrokenAttempt {
        /// The attempt; 0 if the record names none.
        attempt: u64,
        /// Why.
        detail: String,
    },
    /// A committed checkpoint says something else of the run than its logs.
    WrongCheckpoint {
        /// Key of its manifest.
        key: String,
        /// What.
        detail: String,
    },
    /// The record of a generation does not give every lane one owner among its members.
    BrokenPlan {
        /// The generation.
        generation: Generation,
        /// Why.
        detail: String,
    },
    /// A generation trained on beyond the state that its successor began with.
    LostMore {
        /// The generation.
        generation: Generation,
        /// Steps it had applied.
        trained: u64,
        /// Where its successor began.
        base: StateName,
    },
    /// The run is recorded as finished, but not at its last step.
    WrongEnd {
        /// The recorded final state.
        name: StateName,
        /// Steps of the run.
        total_steps: u64,
    },
}

impl Finding {
    /// The invariant that does not hold.
    #[must_use]
    pub fn invariant(&self) -> InvariantId {
        match self {
            Self::BrokenLineage { .. } => InvariantId::GenerationsGrow,
            Self::LateReign { .. } => InvariantId::TermsFence,
            Self::MissingStep { .. } => InvariantId::LoggedFirst,
            Self::Disagreement { .. } => InvariantId::EqualNamesEqualBits,
            Self::DoubledStep { .. } | Self::WrongSamples { .. } | Self::WrongEnd { .. } => InvariantId::ExactlyOnce,
            Self::WrongPlan { .. } => InvariantId::DurableFirst,
            Self::WrongCount { .. } | Self::WrongQuarantine { .. } | Self::BrokenLedger { .. } => {
                InvariantId::CountsAddUp
            }
            Self::LostMore { .. } => InvariantId::OneStepLost,
            Self::BrokenLog { .. } => InvariantId::CleanSources,
            Self::AfterClosing { .. } => InvariantId::NothingAfterClosed,
            Self::BrokenAttempt { .. } => InvariantId::OneAttempt,
            Self::WrongCheckpoint { .. } => InvariantId::HeadComplete,
            Self::BrokenPlan { .. } => InvariantId::LanesOwned,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.invariant())?;
        match self {
            Self::BrokenLineage { detail } => write!(f, "the records are no chain: {detail}"),
            Self::LateReign {
                generation,
                term,
                after,
            } => write!(f, "{generation} was formed in {term}, after one of {after}"),
            Self::MissingStep { step, generation } => {
                write!(f, "nobody logged step {step}, which {generation} applied")
            }
            Self::DoubledStep { name, log } => write!(f, "{log} has {name} twice"),
            Self::Disagreement { name, logs } => write!(f, "{} do not say the same of {name}", logs.join(" and ")),
            Self::WrongSamples { step, lane } => {
                write!(
                    f,
                    "lane {lane} trained other samples at step {step} than the plan gives it"
                )
            }
            Self::WrongPlan { step, generation } => {
                write!(
                    f,
                    "step {step} was trained under another plan than the record of {generation} has"
                )
            }
            Self::WrongCount {
                step,
                positions,
                valid,
                masked,
            } => write!(
                f,
                "step {step} has {positions} positions, but {valid} valid and {masked} masked rows were logged"
            ),
            Self::WrongQuarantine { step, ledger, logged } => write!(
                f,
                "the ledger leaves {ledger} rows out at step {step}, but {logged} were logged as quarantined"
            ),
            Self::BrokenLedger { detail } => write!(f, "the quarantine ledger is broken: {detail}"),
            Self::BrokenLog { log, detail } => write!(f, "{log} is no way from state to state: {detail}"),
            Self::AfterClosing { log, name, entered } => {
                write!(
                    f,
                    "{log} has {name} after its worker had left that generation for {entered}"
                )
            }
            Self::BrokenAttempt { attempt: 0, detail } => write!(f, "the records of checkpoints do not fit: {detail}"),
            Self::BrokenAttempt { attempt, detail } => write!(f, "attempt {attempt} at a checkpoint: {detail}"),
            Self::WrongCheckpoint { key, detail } => write!(f, "{key} does not fit the run: {detail}"),
            Self::BrokenPlan { generation, detail } => write!(f, "the plan of {generation} is none: {detail}"),
            Self::LostMore {
                generation,
                trained,
                base,
            } => write!(
                f,
                "{generation} had trained {trained} steps when its successor began at {base}"
            ),
            Self::WrongEnd { name, total_steps } => {
                write!(
                    f,
                    "the run is recorded as finished at {name}, but has {total_steps} steps"
                )
            }
        }
    }
}
