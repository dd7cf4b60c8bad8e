//! From what a user writes to a list of shards: brace patterns, folders, single files.

use crate::error::DataError;
use std::path::{Path, PathBuf};

/// Most shards one pattern may stand for; more is a slip of the hand.
const SHARDS_MAX: usize = 10_000_000;

/// The shards that `text` names, as absolute paths.
///
/// A folder gives its `*.tar` files by name; a pattern with braces (`{00000..00041}`, `{a,b}`, nested or several) gives
/// its expansion in order; parts joined by `::` are taken one after the other. Relative paths start at `base`.
///
/// # Errors
/// [`DataError::NotFound`] when a folder, file or any shard of a pattern is missing or a folder holds no shard;
/// [`DataError::Pattern`] when braces do not close or the pattern is absurdly large.
pub fn shards(text: &str, base: &Path) -> Result<Vec<String>, DataError> {
    let mut found = Vec::new();
    for part in text.split("::") {
        let part = part.trim();
        if part.is_empty() {
            return Err(DataError::Pattern {
                pattern: text.into(),
                why: "is empty; name a folder, file or pattern".into(),
            });
        }
        let part = part.strip_prefix("file://").unwrap_or(part);
        if part.contains("://") {
            let why = "only files can be read; give a path".into();
            return Err(DataError::Pattern {
                pattern: part.into(),
                why,
            });
        }
        found.extend(one_part(part, base)?);
    }
    found.iter().map(|path| utf8(path)).collect()
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
        if file.extension().is_some_and(|e| e.eq_ignore_ascii_case("tar")) && file.is_file() {
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
    fn braces_that_cannot_be_meant_are_refused() {
        for bad in ["{0..1", "{abc}", "{0..99999999999}", "{a..}"] {
            assert!(braces(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shards_missing_are_named_with_exit_not_found() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("0.tar"), b"").expect("written");
        let found = shards("{0..0}.tar", dir.path()).expect("there");
        assert_eq!(found.len(), 1);
        for text in ["nowhere", "{0..2}.tar", "none.tar"] {
            let error = shards(text, dir.path()).expect_err("missing");
            assert_eq!(error.exit(), argosy_common::exit::Exit::NotFound, "{error}");
        }
        let text = shards("{0..2}.tar", dir.path()).expect_err("missing").to_string();
        assert!(text.contains("1.tar") && text.contains("2 of the 3"), "{text}");
        let empty = dir.path().join("empty");
        std::fs::create_dir(&empty).expect("made");
        let text = shards("empty", dir.path()).expect_err("no shard in it").to_string();
        assert!(text.contains("*.tar") && text.contains("empty"), "{text}");
    }

    #[test]
    fn folder_lists_only_tars_in_name_order() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["b.tar", "a.tar", "notes.txt", "c.tar.idx"] {
            std::fs::write(dir.path().join(name), b"").expect("written");
        }
        let found = shards(".", dir.path()).expect("two shards");
        let names: Vec<_> = found.iter().map(|f| f.rsplit('/').next().unwrap_or_default()).collect();
        assert_eq!(names, ["a.tar", "b.tar"]);
    }
}
