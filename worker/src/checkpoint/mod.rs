//! States at rest: the canonical flat order cut into fixed parts (rule K1), written by whoever owns them, read back at any
//! world size.

mod layout;
mod read;
mod restore;
mod store;
mod upload;

pub use layout::{FORMAT_VERSION, Layout, PART_BYTES, parts_total};
pub use read::{ReadState, read_state};
pub use restore::{read_manifest, restore, restore_manifest};
pub use store::PartStore;
pub use upload::{UploadJob, Uploader, part_key};

/// The folder of checkpoints inside a run folder; keys are relative to it.
pub const CHECKPOINTS_DIR: &str = "checkpoints";

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// An object cannot be read or written.
    #[error("{object}: {why}")]
    Store {
        /// Where.
        object: String,
        /// The store's words.
        why: String,
        /// It is not there, which trying again will not change.
        missing: bool,
    },
    /// A manifest that is damaged, or of another model or state.
    #[error("manifest {key}: {why}")]
    Manifest {
        /// Its key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// A part that is damaged or does not belong.
    #[error("part {index} of the checkpoint ({key}): {why}")]
    Part {
        /// Its index.
        index: u32,
        /// Its key.
        key: String,
        /// What is wrong.
        why: String,
    },
}

impl CheckpointError {
    fn part(index: u32, key: &str, why: String) -> Self {
        Self::Part {
            index,
            key: key.into(),
            why,
        }
    }

    fn manifest(key: &str, why: impl ToString) -> Self {
        Self::Manifest {
            key: key.into(),
            why: why.to_string(),
        }
    }

    /// The checkpoint itself is damaged or incomplete; false where only the way to it is.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::Store { missing: false, .. })
    }
}
