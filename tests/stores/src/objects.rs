//! What a double holds: objects by `bucket/key`, uploads under way, and conditions on writes.

use bytes::Bytes;
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

/// One object.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) bytes: Bytes,
    pub(crate) etag: String,
    /// Grows with every write.
    pub(crate) generation: u64,
}

impl Object {
    fn new(bytes: Bytes, generation: u64) -> Self {
        // As on S3, equal content has an equal etag.
        let etag = format!("\"{:016x}\"", xxh3_64(&bytes));
        Self {
            bytes,
            etag,
            generation,
        }
    }
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) stored: BTreeMap<String, Object>,
    uploads: BTreeMap<String, BTreeMap<u32, Bytes>>,
    uploads_begun: u64,
    writes: u64,
    /// Azure's blocks that no list has joined yet, by blob and id.
    blocks: BTreeMap<(String, String), Bytes>,
}

/// Conditions of a write, as its headers say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions {
    pub(crate) if_match: Option<String>,
    /// `If-None-Match: *`, which creates only.
    pub(crate) create_only: bool,
    /// Google's way of naming a version.
    pub(crate) generation: Option<u64>,
}

impl Objects {
    /// Stores an object; the error is the status of a condition that does not hold.
    pub(crate) fn put(&mut self, key: &str, bytes: Bytes, conditions: &Conditions) -> Result<String, u16> {
        let there = self.stored.get(key);
        if conditions.create_only && there.is_some() {
            return Err(412);
        }
        match (&conditions.if_match, there) {
            (Some(_), None) => return Err(404),
            (Some(wanted), Some(object)) if *wanted != object.etag => return Err(412),
            _ => {}
        }
        if conditions
            .generation
            .is_some_and(|g| there.map(|o| o.generation) != Some(g))
        {
            return Err(412);
        }
        self.writes += 1;
        let object = Object::new(bytes, self.writes);
        let etag = object.etag.clone();
        self.stored.insert(key.to_owned(), object);
        Ok(etag)
    }

    /// Begins an upload in parts; gives its id.
    pub(crate) fn begin(&mut self) -> String {
        self.uploads_begun += 1;
        let id = format!("upload-{}", self.uploads_begun);
        self.uploads.insert(id.clone(), BTreeMap::new());
        id
    }

    /// Takes a part; gives its etag.
    pub(crate) fn part(&mut self, id: &str, number: u32, bytes: Bytes) -> Option<String> {
        let etag = Object::new(bytes.clone(), 0).etag;
        self.uploads.get_mut(id)?.insert(number, bytes);
        Some(etag)
    }

    /// Joins the parts in the order of their numbers.
    pub(crate) fn complete(&mut self, id: &str, key: &str, conditions: &Conditions) -> Result<String, u16> {
        let parts = self.uploads.get(id).ok_or(404u16)?;
        let whole: Vec<u8> = parts.values().flat_map(|p| p.to_vec()).collect();
        let etag = self.put(key, whole.into(), conditions)?;
        self.uploads.remove(id);
        Ok(etag)
    }

    /// Forgets an upload.
    pub(crate) fn abort(&mut self, id: &str) {
        self.uploads.remove(id);
    }

    /// Takes a block of a blob.
    pub(crate) fn block(&mut self, key: &str, id: &str, bytes: Bytes) {
        self.blocks.insert((key.to_owned(), id.to_owned()), bytes);
    }

    /// Joins a blob's blocks in the order of `ids`, and forgets the others.
    pub(crate) fn join(&mut self, key: &str, ids: &[String], conditions: &Conditions) -> Result<String, u16> {
        let block = |id: &String| self.blocks.get(&(key.to_owned(), id.clone())).ok_or(400u16);
        let parts: Vec<&Bytes> = ids.iter().map(block).collect::<Result<_, _>>()?;
        let whole: Vec<u8> = parts.into_iter().flat_map(|p| p.to_vec()).collect();
        let etag = self.put(key, whole.into(), conditions)?;
        self.blocks.retain(|(blob, _), _| blob != key);
        Ok(etag)
    }

    /// Uploads that were neither completed nor aborted.
    pub(crate) fn open_uploads(&self) -> usize {
        self.uploads.len()
    }
}
