//! The sigmoid loss (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training"; OpenCLIP's `SigLipLoss`), tile by tile.
//!
//! `L = sum_ij softplus(-y_ij z_ij) / V` with `z = s F G^T + b` and `y` one on the diagonal, minus one elsewhere. The gradient
//! of an own row needs no sum over others' rows, so one pass over the tiles gives losses and gradients both:
//! `dL/dz_ij = (sigmoid(z_ij) - [i = j]) / V`.

use super::{Features, LossGrads, Side, cut};
use crate::engine::Result;
use tch::{Kind, Tensor};

/// Losses and gradients of own rows.
#[derive(Debug)]
pub struct SigmoidGrads {
    /// `sum_j softplus(-y_ij z_ij)` of own image rows `[n]`; sum over all owners and divide by `V`.
    pub rows: Tensor,
    /// As for the softmax loss.
    pub grads: LossGrads,
    /// Own image rows' share of the bias's gradient. Sum this over all owners.
    pub d_bias: f64,
}

/// The loss of the rows `own` (places in `f_all`, `g_all` `[V, d]`) in tiles of at most `edge` squared.
///
/// # Errors
/// When a place is doubled or beyond `V`.
pub fn sigmoid(
    f_all: &Tensor,
    g_all: &Tensor,
    own: &[u32],
    scale: f64,
    bias: f64,
    edge: usize,
) -> Result<SigmoidGrads> {
    let features = Features::new(f_all, g_all, own, scale)?;
    let (d_f, d_g) = (features.f.f_zeros_like()?, features.g.f_zeros_like()?);
    let rows = Tensor::f_zeros([own.len() as i64], (d_f.kind(), d_f.device()))?;
    let mut d_bias = 0.0;
    for tile in features.tiles(edge) {
        let mut z = features.logits(&tile)?;
        let mut z = z.f_add_scalar_(bias)?;
        let diagonal = tile
            .on_diagonal()
            .then(|| z.f_diagonal(0, 0, 1)?.f_add_scalar(0.0))
            .transpose()?;
        if tile.side != Side::Texts {
            let losses = z.f_softplus()?;
            if let Some(own) = &diagonal {
                losses.f_diagonal(0, 0, 1)?.f_copy_(&own.f_neg()?.f_softplus()?)?;
            }
            let sums = losses.f_sum_dim_intlist([1i64].as_slice(), false, None::<Kind>)?;
            let _ = cut(&rows, tile.rows)?.f_add_(&sums)?;
        }
        let weights = z.f_sigmoid_()?;
        if let Some(own) = &diagonal {
            // Not sigmoid - 1: once a pair is learned, that difference has no digits left.
            weights
                .f_diagonal(0, 0, 1)?
                .f_copy_(&own.f_neg()?.f_sigmoid()?.f_neg()?)?;
        }
        if tile.side != Side::Texts {
            d_bias += weights.f_sum(Kind::Double)?.f_double_value(&[])?;
        }
        features.spread(&tile, &weights, &d_f, &d_g)?;
    }
    let d_bias = d_bias / features.valid_rows as f64;
    Ok(SigmoidGrads {
        rows,
        grads: features.close(d_f, d_g, 1.0)?,
        d_bias,
    })
}

/// Loss of the whole batch from all image rows' losses, summed in the order given, in f64.
#[must_use]
pub fn value(rows: &[f32]) -> f64 {
    rows.iter().map(|r| f64::from(*r)).sum::<f64>() / rows.len().max(1) as f64
}
