//! What people, stories and the report watch.

use super::StepReport;
use crate::ids::{Generation, StateName, WorkerId};
use crate::quarantine::Quarantined;
use serde::{Deserialize, Serialize};

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// All positions are trained and the last checkpoint is committed.
    Succeeded {
        /// Final state.
        name: StateName,
        /// Key of its manifest.
        manifest: Option<String>,
    },
    /// Somebody asked it to stop.
    Interrupted {
        /// Last committed state.
        name: StateName,
    },
    /// It cannot go on.
    Failed {
        /// Exit code.
        exit: u8,
        /// One sentence for people.
        message: String,
    },
}

/// What people, stories and the report watch: one JSON object a line in the run folder's `events.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RunEvent {
    /// The coordinator is up.
    RunStarted {
        /// The run.
        run: String,
        /// Its plan in numbers.
        lanes: u32,
        /// Global batch.
        batch: u32,
        /// Steps in all.
        total_steps: u64,
        /// Positions in all.
        total_positions: u64,
        /// When, in milliseconds since 1970; 0 in events of before this was written. `at_ms` counts from here.
        #[serde(default)]
        unix_ms: u64,
    },
    /// A worker process was started.
    WorkerSpawned {
        /// Who.
        worker: WorkerId,
        /// Its process.
        pid: u32,
    },
    /// A worker is warm.
    WorkerReady {
        /// Who.
        worker: WorkerId,
    },
    /// States of one name were not equal (rule N3).
    StatesDiffered {
        /// The name.
        name: StateName,
        /// Who heals; all members if no majority was equal.
        healing: Vec<WorkerId>,
        /// Who is kept out because it happened before.
        cordoned: Vec<WorkerId>,
    },
    /// A worker is no longer counted on.
    WorkerLost {
        /// Who.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
    /// A worker's process is gone and reaped.
    WorkerExited {
        /// Who.
        worker: WorkerId,
        /// Its process.
        pid: u32,
        /// Exit code, if it exited.
        code: Option<i32>,
        /// Signal, if one ended it.
        signal: Option<i32>,
    },
    /// A plan is durable and was sent.
    GenerationFormed {
        /// The generation.
        generation: Generation,
        /// Its members.
        members: Vec<WorkerId>,
        /// State it starts from.
        base: StateName,
        /// Members that had to heal.
        healing: Vec<WorkerId>,
        /// Why there is a new generation.
        reason: String,
    },
    /// A generation trains.
    GenerationActivated {
        /// The generation.
        generation: Generation,
    },
    /// A generation is being closed.
    GenerationClosing {
        /// The generation.
        generation: Generation,
        /// Why.
        reason: String,
    },
    /// Lanes will move at a boundary; their new owners fetch first (rule L8).
    LanesMoving {
        /// Why.
        reason: String,
        /// How many.
        lanes: u32,
        /// First step that may need them there.
        from_step: u64,
    },
    /// A worker goes on in another way than it was told.
    WorkerNotice {
        /// Who.
        worker: WorkerId,
        /// Its own sentence.
        message: String,
    },
    /// A worker was asked to leave (rule G13).
    WorkerDraining {
        /// Who.
        worker: WorkerId,
        /// Grace it has.
        grace_ms: u64,
    },
    /// A step broke although nobody was lost; what is done about it (rules G10, G11).
    Blamed {
        /// Who goes, if anybody.
        worker: Option<WorkerId>,
        /// Why, and what else is done.
        reason: String,
    },
    /// Rows were given up (rule M2).
    Quarantined {
        /// The revision.
        entry: Quarantined,
    },
    /// The metadata store has no space: steps go on, but nobody joins or is replaced and no checkpoint is committed until
    /// it has.
    StoreFilledUp {
        /// In its words, and what to do.
        reason: String,
    },
    /// It takes records again.
    StoreHasRoom,
    /// Fewer workers than needed.
    Waiting {
        /// Ready now.
        have: u32,
        /// Needed.
        need: u32,
    },
    /// The run goes on from a manifest or from the seed.
    Resumed {
        /// State resumed from.
        name: StateName,
        /// Its manifest.
        manifest: Option<String>,
    },
    /// A step was applied (first report of it).
    StepDone {
        /// As reported.
        report: StepReport,
        /// By whom.
        worker: WorkerId,
    },
    /// A checkpoint is durable.
    CheckpointCommitted {
        /// Key of its manifest.
        key: String,
        /// The state.
        name: StateName,
    },
    /// An attempt was given up.
    CheckpointAbandoned {
        /// The attempt.
        attempt: u64,
        /// Why.
        reason: String,
    },
    /// A committed checkpoint is damaged; an older one is used.
    CheckpointRejected {
        /// Key of its manifest.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A committed checkpoint was evaluated. Comes after `RunFinished` for the last ones.
    EvaluationDone {
        /// Name of the set in the job.
        set: String,
        /// Key of the manifest.
        key: String,
        /// The state.
        name: StateName,
        /// Share of samples whose class came first.
        top1: f64,
        /// Share of samples whose class was among the first five.
        top5: f64,
        /// Top-1 averaged over the classes that have samples.
        mean_per_class: f64,
        /// Top-1 of a guess.
        chance: f64,
        /// Samples that were classified.
        samples: u64,
        /// How long it took.
        seconds: f64,
    },
    /// A committed checkpoint was not evaluated.
    EvaluationFailed {
        /// Name of the set in the job.
        set: String,
        /// Key of the manifest.
        key: String,
        /// The state.
        name: StateName,
        /// Why.
        reason: String,
    },
    /// The run is over.
    RunFinished {
        /// How.
        outcome: Outcome,
    },
}

/// A line of `events.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StampedEvent {
    /// Milliseconds since the run's coordinator started.
    pub at_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: RunEvent,
}
