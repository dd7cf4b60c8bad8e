//! One residual attention block (`ResidualAttentionBlock`), whole or for the pooled token alone, and its way back.
//!
//! Tokens of all sequences lie one after another as rows `[T, w]`, so that every matrix product of a block is one product
//! whatever the sequences' lengths; only attention goes span by span.

use super::config::{Activation, Stack};
use super::ops::{Attended, LayerNorm, Linear, Math, Norms, Sink, attend, attend_backward, cast, gelu, gelu_backward};
use super::params::{Leaf, Params};
use crate::engine::Result;
use tch::{Kind, Tensor};

/// Sequences of one length that lie together.
#[derive(Debug)]
pub struct Span {
    /// First row among all tokens.
    pub start: i64,
    /// Sequences.
    pub n: i64,
    /// Tokens of each.
    pub len: i64,
    /// `[n, 1, 1, len]`: 0 up to the pooled token, minus infinity behind it; none where that is the last or all may look.
    pub mask: Option<Tensor>,
}

/// How the rows of a batch lie.
#[derive(Debug)]
pub struct Layout {
    pub spans: Vec<Span>,
    /// Whether a token sees only those before it.
    pub causal: bool,
    /// Whether all tokens of the last block are wanted, not only the pooled ones.
    pub whole: bool,
    /// Row of the pooled token of every sequence, in the order of the spans.
    pub ends: Tensor,
}

/// What a block's backward pass needs.
#[derive(Debug)]
pub struct Saved {
    x: Tensor,
    /// `None` when activations are computed again on the way back.
    inner: Option<Inner>,
}

#[derive(Debug)]
struct Inner {
    attention: Attention,
    rest: Rest,
}

/// From the block's input to the mixed values.
#[derive(Debug)]
struct Attention {
    norms: Norms,
    /// Normed input, for matrix products.
    h: Tensor,
    /// Pooled rows of `h`, where only those ask.
    pooled: Option<Tensor>,
    /// Queries `[T or n, w]`; keys and values lie in `kv`, all three in a whole block.
    q: Option<Tensor>,
    kv: Tensor,
    attended: Vec<Attended>,
    mixed: Tensor,
}

/// From the mixed values to the block's output.
#[derive(Debug)]
struct Rest {
    /// Output of the attention before its layer scale.
    out: Option<Tensor>,
    x: Tensor,
    norms: Norms,
    h: Tensor,
    hidden: Tensor,
    active: Tensor,
    /// Output of the MLP before its layer scale.
    mlp: Option<Tensor>,
}

/// Attention and MLP with their norms.
#[derive(Debug)]
pub struct Block {
    ln_1: LayerNorm,
    ln_2: LayerNorm,
    qkv: Linear,
    /// The same weights in two parts, for the pooled token.
    q: Linear,
    kv: Linear,
    out: Linear,
    fc: Linear,
    proj: Linear,
    scales: Option<(Leaf, Leaf)>,
    width: i64,
    heads: i64,
    activation: Activation,
    math: Math,
    /// Names of its parameters begin so.
    prefix: String,
}

impl Block {
    fn new(params: &Params, prefix: &str, stack: &Stack, activation: Activation) -> Result<Self> {
        let name = |name: &str| format!("{prefix}.{name}");
        let linear = |layer: &str| {
            Linear::new(
                params,
                &name(&format!("{layer}.weight")),
                Some(&name(&format!("{layer}.bias"))),
            )
        };
        let width = params.spec(&name("ln_1.weight"))?.len as i64;
        let qkv = Linear::new(params, &name("attn.in_proj_weight"), Some(&name("attn.in_proj_bias")))?;
        let scales = stack.ls_init_value.is_some().then(|| {
            Ok::<_, crate::engine::EngineError>((params.leaf(&name("ls_1.gamma"))?, params.leaf(&name("ls_2.gamma"))?))
        });
        Ok(Self {
            ln_1: LayerNorm::new(params, &name("ln_1"), stack.norm_eps)?,
            ln_2: LayerNorm::new(params, &name("ln_2"), stack.norm_eps)?,
            q: qkv.outputs(0, width)?,
            kv: qkv.outputs(width, 2 * width)?,
            qkv,
            out: linear("attn.out_proj")?,
            fc: linear("mlp.c_fc")?,
            proj: linear("mlp.c_proj")?,
            scales: scales.transpose()?,
            width,
            heads: stack.heads,
            activation,
            math: params.math(),
            prefix: prefix.to_owned(),
        })
    }

    /// Names of this block's parameters begin so.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Rows `[T, w]` to `[T, w]` or, `pooled`, to the pooled tokens' `[n, w]`: in a tower's last block only those outputs are
    /// read, so only their queries, projections and MLPs are computed. Keeps activations unless `lean`.
    pub(crate) fn forward(&self, x: &Tensor, layout: &Layout, pooled: bool, lean: bool) -> Result<(Tensor, Saved)> {
        let (y, inner) = self.run(x, layout, pooled)?;
        let saved = Saved {
            x: x.shallow_clone(),
            inner: (!lean).then_some(inner),
        };
        Ok((y, saved))
    }

    fn run(&self, x: &Tensor, layout: &Layout, pooled: bool) -> Result<(Tensor, Inner)> {
        let attention = self.attention(x, layout, pooled)?;
        let x = if pooled {
            x.f_index_select(0, &layout.ends)?
        } else {
            x.shallow_clone()
        };
        let (y, rest) = self.rest(&x, &attention.mixed)?;
        Ok((y, Inner { attention, rest }))
    }

    fn attention(&self, x: &Tensor, layout: &Layout, pooled: bool) -> Result<Attention> {
        let (h, norms) = self.ln_1.forward(x)?;
        let h = cast(&h, self.math.gemm)?;
        let (pooled, q, kv) = if pooled {
            let at_ends = h.f_index_select(0, &layout.ends)?;
            let q = self.q.forward(&at_ends, None)?;
            (Some(at_ends), Some(q), self.kv.forward(&h, None)?)
        } else {
            (None, None, self.qkv.forward(&h, None)?)
        };
        let (mut parts, mut attended) = (Vec::new(), Vec::new());
        for view in self.views(layout, q.as_ref(), &kv)? {
            let causal = layout.causal && q.is_none();
            let mask = if q.is_some() { view.span.mask.as_ref() } else { None };
            let (out, saved) = attend([&view.q, &view.k, &view.v], causal, mask)?;
            parts.push(out.f_transpose(1, 2)?.f_reshape([-1, self.width])?);
            attended.push(saved);
        }
        let mixed = match parts.len() {
            1 => parts.remove(0),
            _ => Tensor::f_cat(&parts, 0)?,
        };
        Ok(Attention {
            norms,
            h,
            pooled,
            q,
            kv,
            attended,
            mixed,
        })
    }

    /// Output projection, residual, MLP, residual.
    fn rest(&self, x: &Tensor, mixed: &Tensor) -> Result<(Tensor, Rest)> {
        let stream = self.math.stream;
        let add = |layer: &Linear, from: &Tensor, to: &Tensor, scale: Option<&Leaf>| match scale {
            None => Ok::<_, crate::engine::EngineError>((cast(&layer.forward(from, Some(to))?, stream)?, None)),
            Some(scale) => {
                let out = layer.forward(from, None)?;
                let scaled = out.f_mul(scale.at(self.math.gemm))?;
                Ok((cast(&to.f_add(&scaled)?, stream)?, Some(out)))
            }
        };
        let (first, second) = match &self.scales {
            Some((a, b)) => (Some(a), Some(b)),
            None => (None, None),
        };
        let (x, out) = add(&self.out, mixed, x, first)?;
        let (h, norms) = self.ln_2.forward(&x)?;
        let h = cast(&h, self.math.gemm)?;
        let hidden = self.fc.forward(&h, None)?;
        let active = gelu(&hidden, self.activation)?;
        let (y, mlp) = add(&self.proj, &active, &x, second)?;
        let rest = Rest {
            out,
            x,
            norms,
            h,
            hidden,
            active,
            mlp,
        };
        Ok((y, rest))
    }

    /// The gradient of the block's input from that of its output, `[T, w]` each or, `pooled`, `[n, w]` of the output.
    pub(crate) fn backward(
        &self,
        saved: Saved,
        layout: &Layout,
        pooled: bool,
        dy: Tensor,
        sink: Sink,
    ) -> Result<Tensor> {
        let Inner { attention, rest } = match saved.inner {
            Some(inner) => inner,
            None => self.run(&saved.x, layout, pooled)?.1,
        };
        let (residual, d_mixed) = self.rest_backward(rest, &attention.mixed, dy, sink)?;
        let dx = self.attention_backward(&saved.x, attention, layout, &d_mixed, &residual, sink)?;
        cast(&dx, self.math.stream)
    }

    /// Gradients of the residual path before the attention's output joins it, and of the mixed values.
    fn rest_backward(&self, rest: Rest, mixed: &Tensor, dy: Tensor, sink: Sink) -> Result<(Tensor, Tensor)> {
        let gemm = self.math.gemm;
        // Through a layer scale: its own gradient, then that of what it scaled.
        let unscale = |dy: &Tensor, scale: Option<&Leaf>, out: Option<&Tensor>| match (scale, out) {
            (Some(scale), Some(out)) => {
                let product = dy.f_mul(out)?;
                sink.put(
                    &scale.grad,
                    &product.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Float)?,
                )?;
                cast(&dy.f_mul(scale.at(gemm))?, gemm)
            }
            _ => cast(dy, gemm),
        };
        let scales = self.scales.as_ref();
        let d_mlp = unscale(&dy, scales.map(|s| &s.1), rest.mlp.as_ref())?;
        let d_active = self.proj.backward(&rest.active, &d_mlp, sink)?;
        let d_hidden = gelu_backward(&rest.hidden, &d_active, self.activation)?;
        let d_h = self.fc.backward(&rest.h, &d_hidden, sink)?;
        let dx = self.ln_2.backward(&rest.x, &rest.norms, &d_h, sink)?.f_add_(&dy)?;
        let dx = cast(&dx, self.math.stream)?;
        let d_out = unscale(&dx, scales.map(|s| &s.0), rest.out.as_ref())?;
        let d_mixed = self.out.backward(mixed, &d_out, sink)?;
        Ok((dx, d_mixed))
    }

    /// The gradient of the block's input: through the attention, and the residual's joined to it.
    fn attention_backward(
        &self,
        x: &Tensor,
        saved: Attention,
        layout: &Layout,
        d_mixed: &Tensor,
        residual: &Tensor,
        sink: Sink,
    ) -> Result<Tensor> {
        let d_kv = saved.kv.f_empty_like()?;
        let d_q = saved.q.as_ref().map(Tensor::f_empty_like).transpose()?;
        let (views, into) = (
            self.views(layout, saved.q.as_ref(), &saved.kv)?,
            self.views(layout, d_q.as_ref(), &d_kv)?,
        );
        let mut row = 0;
        for ((view, into), attended) in views.iter().zip(into).zip(&saved.attended) {
            let asking = view.q.size()[2];
            let d_out = d_mixed.f_narrow(0, row, view.span.n * asking)?;
            row += view.span.n * asking;
            let d_out = d_out
                .f_view([view.span.n, asking, self.heads, self.width / self.heads])?
                .f_transpose(1, 2)?;
            let causal = layout.causal && saved.q.is_none();
            let parts = attend_backward([&view.q, &view.k, &view.v], causal, attended, &d_out)?;
            for (mut into, part) in [into.q, into.k, into.v].into_iter().zip(parts) {
                into.f_copy_(&part)?;
            }
        }
        let d_h = match (&saved.pooled, &d_q) {
            (Some(pooled), Some(d_q)) => {
                let mut d_h = self.kv.backward(&saved.h, &d_kv, sink)?;
                d_h.f_index_add_(0, &layout.ends, &self.q.backward(pooled, d_q, sink)?)?
            }
            _ => self.qkv.backward(&saved.h, &d_kv, sink)?,
        };
        let mut dx = self.ln_1.backward(x, &saved.norms, &d_h, sink)?;
        let residual = cast(residual, dx.kind())?;
        Ok(match saved.q {
            Some(_) => dx.f_index_add_(0, &layout.ends, &residual)?,
            None => dx.f_add_(&residual)?,
        })
    }

    /// Queries, keys and values of every span, `[n, heads, len, w / heads]`, as views.
    fn views<'a>(&self, layout: &'a Layout, q: Option<&Tensor>, kv: &Tensor) -> Result<Vec<View<'a>>> {
        let (heads, head) = (self.heads, self.width / self.heads);
        let mut out = Vec::with_capacity(layout.spans.len());
        let mut first = 0;
        for span in &layout.spans {
            let parts = if q.is_some() { 2 } else { 3 };
            let packed = kv
                .f_narrow(0, span.start, span.n * span.len)?
                .f_view([span.n, span.len, parts, heads, head])?
                .f_permute([2, 0, 3, 1, 4])?;
            let asking = match q {
                Some(q) => q
                    .f_narrow(0, first, span.n)?
                    .f_view([span.n, 1, heads, head])?
                    .f_transpose(1, 2)?,
                None => packed.f_select(0, 0)?,
            };
            first += span.n;
            out.push(View {
                span,
                q: asking,
                k: packed.f_select(0, parts - 2)?,
                v: packed.f_select(0, parts - 1)?,
            });
        }
        Ok(out)
    }
}

/// One span's attention.
struct View<'a> {
    span: &'a Span,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

/// All blocks of a tower; the last one for the pooled tokens alone, unless the layout wants all.
#[derive(Debug)]
pub struct Blocks {
    all: Vec<Block>,
    /// Blocks before this one are not trained: nothing is kept of them, and no gradient goes through them.
    first: usize,
}

/// Hears the prefix of a block whose gradients are final; an error ends the way back.
pub(crate) type Done<'a> = dyn FnMut(&str) -> Result<()> + 'a;

/// What [`Blocks::backward`] needs, of the blocks that are trained.
#[derive(Debug)]
pub struct SavedBlocks(Vec<Saved>);

impl Blocks {
    /// The blocks of the tower whose names begin with `tower`.
    pub(crate) fn of(params: &Params, tower: &str, stack: &Stack, quick_gelu: bool) -> Result<Self> {
        let block = |i: i64| {
            let prefix = format!("{tower}transformer.resblocks.{i}");
            Block::new(params, &prefix, stack, stack.activation(quick_gelu))
        };
        let all: Vec<Block> = (0..stack.layers).map(block).collect::<Result<_>>()?;
        let trains = |block: &Block| params.trains(&format!("{}.ln_1.weight", block.prefix));
        let first = all.iter().position(trains).unwrap_or(all.len());
        Ok(Self { all, first })
    }

    /// Rows `[T, w]` to the pooled tokens' `[n, w]`, or to all of them where the layout wants the whole. With `keep` nothing needed for the way back is lost; `lean` keeps the
    /// blocks' inputs alone and computes the rest again there.
    pub(crate) fn forward(&self, x: Tensor, layout: &Layout, keep: bool, lean: bool) -> Result<(Tensor, SavedBlocks)> {
        let mut saved = Vec::new();
        let mut x = x;
        for (at, block) in self.all.iter().enumerate() {
            let pooled = at + 1 == self.all.len() && !layout.whole;
            let keep = keep && at >= self.first;
            let (y, own) = block.forward(&x, layout, pooled, lean || !keep)?;
            if keep {
                saved.push(own);
            }
            x = y;
        }
        if self.all.is_empty() && !layout.whole {
            x = x.f_index_select(0, &layout.ends)?;
        }
        Ok((x, SavedBlocks(saved)))
    }

    /// The gradient of the rows `[T, w]` that go into the first trained block from that of the pooled tokens `[n, w]`; `done`
    /// hears of every block whose gradients are final, last block first, and may end the way there.
    pub(crate) fn backward(
        &self,
        saved: SavedBlocks,
        layout: &Layout,
        dy: Tensor,
        sink: Sink,
        done: &mut Done<'_>,
    ) -> Result<Tensor> {
        let mut dx = dy;
        let trained = &self.all[self.first..];
        for (at, (block, saved)) in trained.iter().zip(saved.0).enumerate().rev() {
            let pooled = at + 1 == trained.len() && !layout.whole;
            dx = block.backward(saved, layout, pooled, dx, sink)?;
            done(block.prefix())?;
        }
        if self.all.is_empty() && !layout.whole {
            let rows: i64 = layout.spans.iter().map(|s| s.n * s.len).sum();
            let mut whole = Tensor::f_zeros([rows, dx.size()[1]], (dx.kind(), dx.device()))?;
            dx = whole.f_index_add_(0, &layout.ends, &dx)?;
        }
        Ok(dx)
    }
}
