//! The words that coordinator and workers exchange, the records that are made durable, and the events people watch.
//!
//! Events are past tense, commands imperative. None of these types knows how it travels; `argosy-rpc` does.

use crate::ids::{Generation, StateName, Term, WorkerId};
use crate::plan::{Plan, StateSource};
use crate::quarantine::{Quarantined, RowRange};
use crate::steplog::MaskReason;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    /// This worker cannot go on, and neither could another: the run ends with this exit code.
    Failed {
        /// See [`crate::exit::Exit`].
        exit: u8,
        /// One sentence for people.
        message: String,
    },
}

/// How a step broke, as one worker saw it (rule G10).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbortReport {
    /// The generation.
    pub generation: Generation,
    /// The step (count of applied steps before it).
    pub step: u64,
    /// Word for the phase it was in.
    pub phase: String,
    /// Collectives entered in that step.
    pub entered: u32,
    /// Bytes received in that step, by peer.
    pub received: BTreeMap<WorkerId, u64>,
    /// Peers whose link broke.
    pub lost_links: Vec<WorkerId>,
    /// A number was not finite (rule G11).
    pub not_finite: Option<NotFinite>,
}

/// Where a number stopped being finite, taken before sums mix (rule G11).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotFinite {
    /// Guilty lanes: those of the rows, else all lanes of the workers.
    pub lanes: Vec<u32>,
    /// The sum of finite parts was not finite: nobody is guilty.
    pub sum: bool,
}

/// One applied step, as one worker saw it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)] // events of before a field was added are read too
pub struct StepReport {
    /// The generation that applied it.
    pub generation: Generation,
    /// The state after it.
    pub name: StateName,
    /// Loss of the whole matrix; `None` if the step was passed over (`V < 2`).
    pub loss: Option<f64>,
    /// Learning rate used.
    pub lr: f64,
    /// Logit scale (exponentiated) after it.
    pub logit_scale: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Valid rows of the whole step.
    pub valid: u32,
    /// Rows of the whole step that took no part, by reason.
    pub masked: BTreeMap<MaskReason, u32>,
    /// Milliseconds by phase: load, encode, gather, loss, reduce, apply.
    pub phase_ms: BTreeMap<String, f32>,
    /// Hashes of the state's chunks after it, in order; empty on steps that do not compare (rule N3).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub state_hashes: Vec<u64>,
}

impl StepReport {
    /// Milliseconds of the whole step.
    #[must_use]
    pub fn step_ms(&self) -> f32 {
        self.phase_ms.values().sum()
    }
}

/// Why a part did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartFailure {
    /// The order came after its boundary: the next one is given further ahead.
    Late,
    /// The store did not take it, or there is no room: it is tried again after a while.
    Store,
}

/// One part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartInfo {
    /// Index of the part in the flat order.
    pub index: u32,
    /// Its key in the run's object store.
    pub key: String,
    /// Its size.
    pub bytes: u64,
    /// xxh3 of its bytes.
    pub checksum: u64,
}

/// Version of [`Manifest`].
pub const MANIFEST_VERSION: u32 = 2;

/// Rows by what became of them, of all steps up to a state (rule M4).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PositionCounts {
    /// Rows that were trained.
    pub trained: u64,
    /// Rows that took no part, by reason.
    pub masked: BTreeMap<MaskReason, u64>,
    /// Valid rows of steps that were passed over, by reason.
    pub skipped: BTreeMap<String, u64>,
}

/// The log of some steps, as it lies in the object store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogInfo {
    /// The attempt that wrote it.
    pub attempt: u64,
    /// Steps of the state it begins behind.
    pub from_step: u64,
    /// Steps of the state it ends with.
    pub to_step: u64,
    /// The object.
    pub part: PartInfo,
}

/// What a checkpoint is (design section 4). Stored as JSON under its own key, created once, never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format, [`MANIFEST_VERSION`].
    pub version: u32,
    /// Version of the Argosy that wrote it.
    pub argosy: String,
    /// The run.
    pub run: String,
    /// The attempt that wrote it.
    pub attempt: u64,
    /// The state.
    pub name: StateName,
    /// Positions trained or masked up to it.
    pub positions_seen: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Digest of the training configuration.
    pub config_hash: u64,
    /// Digest of the index.
    pub index_hash: u64,
    /// Key of the manifest before it on the lineage.
    pub parent: Option<String>,
    /// The parts in order; the last is the log of the steps since the parent.
    pub parts: Vec<PartInfo>,
    /// Logs of the whole lineage, oldest first, this one's last: whoever holds the state holds its history (rule AU1).
    pub history: Vec<LogInfo>,
    /// What became of all positions up to the state.
    pub ledger: PositionCounts,
    /// The job as it is trained.
    pub job: serde_json::Value,
    /// The model's config in open_clip's JSON form, so that the weights can be read without the job.
    pub model: serde_json::Value,
}

/// What is made durable, in order, in the metadata store. The lineage is read off these (rule AU2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// A run exists.
    RunCreated {
        /// Its id.
        run: String,
        /// Digest of the training configuration.
        config_hash: u64,
        /// Digest of the index.
        index_hash: u64,
    },
    /// A generation may be activated (rule G5).
    GenerationFormed {
        /// Unique, growing.
        generation: Generation,
        /// Reign.
        term: Term,
        /// State it starts from.
        base: StateName,
        /// Where those behind get that state.
        source: StateSource,
        /// Members in ring order.
        members: Vec<WorkerId>,
        /// Owner of each lane, as an index into `members`.
        lanes: Vec<u32>,
        /// Digest of the whole plan.
        plan_hash: u64,
    },
    /// Nobody with a newer state was left: the run goes on from this manifest, or from the seed. Names applied in
    /// generations before `generation` count no more, except the manifest's own (rule G1).
    Resumed {
        /// The next generation to be formed.
        generation: Generation,
        /// The state resumed from.
        name: StateName,
        /// Key of its manifest; `None` for the seeded state.
        manifest: Option<String>,
    },
    /// An attempt at a checkpoint has begun (rule K3).
    CheckpointOpened {
        /// The attempt.
        attempt: u64,
        /// Count of applied steps at which it is taken.
        at_step: u64,
    },
    /// An attempt has become the head.
    CheckpointCommitted {
        /// The attempt.
        attempt: u64,
        /// Key of the manifest.
        key: String,
        /// The state.
        name: StateName,
    },
    /// An attempt was given up; its keys are garbage.
    CheckpointAbandoned {
        /// The attempt.
        attempt: u64,
        /// Why.
        reason: String,
    },
    /// A committed checkpoint turned out to be damaged: nobody goes on from it any more.
    CheckpointRejected {
        /// The attempt.
        attempt: u64,
        /// Key of its manifest.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// Worker ids up to this one may be given; a later reign begins behind it, so that no id has two lives.
    WorkersNamed {
        /// The highest.
        upto: WorkerId,
    },
    /// Rows were given up; the ledger's next revision (rule M2).
    Quarantined {
        /// The revision.
        entry: Quarantined,
    },
    /// The run ended with all positions trained.
    RunFinished {
        /// Final state.
        name: StateName,
    },
}

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
