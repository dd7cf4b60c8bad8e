//! The end of both towers: layer norm, projection, L2 norm.

use super::ops::{LayerNorm, Math, Norms, Sink, cast, normalize, normalize_backward};
use super::params::{Leaf, Params};
use crate::engine::Result;
use tch::{Kind, Tensor};

/// From pooled tokens `[n, w]` to features `[n, d]`.
#[derive(Debug)]
pub struct Head {
    norm: LayerNorm,
    /// `[w, d]`.
    projection: Leaf,
    math: Math,
}

/// What the backward pass needs.
#[derive(Debug)]
pub struct SavedHead {
    x: Tensor,
    norms: Norms,
    h: Tensor,
    features: Tensor,
    lengths: Tensor,
}

impl Head {
    pub(crate) fn new(params: &Params, norm: &str, projection: &str) -> Result<Self> {
        Ok(Self {
            norm: LayerNorm::new(params, norm)?,
            projection: params.leaf(projection)?,
            math: params.math(),
        })
    }

    /// L2-normalised features in single precision.
    pub(crate) fn forward(&self, x: Tensor) -> Result<(Tensor, SavedHead)> {
        let (h, norms) = self.norm.forward(&x)?;
        let h = cast(&h, self.math.gemm)?;
        let (features, lengths) = normalize(&h.f_mm(self.projection.at(self.math.gemm))?)?;
        let saved = SavedHead {
            x,
            norms,
            h,
            features: features.shallow_clone(),
            lengths,
        };
        Ok((features, saved))
    }

    /// The gradient of the pooled tokens, in single precision.
    pub(crate) fn backward(&self, saved: SavedHead, d_features: &Tensor, sink: Sink) -> Result<Tensor> {
        let gemm = self.math.gemm;
        let dy = normalize_backward(&saved.features, &saved.lengths, &cast(d_features, Kind::Float)?)?;
        let dy = cast(&dy, gemm)?;
        sink.put_product(&self.projection.grad, &saved.h.f_transpose(0, 1)?, &dy)?;
        let d_h = dy.f_mm(&self.projection.at(gemm).f_transpose(0, 1)?)?;
        self.norm.backward(&saved.x, &saved.norms, &d_h, sink)
    }
}
