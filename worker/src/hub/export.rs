//! `export`: a checkpoint as OpenCLIP's hub layout.

use super::card::{self, Facts};
use super::{HUB_CONFIG, HUB_TOKENIZER, HUB_WEIGHTS};
use crate::clip::weights;
use crate::engine::Engine;
use crate::eval::{Loaded, ModelArgs, Which, load_weights};
use argosy_common::exit::Exit;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is exported where.
#[derive(Clone, Debug, clap::Args)]
pub struct ExportArgs {
    /// Run folder, manifest.json (path or URL), or folder with open_clip_config.json and open_clip_model.safetensors
    pub checkpoint: PathBuf,
    #[command(flatten)]
    pub how: ModelArgs,
    /// Folder to make; it must not exist, or be empty
    #[arg(short = 'o', long = "out", value_name = "DIR")]
    pub out: PathBuf,
    /// The trained weights, or their running average where the checkpoint has one
    #[arg(long, value_enum, default_value = "trained")]
    pub weights: Which,
    /// Lines of JSON for the card's results [default: results.jsonl of the run folder]
    #[arg(long, value_name = "FILE")]
    pub results: Option<PathBuf>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exported {
    /// The folder.
    pub folder: String,
    /// What was exported.
    pub from: String,
    /// Which of its weights.
    pub weights: &'static str,
    /// Trained numbers.
    pub parameters: usize,
    /// Steps of the state, where it is known.
    pub step: Option<u64>,
    /// Bytes of the weights.
    pub bytes: u64,
}

type Failure = (Exit, String);

/// Exports. The folder appears whole or not at all.
///
/// # Errors
/// The exit code and a sentence that names the file.
pub fn run(args: &ExportArgs) -> Result<Exported, Failure> {
    let out = &args.out;
    let taken = out.read_dir().is_ok_and(|mut entries| entries.next().is_some()) || out.is_file();
    if taken {
        let message = format!("{} exists and is not empty; choose another folder", out.display());
        return Err((Exit::Conflict, message));
    }
    let results = results(args)?;
    let loaded = load_weights(&args.checkpoint, &args.how, 1, args.weights)?;
    let params = loaded.engine.params();
    let config = serde_json::json!({
        "model_cfg": loaded.engine.config().source,
        "preprocess_cfg": loaded.preprocess.to_json(),
    });
    let config = serde_json::to_string_pretty(&config).map_err(|e| (Exit::JobFailed, e.to_string()))?;
    let bytes = weights::save(params).map_err(|e| (Exit::JobFailed, e.to_string()))?;
    let title = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let card = card::render(&Facts {
        title: &title,
        from: &loaded.shown,
        manifest: loaded.manifest.as_ref(),
        weights: args.weights.name(),
        parameters: loaded.engine.state_elements(),
        results: &results,
    });
    let own = tokenizer_files(&loaded)?;
    let mut files: Vec<(&str, &[u8])> = vec![
        (HUB_CONFIG, config.as_bytes()),
        (HUB_WEIGHTS, &bytes),
        ("README.md", card.as_bytes()),
    ];
    files.extend(own.iter().map(|(name, bytes)| (*name, bytes.as_slice())));
    write_folder(out, &files)?;
    Ok(Exported {
        folder: out.display().to_string(),
        from: loaded.shown,
        weights: args.weights.name(),
        parameters: loaded.engine.state_elements(),
        step: loaded.manifest.map(|m| m.name.step),
        bytes: bytes.len() as u64,
    })
}

/// The tokenizer of a model that does not use CLIP's own: OpenCLIP looks for it beside the weights.
fn tokenizer_files(loaded: &Loaded) -> Result<Vec<(&'static str, Vec<u8>)>, Failure> {
    let mut out = Vec::new();
    let Some(file) = loaded.tokenizer_file.as_ref() else {
        return Ok(out);
    };
    if loaded.engine.config().text.tokenizer.name.is_none() {
        return Ok(out);
    }
    for name in [HUB_TOKENIZER, "tokenizer_config.json", "special_tokens_map.json"] {
        // The tokenizer itself may have any name where it lies now.
        let path = if name == HUB_TOKENIZER {
            file.clone()
        } else {
            file.with_file_name(name)
        };
        if path.is_file() {
            let bytes = std::fs::read(&path).map_err(|e| (Exit::NotFound, format!("{}: {e}", path.display())))?;
            out.push((name, bytes));
        }
    }
    Ok(out)
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> Failure + use<'_> {
    move |e| {
        let exit = match e.kind() {
            std::io::ErrorKind::PermissionDenied => Exit::Denied,
            std::io::ErrorKind::StorageFull => Exit::NoCapacity,
            _ => Exit::JobFailed,
        };
        (exit, format!("cannot write {}: {e}", path.display()))
    }
}

/// Writes beside and renames, so that a folder with half a model never has the name.
fn write_folder(out: &Path, files: &[(&str, &[u8])]) -> Result<(), Failure> {
    let mut beside = out.as_os_str().to_owned();
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = PathBuf::from(beside);
    let write = || -> Result<(), Failure> {
        std::fs::create_dir_all(&beside).map_err(io(&beside))?;
        for (name, bytes) in files {
            let path = beside.join(name);
            std::fs::write(&path, bytes).map_err(io(&path))?;
        }
        if out.is_dir() {
            std::fs::remove_dir(out).map_err(io(out))?;
        }
        std::fs::rename(&beside, out).map_err(io(out))
    };
    write().inspect_err(|_| {
        // What is left of a failed write is ours alone.
        let _ = std::fs::remove_dir_all(&beside);
    })
}

/// The newest line of each evaluation set. A line that is not JSON is an error: results are not made up.
fn results(args: &ExportArgs) -> Result<Vec<serde_json::Value>, Failure> {
    let path = match &args.results {
        Some(path) => path.clone(),
        None => args.checkpoint.join("results.jsonl"),
    };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(_) if args.results.is_none() => return Ok(Vec::new()),
        Err(e) => return Err((Exit::NotFound, format!("{}: {e}", path.display()))),
    };
    let mut newest: BTreeMap<String, serde_json::Value> = BTreeMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let value: serde_json::Value = serde_json::from_str(line)
            .map_err(|e| (Exit::JobFailed, format!("{}:{}: {e}", path.display(), number + 1)))?;
        let keys: Vec<&str> = value
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, _)| k.as_str())
            .collect();
        newest.insert(keys.join(" "), value);
    }
    Ok(newest.into_values().collect())
}
