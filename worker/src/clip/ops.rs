//! Layers with their way back by hand. No graph is built: a forward pass returns what its backward pass needs, and gradients
//! of weights go straight into the flat gradient. That saves a second buffer of the size of the model, two passes over it,
//! and autograd's bookkeeping, which is what a small model spends its time on.

use super::config::Activation;
use super::params::{Leaf, Params};
use crate::engine::Result;
use argosy_torch_ext as ext;
use tch::{Kind, Tensor};

/// In which numbers the towers compute (OpenCLIP's `--precision`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Math {
    /// Inputs of matrix products.
    pub gemm: Kind,
    /// The residual path between blocks.
    pub stream: Kind,
}

/// How a backward pass leaves gradients of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    /// First micro-batch of a step: what lies in the buffer is old.
    Replace,
    /// The others.
    Add,
}

impl Sink {
    /// `into (+)= value`, in the buffer's single precision.
    pub(crate) fn put(self, into: &Tensor, value: &Tensor) -> Result<()> {
        let mut into = into.shallow_clone();
        match self {
            Self::Replace => into.f_copy_(value)?,
            Self::Add => drop(into.f_add_(value)?),
        }
        Ok(())
    }

    /// `into (+)= a b`.
    pub(crate) fn put_product(self, into: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
        if a.kind() != into.kind() {
            return self.put(into, &a.f_mm(b)?);
        }
        match self {
            Self::Replace => drop(a.f_mm_out(into, b)?),
            Self::Add => drop(into.shallow_clone().f_addmm_(a, b)?),
        }
        Ok(())
    }
}

/// `x` in another type, without a copy where it has it.
pub(crate) fn cast(x: &Tensor, kind: Kind) -> Result<Tensor> {
    if x.kind() == kind {
        Ok(x.shallow_clone())
    } else {
        Ok(x.f_to_kind(kind)?)
    }
}

/// A linear layer over rows `[T, in]`.
#[derive(Debug)]
pub struct Linear {
    weight: Leaf,
    bias: Option<Leaf>,
    gemm: Kind,
}

impl Linear {
    pub(crate) fn new(params: &Params, weight: &str, bias: Option<&str>) -> Result<Self> {
        let bias = bias.map(|name| params.leaf(name)).transpose()?;
        Ok(Self {
            weight: params.leaf(weight)?.as_matrix()?,
            bias,
            gemm: params.math().gemm,
        })
    }

    /// Outputs `start..start + len` of this layer as a layer of its own.
    pub(crate) fn outputs(&self, start: i64, len: i64) -> Result<Self> {
        Ok(Self {
            weight: self.weight.narrow(start, len)?,
            bias: self.bias.as_ref().map(|b| b.narrow(start, len)).transpose()?,
            gemm: self.gemm,
        })
    }

    /// `x W^T + b (+ add)`; `x` in the type of matrix products.
    pub(crate) fn forward(&self, x: &Tensor, add: Option<&Tensor>) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(|b| b.at(self.gemm));
        Ok(ext::linear(x, self.weight.at(self.gemm), bias, add)?)
    }

    /// Gradients of weight and bias.
    pub(crate) fn backward_weight(&self, x: &Tensor, dy: &Tensor, sink: Sink) -> Result<()> {
        sink.put_product(&self.weight.grad, &dy.f_transpose(0, 1)?, x)?;
        if let Some(bias) = &self.bias {
            sink.put(
                &bias.grad,
                &dy.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Float)?,
            )?;
        }
        Ok(())
    }

    /// The same, and the gradient of `x`.
    pub(crate) fn backward(&self, x: &Tensor, dy: &Tensor, sink: Sink) -> Result<Tensor> {
        self.backward_weight(x, dy, sink)?;
        Ok(dy.f_mm(self.weight.at(self.gemm))?)
    }
}

/// A layer norm, computed in single precision.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Leaf,
    bias: Leaf,
    width: i64,
    eps: f64,
}

/// Mean and reciprocal deviation of every row.
#[derive(Debug)]
pub struct Norms {
    mean: Tensor,
    rstd: Tensor,
}

impl LayerNorm {
    pub(crate) fn new(params: &Params, prefix: &str, eps: f64) -> Result<Self> {
        let weight = params.leaf(&format!("{prefix}.weight"))?;
        let width = weight.at(Kind::Float).size().first().copied().unwrap_or(0);
        Ok(Self {
            weight,
            bias: params.leaf(&format!("{prefix}.bias"))?,
            width,
            eps,
        })
    }

    /// `[T, w]` in any type to single precision.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<(Tensor, Norms)> {
        let (weight, bias) = (self.weight.at(Kind::Float), self.bias.at(Kind::Float));
        let (y, mean, rstd) =
            cast(x, Kind::Float)?.f_native_layer_norm([self.width], Some(weight), Some(bias), self.eps)?;
        Ok((y, Norms { mean, rstd }))
    }

    /// The gradient of `x`, in single precision.
    pub(crate) fn backward(&self, x: &Tensor, norms: &Norms, dy: &Tensor, sink: Sink) -> Result<Tensor> {
        let (weight, bias) = (self.weight.at(Kind::Float), self.bias.at(Kind::Float));
        let (dy, x) = (cast(dy, Kind::Float)?, cast(x, Kind::Float)?);
        let (dx, dw, db) = ext::layer_norm_backward(&dy, &x, &norms.mean, &norms.rstd, weight, bias)?;
        sink.put(&self.weight.grad, &dw)?;
        sink.put(&self.bias.grad, &db)?;
        Ok(dx)
    }
}

/// What attention's backward pass needs besides queries, keys and values.
#[derive(Debug)]
pub enum Attended {
    /// By libtorch's flash kernel for CPUs: output and log-sum-exps.
    Flash(Tensor, Tensor),
    /// By the formula: the weights.
    Plain(Tensor),
}

/// `softmax(q k^T / sqrt(d) + mask) v` for `[n, heads, len, d]`. Small, or not on a CPU: by the formula.
pub(crate) fn attend(qkv: [&Tensor; 3], causal: bool, mask: Option<&Tensor>) -> Result<(Tensor, Attended)> {
    let [q, k, v] = qkv;
    if mask.is_none() && q.device() == tch::Device::Cpu {
        let none = None::<&Tensor>;
        let (out, lse) =
            Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, none, None)?;
        return Ok((out.shallow_clone(), Attended::Flash(out, lse)));
    }
    let mut scores = q.f_matmul(&k.f_transpose(2, 3)?)?.f_mul_scalar(scale_of(q))?;
    if let Some(mask) = mask {
        scores = scores.f_add(&cast(mask, scores.kind())?)?;
    }
    if causal {
        let len = q.size()[2];
        let above = Tensor::f_full([len, len], f64::NEG_INFINITY, (scores.kind(), q.device()))?.f_triu(1)?;
        scores = scores.f_add(&above)?;
    }
    // In single precision, as the fused kernels do it.
    let weights = cast(&scores.f_softmax(-1, Kind::Float)?, v.kind())?;
    Ok((weights.f_matmul(v)?, Attended::Plain(weights)))
}

/// Gradients of queries, keys and values.
pub(crate) fn attend_backward(
    qkv: [&Tensor; 3],
    causal: bool,
    saved: &Attended,
    d_out: &Tensor,
) -> Result<[Tensor; 3]> {
    let [q, k, v] = qkv;
    match saved {
        Attended::Flash(out, lse) => {
            let none = None::<&Tensor>;
            let (dq, dk, dv) = Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu_backward(
                d_out, q, k, v, out, lse, 0.0, causal, none, None,
            )?;
            Ok([dq, dk, dv])
        }
        Attended::Plain(weights) => {
            let dv = weights.f_transpose(2, 3)?.f_matmul(d_out)?;
            let dw = d_out.f_matmul(&v.f_transpose(2, 3)?)?;
            let product = weights.f_mul(&dw)?;
            let sums = product.f_sum_dim_intlist([-1i64].as_slice(), true, None::<Kind>)?;
            let ds = product.f_sub(&weights.f_mul(&sums)?)?.f_mul_scalar(scale_of(q))?;
            Ok([ds.f_matmul(k)?, ds.f_transpose(2, 3)?.f_matmul(q)?, dv])
        }
    }
}

fn scale_of(q: &Tensor) -> f64 {
    (q.size().last().copied().unwrap_or(1) as f64).powf(-0.5)
}

/// GELU as PyTorch's `nn.GELU`, or OpenAI's quick one.
pub(crate) fn gelu(x: &Tensor, activation: Activation) -> Result<Tensor> {
    Ok(match activation {
        Activation::QuickGelu => x.f_mul_scalar(1.702)?.f_sigmoid()?.f_mul_(x)?,
        Activation::Gelu => x.f_gelu("none")?,
        Activation::GeluTanh => x.f_gelu("tanh")?,
    })
}

pub(crate) fn gelu_backward(x: &Tensor, dy: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Gelu => return Ok(x.f_gelu_backward(dy, "none")?),
        Activation::GeluTanh => return Ok(x.f_gelu_backward(dy, "tanh")?),
        Activation::QuickGelu => {}
    }
    // (x s(ax))' = s + a x s (1 - s)
    let s = x.f_mul_scalar(1.702)?.f_sigmoid()?;
    let slope = s.f_neg()?.f_add_scalar(1.0)?.f_mul_(x)?.f_mul_scalar_(1.702)?;
    let slope = slope.shallow_clone().f_add_scalar_(1.0)?.f_mul_(&s)?;
    Ok(slope.shallow_clone().f_mul_(dy)?)
}

/// Rows of `x` `[n, d]` divided by their L2 norm, at least 1e-12 (`torch.nn.functional.normalize`), in single precision;
/// and the norms.
pub(crate) fn normalize(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let x = cast(x, Kind::Float)?;
    let norm = x
        .f_norm_scalaropt_dim(2.0, [-1i64].as_slice(), true)?
        .f_clamp_min(1e-12)?;
    Ok((x.f_div(&norm)?, norm))
}

/// `dx = (dy - y (y . dy)) / |x|`.
pub(crate) fn normalize_backward(y: &Tensor, norm: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let along = y.f_mul(dy)?.f_sum_dim_intlist([-1i64].as_slice(), true, Kind::Float)?;
    Ok(dy.f_sub(&y.f_mul(&along)?)?.f_div(norm)?)
}
