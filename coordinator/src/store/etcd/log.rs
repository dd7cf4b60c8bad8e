//! Records as etcd keeps them.

use super::client::Etcd;
use super::{GetOptions, StoreError};
use argosy_common::events::Record;
use argosy_common::ids::Term;
use serde::{Deserialize, Serialize};

/// Records read at once: a reply stays below the four megabytes that a client takes even when each is as large as allowed.
const PAGE_BYTES: usize = 3 << 20;
/// Etcd takes requests of 1.5 MiB; the rest of a transaction is small.
pub(super) const RECORD_BYTES_MAX: usize = 1 << 20;
/// Most records are small: pages begin with so many and shrink when they come back too large.
const PAGE_RECORDS: i64 = (PAGE_BYTES / RECORD_BYTES_MAX) as i64;
/// Small records are read by the hundred.
const SMALL_PAGE_RECORDS: i64 = 256;

/// A record and who wrote it.
#[derive(Serialize, Deserialize)]
pub(super) struct Entry {
    term: u64,
    record: Record,
}

pub(super) fn encode(etcd: &Etcd, term: Term, revision: u64, record: &Record) -> Result<Vec<u8>, StoreError> {
    let entry = Entry {
        term: term.0,
        record: record.clone(),
    };
    let bytes = serde_json::to_vec(&entry).map_err(|e| etcd.broken(revision, e.to_string()))?;
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(StoreError::TooLarge {
            revision,
            bytes: bytes.len(),
            bytes_max: RECORD_BYTES_MAX,
        });
    }
    Ok(bytes)
}

/// The number in a record's key.
pub(super) fn number(prefix: &str, key: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(key).ok()?.strip_prefix(prefix)?;
    u64::from_str_radix(digits, 16).ok()
}

/// All records. They are only ever created, in order, so a page that is read later fits the ones before.
pub(super) async fn read(etcd: &Etcd) -> Result<Vec<Record>, StoreError> {
    let prefix = etcd.keys.records.as_str();
    let end = format!("{}~", prefix.trim_end_matches('/')); // behind every key that begins with the prefix
    let mut records: Vec<Record> = Vec::new();
    let (mut page, mut last_term) = (SMALL_PAGE_RECORDS, 0);
    loop {
        let first = etcd.keys.record(records.len() as u64 + 1);
        let options = GetOptions::new().with_range(end.as_str()).with_limit(page);
        let found = match etcd
            .ask(|mut c| {
                let (first, options) = (first.clone(), options.clone());
                async move { c.get(first, Some(options)).await }
            })
            .await
        {
            Ok(found) => found,
            Err(_) if page > PAGE_RECORDS => {
                page = PAGE_RECORDS; // perhaps it was too large; a store that is away is told by the second try
                continue;
            }
            Err(trouble) => return Err(etcd.error(trouble)),
        };
        for kv in found.kvs() {
            let next = records.len() as u64 + 1;
            match number(prefix, kv.key()) {
                Some(number) if number == next => {}
                _ => return Err(etcd.broken(next, "it is missing".into())),
            }
            let entry: Entry = serde_json::from_slice(kv.value()).map_err(|e| etcd.broken(next, e.to_string()))?;
            if entry.term < last_term {
                let reason = format!("it was written in term {} behind one of term {last_term}", entry.term);
                return Err(etcd.broken(next, reason));
            }
            last_term = entry.term;
            records.push(entry.record);
        }
        if !found.more() {
            return Ok(records);
        }
    }
}
