//! One residual attention block (`ResidualAttentionBlock`), whole or for the pooled token alone.

use super::params::Params;
use crate::engine::Result;
use tch::Tensor;

const LN_EPS: f64 = 1e-5;

/// Weight and bias of a layer norm.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    width: i64,
}

impl LayerNorm {
    pub(crate) fn new(params: &Params, prefix: &str) -> Result<Self> {
        let weight = params.leaf(&format!("{prefix}.weight"))?;
        let width = weight.size().first().copied().unwrap_or(0);
        Ok(Self {
            weight,
            bias: params.leaf(&format!("{prefix}.bias"))?,
            width,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_layer_norm([self.width], Some(&self.weight), Some(&self.bias), LN_EPS, false)?)
    }
}

/// Which token of each row a tower hands on.
#[derive(Debug)]
pub enum Pool {
    /// The first one; every token may attend to every token.
    First,
    /// Token `flat[i]` of `[n * L]` for row `i`; keys behind it are hidden by the additive `mask` `[n, 1, 1, L]`.
    At { flat: Tensor, mask: Option<Tensor> },
}

impl Pool {
    /// `[n, L, w]` to `[n, w]`.
    fn pick(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::First => Ok(x.f_select(1, 0)?),
            Self::At { flat, .. } => {
                let width = x.size().last().copied().unwrap_or(0);
                Ok(x.f_reshape([-1, width])?.f_index_select(0, flat)?)
            }
        }
    }

    fn mask(&self) -> Option<&Tensor> {
        match self {
            Self::First => None,
            Self::At { mask, .. } => mask.as_ref(),
        }
    }
}

/// Attention and MLP with their norms.
#[derive(Debug)]
pub struct Block {
    ln_1: LayerNorm,
    ln_2: LayerNorm,
    in_weight: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    fc_weight: Tensor,
    fc_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    scales: Option<(Tensor, Tensor)>,
    width: i64,
    heads: i64,
    quick_gelu: bool,
}

impl Block {
    pub(crate) fn new(params: &Params, prefix: &str, heads: i64, quick_gelu: bool, scaled: bool) -> Result<Self> {
        let get = |name: &str| params.leaf(&format!("{prefix}.{name}"));
        let out_bias = get("attn.out_proj.bias")?;
        Ok(Self {
            ln_1: LayerNorm::new(params, &format!("{prefix}.ln_1"))?,
            ln_2: LayerNorm::new(params, &format!("{prefix}.ln_2"))?,
            in_weight: get("attn.in_proj_weight")?,
            in_bias: get("attn.in_proj_bias")?,
            out_weight: get("attn.out_proj.weight")?,
            fc_weight: get("mlp.c_fc.weight")?,
            fc_bias: get("mlp.c_fc.bias")?,
            proj_weight: get("mlp.c_proj.weight")?,
            proj_bias: get("mlp.c_proj.bias")?,
            scales: if scaled {
                Some((get("ls_1.gamma")?, get("ls_2.gamma")?))
            } else {
                None
            },
            width: out_bias.size().first().copied().unwrap_or(0),
            out_bias,
            heads,
            quick_gelu,
        })
    }

    /// `[n, L, w]` to `[n, L, w]`.
    pub(crate) fn forward(&self, x: &Tensor, causal: bool) -> Result<Tensor> {
        let (n, len, _) = x.size3()?;
        let qkv = self.ln_1.forward(x)?.f_linear(&self.in_weight, Some(&self.in_bias))?;
        let qkv = qkv
            .f_view([n, len, 3, self.heads, self.width / self.heads])?
            .f_permute([2, 0, 3, 1, 4])?;
        let (q, k, v) = (qkv.f_select(0, 0)?, qkv.f_select(0, 1)?, qkv.f_select(0, 2)?);
        let none = None::<&Tensor>;
        let mixed = Tensor::f_scaled_dot_product_attention(&q, &k, &v, none, 0.0, causal, None, false)?;
        self.rest(x, &mixed.f_transpose(1, 2)?.f_reshape([n, len, self.width])?)
    }

    /// `[n, L, w]` to the pooled token's `[n, w]`. In a tower's last block only that token's output is read, so only its
    /// query, its output projection and its MLP are computed: the same numbers for a fraction of the work.
    pub(crate) fn forward_pooled(&self, x: &Tensor, pool: &Pool) -> Result<Tensor> {
        let (n, len, w) = x.size3()?;
        let h = self.ln_1.forward(x)?;
        let part = |of: &Tensor, start: i64, rows: i64| of.f_narrow(0, start * w, rows * w);
        let q = pool
            .pick(&h)?
            .f_linear(&part(&self.in_weight, 0, 1)?, Some(&part(&self.in_bias, 0, 1)?))?;
        let kv = h.f_linear(&part(&self.in_weight, 1, 2)?, Some(&part(&self.in_bias, 1, 2)?))?;
        let kv = kv
            .f_view([n, len, 2, self.heads, w / self.heads])?
            .f_permute([2, 0, 3, 1, 4])?;
        let q = q.f_view([n, 1, self.heads, w / self.heads])?.f_transpose(1, 2)?;
        let (k, v) = (kv.f_select(0, 0)?, kv.f_select(0, 1)?);
        let mixed = Tensor::f_scaled_dot_product_attention(&q, &k, &v, pool.mask(), 0.0, false, None, false)?;
        self.rest(&pool.pick(x)?, &mixed.f_transpose(1, 2)?.f_reshape([n, w])?)
    }

    /// Output projection, residual, MLP, residual; any leading shape.
    fn rest(&self, x: &Tensor, mixed: &Tensor) -> Result<Tensor> {
        let out = mixed.f_linear(&self.out_weight, Some(&self.out_bias))?;
        let x = match &self.scales {
            Some((first, _)) => x.f_add(&out.f_mul(first)?)?,
            None => x.f_add(&out)?,
        };
        let hidden = self.ln_2.forward(&x)?.f_linear(&self.fc_weight, Some(&self.fc_bias))?;
        let hidden = if self.quick_gelu {
            hidden.f_mul(&hidden.f_mul_scalar(1.702)?.f_sigmoid()?)?
        } else {
            hidden.f_gelu("none")?
        };
        let out = hidden.f_linear(&self.proj_weight, Some(&self.proj_bias))?;
        Ok(match &self.scales {
            Some((_, second)) => x.f_add(&out.f_mul(second)?)?,
            None => x.f_add(&out)?,
        })
    }
}

/// Runs all blocks; the last one for the pooled token alone. `[n, L, w]` to `[n, w]`.
pub(crate) fn run_pooled(blocks: &[Block], x: Tensor, causal: bool, pool: &Pool) -> Result<Tensor> {
    let Some((last, first)) = blocks.split_last() else {
        return pool.pick(&x);
    };
    let mut x = x;
    for block in first {
        x = block.forward(&x, causal)?;
    }
    last.forward_pooled(&x, pool)
}
