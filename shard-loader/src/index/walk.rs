//! Walks one shard: which of its samples are rows, and where.

use super::body::ShardRecord;
use super::filter::Filter;
use crate::error::DataError;
use crate::sample::{self, Caption, Group, Grouper, Keys};
use crate::store::{ReadRequest, Store, is_url};
use crate::tar::{ReadAt, Walker};
use bytes::Bytes;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes read at once while walking. From a store a request costs as much as many bytes; from a file only headers count.
const CHUNK_BYTES_STORE: u64 = 2 << 20;
const CHUNK_BYTES_FILE: u64 = 3 * 512;
/// The same where members beside a picture go on behind that: their headers, contents and the next picture's header.
const CHUNK_BYTES_FILE_MAX: u64 = 4 << 10;
/// Largest caption or JSON that a filter reads.
const MEMBER_BYTES_MAX: u64 = 8 << 20;

/// What becomes of a sample in an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is a row.
    Kept,
    /// It lacks picture or caption, or is too large to be one.
    Missing,
    /// The filter left it out.
    Filtered,
}

/// A shard read by chunks, keeping the last.
#[derive(Debug)]
pub(crate) struct ChunkedShard {
    store: Store,
    location: String,
    bytes: u64,
    etag: Option<String>,
    file: Option<File>,
    chunk: Bytes,
    chunk_start: u64,
    /// Bytes read at once from a file.
    ahead: u64,
}

impl ChunkedShard {
    /// `request` names the shard; its range does not matter.
    pub(crate) fn open(store: &Store, request: &ReadRequest<'_>) -> Self {
        // A file that cannot be opened here fails in the store's words at the first read.
        let file = (!is_url(request.location)).then(|| File::open(request.location).ok());
        Self {
            store: store.clone(),
            location: request.location.to_owned(),
            bytes: request.bytes,
            etag: request.etag.map(str::to_owned),
            file: file.flatten(),
            chunk: Bytes::new(),
            chunk_start: 0,
            ahead: CHUNK_BYTES_FILE,
        }
    }

    fn fetch(&mut self, range: &Range<u64>) -> Result<Bytes, DataError> {
        let end = |chunk: u64| (range.start + chunk).max(range.end).min(self.bytes);
        if let Some(file) = &self.file {
            // The memory of the chunk before is used again, unless somebody still holds a slice of it.
            let mut bytes = std::mem::take(&mut self.chunk).try_into_mut().unwrap_or_default();
            bytes.resize((end(self.ahead) - range.start) as usize, 0);
            if file.read_exact_at(&mut bytes, range.start).is_ok() {
                return Ok(bytes.freeze());
            }
        }
        self.store.read(&ReadRequest {
            location: &self.location,
            range: range.start..end(CHUNK_BYTES_STORE),
            bytes: self.bytes,
            etag: self.etag.as_deref(),
        })
    }
}

impl ReadAt for ChunkedShard {
    fn size(&self) -> u64 {
        self.bytes
    }

    fn read_at(&mut self, range: Range<u64>) -> Result<Bytes, DataError> {
        let held = self.chunk_start..self.chunk_start + self.chunk.len() as u64;
        if range.start < held.start || range.end > held.end {
            if held.start < held.end && (held.start..=held.end).contains(&range.start) {
                self.ahead = CHUNK_BYTES_FILE_MAX;
            }
            self.chunk = self.fetch(&range)?;
            self.chunk_start = range.start;
        }
        let from = (range.start - self.chunk_start) as usize;
        Ok(self.chunk.slice(from..from + (range.end - range.start) as usize))
    }
}

/// The rows of the shard that `request` names; its range does not matter. Damage in one that came over a network counts when
/// it is found a second time: bytes may break on their way.
///
/// # Errors
/// As [`walk_shard`].
pub(crate) fn rows_of(
    store: &Store,
    request: &ReadRequest<'_>,
    keys: &Keys,
    filter: &Filter,
) -> Result<ShardRecord, DataError> {
    let walk = || walk_shard(ChunkedShard::open(store, request), keys, filter, |_, _, _| Ok(()));
    let first = walk()?;
    if first.damage.is_some() && is_url(request.location) {
        return walk();
    }
    Ok(first)
}

/// Walks `archive` to its end or its damage. `each` hears of every sample.
///
/// # Errors
/// When bytes cannot be read; a broken archive is no error but noted as damage.
pub(crate) fn walk_shard<R: ReadAt>(
    archive: R,
    keys: &Keys,
    filter: &Filter,
    mut each: impl FnMut(&Group, Fate, &mut R) -> Result<(), DataError>,
) -> Result<ShardRecord, DataError> {
    let mut found = ShardRecord {
        bytes: archive.size(),
        ..ShardRecord::default()
    };
    if found.bytes == 0 {
        found.damage = Some("the file is empty".into());
        return Ok(found);
    }
    let mut walker = Walker::new(archive);
    let mut grouper = Grouper::default();
    let mut take = |group: Group, archive: &mut R| -> Result<(), DataError> {
        let fate = fate(&group, archive, keys, filter)?;
        found.kept.push(fate == Fate::Kept);
        match fate {
            Fate::Kept => {
                found.starts.push(group.start);
                found.lengths.push((end_of(&group, found.bytes) - group.start) as u32);
            }
            Fate::Missing => found.missing += 1,
            Fate::Filtered => found.filtered += 1,
        }
        each(&group, fate, archive)
    };
    let mut damage = None;
    while let Some(member) = walker.next() {
        match member {
            Ok(member) => {
                if let Some(group) = grouper.push(&member) {
                    take(group, walker.archive())?;
                }
            }
            Err(DataError::Tar { at, why }) => damage = Some(format!("at byte {at}: {why}")),
            Err(error) => return Err(error),
        }
    }
    if damage.is_none() && !walker.is_closed() {
        damage = Some(format!(
            "the archive has no empty block behind its last member, which ends at byte {}: it may have been cut there",
            walker.offset()
        ));
    }
    if let Some(group) = grouper.finish() {
        take(group, walker.archive())?;
    }
    found.damage = damage;
    Ok(found)
}

/// The last member of an archive without its padding ends with the file.
fn end_of(group: &Group, shard_bytes: u64) -> u64 {
    group.end.min(shard_bytes)
}

fn fate<R: ReadAt>(group: &Group, archive: &mut R, keys: &Keys, filter: &Filter) -> Result<Fate, DataError> {
    let fits = u32::try_from(end_of(group, archive.size()) - group.start).is_ok();
    if !fits || group.image(keys).is_none() || !group.has_text(keys) {
        return Ok(Fate::Missing);
    }
    if filter.is_empty() {
        return Ok(Fate::Kept);
    }
    let mut member = |range: Option<Range<u64>>| match range {
        Some(range) if range.end - range.start <= MEMBER_BYTES_MAX && !range.is_empty() => {
            archive.read_at(range).map(Some)
        }
        _ => Ok(None),
    };
    let json = match filter.needs_json() {
        true => member(group.get("json"))?.and_then(|bytes| serde_json::from_slice(&bytes).ok()),
        false => None,
    };
    let mut captions: Vec<Caption> = Vec::new();
    if filter.needs_caption() {
        for (i, source) in keys.texts().iter().enumerate() {
            let Some(bytes) = member(group.get(source.suffix()))? else {
                continue;
            };
            captions.extend(sample::captions_of(i, source, &bytes));
        }
    }
    let keeps = filter.keeps(&group.key, json.as_ref(), &captions);
    Ok(if keeps { Fate::Kept } else { Fate::Filtered })
}
