//! What an interrupted index had read already: one record per shard, appended as it is done, until the index is written.
//!
//! A record is its length, the hash of its bytes, and an rkyv [`Noted`]. A torn tail, as a kill leaves it, is cut off. The first
//! record names the keys and the filter; a journal of others, or of another version, is begun anew. A file that is no journal is
//! never written to.

use super::body::ShardRecord;
use crate::error::DataError;
use rkyv::{Archive, Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// Its last byte is the version.
const MAGIC: &[u8; 8] = b"ARGOSYJ2";
/// Largest record: a shard of a hundred million rows.
const RECORD_BYTES_MAX: u64 = 2 << 30;

/// A shard that was read.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub(super) struct Noted {
    pub(super) shard: ShardRecord,
    /// What is wrong about the count that others claim, to be told when the index is done.
    pub(super) wrong_claim: Option<String>,
}

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
    ///
    /// # Errors
    /// When it cannot be read or written, or when something else lies there.
    pub(super) fn open(path: &Path, settings: &str) -> Result<(Self, Vec<Noted>), DataError> {
        let found = read(path).map_err(|e| failed(path, &e))?;
        if !is_journal(&found) {
            let why = "this is no journal of an interrupted index; move it away, or write the index elsewhere";
            return Err(failed(path, &std::io::Error::other(why)));
        }
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
    pub(super) fn append(&mut self, noted: &Noted) -> Result<(), DataError> {
        let bytes = rkyv::to_bytes::<rkyv::rancor::Error>(noted)
            .map_err(|e| DataError::Config(format!("cannot note shard {}: {e}", noted.shard.location)))?;
        self.file.write_all(&framed(&bytes)).map_err(|e| failed(&self.path, &e))
    }
}

/// Removes the journal at `path`; to be called when the index that it was kept for is written. What is no journal stays.
pub fn remove_journal(path: &Path) {
    let mut begin = [0; MAGIC.len()];
    let begins = File::open(path).and_then(|mut file| file.read_exact(&mut begin));
    if begins.is_ok() && is_journal(&begin) {
        // One that stays is only read again.
        let _ = std::fs::remove_file(path);
    }
}

/// What lies at `path`; nothing where no file is.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        found => found,
    }
}

/// Whether bytes are those of a journal, of whatever version and wherever a kill cut it.
fn is_journal(bytes: &[u8]) -> bool {
    let name = &MAGIC[..MAGIC.len() - 1];
    let length = bytes.len().min(name.len());
    bytes[..length] == name[..length]
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 16);
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(&xxh3_64(bytes).to_le_bytes());
    out.extend_from_slice(bytes);
    out
}

/// The whole records of a journal made with `settings`, and the bytes up to the end of the last.
fn parse(bytes: &[u8], settings: &str) -> (Vec<Noted>, usize) {
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
        match rkyv::from_bytes::<Noted, rkyv::rancor::Error>(&aligned) {
            Ok(noted) => records.push(noted),
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

    fn record(i: usize) -> Noted {
        let shard = ShardRecord {
            location: format!("/{i}.tar"),
            starts: vec![0; i],
            ..ShardRecord::default()
        };
        Noted {
            shard,
            wrong_claim: (i == 1).then(|| "a claim".to_owned()),
        }
    }

    #[test]
    fn journal_that_is_something_else_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("thesis.partial");
        for precious in ["a thesis", "ARGOSY, a thesis", "x"] {
            std::fs::write(&path, precious).expect("written");
            let text = Journal::open(&path, "keys").expect_err(precious).to_string();
            assert!(
                text.contains("thesis.partial") && text.contains("move it away"),
                "{text}"
            );
            remove_journal(&path);
            assert_eq!(std::fs::read_to_string(&path).expect("still there"), precious);
        }
        // What cannot be read is not taken for empty.
        let text = Journal::open(folder.path(), "keys").expect_err("a folder").to_string();
        assert!(text.contains("cannot write"), "{text}");
    }

    #[test]
    fn journal_of_another_version_is_begun_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("j");
        std::fs::write(&path, b"ARGOSYJ1 and so on").expect("written");
        assert!(Journal::open(&path, "keys").expect("begun anew").1.is_empty());
        assert!(std::fs::read(&path).expect("there").starts_with(MAGIC));
        remove_journal(&path);
        assert!(!path.exists());
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
