//! What the audit can find wrong.

use crate::ids::{Generation, StateName};
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
            Self::MissingStep { .. } => InvariantId::LoggedFirst,
            Self::Disagreement { .. } => InvariantId::EqualNamesEqualBits,
            Self::DoubledStep { .. } | Self::WrongSamples { .. } | Self::WrongEnd { .. } => InvariantId::ExactlyOnce,
            Self::WrongPlan { .. } => InvariantId::DurableFirst,
            Self::WrongCount { .. } | Self::WrongQuarantine { .. } | Self::BrokenLedger { .. } => {
                InvariantId::CountsAddUp
            }
            Self::LostMore { .. } => InvariantId::OneStepLost,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.invariant())?;
        match self {
            Self::BrokenLineage { detail } => write!(f, "the records are no chain: {detail}"),
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
