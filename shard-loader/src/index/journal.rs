//! What an interrupted index had read already: one record per shard, appended as it is done.
//!
//! A record is its length, the hash of its bytes, and an rkyv [`ShardRecord`]. A torn tail, as a kill leaves it, is passed
//! over. The first record names the keys and the filter; a journal of others is begun anew.

use super::body::ShardRecord;
use crate::error::DataError;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"ARGOSYJ1";
/// Largest record: a shard of a hundred million rows.
const RECORD_BYTES_MAX: u64 = 2 << 30;

/// A journal open for appending.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

fn failed(path: &Path, error: &std::io::Error) -> DataError {
    DataError::Write {
        file: path.display().to_string(),
        error: error.to_string(),
    }
}

impl Journal {
    /// Opens the journal at `path` for an index made with `settings`; gives the shards in it.
    pub(super) fn open(path: &Path, settings: &str) -> Result<(Self, Vec<ShardRecord>), DataError> {
        let found = std::fs::read(path).unwrap_or_default();
        let (records, good) = parse(&found, settings);
        let write = || -> std::io::Result<File> {
            let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
            file.set_len(good as u64)?;
            std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?;
            if good == 0 {
                file.write_all(MAGIC)?;
                file.write_all(&framed(settings.as_bytes()))?;
            }
            Ok(file)
        };
        let file = write().map_err(|e| failed(path, &e))?;
        let path = path.to_owned();
        Ok((Self { path, file }, records))
    }

    /// Notes a shard that was read.
    pub(super) fn append(&mut self, record: &ShardRecord) -> Result<(), DataError> {
        let bytes = rkyv::to_bytes::<rkyv::rancor::Error>(record)
            .map_err(|e| DataError::Config(format!("cannot note shard {}: {e}", record.location)))?;
        self.file.write_all(&framed(&bytes)).map_err(|e| failed(&self.path, &e))
    }

    /// The index is written; the journal has done its duty.
    pub(super) fn remove(self) {
        // One that stays is only read again.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 16);
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(&xxh3_64(bytes).to_le_bytes());
    out.extend_from_slice(bytes);
    out
}

/// The whole records of a journal made with `settings`, and the bytes up to the end of the last.
fn parse(bytes: &[u8], settings: &str) -> (Vec<ShardRecord>, usize) {
    let mut records = Vec::new();
    if bytes.get(..8) != Some(MAGIC) {
        return (records, 0);
    }
    let Some(first) = frame(&bytes[8..]).filter(|first| *first == settings.as_bytes()) else {
        return (records, 0);
    };
    let mut at = 8 + 16 + first.len();
    while let Some(record) = frame(&bytes[at..]) {
        let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(record.len());
        aligned.extend_from_slice(record);
        match rkyv::from_bytes::<ShardRecord, rkyv::rancor::Error>(&aligned) {
            Ok(shard) => records.push(shard),
            Err(_) => break,
        }
        at += 16 + record.len();
    }
    (records, at)
}

fn frame(bytes: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let length = word(0).filter(|n| *n <= RECORD_BYTES_MAX)? as usize;
    let record = bytes.get(16..16 + length)?;
    (word(8)? == xxh3_64(record)).then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(i: usize) -> ShardRecord {
        ShardRecord {
            location: format!("/{i}.tar"),
            starts: vec![0; i],
            ..ShardRecord::default()
        }
    }

    #[test]
    fn journal_cut_at_any_byte_keeps_its_whole_records() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("j");
        let (mut journal, found) = Journal::open(&path, "keys").expect("begun");
        assert!(found.is_empty());
        let mut ends = vec![std::fs::metadata(&path).expect("there").len()];
        for i in 0..3 {
            journal.append(&record(i)).expect("noted");
            ends.push(std::fs::metadata(&path).expect("there").len());
        }
        let whole = std::fs::read(&path).expect("read");
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).expect("cut");
            let (mut journal, found) = Journal::open(&path, "keys").expect("opened");
            let expected = ends.iter().skip(1).filter(|e| **e <= cut as u64).count();
            assert_eq!(found, (0..expected).map(record).collect::<Vec<_>>(), "cut at {cut}");
            journal.append(&record(9)).expect("noted");
            drop(journal);
            assert_eq!(Journal::open(&path, "keys").expect("opened").1.last(), Some(&record(9)));
        }
        assert!(Journal::open(&path, "other keys").expect("begun anew").1.is_empty());
    }
}
