//! The conductor's words: what it is told, what it asks for, what it looks like.

use crate::events::{FromWorker, Outcome, PartInfo, Record, RunEvent, ToWorker};
use crate::ids::{Generation, StateName, Term, WorkerId};
use crate::ledger::{Committed, Keep};
use serde::Serialize;

/// Milliseconds on the shell's monotonic clock.
pub type Tick = u64;

/// What the conductor is told once.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The run.
    pub run: String,
    /// Reign of this coordinator.
    pub term: Term,
    /// Lanes `Q`.
    pub lanes: u32,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Below this many ready workers nothing trains.
    pub workers_min: u32,
    /// So many are started and kept.
    pub workers_target: u32,
    /// Never more members.
    pub workers_max: u32,
    /// Workers are processes that this coordinator's parent starts.
    pub spawns: bool,
    /// A worker silent for so long is lost.
    pub failure_budget_ms: u64,
    /// Losses in a row without a step in between that end the run.
    pub worker_errors_max: u32,
    /// A checkpoint every so many steps; 0: not by steps.
    pub checkpoint_steps: u64,
    /// A checkpoint when the last one is so old; 0: not by time.
    pub checkpoint_ms: u64,
    /// Committed checkpoints that are kept.
    pub keep: Keep,
    /// Parts of a checkpoint.
    pub parts_total: u32,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A worker process was started by the parent.
    WorkerSpawned {
        /// Who.
        worker: WorkerId,
        /// Its process.
        pid: u32,
    },
    /// A worker's stream was accepted and its hello was good.
    WorkerConnected {
        /// Who.
        worker: WorkerId,
    },
    /// A worker's stream broke or ended.
    StreamLost {
        /// Who.
        worker: WorkerId,
    },
    /// A worker's process was reaped: it is proven gone (rule G5).
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
    /// A worker said something.
    Said {
        /// Who.
        worker: WorkerId,
        /// What.
        message: FromWorker,
    },
    /// The record of [`Command::Persist`] is durable. The shell executes one persist at a time, in order.
    Persisted,
    /// The manifest of [`Command::WriteManifest`] is stored under this key.
    ManifestWritten {
        /// The attempt.
        attempt: u64,
        /// Its key.
        key: String,
    },
    /// The manifest could not be stored.
    ManifestFailed {
        /// The attempt.
        attempt: u64,
        /// Why.
        reason: String,
    },
    /// Somebody asked the run to stop (Ctrl-C).
    StopRequested,
    /// The deadline of [`Conductor::next_deadline`] has come.
    Ticked,
}

/// What the shell shall do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Make durable; answer [`Event::Persisted`]. If the outcome is unknown, die and be restarted from the store.
    Persist {
        /// What.
        record: Record,
    },
    /// Send to a connected worker.
    Send {
        /// To whom.
        to: WorkerId,
        /// What.
        message: ToWorker,
    },
    /// Start a worker process under this id.
    SpawnWorker {
        /// The id.
        worker: WorkerId,
    },
    /// Close the stream of a worker and kill its process, if it is ours.
    Dismiss {
        /// Who.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
    /// Write the manifest of these parts, create-only, then answer `ManifestWritten` or `ManifestFailed`.
    WriteManifest {
        /// The attempt.
        attempt: u64,
        /// The state.
        name: StateName,
        /// Key of the parent manifest.
        parent: Option<String>,
        /// All parts in order.
        parts: Vec<PartInfo>,
    },
    /// Delete what no manifest on the list refers to.
    CollectGarbage {
        /// Attempts that were given up or need not stay.
        attempts: Vec<u64>,
        /// They were committed: later manifests refer to their logs, which stay.
        keep_logs: bool,
    },
    /// Tell people and stories.
    Announce {
        /// What.
        event: RunEvent,
    },
    /// The run is over; workers that are still connected were told.
    End {
        /// How.
        outcome: Outcome,
    },
}

/// What outlives the coordinator's process, read back from the store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Restored {
    /// Highest generation ever formed.
    pub generation: Generation,
    /// Highest worker id ever given.
    pub worker: WorkerId,
    /// Names of generations before this one do not count (rule G1).
    pub floor: Generation,
    /// Last committed checkpoint.
    pub head: Option<Head>,
    /// Highest attempt ever opened.
    pub attempt: u64,
    /// Attempts that were opened and neither committed nor abandoned.
    pub open_attempts: Vec<u64>,
    /// Committed checkpoints that were not rejected, oldest first.
    pub committed: Vec<Committed>,
    /// Attempts that were committed and rejected; their objects are left to people.
    pub rejected: Vec<u64>,
    /// The run had ended with all positions trained.
    pub finished: Option<StateName>,
}

/// A committed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Head {
    /// Key of its manifest.
    pub key: String,
    /// Its state.
    pub name: StateName,
}

impl Restored {
    /// Attempts that no manifest on the list of committed ones refers to: what they wrote may be deleted.
    #[must_use]
    pub fn garbage(&self) -> Vec<u64> {
        (1..=self.attempt)
            .filter(|attempt| !self.committed.iter().any(|c| c.attempt == *attempt))
            .filter(|attempt| !self.rejected.contains(attempt))
            .collect()
    }

    /// Folds the durable records, in order.
    #[must_use]
    pub fn from_records(records: &[Record]) -> Self {
        let mut restored = Self::default();
        for record in records {
            match record {
                Record::GenerationFormed {
                    generation, members, ..
                } => {
                    restored.generation = restored.generation.max(*generation);
                    for member in members {
                        restored.worker = restored.worker.max(*member);
                    }
                }
                Record::CheckpointOpened { attempt, .. } => {
                    restored.attempt = restored.attempt.max(*attempt);
                    restored.open_attempts.push(*attempt);
                }
                Record::CheckpointCommitted { attempt, key, name } => {
                    restored.open_attempts.retain(|a| a != attempt);
                    restored.committed.push(Committed {
                        attempt: *attempt,
                        key: key.clone(),
                        name: *name,
                    });
                    restored.head = Some(Head {
                        key: key.clone(),
                        name: *name,
                    });
                }
                Record::CheckpointAbandoned { attempt, .. } => restored.open_attempts.retain(|a| a != attempt),
                Record::CheckpointRejected { attempt, .. } => {
                    restored.rejected.push(*attempt);
                    restored.committed.retain(|c| c.attempt != *attempt);
                    restored.head = restored.committed.last().map(|c| Head {
                        key: c.key.clone(),
                        name: c.name,
                    });
                }
                Record::RunFinished { name } => restored.finished = Some(*name),
                Record::Resumed { generation, .. } => restored.floor = *generation,
                Record::Quarantined { .. } | Record::RunCreated { .. } => {}
            }
        }
        restored
    }
}

/// A serialisable picture of the conductor, for tests, status pages and crash reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    /// Word for the phase.
    pub phase: &'static str,
    /// Last generation formed.
    pub generation: Generation,
    /// Members of the current plan.
    pub members: Vec<WorkerId>,
    /// Ready workers.
    pub ready: Vec<WorkerId>,
    /// Steps applied by the fastest member.
    pub steps_done: u64,
    /// Last committed checkpoint.
    pub head: Option<Head>,
}
