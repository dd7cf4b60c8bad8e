//! The store of one machine: one redb file. Every append is one transaction, flushed before it returns. Who holds the file's
//! lock reigns, so there is no lease.

use super::{Campaign, MetaStore, Reign, Sighting, StoreError};
use argosy_common::events::Record;
use argosy_common::ids::Term;
use redb::{
    Database, DatabaseError, ReadOnlyDatabase, ReadableDatabase, ReadableTable as _, StorageBackend, TableDefinition,
};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tonic::async_trait;

/// Version of the tables and of what is in them.
const FORMAT: u64 = 1;
/// `format` and `term`.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Records as JSON, by revision from 1.
const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");

/// Nobody tells when a file's lock is free: it is looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A file that a run of this machine keeps its records in.
#[derive(Clone, Debug)]
pub struct RedbPlace {
    path: PathBuf,
}

impl RedbPlace {
    /// The place; nothing is opened yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

#[async_trait]
impl MetaStore for RedbPlace {
    async fn campaign(&self, _address: &str) -> Result<Campaign, StoreError> {
        let path = self.path.clone();
        match aside(&self.path, move || RedbStore::open(&path)).await {
            Ok(reign) => Ok(Campaign::Elected(Arc::new(reign))),
            Err(StoreError::Held { .. }) => Ok(Campaign::Taken(Sighting::default())),
            Err(error) => Err(error),
        }
    }

    async fn vacated(&self, _seen: &Sighting) -> Result<(), StoreError> {
        tokio::time::sleep(LOOK_EVERY).await;
        Ok(())
    }

    async fn records(&self) -> Result<Vec<Record>, StoreError> {
        let path = self.path.clone();
        aside(&self.path, move || read_records(&path)).await
    }
}

/// Disks block; the runtime's threads must not.
async fn aside<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(database_error(path)(redb::Error::Io(io::Error::other(e)))))
}

/// A reign over one file.
#[derive(Clone, Debug)]
pub struct RedbStore {
    path: PathBuf,
    database: Arc<Database>,
    term: Term,
}

impl RedbStore {
    /// Opens or makes the file and begins a reign. The file is locked until the store is dropped.
    ///
    /// # Errors
    /// [`StoreError::Held`], [`StoreError::Newer`], or that the file is none of ours.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = match Database::create(path) {
            Ok(database) => database,
            Err(DatabaseError::DatabaseAlreadyOpen) => return Err(StoreError::Held { path: path.into() }),
            Err(error) => return Err(database_error(path)(error.into())),
        };
        Self::reign(path, Arc::new(database))
    }

    /// As [`RedbStore::open`], on a disk of another kind; `path` only names it.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub fn on(path: &Path, disk: impl StorageBackend) -> Result<Self, StoreError> {
        let database = Database::builder().create_with_backend(disk);
        let database = database.map_err(|error| database_error(path)(error.into()))?;
        Self::reign(path, Arc::new(database))
    }

    /// Begins another reign over the same file, which fences this one.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub fn succeed(&self) -> Result<Self, StoreError> {
        Self::reign(&self.path, Arc::clone(&self.database))
    }

    fn reign(path: &Path, database: Arc<Database>) -> Result<Self, StoreError> {
        let failed = database_error(path);
        let begin = || -> Result<Result<Term, u64>, redb::Error> {
            let transaction = database.begin_write()?;
            let term = {
                transaction.open_table(RECORDS)?;
                let mut meta = transaction.open_table(META)?;
                let format = meta.get("format")?.map(|v| v.value());
                if let Some(found) = format.filter(|f| *f > FORMAT) {
                    return Ok(Err(found)); // dropped transactions change nothing
                }
                let term = meta.get("term")?.map_or(0, |v| v.value()) + 1;
                meta.insert("format", FORMAT)?;
                meta.insert("term", term)?;
                Term(term)
            };
            transaction.commit()?;
            Ok(Ok(term))
        };
        let term = begin().map_err(failed)?.map_err(|found| StoreError::Newer {
            place: path.display().to_string(),
            found,
            known: FORMAT,
        })?;
        Ok(Self {
            path: path.into(),
            database,
            term,
        })
    }
}

impl RedbStore {
    /// The term of this reign.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// Number of records.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn revision(&self) -> Result<u64, StoreError> {
        let read = || -> Result<u64, redb::Error> {
            let records = self.database.begin_read()?.open_table(RECORDS)?;
            Ok(records.last()?.map_or(0, |(revision, _)| revision.value()))
        };
        read().map_err(database_error(&self.path))
    }

    /// As [`Reign::append`]; blocks until the record is on disk.
    ///
    /// # Errors
    /// As [`Reign::append`].
    pub fn append(&self, expected: u64, record: &Record) -> Result<u64, StoreError> {
        let revision = expected + 1;
        let json = serde_json::to_vec(record).map_err(|e| StoreError::Broken {
            place: self.path.display().to_string(),
            revision,
            reason: e.to_string(),
        })?;
        let write = || -> Result<Result<u64, StoreError>, redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let meta = transaction.open_table(META)?;
                let theirs = Term(meta.get("term")?.map_or(0, |v| v.value()));
                if theirs != self.term {
                    let ours = self.term;
                    return Ok(Err(StoreError::Fenced { ours, theirs }));
                }
                let mut records = transaction.open_table(RECORDS)?;
                let found = records.last()?.map_or(0, |(revision, _)| revision.value());
                if found != expected {
                    return Ok(Err(StoreError::Conflict { expected, found }));
                }
                records.insert(revision, json.as_slice())?;
            }
            transaction.commit()?;
            Ok(Ok(revision))
        };
        write().map_err(database_error(&self.path))?
    }

    /// All records, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn records(&self) -> Result<Vec<Record>, StoreError> {
        records_of(self.database.as_ref(), &self.path)
    }
}

#[async_trait]
impl Reign for RedbStore {
    fn term(&self) -> Term {
        self.term
    }

    fn holds_for(&self) -> Option<Duration> {
        None
    }

    fn renewal_holds_for(&self) -> Option<Duration> {
        None
    }

    fn renew_every(&self) -> Option<Duration> {
        None
    }

    async fn renew(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn append(&self, expected_revision: u64, record: &Record) -> Result<u64, StoreError> {
        let (reign, record) = (self.clone(), record.clone());
        aside(&self.path, move || reign.append(expected_revision, &record)).await
    }

    async fn records(&self) -> Result<Vec<Record>, StoreError> {
        let reign = self.clone();
        aside(&self.path, move || reign.records()).await
    }

    /// The lock goes with the last clone.
    async fn resign(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The records of a run that nobody coordinates at the moment, oldest first. Begins no reign and writes nothing, unless
/// the last writer was killed: then redb has to repair the file first.
///
/// # Errors
/// [`StoreError::Held`] while a coordinator runs, [`StoreError::Newer`], or that the file cannot be read.
pub fn read_records(path: &Path) -> Result<Vec<Record>, StoreError> {
    let held = || StoreError::Held { path: path.into() };
    match ReadOnlyDatabase::open(path) {
        Ok(database) => records_of(&database, path),
        Err(DatabaseError::DatabaseAlreadyOpen) => Err(held()),
        Err(DatabaseError::RepairAborted) => match Database::open(path) {
            Ok(database) => records_of(&database, path),
            Err(DatabaseError::DatabaseAlreadyOpen) => Err(held()),
            Err(error) => Err(database_error(path)(error.into())),
        },
        Err(error) => Err(database_error(path)(error.into())),
    }
}

fn records_of(database: &impl ReadableDatabase, path: &Path) -> Result<Vec<Record>, StoreError> {
    type Pairs = Vec<(u64, Vec<u8>)>;
    let read = || -> Result<(u64, Pairs), redb::Error> {
        let transaction = database.begin_read()?;
        let format = transaction.open_table(META)?.get("format")?.map_or(0, |v| v.value());
        let records = transaction.open_table(RECORDS)?;
        let pairs = records
            .iter()?
            .map(|pair| pair.map(|(revision, json)| (revision.value(), json.value().to_vec())))
            .collect::<Result<_, _>>()?;
        Ok((format, pairs))
    };
    let broken = |revision, reason: String| StoreError::Broken {
        place: path.display().to_string(),
        revision,
        reason,
    };
    let (found, pairs) = read().map_err(database_error(path))?;
    if found > FORMAT {
        let (place, known) = (path.display().to_string(), FORMAT);
        return Err(StoreError::Newer { place, found, known });
    }
    let mut records = Vec::new();
    for (next, (revision, json)) in (1..).zip(pairs) {
        if revision != next {
            return Err(broken(next, "it is missing".into()));
        }
        records.push(serde_json::from_slice(&json).map_err(|e| broken(revision, e.to_string()))?);
    }
    Ok(records)
}

fn database_error(path: &Path) -> impl Fn(redb::Error) -> StoreError + use<> {
    let path = path.to_path_buf();
    move |source| match &source {
        redb::Error::Io(error) if error.kind() == io::ErrorKind::StorageFull => StoreError::Full {
            place: path.display().to_string(),
            reason: error.to_string(),
            help: "Make room on that disk and start the run again",
        },
        _ => StoreError::Database {
            path: path.clone(),
            source: Box::new(source),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(attempt: u64) -> Record {
        Record::CheckpointOpened {
            attempt,
            at_step: attempt,
        }
    }

    fn file() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta.redb");
        (dir, path)
    }

    #[test]
    fn append_at_a_wrong_revision_is_refused_and_changes_nothing() {
        let (_dir, path) = file();
        let store = RedbStore::open(&path).unwrap();
        assert_eq!(store.append(0, &record(1)).unwrap(), 1);
        for wrong in [0, 2] {
            let refused = store.append(wrong, &record(9));
            assert!(
                matches!(refused, Err(StoreError::Conflict { found: 1, .. })),
                "{refused:?}"
            );
        }
        assert_eq!(store.records().unwrap(), vec![record(1)]);
    }

    #[test]
    fn reopened_store_keeps_order_and_begins_a_later_term() {
        let (_dir, path) = file();
        let first = RedbStore::open(&path).unwrap();
        for attempt in 1..=300 {
            first.append(attempt - 1, &record(attempt)).unwrap();
        }
        assert_eq!(first.term(), Term(1));
        drop(first);
        let second = RedbStore::open(&path).unwrap();
        assert_eq!(second.term(), Term(2));
        assert_eq!(second.revision().unwrap(), 300);
        assert_eq!(second.records().unwrap(), (1..=300).map(record).collect::<Vec<_>>());
    }

    #[test]
    fn earlier_reign_is_fenced_by_a_later_one() {
        let (_dir, path) = file();
        let old = RedbStore::open(&path).unwrap();
        old.append(0, &record(1)).unwrap();
        let new = old.succeed().unwrap();
        let refused = old.append(1, &record(2));
        assert!(
            matches!(
                refused,
                Err(StoreError::Fenced {
                    ours: Term(1),
                    theirs: Term(2)
                })
            ),
            "{refused:?}"
        );
        assert_eq!(new.append(1, &record(3)).unwrap(), 2);
        assert_eq!(new.records().unwrap(), vec![record(1), record(3)]);
    }

    #[test]
    fn records_are_read_without_a_reign_and_not_while_one_lasts() {
        let (_dir, path) = file();
        let store = RedbStore::open(&path).unwrap();
        store.append(0, &record(1)).unwrap();
        assert!(matches!(read_records(&path), Err(StoreError::Held { .. })));
        drop(store);
        assert_eq!(read_records(&path).unwrap(), vec![record(1)]);
        assert_eq!(
            RedbStore::open(&path).unwrap().term(),
            Term(2),
            "reading began no reign"
        );
    }

    #[test]
    fn store_opened_twice_is_held() {
        let (_dir, path) = file();
        let _first = RedbStore::open(&path).unwrap();
        assert!(matches!(RedbStore::open(&path), Err(StoreError::Held { .. })));
    }

    #[test]
    fn newer_format_is_refused_and_left_as_it_is() {
        let (_dir, path) = file();
        let store = RedbStore::open(&path).unwrap();
        let transaction = store.database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("format", 7).unwrap();
        transaction.commit().unwrap();
        drop(store);
        let error = RedbStore::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Newer { found: 7, known: 1, .. }));
        assert!(error.to_string().contains("has format 7"), "{error}");
        let database = Database::create(&path).unwrap();
        let meta = database.begin_read().unwrap().open_table(META).unwrap();
        assert_eq!(meta.get("term").unwrap().unwrap().value(), 1, "no reign began");
    }

    #[test]
    fn transaction_that_was_not_committed_is_not_seen_after_reopening() {
        let (_dir, path) = file();
        let store = RedbStore::open(&path).unwrap();
        store.append(0, &record(1)).unwrap();
        let torn = store.database.begin_write().unwrap();
        torn.open_table(RECORDS).unwrap().insert(2, b"torn".as_slice()).unwrap();
        drop(torn);
        drop(store);
        assert_eq!(RedbStore::open(&path).unwrap().records().unwrap(), vec![record(1)]);
    }

    #[test]
    fn unreadable_record_is_named() {
        let (_dir, path) = file();
        let store = RedbStore::open(&path).unwrap();
        let transaction = store.database.begin_write().unwrap();
        let json = b"{\"kind\":\"from_the_future\"}".as_slice();
        transaction.open_table(RECORDS).unwrap().insert(1, json).unwrap();
        transaction.commit().unwrap();
        assert!(matches!(store.records(), Err(StoreError::Broken { revision: 1, .. })));
    }

    #[test]
    fn file_that_is_no_database_is_refused() {
        let (_dir, path) = file();
        std::fs::write(&path, vec![7u8; 4096]).unwrap();
        let error = RedbStore::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Database { .. }), "{error}");
    }
}
