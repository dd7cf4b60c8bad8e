//! Rows kept on this machine's disk, so that a second pass, a second run or another worker need not ask the store again.
//!
//! A folder with a pair of files per shard, shared by all processes of the machine. What is kept can be torn, turned or
//! removed at any time: a row is only served when its checksum holds, else it is fetched again. Keys hold the etag, so that
//! another object is never served. The cache knows no order and no cursor; without it the same rows are trained (rule L7).
//!
//! When it is full, shards that this run does not read go first, the oldest first; then nothing more is taken in. Throwing out
//! what the run will want again would only make room for what it wants later still: every pass reads everything once.

mod kept;
mod pack;
#[cfg(test)]
mod tests;

pub(crate) use kept::Kept;

use crate::error::DataError;
use bytes::Bytes;
use nix::sys::statvfs::statvfs;
use pack::{Pack, Row};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// Shards whose list of rows is held in memory; a lane reads one or two at a time.
const OPEN_MAX: usize = 256;
/// How often the ledger is asked for while another process has it, and the time in between; together longer than a row takes
/// to be written, and far shorter than a batch takes to be trained.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_micros(100);

/// A shard's name in the cache, a hash of everything that its rows depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShardKey(u128);

impl ShardKey {
    /// Rows of the object with this address, size and etag, in the form that `form` names.
    #[must_use]
    pub fn new(form: &str, location: &str, bytes: u64, etag: &str) -> Self {
        Self(xxh3_128(format!("{form}\0{location}\0{bytes}\0{etag}").as_bytes()))
    }

    fn file(self, folder: &Path, suffix: &str) -> PathBuf {
        folder.join(format!("{:032x}.{suffix}", self.0))
    }
}

/// What a cache did since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Rows served.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Rows taken in.
    pub kept: u64,
    /// Rows whose checksum did not hold.
    pub broken: u64,
    /// Rows that were not taken in for want of room.
    pub refused: u64,
    /// Rows that were not taken in because another process was writing.
    pub busy: u64,
}

/// A row that was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptRow {
    /// What was kept.
    pub bytes: Bytes,
    /// Somebody read it twice from the store and got the same.
    pub confirmed: bool,
}

/// The cache. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct DiskCache {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    bytes_max: u64,
    free_bytes_min: u64,
    /// Locked by whoever writes, in any process. Holds the number of bytes that are taken.
    ledger: File,
    state: Mutex<State>,
    /// No more is taken in: there is no room, or the disk fails.
    closed: AtomicBool,
    /// Whoever has the ledger has had it for longer than a row takes, and may be stopped; nobody waits for it again before it
    /// gave it back.
    held_up: AtomicBool,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    rows: AtomicU64,
    bytes: AtomicU64,
    kept: AtomicU64,
    broken: AtomicU64,
    refused: AtomicU64,
    busy: AtomicU64,
}

/// What became of a row that was to be kept.
enum Put {
    Kept,
    /// It was there.
    Known,
    /// Another process was writing.
    Busy,
}

#[derive(Debug, Default)]
struct State {
    open: BTreeMap<ShardKey, Pack>,
    /// Shards that this process reads; never thrown out.
    own: BTreeSet<ShardKey>,
    /// Counts uses, for forgetting the least used pack.
    uses: u64,
}

fn one(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl DiskCache {
    /// Opens the cache in `folder`, which is made when it is missing. It holds at most `bytes_max` bytes and leaves
    /// `free_bytes_min` of its disk free.
    ///
    /// # Errors
    /// [`DataError::Write`] when the folder cannot be made or written.
    pub fn open(folder: &Path, bytes_max: u64, free_bytes_min: u64) -> Result<Self, DataError> {
        let failed = |error: std::io::Error| DataError::Write {
            file: format!("cache folder {}", folder.display()),
            error: error.to_string(),
        };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let mut options = std::fs::OpenOptions::new();
        let ledger = options.read(true).write(true).create(true).truncate(false);
        let ledger = ledger.open(folder.join("ledger")).map_err(failed)?;
        Ok(Self {
            shared: Arc::new(Shared {
                folder: folder.to_owned(),
                bytes_max,
                free_bytes_min,
                ledger,
                state: Mutex::default(),
                closed: AtomicBool::new(false),
                held_up: AtomicBool::new(false),
                counters: Counters::default(),
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What stands in it is a cache of files, each change of which is complete before the lock goes.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the shards that are about to be read; they are not thrown out for each other.
    pub fn own(&self, keys: impl IntoIterator<Item = ShardKey>) {
        self.lock().own.extend(keys);
    }

    /// Whether the row that begins at byte `start` of its shard was noted. Its bytes are not looked at.
    #[must_use]
    pub fn has(&self, key: ShardKey, start: u64) -> bool {
        let mut state = self.lock();
        let pack = state.pack(&self.shared.folder, key, false);
        pack.is_some_and(|pack| pack.row(start).is_some())
    }

    /// The row that begins at byte `start` of its shard, when it is there and whole.
    #[must_use]
    pub fn get(&self, key: ShardKey, start: u64) -> Option<KeptRow> {
        let (data, row) = {
            let mut state = self.lock();
            let pack = state.pack(&self.shared.folder, key, false)?;
            let row = pack.row(start)?;
            (pack.data(), row)
        };
        let mut bytes = vec![0u8; row.length as usize];
        let counters = &self.shared.counters;
        if data.read_exact_at(&mut bytes, row.offset).is_err() || xxh3_64(&bytes) != row.hash {
            one(&counters.broken, 1);
            tracing::warn!(start, "a kept row is damaged; it is fetched again");
            if let Some(pack) = self.lock().open.get_mut(&key) {
                pack.forget(start);
            }
            return None;
        }
        one(&counters.rows, 1);
        one(&counters.bytes, bytes.len() as u64);
        Some(KeptRow {
            bytes: bytes.into(),
            confirmed: row.confirmed,
        })
    }

    /// Keeps `bytes` as the row that begins at `start`, if there is room. What is there already stays, unless `confirmed`
    /// says more of it. Nothing that fails here fails the run.
    pub fn put(&self, key: ShardKey, start: u64, bytes: &[u8], confirmed: bool) {
        let shared = &self.shared;
        if shared.closed.load(Ordering::Relaxed) {
            one(&shared.counters.refused, 1);
            return;
        }
        match self.try_put(key, start, bytes, confirmed) {
            Ok(Put::Kept) => one(&shared.counters.kept, 1),
            Ok(Put::Known) => {}
            Ok(Put::Busy) => one(&shared.counters.busy, 1),
            Err(error) => {
                one(&shared.counters.refused, 1);
                shared.closed.store(true, Ordering::Relaxed);
                tracing::warn!(folder = %shared.folder.display(), %error, "the cache takes in no more");
            }
        }
    }

    fn try_put(&self, key: ShardKey, start: u64, bytes: &[u8], confirmed: bool) -> std::io::Result<Put> {
        let shared = &self.shared;
        let mut state = self.lock();
        let Some(_writing) = Writing::begin(&shared.ledger, &shared.held_up)? else {
            return Ok(Put::Busy);
        };
        // Another process may have kept it meanwhile.
        let there = state
            .pack(&shared.folder, key, false)
            .and_then(|pack| pack.row(start))
            .filter(|row| row.length as usize == bytes.len() && row.hash == xxh3_64(bytes));
        if there.is_some_and(|row| row.confirmed >= confirmed) {
            return Ok(Put::Known);
        }
        let needed = pack::RECORD_BYTES + if there.is_some() { 0 } else { bytes.len() as u64 };
        let taken = self.make_room(&mut state, needed)?;
        shared.ledger.write_all_at(&(taken + needed).to_le_bytes(), 0)?;
        let Some(pack) = state.pack(&shared.folder, key, true) else {
            return Err(std::io::Error::other("a file of it cannot be opened"));
        };
        match there {
            Some(row) => pack.note(start, Row { confirmed, ..row })?,
            None => pack.append(start, bytes, confirmed)?,
        }
        Ok(Put::Kept)
    }

    /// Makes room for `needed` bytes; gives the bytes that are taken then. Called by who holds the ledger.
    fn make_room(&self, state: &mut State, needed: u64) -> std::io::Result<u64> {
        let shared = &self.shared;
        let lacks = |taken: u64| -> std::io::Result<Option<String>> {
            if taken.saturating_add(needed) > shared.bytes_max {
                return Ok(Some(format!("it holds {taken} of {} bytes", shared.bytes_max)));
            }
            let disk = statvfs(&shared.folder)?;
            let free = disk.blocks_available().saturating_mul(disk.fragment_size());
            Ok((free < shared.free_bytes_min.saturating_add(needed)).then(|| {
                format!(
                    "its disk has {free} free bytes, {} are to stay free",
                    shared.free_bytes_min
                )
            }))
        };
        let mut word = [0u8; 8];
        let mut taken = match shared.ledger.read_exact_at(&mut word, 0) {
            Ok(()) => u64::from_le_bytes(word),
            // New, or cut.
            Err(_) => pack::sizes(&shared.folder)?.iter().map(|(_, size, _)| size).sum(),
        };
        if lacks(taken)?.is_none() {
            return Ok(taken);
        }
        // The count may be off by what a killed process was about to write; now it is worth knowing.
        let mut packs = pack::sizes(&shared.folder)?;
        taken = packs.iter().map(|(_, size, _)| size).sum();
        packs.retain(|(key, _, _)| !state.own.contains(key));
        packs.sort_by_key(|(key, _, changed)| (*changed, *key));
        for (key, size, _) in packs {
            if lacks(taken)?.is_none() {
                break;
            }
            state.open.remove(&key);
            std::fs::remove_file(key.file(&shared.folder, pack::LIST))?;
            std::fs::remove_file(key.file(&shared.folder, pack::DATA))?;
            taken -= size;
            tracing::info!(bytes = size, "a shard that this run does not read leaves the cache");
        }
        match lacks(taken)? {
            None => Ok(taken),
            Some(why) => {
                shared.ledger.write_all_at(&taken.to_le_bytes(), 0)?;
                Err(std::io::Error::other(why))
            }
        }
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let c = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            rows: read(&c.rows),
            bytes: read(&c.bytes),
            kept: read(&c.kept),
            broken: read(&c.broken),
            refused: read(&c.refused),
            busy: read(&c.busy),
        }
    }
}

impl State {
    /// The shard's pack, opened, or begun when `make` says so.
    fn pack(&mut self, folder: &Path, key: ShardKey, make: bool) -> Option<&mut Pack> {
        self.uses += 1;
        let uses = self.uses;
        if !self.open.contains_key(&key) {
            let pack = Pack::open(&key.file(folder, pack::DATA), &key.file(folder, pack::LIST), make)?;
            if self.open.len() >= OPEN_MAX {
                let least = self.open.iter().min_by_key(|(_, pack)| pack.used).map(|(key, _)| *key);
                least.and_then(|key| self.open.remove(&key));
            }
            self.open.insert(key, pack);
        }
        let pack = self.open.get_mut(&key)?;
        pack.used = uses;
        Some(pack)
    }
}

/// The right to write, among all processes; ends when dropped.
struct Writing<'a>(&'a File);

impl<'a> Writing<'a> {
    /// None when another process has it for too long: a row more or less is worth no wait, and whoever waits here holds up
    /// the whole loader.
    fn begin(ledger: &'a File, held_up: &AtomicBool) -> std::io::Result<Option<Self>> {
        let tries = if held_up.load(Ordering::Relaxed) { 1 } else { LOCK_TRIES };
        for left in (0..tries).rev() {
            match ledger.try_lock() {
                Ok(()) => {
                    held_up.store(false, Ordering::Relaxed);
                    return Ok(Some(Self(ledger)));
                }
                Err(TryLockError::WouldBlock) if left > 0 => std::thread::sleep(LOCK_PAUSE),
                Err(TryLockError::WouldBlock) => held_up.store(true, Ordering::Relaxed),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(None)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        // The lock goes with the file in any case.
        let _ = self.0.unlock();
    }
}
