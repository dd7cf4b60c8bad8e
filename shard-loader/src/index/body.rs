//! What an index holds, as it is made and as it is stored.

use super::rows;
use rkyv::{Archive, Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

/// Everything in an index, as it is made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Body {
    /// Picture suffixes that decided which rows are kept.
    pub image_key: String,
    /// Caption suffixes.
    pub text_key: String,
    /// The filter in words; empty without one.
    pub filter: String,
    /// The sources in job order.
    pub sources: Vec<SourceRecord>,
}

/// One source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceRecord {
    /// Its name.
    pub name: String,
    /// Its shards, in the order that numbers them.
    pub shards: Vec<ShardRecord>,
}

/// One shard.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct ShardRecord {
    /// Absolute path or address.
    pub location: String,
    /// Size of the archive.
    pub bytes: u64,
    /// The store's version of its content.
    pub etag: Option<String>,
    /// Last change in milliseconds since 1970.
    pub modified_ms: i64,
    /// Rows that somebody claims it has, while nobody has read it (rule L6); the lists below are empty then.
    pub claimed: Option<u32>,
    /// Per kept row: offset of its first header.
    pub starts: Vec<u64>,
    /// Per kept row: bytes up to the end of its last member.
    pub lengths: Vec<u32>,
    /// Of every sample, whether it is a row.
    pub kept: Vec<bool>,
    /// Samples without picture or caption, not kept.
    pub missing: u32,
    /// Samples that the filter left out.
    pub filtered: u32,
    /// Where and why the archive could not be read to its end.
    pub damage: Option<String>,
}

impl ShardRecord {
    /// Kept rows, as far as known.
    #[must_use]
    pub fn rows(&self) -> u32 {
        self.claimed.unwrap_or(self.starts.len() as u32)
    }
}

/// The table of an index file.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub(super) struct Table {
    pub(super) image_key: String,
    pub(super) text_key: String,
    pub(super) filter: String,
    /// The hash that an older format gave this content.
    pub(super) given_hash: Option<u64>,
    pub(super) sources: Vec<SourceTable>,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub(super) struct SourceTable {
    pub(super) name: String,
    pub(super) shards: Vec<ShardEntry>,
}

/// A shard in the table; its places lie behind it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub(super) struct ShardEntry {
    pub(super) location: String,
    pub(super) bytes: u64,
    pub(super) etag: Option<String>,
    pub(super) modified_ms: i64,
    pub(super) verified: bool,
    pub(super) rows: u32,
    pub(super) samples: u32,
    pub(super) missing: u32,
    pub(super) filtered: u32,
    /// Bytes of the kept rows; of the whole shard where they are not known.
    pub(super) kept_bytes: u64,
    pub(super) damage: Option<String>,
    /// Where its places begin behind the table, how many bytes they are, and their hash.
    pub(super) table_at: u64,
    pub(super) table_bytes: u64,
    pub(super) table_hash: u64,
}

impl Body {
    /// The table and the places behind it.
    pub(super) fn pack(&self, given_hash: Option<u64>) -> Result<(Table, Vec<u8>), String> {
        let mut places = Vec::new();
        let mut sources = Vec::with_capacity(self.sources.len());
        for source in &self.sources {
            let mut shards = Vec::with_capacity(source.shards.len());
            for shard in &source.shards {
                shards.push(
                    shard
                        .pack(&mut places)
                        .map_err(|why| format!("shard {}: {why}", shard.location))?,
                );
            }
            sources.push(SourceTable {
                name: source.name.clone(),
                shards,
            });
        }
        let table = Table {
            image_key: self.image_key.clone(),
            text_key: self.text_key.clone(),
            filter: self.filter.clone(),
            given_hash,
            sources,
        };
        Ok((table, places))
    }
}

impl ShardRecord {
    fn pack(&self, places: &mut Vec<u8>) -> Result<ShardEntry, String> {
        let table_at = places.len() as u64;
        let mut entry = ShardEntry {
            location: self.location.clone(),
            bytes: self.bytes,
            etag: self.etag.clone(),
            modified_ms: self.modified_ms,
            verified: self.claimed.is_none(),
            rows: self.rows(),
            samples: self.kept.len() as u32,
            missing: self.missing,
            filtered: self.filtered,
            kept_bytes: self.bytes,
            damage: self.damage.clone(),
            table_at,
            table_bytes: 0,
            table_hash: 0,
        };
        if entry.verified {
            let packed = rows::pack(&self.starts, &self.lengths, &self.kept)?;
            entry.kept_bytes = self.lengths.iter().map(|l| u64::from(*l)).sum();
            entry.table_bytes = packed.len() as u64;
            entry.table_hash = xxh3_64(&packed);
            places.extend_from_slice(&packed);
        } else {
            entry.samples = entry.rows;
        }
        Ok(entry)
    }
}

impl ArchivedTable {
    /// See [`super::Index::index_hash`].
    pub(super) fn content_hash(&self) -> u64 {
        let mut hash = Xxh3Default::new();
        let mut put = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        put(self.image_key.as_bytes());
        put(self.text_key.as_bytes());
        for source in self.sources.iter() {
            put(source.name.as_bytes());
            for shard in source.shards.iter() {
                put(shard.location.rsplit('/').next().unwrap_or_default().as_bytes());
                put(&shard.bytes.to_native().to_le_bytes());
                put(&shard.rows.to_native().to_le_bytes());
                put(&shard.table_hash.to_native().to_le_bytes());
            }
        }
        hash.digest()
    }

    /// What checked access cannot see: places outside the file.
    pub(super) fn inconsistency(&self, places_bytes: u64) -> Option<String> {
        let shards = self.sources.iter().flat_map(|s| s.shards.iter());
        shards
            .filter(|shard| {
                let end = shard.table_at.to_native().checked_add(shard.table_bytes.to_native());
                end.is_none_or(|end| end > places_bytes) || shard.rows > shard.samples
            })
            .map(|shard| format!("shard {} has its places outside the file", shard.location))
            .next()
    }
}
