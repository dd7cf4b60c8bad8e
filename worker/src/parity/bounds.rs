//! Bounds of the comparison; `tests/bounds.toml` is the one place that names them.

use super::Golden;
use crate::engine::{EngineError, Result};

#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bounds {
    pub(super) features: f64,
    pub(super) loss: f64,
    pub(super) gradient_relative: f64,
    pub(super) gradient_global: f64,
    pub(super) optimizer: f64,
    pub(super) free_run_relative: f64,
    pub(super) free_run_largest: f64,
    pub(super) free_run_epsilons: f64,
    batch_norm_gradient_relative: f64,
    batch_norm_free_run_largest: f64,
    batch_norm_free_run_epsilons: f64,
    pub(super) buffers: f64,
    pub(super) eval_features: f64,
    pub(super) long_run_loss: f64,
    pub(super) double_factor: f64,
}

#[derive(serde::Deserialize)]
struct BoundsFile {
    parity: Bounds,
}

impl Bounds {
    /// Those of the golden's kind of tower.
    pub(super) fn of(golden: &Golden) -> Result<Self> {
        let file: BoundsFile = toml::from_str(include_str!("../../../tests/bounds.toml"))
            .map_err(|e| EngineError::State(format!("tests/bounds.toml: {e}")))?;
        let mut bounds = file.parity;
        if golden.has_batch_norm() {
            bounds.gradient_relative = bounds.batch_norm_gradient_relative;
            bounds.free_run_largest = bounds.batch_norm_free_run_largest;
            bounds.free_run_epsilons = bounds.batch_norm_free_run_epsilons;
        }
        Ok(bounds)
    }
}
