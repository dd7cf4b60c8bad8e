//! Why a run could not be coordinated.

use crate::store::StoreError;
use argosy_common::exit::Exit;
use argosy_rpc::server::ServeError;
use std::path::PathBuf;

/// Why a run could not be coordinated. How a run itself ended is an [`crate::Outcome`].
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// An option contradicts another.
    #[error("the run cannot start: {reason}")]
    BadOptions {
        /// Which and why.
        reason: String,
    },
    /// The run folder holds something else.
    #[error(
        "{run_dir} holds a run with another {what}; continue it with the job and data it began with, or give a new run folder"
    )]
    OtherRun {
        /// The folder.
        run_dir: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// The file system failed.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It was told to leave the lead to another.
    #[error("this coordinator has left the lead to another")]
    Left,
    /// The metadata store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// An actor failed; what it was doing may or may not have happened.
    #[error("the coordinator's {actor} failed: {reason}; start the run again, it goes on from its last checkpoint")]
    ActorFailed {
        /// Which.
        actor: &'static str,
        /// Why.
        reason: String,
    },
}

impl CoordinatorError {
    /// The exit code that goes with it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Left => Exit::Ok,
            Self::BadOptions { .. } => Exit::BadConfig,
            Self::OtherRun { .. } => Exit::Conflict,
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => Exit::Denied,
            Self::Io { .. } | Self::Serve(ServeError::Socket(_) | ServeError::Server(_)) => Exit::Unavailable,
            Self::Serve(ServeError::NotLoopback { .. }) => Exit::BadConfig,
            Self::Store(error) => error.exit(),
            Self::ActorFailed { .. } => Exit::JobFailed,
        }
    }
}
