//! What can go wrong with data, in words for the person who has to fix it.

use argosy_common::exit::Exit;
use argosy_common::quarantine::{ReadFault, RowRange};
use std::ops::Range;

/// Data that cannot be found, read or trusted.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A folder, file or pattern that names nothing.
    #[error("{what} does not exist{hint}")]
    NotFound {
        /// The path or pattern.
        what: String,
        /// What to do, with its leading separator; may be empty.
        hint: String,
    },
    /// A shard pattern that cannot be read.
    #[error("shard pattern `{pattern}`: {why}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        why: String,
    },
    /// A file that should list shards.
    #[error("manifest {file} {why}")]
    Manifest {
        /// The manifest.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// Reading failed.
    #[error("cannot read {file}: {error}")]
    Io {
        /// The file or object.
        file: String,
        /// The store's own words.
        error: String,
    },
    /// The store refuses us.
    #[error("access to {file} is denied: {error}; renew the credentials in the environment (AWS_*, GOOGLE_*, AZURE_*)")]
    Denied {
        /// The file or object.
        file: String,
        /// The store's own words.
        error: String,
    },
    /// Writing failed.
    #[error("cannot write {file}: {error}")]
    Write {
        /// The file.
        file: String,
        /// The system's own words.
        error: String,
    },
    /// A shard that is not the one that was indexed.
    #[error("shard {file} has changed since it was indexed ({change}); make the index again with `argosy index`")]
    Changed {
        /// The shard.
        file: String,
        /// Size or etag, then and now.
        change: String,
    },
    /// An index file that is not one, or is damaged.
    #[error("index {file}: {why}; make it again with `argosy index`")]
    Index {
        /// The index file.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// A tar archive that breaks its own format.
    #[error("at byte {at}: {why}")]
    Tar {
        /// Offset in the shard.
        at: u64,
        /// What is wrong.
        why: String,
    },
    /// Sources without a single usable sample.
    #[error("no usable sample in {what}: {why}")]
    Empty {
        /// The sources.
        what: String,
        /// What was found instead.
        why: String,
    },
    /// A configuration this loader cannot serve.
    #[error("{0}")]
    Config(String),
}

impl DataError {
    /// The exit code a command ends with on this error.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::NotFound { .. } => Exit::NotFound,
            Self::Pattern { .. } | Self::Manifest { .. } | Self::Config(_) => Exit::BadConfig,
            Self::Changed { .. } => Exit::Conflict,
            Self::Denied { .. } => Exit::Denied,
            Self::Io { .. } | Self::Write { .. } | Self::Index { .. } | Self::Tar { .. } | Self::Empty { .. } => {
                Exit::JobFailed
            }
        }
    }
}

/// Why bytes cannot be had, for whoever decides what becomes of the lane (rule M2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockCause {
    /// The store refuses our credentials: no other worker with the same ones will fare better.
    Denied,
    /// The shard is gone.
    Missing,
    /// The shard is not the one that was indexed (rule M3).
    Changed,
    /// The index itself is damaged.
    Index,
    /// It could not be read for now, retries included.
    Unreadable,
}

impl BlockCause {
    /// The cause in an error.
    #[must_use]
    pub fn of(error: &DataError) -> Self {
        match error {
            DataError::Denied { .. } => Self::Denied,
            DataError::NotFound { .. } => Self::Missing,
            DataError::Changed { .. } => Self::Changed,
            DataError::Index { .. } => Self::Index,
            _ => Self::Unreadable,
        }
    }
}

/// Why no batch comes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoaderError {
    /// Bytes of a lane cannot be had (rule M2); never a reason to mask.
    #[error("lane {lane} is blocked at bytes {}..{} of {shard}: {error}", range.start, range.end)]
    LaneBlocked {
        /// The lane.
        lane: u32,
        /// The rows that were asked for.
        rows: RowRange,
        /// The shard's location.
        shard: String,
        /// The bytes that were asked for.
        range: Range<u64>,
        /// What kind of failure it is.
        cause: BlockCause,
        /// Whose fault it is.
        fault: ReadFault,
        /// Why they did not come.
        error: String,
    },
    /// The run has no such step.
    #[error("step {step} is beyond the end of the run at step {end}")]
    EndOfRun {
        /// The step asked for.
        step: u64,
        /// Number of steps of the run.
        end: u64,
    },
    /// The loader's threads are gone; a bug.
    #[error("the loader has stopped: {0}")]
    Stopped(String),
}
