//! The two files of a shard: rows one behind the other, and a list of records that say where each lies.

use super::ShardKey;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use xxhash_rust::xxh3::xxh3_64;

pub(super) const DATA: &str = "rows1";
/// Its number is the version of both files; others are left to those who know them.
pub(super) const LIST: &str = "list1";
/// Size of a record: start, offset, length, flags, hash of the row, hash of the record.
pub(super) const RECORD_BYTES: u64 = 40;
const CONFIRMED: u32 = 1;

/// Where a row lies in the file of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) hash: u64,
    pub(super) confirmed: bool,
}

/// An opened shard.
#[derive(Debug)]
pub(super) struct Pack {
    data: Arc<File>,
    list: File,
    /// Bytes of the list that were read.
    read: u64,
    rows: BTreeMap<u64, Row>,
    /// When it was last used, in uses.
    pub(super) used: u64,
}

impl Pack {
    /// Opens both files, or begins them when `make` says so; none when they are not there or cannot be opened.
    pub(super) fn open(data: &Path, list: &Path, make: bool) -> Option<Self> {
        let open = |path: &Path| {
            let mut options = File::options();
            options
                .read(true)
                .write(true)
                .create(make)
                .truncate(false)
                .open(path)
                .ok()
        };
        Some(Self {
            list: open(list)?,
            data: Arc::new(open(data)?),
            read: 0,
            rows: BTreeMap::new(),
            used: 0,
        })
    }

    pub(super) fn data(&self) -> Arc<File> {
        Arc::clone(&self.data)
    }

    /// Where the row that begins at `start` lies, as far as anybody has noted it.
    pub(super) fn row(&mut self, start: u64) -> Option<Row> {
        if !self.rows.contains_key(&start) {
            self.read_on();
        }
        self.rows.get(&start).copied()
    }

    /// The row is not what its record says.
    pub(super) fn forget(&mut self, start: u64) {
        self.rows.remove(&start);
    }

    /// Takes in what others have noted. A record that is torn or turned is as good as none; a later one of a row counts.
    fn read_on(&mut self) {
        let length = self.list.metadata().map_or(0, |m| m.len());
        let whole = length / RECORD_BYTES * RECORD_BYTES;
        let Some(more) = whole.checked_sub(self.read).filter(|n| *n > 0) else {
            return;
        };
        let mut bytes = vec![0u8; more as usize];
        if self.list.read_exact_at(&mut bytes, self.read).is_err() {
            return;
        }
        self.read = whole;
        for record in bytes.as_chunks::<{ RECORD_BYTES as usize }>().0 {
            if let Some((start, row)) = parse(record) {
                self.rows.insert(start, row);
            }
        }
    }

    /// Writes a row. Called by who holds the ledger.
    pub(super) fn append(&mut self, start: u64, bytes: &[u8], confirmed: bool) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let offset = self.data.metadata()?.len();
        self.data.write_all_at(bytes, offset)?;
        let row = Row {
            offset,
            length,
            hash: xxh3_64(bytes),
            confirmed,
        };
        self.note(start, row)
    }

    /// Writes a record. Called by who holds the ledger.
    pub(super) fn note(&mut self, start: u64, row: Row) -> io::Result<()> {
        // A record that a killed process left torn is written over.
        let at = self.list.metadata()?.len() / RECORD_BYTES * RECORD_BYTES;
        self.list.write_all_at(&record(start, row), at)?;
        self.rows.insert(start, row);
        Ok(())
    }
}

fn record(start: u64, row: Row) -> [u8; RECORD_BYTES as usize] {
    let mut out = [0u8; RECORD_BYTES as usize];
    out[..8].copy_from_slice(&start.to_le_bytes());
    out[8..16].copy_from_slice(&row.offset.to_le_bytes());
    out[16..20].copy_from_slice(&row.length.to_le_bytes());
    out[20..24].copy_from_slice(&(if row.confirmed { CONFIRMED } else { 0 }).to_le_bytes());
    out[24..32].copy_from_slice(&row.hash.to_le_bytes());
    let sum = xxh3_64(&out[..32]);
    out[32..].copy_from_slice(&sum.to_le_bytes());
    out
}

fn parse(record: &[u8; RECORD_BYTES as usize]) -> Option<(u64, Row)> {
    let long = |at: usize| record[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    let short = |at: usize| record[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
    let row = Row {
        offset: long(8),
        length: short(16),
        hash: long(24),
        confirmed: short(20) & CONFIRMED != 0,
    };
    (xxh3_64(&record[..32]) == long(32)).then_some((long(0), row))
}

/// All shards of the folder with their sizes and the time of their last change.
pub(super) fn sizes(folder: &Path) -> io::Result<Vec<(ShardKey, u64, SystemTime)>> {
    let mut packs = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|s| s.to_str()).filter(|s| s.len() == 32);
        let key = stem.and_then(|s| u128::from_str_radix(s, 16).ok());
        let (Some(key), true) = (key, path.extension().is_some_and(|e| e == LIST)) else {
            continue;
        };
        let key = ShardKey(key);
        // Another process may just have thrown it out.
        let (Ok(list), Ok(data)) = (std::fs::metadata(&path), std::fs::metadata(key.file(folder, DATA))) else {
            continue;
        };
        packs.push((key, list.len() + data.len(), list.modified()?));
    }
    Ok(packs)
}
