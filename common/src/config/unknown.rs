//! Unknown keys: found before serde sees the tree, so that the error can offer the nearest name. What is known is what the
//! schema says, and the schema is made from the structs.

use super::ConfigError;
use super::schema::{Section, sections};
use super::tree::{Node, Value};

/// Keys that other tools have or that are often asked for, with what stands in their place.
const ANSWERS: &[(&str, &str)] = &[
    (
        "data.sources.weight",
        "sources are not weighted yet: all their rows are in one permutation, each once a pass",
    ),
    (
        "train.batch_size",
        "did you mean `train.global_batch`, the rows of one step over all workers?",
    ),
    ("train.optimizer", "there is one optimiser, AdamW"),
    ("train.opt", "there is one optimiser, AdamW"),
];

/// Refuses the first key that no section knows.
pub(super) fn refuse_unknown_keys(root: &Node) -> Result<(), ConfigError> {
    walk("", &sections().root, root)
}

fn walk(path: &str, section: &Section, node: &Node) -> Result<(), ConfigError> {
    match &node.value {
        Value::Table(entries) => {
            for (key, inner) in entries {
                let full = join(path, key);
                match section.keys.get(key.as_str()) {
                    None if section.open => {}
                    None => return Err(unknown(path, section, key, inner)),
                    Some(Some(section)) => walk(&full, section, inner)?,
                    Some(None) => {} // no section of ours: serde will say which type was expected there
                }
            }
            Ok(())
        }
        Value::List(items) => items.iter().try_for_each(|item| walk(path, section, item)),
        _ => Ok(()),
    }
}

fn unknown(path: &str, section: &Section, key: &str, node: &Node) -> ConfigError {
    let full = join(path, key);
    let known: Vec<&str> = section.keys.keys().map(String::as_str).collect();
    let answer = ANSWERS
        .iter()
        .find(|(asked, _)| *asked == full)
        .map(|(_, answer)| (*answer).to_owned());
    let near = || nearest(key, &known).map(|near| join(path, near));
    let elsewhere = || sections().anywhere(key);
    // The very name in another section is a better guess than a name that is only like it.
    let hint = answer.or_else(|| elsewhere().or_else(near).map(|near| format!("did you mean `{near}`?")));
    ConfigError::UnknownKey {
        place: node.place.to_string(),
        key: full,
        hint,
    }
}

fn join(section: &str, key: &str) -> String {
    if section.is_empty() {
        key.into()
    } else {
        format!("{section}.{key}")
    }
}

/// The known name most like `key`, if any is like it at all.
#[must_use]
pub fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(key, candidate), *candidate))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
