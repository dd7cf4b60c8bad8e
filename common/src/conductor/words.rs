//! The conductor's words: what it is told, what it asks for, what it looks like.

use crate::events::{FromWorker, Outcome, PartInfo, Record, RunEvent, ToWorker};
use crate::ids::{Generation, StateName, Term, WorkerId};
use crate::ledger::{Committed, Keep};
use crate::plan::StateSource;
use crate::quarantine::QuarantineLedger;
use serde::Serialize;
use std::collections::BTreeMap;

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
    /// Seed of the run: waits are spread by it.
    pub seed: u64,
    /// How failures are met.
    pub policy: Policy,
}

/// How failures are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A step lease lasts so long (rule G5); 0: workers train without one and end with their stream.
    pub outage_max_ms: u64,
    /// The store may lose the lease of a reign, and that reign believes in itself, and renews step leases, for so long after
    /// the next has begun; 0: a reign ends with its process.
    pub reign_ms: u64,
    /// Rows that nobody could read for so long are given up (rule M2).
    pub unreadable_after_ms: u64,
    /// So many steps passed over in a row for numbers that are not finite end the run (rule G11).
    pub nonfinite_max: u32,
    /// A joiner waits so long for others that are warming up, so that they join at once.
    pub join_window_ms: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            outage_max_ms: 120_000,
            reign_ms: 0,
            unreadable_after_ms: 600_000,
            nonfinite_max: 3,
            join_window_ms: 2_000,
        }
    }
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
    /// A worker that nobody spawned has come and needs an id; answered by [`Command::GiveId`].
    IdWanted,
    /// Somebody asked the run to stop (Ctrl-C).
    StopRequested,
    /// Somebody wants this worker gone within so long: a spot notice, a hand (rule G13).
    DrainRequested {
        /// Who.
        worker: WorkerId,
        /// Grace from now.
        grace_ms: u64,
    },
    /// The store confirmed this reign; it holds until then by the shell's own clock (rule G5). Never told: for good.
    LeadershipHeld {
        /// On the shell's clock.
        until: Tick,
    },
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
    /// An id for the worker that has waited longest for one: never given before, and no later reign gives it again.
    GiveId {
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
    /// Members of the last generation: they may train on until they are heard of (rule G5).
    pub members: Vec<WorkerId>,
    /// The last generation, while its members may still be training in it.
    pub open: Option<OpenGeneration>,
    /// Where each generation on the lineage was left (rule AU2).
    pub ends: BTreeMap<Generation, u64>,
    /// Rows that were given up.
    pub quarantine: QuarantineLedger,
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

/// A generation as its record tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenGeneration {
    /// Its number.
    pub generation: Generation,
    /// The reign that formed it.
    pub term: Term,
    /// The state it began from.
    pub base: StateName,
    /// Where those behind got that state.
    pub source: StateSource,
    /// Members in ring order.
    pub members: Vec<WorkerId>,
    /// Owner of each lane, as an index into `members`.
    pub lanes: Vec<u32>,
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
                    generation,
                    term,
                    base,
                    source,
                    members,
                    lanes,
                    ..
                } => {
                    restored.open = Some(OpenGeneration {
                        generation: *generation,
                        term: *term,
                        base: *base,
                        source: source.clone(),
                        members: members.clone(),
                        lanes: lanes.clone(),
                    });
                    leave_off(&mut restored.ends, *base);
                    restored.members.clone_from(members);
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
                Record::Resumed { generation, name, .. } => {
                    restored.floor = *generation;
                    restored.open = None;
                    leave_off(&mut restored.ends, *name);
                }
                Record::WorkersNamed { upto } => restored.worker = restored.worker.max(*upto),
                Record::Quarantined { entry } => {
                    // A revision out of order cannot have been written by this brain; the audit names it.
                    let _ = restored.quarantine.apply(entry.clone());
                }
                Record::RunCreated { .. } => {}
            }
        }
        restored
    }
}

/// The lineage goes on from `base`: what was trained beyond it is superseded.
pub(super) fn leave_off(ends: &mut BTreeMap<Generation, u64>, base: StateName) {
    ends.retain(|generation, _| *generation <= base.applied_gen);
    ends.insert(base.applied_gen, base.step);
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
    /// Members that were asked to leave.
    pub draining: Vec<WorkerId>,
    /// Workers that are suspect hardware and get no lanes.
    pub cordoned: Vec<WorkerId>,
    /// Lanes are about to move, and why.
    pub moving: Option<String>,
    /// Last revision of the quarantine ledger.
    pub quarantine: u64,
    /// Why the last generation was formed.
    pub reason: String,
    /// Steps applied by the fastest member.
    pub steps_done: u64,
    /// Last committed checkpoint.
    pub head: Option<Head>,
}
