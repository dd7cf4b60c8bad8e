//! From a job's `[model]` to the model that is built, and what others want to know of it before anything is built.

use crate::checkpoint::parts_total;
use crate::clip::specs::Specs;
use crate::clip::{ConfigError, ModelConfig, Preprocess};
use crate::hub;
use argosy_common::config::{self, Job, Loss};
use argosy_shard_loader::tokenize::VOCABULARY;
use serde::Serialize;
use serde_json::json;
use std::path::Path;

/// Why a job's model cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file named in `model.config` cannot be read.
    #[error("model.config = {file:?}: {why}")]
    File {
        /// The file.
        file: String,
        /// The system's words.
        why: String,
    },
    /// Its content, or the name.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The folder named in `model.pretrained`.
    #[error("model.pretrained: {0}")]
    Weights(String),
}

impl ModelError {
    fn weights(error: crate::engine::EngineError) -> Self {
        Self::Weights(error.to_string())
    }
}

/// Digest of the weights that the job starts from; `None` when it draws them from its seed.
///
/// # Errors
/// Names the file.
pub fn pretrained_digest(model: &config::ModelConfig, base: &Path) -> Result<Option<String>, ModelError> {
    let folder = model.pretrained.as_ref().map(|folder| base.join(folder));
    let digest = folder.map(|folder| hub::weights_digest(&folder));
    digest.transpose().map_err(ModelError::weights)
}

/// Refuses a text tower that cannot take what the tokenizer makes. Not part of reading a configuration: the parity goldens
/// have small vocabularies and bring ids of their own.
///
/// # Errors
/// Names the key that is too small.
pub fn check_tokenizer(model: &ModelConfig) -> Result<(), ConfigError> {
    let too_small = |key: &str, least: i64, got: i64, why: &str| {
        let why = format!("at least {least} expected, got {got}: {why}");
        Err(ConfigError::Invalid { key: key.into(), why })
    };
    let text = &model.text;
    if let Some(tokenizer) = &text.tokenizer {
        return Err(ConfigError::Unsupported {
            key: "text_cfg".into(),
            value: tokenizer.clone(),
            why: "captions become ids by CLIP's own tokenizer only".into(),
        });
    }
    if text.vocab_size < i64::from(VOCABULARY) {
        let why = "captions become ids of CLIP's vocabulary";
        return too_small("text_cfg.vocab_size", i64::from(VOCABULARY), text.vocab_size, why);
    }
    if text.context_length < 2 {
        let why = "every caption has a start and an end";
        return too_small("text_cfg.context_length", 2, text.context_length, why);
    }
    Ok(())
}

/// The model of a job. Relative paths start at `base`.
///
/// # Errors
/// Names the file, name or key that is wrong.
pub fn resolve(model: &config::ModelConfig, base: &Path) -> Result<(ModelConfig, Preprocess), ModelError> {
    let (mut built, mut preprocess) = match &model.config {
        Some(file) => {
            let path = base.join(file);
            let text = std::fs::read_to_string(&path).map_err(|e| ModelError::File {
                file: path.display().to_string(),
                why: e.to_string(),
            })?;
            ModelConfig::from_json(&text)?
        }
        None => match &model.pretrained {
            Some(folder) if model.name.is_empty() => {
                hub::read_config(&base.join(folder)).map_err(ModelError::weights)?
            }
            _ => (ModelConfig::by_name(&model.name)?, Preprocess::default()),
        },
    };
    if model.force_quick_gelu {
        built.quick_gelu = true;
        if let Some(map) = built.source.as_object_mut() {
            map.insert("quick_gelu".into(), true.into());
        }
    }
    if let Some(mean) = model.image_mean {
        preprocess.mean = mean;
    }
    if let Some(std) = model.image_std {
        preprocess.std = std;
    }
    check_tokenizer(&built)?;
    Ok((built, preprocess))
}

/// The model of a job as it is trained: with the bias that the sigmoid loss learns.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_job(job: &Job, base: &Path) -> Result<(ModelConfig, Preprocess), ModelError> {
    let (mut built, preprocess) = resolve(&job.model, base)?;
    if job.train.loss == Loss::Siglip && built.init_logit_bias.is_none() {
        built.make_siglip();
    }
    Ok((built, preprocess))
}

/// What `argosy-worker describe-model` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// Trained numbers.
    pub parameters: u64,
    /// Bytes of weights, moments, moving average and the count of updates.
    pub state_bytes: u64,
    /// Parts of a checkpoint.
    pub parts_total: u32,
    /// `{"model_cfg", "preprocess_cfg"}`, as published models carry it.
    pub model: serde_json::Value,
    /// Edge of an image in pixels.
    pub image_size: u32,
    /// Ids of a caption.
    pub context_length: u32,
    /// Digest of the weights that the job starts from.
    pub pretrained_digest: Option<String>,
}

/// Describes a model, trained with or without a moving average of its weights, without building it.
#[must_use]
pub fn describe(config: &ModelConfig, preprocess: &Preprocess, ema: bool) -> Description {
    let (specs, arrays) = (Specs::of(config), 3 + usize::from(ema));
    let state_bytes = specs.elements() * arrays * 4 + 8;
    Description {
        parameters: specs.parameters() as u64,
        state_bytes: state_bytes as u64,
        parts_total: parts_total(state_bytes),
        model: json!({
            "model_cfg": config.source,
            "preprocess_cfg": preprocess.to_json(),
        }),
        image_size: config.vision.image_size as u32,
        context_length: config.text.context_length as u32,
        pretrained_digest: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn described_model_can_be_built_from_its_description() {
        let job = config::ModelConfig {
            name: "demo-tiny".into(),
            image_mean: Some([0.1, 0.2, 0.3]),
            force_quick_gelu: true,
            ..config::ModelConfig::default()
        };
        let (built, preprocess) = resolve(&job, Path::new(".")).unwrap();
        let described = describe(&built, &preprocess, false);
        let (again, preprocess_again) = ModelConfig::from_json(&described.model.to_string()).unwrap();
        assert_eq!((&again, preprocess_again), (&built, preprocess));
        assert!(again.quick_gelu && preprocess_again.mean[2] == 0.3);
        assert_eq!(
            described.parameters as usize,
            crate::clip::Params::new(&built, 0).unwrap().values.len()
        );
    }

    #[test]
    fn model_whose_text_tower_cannot_take_captions_is_refused_by_key() {
        let folder = tempfile::tempdir().unwrap();
        let job = config::ModelConfig {
            config: Some("model.json".into()),
            ..config::ModelConfig::default()
        };
        let resolved = |vocabulary: i64, context: i64| {
            let model = json!({"embed_dim": 8, "vision_cfg": {"image_size": 32},
                "text_cfg": {"vocab_size": vocabulary, "context_length": context}});
            std::fs::write(folder.path().join("model.json"), model.to_string()).unwrap();
            resolve(&job, folder.path())
        };
        resolved(49_408, 2).unwrap();
        for (vocabulary, context, key) in [
            (49_407, 77, "text_cfg.vocab_size"),
            (49_408, 1, "text_cfg.context_length"),
        ] {
            let error = resolved(vocabulary, context).unwrap_err().to_string();
            assert!(error.contains(key), "{error} does not name {key}");
        }
    }

    #[test]
    fn model_config_file_that_is_missing_is_named() {
        let job = config::ModelConfig {
            config: Some("none.json".into()),
            ..config::ModelConfig::default()
        };
        let error = resolve(&job, Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/none.json"), "{error}");
    }
}
