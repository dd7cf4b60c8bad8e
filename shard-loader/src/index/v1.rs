//! The format before: one rkyv body with an offset and a length per row. Read, never written.

use super::body::{Body, ShardRecord, SourceRecord};
use super::{Index, MAGIC};
use crate::error::DataError;
use rkyv::{Archive, Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

const HEADER_BYTES: usize = 32;

#[derive(Archive, Serialize, Deserialize, Debug)]
struct BodyV1 {
    image_key: String,
    text_key: String,
    sources: Vec<SourceV1>,
}

#[derive(Archive, Serialize, Deserialize, Debug)]
struct SourceV1 {
    name: String,
    shards: Vec<ShardV1>,
}

#[derive(Archive, Serialize, Deserialize, Debug)]
struct ShardV1 {
    location: String,
    bytes: u64,
    etag: Option<String>,
    modified_ms: i64,
    starts: Vec<u64>,
    lengths: Vec<u32>,
    missing: u32,
    damage: Option<String>,
}

/// Opens the bytes of a file that begins like an index of version 1.
pub(super) fn open(file: &str, bytes: &[u8]) -> Result<Index, DataError> {
    let refuse = |why: String| DataError::Index { file: file.into(), why };
    debug_assert_eq!(bytes[..8], MAGIC);
    let (header, body) = bytes
        .split_at_checked(HEADER_BYTES)
        .ok_or_else(|| refuse("is cut".into()))?;
    let word = |at: usize| header[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    if word(24) != body.len() as u64 || word(16) != xxh3_64(body) {
        return Err(refuse("is cut or damaged: its checksum does not match".into()));
    }
    // A file is mapped at a page, so its body is aligned as it was written.
    let body: BodyV1 = rkyv::from_bytes::<BodyV1, rkyv::rancor::Error>(body)
        .map_err(|e| refuse(format!("its content is not an index ({e})")))?;
    let hash = content_hash(&body);
    let shard = |s: ShardV1| ShardRecord {
        kept: vec![true; s.starts.len()],
        location: s.location,
        bytes: s.bytes,
        etag: s.etag,
        modified_ms: s.modified_ms,
        starts: s.starts,
        lengths: s.lengths,
        missing: s.missing,
        damage: s.damage,
        ..ShardRecord::default()
    };
    let sources = body.sources.into_iter().map(|s| SourceRecord {
        name: s.name,
        shards: s.shards.into_iter().map(shard).collect(),
    });
    let body = Body {
        image_key: body.image_key,
        text_key: body.text_key,
        filter: String::new(),
        sources: sources.collect(),
    };
    Index::packed(&body, Some(hash)).map_err(|e| refuse(e.to_string()))
}

/// The hash that version 1 gave its content; runs that began with it know it by this name.
fn content_hash(body: &BodyV1) -> u64 {
    let mut hash = Xxh3Default::new();
    let mut put = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    put(body.image_key.as_bytes());
    put(body.text_key.as_bytes());
    for source in &body.sources {
        put(source.name.as_bytes());
        for shard in &source.shards {
            put(shard.location.rsplit('/').next().unwrap_or_default().as_bytes());
            put(&shard.bytes.to_le_bytes());
            let rows = shard.starts.iter().zip(&shard.lengths);
            let places: Vec<u8> = rows
                .flat_map(|(start, length)| start.to_le_bytes().into_iter().chain(length.to_le_bytes()))
                .collect();
            put(&places);
        }
    }
    hash.digest()
}
