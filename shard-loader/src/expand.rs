//! From what a user writes to a list of shards: brace patterns, folders and prefixes, manifest files, single shards.

use crate::error::DataError;
use crate::manifest;
use crate::store::{ObjectFacts, Store, is_url};
use std::path::{Path, PathBuf};

/// Most shards one pattern may stand for; more is a slip of the hand.
const SHARDS_MAX: usize = 10_000_000;
/// Most pairs of braces in one pattern.
const BRACES_MAX: usize = 64;

/// A shard that was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedShard {
    /// Absolute path or address.
    pub location: String,
    /// What a list said of it; saves one request.
    pub facts: Option<ObjectFacts>,
    /// Samples in it, as a manifest claims (rule L6: a hint).
    pub rows_claimed: Option<u64>,
}

impl NamedShard {
    pub(crate) fn new(location: String) -> Self {
        Self {
            location,
            facts: None,
            rows_claimed: None,
        }
    }
}

/// The shards that `text` names.
///
/// Parts joined by `::` are taken one after the other. Each is one of: a folder, or an address that ends with `/`, which
/// give their `*.tar` by name; a pattern with braces (`{00000..00041}`, `{a,b}`, nested or several), which gives its
/// expansion in order; a manifest (`.txt`, `.json`, `.jsonl`, see [`crate::manifest`]); a single shard. Relative paths
/// start at `base`.
///
/// # Errors
/// [`DataError::NotFound`] when a folder, file or any shard of a pattern is missing or a folder holds no shard (shards at
/// addresses are looked for when they are read); [`DataError::Pattern`] when braces do not close or the pattern is absurdly
/// large.
pub fn shards(text: &str, base: &Path, store: &Store) -> Result<Vec<NamedShard>, DataError> {
    let mut found = Vec::new();
    for part in parts(text) {
        let part = part.trim();
        if part.is_empty() {
            return Err(DataError::Pattern {
                pattern: text.into(),
                why: "is empty; name a folder, file, pattern or address".into(),
            });
        }
        let part = part.strip_prefix("file://").unwrap_or(part);
        let is_manifest = manifest::is_manifest(part) && !part.contains('{');
        match (is_url(part), is_manifest) {
            (true, true) => found.extend(manifest::read(part, store)?),
            (true, false) => found.extend(address(part, store)?),
            (false, true) if base.join(part).is_file() => {
                let file = utf8(&absolute(&base.join(part))?)?;
                found.extend(manifest::read(&file, store)?);
            }
            (false, _) => {
                for path in one_part(part, base)? {
                    found.push(NamedShard::new(utf8(&path)?));
                }
            }
        }
    }
    Ok(found)
}

/// The parts of `text` that `::` joins. Those of an IPv6 address in brackets (`http://[::1]:8080/0.tar`) join nothing.
#[must_use]
pub fn parts(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut begin, mut at) = (0, 0);
    while let Some(next) = text[at..].find("::").map(|n| at + n) {
        let host = text[begin..next].rfind("://[").map(|n| begin + n);
        let closes = host.and_then(|host| text[host..].find(']').map(|n| host + n));
        match closes.filter(|closes| *closes > next) {
            Some(closes) => at = closes,
            None => {
                found.push(&text[begin..next]);
                begin = next + 2;
                at = begin;
            }
        }
    }
    found.push(&text[begin..]);
    found
}

/// The shards of an address: all under it, its expansion, or itself.
pub(crate) fn address(part: &str, store: &Store) -> Result<Vec<NamedShard>, DataError> {
    let mut found = Vec::new();
    for name in braces(part).map_err(|why| DataError::Pattern {
        pattern: part.into(),
        why,
    })? {
        if !name.ends_with('/') {
            if !is_tar(&name) {
                let why =
                    "is neither a shard (.tar), a manifest (.txt, .json, .jsonl) nor, with a `/` at its end, a prefix";
                return Err(DataError::Pattern {
                    pattern: name,
                    why: why.into(),
                });
            }
            found.push(NamedShard::new(name));
            continue;
        }
        let before = found.len();
        let listed = store.list(&name)?;
        found.extend(
            listed
                .into_iter()
                .filter(|(l, _)| is_tar(l))
                .map(|(location, facts)| NamedShard {
                    facts: Some(facts),
                    ..NamedShard::new(location)
                }),
        );
        if found.len() == before {
            return Err(DataError::NotFound {
                what: format!("a shard (*.tar) under {name}"),
                hint: String::new(),
            });
        }
    }
    Ok(found)
}

fn is_tar(name: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("tar"))
}

fn one_part(part: &str, base: &Path) -> Result<Vec<PathBuf>, DataError> {
    let whole = base.join(part);
    // A file or folder whose name holds braces is still that file or folder.
    if whole.is_dir() {
        return folder(&whole);
    }
    if whole.exists() {
        return Ok(vec![absolute(&whole)?]);
    }
    if !part.contains('{') {
        return Err(DataError::NotFound {
            what: whole.display().to_string(),
            hint: String::new(),
        });
    }
    let names = braces(part).map_err(|why| DataError::Pattern {
        pattern: part.into(),
        why,
    })?;
    let paths: Vec<PathBuf> = names.iter().map(|n| base.join(n)).collect();
    let missing: Vec<&PathBuf> = paths.iter().filter(|p| !p.is_file()).collect();
    if let Some(first) = missing.first() {
        let hint = format!(
            "; {} of the {} shards of `{part}` are missing",
            missing.len(),
            paths.len()
        );
        return Err(DataError::NotFound {
            what: first.display().to_string(),
            hint,
        });
    }
    paths.iter().map(|p| absolute(p)).collect()
}

fn folder(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |error: std::io::Error| DataError::Io {
        file: path.display().to_string(),
        error: error.to_string(),
    };
    let mut shards = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.file_name().is_some_and(|n| is_tar(&n.to_string_lossy())) && file.is_file() {
            shards.push(absolute(&file)?);
        }
    }
    if shards.is_empty() {
        let what = format!("a shard (*.tar) in folder {}", path.display());
        return Err(DataError::NotFound {
            what,
            hint: String::new(),
        });
    }
    shards.sort();
    Ok(shards)
}

fn absolute(path: &Path) -> Result<PathBuf, DataError> {
    std::fs::canonicalize(path).map_err(|e| DataError::Io {
        file: path.display().to_string(),
        error: e.to_string(),
    })
}

fn utf8(path: &Path) -> Result<String, DataError> {
    path.to_str().map(str::to_owned).ok_or_else(|| DataError::Pattern {
        pattern: path.display().to_string(),
        why: "the path is not UTF-8; rename it".into(),
    })
}

/// Expands the braces of `pattern`, leftmost slowest, as bash does.
///
/// # Errors
/// A sentence saying what is wrong.
pub fn braces(pattern: &str) -> Result<Vec<String>, String> {
    // Each pair is one deeper call.
    let pairs = pattern.bytes().filter(|b| *b == b'{').count();
    if pairs > BRACES_MAX {
        return Err(format!("has {pairs} pairs of braces, at most {BRACES_MAX} are taken"));
    }
    let Some(open) = pattern.find('{') else {
        return Ok(vec![pattern.to_owned()]);
    };
    let close = closing(pattern, open).ok_or("a `{` has no `}`")?;
    let (head, inner, tail) = (&pattern[..open], &pattern[open + 1..close], &pattern[close + 1..]);
    let tails = braces(tail)?;
    let mut out = Vec::new();
    for middle in alternatives(inner)? {
        for end in &tails {
            if out.len() >= SHARDS_MAX {
                return Err(format!("stands for more than {SHARDS_MAX} shards"));
            }
            out.push(format!("{head}{middle}{end}"));
        }
    }
    Ok(out)
}

/// Index of the brace that closes the one at `open`.
fn closing(text: &str, open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (i, byte) in text.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(i);
                }
            }
            _ => {}
        }
    }
    None
}

fn alternatives(inner: &str) -> Result<Vec<String>, String> {
    let mut parts = vec![String::new()];
    let mut depth = 0usize;
    for c in inner.chars() {
        match c {
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    if parts.len() > 1 {
        let nested: Result<Vec<Vec<String>>, String> = parts.iter().map(|p| braces(p)).collect();
        return Ok(nested?.into_iter().flatten().collect());
    }
    let Some((from, to)) = inner.split_once("..") else {
        return Err(format!(
            "`{{{inner}}}` is neither a list `{{a,b}}` nor a range `{{0..9}}`"
        ));
    };
    range(from, to).ok_or_else(|| format!("`{{{inner}}}` is not a range of numbers like `{{00000..00041}}`"))?
}

/// Numbers `from..=to`, up or down, padded to the wider end when either has a leading zero.
fn range(from: &str, to: &str) -> Option<Result<Vec<String>, String>> {
    let (first, last): (u64, u64) = (from.parse().ok()?, to.parse().ok()?);
    let padded = |s: &str| s.len() > 1 && s.starts_with('0');
    let width = if padded(from) || padded(to) {
        from.len().max(to.len())
    } else {
        0
    };
    if first.abs_diff(last) >= SHARDS_MAX as u64 {
        return Some(Err(format!("stands for more than {SHARDS_MAX} shards")));
    }
    let number = |n: u64| format!("{n:0width$}");
    Some(Ok(if first <= last {
        (first..=last).map(number).collect()
    } else {
        (last..=first).rev().map(number).collect()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RetryPolicy;
    use argosy_test_stores::{Fault, Faults, Op, Rule, S3Double};

    fn named(text: &str, base: &Path) -> Result<Vec<String>, DataError> {
        let store = Store::new(RetryPolicy::default())?;
        Ok(shards(text, base, &store)?.into_iter().map(|s| s.location).collect())
    }

    // 39: a list that repeats itself, runs backwards or has many pages gives each shard once, in order.
    #[test]
    fn prefix_listed_badly_gives_each_shard_once_in_order() {
        let double = S3Double::start_with_pages(Faults::default(), 100).expect("a port");
        for i in 0..1050 {
            double.insert("bucket", &format!("set/{i:05}.tar"), "x");
        }
        double.insert("bucket", "set/sizes.json", "{}");
        double.insert("bucket", "settle/other.tar", "x");
        double.faults().add(Rule::new(Op::List, Fault::ListedTwice).times(4));
        double.faults().add(Rule::new(Op::List, Fault::ListedReversed).times(4));
        double.faults().add(Rule::new(Op::List, Fault::Status(503)));
        let store = Store::new(RetryPolicy {
            backoff_first_ms: 1,
            ..RetryPolicy::default()
        })
        .expect("a store");
        store.put_root("s3://bucket", double.client("bucket").expect("a client"));
        let found = shards("s3://bucket/set/", Path::new("/"), &store).expect("listed");
        let locations: Vec<&str> = found.iter().map(|s| s.location.as_str()).collect();
        let expected: Vec<String> = (0..1050).map(|i| format!("s3://bucket/set/{i:05}.tar")).collect();
        assert_eq!(locations, expected);
        assert!(found.iter().all(|s| s.facts.as_ref().is_some_and(|f| f.bytes == 1)));
        assert_eq!(double.faults().fired()["status"], 1);
        let error = shards("s3://bucket/none/", Path::new("/"), &store).expect_err("nothing there");
        assert_eq!(error.exit(), argosy_common::exit::Exit::NotFound);
    }

    #[test]
    #[ignore = "a million keys take their time"]
    fn prefix_of_a_million_keys_is_a_million_shards_in_order() {
        use object_store::{ObjectStoreExt, memory::InMemory};
        let objects = std::sync::Arc::new(InMemory::new());
        let keys = 0..1_000_000u32;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            for i in keys.clone().rev() {
                let key = object_store::path::Path::from(format!("set/{i:07}.tar"));
                objects.put(&key, "x".into()).await.expect("written");
            }
        });
        let faulty = argosy_test_stores::FaultyStore::new(objects, Faults::default());
        let store = Store::new(RetryPolicy::default()).expect("a store");
        store.put_root("s3://bucket", std::sync::Arc::new(faulty));
        let found = shards("s3://bucket/set/", Path::new("/"), &store).expect("listed");
        assert_eq!(found.len(), keys.len());
        assert!(found.is_sorted_by(|a, b| a.location < b.location));
    }

    #[test]
    fn address_that_names_no_shards_is_refused() {
        let store = Store::new(RetryPolicy::default()).expect("a store");
        for bad in ["s3://bucket/set", "http://127.0.0.1:1/set/", "ftp://host/0.tar/"] {
            assert!(shards(bad, Path::new("/"), &store).is_err(), "{bad}");
        }
        let found = shards("s3://b/{0..1}.tar::/x/{2..2}.tar", Path::new("/"), &store);
        assert!(found.is_err(), "the second part is a file that is missing");
    }

    #[test]
    fn braces_of_every_kind_expand_as_in_a_shell() {
        let expand = |p: &str| braces(p).expect("a good pattern");
        assert_eq!(expand("a.tar"), ["a.tar"]);
        assert_eq!(expand("{008..011}.tar"), ["008.tar", "009.tar", "010.tar", "011.tar"]);
        assert_eq!(expand("{2..0}"), ["2", "1", "0"]);
        assert_eq!(expand("{a,b}/{0..1}"), ["a/0", "a/1", "b/0", "b/1"]);
        assert_eq!(expand("{x{1..2},y}"), ["x1", "x2", "y"]);
    }

    #[test]
    fn braces_of_any_number_end_in_a_sentence() {
        for text in ["{1..1}".repeat(100_000), "{a,".repeat(100_000) + &"}".repeat(100_000)] {
            let why = braces(&text).expect_err("too many");
            assert!(why.contains("100000 pairs"), "{why}");
        }
        assert_eq!(
            braces(&"{1..1}".repeat(BRACES_MAX)).expect("taken"),
            ["1".repeat(BRACES_MAX)]
        );
    }

    #[test]
    fn parts_are_split_outside_of_addresses_in_brackets_only() {
        let split = |text| parts(text);
        assert_eq!(split("a::b::c"), ["a", "b", "c"]);
        assert_eq!(split("http://[::1]:80/{0..1}.tar"), ["http://[::1]:80/{0..1}.tar"]);
        assert_eq!(
            split("x::http://[fe80::1::2]/0.tar::https://[::]/1.tar::y"),
            ["x", "http://[fe80::1::2]/0.tar", "https://[::]/1.tar", "y"]
        );
        // A name may have a bracket, and an address may lack one.
        assert_eq!(split("a[b::c]"), ["a[b", "c]"]);
        assert_eq!(split("http://[a::b"), ["http://[a", "b"]);
        assert_eq!(split("::"), ["", ""]);
        let shards = named("http://[::1]:9/{0..1}.tar", Path::new("/")).expect("addresses");
        assert_eq!(shards, ["http://[::1]:9/0.tar", "http://[::1]:9/1.tar"]);
    }

    #[test]
    fn braces_that_cannot_be_meant_are_refused() {
        for bad in ["{0..1", "{abc}", "{0..99999999999}", "{a..}"] {
            assert!(braces(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shards_missing_are_named_with_exit_not_found() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("0.tar"), b"").expect("written");
        let found = named("{0..0}.tar", dir.path()).expect("there");
        assert_eq!(found.len(), 1);
        for text in ["nowhere", "{0..2}.tar", "none.tar"] {
            let error = named(text, dir.path()).expect_err("missing");
            assert_eq!(error.exit(), argosy_common::exit::Exit::NotFound, "{error}");
        }
        let text = named("{0..2}.tar", dir.path()).expect_err("missing").to_string();
        assert!(text.contains("1.tar") && text.contains("2 of the 3"), "{text}");
        let empty = dir.path().join("empty");
        std::fs::create_dir(&empty).expect("made");
        let text = named("empty", dir.path()).expect_err("no shard in it").to_string();
        assert!(text.contains("*.tar") && text.contains("empty"), "{text}");
    }

    #[test]
    fn folder_lists_only_tars_in_name_order() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["b.tar", "a.tar", "notes.txt", "c.tar.idx"] {
            std::fs::write(dir.path().join(name), b"").expect("written");
        }
        let found = named(".", dir.path()).expect("two shards");
        let names: Vec<_> = found.iter().map(|f| f.rsplit('/').next().unwrap_or_default()).collect();
        assert_eq!(names, ["a.tar", "b.tar"]);
    }
}
