//! Weights for evaluation: a run's last committed checkpoint, one manifest, or a folder as published on model hubs.

use crate::checkpoint::{CheckpointError, PartStore, read_manifest, read_state};
use crate::clip::{ModelConfig, Preprocess};
use crate::engine::{Engine, TorchEngine, TorchOptions};
use crate::hub::{CreateError, HUB_CONFIG, HUB_WEIGHTS, beside, create_model_and_transforms};
use crate::model::{self, resolve};
use argosy_common::config::{self, CheckpointConfig, Job};
use argosy_common::events::{Manifest, RunEvent, StampedEvent};
use argosy_common::exit::Exit;
use argosy_shard_loader::Tokenizer;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

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

/// What is said of weights that do not say it themselves; a run's checkpoints do.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ModelArgs {
    /// Model of a bare weight file: a name that `argosy models` lists, or a file in OpenCLIP's config format
    #[arg(long, value_name = "NAME|FILE")]
    pub model: Option<String>,
    /// Force QuickGELU
    #[arg(long)]
    pub force_quick_gelu: bool,
    /// OpenCLIP's tag of the weights, where neither their file's name nor their folder tells it
    #[arg(long, value_name = "TAG")]
    pub pretrained_tag: Option<String>,
    /// Take weights under another activation, normalisation or tokenizer than the one they were trained with
    #[arg(long)]
    pub pretrained_mismatch: bool,
    /// tokenizer.json of a model that does not use CLIP's own tokenizer [default: the job's, or the one beside the weights]
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
}

impl ModelArgs {
    /// The `[model]` of a job that starts from these weights.
    fn job(&self, weights: &Path) -> config::ModelConfig {
        let (name, file) = match &self.model {
            Some(file) if file.ends_with(".json") => (String::new(), Some(file.clone())),
            Some(name) => (name.clone(), None),
            None => (String::new(), None),
        };
        config::ModelConfig {
            name,
            config: file,
            force_quick_gelu: self.force_quick_gelu,
            pretrained: Some(weights.to_string_lossy().into_owned()),
            pretrained_tag: self.pretrained_tag.clone(),
            pretrained_mismatch: self.pretrained_mismatch,
            tokenizer: self.tokenizer.as_ref().map(|path| path.to_string_lossy().into_owned()),
            ..config::ModelConfig::default()
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
    /// Where the model's own tokenizer lies, as far as is known.
    pub tokenizer_file: Option<PathBuf>,
}

impl Loaded {
    /// Makes ids of captions for the model.
    ///
    /// # Errors
    /// When its tokenizer cannot be had, or its text tower cannot take what that makes.
    pub fn tokenizer(&self) -> Result<Tokenizer, Failure> {
        let made = model::tokenizer(self.engine.config(), self.tokenizer_file.as_deref());
        made.map_err(|e| (Exit::BadConfig, e.to_string()))
    }
}

/// A model with the weights that `checkpoint` names.
///
/// # Errors
/// The exit code and a sentence that names the file.
pub fn load_engine(checkpoint: &Path, model: &ModelArgs, threads: usize) -> Result<Loaded, Failure> {
    load(checkpoint, model, threads, Which::Trained, true)
}

/// A model with some of the weights that `checkpoint` names; its text tower may take other ids than the tokenizer's.
///
/// # Errors
/// As [`load_engine`].
pub fn load_weights(checkpoint: &Path, model: &ModelArgs, threads: usize, which: Which) -> Result<Loaded, Failure> {
    load(checkpoint, model, threads, which, false)
}

/// `captions`: the text tower must take what the tokenizer makes, which is known before any weights are read.
fn load(checkpoint: &Path, model: &ModelArgs, threads: usize, which: Which, captions: bool) -> Result<Loaded, Failure> {
    let options = TorchOptions {
        threads,
        ..TorchOptions::default()
    };
    let shown = checkpoint.display();
    let bare = checkpoint.is_file() && checkpoint.extension().is_none_or(|e| e != "json");
    if bare || checkpoint.join(HUB_CONFIG).is_file() {
        if which != Which::Trained {
            let message = format!(
                "{shown} holds one set of weights; `{}` is in checkpoints only",
                which.name()
            );
            return Err((Exit::NotFound, message));
        }
        if bare && model.model.is_none() && beside(checkpoint, HUB_CONFIG).is_none() {
            let message =
                format!("{shown} is a weight file without {HUB_CONFIG} beside it: say by --model which model's it is");
            return Err((Exit::Usage, message));
        }
        return from_weights(checkpoint, &model.job(checkpoint), options, captions);
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
             {HUB_CONFIG} and {HUB_WEIGHTS}, or a bare weight file with --model"
        );
        return Err((Exit::NotFound, message));
    };
    from_manifest(manifest, options, which, model.tokenizer.clone(), captions)
}

fn from_weights(
    place: &Path,
    model: &config::ModelConfig,
    options: TorchOptions,
    captions: bool,
) -> Result<Loaded, Failure> {
    let here = Path::new(".");
    if captions {
        // Told before any weights are read.
        resolve(model, here).map_err(|e| (Exit::BadConfig, e.to_string()))?;
    }
    let made = create_model_and_transforms(model, here, options).map_err(|e| match e {
        CreateError::Model(e) => (Exit::BadConfig, e.to_string()),
        CreateError::Engine(e) => (Exit::JobFailed, e.to_string()),
    })?;
    Ok(Loaded {
        engine: made.engine,
        preprocess: made.preprocess,
        shown: place.display().to_string(),
        manifest: None,
        tokenizer_file: made.tokenizer_file,
    })
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
    tokenizer: Option<PathBuf>,
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
    let bad = |e| (Exit::BadConfig, format!("{shown}: {e}"));
    let (config, preprocess) = ModelConfig::from_json(&manifest.model.to_string()).map_err(bad)?;
    // (The job's paths are whole, as a run writes them.)
    let job = serde_json::from_value::<config::ModelConfig>(manifest.job["model"].clone()).unwrap_or_default();
    let tokenizer_file = tokenizer.or_else(|| model::tokenizer_file(&job, Path::new(".")));
    if captions {
        model::tokenizer(&config, tokenizer_file.as_deref()).map_err(bad)?;
    }
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
        tokenizer_file,
    })
}
