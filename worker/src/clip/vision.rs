//! The image tower (`VisionTransformer`): patches as a matrix product, class token, pre-norm blocks.

use super::block::{Block, LayerNorm, Pool, run_pooled};
use super::config::{ModelConfig, Preprocess};
use super::normalize;
use super::params::Params;
use crate::engine::{EngineError, Result};
use tch::{Kind, Tensor};

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

/// Image tower over views into [`Params`].
#[derive(Debug)]
pub struct VisionTower {
    conv1: Tensor,
    class_embedding: Tensor,
    positional_embedding: Tensor,
    ln_pre: LayerNorm,
    blocks: Vec<Block>,
    ln_post: LayerNorm,
    proj: Tensor,
    /// `1 / (255 std)` and `-mean / std`, repeated to the width of a patch row.
    scale: Tensor,
    shift: Tensor,
    patch: i64,
    grid: i64,
    width: i64,
    image_size: i64,
}

impl VisionTower {
    pub(crate) fn new(config: &ModelConfig, preprocess: &Preprocess, params: &Params) -> Result<Self> {
        let v = &config.vision;
        let scaled = v.ls_init_value.is_some();
        let block = |i: i64| {
            Block::new(
                params,
                &format!("visual.transformer.resblocks.{i}"),
                v.heads,
                config.quick_gelu,
                scaled,
            )
        };
        let per_channel = |f: &dyn Fn(usize) -> f64| {
            let one: Vec<f32> = (0..3).map(|c| f(c) as f32).collect();
            Tensor::f_from_slice(&one)?.f_repeat([v.patch_size * v.patch_size])
        };
        let blocks = (0..v.layers).map(block).collect::<Result<_>>()?;
        Ok(Self {
            conv1: params.leaf("visual.conv1.weight")?,
            class_embedding: params.leaf("visual.class_embedding")?,
            positional_embedding: params.leaf("visual.positional_embedding")?,
            ln_pre: LayerNorm::new(params, "visual.ln_pre")?,
            blocks,
            ln_post: LayerNorm::new(params, "visual.ln_post")?,
            proj: params.leaf("visual.proj")?,
            scale: per_channel(&|c| 1.0 / (255.0 * preprocess.std[c]))?,
            shift: per_channel(&|c| -preprocess.mean[c] / preprocess.std[c])?,
            patch: v.patch_size,
            grid: v.image_size / v.patch_size,
            width: v.width,
            image_size: v.image_size,
        })
    }

    /// L2-normalised features `[n, d]`.
    ///
    /// # Errors
    /// When the images have another size than the model.
    pub fn encode(&self, images: &Images) -> Result<Tensor> {
        let n = images.rows();
        let patches = self.patches(images)?;
        let kernel = self
            .conv1
            .f_permute([2, 3, 1, 0])?
            .f_reshape([3 * self.patch * self.patch, self.width])?;
        let x = patches
            .f_matmul(&kernel)?
            .f_view([n, self.grid * self.grid, self.width])?;
        let class = self
            .class_embedding
            .f_view([1, 1, self.width])?
            .f_expand([n, 1, self.width], false)?;
        let x = Tensor::f_cat(&[class, x], 1)?.f_add(&self.positional_embedding)?;
        let x = run_pooled(&self.blocks, self.ln_pre.forward(&x)?, false, &Pool::First)?;
        // Norm and projection of the class token alone: other tokens' outputs are not read.
        normalize(&self.ln_post.forward(&x)?.f_matmul(&self.proj)?)
    }

    /// Rows `[n * grid^2, patch^2 * 3]` in (row, column, channel) order; edges that no patch covers are left out.
    fn patches(&self, images: &Images) -> Result<Tensor> {
        let (g, p, s) = (self.grid, self.patch, self.image_size);
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
        match images {
            Images::Bytes(x) => {
                let x = x.f_narrow(1, 0, g * p)?.f_narrow(2, 0, g * p)?;
                let x = x.f_reshape([-1, g, p, g, p, 3])?.f_permute([0, 1, 3, 2, 4, 5])?;
                let x = x.f_reshape([-1, p * p * 3])?.f_to_kind(Kind::Float)?;
                Ok(x.f_mul(&self.scale)?.f_add(&self.shift)?)
            }
            Images::Floats(x) => {
                let x = x.f_narrow(2, 0, g * p)?.f_narrow(3, 0, g * p)?;
                let x = x.f_reshape([-1, 3, g, p, g, p])?.f_permute([0, 2, 4, 3, 5, 1])?;
                Ok(x.f_reshape([-1, p * p * 3])?)
            }
        }
    }
}
