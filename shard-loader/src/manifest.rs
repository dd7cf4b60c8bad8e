//! Files that list shards: lines, JSON, JSON lines.
//!
//! Lines: one shard or pattern each; empty ones and those that begin with `#` are passed over. JSON: an array of names, an
//! array of objects, WebDataset's `{"shardlist": [...]}`, or `sizes.json` as OpenCLIP reads it, `{"00000.tar": 9482}`.
//! Objects name their shard `url`, `path`, `shard` or `name` and may claim its samples as `nsamples`, `count` or
//! `samples`. Relative names start where the manifest lies.

use crate::error::DataError;
use crate::expand::{self, NamedShard};
use crate::store::{Store, is_url};
use serde_json::Value;
use std::path::Path;

/// Largest manifest that is read: a million long names fit several times.
const MANIFEST_BYTES_MAX: u64 = 512 << 20;

/// Whether a name is that of a manifest.
#[must_use]
pub fn is_manifest(name: &str) -> bool {
    let suffix = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default();
    ["txt", "json", "jsonl"].contains(&suffix.to_ascii_lowercase().as_str())
}

/// The shards that the manifest at `location` (an absolute path or address) lists, in its order.
///
/// # Errors
/// [`DataError::Manifest`] when it is not one or lists nothing; what the store says when it cannot be read.
pub fn read(location: &str, store: &Store) -> Result<Vec<NamedShard>, DataError> {
    let bytes = store.read_small(location, MANIFEST_BYTES_MAX)?;
    let refuse = |why: String| DataError::Manifest {
        file: location.to_owned(),
        why,
    };
    let text = std::str::from_utf8(&bytes).map_err(|e| refuse(format!("is not UTF-8: {e}")))?;
    let text = text.trim_start_matches('\u{feff}');
    let suffix = location.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let named: Vec<(String, Option<u64>)> = match suffix.as_str() {
        "json" => {
            let value = serde_json::from_str(text).map_err(|e| refuse(format!("is not JSON: {e}")))?;
            entries(&value).map_err(refuse)?
        }
        "jsonl" => {
            let mut all = Vec::new();
            for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
                let value =
                    serde_json::from_str(line).map_err(|e| refuse(format!("line {} is not JSON: {e}", i + 1)))?;
                all.push(entry(&value).map_err(|why| refuse(format!("line {}: {why}", i + 1)))?);
            }
            all
        }
        _ => text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| (line.to_owned(), None))
            .collect(),
    };
    if named.is_empty() {
        return Err(refuse("lists no shard".into()));
    }
    let folder = &location[..location.rfind('/').map_or(0, |at| at + 1)];
    let mut found = Vec::new();
    for (name, rows_claimed) in named {
        let full = if is_url(&name) || name.starts_with('/') {
            name
        } else {
            format!("{folder}{name}")
        };
        let shards = if is_url(&full) {
            expand::address(&full, store)?
        } else {
            let names = expand::braces(&full).map_err(|why| refuse(format!("`{full}`: {why}")))?;
            names.into_iter().map(NamedShard::new).collect()
        };
        let single = shards.len() == 1;
        found.extend(shards.into_iter().map(|shard| NamedShard {
            rows_claimed: rows_claimed.filter(|_| single),
            ..shard
        }));
    }
    Ok(found)
}

fn entries(value: &Value) -> Result<Vec<(String, Option<u64>)>, String> {
    match value {
        Value::Array(items) => items.iter().map(entry).collect(),
        Value::Object(map) => match map.get("shardlist") {
            Some(list) => entries(list),
            None => map
                .iter()
                .map(|(name, count)| match count.as_u64() {
                    Some(count) => Ok((name.clone(), Some(count))),
                    None => Err(format!("`{name}` should have a number of samples, it has {count}")),
                })
                .collect(),
        },
        other => Err(format!("is {other}; an array of shards or an object is expected")),
    }
}

fn entry(value: &Value) -> Result<(String, Option<u64>), String> {
    if let Some(name) = value.as_str() {
        return Ok((name.to_owned(), None));
    }
    let first = |names: &[&str]| names.iter().find_map(|n| value.get(n));
    let name = first(&["url", "path", "shard", "name"]).and_then(Value::as_str);
    let count = first(&["nsamples", "count", "samples"]).and_then(Value::as_u64);
    name.map(|name| (name.to_owned(), count))
        .ok_or_else(|| format!("{value} names no shard; a name, or an object with `url`, is expected"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RetryPolicy;

    fn listed(name: &str, text: &str) -> Result<Vec<(String, Option<u64>)>, DataError> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join(name);
        std::fs::write(&file, text).expect("written");
        let store = Store::new(RetryPolicy::default())?;
        let root = format!("{}/", folder.path().display());
        let found = read(&file.display().to_string(), &store)?;
        Ok(found
            .into_iter()
            .map(|s| (s.location.replace(&root, "~/"), s.rows_claimed))
            .collect())
    }

    #[test]
    fn manifest_of_every_form_lists_its_shards_in_order() {
        let plain = |names: &[&str]| names.iter().map(|n| ((*n).to_owned(), None)).collect::<Vec<_>>();
        let lines = "# mine\n\n{0..1}.tar\n/abs/2.tar\r\ns3://b/3.tar\n";
        let expected = plain(&["~/0.tar", "~/1.tar", "/abs/2.tar", "s3://b/3.tar"]);
        assert_eq!(listed("list.txt", lines).expect("lines"), expected);
        assert_eq!(
            listed("list.json", r#"["0.tar", "1.tar"]"#).expect("array"),
            plain(&["~/0.tar", "~/1.tar"])
        );
        let wids = r#"{"shardlist": [{"url": "0.tar", "nsamples": 7}, {"url": "1.tar"}]}"#;
        let expected = [("~/0.tar".to_owned(), Some(7)), ("~/1.tar".to_owned(), None)];
        assert_eq!(listed("wids.json", wids).expect("shardlist"), expected);
        assert_eq!(listed("sizes.json", r#"{"0.tar": 7}"#).expect("sizes"), expected[..1]);
        assert_eq!(
            listed("a.jsonl", "{\"path\": \"0.tar\", \"count\": 7}\n").expect("lines"),
            expected[..1]
        );
    }

    #[test]
    fn manifest_that_is_none_is_refused_by_name() {
        for (name, text) in [
            ("a.txt", "# nothing"),
            ("a.json", "{"),
            ("a.json", "3"),
            ("a.json", r#"[{"x": 1}]"#),
        ] {
            let error = listed(name, text).expect_err(text).to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
