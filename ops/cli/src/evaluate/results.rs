//! Where results go: the run's events, and `results.jsonl` with the names that open_clip_train writes there.

use crate::fail::{Failure, Outcome};
use argosy_common::events::{RunEvent, StampedEvent};
use argosy_common::ids::StateName;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// One line an evaluated checkpoint.
pub(crate) const RESULTS_FILE: &str = "results.jsonl";
const EVENTS_FILE: &str = "events.jsonl";

#[derive(Debug)]
pub(super) struct Results {
    events: PathBuf,
    results: PathBuf,
    steps: Vec<u64>,
    epoch_positions: u64,
}

impl Results {
    /// Reads which steps are evaluated already.
    pub(super) fn open(run_dir: &Path, epoch_positions: u64) -> Outcome<Self> {
        let results = run_dir.join(RESULTS_FILE);
        let text = match std::fs::read_to_string(&results) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            text => text.map_err(|e| Failure::io("read", &results, &e))?,
        };
        // A line that a crash cut short tells nothing, and its checkpoint is evaluated again.
        let steps = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok()?["step"].as_u64())
            .collect();
        Ok(Self {
            events: run_dir.join(EVENTS_FILE),
            results,
            steps,
            epoch_positions: epoch_positions.max(1),
        })
    }

    pub(super) fn steps(&self) -> &[u64] {
        &self.steps
    }

    /// Checkpoints that earlier processes of the run committed and that are still there.
    pub(super) fn committed(&self, checkpoints: &str) -> Vec<(String, StateName)> {
        let text = std::fs::read_to_string(&self.events).unwrap_or_default();
        // What an object store has is seen when it is read.
        let is_there = |key: &str| checkpoints.contains("://") || Path::new(checkpoints).join(key).is_file();
        let committed = |line: &str| match serde_json::from_str::<StampedEvent>(line).ok()?.event {
            RunEvent::CheckpointCommitted { key, name } if is_there(&key) => Some((key, name)),
            _ => None,
        };
        text.lines().filter_map(committed).collect()
    }

    /// A line among those of the coordinator, which appends whole lines too.
    pub(super) fn event(&mut self, stamped: &StampedEvent) -> io::Result<()> {
        append(&self.events, &serde_json::to_string(stamped)?)
    }

    /// The line of one checkpoint; `epoch` counts finished ones, as open_clip_train's does.
    pub(super) fn line(&mut self, step: u64, positions: u64, done: &[RunEvent]) -> io::Result<()> {
        let mut line = Map::new();
        for event in done {
            if let RunEvent::EvaluationDone { set, top1, top5, .. } = event {
                line.insert(format!("{set}-zeroshot-val-top1"), (*top1).into());
                line.insert(format!("{set}-zeroshot-val-top5"), (*top5).into());
            }
        }
        if line.is_empty() {
            return Ok(());
        }
        line.insert("epoch".into(), (positions / self.epoch_positions).into());
        line.insert("step".into(), step.into());
        line.insert("samples_seen".into(), positions.into());
        append(&self.results, &Value::Object(line).to_string())
    }
}

/// One write of a whole line to the end of the file, which the kernel does not mix with another process's.
fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut file = File::options().append(true).create(true).open(path)?;
    file.write_all(format!("{line}\n").as_bytes())
}
