//! Models as others take them: OpenCLIP's hub layout out and in, and features for whoever wants them.

mod card;
mod create;
pub mod embed;
pub mod export;
pub mod listing;
pub mod published;
mod start;
mod trained;

pub use create::{CreateError, Created, create_model_and_transforms};
pub use start::Start;
pub use trained::TrainedWith;

use crate::clip::{ModelConfig, Preprocess};
use crate::engine::{EngineError, Result};
use std::path::{Path, PathBuf};

/// The configuration, in OpenCLIP's form.
pub const HUB_CONFIG: &str = "open_clip_config.json";
/// The weights under OpenCLIP's names.
pub const HUB_WEIGHTS: &str = "open_clip_model.safetensors";
/// The tokenizer of a model that does not use CLIP's own.
pub const HUB_TOKENIZER: &str = "tokenizer.json";

/// Names of weights in a folder, as OpenCLIP looks for them (open_clip 3.3.0, `_find_checkpoint_in_dir`).
const PREFERRED: [&str; 8] = [
    HUB_WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
];
/// Largest configuration that is read.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// A folder's weights, or the file itself.
///
/// # Errors
/// When there is no such file or folder, or no weights in the folder.
pub fn weights_in(place: &Path) -> Result<PathBuf> {
    if !place.is_dir() {
        return Ok(place.to_owned());
    }
    if let Some(name) = PREFERRED.iter().find(|name| place.join(name).is_file()) {
        return Ok(place.join(name));
    }
    let failed = |e: std::io::Error| EngineError::State(format!("{}: {e}", place.display()));
    let mut others = Vec::new();
    for entry in std::fs::read_dir(place).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let rank = match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => 0,
            Some("bin" | "pth") => 1,
            _ => continue,
        };
        others.push((rank, path));
    }
    others.sort();
    let first = others.into_iter().next();
    first.map(|(_, path)| path).ok_or_else(|| {
        let why = format!("no weights in it: {HUB_WEIGHTS}, or another .safetensors, .bin or .pth file, is expected");
        EngineError::State(format!("{}: {why}", place.display()))
    })
}

/// Text of a small file that is named by others.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let failed = |why: String| EngineError::State(format!("{}: {why}", path.display()));
    let about = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?;
    if about.len() > CONFIG_BYTES_MAX {
        let len = about.len();
        return Err(failed(format!(
            "{len} bytes, a configuration has at most {CONFIG_BYTES_MAX}"
        )));
    }
    let bytes = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
    String::from_utf8(bytes).map_err(|_| failed("not UTF-8".into()))
}

/// The file `name` that belongs to weights: in their folder, or beside their file.
#[must_use]
pub fn beside(place: &Path, name: &str) -> Option<PathBuf> {
    let path = if place.is_dir() {
        place.join(name)
    } else {
        place.with_file_name(name)
    };
    (place.exists() && path.is_file()).then_some(path)
}

/// Configuration of the model in a hub folder, or beside its weight file.
///
/// # Errors
/// Names the file, or the key that is not built.
pub fn read_config(place: &Path) -> Result<(ModelConfig, Preprocess)> {
    let Some(path) = beside(place, HUB_CONFIG) else {
        let why =
            format!("no {HUB_CONFIG} in it or beside it; name the model of bare weights by model.name or model.config");
        return Err(EngineError::State(format!("{}: {why}", place.display())));
    };
    Ok(ModelConfig::from_json(&read_text(&path)?)?)
}
