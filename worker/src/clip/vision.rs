//! The image tower (`VisionTransformer`): patches as a matrix product, class token, pre-norm blocks.

use super::block::{Block, Blocks, Layout, SavedBlocks, Span};
use super::config::{ModelConfig, Preprocess};
use super::head::{Head, SavedHead};
use super::ops::{LayerNorm, Linear, Math, Norms, Sink, cast};
use super::params::{Leaf, Params};
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

/// Image tower over views into [`Params`].
#[derive(Debug)]
pub struct VisionTower {
    conv1: Linear,
    class_embedding: Leaf,
    positional_embedding: Leaf,
    ln_pre: LayerNorm,
    blocks: Blocks,
    head: Head,
    /// `1 / (255 std)` and `-mean / std`, `[3, 1, 1]`.
    scale: Tensor,
    shift: Tensor,
    patch: i64,
    grid: i64,
    width: i64,
    image_size: i64,
    math: Math,
    device: Device,
}

/// What the backward pass needs.
#[derive(Debug)]
pub struct SavedImages {
    layout: Layout,
    patches: Tensor,
    x: Tensor,
    norms: Norms,
    blocks: SavedBlocks,
    head: SavedHead,
}

impl VisionTower {
    pub(crate) fn new(config: &ModelConfig, preprocess: &Preprocess, params: &Params) -> Result<Self> {
        let v = &config.vision;
        let scaled = v.ls_init_value.is_some();
        let block = |i: i64| {
            let prefix = format!("visual.transformer.resblocks.{i}");
            Block::new(params, &prefix, v.heads, config.quick_gelu, scaled)
        };
        let per_channel = |f: &dyn Fn(usize) -> f64| -> Result<Tensor> {
            let one: Vec<f32> = (0..3).map(|c| f(c) as f32).collect();
            Ok(Tensor::f_from_slice(&one)?
                .f_view([3, 1, 1])?
                .f_to_device(params.device())?)
        };
        let blocks = (0..v.layers).map(block).collect::<Result<_>>()?;
        Ok(Self {
            conv1: Linear::new(params, "visual.conv1.weight", None)?,
            class_embedding: params.leaf("visual.class_embedding")?,
            positional_embedding: params.leaf("visual.positional_embedding")?,
            ln_pre: LayerNorm::new(params, "visual.ln_pre")?,
            blocks: Blocks::new(blocks),
            head: Head::new(params, "visual.ln_post", "visual.proj")?,
            scale: per_channel(&|c| 1.0 / (255.0 * preprocess.std[c]))?,
            shift: per_channel(&|c| -preprocess.mean[c] / preprocess.std[c])?,
            patch: v.patch_size,
            grid: v.image_size / v.patch_size,
            width: v.width,
            image_size: v.image_size,
            math: params.math(),
            device: params.device(),
        })
    }

    /// L2-normalised features `[n, d]`.
    ///
    /// # Errors
    /// When the images have another size than the model.
    pub fn encode(&self, images: &Images) -> Result<Tensor> {
        Ok(self.forward(images, false, false)?.0)
    }

    /// As [`VisionTower::encode`], with what [`VisionTower::backward`] needs where `keep`; `lean` as in
    /// [`Blocks::forward`].
    pub(crate) fn forward(&self, images: &Images, keep: bool, lean: bool) -> Result<(Tensor, SavedImages)> {
        let (n, tokens) = (images.rows(), self.grid * self.grid + 1);
        let patches = self.patches(images)?;
        let x = self.embed(&patches, n, tokens)?;
        let ends = Tensor::f_arange_start_step(0, n * tokens, tokens, (Kind::Int64, self.device))?;
        let layout = Layout {
            spans: vec![Span {
                start: 0,
                n,
                len: tokens,
                mask: None,
            }],
            causal: false,
            ends,
        };
        let (h, norms) = self.ln_pre.forward(&x)?;
        let (pooled, blocks) = self.blocks.forward(cast(&h, self.math.stream)?, &layout, keep, lean)?;
        let (features, head) = self.head.forward(pooled)?;
        let saved = SavedImages {
            layout,
            patches,
            x,
            norms,
            blocks,
            head,
        };
        Ok((features, saved))
    }

    /// Class token and patches with their positions, `[n * tokens, w]`.
    fn embed(&self, patches: &Tensor, n: i64, tokens: i64) -> Result<Tensor> {
        let (stream, w) = (self.math.stream, self.width);
        let positions = self.positional_embedding.at(stream);
        let x = Tensor::f_empty([n, tokens, w], (stream, self.device))?;
        let patches = cast(&self.conv1.forward(patches, None)?, stream)?;
        let _ = patches
            .f_view([n, tokens - 1, w])?
            .f_add_out(&x.f_narrow(1, 1, tokens - 1)?, &positions.f_narrow(0, 1, tokens - 1)?)?;
        let class = self.class_embedding.at(stream).f_add(&positions.f_select(0, 0)?)?;
        x.f_select(1, 0)?.f_copy_(&class)?;
        Ok(x.f_view([n * tokens, w])?)
    }

    /// Gradients of all weights from that of the features.
    pub(crate) fn backward(
        &self,
        saved: SavedImages,
        d_features: &Tensor,
        sink: Sink,
        done: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let d_pooled = cast(&self.head.backward(saved.head, d_features, sink)?, self.math.stream)?;
        let dx = self
            .blocks
            .backward(saved.blocks, &saved.layout, d_pooled, sink, done)?;
        let dx = self.ln_pre.backward(&saved.x, &saved.norms, &dx, sink)?;
        let dx = dx.f_view([-1, self.grid * self.grid + 1, self.width])?;
        let sums = dx.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Float)?;
        sink.put(&self.positional_embedding.grad, &sums)?;
        sink.put(&self.class_embedding.grad, &sums.f_select(0, 0)?)?;
        let d_patches = dx.f_narrow(1, 1, self.grid * self.grid)?.f_reshape([-1, self.width])?;
        self.conv1
            .backward_weight(&saved.patches, &cast(&d_patches, self.math.gemm)?, sink)
    }

    /// Rows `[n * grid^2, 3 * patch^2]` in (channel, row, column) order, as the convolution's weights lie; edges that no
    /// patch covers are left out.
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
        let x = match images {
            Images::Bytes(x) => {
                let x = x.f_to_device(self.device)?.f_permute([0, 3, 1, 2])?;
                // Bytes become floats as they are laid out channel by channel: one pass.
                let x = x.f_to_kind(Kind::Float)?.f_contiguous()?;
                x.f_mul(&self.scale)?.f_add_(&self.shift)?
            }
            Images::Floats(x) => x.f_to_device(self.device)?,
        };
        let x = x.f_narrow(2, 0, g * p)?.f_narrow(3, 0, g * p)?;
        let x = x.f_reshape([-1, 3, g, p, g, p])?.f_permute([0, 2, 4, 1, 3, 5])?;
        cast(&x.f_reshape([-1, 3 * p * p])?, self.math.gemm)
    }
}
