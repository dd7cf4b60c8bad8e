//! What lies under a prefix, and small objects read whole.

use super::{ObjectFacts, ReadRequest, Store, explain, facts_of, place};
use crate::error::DataError;
use bytes::Bytes;
use std::collections::BTreeMap;

impl Store {
    /// Every object under a prefix, by location. A store may name a key twice or out of order; the answer does not.
    ///
    /// # Errors
    /// As [`Store::facts`]; [`DataError::Config`] for `http://` addresses, which cannot be listed.
    pub fn list(&self, prefix: &str) -> Result<BTreeMap<String, ObjectFacts>, DataError> {
        let place = place::place(prefix)?;
        if place.root.starts_with("http") {
            return Err(DataError::Config(format!(
                "{prefix}: an http server cannot be asked what it holds; give a pattern like {{00000..00041}}.tar or a manifest file"
            )));
        }
        let root = self.root(&place)?;
        let reader = self.reader(&root, &place);
        let listed = self.wait(reader.list(&place.key))?.map_err(|e| explain(prefix, e))?;
        Ok(listed
            .iter()
            .map(|meta| (format!("{}/{}", place.root, meta.location), quoted(facts_of(meta))))
            .collect())
    }

    /// A whole object of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// As [`Store::read`]; [`DataError::Io`] for a larger one.
    pub fn read_small(&self, location: &str, bytes_max: u64) -> Result<Bytes, DataError> {
        let facts = self.facts(location)?;
        if facts.bytes > bytes_max {
            return Err(DataError::Io {
                file: location.to_owned(),
                error: format!("{} bytes, at most {bytes_max} are read of such a file", facts.bytes),
            });
        }
        self.read(&ReadRequest {
            location,
            range: 0..facts.bytes,
            bytes: facts.bytes,
            etag: facts.etag.as_deref(),
        })
    }
}

/// Azure's lists leave out the quotes that etags have in all its other answers, and that a condition on one must have.
fn quoted(facts: ObjectFacts) -> ObjectFacts {
    let bare = |etag: &String| !etag.ends_with('"');
    match facts.etag {
        Some(etag) if bare(&etag) => ObjectFacts {
            etag: Some(format!("\"{etag}\"")),
            ..facts
        },
        _ => facts,
    }
}
