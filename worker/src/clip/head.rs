//! The end of the transformer towers: layer norm, pooling where it is left to do, projection, L2 norm.

use super::ops::{LayerNorm, Linear, Math, Norms, Sink, cast, normalize, normalize_backward};
use super::params::{Leaf, Params};
use crate::engine::Result;
use tch::{Kind, Tensor};

/// How tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// They have been pooled: `[n, w]`.
    Given,
    /// All tokens `[n, t, w]` are normed, then averaged.
    NormThenMean,
    /// All tokens `[n, t, w]` are averaged, then normed.
    MeanThenNorm,
}

/// From a token to a feature.
#[derive(Debug)]
pub enum Projection {
    /// `[w, d]`.
    Matrix(Leaf),
    /// A layer with its bias.
    Linear(Linear),
    /// Nothing to do.
    None,
}

impl Projection {
    pub(crate) fn matrix(params: &Params, name: &str) -> Result<Self> {
        Ok(Self::Matrix(params.leaf(name)?))
    }

    fn forward(&self, h: &Tensor, math: Math) -> Result<Tensor> {
        Ok(match self {
            Self::Matrix(leaf) => h.f_mm(leaf.at(math.gemm))?,
            Self::Linear(linear) => linear.forward(h, None)?,
            Self::None => h.shallow_clone(),
        })
    }

    fn backward(&self, h: &Tensor, dy: &Tensor, math: Math, sink: Sink) -> Result<Tensor> {
        Ok(match self {
            Self::Matrix(leaf) => {
                sink.put_product(&leaf.grad, &h.f_transpose(0, 1)?, dy)?;
                dy.f_mm(&leaf.at(math.gemm).f_transpose(0, 1)?)?
            }
            Self::Linear(linear) => linear.backward(h, dy, sink)?,
            Self::None => dy.shallow_clone(),
        })
    }
}

/// From tokens to features `[n, d]`.
#[derive(Debug)]
pub struct Head {
    norm: LayerNorm,
    projection: Projection,
    pooling: Pooling,
    math: Math,
    /// Whether anything but the projection is trained of the tower.
    below: bool,
}

/// What the backward pass needs.
#[derive(Debug)]
pub struct SavedHead {
    /// Input of the norm, as rows.
    x: Tensor,
    norms: Norms,
    /// Input of the projection.
    h: Tensor,
    features: Tensor,
    lengths: Tensor,
    /// Tokens that were averaged.
    tokens: i64,
}

impl Head {
    pub(crate) fn new(params: &Params, norm: &str, eps: f64, projection: Projection, pooling: Pooling) -> Result<Self> {
        Ok(Self {
            norm: LayerNorm::new(params, norm, eps)?,
            projection,
            pooling,
            math: params.math(),
            below: params.trains(&format!("{norm}.weight")),
        })
    }

    /// L2-normalised features in single precision.
    pub(crate) fn forward(&self, x: Tensor) -> Result<(Tensor, SavedHead)> {
        let (mut x, mut tokens) = (x, 1);
        if self.pooling != Pooling::Given {
            tokens = x.size()[1];
        }
        let width = x.size().last().copied().unwrap_or(1);
        match self.pooling {
            Pooling::Given => {}
            Pooling::MeanThenNorm => x = x.f_mean_dim([1i64].as_slice(), false, Kind::Float)?,
            Pooling::NormThenMean => x = x.f_reshape([-1, width])?,
        }
        let (mut h, norms) = self.norm.forward(&x)?;
        if self.pooling == Pooling::NormThenMean {
            h = h
                .f_view([-1, tokens, width])?
                .f_mean_dim([1i64].as_slice(), false, Kind::Float)?;
        }
        let h = cast(&h, self.math.gemm)?;
        let (features, lengths) = normalize(&self.projection.forward(&h, self.math)?)?;
        let saved = SavedHead {
            x,
            norms,
            h,
            features: features.shallow_clone(),
            lengths,
            tokens,
        };
        Ok((features, saved))
    }

    /// The gradient of what went in, in its shape and single precision; none where nothing below is trained.
    pub(crate) fn backward(&self, saved: SavedHead, d_features: &Tensor, sink: Sink) -> Result<Option<Tensor>> {
        let dy = normalize_backward(&saved.features, &saved.lengths, &cast(d_features, Kind::Float)?)?;
        let dy = cast(&dy, self.math.gemm)?;
        let d_h = self.projection.backward(&saved.h, &dy, self.math, sink)?;
        if !self.below {
            return Ok(None);
        }
        let (n, tokens, width) = (d_h.size()[0], saved.tokens, d_h.size()[1]);
        // Every token of a mean gets the same share.
        let spread = |d: &Tensor| -> Result<Tensor> {
            let share = cast(d, Kind::Float)?.f_div_scalar(tokens as f64)?;
            Ok(share
                .f_unsqueeze(1)?
                .f_expand([n, tokens, width], false)?
                .f_contiguous()?)
        };
        let back = |d: &Tensor| self.norm.backward(&saved.x, &saved.norms, d, sink);
        Ok(Some(match self.pooling {
            Pooling::Given => back(&d_h)?,
            Pooling::MeanThenNorm => spread(&back(&d_h)?)?,
            Pooling::NormThenMean => back(&spread(&d_h)?.f_view([-1, width])?)?.f_view([n, tokens, width])?,
        }))
    }
}
