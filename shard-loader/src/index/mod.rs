//! The index: which rows every shard keeps and where their bytes lie. Made once by `argosy index`, then frozen.
//!
//! A file of 64 bytes of header, an rkyv table of shards, and behind it the places of every shard's rows. It is mapped into
//! memory; opening checks the table, a shard's places are checked when they are first used, so that an index of 200,000
//! shards opens at once. Written beside its place and renamed, never changed.

mod body;
mod build;
pub(crate) mod filter;
mod hints;
mod journal;
mod rows;
#[cfg(test)]
mod tests;
mod v1;
mod walk;

pub use body::{Body, ShardRecord, SourceRecord};
pub use build::{BuildConfig, BuildReport, DamagedShard, Progress, build};
pub use filter::Filter;
pub use journal::remove_journal;
pub(crate) use walk::{ChunkedShard, Fate, rows_of, walk_shard};

use crate::error::DataError;
use crate::store::ReadRequest;
use argosy_common::ids::SampleId;
use argosy_common::shape::SourceShape;
use body::{ArchivedShardEntry, ArchivedTable};
use rkyv::util::AlignedVec;
use rows::RowTable;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: [u8; 8] = *b"ARGOSYIX";
/// Version of the format that is written. The one before is read too, newer ones are refused.
pub const INDEX_VERSION: u8 = 2;
const HEADER_BYTES: usize = 64;

/// Where one row lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowPlace<'a> {
    /// Absolute path or address of the shard.
    pub location: &'a str,
    /// Size of the shard when it was indexed.
    pub shard_bytes: u64,
    /// Its etag then.
    pub etag: Option<&'a str>,
    /// The row's bytes: headers and data of all its members.
    pub range: Range<u64>,
}

impl<'a> RowPlace<'a> {
    /// The request for bytes `range` of its shard.
    #[must_use]
    pub fn read(&self, range: Range<u64>) -> ReadRequest<'a> {
        ReadRequest {
            location: self.location,
            range,
            bytes: self.shard_bytes,
            etag: self.etag,
        }
    }
}

/// What an index knows of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardSummary<'a> {
    /// Name of its source.
    pub source: &'a str,
    /// Its location.
    pub location: &'a str,
    /// Its size.
    pub bytes: u64,
    /// Its etag.
    pub etag: Option<&'a str>,
    /// Kept rows.
    pub rows: u32,
    /// Samples in it, kept or not; the rows where that is not known.
    pub samples: u32,
    /// Samples without picture or caption.
    pub missing: u32,
    /// Samples that the filter left out.
    pub filtered: u32,
    /// Where and why it could not be read to its end.
    pub damage: Option<&'a str>,
    /// False while its count is a claim of somebody else (rule L6).
    pub verified: bool,
}

#[derive(Debug)]
enum Backing {
    Memory(AlignedVec),
    Map(memmap2::Mmap),
}

/// An index in use.
#[derive(Debug)]
pub struct Index {
    backing: Backing,
    /// End of the table.
    rows_at: usize,
    hash: u64,
    /// Per source and shard: 0 not looked at, 1 good, 2 bad. Filled at the first use of a shard's places.
    checked: Vec<Vec<AtomicU8>>,
}

/// The words of a header behind magic and version.
#[derive(Clone, Copy, Debug)]
struct Header {
    table_hash: u64,
    table_bytes: u64,
    rows_bytes: u64,
    content_hash: u64,
}

impl Header {
    fn write(self, out: &mut AlignedVec) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[INDEX_VERSION, 0, 0, 0, 0, 0, 0, 0]);
        for word in [self.table_hash, self.table_bytes, self.rows_bytes, self.content_hash] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&[0; 16]);
    }

    fn read(bytes: &[u8]) -> Self {
        let word = |i: usize| bytes[16 + i * 8..24 + i * 8].try_into().map_or(0, u64::from_le_bytes);
        Self {
            table_hash: word(0),
            table_bytes: word(1),
            rows_bytes: word(2),
            content_hash: word(3),
        }
    }
}

impl Index {
    /// Makes an index of `body` in memory.
    ///
    /// # Errors
    /// When it does not fit or contradicts itself.
    pub fn from_body(body: &Body) -> Result<Self, DataError> {
        Self::packed(body, None)
    }

    /// `hash` for an index whose name was given by an older format.
    fn packed(body: &Body, hash: Option<u64>) -> Result<Self, DataError> {
        let failed = |why: String| DataError::Index {
            file: "in memory".into(),
            why,
        };
        let (table, rows) = body.pack(hash).map_err(failed)?;
        let packed = rkyv::to_bytes::<rkyv::rancor::Error>(&table).map_err(|e| failed(e.to_string()))?;
        Self::joined(&packed, &rows)
    }

    /// Opens what an index file holds behind its header, as if a good header stood before it: the length of the table in
    /// eight bytes, the table, the places.
    ///
    /// # Errors
    /// When it is no index.
    #[doc(hidden)]
    pub fn sealed(payload: &[u8]) -> Result<Self, DataError> {
        let parts = payload.split_first_chunk::<8>().and_then(|(length, rest)| {
            let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
            rest.split_at_checked(length)
        });
        let (table, rows) = parts.ok_or_else(|| DataError::Index {
            file: "in memory".into(),
            why: "is cut".into(),
        })?;
        Self::joined(table, rows)
    }

    fn joined(table: &[u8], rows: &[u8]) -> Result<Self, DataError> {
        let mut aligned = AlignedVec::<16>::with_capacity(table.len());
        aligned.extend_from_slice(table);
        let archived = rkyv::access::<ArchivedTable, rkyv::rancor::Error>(&aligned).map_err(|e| DataError::Index {
            file: "in memory".into(),
            why: format!("its content is not an index ({e})"),
        })?;
        let given = archived.given_hash.as_ref().map(|h| h.to_native());
        let header = Header {
            table_hash: xxh3_64(table),
            table_bytes: table.len() as u64,
            rows_bytes: rows.len() as u64,
            content_hash: given.unwrap_or_else(|| archived.content_hash()),
        };
        let mut bytes = AlignedVec::with_capacity(HEADER_BYTES + table.len() + rows.len());
        header.write(&mut bytes);
        bytes.extend_from_slice(table);
        bytes.extend_from_slice(rows);
        Self::checked("in memory", Backing::Memory(bytes))
    }

    /// Opens an index file.
    ///
    /// # Errors
    /// [`DataError::NotFound`], or [`DataError::Index`] for a file of another kind or a newer version, cut or changed.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let name = path.display().to_string();
        let file = std::fs::File::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => DataError::NotFound {
                what: format!("index {name}"),
                hint: "; make it with `argosy index`".into(),
            },
            _ => DataError::Io {
                file: name.clone(),
                error: e.to_string(),
            },
        })?;
        // SAFETY: the map is read-only, and index files are replaced by renaming, never written in place.
        #[allow(
            unsafe_code,
            reason = "mapping a file is unsafe because others could write it; ours are never rewritten"
        )]
        let map = unsafe { memmap2::Mmap::map(&file) };
        let map = map.map_err(|e| DataError::Io {
            file: name.clone(),
            error: e.to_string(),
        })?;
        if map.len() > 8 && map[..8] == MAGIC && map[8] == 1 {
            return v1::open(&name, &map);
        }
        Self::checked(&name, Backing::Map(map))
    }

    /// Writes the index so that `path` holds either the old file or the whole new one.
    ///
    /// # Errors
    /// [`DataError::Write`].
    pub fn write(&self, path: &Path) -> Result<(), DataError> {
        let failed = |error: std::io::Error| DataError::Write {
            file: path.display().to_string(),
            error: error.to_string(),
        };
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}.tmp", std::process::id()));
        let beside = std::path::PathBuf::from(beside);
        let written = std::fs::File::create(&beside).and_then(|mut file| {
            file.write_all(self.bytes())?;
            file.sync_all()
        });
        written.and_then(|()| std::fs::rename(&beside, path)).map_err(|e| {
            // Whatever stopped the write, the half-written file is of no use to anybody.
            let _ = std::fs::remove_file(&beside);
            failed(e)
        })
    }

    fn checked(file: &str, backing: Backing) -> Result<Self, DataError> {
        let refuse = |why: String| Err(DataError::Index { file: file.into(), why });
        let bytes: &[u8] = match &backing {
            Backing::Memory(bytes) => bytes,
            Backing::Map(map) => map,
        };
        if bytes.len() < 9 || bytes[..8] != MAGIC {
            return refuse("is not an Argosy index".into());
        }
        if bytes[8] != INDEX_VERSION {
            return refuse(format!(
                "has format version {}, this Argosy reads 1 to {INDEX_VERSION}",
                bytes[8]
            ));
        }
        if bytes.len() < HEADER_BYTES {
            return refuse(format!("is cut: {} bytes of its header", bytes.len()));
        }
        let header = Header::read(bytes);
        let whole = (HEADER_BYTES as u64)
            .checked_add(header.table_bytes)
            .and_then(|n| n.checked_add(header.rows_bytes));
        if whole != Some(bytes.len() as u64) || bytes[9..16].iter().chain(&bytes[48..64]).any(|b| *b != 0) {
            return refuse(format!(
                "is cut or damaged: {} bytes, another size is in its header",
                bytes.len()
            ));
        }
        let rows_at = HEADER_BYTES + header.table_bytes as usize;
        let table = &bytes[HEADER_BYTES..rows_at];
        if header.table_hash != xxh3_64(table) {
            return refuse("its checksum does not match its content".into());
        }
        let table = match rkyv::access::<ArchivedTable, rkyv::rancor::Error>(table) {
            Ok(table) => table,
            Err(e) => return refuse(format!("its content is not an index ({e})")),
        };
        let named = table.given_hash.as_ref().map(|h| h.to_native());
        if named.unwrap_or_else(|| table.content_hash()) != header.content_hash {
            return refuse("its name does not match its content".into());
        }
        if let Some(why) = table.inconsistency(header.rows_bytes) {
            return refuse(why);
        }
        let checked = table
            .sources
            .iter()
            .map(|s| s.shards.iter().map(|_| AtomicU8::new(0)).collect())
            .collect();
        let index = Self {
            backing,
            rows_at,
            hash: header.content_hash,
            checked,
        };
        index.check_small()?;
        Ok(index)
    }

    /// An index whose places are few is checked whole at once, so that damage is told before a run rather than in it.
    fn check_small(&self) -> Result<(), DataError> {
        const WHOLE_BYTES_MAX: usize = 16 << 20;
        if self.bytes().len() - self.rows_at > WHOLE_BYTES_MAX {
            return Ok(());
        }
        for (s, source) in self.table().sources.iter().enumerate() {
            for shard in 0..source.shards.len() {
                self.rows(s as u16, shard as u32)?;
            }
        }
        Ok(())
    }

    fn bytes(&self) -> &[u8] {
        match &self.backing {
            Backing::Memory(bytes) => bytes,
            Backing::Map(map) => map,
        }
    }

    fn table(&self) -> &ArchivedTable {
        // SAFETY: the same immutable bytes passed checked access in `checked`, the only constructor.
        #[allow(
            unsafe_code,
            reason = "checking a whole table at every lookup would cost its size each time"
        )]
        unsafe {
            rkyv::access_unchecked::<ArchivedTable>(&self.bytes()[HEADER_BYTES..self.rows_at])
        }
    }

    fn entry(&self, source: u16, shard: u32) -> Option<&ArchivedShardEntry> {
        self.table()
            .sources
            .get(usize::from(source))
            .and_then(|s| s.shards.get(shard as usize))
    }

    /// The places of a shard's rows; `None` for a shard the index does not have or has not read.
    fn rows(&self, source: u16, shard: u32) -> Result<Option<RowTable<'_>>, DataError> {
        let Some(entry) = self.entry(source, shard).filter(|e| e.verified) else {
            return Ok(None);
        };
        let at = self.rows_at + entry.table_at.to_native() as usize;
        let bytes = &self.bytes()[at..at + entry.table_bytes.to_native() as usize];
        let state = &self.checked[usize::from(source)][shard as usize];
        let table = RowTable::of(bytes, entry.rows.to_native(), entry.samples.to_native());
        if state.load(Ordering::Relaxed) == 0 {
            let good = xxh3_64(bytes) == entry.table_hash.to_native()
                && table.is_some_and(|t| t.lies_within(entry.bytes.to_native()));
            state.store(if good { 1 } else { 2 }, Ordering::Relaxed);
        }
        match table.filter(|_| state.load(Ordering::Relaxed) == 1) {
            Some(table) => Ok(Some(table)),
            None => Err(DataError::Index {
                file: "of this run".into(),
                why: format!("the places of the rows of {} are damaged", entry.location),
            }),
        }
    }

    /// Hash of all that decides what is trained: keys, source names, shard file names, sizes and row places. Folders, ages
    /// and etags are left out, so a copy of the data has the same hash.
    #[must_use]
    pub fn index_hash(&self) -> u64 {
        self.hash
    }

    /// Kept rows per source and shard (rule L6).
    #[must_use]
    pub fn to_shape(&self) -> Vec<SourceShape> {
        let sources = self.table().sources.iter();
        sources
            .map(|s| SourceShape {
                name: s.name.to_string(),
                shard_rows: s.shards.iter().map(|shard| shard.rows.to_native()).collect(),
            })
            .collect()
    }

    /// Mean bytes of a kept row; 0 without rows.
    #[must_use]
    pub fn mean_sample_bytes(&self) -> u64 {
        let shards = || self.table().sources.iter().flat_map(|s| s.shards.iter());
        let rows: u64 = shards().map(|s| u64::from(s.rows.to_native())).sum();
        let bytes: u64 = shards().map(|s| s.kept_bytes.to_native()).sum();
        bytes.checked_div(rows).unwrap_or(0)
    }

    /// The picture and caption suffixes it was made with.
    #[must_use]
    pub fn keys(&self) -> (&str, &str) {
        (self.table().image_key.as_str(), self.table().text_key.as_str())
    }

    /// The filter it was made with, in words; empty without one.
    #[must_use]
    pub fn filter(&self) -> &str {
        self.table().filter.as_str()
    }

    /// What the index knows of every shard, in order.
    pub fn shards(&self) -> impl Iterator<Item = ShardSummary<'_>> {
        self.table().sources.iter().flat_map(|source| {
            source.shards.iter().map(|shard| ShardSummary {
                source: source.name.as_str(),
                location: shard.location.as_str(),
                bytes: shard.bytes.to_native(),
                etag: shard.etag.as_ref().map(|e| e.as_str()),
                rows: shard.rows.to_native(),
                samples: shard.samples.to_native(),
                missing: shard.missing.to_native(),
                filtered: shard.filtered.to_native(),
                damage: shard.damage.as_ref().map(|why| why.as_str()),
                verified: shard.verified,
            })
        })
    }

    /// The shards as they were recorded, to be put into another index. One whose places are damaged is left out, and read
    /// again there.
    fn records(&self) -> Vec<ShardRecord> {
        let mut records = Vec::new();
        for (s, source) in self.table().sources.iter().enumerate() {
            for (i, entry) in source.shards.iter().enumerate() {
                let rows = match self.rows(s as u16, i as u32) {
                    Ok(rows) => rows,
                    Err(error) => {
                        tracing::warn!(%error, "a shard of the index before is read again");
                        continue;
                    }
                };
                let ranges: Vec<Range<u64>> = rows
                    .map(|rows| (0..entry.rows.to_native()).filter_map(|row| rows.range(row)).collect())
                    .unwrap_or_default();
                records.push(ShardRecord {
                    location: entry.location.to_string(),
                    bytes: entry.bytes.to_native(),
                    etag: entry.etag.as_ref().map(ToString::to_string),
                    modified_ms: entry.modified_ms.to_native(),
                    claimed: (!entry.verified).then(|| entry.rows.to_native()),
                    starts: ranges.iter().map(|r| r.start).collect(),
                    lengths: ranges.iter().map(|r| (r.end - r.start) as u32).collect(),
                    kept: rows.map(|rows| rows.kept()).unwrap_or_default(),
                    missing: entry.missing.to_native(),
                    filtered: entry.filtered.to_native(),
                    damage: entry.damage.as_ref().map(ToString::to_string),
                });
            }
        }
        records
    }

    /// The shard itself as a row's place: all its bytes. For shards whose rows are not known yet.
    pub(crate) fn whole_shard(&self, source: u16, shard: u32) -> Option<RowPlace<'_>> {
        self.entry(source, shard).map(|entry| RowPlace {
            location: entry.location.as_str(),
            shard_bytes: entry.bytes.to_native(),
            etag: entry.etag.as_ref().map(|e| e.as_str()),
            range: 0..entry.bytes.to_native(),
        })
    }

    /// Every shard as [`Self::whole_shard`], under the numbers of its source and of itself.
    pub(crate) fn places_of_shards(&self) -> impl Iterator<Item = ((u16, u32), RowPlace<'_>)> {
        self.table()
            .sources
            .iter()
            .zip(0u16..)
            .flat_map(move |(entries, source)| {
                (0..entries.shards.len() as u32)
                    .filter_map(move |shard| Some(((source, shard), self.whole_shard(source, shard)?)))
            })
    }

    /// Rows that the index gives the shard; what somebody claims, where nobody has read it.
    #[must_use]
    pub fn shard_rows(&self, source: u16, shard: u32) -> u32 {
        self.entry(source, shard).map_or(0, |e| e.rows.to_native())
    }

    /// Whether the shard's rows were read when the index was made.
    #[must_use]
    pub fn is_verified(&self, source: u16, shard: u32) -> bool {
        self.entry(source, shard).is_some_and(|e| e.verified)
    }

    /// Where a kept row lies; `None` for a row the index does not have or whose shard it has not read.
    ///
    /// # Errors
    /// [`DataError::Index`] when the places of its shard are damaged.
    pub fn place(&self, sample: SampleId) -> Result<Option<RowPlace<'_>>, DataError> {
        let Some(rows) = self.rows(sample.source, sample.shard)? else {
            return Ok(None);
        };
        let range = rows.range(sample.row);
        Ok(range.and_then(|range| {
            self.whole_shard(sample.source, sample.shard)
                .map(|whole| RowPlace { range, ..whole })
        }))
    }

    /// Which samples of a shard, in its order, are rows; `None` where that is not known.
    ///
    /// # Errors
    /// As [`Index::place`].
    pub fn kept(&self, source: u16, shard: u32) -> Result<Option<Vec<bool>>, DataError> {
        Ok(self.rows(source, shard)?.map(|rows| rows.kept()))
    }
}
