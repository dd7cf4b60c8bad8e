//! Models as others take them: OpenCLIP's hub layout out and in, and features for whoever wants them.

mod card;
pub mod embed;
pub mod export;

use crate::clip::{ModelConfig, Preprocess};
use crate::engine::{EngineError, Result, TorchEngine};
use argosy_common::hash::digest64;
use std::path::Path;

/// The configuration, in OpenCLIP's form.
pub const HUB_CONFIG: &str = "open_clip_config.json";
/// The weights under OpenCLIP's names.
pub const HUB_WEIGHTS: &str = "open_clip_model.safetensors";

fn read(folder: &Path, name: &str) -> Result<Vec<u8>> {
    let path = folder.join(name);
    std::fs::read(&path).map_err(|e| EngineError::State(format!("{}: {e}", path.display())))
}

/// Configuration of the model in a hub folder.
///
/// # Errors
/// Names the file, or the key that is not built.
pub fn read_config(folder: &Path) -> Result<(ModelConfig, Preprocess)> {
    let text = String::from_utf8_lossy(&read(folder, HUB_CONFIG)?).into_owned();
    Ok(ModelConfig::from_json(&text)?)
}

/// Digest of a hub folder's weights: a run that starts from them is bound to them.
///
/// # Errors
/// Names the file.
pub fn weights_digest(folder: &Path) -> Result<String> {
    Ok(format!("{:016x}", digest64(&read(folder, HUB_WEIGHTS)?)))
}

/// Replaces the engine's weights by those of a hub folder; `digest` is what they were when the run began.
///
/// # Errors
/// Names the file or key; nothing is written then.
pub fn load_weights(engine: &mut TorchEngine, folder: &Path, digest: Option<&str>) -> Result<()> {
    let bytes = read(folder, HUB_WEIGHTS)?;
    let now = format!("{:016x}", digest64(&bytes));
    if digest.is_some_and(|then| then != now) {
        let file = folder.join(HUB_WEIGHTS);
        let why = "is not the file this run began with; put the old one back, or start a new run";
        return Err(EngineError::State(format!("{} {why}", file.display())));
    }
    engine
        .load_weights(&bytes)
        .map_err(|e| EngineError::State(format!("{}: {e}", folder.join(HUB_WEIGHTS).display())))
}
