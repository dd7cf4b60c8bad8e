//! Durable records and who may write them: an append-only list with compare-and-swap by revision, fenced by the term of a
//! reign that was won in an election and lasts as long as its lease.
//!
//! ```text
//!   MetaStore::campaign ──Elected──▶ Reign: append, renew ... ──lease over, or resigned──┐
//!        ▲        └──Taken──▶ MetaStore::vacated ◀───────────────────────────────────────┘
//!        └──────────────────────────────┘
//! ```

mod etcd;
mod redb_store;

pub use etcd::{EtcdOptions, EtcdStore, EtcdTls, LEASE_MIN};
pub use redb_store::{RedbPlace, RedbStore, read_records};

use argosy_common::events::Record;
use argosy_common::exit::Exit;
use argosy_common::ids::Term;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tonic::async_trait;

/// A place where records are kept and a leader is elected. One conformance suite (`tests/it/conformance.rs`) holds for all.
#[async_trait]
pub trait MetaStore: Debug + Send + Sync + 'static {
    /// Tries once to begin a reign. `address` is where others find the leader, if it wins.
    ///
    /// # Errors
    /// [`StoreError`]; a reign that was begun and could not be reported ends with its lease.
    async fn campaign(&self, address: &str) -> Result<Campaign, StoreError>;

    /// Waits until the throne that was seen taken may be vacant. Changes are never missed: what the store has forgotten
    /// since, and what happened while it was away, is read anew.
    ///
    /// # Errors
    /// [`StoreError`] that waiting does not mend.
    async fn vacated(&self, seen: &Sighting) -> Result<(), StoreError>;

    /// All records, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn records(&self) -> Result<Vec<Record>, StoreError>;
}

/// How a campaign went.
#[derive(Clone, Debug)]
pub enum Campaign {
    /// The reign has begun; its term is durable.
    Elected(Arc<dyn Reign>),
    /// Somebody else reigns.
    Taken(Sighting),
}

/// A throne seen taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sighting {
    /// Where the leader is, if the store knows.
    pub leader: Option<String>,
    /// Revision of the store at which it was seen.
    pub revision: u64,
}

/// The right to write, until a later reign begins.
#[async_trait]
pub trait Reign: Debug + Send + Sync + 'static {
    /// Its term: greater than that of every reign before.
    fn term(&self) -> Term;

    /// How much longer this reign surely lasts, by the own clock, which counts suspended time: at zero somebody else may
    /// reign, so nothing may be promised to anybody beyond it. `None`: as long as this process lives.
    fn holds_for(&self) -> Option<Duration>;

    /// How long a renewal holds, from the moment it was asked for. Had the store lost the lease of the reign before this one,
    /// that reign could believe in itself for so long after this one began. `None`: a reign ends with its process.
    fn renewal_holds_for(&self) -> Option<Duration>;

    /// Renew so often; `None`: never.
    fn renew_every(&self) -> Option<Duration>;

    /// Renews the lease once.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] or [`StoreError::Lapsed`] if the reign is over; after another error it can be tried again.
    async fn renew(&self) -> Result<(), StoreError>;

    /// Makes `record` durable as number `expected_revision + 1` and returns that number. A store that can is asked again
    /// until it says what became of the record.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if there are more or fewer records, [`StoreError::Fenced`] or [`StoreError::Lapsed`] if this
    /// reign is over, [`StoreError::Full`]; in these cases nothing is written. After any other error the outcome is unknown.
    async fn append(&self, expected_revision: u64, record: &Record) -> Result<u64, StoreError>;

    /// All records, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn records(&self) -> Result<Vec<Record>, StoreError>;

    /// Whether an append that found no space may be made again in this reign when there is some. A store that cannot is
    /// opened anew.
    fn outlasts_a_full_store(&self) -> bool {
        false
    }

    /// Ends the reign at once, so that nobody has to wait for its lease.
    ///
    /// # Errors
    /// [`StoreError`]; the lease then ends it.
    async fn resign(&self) -> Result<(), StoreError>;
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
    #[error(
        "{place} has format {found}, this argosy reads up to {known}; use the argosy that wrote it, or a newer one"
    )]
    Newer {
        /// Where.
        place: String,
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
    /// This reign is over and nobody else has begun one yet.
    #[error("{ours} is over: its lease has run out or was revoked")]
    Lapsed {
        /// The writer's term.
        ours: Term,
    },
    /// No space is left.
    #[error("{place} is full: {reason}; nothing was written. {help}")]
    Full {
        /// Where.
        place: String,
        /// In the store's words.
        reason: String,
        /// What to do.
        help: &'static str,
    },
    /// A record is larger than the store takes.
    #[error("record {revision} has {bytes} bytes, the store takes {bytes_max}; fewer lanes make it smaller")]
    TooLarge {
        /// Which.
        revision: u64,
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The store's options contradict each other or it cannot be used with them.
    #[error("etcd: {reason}")]
    BadOptions {
        /// Which and why.
        reason: String,
    },
    /// The store does not let us.
    #[error("etcd at {endpoints} denies it: {reason}; check user, password and certificates")]
    Denied {
        /// Where.
        endpoints: String,
        /// In its words.
        reason: String,
    },
    /// Nobody answers.
    #[error("etcd at {endpoints} does not answer: {reason}")]
    Unreachable {
        /// Where.
        endpoints: String,
        /// Why.
        reason: String,
    },
    /// It cannot be known whether a write has happened.
    #[error("nobody knows whether record {revision} was written: {reason}; what reigns next reads it from the store")]
    Unknown {
        /// Which.
        revision: u64,
        /// Why.
        reason: String,
    },
    /// A record cannot be read.
    #[error("{place}: record {revision} cannot be read: {reason}; restore it from a copy")]
    Broken {
        /// Where.
        place: String,
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
    /// Somebody else may reign: this process may stand for election again.
    #[must_use]
    pub fn is_deposed(&self) -> bool {
        matches!(self, Self::Conflict { .. } | Self::Fenced { .. } | Self::Lapsed { .. })
    }

    /// The exit code that goes with it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Held { .. }
            | Self::Newer { .. }
            | Self::Conflict { .. }
            | Self::Fenced { .. }
            | Self::Lapsed { .. } => Exit::Conflict,
            Self::Broken { .. } | Self::TooLarge { .. } => Exit::JobFailed,
            Self::BadOptions { .. } => Exit::BadConfig,
            Self::Denied { .. } => Exit::Denied,
            Self::Full { .. } => Exit::NoCapacity,
            Self::Database { .. } | Self::Unreachable { .. } | Self::Unknown { .. } => Exit::Unavailable,
        }
    }
}
