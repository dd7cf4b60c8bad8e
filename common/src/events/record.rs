//! What is made durable.

use crate::ids::{Generation, StateName, Term, WorkerId};
use crate::plan::StateSource;
use crate::quarantine::Quarantined;
use serde::{Deserialize, Serialize};

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
