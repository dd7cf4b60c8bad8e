//! Tests that skip themselves say `SKIP reason`; which reasons are accepted is a fixed list.

use std::path::Path;

use anyhow::{Context, Result};

const LIST: &str = ".config/skips.txt";

/// The text after `word` when a line begins with it, or when a test runner has put the test's name before it.
pub(crate) fn parse(line: &str, word: &str) -> Option<String> {
    let rest = line.strip_prefix(word).or_else(|| {
        let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
        (!name.contains(' ')).then(|| rest.strip_prefix(word)).flatten()
    })?;
    Some(rest.trim().to_owned())
}

/// The accepted reasons, one a line.
pub(crate) fn read_list(root: &Path) -> Result<Vec<String>> {
    let path = root.join(LIST);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(parse_list(&text))
}

fn parse_list(text: &str) -> Vec<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

/// `Ok` with a note when every skip is accepted, else `Err` with the reason to fail.
pub(crate) fn judge(found: &[String], allowed: &[String], strict: bool) -> Result<String, String> {
    if found.is_empty() {
        return Ok("no skips".to_owned());
    }
    if strict {
        return Err(format!(
            "--strict allows no skips and there are {}: {}",
            found.len(),
            found.join("; ")
        ));
    }
    let mut strange: Vec<&str> = found
        .iter()
        .filter(|skip| !allowed.contains(skip))
        .map(String::as_str)
        .collect();
    strange.sort_unstable();
    strange.dedup();
    if strange.is_empty() {
        return Ok(format!("{} skips, all listed in {LIST}", found.len()));
    }
    Err(format!("skips that {LIST} does not list: {}", strange.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(all: &[&str]) -> Vec<String> {
        all.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn skip_is_heard_at_a_line_start_and_after_a_test_name_only() {
        assert_eq!(parse("SKIP no GPU", "SKIP "), Some("no GPU".to_owned()));
        assert_eq!(parse("test a::b ... SKIP no GPU", "SKIP "), Some("no GPU".to_owned()));
        assert_eq!(parse("we SKIP this", "SKIP "), None);
        assert_eq!(parse("test a::b ... ok", "SKIP "), None);
    }

    #[test]
    fn skips_on_the_list_pass_and_others_are_named() {
        let allowed = parse_list("# reasons\n\nno GPU\n");
        assert!(
            judge(&texts(&["no GPU", "no GPU"]), &allowed, false)
                .unwrap()
                .starts_with("2 skips")
        );
        let text = judge(&texts(&["no GPU", "no etcd"]), &allowed, false).unwrap_err();
        assert!(text.contains("no etcd") && !text.contains("no GPU"), "{text}");
    }

    #[test]
    fn strict_refuses_even_listed_skips() {
        assert!(judge(&texts(&["no GPU"]), &texts(&["no GPU"]), true).is_err());
        assert!(judge(&[], &[], true).is_ok());
    }
}
