//! Weights for evaluation: a run's last committed checkpoint, one manifest, or a folder as published on model hubs.

use crate::checkpoint::{CHECKPOINTS_DIR, read_manifest, restore_manifest};
use crate::clip::{ModelConfig, Preprocess};
use crate::engine::{Engine, TorchEngine, TorchOptions};
use crate::model::check_tokenizer;
use argosy_common::events::{RunEvent, StampedEvent};
use argosy_common::exit::Exit;
use std::path::{Path, PathBuf};

const HUB_CONFIG: &str = "open_clip_config.json";
const HUB_WEIGHTS: &str = "open_clip_model.safetensors";
const EVENTS_FILE: &str = "events.jsonl";

type Failure = (Exit, String);

/// A model to evaluate.
#[derive(Debug)]
pub struct Loaded {
    /// The model with its weights.
    pub engine: TorchEngine,
    /// How its pictures are prepared.
    pub preprocess: Preprocess,
    /// Says which weights they are.
    pub shown: String,
}

/// A model with the weights that `checkpoint` names.
///
/// # Errors
/// The exit code and a sentence that names the file.
pub fn load_engine(checkpoint: &Path, threads: usize) -> Result<Loaded, Failure> {
    let options = TorchOptions {
        threads,
        ..TorchOptions::default()
    };
    let shown = checkpoint.display();
    if checkpoint.join(HUB_CONFIG).is_file() {
        return from_hub(checkpoint, options);
    }
    let manifest = if checkpoint.is_file() {
        checkpoint.to_path_buf()
    } else if checkpoint.join(EVENTS_FILE).is_file() {
        last_committed(checkpoint)?
    } else {
        let message = format!(
            "{shown} is no checkpoint: give a run folder (with {EVENTS_FILE}), a manifest.json, or a folder with \
             {HUB_CONFIG} and {HUB_WEIGHTS}"
        );
        return Err((Exit::NotFound, message));
    };
    from_manifest(&manifest, options)
}

fn from_hub(folder: &Path, options: TorchOptions) -> Result<Loaded, Failure> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).map_err(|e| (Exit::NotFound, format!("{}: {e}", path.display())))
    };
    let text = String::from_utf8_lossy(&read(HUB_CONFIG)?).into_owned();
    let (config, preprocess) = read_config(&text, &folder.join(HUB_CONFIG))?;
    let failed = |e: crate::engine::EngineError| (Exit::JobFailed, format!("{}: {e}", folder.display()));
    let mut engine = TorchEngine::new(&config, &preprocess, options).map_err(failed)?;
    engine.load_weights(&read(HUB_WEIGHTS)?).map_err(failed)?;
    Ok(Loaded {
        engine,
        preprocess,
        shown: folder.display().to_string(),
    })
}

/// A configuration whose text tower takes what the tokenizer makes of prompts.
fn read_config(text: &str, file: &Path) -> Result<(ModelConfig, Preprocess), Failure> {
    let bad = |e| (Exit::BadConfig, format!("{}: {e}", file.display()));
    let (config, preprocess) = ModelConfig::from_json(text).map_err(bad)?;
    check_tokenizer(&config).map_err(bad)?;
    Ok((config, preprocess))
}

/// The manifest that the run's events name last. Folders are never listed: a crash leaves files that count for nothing.
fn last_committed(run_dir: &Path) -> Result<PathBuf, Failure> {
    let path = run_dir.join(EVENTS_FILE);
    let text = std::fs::read_to_string(&path).map_err(|e| (Exit::NotFound, format!("{}: {e}", path.display())))?;
    let committed = |line: &str| match serde_json::from_str::<StampedEvent>(line) {
        Ok(StampedEvent {
            event: RunEvent::CheckpointCommitted { key, .. },
            ..
        }) => Some(key),
        _ => None,
    };
    match text.lines().rev().find_map(committed) {
        Some(key) => Ok(run_dir.join(CHECKPOINTS_DIR).join(key)),
        None => Err((
            Exit::NotFound,
            format!("the run in {} has no committed checkpoint yet", run_dir.display()),
        )),
    }
}

fn from_manifest(path: &Path, options: TorchOptions) -> Result<Loaded, Failure> {
    let manifest = read_manifest(path).map_err(|e| (Exit::NotFound, e.to_string()))?;
    let (config, preprocess) = read_config(&manifest.model.to_string(), path)?;
    let mut engine = TorchEngine::new(&config, &preprocess, options).map_err(|e| (Exit::BadConfig, e.to_string()))?;
    // Keys are relative to the folder that holds the attempts, and the manifest lies in its attempt.
    let root = path.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    let state = restore_manifest(root, &manifest, &engine.tensor_table())
        .map_err(|e| (Exit::JobFailed, format!("{}: {e}", path.display())))?;
    engine
        .import_state(&state, None)
        .map_err(|e| (Exit::JobFailed, e.to_string()))?;
    Ok(Loaded {
        engine,
        preprocess,
        shown: format!("{} ({})", path.display(), manifest.name),
    })
}
