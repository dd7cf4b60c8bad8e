//! BatchNorm's running statistics (rule BN1): staged beside the gradient, changed in APPLY.
//!
//! One lane after the other would do `r = (1 - m) r + m s`. Over all lanes that is `(1 - m)^L r + sum_q m (1 - m)^(L-1-q) s_q`:
//! each worker puts its lanes' terms where the statistics lie behind the flat gradient, REDUCE adds them up with everything
//! else, and APPLY joins them to what was.
//!
//! `num_batches_tracked` lies among the other f32 of the state: it is exact up to 2^24 = 16,777,216 batches (lanes times steps)
//! and rounded beyond. Nothing computes with it, in PyTorch neither: that would take a momentum of `None`.

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

    /// Gives the moving average the counts of batches as they are: the mean of two counts is none.
    pub(super) fn copy_counts(&mut self) -> Result<()> {
        let Some(ema) = &self.ema else { return Ok(()) };
        for spec in self.params.buffers().iter().filter(|spec| counts_batches(&spec.name)) {
            let (at, len) = (spec.offset, spec.len as i64);
            ema.view(at, &[len])?.f_copy_(&self.params.values.view(at, &[len])?)?;
        }
        Ok(())
    }

    /// Joins the staged terms of all lanes to the running statistics.
    pub(super) fn apply_statistics(&mut self) {
        let Some((_, of)) = self.turns.take() else { return };
        if self.params.statistics_frozen() {
            return;
        }
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
    use crate::clip::ModelConfig;
    use crate::engine::{ApplyHyper, Engine, GatheredLse, RowsIn, TorchOptions};

    #[test]
    fn pieces_of_lanes_never_cut_a_lane() {
        assert_eq!(pieces_of_lanes(&[3, 0, 2, 4], 5), [(0, 5), (5, 4)]);
        assert_eq!(pieces_of_lanes(&[3, 2], 1), [(0, 3), (3, 2)]);
        assert_eq!(pieces_of_lanes(&[3, 2], usize::MAX), [(0, 5)]);
        assert!(pieces_of_lanes(&[], 4).is_empty());
    }

    const HYPER: ApplyHyper = ApplyHyper {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.98,
        eps: 1e-6,
        weight_decay: 0.1,
        clip_norm: Some(1e-3), // takes no part in statistics
        ema_decay: Some(0.5),
    };

    fn resnet() -> TorchEngine {
        let text = r#"{"embed_dim": 8, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 2, "head_width": 32},
            "text_cfg": {"context_length": 4, "vocab_size": 16, "width": 8, "heads": 2, "layers": 1}}"#;
        let (config, preprocess) = ModelConfig::from_json(text).unwrap();
        let options = TorchOptions {
            ema: true,
            ..TorchOptions::default()
        };
        TorchEngine::new(&config, &preprocess, options).unwrap()
    }

    /// Everything but `apply` of a step whose rows are pictures number `first` and following, lane by lane.
    fn forward_backward(engine: &mut TorchEngine, lanes: &[usize], first: usize, micro_rows: usize) {
        let rows: usize = lanes.iter().sum();
        let pixel = |row: usize, k: usize| ((first + row) * 71 + k * (first + row + 2)) % 251;
        let pixels: Vec<u8> = (0..rows)
            .flat_map(|row| (0..32 * 32 * 3).map(move |k| pixel(row, k) as u8))
            .collect();
        let tokens: Vec<i32> = (0..rows as i32).flat_map(|row| [14, 1 + row % 12, 15, 0]).collect();
        let rows_in = RowsIn {
            rows,
            pixels: &pixels,
            tokens: &tokens,
            lengths: &vec![3; rows],
        };
        engine.begin_lanes(lanes, &[]);
        let out = engine.encode(&rows_in, micro_rows).unwrap();
        let own: Vec<u32> = (0..rows as u32).collect();
        let lse = engine.own_lse(&own, rows, &out.f, &out.g).unwrap();
        let with_rows = lanes.iter().filter(|rows| **rows > 0).count();
        engine.lane_turns(&(0..with_rows).collect::<Vec<_>>(), with_rows);
        let (r, c, diag) = (&lse.r, &lse.c, &lse.diag);
        engine.loss_backward(&GatheredLse { r, c, diag }).unwrap();
    }

    /// Running statistics, without the counts.
    fn running(engine: &TorchEngine, values: &[f32]) -> Vec<f32> {
        let specs = engine.params().buffers().iter();
        let kept = specs.filter(|spec| !counts_batches(&spec.name));
        kept.flat_map(|spec| values[spec.offset..spec.offset + spec.len].to_vec())
            .collect()
    }

    #[test]
    fn running_statistics_change_in_apply_alone_lane_after_lane() {
        let mut engine = resnet();
        let before = engine.state_hash();
        let start = running(&engine, engine.params().values.as_slice());
        // Each lane alone stages a tenth of its own statistics.
        let mut own = Vec::new();
        for (first, rows) in [(0, 4), (4, 5)] {
            forward_backward(&mut engine, &[rows], first, 99);
            own.push(running(&engine, engine.params().grads.as_slice()));
        }
        // A lane without rows takes no turn; pieces are whole lanes.
        for micro_rows in [99, 5, 1] {
            forward_backward(&mut engine, &[4, 0, 5], 0, micro_rows);
            assert_eq!(engine.state_hash(), before, "pieces of {micro_rows}");
        }
        engine.apply(&HYPER).unwrap();
        let got = running(&engine, engine.params().values.as_slice());
        let after = |first: &[f32], second: &[f32], at: usize| 0.9 * (0.9 * start[at] + first[at]) + second[at];
        let (mut off, mut other_order) = (0.0f32, 0.0f32);
        for (at, value) in got.iter().enumerate() {
            let size = value.abs().max(1.0);
            off = off.max((value - after(&own[0], &own[1], at)).abs() / size);
            other_order = other_order.max((value - after(&own[1], &own[0], at)).abs() / size);
        }
        assert!(off < 1e-5 && other_order > 1e-4, "{off} {other_order}");
    }

    #[test]
    fn running_statistics_are_averaged_and_their_counts_are_not() {
        let mut engine = resnet();
        let start = running(&engine, engine.params().values.as_slice());
        forward_backward(&mut engine, &[3, 4], 0, 99);
        engine.apply(&HYPER).unwrap();
        let ema = engine.ema().unwrap().as_slice();
        let (average, now) = (
            running(&engine, ema),
            running(&engine, engine.params().values.as_slice()),
        );
        for ((average, start), now) in average.iter().zip(&start).zip(&now) {
            assert!((average - (start + now) / 2.0).abs() <= 1e-6 * now.abs().max(1.0));
        }
        let counts = engine.params().buffers().iter().filter(|s| counts_batches(&s.name));
        let counts: Vec<f32> = counts.map(|spec| ema[spec.offset]).collect();
        assert!(!counts.is_empty() && counts.iter().all(|n| *n == 2.0), "{counts:?}");
    }

    #[test]
    fn turns_that_do_not_fit_the_lanes_are_refused() {
        let mut engine = resnet();
        forward_backward(&mut engine, &[3, 4], 0, 99);
        for (turns, of) in [(vec![0], 2), (vec![0, 2], 2)] {
            engine.turns = Some((turns, of));
            assert!(engine.check_turns(&[3, 4]).is_err());
        }
    }
}
