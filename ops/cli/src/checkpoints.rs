//! `argosy checkpoints`: what a run has committed, and what of it is still there. Also the history that lies in checkpoints.

use crate::args::FolderArgs;
use crate::fail::{Failure, Outcome};
use crate::listing;
use crate::out::{self, Table};
use crate::run::folder::{self, RunFile};
use argosy_common::audit::Saved;
use argosy_common::config::{CheckpointConfig, Job};
use argosy_common::events::{LogInfo, MANIFEST_VERSION, Manifest, Record, RunEvent, StampedEvent};
use argosy_common::exit::Exit;
use argosy_common::ids::StateName;
use argosy_common::steplog::{self, StepRecord};
use argosy_coordinator::EVENTS_FILE;
use argosy_shard_loader::objects::{self, Objects};
use object_store::ObjectStoreExt as _;
use object_store::path::Path as Key;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Keys of manifests with their states, oldest first.
type Committed = Vec<(String, StateName)>;
/// Keys of damaged ones with the reason.
type Rejected = BTreeMap<String, String>;

/// One committed checkpoint.
#[derive(Debug, Serialize)]
struct Line {
    key: String,
    step: u64,
    applied_gen: u64,
    /// `head`, `kept`, `expired`, `rejected` or `damaged`.
    state: &'static str,
    positions_seen: Option<u64>,
    parts: Option<usize>,
    bytes: Option<u64>,
    reason: Option<String>,
}

pub(crate) fn run(args: &FolderArgs) -> Outcome<Exit> {
    let facts = folder::read(&args.run)?;
    let (committed, rejected) = events(&args.run)?;
    let store = open(&args.run, &facts)?;
    let runtime = runtime()?;
    let head = committed.iter().rev().find(|(key, _)| !rejected.contains_key(key));
    let head = head.map(|(key, _)| key.clone());
    let mut lines = Vec::new();
    for (key, name) in &committed {
        let read = runtime.block_on(manifest(&store, key));
        let mut line = Line {
            key: key.clone(),
            step: name.step,
            applied_gen: name.applied_gen.0,
            state: if head.as_ref() == Some(key) { "head" } else { "kept" },
            positions_seen: None,
            parts: None,
            bytes: None,
            reason: rejected.get(key).cloned(),
        };
        match read {
            Ok(Some(manifest)) => {
                line.positions_seen = Some(manifest.positions_seen);
                line.parts = Some(manifest.parts.len());
                line.bytes = Some(manifest.parts.iter().map(|p| p.bytes).sum());
            }
            Ok(None) => line.state = "expired",
            Err(why) => {
                line.state = "damaged";
                line.reason = Some(why);
            }
        }
        if rejected.contains_key(key) {
            line.state = "rejected";
        }
        lines.push(line);
    }
    let value = serde_json::json!({
        "version": 1, "run": facts.run, "total_positions": facts.total_positions, "checkpoints": lines,
    });
    listing::print(args.output.output, &value, Some("checkpoints"), |wide| {
        table(&lines, wide)
    })?;
    if lines.is_empty() {
        out::hint("none is committed yet");
    } else {
        let run = args.run.display();
        out::hint(&format!("next: argosy export {run} -o DIR"));
        out::hint(&format!(
            "      argosy eval zero-shot --checkpoint {run} --data SHARDS --classes FILE --templates FILE"
        ));
    }
    Ok(Exit::Ok)
}

fn table(lines: &[Line], wide: bool) -> String {
    let mut table = Table::new(&["manifest", "step", "positions", "parts", "bytes", "state"]).wide(&["applied gen"]);
    let shown = |value: Option<u64>, as_text: fn(u64) -> String| value.map_or("-".into(), as_text);
    for line in lines {
        let state = match &line.reason {
            Some(reason) => format!("{}: {reason}", line.state),
            None => line.state.to_owned(),
        };
        table.row(&[
            line.key.clone(),
            out::count(line.step),
            shown(line.positions_seen, out::count),
            shown(line.parts.map(|p| p as u64), out::count),
            shown(line.bytes, out::bytes),
            state,
            line.applied_gen.to_string(),
        ]);
    }
    table.render_as(wide)
}

/// Checkpoints in the order of their commits, and those that were rejected with the reason. From the journal, not from the
/// store of records: that is locked while the run is under way.
fn events(run: &Path) -> Outcome<(Committed, Rejected)> {
    let path = run.join(EVENTS_FILE);
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        text => text.map_err(|e| Failure::io("read", &path, &e))?,
    };
    let (mut committed, mut rejected) = (Committed::new(), Rejected::new());
    for line in text.lines() {
        match serde_json::from_str::<StampedEvent>(line).map(|stamped| stamped.event) {
            Ok(RunEvent::CheckpointCommitted { key, name }) => committed.push((key, name)),
            Ok(RunEvent::CheckpointRejected { key, reason }) => {
                rejected.insert(key, reason);
            }
            _ => {} // a line that a kill cut off tells nothing
        }
    }
    Ok((committed, rejected))
}

fn runtime() -> Outcome<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    built.map_err(|e| Failure::new(Exit::NoCapacity, format!("cannot start a thread: {e}")))
}

/// The place of a run's checkpoints, wherever the run folder lies now.
fn open(run: &Path, facts: &RunFile) -> Outcome<Objects> {
    let path = run.join(folder::JOB_FILE);
    let here = run.to_string_lossy();
    let location = match std::fs::read_to_string(&path) {
        Ok(text) => Job::from_toml(&path.to_string_lossy(), &text)?
            .checkpoint
            .location(&here, &facts.run),
        Err(_) => CheckpointConfig::default().location(&here, &facts.run),
    };
    Ok(objects::open(&location)?)
}

/// A manifest; `None` when it is not there.
async fn manifest(store: &Objects, key: &str) -> Result<Option<Manifest>, String> {
    let bytes = match get(store, key).await {
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        bytes => bytes.map_err(|e| e.to_string())?,
    };
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    match manifest.version {
        MANIFEST_VERSION => Ok(Some(manifest)),
        other => Err(format!("format version {other}, this Argosy reads {MANIFEST_VERSION}")),
    }
}

async fn get(store: &Objects, key: &str) -> object_store::Result<Vec<u8>> {
    let object = store.objects.get(&Key::from(key)).await?;
    Ok(object.bytes().await?.to_vec())
}

/// What checkpoints say of the run they are of.
#[derive(Default)]
pub(crate) struct History {
    /// The step logs of the head's lineage, by a name that says which attempt wrote one.
    pub(crate) logs: BTreeMap<String, Vec<StepRecord>>,
    /// What every committed checkpoint that is still there says of the positions before it.
    pub(crate) saved: Vec<Saved>,
}

/// The step logs that lie in the checkpoints of the lineage (rule AU1), and what the checkpoints say of themselves. What
/// cannot be read is said and left out: the audit then misses it, unless the run folder has the steps too.
pub(crate) fn history(run: &Path, facts: &RunFile, records: &[Record]) -> Outcome<History> {
    let mut history = History::default();
    let committed = standing(records);
    let Some(head) = committed.last() else {
        return Ok(history);
    };
    let store = open(run, facts)?;
    let runtime = runtime()?;
    let note = |what: &str, why: &str| out::say(&format!("{} {what}: {why}", out::style("note:", out::YELLOW)));
    for key in &committed {
        let manifest = match runtime.block_on(manifest(&store, key)) {
            Ok(Some(manifest)) => manifest,
            Ok(None) if key != head => continue, // old ones go as the job says
            Ok(None) => {
                note(key, "it is not there; its history is not looked at");
                continue;
            }
            Err(why) => {
                note(key, &why);
                continue;
            }
        };
        if key == head {
            for log in &manifest.history {
                match runtime.block_on(read_log(&store, log)) {
                    Ok(records) => {
                        history.logs.insert(format!("checkpoint {}", log.attempt), records);
                    }
                    Err(why) => note(&log.part.key, &why),
                }
            }
        }
        let lines = |log: &LogInfo| (log.attempt, log.from_step, log.to_step);
        history.saved.push(Saved {
            key: (*key).to_owned(),
            name: manifest.name,
            positions_seen: manifest.positions_seen,
            history: manifest.history.iter().map(lines).collect(),
            counts: manifest.ledger,
        });
    }
    Ok(history)
}

/// Keys of the manifests that were committed and not rejected later, oldest first.
fn standing(records: &[Record]) -> Vec<&str> {
    let mut keys: Vec<&str> = Vec::new();
    for record in records {
        match record {
            Record::CheckpointCommitted { key, .. } => keys.push(key),
            Record::CheckpointRejected { key, .. } => keys.retain(|k| k != key),
            _ => {}
        }
    }
    keys
}

async fn read_log(store: &Objects, log: &LogInfo) -> Result<Vec<StepRecord>, String> {
    let bytes = get(store, &log.part.key).await.map_err(|e| e.to_string())?;
    if argosy_common::hash::digest64(&bytes) != log.part.checksum {
        return Err("its checksum is not the manifest's".into());
    }
    let text = String::from_utf8(bytes).map_err(|e| e.to_string())?;
    steplog::parse(&text).map_err(|(line, why)| format!("line {line}: {why}"))
}
