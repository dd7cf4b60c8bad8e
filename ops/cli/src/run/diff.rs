//! What may change between two starts of one run, and what differs (rule L3).

use crate::fail::Failure;
use argosy_common::config::Job;
use argosy_common::exit::Exit;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Sections that decide what is trained, and the place of its checkpoints; everything else may change.
const FROZEN: [&str; 5] = ["model", "data", "train", "seed", "checkpoint.url"];
/// Keys of frozen sections that do not decide what is trained.
const FREE: [&str; 2] = ["train.state_hash_steps", "data.index"];
/// The same where bits are not promised.
const FREE_IF_FAST: [&str; 2] = ["train.threads", "train.micro_batch"];
/// Differences that are listed.
const LISTED_MAX: usize = 20;

/// One key with its old and its new value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Change {
    pub(crate) key: String,
    pub(crate) old: Value,
    pub(crate) new: Value,
    /// A run may go on with the new one.
    pub(crate) allowed: bool,
}

/// Whether a run may go on with another value of this key.
fn may_change(key: &str, exact: bool) -> bool {
    let is = |name: &str| key == name || key.strip_prefix(name).is_some_and(|rest| rest.starts_with(['.', '[']));
    let free = FREE.iter().any(|name| is(name)) || !exact && FREE_IF_FAST.iter().any(|name| is(name));
    free || !FROZEN.iter().any(|name| is(name))
}

/// All leaves of a job by their dotted key.
pub(crate) fn leaves(job: &Job) -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    flatten("", &serde_json::to_value(job).unwrap_or_default(), &mut out);
    out
}

fn flatten(key: &str, value: &Value, out: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let key = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                flatten(&key, value, out);
            }
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            for (i, value) in list.iter().enumerate() {
                flatten(&format!("{key}[{i}]"), value, out);
            }
        }
        other => {
            out.insert(key.to_owned(), other.clone());
        }
    }
}

/// Keys with other values, in order.
pub(crate) fn changes(old: &Job, new: &Job) -> Vec<Change> {
    let exact = old.train.deterministic;
    let (old, new) = (leaves(old), leaves(new));
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let value = |from: &BTreeMap<String, Value>, key: &str| from.get(key).cloned().unwrap_or(Value::Null);
    keys.into_iter()
        .map(|key| Change {
            key: key.clone(),
            old: value(&old, key),
            new: value(&new, key),
            allowed: may_change(key, exact),
        })
        .filter(|change| change.old != change.new)
        .collect()
}

/// Those of them that a run may not go on with.
pub(crate) fn forbidden(old: &Job, new: &Job) -> Vec<Change> {
    changes(old, new).into_iter().filter(|change| !change.allowed).collect()
}

/// A value in a sentence.
pub(crate) fn word(value: &Value) -> String {
    match value {
        Value::Null => "(none)".to_owned(),
        value => value.to_string(),
    }
}

/// The refusal, with the differences.
pub(crate) fn refuse(changes: &[Change], dir: &Path) -> Failure {
    let mut message = format!("the run in {} was begun with another job:", dir.display());
    for change in changes.iter().take(LISTED_MAX) {
        message += &format!("\n  {}: {} -> {}", change.key, word(&change.old), word(&change.new));
    }
    if changes.len() > LISTED_MAX {
        message += &format!("\n  and {} more", changes.len() - LISTED_MAX);
    }
    let help = format!(
        "resume with the job it began with ({}/job.toml), or start a new run with --run DIR; `argosy run --help` lists \
         what may change",
        dir.display()
    );
    Failure::new(Exit::Conflict, message).help(help)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(more: &str) -> Job {
        let text =
            "version = 1\nname = \"a\"\nseed = 3\n[model]\nname = \"m\"\n[data]\nsources = [{ shards = \"x\" }]\n";
        Job::from_toml("j", &format!("{text}{more}")).unwrap()
    }

    #[test]
    fn changes_that_decide_nothing_are_allowed_and_others_are_named_with_both_values() {
        let old = job("[train]\nlr = 0.5\n");
        let free =
            job("[train]\nlr = 0.5\nthreads = 3\nmicro_batch = 2\n[workers]\ntarget = 2\n[checkpoint]\nevery_s = 9\n");
        assert_eq!(forbidden(&old, &free), []);
        let mut other = job("[train]\nlr = 0.25\n[checkpoint]\nurl = \"s3://b\"\n");
        other.data.sources[0].shards = "y".into();
        other.seed = 4;
        let changes = forbidden(&old, &other);
        let keys: Vec<&str> = changes.iter().map(|c| c.key.as_str()).collect();
        assert_eq!(keys, ["checkpoint.url", "data.sources[0].shards", "seed", "train.lr"]);
        let text = refuse(&changes, Path::new("/runs/a")).message;
        assert!(
            text.contains("train.lr: 0.5 -> 0.25") && text.contains("checkpoint.url: (none) -> \"s3://b\""),
            "{text}"
        );
    }
}
