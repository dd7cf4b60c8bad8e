//! The full-matrix contrastive loss in tiles. It knows features, own rows and nothing of ranks or world sizes.
//!
//! With `A = s F G^T`, the loss of Radford et al. (2021) is `sum_i (r_i + c_i) / 2V`, where `r_i` is the log-sum-exp of
//! `A_ij - A_ii` over a row and `c_j` that of `A_ij - A_jj` over a column. The gradient of own rows needs nothing but
//! their own tiles and all of `r`, `c` and the diagonal: `dL/dF_i = s/2V sum_j W_ij G_j` with
//! `W_ij = exp(A_ij - A_ii - r_i) + exp(A_ij - A_jj - c_j) - 2 (i = j)`, the mirror image for `G`. Since the logits are
//! linear in `s`, `dL/d(ln s)` of own image rows is `sum_i F_i . dL/dF_i`.
//!
//! Relative to the diagonal because plain log-sum-exps are as large as `s`: their rounding (4e-6 at 100) would scale a
//! whole row of weights, and once the pairs are learned that alone is larger than the gradient. For the same reason
//! the diagonal is left out of the sums and joined at the end: `W_ii = expm1(-r_i) + expm1(-c_i)` keeps its digits.

use crate::engine::{EngineError, Result};
use tch::{Kind, Tensor};

/// Most logits kept between the two phases (256 MiB: all of 8,192 rows); above it tiles are made again, which costs one
/// product more but no memory that grows with the square of the batch.
const KEEP_ELEMENTS: usize = 64 << 20;

mod sigmoid;

pub use sigmoid::{SigmoidGrads, sigmoid, value as sigmoid_value};

/// Log-sum-exps of own rows relative to the diagonal (never negative), and the diagonal itself, `[n]` each.
#[derive(Debug)]
pub struct LseVectors {
    pub r: Tensor,
    pub c: Tensor,
    pub diag: Tensor,
}

/// Gradient of the loss with respect to own features, and own share of that with respect to `ln s`.
#[derive(Debug)]
pub struct LossGrads {
    /// `[n, d]`.
    pub d_f: Tensor,
    /// `[n, d]`.
    pub d_g: Tensor,
    /// Sum this over all owners.
    pub d_log_scale: f64,
}

/// Own rows between the two phases.
#[derive(Debug)]
pub struct OwnRows {
    features: Features,
    tiles: Vec<Tile>,
}

/// Features, own ones apart from the others'.
#[derive(Debug)]
struct Features {
    f: Tensor,
    g: Tensor,
    others: Option<Others>,
    own_index: Tensor,
    scale: f64,
    valid_rows: usize,
}

#[derive(Debug)]
struct Others {
    f: Tensor,
    g: Tensor,
    index: Tensor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Own images against own texts: feeds both directions.
    Both,
    /// Own images against others' texts.
    Images,
    /// Own texts against others' images.
    Texts,
}

/// Rows and columns of one tile, as (start, length); its logits where they are kept.
#[derive(Debug)]
struct Tile {
    side: Side,
    rows: (i64, i64),
    cols: (i64, i64),
    logits: Option<Tensor>,
}

impl OwnRows {
    /// Phase 1: log-sum-exps of the rows `own` (places in `f_all`, `g_all` `[V, d]`) in tiles of at most `edge` squared.
    /// Own rows against own columns are computed once and feed both directions.
    ///
    /// # Errors
    /// When a place is doubled or beyond `V`.
    pub fn begin(f_all: &Tensor, g_all: &Tensor, own: &[u32], scale: f64, edge: usize) -> Result<(Self, LseVectors)> {
        let features = Features::new(f_all, g_all, own, scale)?;
        let tiles = features.tiles(edge);
        let keep = tiles.iter().map(Tile::elements).sum::<usize>() <= KEEP_ELEMENTS;
        let mut this = Self { features, tiles };
        let lse = match this.phase_one(keep) {
            Err(error) if keep && error.is_out_of_memory() => {
                this.forget_logits();
                this.phase_one(false)?
            }
            other => other?,
        };
        Ok((this, lse))
    }

    /// Drops the logits that were kept; true if there were any. Made again they have the same bits.
    fn forget_logits(&mut self) -> bool {
        let dropped = self.tiles.iter_mut().map(|tile| tile.logits.take().is_some());
        dropped.fold(false, |any, this| any | this)
    }

    fn phase_one(&mut self, keep: bool) -> Result<LseVectors> {
        let own = &self.features;
        let n = own.own_index.numel() as i64;
        let full = |value: f64| Tensor::f_full([n], value, (own.f.kind(), own.f.device()));
        let (r, c, diag) = (full(f64::NEG_INFINITY)?, full(f64::NEG_INFINITY)?, full(0.0)?);
        for tile in &mut self.tiles {
            let logits = own.logits(tile)?;
            if tile.on_diagonal() {
                let mut own = logits.f_diagonal(0, 0, 1)?;
                // From the same product as the other logits: equal rows shall give equal bits.
                cut(&diag, tile.rows)?.f_copy_(&own)?;
                let _ = own.f_fill_(f64::NEG_INFINITY)?;
            }
            match tile.side {
                Side::Both => {
                    merge(&r, &diag, tile.rows, &logits, 1)?;
                    merge(&c, &diag, tile.cols, &logits, 0)?;
                }
                Side::Images => merge(&r, &diag, tile.rows, &logits, 1)?,
                Side::Texts => merge(&c, &diag, tile.rows, &logits, 1)?,
            }
            tile.logits = keep.then_some(logits);
        }
        let zero = full(0.0)?;
        Ok(LseVectors {
            r: r.f_logaddexp(&zero)?,
            c: c.f_logaddexp(&zero)?,
            diag,
        })
    }

    /// Phase 2: gradients of own rows, given what [`OwnRows::begin`] told of all `V` rows. Where memory is short, the logits that
    /// were kept go first.
    ///
    /// # Errors
    /// When `r`, `c` or `diag` has not `V` values, or memory does not hold a tile; it may be called again then.
    pub fn finish(&mut self, r: &Tensor, c: &Tensor, diag: &Tensor) -> Result<LossGrads> {
        match self.gradients(r, c, diag) {
            Err(error) if error.is_out_of_memory() && self.forget_logits() => self.gradients(r, c, diag),
            other => other,
        }
    }

    fn gradients(&mut self, r: &Tensor, c: &Tensor, diag: &Tensor) -> Result<LossGrads> {
        let features = &self.features;
        let v = features.valid_rows;
        let got = [r.numel(), c.numel(), diag.numel()];
        if got != [v; 3] {
            return Err(EngineError::Protocol(format!(
                "{v} log-sum-exps of each kind and diagonal values expected, got {got:?}"
            )));
        }
        let (d_f, d_g) = (features.f.f_zeros_like()?, features.g.f_zeros_like()?);
        let own = Norms::pick(r, c, diag, &features.own_index)?;
        let rest = match &features.others {
            Some(others) => Norms::pick(r, c, diag, &others.index)?,
            None => Norms::pick(r, c, diag, &features.own_index.f_narrow(0, 0, 0)?)?,
        };
        for tile in &mut self.tiles {
            let logits = match tile.logits.take() {
                Some(kept) => kept,
                None => features.logits(tile)?,
            };
            let (row_lse, col_lse, col_diag) = match tile.side {
                Side::Both => (&own.r, &own.c, &own.diag),
                Side::Images => (&own.r, &rest.c, &rest.diag),
                Side::Texts => (&own.c, &rest.r, &rest.diag),
            };
            let (row_lse, row_diag) = (cut(row_lse, tile.rows)?, cut(&own.diag, tile.rows)?);
            let (col_lse, col_diag) = (cut(col_lse, tile.cols)?, cut(col_diag, tile.cols)?);
            // One after the other: the sum of the two subtrahends would be rounded at the size of the diagonal.
            let mut weights = logits.f_sub(&row_diag.f_unsqueeze(1)?)?;
            let mut weights = weights.f_sub_(&row_lse.f_unsqueeze(1)?)?.f_exp_()?;
            let columns = logits.shallow_clone().f_sub_(&col_diag)?.f_sub_(&col_lse)?.f_exp_()?;
            let weights = weights.f_add_(&columns)?;
            if tile.on_diagonal() {
                let own = row_lse.f_neg()?.f_expm1_()?.f_add(&col_lse.f_neg()?.f_expm1_()?)?;
                weights.f_diagonal(0, 0, 1)?.f_copy_(&own)?;
            }
            features.spread(tile, &weights, &d_f, &d_g)?;
        }
        features.close(d_f, d_g, 2.0)
    }
}

impl Features {
    fn new(f_all: &Tensor, g_all: &Tensor, own: &[u32], scale: f64) -> Result<Self> {
        let (v, _) = f_all.size2()?;
        let (own_index, rest) = split(own, v as usize)?;
        // Alone with all rows in order, nothing needs to be copied.
        let all_own = rest.is_empty() && own.iter().enumerate().all(|(at, row)| at == *row as usize);
        let pick = |x: &Tensor, index: &Tensor| match all_own {
            true => Ok(x.shallow_clone()),
            false => x.f_index_select(0, index),
        };
        let others = if rest.is_empty() {
            None
        } else {
            let index = Tensor::f_from_slice(&rest)?.f_to_device(f_all.device())?;
            Some(Others {
                f: pick(f_all, &index)?,
                g: pick(g_all, &index)?,
                index,
            })
        };
        let own_index = own_index.f_to_device(f_all.device())?;
        Ok(Self {
            f: pick(f_all, &own_index)?,
            g: pick(g_all, &own_index)?,
            others,
            own_index,
            scale,
            valid_rows: v as usize,
        })
    }

    /// All tiles that own rows take part in, at most `edge` squared each.
    fn tiles(&self, edge: usize) -> Vec<Tile> {
        let own = self.own_index.numel();
        plan(own, self.valid_rows - own, edge.max(1))
    }

    /// Adds what a tile's weights pull from the features opposite into the gradients of the own.
    fn spread(&self, tile: &Tile, weights: &Tensor, d_f: &Tensor, d_g: &Tensor) -> Result<()> {
        let (row_features, col_features) = self.sides(tile)?;
        let into = if tile.side == Side::Texts { d_g } else { d_f };
        let _ = cut(into, tile.rows)?.f_addmm_(weights, &col_features)?;
        if tile.side == Side::Both {
            let _ = cut(d_g, tile.cols)?.f_addmm_(&weights.f_transpose(0, 1)?, &row_features)?;
        }
        Ok(())
    }

    /// Scales the sums by `s / (directions V)`, and reads the scale's gradient off the image rows.
    fn close(&self, mut d_f: Tensor, mut d_g: Tensor, directions: f64) -> Result<LossGrads> {
        let factor = self.scale / (directions * self.valid_rows as f64);
        let (d_f, d_g) = (d_f.f_mul_scalar_(factor)?, d_g.f_mul_scalar_(factor)?);
        let mut d_log_scale = 0.0;
        let rows = self.f.size2()?.0;
        // Piece by piece: in double precision the whole would be as large as all features twice.
        for start in (0..rows).step_by(1024) {
            let piece = (start, 1024.min(rows - start));
            let double = |x: &Tensor| -> Result<Tensor> { Ok(cut(x, piece)?.f_to_kind(Kind::Double)?) };
            let product = double(&self.f)?.f_mul(&double(&d_f)?)?;
            d_log_scale += product.f_sum(Kind::Double)?.f_double_value(&[])?;
        }
        Ok(LossGrads { d_f, d_g, d_log_scale })
    }

    fn logits(&self, tile: &Tile) -> Result<Tensor> {
        let (rows, cols) = self.sides(tile)?;
        Ok(rows.f_matmul(&cols.f_transpose(0, 1)?)?.f_mul_scalar_(self.scale)?)
    }

    /// Features along a tile's rows and columns.
    fn sides(&self, tile: &Tile) -> Result<(Tensor, Tensor)> {
        let (rows, cols) = match (tile.side, &self.others) {
            (Side::Images, Some(others)) => (&self.f, &others.g),
            (Side::Texts, Some(others)) => (&self.g, &others.f),
            _ => (&self.f, &self.g),
        };
        Ok((cut(rows, tile.rows)?, cut(cols, tile.cols)?))
    }
}

impl Tile {
    fn elements(&self) -> usize {
        (self.rows.1 * self.cols.1).max(0) as usize
    }

    /// Own pieces are cut alike along both sides, so a tile holds all of its piece of the diagonal or none.
    fn on_diagonal(&self) -> bool {
        self.side == Side::Both && self.rows == self.cols
    }
}

/// What was gathered, for some of the rows.
struct Norms {
    r: Tensor,
    c: Tensor,
    diag: Tensor,
}

impl Norms {
    fn pick(r: &Tensor, c: &Tensor, diag: &Tensor, index: &Tensor) -> Result<Self> {
        let pick = |x: &Tensor| x.f_index_select(0, index);
        Ok(Self {
            r: pick(r)?,
            c: pick(c)?,
            diag: pick(diag)?,
        })
    }
}

/// Loss of the whole batch from all log-sum-exps relative to the diagonal, summed in the order given, in f64: whoever
/// holds the same vectors gets the same bits.
#[must_use]
pub fn value(r: &[f32], c: &[f32]) -> f64 {
    let sum: f64 = r.iter().zip(c).map(|(r, c)| f64::from(*r) + f64::from(*c)).sum();
    sum / (2.0 * r.len().max(1) as f64)
}

/// Own places as a tensor, and all other places in order.
fn split(own: &[u32], rows: usize) -> Result<(Tensor, Vec<i64>)> {
    let mut mine = vec![false; rows];
    for &i in own {
        match mine.get_mut(i as usize) {
            Some(seen) if !*seen => *seen = true,
            Some(_) => return Err(EngineError::Protocol(format!("own row {i} is named twice"))),
            None => {
                return Err(EngineError::Protocol(format!(
                    "own row {i} lies beyond {rows} valid rows"
                )));
            }
        }
    }
    let rest = mine
        .iter()
        .enumerate()
        .filter(|(_, own)| !**own)
        .map(|(i, _)| i as i64)
        .collect();
    let own: Vec<i64> = own.iter().map(|i| i64::from(*i)).collect();
    Ok((Tensor::f_from_slice(&own)?, rest))
}

fn plan(own: usize, rest: usize, edge: usize) -> Vec<Tile> {
    let pieces = |n: usize| (0..n).step_by(edge).map(move |at| (at as i64, edge.min(n - at) as i64));
    let mut tiles = Vec::new();
    for rows in pieces(own) {
        tiles.extend(pieces(own).map(|cols| Tile {
            side: Side::Both,
            rows,
            cols,
            logits: None,
        }));
        for side in [Side::Images, Side::Texts] {
            tiles.extend(pieces(rest).map(|cols| Tile {
                side,
                rows,
                cols,
                logits: None,
            }));
        }
    }
    // All other tiles need the diagonal.
    tiles.sort_by_key(|tile| !tile.on_diagonal());
    tiles
}

fn cut(x: &Tensor, (start, len): (i64, i64)) -> Result<Tensor> {
    Ok(x.f_narrow(0, start, len)?)
}

/// `into[range] = log(exp(into[range]) + sum_dim exp(logits - diag[range]))`.
fn merge(into: &Tensor, diag: &Tensor, range: (i64, i64), logits: &Tensor, dim: i64) -> Result<()> {
    let mut place = cut(into, range)?;
    // The largest logit meets the diagonal before the logarithm is added, while the difference is still exact. Its
    // floor serves the tile of one row, which holds nothing but the diagonal left out.
    let top = logits
        .f_amax([dim].as_slice(), true)?
        .f_clamp_min(f64::from(f32::MIN / 2.0))?;
    let mut parts = logits.f_sub(&top)?;
    let mut sum = parts
        .f_exp_()?
        .f_sum_dim_intlist([dim].as_slice(), false, None::<Kind>)?;
    let shift = top.f_squeeze_dim(dim)?.f_sub(&cut(diag, range)?)?;
    let sum = shift.f_add(&sum.f_log_()?)?;
    let merged = place.f_logaddexp(&sum)?;
    place.f_copy_(&merged)?;
    Ok(())
}

#[cfg(test)]
mod tests;
