//! The words that coordinator and workers exchange, the records that are made durable, and the events people watch.
//!
//! Events are past tense, commands imperative. None of these types knows how it travels; `argosy-rpc` does.

mod manifest;
mod record;
mod report;
mod run;

pub use manifest::{LogInfo, MANIFEST_VERSION, Manifest, PartInfo, PositionCounts};
pub use record::Record;
pub use report::{AbortReport, NotFinite, PartFailure, StepReport};
pub use run::{Outcome, RunEvent, StampedEvent};

use crate::ids::{Generation, StateName};
use crate::plan::Plan;
use crate::quarantine::{ReadFault, RowRange};
use serde::{Deserialize, Serialize};

/// From the coordinator to one worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ToWorker {
    /// Take the base state, connect the ring, then answer [`FromWorker::Formed`].
    Form {
        /// The generation.
        plan: Plan,
    },
    /// All members are formed: train.
    Activate {
        /// The generation.
        generation: Generation,
    },
    /// Leave the generation: after having applied step number `after_step` (count of applied steps), or now.
    Close {
        /// The generation.
        generation: Generation,
        /// Leave when this many steps are applied; `None` aborts what is under way.
        after_step: Option<u64>,
    },
    /// Copy these parts of the state when exactly `at_step` steps are applied, and upload them.
    Checkpoint {
        /// Number of the attempt; part of every key it writes.
        attempt: u64,
        /// Count of applied steps.
        at_step: u64,
        /// Parts that this worker owns.
        parts: Vec<u32>,
        /// Parts whose buddy it is: copied, and uploaded only if their owner is lost (rule K1).
        spare: Vec<u32>,
        /// Parts in all; the last is the log of the steps since the parent (rule AU1).
        parts_total: u32,
        /// Steps of the parent, which the log begins behind.
        since: u64,
    },
    /// The owner of these parts is lost: upload the copies.
    UploadSpare {
        /// The attempt.
        attempt: u64,
        /// Parts that were spare.
        parts: Vec<u32>,
    },
    /// These lanes will be this worker's from step `from_step` on: fetch their first rows, then say [`FromWorker::Primed`]
    /// (rule L8). Nothing moves yet.
    Prepare {
        /// The generation that trains meanwhile.
        generation: Generation,
        /// Lanes to come.
        lanes: Vec<u32>,
        /// First step that may need them.
        from_step: u64,
    },
    /// The right to apply steps (rule G5), in answer to [`FromWorker::LeaseWanted`]: until `lasts_ms` after the worker's own
    /// clock said `asked_at`, so that no delay on the way makes it longer.
    Lease {
        /// The generation it holds for.
        generation: Generation,
        /// As asked.
        asked_at: u64,
        /// How long from then.
        lasts_ms: u64,
    },
    /// The run is over, or goes on without this worker: exit 0.
    Finish,
}

/// From a worker to the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FromWorker {
    /// Warm: libtorch, model, index are loaded; a plan can be taken.
    Ready {
        /// Where peers reach it.
        addr: String,
        /// State it holds.
        name: StateName,
    },
    /// Alive, sent at a fixed pace.
    Heartbeat,
    /// Holds the base state and the ring is connected.
    Formed {
        /// The generation.
        generation: Generation,
    },
    /// The generation is closed for this worker: it will apply nothing more in it (rule G3). Sent only when clean.
    Closed {
        /// The generation.
        generation: Generation,
        /// State it holds.
        name: StateName,
        /// Why, when it was not asked to.
        cause: Option<String>,
    },
    /// A step was applied.
    StepDone {
        /// What happened.
        report: StepReport,
    },
    /// A part lies in the object store.
    PartUploaded {
        /// The attempt.
        attempt: u64,
        /// The part.
        part: PartInfo,
        /// State it was copied from; all parts of an attempt must agree.
        name: StateName,
    },
    /// A part could not be copied or uploaded.
    PartFailed {
        /// The attempt.
        attempt: u64,
        /// What follows from it.
        failure: PartFailure,
        /// Why.
        reason: String,
    },
    /// The worker's clock says `at`; it wants to apply steps of this generation (rule G5).
    LeaseWanted {
        /// The generation.
        generation: Generation,
        /// Milliseconds on the worker's own clock, which counts suspended time.
        at: u64,
    },
    /// The first rows of these lanes are here (rule L8).
    Primed {
        /// As in the order.
        generation: Generation,
        /// The lanes.
        lanes: Vec<u32>,
    },
    /// It was asked to leave and can stay so long (rule G13).
    Draining {
        /// Grace from now.
        grace_ms: u64,
    },
    /// A step broke here, as seen from here; sent before [`FromWorker::Closed`] (rules G10, G11).
    Aborted {
        /// What is known.
        report: AbortReport,
    },
    /// A lane cannot be read, for reasons that are not in its bytes (rule M2).
    LaneBlocked {
        /// The generation.
        generation: Generation,
        /// The step that waits for it.
        step: u64,
        /// The lane.
        lane: u32,
        /// What cannot be read.
        rows: RowRange,
        /// Whose fault that is.
        fault: ReadFault,
        /// Why.
        error: String,
    },
    /// Back after the stream was lost, with its state (rule G9).
    Rejoined {
        /// Where peers reach it.
        addr: String,
        /// State it holds.
        name: StateName,
        /// The generation it is still in.
        inside: Option<Generation>,
        /// The last generation it has left.
        left: Generation,
    },
    /// The base state could not be read from its manifest; the worker leaves the generation.
    RestoreFailed {
        /// Key of the manifest.
        key: String,
        /// The checkpoint itself is damaged, not only the way to it.
        damaged: bool,
        /// What is wrong.
        reason: String,
    },
    /// It goes on, but in another way than it was told; people should hear of it.
    Notice {
        /// One sentence for people.
        message: String,
    },
    /// This worker cannot go on, and neither could another: the run ends with this exit code.
    Failed {
        /// See [`crate::exit::Exit`].
        exit: u8,
        /// One sentence for people.
        message: String,
    },
}

impl FromWorker {
    /// The state that it speaks of, if any.
    #[must_use]
    pub fn name(&self) -> Option<StateName> {
        match self {
            Self::Ready { name, .. }
            | Self::Closed { name, .. }
            | Self::Rejoined { name, .. }
            | Self::PartUploaded { name, .. } => Some(*name),
            Self::StepDone { report } => Some(report.name),
            _ => None,
        }
    }
}
