//! What a run starts from: weights of the whole model and of single towers, and the tokenizer.

use super::weights_in;
use crate::engine::{EngineError, Result, TorchEngine};
use crate::model::tokenizer_file;
use crate::weights::WeightFile;
use crate::weights::fit::Part;
use argosy_common::config;
use argosy_common::hash::digest64;
use std::path::{Path, PathBuf};

/// The files, in the order in which they are loaded (open_clip 3.3.0, `create_model`): later ones replace what earlier ones
/// brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Start {
    weights: Vec<(Part, PathBuf)>,
    tokenizer: Option<PathBuf>,
}

impl Start {
    /// What a job names. Relative paths start at `base`.
    #[must_use]
    pub fn of(model: &config::ModelConfig, base: &Path) -> Self {
        let parts = [
            (Part::Whole, &model.pretrained),
            (Part::Image, &model.pretrained_image_path),
            (Part::Text, &model.pretrained_text_path),
        ];
        let weights = parts
            .into_iter()
            .filter_map(|(part, path)| Some((part, base.join(path.as_ref()?))));
        Self {
            weights: weights.collect(),
            tokenizer: tokenizer_file(model, base),
        }
    }

    /// Digest of all files; `None` where there is none. A run that starts from them is bound to them.
    ///
    /// # Errors
    /// Names the file.
    pub fn digest(&self) -> Result<Option<String>> {
        let mut all = Vec::new();
        for (part, place) in &self.weights {
            let digest = WeightFile::open(&weights_in(place)?)?.digest()?;
            all.push((format!("{part:?}"), digest));
        }
        if let Some(path) = &self.tokenizer {
            let bytes = std::fs::read(path).map_err(|e| EngineError::State(format!("{}: {e}", path.display())))?;
            all.push(("tokenizer".into(), digest64(&bytes)));
        }
        Ok(match &all[..] {
            [] => None,
            // As runs from before there were others have it.
            [(part, digest)] if part == "Whole" => Some(format!("{digest:016x}")),
            _ => {
                let text: String = all
                    .iter()
                    .map(|(part, digest)| format!("{part} {digest:016x}\n"))
                    .collect();
                Some(format!("{:016x}", digest64(text.as_bytes())))
            }
        })
    }

    /// Replaces the engine's weights by those of the files; `digest` is what they were when the run began.
    ///
    /// # Errors
    /// Names the file, and what of it does not fit; nothing of it is written then.
    pub fn load(&self, engine: &mut TorchEngine, digest: Option<&str>) -> Result<()> {
        if digest.is_some() && self.digest()?.as_deref() != digest {
            let files = self.weights.iter().map(|(_, path)| path).chain(&self.tokenizer);
            let files: Vec<String> = files.map(|path| path.display().to_string()).collect();
            let why = "not what this run began with; put the old ones back, or start a new run";
            return Err(EngineError::State(format!("{}: {why}", files.join(", "))));
        }
        for (part, place) in &self.weights {
            let path = weights_in(place)?;
            let file = WeightFile::open(&path)?;
            let loaded = engine.load(&file, *part);
            loaded.map_err(|e| EngineError::State(format!("{}: {e}", path.display())))?;
        }
        Ok(())
    }
}
