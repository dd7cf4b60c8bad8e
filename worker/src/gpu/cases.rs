//! Models and batches that are tried.

use crate::clip::{ModelConfig, Preprocess};
use crate::engine::{EngineError, Result, RowsIn, TorchEngine, TorchOptions};
use argosy_common::config::{Loss, Precision};
use tch::Device;

/// One comparison.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    /// Place in [`super::PATHS`].
    pub(super) path: usize,
    pub(super) model: Model,
    pub(super) precision: Precision,
    pub(super) loss: Loss,
    pub(super) rows: usize,
    /// Rows with their activations at once.
    pub(super) micro_rows: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Model {
    VitB32,
    /// Small, with all that the plain ones have not.
    Averaging,
    Tiny,
    ResNet,
}

const AVERAGING: &str = r#"{"embed_dim": 64, "vision_cfg": {"image_size": 64, "layers": 3, "width": 128, "head_width": 32,
    "patch_size": 16, "pool_type": "avg", "final_ln_after_pool": true, "ls_init_value": 0.1, "patch_dropout": 0.5},
    "text_cfg": {"context_length": 16, "vocab_size": 1000, "width": 96, "heads": 3, "layers": 2, "no_causal_mask": true,
    "pool_type": "last"}}"#;
const TINY: &str = r#"{"embed_dim": 64, "vision_cfg": {"image_size": 64, "layers": 3, "width": 128, "head_width": 32,
    "patch_size": 16}, "text_cfg": {"context_length": 16, "vocab_size": 1000, "width": 96, "heads": 3, "layers": 2}}"#;
const RESNET: &str = r#"{"embed_dim": 64, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16,
    "patch_size": null}, "text_cfg": {"context_length": 16, "vocab_size": 1000, "width": 96, "heads": 3, "layers": 2}}"#;

const fn case(path: usize, model: Model, precision: Precision) -> Case {
    Case {
        path,
        model,
        precision,
        loss: Loss::Clip,
        rows: 24,
        micro_rows: usize::MAX,
    }
}

/// All of them, in the order of [`super::PATHS`].
pub(super) const CASES: [Case; 11] = [
    case(0, Model::VitB32, Precision::Fp32),
    case(1, Model::VitB32, Precision::AmpBf16),
    case(2, Model::VitB32, Precision::Bf16),
    case(3, Model::VitB32, Precision::PureBf16),
    case(4, Model::Averaging, Precision::Fp32),
    case(5, Model::Averaging, Precision::AmpBf16),
    Case {
        micro_rows: 7,
        ..case(6, Model::Tiny, Precision::Fp32)
    },
    Case {
        loss: Loss::Siglip,
        ..case(7, Model::Tiny, Precision::Fp32)
    },
    Case {
        loss: Loss::Siglip,
        ..case(8, Model::Tiny, Precision::AmpBf16)
    },
    case(9, Model::ResNet, Precision::Fp32),
    case(10, Model::ResNet, Precision::AmpBf16),
];

impl Case {
    /// The engine of this case on a device.
    pub(super) fn engine(&self, device: Device, threads: usize) -> Result<TorchEngine> {
        let (mut config, preprocess) = self.model.config()?;
        if self.loss == Loss::Siglip {
            config.make_siglip();
        }
        let options = TorchOptions {
            seed: 7,
            threads,
            precision: self.precision,
            loss: self.loss,
            grad_checkpointing: self.micro_rows != usize::MAX,
            device,
            ..TorchOptions::default()
        };
        TorchEngine::new(&config, &preprocess, options)
    }

    /// Largest difference allowed: what CONTRIBUTING promises for this precision.
    pub(super) fn bound(&self) -> f64 {
        if self.precision == Precision::Fp32 { 1e-4 } else { 2e-2 }
    }
}

impl Model {
    pub(super) fn config(self) -> Result<(ModelConfig, Preprocess)> {
        let of = |text: &str| ModelConfig::from_json(text).map_err(EngineError::from);
        match self {
            Self::VitB32 => Ok((ModelConfig::by_name("ViT-B-32")?, Preprocess::default())),
            Self::Averaging => of(AVERAGING),
            Self::Tiny => of(TINY),
            Self::ResNet => of(RESNET),
        }
    }
}

/// Rows of random pictures, and captions of 5 to 30 ids that begin and end as real ones do.
#[derive(Debug)]
pub(super) struct Batch {
    pixels: Vec<u8>,
    tokens: Vec<i32>,
    lengths: Vec<u16>,
}

impl Batch {
    pub(super) fn new(config: &ModelConfig, rows: usize) -> Self {
        let (size, context) = (config.vision.image_size as usize, config.text.context_length as usize);
        let vocabulary = config.text.vocab_size as usize;
        // Patterns of a period of their own: rows of noise all look alike to a fresh tower.
        let pixel = |row: usize, k: usize| {
            let noise = (row * 7919 + k).wrapping_mul(2_654_435_761) >> 13 & 63;
            (k / (3 + row % 29) * (17 + row) % 192 + noise) as u8
        };
        let pixels = (0..rows)
            .flat_map(|row| (0..size * size * 3).map(move |k| pixel(row, k)))
            .collect();
        let (mut tokens, mut lengths) = (Vec::new(), Vec::new());
        for row in 0..rows {
            let length = (5 + row * 11 % 26).min(context);
            let mut ids: Vec<i32> = (0..length)
                .map(|k| ((row * 131 + k * 977) % (vocabulary - 3) + 1) as i32)
                .collect();
            (ids[0], ids[length - 1]) = (vocabulary as i32 - 2, vocabulary as i32 - 1);
            ids.resize(context, 0);
            tokens.extend(ids);
            lengths.push(length as u16);
        }
        Self {
            pixels,
            tokens,
            lengths,
        }
    }

    pub(super) fn rows(&self) -> RowsIn<'_> {
        RowsIn {
            rows: self.lengths.len(),
            pixels: &self.pixels,
            tokens: &self.tokens,
            lengths: &self.lengths,
        }
    }

    /// Ids up to the captions' ends.
    pub(super) fn ids(&self) -> usize {
        self.lengths.iter().map(|l| usize::from(*l)).sum()
    }
}
