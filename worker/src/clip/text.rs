//! The text tower (`TextTransformer`): causal blocks over captions cut to the longest of a length group.

use super::block::{Block, LayerNorm, Pool, run_pooled};
use super::config::ModelConfig;
use super::groups::{Group, by_length};
use super::normalize;
use super::params::Params;
use crate::engine::{EngineError, Result, expect_len};
use tch::{Kind, Tensor};

/// Text tower over views into [`Params`].
#[derive(Debug)]
pub struct TextTower {
    table: Tensor,
    table_grad: Tensor,
    positional_embedding: Tensor,
    blocks: Vec<Block>,
    ln_final: LayerNorm,
    projection: Tensor,
    context: usize,
    vocab: usize,
    width: i64,
}

/// Features of a batch of captions and the rows of the embedding table they used.
#[derive(Debug)]
pub struct TextOut {
    /// L2-normalised `[n, d]`.
    pub features: Tensor,
    rows: UsedRows,
}

/// A leaf that holds the used rows of the token table alone. Its gradient has as many rows as the batch has different
/// ids, where the table's own would be a dense `[vocab, width]` of zeros for every group of every micro-batch.
#[derive(Debug)]
struct UsedRows {
    ids: Tensor,
    leaf: Tensor,
}

impl TextTower {
    pub(crate) fn new(config: &ModelConfig, params: &Params) -> Result<Self> {
        let t = &config.text;
        let scaled = t.ls_init_value.is_some();
        let block = |i: i64| {
            Block::new(
                params,
                &format!("transformer.resblocks.{i}"),
                t.heads,
                config.quick_gelu,
                scaled,
            )
        };
        Ok(Self {
            table: params.leaf("token_embedding.weight")?.f_detach()?,
            table_grad: params.grad("token_embedding.weight")?,
            positional_embedding: params.leaf("positional_embedding")?,
            blocks: (0..t.layers).map(block).collect::<Result<_>>()?,
            ln_final: LayerNorm::new(params, "ln_final")?,
            projection: params.leaf("text_projection")?,
            context: t.context_length as usize,
            vocab: t.vocab_size as usize,
            width: t.width,
        })
    }

    /// Encodes `[n, context]` ids, `n >= 1`; `lengths[i]` counts the ids of row `i` up to and including end-of-text.
    ///
    /// # Errors
    /// Names the row whose id or length is out of range.
    pub fn encode(&self, tokens: &[i32], lengths: &[u16]) -> Result<TextOut> {
        expect_len("tokens", lengths.len() * self.context, tokens.len())?;
        self.check(tokens, lengths)?;
        let groups = by_length(lengths);
        let (rows, places) = self.used_rows(tokens, lengths)?;
        let mut parts = Vec::with_capacity(groups.len());
        for group in &groups {
            parts.push(self.encode_group(&rows, &places, group, lengths)?);
        }
        let order: Vec<usize> = groups.into_iter().flat_map(|g| g.rows).collect();
        let features = if parts.len() == 1 {
            parts.remove(0)
        } else {
            Tensor::f_cat(&parts, 0)?
        };
        let mut inverse = vec![0i64; order.len()];
        for (at, row) in order.into_iter().enumerate() {
            inverse[row] = at as i64;
        }
        Ok(TextOut {
            features: features.f_index_select(0, &Tensor::f_from_slice(&inverse)?)?,
            rows,
        })
    }

    /// Adds the gradient of the used rows to the table's; call once after the backward pass through `out`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn finish_backward(&self, out: &TextOut) -> Result<()> {
        let grad = out.rows.leaf.f_grad()?;
        if grad.defined() {
            let _ = self.table_grad.shallow_clone().f_index_add_(0, &out.rows.ids, &grad)?;
        }
        Ok(())
    }

    fn check(&self, tokens: &[i32], lengths: &[u16]) -> Result<()> {
        for (row, (ids, &len)) in tokens.chunks(self.context).zip(lengths).enumerate() {
            if len == 0 || usize::from(len) > self.context {
                let most = self.context;
                return Err(EngineError::Protocol(format!(
                    "caption {row}: length {len} is not in 1..={most}"
                )));
            }
            if let Some(id) = ids
                .iter()
                .find(|id| usize::try_from(**id).map_or(true, |id| id >= self.vocab))
            {
                return Err(EngineError::Protocol(format!(
                    "caption {row}: id {id} is not below {}",
                    self.vocab
                )));
            }
        }
        Ok(())
    }

    /// The different ids among all positions that will be read, and for every position its place among them (0 where
    /// nothing is read).
    fn used_rows(&self, tokens: &[i32], lengths: &[u16]) -> Result<(UsedRows, Vec<i64>)> {
        let mut place_of = vec![u32::MAX; self.vocab];
        let mut ids: Vec<i64> = Vec::new();
        let mut places = vec![0i64; tokens.len()];
        for (row, &len) in lengths.iter().enumerate() {
            for at in row * self.context..row * self.context + usize::from(len) {
                let slot = &mut place_of[tokens[at] as usize];
                if *slot == u32::MAX {
                    *slot = ids.len() as u32;
                    ids.push(i64::from(tokens[at]));
                }
                places[at] = i64::from(*slot);
            }
        }
        let ids = Tensor::f_from_slice(&ids)?;
        let leaf = self.table.f_index_select(0, &ids)?.f_set_requires_grad(true)?;
        Ok((UsedRows { ids, leaf }, places))
    }

    fn encode_group(&self, rows: &UsedRows, places: &[i64], group: &Group, lengths: &[u16]) -> Result<Tensor> {
        let (n, len) = (group.rows.len(), group.longest);
        let mut cut = Vec::with_capacity(n * len);
        let mut ends = Vec::with_capacity(n);
        for (k, &row) in group.rows.iter().enumerate() {
            cut.extend_from_slice(&places[row * self.context..row * self.context + len]);
            ends.push((k * len + usize::from(lengths[row]) - 1) as i64);
        }
        let cut = Tensor::f_from_slice(&cut)?.f_view([n as i64, len as i64])?;
        let x = Tensor::f_embedding(&rows.leaf, &cut, -1, false, false)?;
        let x = x.f_add(&self.positional_embedding.f_narrow(0, 0, len as i64)?)?;
        let pool = Pool::At {
            flat: Tensor::f_from_slice(&ends)?,
            mask: behind_end(group, lengths)?,
        };
        let x = run_pooled(&self.blocks, x, true, &pool)?;
        normalize(&self.ln_final.forward(&x)?.f_matmul(&self.projection)?)
    }

    /// Width of the tower.
    #[must_use]
    pub fn width(&self) -> i64 {
        self.width
    }
}

/// `[n, 1, 1, L]`: 0 up to a row's end-of-text, minus infinity behind it; none where all rows end together.
fn behind_end(group: &Group, lengths: &[u16]) -> Result<Option<Tensor>> {
    let (n, len) = (group.rows.len(), group.longest);
    if group.rows.iter().all(|row| usize::from(lengths[*row]) == len) {
        return Ok(None);
    }
    let mut mask = vec![0.0f32; n * len];
    for (row, line) in group.rows.iter().zip(mask.chunks_mut(len)) {
        line[usize::from(lengths[*row])..].fill(f32::NEG_INFINITY);
    }
    let mask = Tensor::f_from_slice(&mask)?
        .f_to_kind(Kind::Float)?
        .f_view([n as i64, 1, 1, len as i64])?;
    Ok(Some(mask))
}
