//! States at rest: the canonical flat order cut into fixed parts (rule K1), written by whoever owns them, read back at any
//! world size.

mod layout;
mod restore;
mod upload;

pub use layout::{FORMAT_VERSION, PART_ELEMENTS, encode_part, parts_total};
pub use restore::{read_manifest, restore, restore_manifest};
pub use upload::{UploadJob, Uploader, part_key};

/// The folder of checkpoints inside a run folder; keys are relative to it.
pub const CHECKPOINTS_DIR: &str = "checkpoints";

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file cannot be read or written.
    #[error("{file}: {why}")]
    Io {
        /// The file.
        file: String,
        /// The system's words.
        why: String,
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
