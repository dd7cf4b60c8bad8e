//! The index: which rows every shard keeps and where their bytes lie. Made once by `argosy index`, then frozen.
//!
//! A file of 32 bytes of header (magic, version, checksum, length) and an rkyv body. It is mapped into memory and checked
//! whole when opened; after that a lookup is pointer arithmetic. Written beside its place and renamed, never changed.

mod build;
#[cfg(test)]
mod tests;

pub use build::{BuildConfig, BuildReport, DamagedShard, Progress, build};

use crate::error::DataError;
use crate::store::ReadRequest;
use argosy_common::ids::SampleId;
use argosy_common::shape::SourceShape;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

const MAGIC: [u8; 8] = *b"ARGOSYIX";
/// Version of the format. Readers refuse others: an index is cheap to make again.
pub const INDEX_VERSION: u8 = 1;
const HEADER_BYTES: usize = 32;

/// Everything in an index.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Body {
    /// Picture suffixes that decided which rows are kept.
    pub image_key: String,
    /// Caption suffixes.
    pub text_key: String,
    /// The sources in job order.
    pub sources: Vec<SourceEntry>,
}

/// One source.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct SourceEntry {
    /// Its name.
    pub name: String,
    /// Its shards, in the order that numbers them.
    pub shards: Vec<ShardEntry>,
}

/// One shard.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct ShardEntry {
    /// Absolute path.
    pub location: String,
    /// Size of the archive.
    pub bytes: u64,
    /// The store's version of its content.
    pub etag: Option<String>,
    /// Last change in milliseconds since 1970.
    pub modified_ms: i64,
    /// Per kept row: offset of its first header.
    pub starts: Vec<u64>,
    /// Per kept row: bytes up to the end of its last member.
    pub lengths: Vec<u32>,
    /// Samples without picture or caption, not kept.
    pub missing: u32,
    /// Where and why the archive could not be read to its end.
    pub damage: Option<String>,
}

/// Where one row lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowPlace<'a> {
    /// Absolute path of the shard.
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
    /// Kept rows.
    pub rows: u32,
    /// Samples without picture or caption.
    pub missing: u32,
    /// Where and why it could not be read to its end.
    pub damage: Option<&'a str>,
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
    hash: u64,
}

impl Index {
    /// Makes an index of `body` in memory.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn from_body(body: &Body) -> Result<Self, DataError> {
        let failed = |why: String| DataError::Index {
            file: "in memory".into(),
            why,
        };
        let packed = rkyv::to_bytes::<rkyv::rancor::Error>(body).map_err(|e| failed(e.to_string()))?;
        Self::sealed(&packed)
    }

    /// Opens what an index file holds behind its header, as if a good header stood before it.
    ///
    /// # Errors
    /// When it is no index.
    #[doc(hidden)]
    pub fn sealed(packed: &[u8]) -> Result<Self, DataError> {
        let mut bytes = AlignedVec::with_capacity(HEADER_BYTES + packed.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[INDEX_VERSION, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&xxh3_64(packed).to_le_bytes());
        bytes.extend_from_slice(&(packed.len() as u64).to_le_bytes());
        bytes.extend_from_slice(packed);
        Self::checked("in memory", Backing::Memory(bytes))
    }

    /// Opens an index file.
    ///
    /// # Errors
    /// [`DataError::NotFound`], or [`DataError::Index`] for a file of another kind or version, cut or changed.
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
        if bytes.len() < HEADER_BYTES || bytes[..8] != MAGIC {
            return refuse("is not an Argosy index".into());
        }
        if bytes[8] != INDEX_VERSION {
            return refuse(format!(
                "has format version {}, this Argosy reads {INDEX_VERSION}",
                bytes[8]
            ));
        }
        let word = |at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        let body = &bytes[HEADER_BYTES..];
        if word(24) != body.len() as u64 {
            return refuse(format!("is cut: {} bytes of {}", body.len(), word(24)));
        }
        if word(16) != xxh3_64(body) {
            return refuse("its checksum does not match its content".into());
        }
        let archived = match rkyv::access::<ArchivedBody, rkyv::rancor::Error>(body) {
            Ok(archived) => archived,
            Err(e) => return refuse(format!("its content is not an index ({e})")),
        };
        if let Some(why) = inconsistency(archived) {
            return refuse(why);
        }
        let hash = content_hash(archived);
        Ok(Self { backing, hash })
    }

    fn bytes(&self) -> &[u8] {
        match &self.backing {
            Backing::Memory(bytes) => bytes,
            Backing::Map(map) => map,
        }
    }

    fn body(&self) -> &ArchivedBody {
        // SAFETY: the same immutable bytes passed checked access in `checked`, the only constructor.
        #[allow(
            unsafe_code,
            reason = "checking a whole index at every lookup would cost its size each time"
        )]
        unsafe {
            rkyv::access_unchecked::<ArchivedBody>(&self.bytes()[HEADER_BYTES..])
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
        let shape = |s: &ArchivedSourceEntry| SourceShape {
            name: s.name.to_string(),
            shard_rows: s.shards.iter().map(|shard| shard.starts.len() as u32).collect(),
        };
        self.body().sources.iter().map(shape).collect()
    }

    /// Mean bytes of a kept row; 0 without rows.
    #[must_use]
    pub fn mean_sample_bytes(&self) -> u64 {
        let mut rows = 0u64;
        let mut bytes = 0u64;
        for shard in self.body().sources.iter().flat_map(|s| s.shards.iter()) {
            rows += shard.lengths.len() as u64;
            bytes += shard.lengths.iter().map(|l| u64::from(l.to_native())).sum::<u64>();
        }
        bytes.checked_div(rows).unwrap_or(0)
    }

    /// The picture and caption suffixes it was made with.
    #[must_use]
    pub fn keys(&self) -> (&str, &str) {
        (self.body().image_key.as_str(), self.body().text_key.as_str())
    }

    /// What the index knows of every shard, in order.
    pub fn shards(&self) -> impl Iterator<Item = ShardSummary<'_>> {
        self.body().sources.iter().flat_map(|source| {
            source.shards.iter().map(|shard| ShardSummary {
                source: source.name.as_str(),
                location: shard.location.as_str(),
                bytes: shard.bytes.to_native(),
                rows: shard.starts.len() as u32,
                missing: shard.missing.to_native(),
                damage: shard.damage.as_ref().map(|why| why.as_str()),
            })
        })
    }

    /// Where a kept row lies; `None` for a row the index does not have.
    #[must_use]
    pub fn place(&self, sample: SampleId) -> Option<RowPlace<'_>> {
        let source = self.body().sources.get(usize::from(sample.source))?;
        let shard = source.shards.get(sample.shard as usize)?;
        let row = sample.row as usize;
        let start = shard.starts.get(row)?.to_native();
        let length = u64::from(shard.lengths.get(row)?.to_native());
        Some(RowPlace {
            location: shard.location.as_str(),
            shard_bytes: shard.bytes.to_native(),
            etag: shard.etag.as_ref().map(|e| e.as_str()),
            range: start..start + length,
        })
    }
}

/// What checked access cannot see: rows outside their shard, lists of different length.
fn inconsistency(body: &ArchivedBody) -> Option<String> {
    for shard in body.sources.iter().flat_map(|s| s.shards.iter()) {
        let rows = shard.starts.len();
        if rows != shard.lengths.len() || u32::try_from(rows).is_err() {
            return Some(format!(
                "shard {} has {rows} offsets and {} lengths",
                shard.location,
                shard.lengths.len()
            ));
        }
        let outside = shard.starts.iter().zip(shard.lengths.iter()).any(|(start, length)| {
            start
                .to_native()
                .checked_add(u64::from(length.to_native()))
                .is_none_or(|end| end > shard.bytes.to_native())
        });
        if outside {
            return Some(format!(
                "shard {} has a row outside its {} bytes",
                shard.location, shard.bytes
            ));
        }
    }
    None
}

fn content_hash(body: &ArchivedBody) -> u64 {
    let mut hash = Xxh3Default::new();
    let mut put = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    put(body.image_key.as_bytes());
    put(body.text_key.as_bytes());
    for source in body.sources.iter() {
        put(source.name.as_bytes());
        for shard in source.shards.iter() {
            put(shard.location.rsplit('/').next().unwrap_or_default().as_bytes());
            put(&shard.bytes.to_native().to_le_bytes());
            let rows = shard.starts.iter().zip(shard.lengths.iter());
            let places: Vec<u8> = rows
                .flat_map(|(start, length)| {
                    start
                        .to_native()
                        .to_le_bytes()
                        .into_iter()
                        .chain(length.to_native().to_le_bytes())
                })
                .collect();
            put(&places);
        }
    }
    hash.digest()
}
