//! CLIP as OpenCLIP builds it: a ViT or ResNet image tower and a text tower under the same state-dict names, with the same
//! initial distributions (open_clip 3.3.0, `model.py`, `transformer.py`, `modified_resnet.py`).

pub mod block;
pub mod config;
pub mod groups;
pub mod head;
pub mod init;
pub mod locks;
pub mod ops;
pub mod params;
pub mod resnet;
pub mod specs;
pub mod table;
pub mod text;
pub mod vision;
pub mod vit;
pub mod weights;

pub use config::{ConfigError, ModelConfig, Preprocess, TextConfig, VisionConfig};
pub use ops::Math;
pub use params::{Held, Params, Rounded};
pub use text::TextTower;
pub use vision::{Images, Training, VisionTower};

use crate::engine::Result;
use tch::{Kind, Tensor};

/// Both towers over one set of parameters.
#[derive(Debug)]
pub struct Clip {
    /// Image tower.
    pub vision: VisionTower,
    /// Text tower.
    pub text: TextTower,
}

impl Clip {
    /// Towers whose weights are views into `params`.
    ///
    /// # Errors
    /// When a tensor the configuration implies is not in `params`.
    pub fn new(config: &ModelConfig, preprocess: &Preprocess, params: &Params) -> Result<Self> {
        Ok(Self {
            vision: VisionTower::new(config, preprocess, params)?,
            text: TextTower::new(config, params)?,
        })
    }
}

/// Normalised features of images, row-major.
pub(crate) fn embed_images(clip: &Clip, images: &Images) -> Result<Vec<f32>> {
    to_vec(&clip.vision.encode(images)?)
}

/// A tensor's values, row-major.
pub(crate) fn to_vec(x: &Tensor) -> Result<Vec<f32>> {
    let x = x.f_detach()?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut out = vec![0.0f32; x.numel()];
    let len = out.len();
    if len > 0 {
        x.f_copy_data(&mut out, len)?;
    }
    Ok(out)
}
