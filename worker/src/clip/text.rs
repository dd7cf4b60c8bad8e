//! The text tower (`TextTransformer`): blocks over captions, of causal ones cut to the longest of a length group, all groups'
//! tokens one after another.

use super::block::{Blocks, Done, Layout, SavedBlocks, Span};
use super::config::{ModelConfig, TextPool, TextProjection};
use super::groups::{Group, by_length};
use super::head::{Head, Pooling, Projection, SavedHead};
use super::ops::{Linear, Math, Sink, cast};
use super::params::{Leaf, Params};
use crate::engine::{EngineError, Result, expect_len};
use tch::{Device, Kind, Tensor};

/// Text tower over views into [`Params`].
#[derive(Debug)]
pub struct TextTower {
    table: Leaf,
    positional_embedding: Leaf,
    blocks: Blocks,
    head: Head,
    pool: TextPool,
    causal: bool,
    context: usize,
    vocab: usize,
    width: i64,
    math: Math,
    device: Device,
    /// Whether anything of the tower is trained, and whether its embeddings are.
    trained: bool,
    embeddings: bool,
    /// Cost of one more length group, in token positions.
    group_cost: usize,
}

/// What the backward pass needs.
#[derive(Debug)]
pub struct SavedText {
    layout: Layout,
    /// Id of every token that went in.
    ids: Tensor,
    blocks: SavedBlocks,
    head: SavedHead,
    /// Row of every sequence, in the order of the groups.
    order: Tensor,
}

impl TextTower {
    pub(crate) fn new(config: &ModelConfig, params: &Params) -> Result<Self> {
        let (t, prefix) = (&config.text, config.text_prefix());
        let name = |name: &str| format!("{prefix}{name}");
        let projection = match t.projection {
            TextProjection::Matrix => Projection::matrix(params, &name("text_projection"))?,
            TextProjection::Linear => Projection::Linear(Linear::new(
                params,
                &name("text_projection.weight"),
                Some(&name("text_projection.bias")),
            )?),
            TextProjection::None => Projection::None,
        };
        let eps = t.stack.norm_eps;
        Ok(Self {
            table: params.leaf(&name("token_embedding.weight"))?,
            positional_embedding: params.leaf(&name("positional_embedding"))?,
            blocks: Blocks::of(params, prefix, &t.stack, config.quick_gelu)?,
            head: Head::new(params, &name("ln_final"), eps, projection, Pooling::Given)?,
            pool: t.pool,
            causal: t.causal,
            context: t.context_length as usize,
            vocab: t.vocab_size as usize,
            width: t.stack.width,
            math: params.math(),
            device: params.device(),
            trained: params.trains_any(|name| !name.starts_with("visual.") && !name.starts_with("logit_")),
            embeddings: params.trains(&name("token_embedding.weight")),
            group_cost: group_cost(t.stack.width),
        })
    }

    /// Where each row is pooled, from 0. `lengths[i]` counts the ids of row `i` up to and including the largest.
    fn pooled_at(&self, tokens: &[i32], lengths: &[u16]) -> Vec<usize> {
        let rows = tokens.chunks(self.context).zip(lengths);
        rows.map(|(ids, len)| match self.pool {
            TextPool::First => 0,
            TextPool::Last => self.context - 1,
            TextPool::Argmax => usize::from(*len) - 1,
            TextPool::Eos(eos) => ids.iter().position(|id| *id == eos).unwrap_or(0),
        })
        .collect()
    }

    /// How many ids of each row reach its feature: with a causal mask those up to the pooled one, else all, whatever they are
    /// (OpenCLIP 3.3.0 has no pad mask either).
    ///
    /// # Errors
    /// As [`TextTower::encode`].
    pub fn read(&self, tokens: &[i32], lengths: &[u16]) -> Result<Vec<u16>> {
        expect_len("tokens", lengths.len() * self.context, tokens.len())?;
        self.check(tokens, lengths)?;
        if !self.causal {
            return Ok(vec![self.context as u16; lengths.len()]);
        }
        let ends = self.pooled_at(tokens, lengths);
        Ok(ends.into_iter().map(|at| at as u16 + 1).collect())
    }

    /// L2-normalised features `[n, d]` of `[n, context]` ids, `n >= 1`; `lengths[i]` counts the ids of row `i` up to and
    /// including end-of-text.
    ///
    /// # Errors
    /// Names the row whose id or length is out of range.
    pub fn encode(&self, tokens: &[i32], lengths: &[u16]) -> Result<Tensor> {
        Ok(self.forward(tokens, lengths, false, false)?.0)
    }

    /// As [`TextTower::encode`], with what [`TextTower::backward`] needs where `keep`; `lean` as in
    /// [`Blocks::forward`].
    ///
    /// # Errors
    /// As [`TextTower::encode`].
    pub(crate) fn forward(
        &self,
        tokens: &[i32],
        lengths: &[u16],
        keep: bool,
        lean: bool,
    ) -> Result<(Tensor, SavedText)> {
        let keep = keep && self.trained;
        let read = self.read(tokens, lengths)?;
        let groups = by_length(&read, self.group_cost);
        let layout = self.layout(&groups, &read, &self.pooled_at(tokens, lengths))?;
        let ids = self.ids(&groups, tokens, &read)?;
        let x = self.embed(&ids, &layout)?;
        let (x, blocks) = self.blocks.forward(x, &layout, keep, lean)?;
        let (features, head) = self.head.forward(x)?;
        let order: Vec<i64> = groups.iter().flat_map(|g| g.rows.iter().map(|r| *r as i64)).collect();
        let mut inverse = vec![0i64; order.len()];
        for (at, row) in order.iter().enumerate() {
            inverse[*row as usize] = at as i64;
        }
        let features = features.f_index_select(0, &self.indices(&inverse)?)?;
        let saved = SavedText {
            layout,
            ids,
            blocks,
            head,
            order: self.indices(&order)?,
        };
        Ok((features, saved))
    }

    /// Gradients of all weights from that of the features. The token table's must be zero before a step's first call; only
    /// the rows of used ids are written.
    pub(crate) fn backward(
        &self,
        saved: SavedText,
        d_features: &Tensor,
        sink: Sink,
        done: &mut Done<'_>,
    ) -> Result<()> {
        if !self.trained {
            return Ok(());
        }
        let d_features = d_features.f_index_select(0, &saved.order)?;
        let Some(d_pooled) = self.head.backward(saved.head, &d_features, sink)? else {
            return Ok(());
        };
        let d_pooled = cast(&d_pooled, self.math.stream)?;
        let dx = self
            .blocks
            .backward(saved.blocks, &saved.layout, d_pooled, sink, done)?;
        if !self.embeddings {
            return Ok(());
        }
        let dx = cast(&dx, Kind::Float)?;
        let mut positions = self.positional_embedding.grad.shallow_clone();
        if sink == Sink::Replace {
            let _ = positions.f_zero_()?;
        }
        for span in &saved.layout.spans {
            let rows = dx.f_narrow(0, span.start, span.n * span.len)?;
            let sum = rows.f_view([span.n, span.len, self.width])?.f_sum_dim_intlist(
                [0i64].as_slice(),
                false,
                Kind::Float,
            )?;
            let _ = positions.f_narrow(0, 0, span.len)?.f_add_(&sum)?;
        }
        let _ = self.table.grad.shallow_clone().f_index_add_(0, &saved.ids, &dx)?;
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

    fn layout(&self, groups: &[Group], lengths: &[u16], pooled_at: &[usize]) -> Result<Layout> {
        let (mut spans, mut ends, mut start) = (Vec::with_capacity(groups.len()), Vec::new(), 0usize);
        for group in groups {
            let (n, len) = (group.rows.len(), group.longest);
            let end_of = |(k, row): (usize, &usize)| (start + k * len + pooled_at[*row]) as i64;
            ends.extend(group.rows.iter().enumerate().map(end_of));
            spans.push(Span {
                start: start as i64,
                n: n as i64,
                len: len as i64,
                mask: self.behind_end(group, lengths)?,
            });
            start += n * len;
        }
        Ok(Layout {
            spans,
            causal: self.causal,
            whole: false,
            ends: self.indices(&ends)?,
        })
    }

    /// Ids of all groups' tokens; whatever stands behind a caption's end goes in as id 0, so that it touches no other row of
    /// the table. (Its gradient is zero: nothing that is read sees it.)
    fn ids(&self, groups: &[Group], tokens: &[i32], lengths: &[u16]) -> Result<Tensor> {
        let mut ids = Vec::new();
        for group in groups {
            for &row in &group.rows {
                let (from, len) = (row * self.context, usize::from(lengths[row]));
                ids.extend(tokens[from..from + len].iter().map(|id| i64::from(*id)));
                ids.extend(std::iter::repeat_n(0, group.longest - len));
            }
        }
        self.indices(&ids)
    }

    fn embed(&self, ids: &Tensor, layout: &Layout) -> Result<Tensor> {
        let stream = self.math.stream;
        let x = self.table.at(stream).f_index_select(0, ids)?;
        for span in &layout.spans {
            let rows = x.f_narrow(0, span.start, span.n * span.len)?;
            let positions = self.positional_embedding.at(stream).f_narrow(0, 0, span.len)?;
            let _ = rows.f_view([span.n, span.len, self.width])?.f_add_(&positions)?;
        }
        Ok(x)
    }

    fn indices(&self, values: &[i64]) -> Result<Tensor> {
        Ok(Tensor::f_from_slice(values)?.f_to_device(self.device)?)
    }

    /// `[n, 1, 1, L]`: 0 up to a row's end-of-text, minus infinity behind it; none where all rows end together.
    fn behind_end(&self, group: &Group, lengths: &[u16]) -> Result<Option<Tensor>> {
        let (n, len) = (group.rows.len(), group.longest);
        if group.rows.iter().all(|row| usize::from(lengths[*row]) == len) {
            return Ok(None);
        }
        let mut mask = vec![0.0f32; n * len];
        for (row, line) in group.rows.iter().zip(mask.chunks_mut(len)) {
            line[usize::from(lengths[*row])..].fill(f32::NEG_INFINITY);
        }
        let mask = Tensor::f_from_slice(&mask)?.f_view([n as i64, 1, 1, len as i64])?;
        Ok(Some(mask.f_to_device(self.device)?))
    }

    pub(crate) fn set_group_cost(&mut self, positions: usize) {
        self.group_cost = positions;
    }

    /// Width of the tower.
    #[must_use]
    pub fn width(&self) -> i64 {
        self.width
    }
}

/// What one more length group costs, in token positions of a tower `width` wide. Estimated for two cores, never measured on
/// the machine it runs on, which must have no say in the bits: a group's calls take about 0.1 ms, a token takes 0.19 ms at
/// width 512 and 0.03 ms at width 192.
#[must_use]
pub fn group_cost(width: i64) -> usize {
    (140_000 / (width * width).max(1)).clamp(1, 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::to_vec;

    #[test]
    fn features_of_length_groups_are_those_of_all_77_positions() {
        let text = r#"{"embed_dim": 64, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
            "text_cfg": {"context_length": 77, "vocab_size": 512, "width": 128, "heads": 4, "layers": 4}}"#;
        let (config, _) = ModelConfig::from_json(text).unwrap();
        let params = Params::new(&config, 5).unwrap();
        let mut tower = TextTower::new(&config, &params).unwrap();
        let (mut tokens, mut lengths) = (Vec::new(), Vec::new());
        for row in 0..48 {
            let length = 3 + row * 37 % 75;
            let mut ids: Vec<i32> = (0..length).map(|k| ((row * 31 + k * 17) % 500 + 1) as i32).collect();
            (ids[0], ids[length - 1]) = (510, 511);
            ids.resize(77, 0);
            tokens.extend(ids);
            lengths.push(length as u16);
        }
        assert_eq!(lengths.iter().max(), Some(&77));
        assert!(by_length(&lengths, tower.group_cost).len() > 3);
        let cut = to_vec(&tower.encode(&tokens, &lengths).unwrap()).unwrap();
        // So dear that one group, of the longest, is cheapest.
        tower.group_cost = 1 << 40;
        assert_eq!(by_length(&lengths, tower.group_cost).len(), 1);
        let whole = to_vec(&tower.encode(&tokens, &lengths).unwrap()).unwrap();
        let worst = cut.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-6, "{worst}");
    }
}
