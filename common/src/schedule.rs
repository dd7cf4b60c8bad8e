//! Schedules as functions of positions seen (rule L3): the same curve for every world size and after every restart.

use crate::config::{LrScheduler, TrainConfig};

/// The numbers of one optimiser step, as f64 from one place (rule N1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate of this step.
    pub lr: f64,
    /// AdamW's betas, epsilon and decay.
    pub beta1: f64,
    /// Second-moment decay.
    pub beta2: f64,
    /// AdamW's epsilon.
    pub eps: f64,
    /// Decoupled weight decay of the decayed group.
    pub weight_decay: f64,
    /// Global norm to clip to, if any.
    pub clip_norm: Option<f64>,
    /// What remains of the weights' moving average at this step, if one is kept.
    pub ema_decay: Option<f64>,
}

/// The hyper-parameters of step `step` (0-based) of a run of `total_steps` steps.
#[must_use]
pub fn hyper_at(train: &TrainConfig, step: u64, total_steps: u64) -> Hyper {
    Hyper {
        lr: learning_rate(train, step, total_steps),
        beta1: train.beta1,
        beta2: train.beta2,
        eps: train.eps,
        weight_decay: train.wd,
        clip_norm: train.grad_clip_norm,
        ema_decay: train.ema_half_life_samples.map(|n| ema_decay(train.global_batch, n)),
    }
}

/// Share of a moving average that remains after one step of `batch` positions, when half remains after `half_life_samples`.
/// In positions, so that another batch size forgets at the same pace (rule L3).
#[must_use]
pub fn ema_decay(batch: u32, half_life_samples: u64) -> f64 {
    (-f64::from(batch) / half_life_samples.max(1) as f64).exp2()
}

/// Learning rate as open_clip_train/scheduler.py has it: linear warm-up `lr*(k+1)/w`, then half a cosine to zero or constant.
#[must_use]
pub fn learning_rate(train: &TrainConfig, step: u64, total_steps: u64) -> f64 {
    let warmup = train.warmup;
    if step < warmup {
        return train.lr * (step + 1) as f64 / warmup as f64;
    }
    match train.lr_scheduler {
        LrScheduler::Const => train.lr,
        LrScheduler::Cosine => {
            let span = total_steps.saturating_sub(warmup).max(1) as f64;
            let done = ((step - warmup) as f64 / span).min(1.0);
            0.5 * (1.0 + (std::f64::consts::PI * done).cos()) * train.lr
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_with_warmup_follows_open_clips_formula() {
        let train = TrainConfig {
            lr: 1e-3,
            warmup: 10,
            ..TrainConfig::default()
        };
        assert!((learning_rate(&train, 0, 110) - 1e-4).abs() < 1e-12);
        assert!((learning_rate(&train, 9, 110) - 1e-3).abs() < 1e-12);
        assert!((learning_rate(&train, 10, 110) - 1e-3).abs() < 1e-12);
        assert!((learning_rate(&train, 60, 110) - 0.5e-3).abs() < 1e-12);
        assert!(learning_rate(&train, 110, 110).abs() < 1e-12);
    }

    #[test]
    fn moving_average_keeps_half_after_its_half_life_at_any_batch() {
        for (batch, steps) in [(64, 100), (128, 50), (6400, 1)] {
            let kept = ema_decay(batch, 6400).powi(steps);
            assert!((kept - 0.5).abs() < 1e-12, "batch {batch}: {kept}");
        }
        assert!(hyper_at(&TrainConfig::default(), 0, 1).ema_decay.is_none());
    }

    #[test]
    fn warmup_longer_than_the_run_never_divides_by_zero() {
        let train = TrainConfig {
            warmup: 100,
            ..TrainConfig::default()
        };
        assert!(learning_rate(&train, 5, 10).is_finite());
        assert!(learning_rate(&train, 100, 10).is_finite());
    }
}
