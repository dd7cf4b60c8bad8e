//! Weights for evaluation: a run's last committed checkpoint, one manifest, or a folder as published on model hubs.

use crate::checkpoint::{CheckpointError, PartStore, read_manifest, read_state};
use crate::clip::{ModelConfig, Preprocess};
use crate::engine::{Engine, TorchEngine, TorchOptions};
use crate::hub::{HUB_CONFIG, HUB_WEIGHTS};
use crate::model::check_tokenizer;
use argosy_common::config::{CheckpointConfig, Job};
use argosy_common::events::{Manifest, RunEvent, StampedEvent};
use argosy_common::exit::Exit;
use std::collections::BTreeSet;
use std::path::Path;

const EVENTS_FILE: &str = "events.jsonl";

type Failure = (Exit, String);

/// Which weights of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// Those that are trained.
    #[default]
    Trained,
    /// Their exponential moving average.
    Ema,
}

impl Which {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Trained => "trained",
            Self::Ema => "ema",
        }
    }

    /// What stands before a weight's name in a checkpoint.
    fn prefix(self) -> &'static str {
        match self {
            Self::Trained => "",
            Self::Ema => "ema.",
        }
    }
}

/// A model to evaluate.
#[derive(Debug)]
pub struct Loaded {
    /// The model with its weights.
    pub engine: TorchEngine,
    /// How its pictures are prepared.
    pub preprocess: Preprocess,
    /// Says which weights they are.
    pub shown: String,
    /// The checkpoint, where they come from one.
    pub manifest: Option<Manifest>,
}

/// A model with the weights that `checkpoint` names.
///
/// # Errors
/// The exit code and a sentence that names the file.
pub fn load_engine(checkpoint: &Path, threads: usize) -> Result<Loaded, Failure> {
    load(checkpoint, threads, Which::Trained, true)
}

/// A model with some of the weights that `checkpoint` names; its text tower may take other ids than the tokenizer's.
///
/// # Errors
/// As [`load_engine`].
pub fn load_weights(checkpoint: &Path, threads: usize, which: Which) -> Result<Loaded, Failure> {
    load(checkpoint, threads, which, false)
}

/// `captions`: the text tower must take what the tokenizer makes, which is known before any weights are read.
fn load(checkpoint: &Path, threads: usize, which: Which, captions: bool) -> Result<Loaded, Failure> {
    let options = TorchOptions {
        threads,
        ..TorchOptions::default()
    };
    let shown = checkpoint.display();
    if checkpoint.join(HUB_CONFIG).is_file() {
        if which != Which::Trained {
            let message = format!(
                "{shown} holds one set of weights; `{}` is in checkpoints only",
                which.name()
            );
            return Err((Exit::NotFound, message));
        }
        return from_hub(checkpoint, options, captions);
    }
    let manifest = if checkpoint.is_file() || checkpoint.to_string_lossy().contains("://") {
        split(checkpoint)
    } else if checkpoint.join(EVENTS_FILE).is_file() {
        last_committed(checkpoint)?
    } else if checkpoint.ends_with("manifest.json") {
        let message = format!(
            "{shown} is not there: the checkpoint has expired, as checkpoint.keep_last orders, or never was; `argosy \
             checkpoints RUN` lists those there are"
        );
        return Err((Exit::NotFound, message));
    } else {
        let message = format!(
            "{shown} is no checkpoint: give a run folder (with {EVENTS_FILE}), a manifest.json, or a folder with \
             {HUB_CONFIG} and {HUB_WEIGHTS}"
        );
        return Err((Exit::NotFound, message));
    };
    from_manifest(manifest, options, which, captions)
}

fn from_hub(folder: &Path, options: TorchOptions, captions: bool) -> Result<Loaded, Failure> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).map_err(|e| (Exit::NotFound, format!("{}: {e}", path.display())))
    };
    let text = String::from_utf8_lossy(&read(HUB_CONFIG)?).into_owned();
    let (config, preprocess) = read_config(&text, &folder.join(HUB_CONFIG), captions)?;
    let failed = |e: crate::engine::EngineError| (Exit::JobFailed, format!("{}: {e}", folder.display()));
    let mut engine = TorchEngine::new(&config, &preprocess, options).map_err(failed)?;
    engine.load_weights(&read(HUB_WEIGHTS)?).map_err(failed)?;
    Ok(Loaded {
        engine,
        preprocess,
        shown: folder.display().to_string(),
        manifest: None,
    })
}

fn read_config(text: &str, file: &Path, captions: bool) -> Result<(ModelConfig, Preprocess), Failure> {
    let bad = |e| (Exit::BadConfig, format!("{}: {e}", file.display()));
    let (config, preprocess) = ModelConfig::from_json(text).map_err(bad)?;
    if captions {
        check_tokenizer(&config).map_err(bad)?;
    }
    Ok((config, preprocess))
}

/// The manifest that the run's events name last, as place and key. Folders are never listed: a crash leaves files that count
/// for nothing.
fn last_committed(run_dir: &Path) -> Result<(String, String), Failure> {
    let path = run_dir.join(EVENTS_FILE);
    let text = std::fs::read_to_string(&path).map_err(|e| (Exit::NotFound, format!("{}: {e}", path.display())))?;
    let mut committed: Vec<String> = Vec::new();
    for line in text.lines() {
        match serde_json::from_str::<StampedEvent>(line).map(|stamped| stamped.event) {
            Ok(RunEvent::CheckpointCommitted { key, .. }) => committed.push(key),
            Ok(RunEvent::CheckpointRejected { key, .. }) => committed.retain(|k| *k != key),
            _ => {}
        }
    }
    let Some(key) = committed.pop() else {
        let message = format!("the run in {} has no committed checkpoint yet", run_dir.display());
        return Err((Exit::NotFound, message));
    };
    Ok((location_of(run_dir)?, key))
}

/// Where the checkpoints of the run in `run_dir` lie.
fn location_of(run_dir: &Path) -> Result<String, Failure> {
    let bad = |file: &Path, e: &dyn std::fmt::Display| (Exit::BadConfig, format!("{}: {e}", file.display()));
    let here = run_dir.to_string_lossy();
    let path = run_dir.join("job.toml");
    let Ok(text) = std::fs::read_to_string(&path) else {
        return Ok(CheckpointConfig::default().location(&here, ""));
    };
    let job = Job::from_toml(&path.to_string_lossy(), &text).map_err(|e| bad(&path, &e))?;
    let path = run_dir.join("run.json");
    let facts = std::fs::read(&path).map_err(|e| bad(&path, &e))?;
    let facts: serde_json::Value = serde_json::from_slice(&facts).map_err(|e| bad(&path, &e))?;
    let run = facts["run"].as_str().unwrap_or_default();
    Ok(job.checkpoint.location(&here, run))
}

/// A manifest by path or URL as place and key: it lies in the folder of its attempt, and keys begin there.
fn split(manifest: &Path) -> (String, String) {
    let attempt = manifest.parent().unwrap_or(Path::new(""));
    let root = attempt.parent().unwrap_or(Path::new(""));
    let root = if root.as_os_str().is_empty() {
        Path::new(".")
    } else {
        root
    };
    let key = manifest.strip_prefix(root).unwrap_or(manifest);
    (root.to_string_lossy().into_owned(), key.to_string_lossy().into_owned())
}

fn from_manifest(
    (location, key): (String, String),
    options: TorchOptions,
    which: Which,
    captions: bool,
) -> Result<Loaded, Failure> {
    let failed = |e: CheckpointError| {
        let exit = match e {
            CheckpointError::Store { .. } => Exit::NotFound,
            _ => Exit::JobFailed,
        };
        (exit, format!("{location}/{key}: {e}"))
    };
    let store = PartStore::open(&location).map_err(failed)?;
    let manifest = read_manifest(&store, &key).map_err(failed)?;
    let shown = format!("{location}/{key}");
    let (config, preprocess) = read_config(&manifest.model.to_string(), Path::new(&shown), captions)?;
    let mut engine = TorchEngine::new(&config, &preprocess, options).map_err(|e| (Exit::BadConfig, e.to_string()))?;
    let prefix = which.prefix();
    let table = engine.tensor_table();
    let names: BTreeSet<String> = table.iter().map(|spec| format!("{prefix}{}", spec.name)).collect();
    let state = read_state(&store, &manifest, |name| names.contains(name)).map_err(failed)?;
    if which == Which::Ema && !state.names.iter().any(|name| name.starts_with(prefix)) {
        return Err((Exit::NotFound, format!("{shown} holds no average of the weights")));
    }
    let mut weights = Vec::with_capacity(engine.state_elements());
    for spec in table {
        let bytes = state
            .tensors
            .get(&format!("{prefix}{}", spec.name))
            .map(|(_, bytes)| bytes.as_slice());
        let Some(bytes) = bytes.filter(|bytes| bytes.len() == 4 * spec.len) else {
            let message = format!("{shown} has no `{}` of {} values", spec.name, spec.len);
            return Err((Exit::JobFailed, message));
        };
        weights.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
    }
    engine
        .set_params(&weights)
        .map_err(|e| (Exit::JobFailed, e.to_string()))?;
    Ok(Loaded {
        engine,
        preprocess,
        shown: format!("{shown} ({})", manifest.name),
        manifest: Some(manifest),
    })
}
