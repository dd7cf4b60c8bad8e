//! Makes an index: walks every shard's headers, in parallel.

use super::{Body, Index, ShardEntry, SourceEntry};
use crate::error::DataError;
use crate::expand::{self, NamedShard};
use crate::sample::{Group, Grouper, Keys};
use crate::store::{ReadRequest, RetryPolicy, Store};
use crate::tar::{ReadAt, Walker};
use argosy_common::config::{DataConfig, Source};
use bytes::Bytes;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How an index is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildConfig {
    /// Picture suffixes, joined by `;`.
    pub image_key: String,
    /// Caption suffixes, joined by `;`.
    pub text_key: String,
    /// Shards read at once.
    pub threads: usize,
}

impl BuildConfig {
    /// The keys of a job, and as many threads as the machine has cores.
    #[must_use]
    pub fn of(data: &DataConfig) -> Self {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            image_key: data.image_key.clone(),
            text_key: data.text_key.clone(),
            threads,
        }
    }
}

/// How far a build is. Given after every shard, from several threads, never two at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Shards done.
    pub shards: usize,
    /// Shards in all.
    pub shards_total: usize,
    /// Bytes of the shards done.
    pub bytes: u64,
    /// Kept rows so far.
    pub rows: u64,
}

/// A shard that could not be read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedShard {
    /// Its location.
    pub location: String,
    /// Where and why.
    pub why: String,
    /// Rows before the damage, which are kept.
    pub rows: u32,
}

/// What a build found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildReport {
    /// Shards.
    pub shards: usize,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Kept rows.
    pub rows: u64,
    /// Samples without picture or caption.
    pub missing: u64,
    /// Shards that are cut, empty or no tar archives.
    pub damaged: Vec<DamagedShard>,
}

/// Bytes read at once while walking: one request covers many small samples, a large picture is stepped over.
const CHUNK_BYTES: u64 = 256 << 10;

/// A shard read by chunks, keeping the last.
struct ChunkedShard<'a> {
    store: &'a Store,
    entry: &'a ShardEntry,
    chunk: Bytes,
    chunk_start: u64,
}

impl ReadAt for ChunkedShard<'_> {
    fn size(&self) -> u64 {
        self.entry.bytes
    }

    fn read_at(&mut self, range: Range<u64>) -> Result<Bytes, DataError> {
        let held = self.chunk_start..self.chunk_start + self.chunk.len() as u64;
        if range.start < held.start || range.end > held.end {
            let end = (range.start + CHUNK_BYTES).max(range.end).min(self.entry.bytes);
            let e = self.entry;
            self.chunk = self.store.read(&ReadRequest {
                location: &e.location,
                range: range.start..end,
                bytes: e.bytes,
                etag: e.etag.as_deref(),
            })?;
            self.chunk_start = range.start;
        }
        let from = (range.start - self.chunk_start) as usize;
        Ok(self.chunk.slice(from..from + (range.end - range.start) as usize))
    }
}

/// Indexes `sources`; relative paths start at `base`.
///
/// A damaged shard keeps the rows before the damage and is reported; it does not fail the build.
///
/// # Errors
/// Sources that name nothing, shards that cannot be read, or no usable row at all.
pub fn build(
    sources: &[Source],
    base: &Path,
    config: &BuildConfig,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<(Index, BuildReport), DataError> {
    let keys = Keys::new(&config.image_key, &config.text_key);
    let store = Store::new(RetryPolicy::default())?;
    let listed: Vec<Vec<NamedShard>> = sources
        .iter()
        .map(|s| expand::shards(&s.shards, base, &store))
        .collect::<Result<_, _>>()?;
    let flat: Vec<&NamedShard> = listed.iter().flatten().collect();
    let mut entries = read_all(&store, &flat, &keys, config.threads, progress)?.into_iter();
    let body = Body {
        image_key: config.image_key.clone(),
        text_key: config.text_key.clone(),
        sources: sources
            .iter()
            .zip(&listed)
            .map(|(s, shards)| SourceEntry {
                name: s.name.clone(),
                shards: entries.by_ref().take(shards.len()).collect(),
            })
            .collect(),
    };
    let report = report_of(&body);
    for source in &body.sources {
        if source.shards.iter().all(|s| s.starts.is_empty()) {
            return Err(nothing_usable(source, &keys_in_words(config)));
        }
    }
    Ok((Index::from_body(&body)?, report))
}

fn keys_in_words(config: &BuildConfig) -> String {
    format!("a picture ({}) and a caption ({})", config.image_key, config.text_key)
}

fn nothing_usable(source: &SourceEntry, keys: &str) -> DataError {
    let missing: u64 = source.shards.iter().map(|s| u64::from(s.missing)).sum();
    let damage = source
        .shards
        .iter()
        .find_map(|s| s.damage.as_ref().map(|d| format!("; {}: {d}", s.location)));
    let why = format!(
        "{} shards hold no sample with {keys}; {missing} samples lack one of them{}",
        source.shards.len(),
        damage.unwrap_or_default()
    );
    DataError::Empty {
        what: format!("source `{}`", source.name),
        why,
    }
}

fn report_of(body: &Body) -> BuildReport {
    let mut report = BuildReport::default();
    for shard in body.sources.iter().flat_map(|s| &s.shards) {
        report.shards += 1;
        report.bytes += shard.bytes;
        report.rows += shard.starts.len() as u64;
        report.missing += u64::from(shard.missing);
        if let Some(why) = &shard.damage {
            let rows = shard.starts.len() as u32;
            report.damaged.push(DamagedShard {
                location: shard.location.clone(),
                why: why.clone(),
                rows,
            });
        }
    }
    report
}

/// Walks every shard; the result is in the order of `shards` whatever thread was first.
fn read_all(
    store: &Store,
    shards: &[&NamedShard],
    keys: &Keys,
    threads: usize,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<ShardEntry>, DataError> {
    let next = AtomicUsize::new(0);
    let state = Mutex::new((
        Progress {
            shards_total: shards.len(),
            ..Progress::default()
        },
        Vec::new(),
        None,
    ));
    // Threads of our own: `Store` blocks, and a caller may be asynchronous.
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, shards.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(shard) = shards.get(i) else { return };
                    let entry = read_shard(store, shard, keys);
                    let Ok(mut guard) = state.lock() else { return };
                    let (so_far, entries, failed) = &mut *guard;
                    match entry {
                        Ok(entry) => {
                            so_far.shards += 1;
                            so_far.bytes += entry.bytes;
                            so_far.rows += entry.starts.len() as u64;
                            entries.push((i, entry));
                            progress(*so_far);
                        }
                        Err(error) => {
                            failed.get_or_insert(error);
                            return;
                        }
                    }
                    if failed.is_some() {
                        return;
                    }
                }
            });
        }
    });
    let (_, mut entries, failed) = state
        .into_inner()
        .map_err(|_| DataError::Config("a thread of the index panicked while it reported its progress".into()))?;
    if let Some(error) = failed {
        return Err(error);
    }
    entries.sort_by_key(|(i, _)| *i);
    Ok(entries.into_iter().map(|(_, entry)| entry).collect())
}

fn read_shard(store: &Store, named: &NamedShard, keys: &Keys) -> Result<ShardEntry, DataError> {
    let facts = match &named.facts {
        Some(facts) => facts.clone(),
        None => store.facts(&named.location)?,
    };
    let entry = ShardEntry {
        location: named.location.clone(),
        bytes: facts.bytes,
        etag: facts.etag,
        modified_ms: facts.modified_ms,
        ..ShardEntry::default()
    };
    if entry.bytes == 0 {
        return Ok(ShardEntry {
            damage: Some("the file is empty".into()),
            ..entry
        });
    }
    let archive = ChunkedShard {
        store,
        entry: &entry,
        chunk: Bytes::new(),
        chunk_start: 0,
    };
    let mut walker = Walker::new(archive);
    let mut grouper = Grouper::default();
    let mut rows = Rows {
        keys,
        starts: Vec::new(),
        lengths: Vec::new(),
        missing: 0,
        shard_bytes: entry.bytes,
    };
    let mut damage = None;
    for member in &mut walker {
        match member {
            Ok(member) => rows.extend(grouper.push(&member)),
            Err(DataError::Tar { at, why }) => damage = Some(format!("at byte {at}: {why}")),
            Err(error) => return Err(error),
        }
    }
    rows.extend(grouper.finish());
    let Rows {
        starts,
        lengths,
        missing,
        ..
    } = rows;
    Ok(ShardEntry {
        starts,
        lengths,
        missing,
        damage,
        ..entry
    })
}

struct Rows<'a> {
    keys: &'a Keys,
    starts: Vec<u64>,
    lengths: Vec<u32>,
    missing: u32,
    shard_bytes: u64,
}

impl Rows<'_> {
    fn extend(&mut self, group: Option<Group>) {
        let Some(group) = group else { return };
        // The last member of an archive without its padding ends with the file.
        let end = group.end.min(self.shard_bytes);
        match u32::try_from(end - group.start) {
            Ok(length) if group.image(self.keys).is_some() && group.text(self.keys).is_some() => {
                self.starts.push(group.start);
                self.lengths.push(length);
            }
            _ => self.missing += 1,
        }
    }
}
