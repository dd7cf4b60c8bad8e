//! What a checkpoint says of itself.

use crate::ids::StateName;
use crate::steplog::MaskReason;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
