//! What the S3 double holds: objects by `bucket/key`, uploads under way, and conditions on writes.

use bytes::Bytes;
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

/// One object.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) bytes: Bytes,
    pub(crate) etag: String,
}

impl Object {
    fn new(bytes: Bytes) -> Self {
        // As on S3, equal content has an equal etag.
        let etag = format!("\"{:016x}\"", xxh3_64(&bytes));
        Self { bytes, etag }
    }
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) stored: BTreeMap<String, Object>,
    uploads: BTreeMap<String, BTreeMap<u32, Bytes>>,
    uploads_begun: u64,
}

/// Conditions of a write, as its headers say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions {
    pub(crate) if_match: Option<String>,
    /// `If-None-Match: *`, which creates only.
    pub(crate) create_only: bool,
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
        let object = Object::new(bytes);
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
        let etag = Object::new(bytes.clone()).etag;
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

    /// Uploads that were neither completed nor aborted.
    pub(crate) fn open_uploads(&self) -> usize {
        self.uploads.len()
    }
}
