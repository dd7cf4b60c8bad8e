//! From a job's `[model]` to the model that is built, and what others want to know of it before anything is built.

use crate::checkpoint::parts_total;
use crate::clip::specs::Specs;
use crate::clip::{ConfigError, ModelConfig, Preprocess};
use crate::hub::{self, Start, TrainedWith};
use argosy_common::config::{self, Job, Loss};
use argosy_shard_loader::tokenize::{FileTokenizer, Mask, Special};
use argosy_shard_loader::{Clean, Tokenizer};
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};

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

/// Digest of the files that the job starts from; `None` when it draws its weights from its seed.
///
/// # Errors
/// Names the file.
pub fn pretrained_digest(model: &config::ModelConfig, base: &Path) -> Result<Option<String>, ModelError> {
    Start::of(model, base).digest().map_err(ModelError::weights)
}

/// Where a model's own tokenizer lies: where the job says, or beside the weights of its text tower.
#[must_use]
pub fn tokenizer_file(model: &config::ModelConfig, base: &Path) -> Option<PathBuf> {
    if let Some(file) = &model.tokenizer {
        return Some(base.join(file));
    }
    let weights = [&model.pretrained_text_path, &model.pretrained];
    let mut places = weights.into_iter().flatten();
    places.find_map(|place| hub::beside(&base.join(place), hub::HUB_TOKENIZER))
}

/// Makes ids of captions for a model: CLIP's own tokenizer, or the one in `file` where the configuration names another.
///
/// # Errors
/// Names the key that cannot be had or does not fit. (Not part of reading a configuration: the parity goldens have small
/// vocabularies and bring ids of their own.)
pub fn tokenizer(model: &ModelConfig, file: Option<&Path>) -> Result<Tokenizer, ConfigError> {
    let (text, spec) = (&model.text, &model.text.tokenizer);
    let unsupported = |key: &str, value: &str, why: &str| ConfigError::Unsupported {
        key: format!("text_cfg.{key}"),
        value: value.into(),
        why: why.into(),
    };
    let too_small = |key: &str, least: i64, got: i64, why: &str| {
        let why = format!("at least {least} expected, got {got}: {why}");
        Err(ConfigError::Invalid { key: key.into(), why })
    };
    let clean = match spec.clean.as_deref() {
        None => None,
        Some("lower") => Some(Clean::Lower),
        Some("whitespace") => Some(Clean::Whitespace),
        Some("canonicalize") => Some(Clean::Canonicalize),
        Some(other) => {
            return Err(unsupported(
                "tokenizer_kwargs.clean",
                other,
                "lower, whitespace or canonicalize",
            ));
        }
    };
    if text.context_length < 2 {
        let why = "every caption has a start and an end";
        return too_small("text_cfg.context_length", 2, text.context_length, why);
    }
    let context = text.context_length as usize;
    let made = match &spec.name {
        None => Tokenizer::clip(
            context,
            clip_clean(clean, &unsupported)?,
            clip_mask(model, &unsupported)?,
        ),
        Some(name) => Tokenizer::of_file(from_file(model, name, file, clean, &unsupported)?),
    };
    let vocabulary = i64::from(made.vocabulary());
    if text.vocab_size < vocabulary {
        let why = match &spec.name {
            None => "captions become ids of CLIP's vocabulary".into(),
            Some(name) => format!("captions become ids of the vocabulary in the file that is given for {name}"),
        };
        return too_small("text_cfg.vocab_size", vocabulary, text.vocab_size, &why);
    }
    Ok(made)
}

type Refuse<'a> = dyn Fn(&str, &str, &str) -> ConfigError + 'a;

fn clip_clean(clean: Option<Clean>, refuse: &Refuse<'_>) -> Result<Clean, ConfigError> {
    if clean == Some(Clean::Whitespace) {
        let why = "Argosy's copy of CLIP's tokenizer has lower case only; choose lower or canonicalize";
        return Err(refuse("tokenizer_kwargs.clean", "whitespace", why));
    }
    Ok(clean.unwrap_or_default())
}

fn clip_mask(model: &ModelConfig, refuse: &Refuse<'_>) -> Result<Option<Mask>, ConfigError> {
    let spec = &model.text.tokenizer;
    if spec.strip_sep_token || spec.mode.is_some() {
        let why = "CLIP's own tokenizer has neither separators nor modes; give hf_tokenizer_name";
        return Err(refuse("tokenizer_kwargs", &spec.to_string(), why));
    }
    let Some(name) = &spec.reduction_mask else {
        return Ok(None);
    };
    let why = match name.as_str() {
        "syntax" => {
            "it wants nltk's tagger of parts of speech, which is downloaded Python; choose simple, random or shuffle"
        }
        _ => "choose simple, random or shuffle",
    };
    let mask = Mask::by_name(name);
    mask.map(Some)
        .ok_or_else(|| refuse("tokenizer_kwargs.reduction_mask", name, why))
}

fn from_file(
    model: &ModelConfig,
    name: &str,
    file: Option<&Path>,
    clean: Option<Clean>,
    refuse: &Refuse<'_>,
) -> Result<FileTokenizer, ConfigError> {
    let spec = &model.text.tokenizer;
    let Some(file) = file else {
        let why = "nothing is downloaded: name its tokenizer.json by model.tokenizer (or --tokenizer), or put it beside the \
                   weights";
        return Err(refuse("hf_tokenizer_name", name, why));
    };
    if let Some(mask) = &spec.reduction_mask {
        let why = "only CLIP's own tokenizer has reduction masks, in OpenCLIP too";
        return Err(refuse("tokenizer_kwargs.reduction_mask", mask, why));
    }
    let special = match (spec.mode.as_deref(), spec.strip_sep_token) {
        (None, false) => Special::Own,
        (None, true) => Special::WithoutSeparators,
        (Some("clips"), _) => Special::Clips,
        (Some(mode), _) => return Err(refuse("tokenizer_mode", mode, "Argosy knows clips only")),
    };
    let context = model.text.context_length as usize;
    let clean = clean.unwrap_or(Clean::Whitespace);
    FileTokenizer::open(file, context, clean, special).map_err(|e| ConfigError::Invalid {
        key: "model.tokenizer".into(),
        why: e.to_string(),
    })
}

/// The model of a job, whose text tower takes what the tokenizer makes. Relative paths start at `base`.
///
/// # Errors
/// Names the file, name or key that is wrong.
pub fn resolve(model: &config::ModelConfig, base: &Path) -> Result<(ModelConfig, Preprocess), ModelError> {
    let (built, preprocess) = resolve_towers(model, base)?;
    tokenizer(&built, tokenizer_file(model, base).as_deref())?;
    Ok((built, preprocess))
}

/// As [`resolve`], for who brings ids of captions.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_towers(model: &config::ModelConfig, base: &Path) -> Result<(ModelConfig, Preprocess), ModelError> {
    let own = model.config.as_ref().map(|file| read_model_file(&base.join(file)));
    let own = own.transpose()?;
    let (mut built, mut preprocess) = match (&own, &model.pretrained) {
        (Some(text), _) => ModelConfig::from_json(text)?,
        (None, Some(place)) if model.name.is_empty() => {
            hub::read_config(&base.join(place)).map_err(ModelError::weights)?
        }
        (None, _) => (ModelConfig::by_name(&model.name)?, Preprocess::default()),
    };
    if model.force_quick_gelu {
        built.force_quick_gelu()?;
    }
    let trained = TrainedWith::of(model, base)?;
    if let Some(brought) = trained.preprocess() {
        // As in OpenCLIP weights bring how their pictures are prepared; what the job says itself stays, and is compared.
        preprocess = match &own {
            Some(text) => ModelConfig::from_json_over(text, brought)?.1,
            None => brought,
        };
    }
    if let Some(mean) = model.image_mean {
        preprocess.mean = mean;
    }
    if let Some(std) = model.image_std {
        preprocess.std = std;
    }
    if !model.pretrained_mismatch {
        trained.check(&built, &preprocess)?;
    }
    Ok((built, preprocess))
}

fn read_model_file(path: &Path) -> Result<String, ModelError> {
    std::fs::read_to_string(path).map_err(|e| ModelError::File {
        file: path.display().to_string(),
        why: e.to_string(),
    })
}

/// The model of a job as it is trained: with the bias that the sigmoid loss learns.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_job(job: &Job, base: &Path) -> Result<(ModelConfig, Preprocess), ModelError> {
    let (mut built, preprocess) = resolve(&job.model, base)?;
    if job.train.loss == Loss::Siglip {
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

    #[test]
    fn sigmoid_loss_begins_as_open_clips_whatever_the_configuration_says_of_its_bias() {
        let folder = tempfile::tempdir().unwrap();
        let text = "version = 1\nname = \"s\"\n[model]\nconfig = \"model.json\"\n\
                    [data]\nsources = [{ shards = \"00.tar\" }]\n[train]\nglobal_batch = 8\nloss = \"siglip\"\n";
        let job = Job::from_toml("job.toml", text).unwrap();
        for bias in [json!(null), json!(-3.0), json!(-10)] {
            let model = json!({"embed_dim": 8, "vision_cfg": {"image_size": 32}, "text_cfg": {},
                "init_logit_scale": 1.0, "init_logit_bias": bias});
            std::fs::write(folder.path().join("model.json"), model.to_string()).unwrap();
            let (built, _) = resolve_job(&job, folder.path()).unwrap();
            assert_eq!(
                (built.init_logit_bias, built.init_logit_scale),
                (Some(-10.0), 10.0f64.ln())
            );
            assert_eq!(built.source["init_logit_bias"], -10.0);
        }
    }
}
