//! Durable records: an append-only list with compare-and-swap by revision, fenced by term.

mod redb_store;

pub use redb_store::{RedbStore, read_records};

use argosy_common::events::Record;
use argosy_common::exit::Exit;
use argosy_common::ids::Term;
use std::fmt::Debug;
use std::path::PathBuf;

/// Where records are kept. A reign begins when the store is opened: its term is durable before the first append.
pub trait MetaStore: Debug + Send + Sync + 'static {
    /// The term of this reign.
    fn term(&self) -> Term;

    /// Number of records.
    ///
    /// # Errors
    /// [`StoreError`].
    fn revision(&self) -> Result<u64, StoreError>;

    /// Makes `record` durable as number `expected_revision + 1` and returns that number. Blocks until it is on disk.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if there are more or fewer records, [`StoreError::Fenced`] if a later reign has begun; in
    /// both cases nothing is written. After any other error the outcome is unknown.
    fn append(&self, expected_revision: u64, record: &Record) -> Result<u64, StoreError>;

    /// All records, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    fn records(&self) -> Result<Vec<Record>, StoreError>;
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else holds it.
    #[error("{path} is held by another coordinator; end that run first, or give another run folder")]
    Held {
        /// The file.
        path: PathBuf,
    },
    /// A newer argosy wrote it.
    #[error("{path} has format {found}, this argosy reads up to {known}; use the argosy that wrote it, or a newer one")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// Ours.
        known: u64,
    },
    /// The list is not where the writer thought.
    #[error("the records stand at revision {found}, not at {expected}: somebody else has written")]
    Conflict {
        /// What the writer thought.
        expected: u64,
        /// What is.
        found: u64,
    },
    /// A later reign has begun.
    #[error("{ours} is over: {theirs} has begun")]
    Fenced {
        /// The writer's term.
        ours: Term,
        /// The store's.
        theirs: Term,
    },
    /// A record cannot be read.
    #[error("{path}: record {revision} cannot be read: {reason}; restore the file from a copy")]
    Broken {
        /// The file.
        path: PathBuf,
        /// Which.
        revision: u64,
        /// Why.
        reason: String,
    },
    /// The database failed.
    #[error("{path}: {source}; check the disk and that the file is a run's meta.redb")]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<redb::Error>,
    },
}

impl StoreError {
    /// The exit code that goes with it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Held { .. } | Self::Newer { .. } | Self::Conflict { .. } | Self::Fenced { .. } => Exit::Conflict,
            Self::Broken { .. } => Exit::JobFailed,
            Self::Database { .. } => Exit::Unavailable,
        }
    }
}
