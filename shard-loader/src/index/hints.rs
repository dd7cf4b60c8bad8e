//! What others claim a shard holds: `sizes.json` in its folder and img2dataset's `00000_stats.json` beside it. Claims are
//! hints until somebody has read the shard (rule L6).

use crate::expand::NamedShard;
use crate::store::Store;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Largest file of claims that is read.
const CLAIMS_BYTES_MAX: u64 = 64 << 20;

/// Looks claims up; reads every `sizes.json` once.
#[derive(Debug)]
pub(super) struct Hints<'a> {
    store: &'a Store,
    sizes: Mutex<BTreeMap<String, BTreeMap<String, u64>>>,
}

impl<'a> Hints<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        Self {
            store,
            sizes: Mutex::default(),
        }
    }

    /// Rows that a manifest, `sizes.json` or img2dataset claims for `shard`.
    pub(super) fn claimed(&self, shard: &NamedShard) -> Option<u32> {
        let location = &shard.location;
        let claim = shard
            .rows_claimed
            .or_else(|| self.in_sizes(location))
            .or_else(|| self.in_stats(location));
        claim.and_then(|rows| u32::try_from(rows).ok())
    }

    fn in_sizes(&self, location: &str) -> Option<u64> {
        let (folder, name) = location.rsplit_once('/')?;
        let mut known = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let sizes =
            known
                .entry(folder.to_owned())
                .or_insert_with(|| match self.json(&format!("{folder}/sizes.json")) {
                    Some(Value::Object(map)) => map.into_iter().filter_map(|(n, v)| Some((n, v.as_u64()?))).collect(),
                    _ => BTreeMap::new(),
                });
        sizes.get(name).copied()
    }

    fn in_stats(&self, location: &str) -> Option<u64> {
        let stem = location.strip_suffix(".tar")?;
        self.json(&format!("{stem}_stats.json"))?.get("successes")?.as_u64()
    }

    /// A claim that cannot be read is none.
    fn json(&self, location: &str) -> Option<Value> {
        let bytes = self.store.read_small(location, CLAIMS_BYTES_MAX).ok()?;
        serde_json::from_slice(&bytes).ok()
    }
}
