//! The vision transformer (`VisionTransformer`): patches as a matrix product, class token, pre-norm blocks, one pooled token
//! or the mean of all patches.

use super::block::{Blocks, Done, Layout, SavedBlocks, Span};
use super::config::{ImagePool, ModelConfig, VitConfig};
use super::head::{Head, Pooling, Projection, SavedHead};
use super::init::unit;
use super::ops::{LayerNorm, Linear, Math, Norms, Sink, cast};
use super::params::{Leaf, Params};
use crate::engine::{Result, expect_len};
use tch::{Device, Kind, Tensor};

/// Image tower over views into [`Params`].
#[derive(Debug)]
pub struct Vit {
    conv1: Linear,
    class_embedding: Leaf,
    positional_embedding: Leaf,
    ln_pre: Option<LayerNorm>,
    blocks: Blocks,
    head: Head,
    patch: i64,
    grid: i64,
    width: i64,
    pool: ImagePool,
    /// Patches that stay in training, where some are dropped.
    kept: Option<i64>,
    math: Math,
    device: Device,
    /// Whether the embeddings are trained.
    embeddings: bool,
}

/// What the backward pass needs.
#[derive(Debug)]
pub struct SavedVit {
    layout: Layout,
    patches: Tensor,
    /// Tokens that stayed, as rows of all tokens.
    kept: Option<Tensor>,
    /// Input of the norm before the blocks and its statistics.
    normed: Option<(Tensor, Norms)>,
    blocks: SavedBlocks,
    head: SavedHead,
}

impl Vit {
    pub(crate) fn new(config: &ModelConfig, vit: &VitConfig, params: &Params) -> Result<Self> {
        let (stack, grid) = (&vit.stack, config.vision.image_size / vit.patch_size);
        let patches = grid * grid;
        let pooling = match (vit.pool, vit.norm_after_pool) {
            (ImagePool::Token, _) => Pooling::Given,
            (ImagePool::Average, false) => Pooling::NormThenMean,
            (ImagePool::Average, true) => Pooling::MeanThenNorm,
        };
        let ln_pre = vit
            .ln_pre
            .then(|| LayerNorm::new(params, "visual.ln_pre", stack.norm_eps));
        // OpenCLIP's `PatchDropout` in the same arithmetic, double precision and cut towards zero.
        let kept = (patches as f64 * (1.0 - vit.patch_dropout)) as i64;
        Ok(Self {
            conv1: Linear::new(params, "visual.conv1.weight", None)?,
            class_embedding: params.leaf("visual.class_embedding")?,
            positional_embedding: params.leaf("visual.positional_embedding")?,
            ln_pre: ln_pre.transpose()?,
            blocks: Blocks::of(params, "visual.", stack, config.quick_gelu)?,
            head: Head::new(
                params,
                "visual.ln_post",
                stack.norm_eps,
                Projection::matrix(params, "visual.proj")?,
                pooling,
            )?,
            patch: vit.patch_size,
            grid,
            width: stack.width,
            pool: vit.pool,
            kept: (vit.patch_dropout > 0.0).then_some(kept.max(1)),
            math: params.math(),
            device: params.device(),
            embeddings: params.trains("visual.class_embedding"),
        })
    }

    /// L2-normalised features of `[n, 3, S, S]`, with what [`Vit::backward`] needs where `keep`; `lean` as in
    /// [`Blocks::forward`]. With a number for every row in `draws` patches are dropped, in a tower that does so.
    pub(crate) fn forward(&self, x: &Tensor, draws: &[u64], keep: bool, lean: bool) -> Result<(Tensor, SavedVit)> {
        let (n, all) = (x.size()[0], self.grid * self.grid + 1);
        let patches = self.patches(x)?;
        let mut x = self.embed(&patches, n, all)?;
        let kept = self.kept.filter(|_| !draws.is_empty());
        let kept = kept.map(|count| self.kept_rows(draws, n, count)).transpose()?;
        if let Some(rows) = &kept {
            x = x.f_index_select(0, rows)?;
        }
        let tokens = x.size()[0] / n.max(1);
        let layout = Layout {
            spans: vec![Span {
                start: 0,
                n,
                len: tokens,
                mask: None,
            }],
            causal: false,
            whole: self.pool == ImagePool::Average,
            ends: Tensor::f_arange_start_step(0, n * tokens, tokens, (Kind::Int64, self.device))?,
        };
        let (x, normed) = match &self.ln_pre {
            Some(norm) => {
                let (h, norms) = norm.forward(&x)?;
                (cast(&h, self.math.stream)?, Some((x, norms)))
            }
            None => (x, None),
        };
        let (out, blocks) = self.blocks.forward(x, &layout, keep, lean)?;
        let out = if layout.whole {
            out.f_view([n, tokens, self.width])?.f_narrow(1, 1, tokens - 1)?
        } else {
            out
        };
        let (features, head) = self.head.forward(out)?;
        let saved = SavedVit {
            layout,
            patches,
            kept,
            normed,
            blocks,
            head,
        };
        Ok((features, saved))
    }

    /// Rows of all tokens that stay: of every image the class token and the `count` patches whose numbers, drawn from the
    /// row's own, are largest.
    fn kept_rows(&self, draws: &[u64], n: i64, count: i64) -> Result<Tensor> {
        expect_len("draws", n as usize, draws.len())?;
        let patches = self.grid * self.grid;
        let mut rows = Vec::with_capacity((n * (count + 1)) as usize);
        for (image, draw) in (0..n).zip(draws) {
            let first = image * (patches + 1);
            let mut drawn: Vec<(f64, i64)> = (0..patches).map(|p| (unit(*draw, p as u64), p)).collect();
            drawn.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            drawn.truncate(count as usize);
            let mut stay: Vec<i64> = drawn.iter().map(|(_, p)| first + 1 + p).collect();
            stay.sort_unstable();
            rows.push(first);
            rows.extend(stay);
        }
        Ok(Tensor::f_from_slice(&rows)?.f_to_device(self.device)?)
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
    pub(crate) fn backward(&self, saved: SavedVit, d_features: &Tensor, sink: Sink, done: &mut Done<'_>) -> Result<()> {
        let Some(d_out) = self.head.backward(saved.head, d_features, sink)? else {
            return Ok(());
        };
        let mut d_out = cast(&d_out, self.math.stream)?;
        if saved.layout.whole {
            // The class token is read by attention alone.
            let n = d_out.size()[0];
            let class = Tensor::f_zeros([n, 1, self.width], (d_out.kind(), self.device))?;
            d_out = Tensor::f_cat(&[&class, &d_out], 1)?.f_view([-1, self.width])?;
        }
        let dx = self.blocks.backward(saved.blocks, &saved.layout, d_out, sink, done)?;
        if !self.embeddings {
            return Ok(());
        }
        let mut dx = match (&self.ln_pre, &saved.normed) {
            (Some(norm), Some((x, norms))) => norm.backward(x, norms, &dx, sink)?,
            _ => cast(&dx, Kind::Float)?,
        };
        let all = self.grid * self.grid + 1;
        if let Some(rows) = &saved.kept {
            let n = saved.layout.spans.iter().map(|s| s.n).sum::<i64>();
            let mut whole = Tensor::f_zeros([n * all, self.width], (dx.kind(), self.device))?;
            dx = whole.f_index_add_(0, rows, &dx)?;
        }
        let dx = dx.f_view([-1, all, self.width])?;
        let sums = dx.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Float)?;
        sink.put(&self.positional_embedding.grad, &sums)?;
        sink.put(&self.class_embedding.grad, &sums.f_select(0, 0)?)?;
        let d_patches = dx.f_narrow(1, 1, self.grid * self.grid)?.f_reshape([-1, self.width])?;
        self.conv1
            .backward_weight(&saved.patches, &cast(&d_patches, self.math.gemm)?, sink)
    }

    /// Rows `[n * grid^2, 3 * patch^2]` in (channel, row, column) order, as the convolution's weights lie; edges that no
    /// patch covers are left out.
    fn patches(&self, x: &Tensor) -> Result<Tensor> {
        let (g, p) = (self.grid, self.patch);
        let x = x.f_narrow(2, 0, g * p)?.f_narrow(3, 0, g * p)?;
        let x = x.f_reshape([-1, 3, g, p, g, p])?.f_permute([0, 2, 4, 1, 3, 5])?;
        cast(&x.f_reshape([-1, 3 * p * p])?, self.math.gemm)
    }
}
