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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::{ModelConfig, Preprocess, weights};
    use crate::engine::{Engine, TorchOptions};

    /// Every value of a file is the same number.
    const FILES: [(&str, f32); 3] = [("whole", 1.0), ("image", 2.0), ("text", 3.0)];

    fn engine() -> TorchEngine {
        let text = r#"{"embed_dim": 8, "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
            "text_cfg": {"context_length": 6, "vocab_size": 24, "width": 16, "heads": 2, "layers": 1}}"#;
        let (config, preprocess): (ModelConfig, Preprocess) = ModelConfig::from_json(text).unwrap();
        TorchEngine::new(&config, &preprocess, TorchOptions::default()).unwrap()
    }

    fn write(dir: &Path, name: &str, value: f32) {
        let mut engine = engine();
        engine.set_params(&vec![value; engine.state_elements()]).unwrap();
        std::fs::create_dir_all(dir.join(name)).unwrap();
        let path = dir.join(name).join("weights.safetensors");
        std::fs::write(path, weights::save(engine.params()).unwrap()).unwrap();
    }

    /// A job with the first `count` kinds of files.
    fn job(count: usize) -> config::ModelConfig {
        let path = |at: usize| (at < count).then(|| format!("{}/weights.safetensors", FILES[at].0));
        config::ModelConfig {
            pretrained: path(0),
            pretrained_image_path: path(1),
            pretrained_text_path: path(2),
            ..config::ModelConfig::default()
        }
    }

    #[test]
    fn start_loads_the_whole_model_first_and_then_each_tower_over_it() {
        let dir = tempfile::tempdir().unwrap();
        FILES.iter().for_each(|(name, value)| write(dir.path(), name, *value));
        for count in 1..=3 {
            let mut engine = engine();
            Start::of(&job(count), dir.path()).load(&mut engine, None).unwrap();
            for spec in engine.params().table() {
                let want = match &spec.name {
                    name if name.starts_with("logit_") => 1.0,
                    name if name.starts_with("visual.") => [1.0, 2.0, 2.0][count - 1],
                    _ => [1.0, 1.0, 3.0][count - 1],
                };
                let got = &engine.params().values.as_slice()[spec.offset..spec.offset + spec.len];
                assert!(
                    got.iter().all(|v| *v == want),
                    "{count} files: {} {}",
                    spec.name,
                    got[0]
                );
            }
        }
    }

    #[test]
    fn start_is_bound_to_every_file_and_its_place() {
        let dir = tempfile::tempdir().unwrap();
        FILES.iter().for_each(|(name, value)| write(dir.path(), name, *value));
        let digest = |job: &config::ModelConfig| Start::of(job, dir.path()).digest().unwrap();
        assert_eq!(digest(&job(0)), None);
        let all = digest(&job(3));
        let swapped = config::ModelConfig {
            pretrained_image_path: job(3).pretrained_text_path,
            pretrained_text_path: job(3).pretrained_image_path,
            ..job(3)
        };
        let mut seen = vec![digest(&job(1)), digest(&job(2)), all.clone(), digest(&swapped)];
        for (name, value) in FILES {
            write(dir.path(), name, value + 8.0);
            seen.push(digest(&job(3)));
            // What the run began with is gone; nothing of the others is taken either.
            let (mut engine, start) = (engine(), Start::of(&job(3), dir.path()));
            let before = engine.state_hash();
            let error = start.load(&mut engine, all.as_deref()).unwrap_err().to_string();
            assert!(error.contains("not what this run began with"), "{error}");
            assert_eq!(engine.state_hash(), before);
            write(dir.path(), name, value);
        }
        assert_eq!(digest(&job(3)), all);
        // The captions' ids are part of what a run began with; those of the text tower's own weights.
        for name in ["whole", "text"] {
            std::fs::write(dir.path().join(name).join("tokenizer.json"), name).unwrap();
            seen.push(digest(&job(3)));
        }
        let file = tokenizer_file(&job(3), dir.path());
        assert_eq!(file, Some(dir.path().join("text/tokenizer.json")));
        assert_eq!(
            tokenizer_file(&job(2), dir.path()),
            Some(dir.path().join("whole/tokenizer.json"))
        );
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count, "{seen:?}");
    }
}
