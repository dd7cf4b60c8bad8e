//! The image towers: what they take, and which of the two a model has.

use super::block::Done;
use super::config::{ModelConfig, Preprocess, VisionKind};
use super::ops::Sink;
use super::params::Params;
use super::resnet::{LaneStatistics, ResNet, SavedResNet};
use super::vit::{SavedVit, Vit};
use crate::engine::{EngineError, Result};
use tch::{Device, Kind, Tensor};

/// Input images.
#[derive(Debug)]
pub enum Images {
    /// `[n, S, S, 3]` bytes as decoded; normalised here.
    Bytes(Tensor),
    /// `[n, 3, S, S]` floats, already normalised.
    Floats(Tensor),
}

impl Images {
    /// Number of images.
    #[must_use]
    pub fn rows(&self) -> i64 {
        let (Self::Bytes(x) | Self::Floats(x)) = self;
        x.size().first().copied().unwrap_or(0)
    }

    /// Rows `start..start + len`.
    ///
    /// # Errors
    /// When there are fewer rows.
    pub fn narrow(&self, start: i64, len: i64) -> Result<Self> {
        Ok(match self {
            Self::Bytes(x) => Self::Bytes(x.f_narrow(0, start, len)?),
            Self::Floats(x) => Self::Floats(x.f_narrow(0, start, len)?),
        })
    }
}

/// What training asks of an image tower beyond the images.
#[derive(Debug, Clone, Copy)]
pub struct Training<'a> {
    /// Rows of each lane, in order: BatchNorm takes its statistics from them (rule BN1).
    pub lanes: &'a [usize],
    /// A number of its own for every row, from which its dropped patches are drawn; empty for a tower that drops none.
    pub draws: &'a [u64],
}

/// Bytes to normalised floats.
#[derive(Debug)]
pub struct Normalise {
    /// `1 / (255 std)` and `-mean / std`, `[3, 1, 1]`.
    scale: Tensor,
    shift: Tensor,
    image_size: i64,
    device: Device,
}

impl Normalise {
    fn new(config: &ModelConfig, preprocess: &Preprocess, device: Device) -> Result<Self> {
        let per_channel = |f: &dyn Fn(usize) -> f64| -> Result<Tensor> {
            let one: Vec<f32> = (0..3).map(|c| f(c) as f32).collect();
            Ok(Tensor::f_from_slice(&one)?.f_view([3, 1, 1])?.f_to_device(device)?)
        };
        Ok(Self {
            scale: per_channel(&|c| 1.0 / (255.0 * preprocess.std[c]))?,
            shift: per_channel(&|c| -preprocess.mean[c] / preprocess.std[c])?,
            image_size: config.vision.image_size,
            device,
        })
    }

    /// `[n, 3, S, S]`.
    fn floats(&self, images: &Images) -> Result<Tensor> {
        let s = self.image_size;
        let (Images::Bytes(x) | Images::Floats(x)) = images;
        let want: &[i64] = if matches!(images, Images::Bytes(_)) {
            &[s, s, 3]
        } else {
            &[3, s, s]
        };
        if x.size().get(1..) != Some(want) {
            return Err(EngineError::Protocol(format!(
                "images {:?} do not fit the model's {want:?}",
                x.size()
            )));
        }
        Ok(match images {
            Images::Bytes(x) => {
                let x = x.f_to_device(self.device)?.f_permute([0, 3, 1, 2])?;
                // Bytes become floats as they are laid out channel by channel: one pass.
                let x = x.f_to_kind(Kind::Float)?.f_contiguous()?;
                x.f_mul(&self.scale)?.f_add_(&self.shift)?
            }
            Images::Floats(x) => x.f_to_device(self.device)?,
        })
    }
}

/// Image tower over views into [`Params`].
#[derive(Debug)]
pub struct VisionTower {
    normalise: Normalise,
    kind: Kinds,
    /// Whether anything of the tower is trained.
    trained: bool,
    /// Whether BatchNorm uses its running statistics in training too.
    frozen_statistics: bool,
}

#[derive(Debug)]
enum Kinds {
    Vit(Vit),
    ResNet(ResNet),
}

/// What the backward pass needs.
#[derive(Debug)]
pub struct SavedImages(Saved);

#[derive(Debug)]
enum Saved {
    Vit(Box<SavedVit>),
    ResNet(SavedResNet),
}

impl SavedImages {
    /// Statistics of every lane that went in, in order; none in a tower without BatchNorm.
    pub(crate) fn statistics(&self) -> &[LaneStatistics] {
        match &self.0 {
            Saved::Vit(_) => &[],
            Saved::ResNet(saved) => saved.statistics(),
        }
    }
}

impl VisionTower {
    pub(crate) fn new(config: &ModelConfig, preprocess: &Preprocess, params: &Params) -> Result<Self> {
        let kind = match &config.vision.kind {
            VisionKind::Vit(vit) => Kinds::Vit(Vit::new(config, vit, params)?),
            VisionKind::ResNet(resnet) => Kinds::ResNet(ResNet::new(resnet, params)?),
        };
        Ok(Self {
            normalise: Normalise::new(config, preprocess, params.device())?,
            kind,
            trained: params.trains_any(|name| name.starts_with("visual.")),
            frozen_statistics: params.statistics_frozen(),
        })
    }

    /// Whether statistics of other rows reach a row's feature in training.
    #[must_use]
    pub fn has_batch_norm(&self) -> bool {
        matches!(self.kind, Kinds::ResNet(_)) && !self.frozen_statistics
    }

    /// L2-normalised features `[n, d]`, as in evaluation.
    ///
    /// # Errors
    /// When the images have another size than the model.
    pub fn encode(&self, images: &Images) -> Result<Tensor> {
        Ok(self.forward(images, None, false, false)?.0)
    }

    /// As [`VisionTower::encode`], or as in training, with what [`VisionTower::backward`] needs where `keep`; `lean` as in
    /// `Blocks::forward`.
    pub(crate) fn forward(
        &self,
        images: &Images,
        training: Option<Training<'_>>,
        keep: bool,
        lean: bool,
    ) -> Result<(Tensor, SavedImages)> {
        let x = self.normalise.floats(images)?;
        let keep = keep && self.trained;
        Ok(match &self.kind {
            Kinds::Vit(vit) => {
                let draws = training.map_or(&[][..], |t| t.draws);
                let (features, saved) = vit.forward(&x, draws, keep, lean)?;
                (features, SavedImages(Saved::Vit(Box::new(saved))))
            }
            Kinds::ResNet(resnet) => {
                let lanes = training.map(|t| t.lanes).filter(|_| !self.frozen_statistics);
                let (features, saved) = resnet.forward(&x, lanes, keep)?;
                (features, SavedImages(Saved::ResNet(saved)))
            }
        })
    }

    /// Gradients of all weights from that of the features.
    pub(crate) fn backward(
        &self,
        saved: SavedImages,
        d_features: &Tensor,
        sink: Sink,
        done: &mut Done<'_>,
    ) -> Result<()> {
        if !self.trained {
            return Ok(());
        }
        match (&self.kind, saved.0) {
            (Kinds::Vit(vit), Saved::Vit(saved)) => vit.backward(*saved, d_features, sink, done),
            (Kinds::ResNet(resnet), Saved::ResNet(saved)) => resnet.backward(&saved, d_features, sink),
            _ => Err(EngineError::Protocol("what was saved is another tower's".into())),
        }
    }
}
