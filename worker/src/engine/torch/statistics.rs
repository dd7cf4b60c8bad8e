//! BatchNorm's running statistics (rule BN1): staged beside the gradient, changed in APPLY.
//!
//! One lane after the other would do `r = (1 - m) r + m s`. Over all lanes that is `(1 - m)^L r + sum_q m (1 - m)^(L-1-q) s_q`:
//! each worker puts its lanes' terms where the statistics lie behind the flat gradient, REDUCE adds them up with everything
//! else, and APPLY joins them to what was.

use super::TorchEngine;
use crate::clip::params::counts_batches;
use crate::clip::resnet::LaneStatistics;
use crate::engine::{EngineError, Result};

/// PyTorch's default of `nn.BatchNorm2d`, which OpenCLIP keeps.
const MOMENTUM: f64 = 0.1;

impl TorchEngine {
    /// Whoever was told no turns has all lanes.
    pub(super) fn turns_default(&mut self, lanes: &[usize]) {
        let own = lanes.iter().filter(|rows| **rows > 0).count();
        self.turns.get_or_insert_with(|| ((0..own).collect(), own));
    }

    /// Refuses turns that do not fit the lanes.
    pub(super) fn check_turns(&self, lanes: &[usize]) -> Result<()> {
        let own = lanes.iter().filter(|rows| **rows > 0).count();
        let (turns, of) = self.turns.clone().unwrap_or_default();
        if self.clip.vision.has_batch_norm() && (turns.len() != own || turns.iter().any(|turn| *turn >= of)) {
            let why = format!("turns {turns:?} of {of} do not fit {own} lanes with rows");
            return Err(EngineError::Protocol(why));
        }
        Ok(())
    }

    /// Puts the own lanes' terms behind the flat gradient.
    pub(super) fn stage_statistics(&self, statistics: &[LaneStatistics]) -> Result<()> {
        let start = self.params.trained_elements();
        let len = self.params.values.len() - start;
        if len == 0 {
            return Ok(());
        }
        let (turns, of) = self.turns.clone().unwrap_or_default();
        let mut sum = vec![0.0f64; len];
        for (turn, lane) in turns.iter().zip(statistics) {
            let factor = MOMENTUM * (1.0 - MOMENTUM).powi((of - 1 - turn) as i32);
            for (sum, value) in sum.iter_mut().zip(&lane.0) {
                *sum += factor * f64::from(*value);
            }
        }
        let sum: Vec<f32> = sum.into_iter().map(|v| v as f32).collect();
        let mut into = self.params.grads.view(start, &[len as i64])?;
        into.f_copy_(&tch::Tensor::f_from_slice(&sum)?)?;
        Ok(())
    }

    /// Joins the staged terms of all lanes to the running statistics.
    pub(super) fn apply_statistics(&mut self) {
        let Some((_, of)) = self.turns.take() else { return };
        let keep = (1.0 - MOMENTUM).powi(of as i32);
        for spec in self.params.buffers().to_vec() {
            let range = spec.offset..spec.offset + spec.len;
            let (values, terms) = (&mut self.params.values, &self.params.grads);
            let terms = &terms.as_slice()[range.clone()];
            for (value, term) in values.as_mut_slice()[range].iter_mut().zip(terms) {
                let joined = if counts_batches(&spec.name) {
                    f64::from(*value) + of as f64
                } else {
                    keep * f64::from(*value) + f64::from(*term)
                };
                *value = joined as f32;
            }
        }
    }
}

/// Whole lanes in pieces of at most `micro_rows` rows, or of one lane.
pub(super) fn pieces_of_lanes(lanes: &[usize], micro_rows: usize) -> Vec<(usize, usize)> {
    let mut out: Vec<(usize, usize)> = Vec::new();
    let mut start = 0;
    for &rows in lanes.iter().filter(|rows| **rows > 0) {
        match out.last_mut() {
            Some((_, len)) if *len + rows <= micro_rows => *len += rows,
            _ => out.push((start, rows)),
        }
        start += rows;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_lanes_never_cut_a_lane() {
        assert_eq!(pieces_of_lanes(&[3, 0, 2, 4], 5), [(0, 5), (5, 4)]);
        assert_eq!(pieces_of_lanes(&[3, 2], 1), [(0, 3), (3, 2)]);
        assert_eq!(pieces_of_lanes(&[3, 2], usize::MAX), [(0, 5)]);
        assert!(pieces_of_lanes(&[], 4).is_empty());
    }
}
