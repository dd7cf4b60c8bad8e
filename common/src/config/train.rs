//! The `[train]` section: the optimisation.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The optimisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Global batch `B`: rows of one step over all workers. (open_clip's `--batch-size` is per GPU.)
    pub global_batch: u32,
    /// Lanes `Q`, a divisor of the batch; rule L5 chooses by default.
    pub lanes: Option<u32>,
    /// Passes over the data.
    pub epochs: u64,
    /// Peak learning rate.
    pub lr: f64,
    /// AdamW.
    pub beta1: f64,
    /// AdamW.
    pub beta2: f64,
    /// AdamW.
    pub eps: f64,
    /// Decoupled weight decay.
    pub wd: f64,
    /// Which parameters decay.
    pub decay_rule: DecayRule,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// What follows the warm-up.
    pub lr_scheduler: LrScheduler,
    /// Clips the global norm of the gradient.
    pub grad_clip_norm: Option<f64>,
    /// Which loss.
    pub loss: Loss,
    /// Learning rate of the image tower falls by this factor per layer away from its projection, as `--image-layer-decay`.
    pub image_layer_decay: Option<f64>,
    /// The same for the text tower, as `--text-layer-decay`.
    pub text_layer_decay: Option<f64>,
    /// Keeps an exponential moving average of the weights that forgets half within so many positions.
    pub ema_half_life_samples: Option<u64>,
    /// In which numbers the towers compute.
    pub precision: Precision,
    /// Keeps only the blocks' inputs and computes the rest again on the way back, as `--grad-checkpointing`.
    pub grad_checkpointing: bool,
    /// Where the towers run: `cpu`, `cuda:N`, or `auto`, which is the first GPU where libtorch can use one, else the CPU.
    pub device: String,
    /// Where BatchNorm takes its statistics from: of every lane by itself, or of the whole batch as OpenCLIP on one device.
    pub batch_norm: BatchNorm,
    /// Trains no part of the image tower, as `--lock-image`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lock_image: bool,
    /// Of a locked image tower, groups of layers that are trained nevertheless, from the projection backwards; a
    /// transformer only.
    #[serde(skip_serializing_if = "is_zero")]
    pub lock_image_unlocked_groups: u32,
    /// A locked image tower uses the running statistics of its BatchNorms, and leaves them as they are.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lock_image_freeze_bn_stats: bool,
    /// Trains no part of the text tower, as `--lock-text`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lock_text: bool,
    /// Of a locked text tower, groups of layers that are trained nevertheless, from the projection backwards.
    #[serde(skip_serializing_if = "is_zero")]
    pub lock_text_unlocked_layers: u32,
    /// Only `true` can be had: the norms of a locked text tower are locked like its other weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock_text_freeze_layer_norm: Option<bool>,
    /// Rows that go through the towers at once on one worker; all that a worker owns by default.
    pub micro_batch: Option<u32>,
    /// Threads of one worker's tensor operations; cores divided by workers on one machine by default, 1 in deterministic
    /// mode.
    pub threads: Option<u32>,
    /// The same bits whoever computes what (rule N4): every lane by itself, gradients summed over a fixed tree. Slower.
    pub deterministic: bool,
    /// Workers compare hashes of their states every so many steps (rule N3); 0: never.
    pub state_hash_steps: u64,
}

/// open_clip's two rules for weight decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DecayRule {
    /// 2.x and 3.x: none for `ndim < 2` and for names with `bn`, `ln`, `bias` or `logit_scale`.
    #[default]
    Classic,
    /// 4.x: none for `ndim <= 1` and for position and class embeddings.
    Main,
}

/// Rows whose statistics BatchNorm uses in training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BatchNorm {
    /// Those of a lane, at least 8: the same on any number of workers.
    #[default]
    Lane,
    /// Those of the batch: one worker, without micro-batches.
    Batch,
}

/// The contrastive losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Softmax over the whole batch, both ways.
    #[default]
    Clip,
    /// Sigmoid of every pair, with a learned bias, as `--siglip`; the scale starts at 10 and the bias at -10.
    Siglip,
}

/// open_clip's names for `--precision`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Single precision throughout.
    #[default]
    Fp32,
    /// Weights in single precision, matrix products in bfloat16, norms and sums along the residual path in single precision.
    #[serde(alias = "amp_bfloat16")]
    AmpBf16,
    /// Weights of matrix products and everything between the norms in bfloat16.
    Bf16,
    /// All weights and activations in bfloat16. Moments and sums of gradients stay in single precision.
    PureBf16,
}

/// What the learning rate does after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduler {
    /// Half a cosine to zero at the end of the run.
    #[default]
    Cosine,
    /// Constant.
    Const,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            global_batch: 256,
            lanes: None,
            epochs: 1,
            lr: 5e-4,
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-6,
            wd: 0.2,
            decay_rule: DecayRule::Classic,
            warmup: 100,
            lr_scheduler: LrScheduler::Cosine,
            grad_clip_norm: None,
            loss: Loss::Clip,
            image_layer_decay: None,
            text_layer_decay: None,
            ema_half_life_samples: None,
            precision: Precision::Fp32,
            grad_checkpointing: false,
            device: "auto".into(),
            batch_norm: BatchNorm::Lane,
            micro_batch: None,
            lock_image: false,
            lock_image_unlocked_groups: 0,
            lock_image_freeze_bn_stats: false,
            lock_text: false,
            lock_text_unlocked_layers: 0,
            lock_text_freeze_layer_norm: None,
            threads: None,
            deterministic: false,
            state_hash_steps: 100,
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}
