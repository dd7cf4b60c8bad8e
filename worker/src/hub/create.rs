//! A model by name or file with all that its inputs need: what `open_clip.create_model_and_transforms` and
//! `open_clip.get_tokenizer` give.

use super::Start;
use crate::clip::{ModelConfig, Preprocess};
use crate::engine::{Engine, EngineError, TorchEngine, TorchOptions};
use crate::model::{self, ModelError, resolve_towers};
use argosy_common::config;
use argosy_common::steplog::MaskReason;
use argosy_shard_loader::Tokenizer;
use argosy_shard_loader::decode::{Rgb, decode};
use argosy_shard_loader::transform::{RowKey, Transformer};
use std::path::{Path, PathBuf};

/// Pictures with more pixels are refused, as OpenCLIP's loader refuses them.
const PIXELS_MAX: u64 = 25_000_000;

/// Why a model could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// What was asked for is no model, or its weights want another.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The weights.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A model, ready to embed and to train.
#[derive(Debug)]
pub struct Created {
    pub engine: TorchEngine,
    pub preprocess: Preprocess,
    /// Where the model's own tokenizer lies, as far as is known.
    pub tokenizer_file: Option<PathBuf>,
}

/// Makes the model that `[model]` of a job describes: by `name` or `config`, with the weights of `pretrained` and of single
/// towers, in the activation, normalisation and form that those weights had. Relative paths start at `base`; nothing is
/// downloaded.
///
/// # Errors
/// Names the model, key or file; weights that were trained with another activation, normalisation or tokenizer are one,
/// unless `pretrained_mismatch` says otherwise.
pub fn create_model_and_transforms(
    model: &config::ModelConfig,
    base: &Path,
    options: TorchOptions,
) -> Result<Created, CreateError> {
    let (config, preprocess) = resolve_towers(model, base)?;
    let mut engine = TorchEngine::new(&config, &preprocess, options)?;
    Start::of(model, base).load(&mut engine, None)?;
    Ok(Created {
        engine,
        preprocess,
        tokenizer_file: model::tokenizer_file(model, base),
    })
}

impl Created {
    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        self.engine.config()
    }

    /// Makes ids of captions.
    ///
    /// # Errors
    /// When the model's tokenizer cannot be had, or the text tower cannot take what it makes.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        Ok(model::tokenizer(self.config(), self.tokenizer_file.as_deref())?)
    }

    /// A JPEG, PNG or WebP picture as evaluation sees it: `[S, S, 3]` bytes, which the engine normalises.
    ///
    /// # Errors
    /// Why it is no picture that is taken.
    pub fn preprocess_val(&self, picture: &[u8]) -> Result<Vec<u8>, MaskReason> {
        let (mut rgb, side) = (Rgb::default(), self.engine.image_size());
        decode(picture, PIXELS_MAX, &mut rgb)?;
        let mut out = vec![0; 3 * side * side];
        Transformer::default().evaluate(&rgb, side, self.preprocess.resize, &mut out);
        Ok(out)
    }

    /// The same as training sees it, cropped at random as `key` draws it.
    ///
    /// # Errors
    /// As [`Created::preprocess_val`].
    pub fn preprocess_train(
        &self,
        picture: &[u8],
        augment: &config::AugmentationConfig,
        key: RowKey,
    ) -> Result<Vec<u8>, MaskReason> {
        let (mut rgb, side) = (Rgb::default(), self.engine.image_size());
        decode(picture, PIXELS_MAX, &mut rgb)?;
        let mut out = vec![0; 3 * side * side];
        let full = (rgb.width, rgb.height);
        Transformer::default().train(&rgb, full, side, augment, key, &mut out);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn created_model_has_its_weights_transforms_and_tokenizer() {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/zero-shot/hub");
        let folder = tempfile::tempdir().unwrap();
        let weights = std::fs::File::open(goldens.join("open_clip_model.safetensors.gz")).unwrap();
        let mut plain = std::fs::File::create(folder.path().join("open_clip_model.safetensors")).unwrap();
        std::io::copy(&mut flate2::read::GzDecoder::new(weights), &mut plain).unwrap();
        std::fs::copy(
            goldens.join("open_clip_config.json"),
            folder.path().join("open_clip_config.json"),
        )
        .unwrap();
        let model = config::ModelConfig {
            pretrained: Some(folder.path().to_string_lossy().into_owned()),
            ..config::ModelConfig::default()
        };
        let mut made = create_model_and_transforms(&model, Path::new("."), TorchOptions::default()).unwrap();
        let side = made.engine.image_size();
        let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shard-loader/tests/goldens/pictures/420.jpg");
        let picture = std::fs::read(picture).unwrap();
        let pixels = made.preprocess_val(&picture).unwrap();
        assert_eq!(pixels.len(), 3 * side * side);
        let key = RowKey {
            seed: 1,
            lane: 0,
            position: 4,
        };
        let cropped = made
            .preprocess_train(&picture, &config::AugmentationConfig::default(), key)
            .unwrap();
        assert!(cropped.len() == pixels.len() && cropped != pixels);
        assert_eq!(made.preprocess_val(b"no picture"), Err(MaskReason::Format));
        let tokenizer = made.tokenizer().unwrap();
        let mut ids = vec![0; tokenizer.context_length()];
        let length = tokenizer.row("a drawing", &mut ids);
        let image = made.engine.encode_images_eval(1, &pixels, 1).unwrap();
        let text = made.engine.encode_text_eval(1, &ids, &[length], 1).unwrap();
        let one = |v: &[f32]| v.iter().map(|v| v * v).sum::<f32>();
        assert!(image.len() == text.len() && (one(&image) - 1.0).abs() < 1e-5 && (one(&text) - 1.0).abs() < 1e-5);
    }
}
