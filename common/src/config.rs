//! The job file: what a user writes, checked before anything starts.
//!
//! TOML, `version = 1`. Unknown keys are refused with the nearest known name. OpenCLIP's flag names where they exist.

mod cache;
mod check;
mod unknown;

pub use cache::CacheConfig;
pub use check::ConfigError;
pub use unknown::nearest;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A whole job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Version of this format; 1.
    pub version: u32,
    /// Name for people; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Seed of every random choice of the run.
    #[serde(default)]
    pub seed: u64,
    /// What is trained.
    pub model: ModelConfig,
    /// What it is trained on.
    pub data: DataConfig,
    /// How it is trained.
    pub train: TrainConfig,
    /// On how many workers.
    #[serde(default)]
    pub workers: WorkersConfig,
    /// When the state is made durable.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// What is kept of the data on each machine's disk.
    #[serde(default)]
    pub cache: CacheConfig,
    /// What committed checkpoints are evaluated on, beside the training.
    #[serde(default)]
    pub evaluation: EvaluationConfig,
    /// How failures are noticed.
    #[serde(default)]
    pub failure: FailureConfig,
}

/// Which model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Name of a built-in config (`ViT-B-32`) or of the file given in `config`.
    pub name: String,
    /// A model config in open_clip's JSON schema, by path; relative paths start at the job file's folder.
    pub config: Option<String>,
    /// Mean of the pixels per channel, in `0..1`; open_clip's OpenAI values by default.
    pub image_mean: Option<[f64; 3]>,
    /// Standard deviation of the pixels per channel.
    pub image_std: Option<[f64; 3]>,
    /// Forces QuickGELU, as `--force-quick-gelu`.
    pub force_quick_gelu: bool,
    /// Start from the weights in this folder (`open_clip_model.safetensors` beside `open_clip_config.json`), as
    /// `--pretrained`; its configuration is used when neither `name` nor `config` says another.
    pub pretrained: Option<String>,
    /// Digest of those weights; written by `argosy run`, so that a run goes on with what it began with.
    pub pretrained_digest: Option<String>,
}

/// Where the pairs come from and how they are prepared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// One or several sources; without weights they are joined into one (rule L4).
    pub sources: Vec<Source>,
    /// Positions of one epoch; required with several sources (rule L2).
    #[serde(default)]
    pub train_num_samples: Option<u64>,
    /// Suffixes of the picture in a shard, in order of preference.
    #[serde(default = "default_image_key")]
    pub image_key: String,
    /// Suffixes of the caption, in order of preference; `json:FIELD` is a field of the sample's JSON.
    #[serde(default = "default_text_key")]
    pub text_key: String,
    /// Index file; by default `argosy run` keeps one in the run folder.
    #[serde(default)]
    pub index: Option<String>,
    /// Pictures with more pixels are masked (`pixels`), checked in the header before decoding; as `--max-image-pixels`.
    #[serde(default = "default_max_image_pixels")]
    pub max_image_pixels: u64,
    /// Samples with more bytes are masked (`bytes`).
    #[serde(default = "default_max_sample_bytes")]
    pub max_sample_bytes: u64,
    /// Window factor `m` (rule L7).
    #[serde(default = "default_window_factor")]
    pub window_factor: u32,
    /// Most bytes of one step's windows over all lanes (rule L7).
    #[serde(default = "default_window_bytes_max")]
    pub window_bytes_max: u64,
    /// Decode JPEG pictures that are at least three times too large at a half, a quarter or an eighth of their size: faster,
    /// but other pixels than OpenCLIP's.
    #[serde(default)]
    pub fast_decode: bool,
    /// Resizes every picture to at most this many pixels a side first, keeps that in the cache, and crops from it: faster from
    /// the second pass on, but other pixels than OpenCLIP's fresh crops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resized_side: Option<u32>,
    /// Which of several captions a row is trained with.
    #[serde(default)]
    pub caption_draw: CaptionDraw,
    /// Weights of the entries of `text_key` for `caption_draw = "weighted"`; equal by default.
    #[serde(default)]
    pub caption_weights: Vec<f64>,
    /// Which samples the index keeps; all by default (rule L6).
    #[serde(default)]
    pub filter: FilterConfig,
    /// Training augmentation.
    #[serde(default)]
    pub aug_cfg: AugmentationConfig,
}

/// Which of the captions that `text_key` names is taken. Several in one entry (a JSON array) are always drawn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptionDraw {
    /// The first entry of `text_key` that the sample has.
    #[default]
    First,
    /// Any that it has, drawn anew at every position by `caption_weights`.
    Weighted,
}

/// Which samples are kept when the index is made. A sample must meet all that is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FilterConfig {
    /// File with one id per line; relative to the job file's folder.
    pub ids: Option<String>,
    /// Field of the sample's JSON that holds its id; its key in the shard by default.
    pub id_field: Option<String>,
    /// Fewest and most characters of the caption.
    pub caption_chars: Option<[u32; 2]>,
    /// Conditions on fields of the sample's JSON, as in `similarity >= 0.3`.
    pub conditions: Vec<String>,
}

/// One set of shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Name for people and for the ledger; `source-N` by default.
    #[serde(default)]
    pub name: String,
    /// Shards by brace pattern (`/data/{00000..00041}.tar`), folder, manifest, single file, or the same at an address
    /// (`s3://bucket/set/`); several joined by `::`. Relative to the job file's folder.
    pub shards: String,
}

/// open_clip's training transform.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentationConfig {
    /// Area of the random crop, as a share of the picture's.
    pub scale: [f64; 2],
    /// Aspect ratio of the random crop.
    pub ratio: [f64; 2],
    /// Brightness, contrast, saturation and hue strengths of open_clip's `color_jitter`; none by default.
    pub color_jitter: Option<[f64; 4]>,
    /// Probability of the colour jitter.
    pub color_jitter_prob: f64,
    /// Probability of a gray picture.
    pub gray_scale_prob: f64,
}

/// The optimisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Where the towers run: `cpu`, `cuda:N`, or `auto`, which is the CPU as long as no run on a GPU is on record.
    pub device: String,
    /// Where BatchNorm takes its statistics from: of every lane by itself, or of the whole batch as OpenCLIP on one device.
    pub batch_norm: BatchNorm,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecayRule {
    /// 2.x and 3.x: none for `ndim < 2` and for names with `bn`, `ln`, `bias` or `logit_scale`.
    #[default]
    Classic,
    /// 4.x: none for `ndim <= 1` and for position and class embeddings.
    Main,
}

/// Rows whose statistics BatchNorm uses in training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchNorm {
    /// Those of a lane, at least 8: the same on any number of workers.
    #[default]
    Lane,
    /// Those of the batch: one worker, without micro-batches.
    Batch,
}

/// The contrastive losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Softmax over the whole batch, both ways.
    #[default]
    Clip,
    /// Sigmoid of every pair, with a learned bias, as `--siglip`; the scale starts at 10 and the bias at -10.
    Siglip,
}

/// open_clip's names for `--precision`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduler {
    /// Half a cosine to zero at the end of the run.
    #[default]
    Cosine,
    /// Constant.
    Const,
}

/// How many workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkersConfig {
    /// Below this many the run waits.
    pub min: u32,
    /// As many as it wants.
    pub target: u32,
    /// Never more; members beyond the lanes are spares.
    pub max: u32,
}

/// When a checkpoint is taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Every so many positions; rounded up to whole steps. 0: not by positions.
    pub every_samples: u64,
    /// Every so many seconds since the last one. 0: not by time. Whichever comes first; always at the end.
    pub every_s: u64,
    /// Newest committed checkpoints that are kept; 0 keeps all.
    pub keep_last: u32,
    /// Of older ones the first at or behind every multiple of so many positions is kept for good; 0: none.
    pub keep_every_samples: u64,
    /// Where they lie: a folder or a URL, below which the run has a folder of its own name; `checkpoints/` of the run folder
    /// by default. May not change in a run.
    pub url: Option<String>,
}

impl CheckpointConfig {
    /// The place of the checkpoints of `run`, whose run folder is `run_dir`.
    #[must_use]
    pub fn location(&self, run_dir: &str, run: &str) -> String {
        match &self.url {
            Some(url) => format!("{}/{run}", url.trim_end_matches('/')),
            None => format!("{}/checkpoints", run_dir.trim_end_matches('/')),
        }
    }
}

/// Zero-shot evaluation of committed checkpoints, in processes of low priority.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationConfig {
    /// The first checkpoint behind every multiple of so many positions is evaluated; 0: every one. The last one always is.
    pub every_samples: u64,
    /// Threads of one evaluation.
    pub threads: u32,
    /// Rows that go through a tower at once.
    pub batch: u32,
    /// What is evaluated on; nothing by default.
    pub sets: Vec<EvaluationSet>,
}

/// One set of labelled pictures. Paths are relative to the job file's folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationSet {
    /// Name in results: `NAME-zeroshot-val-top1`.
    pub name: String,
    /// Shards; samples carry their class in a `.cls` member.
    pub data: String,
    /// File with the names of the classes, line i for class i, from 0.
    pub classes: String,
    /// File with prompts, one a line, `{}` for the class name.
    pub templates: String,
}

/// How long things may take before they count as failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FailureConfig {
    /// A worker silent for so long is gone; the other time-outs derive from it.
    pub failure_budget_ms: u64,
    /// Failures of workers by their own error in a row (without a step between) that end the run.
    pub worker_errors_max: u32,
}

impl Default for AugmentationConfig {
    fn default() -> Self {
        Self {
            scale: [0.9, 1.0],
            ratio: [0.75, 4.0 / 3.0],
            color_jitter: None,
            color_jitter_prob: 0.0,
            gray_scale_prob: 0.0,
        }
    }
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
            threads: None,
            deterministic: false,
            state_hash_steps: 100,
        }
    }
}

impl Default for WorkersConfig {
    fn default() -> Self {
        Self {
            min: 1,
            target: 1,
            max: 64,
        }
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            every_samples: 0,
            every_s: 0,
            keep_last: 3,
            keep_every_samples: 0,
            url: None,
        }
    }
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self {
            every_samples: 0,
            threads: 1,
            batch: 64,
            sets: Vec::new(),
        }
    }
}

impl Default for FailureConfig {
    fn default() -> Self {
        Self {
            failure_budget_ms: 5_000,
            worker_errors_max: 5,
        }
    }
}

fn default_image_key() -> String {
    "jpg;png;jpeg;webp".into()
}
fn default_text_key() -> String {
    "txt".into()
}
fn default_max_image_pixels() -> u64 {
    25_000_000
}
fn default_max_sample_bytes() -> u64 {
    64 << 20
}
fn default_window_factor() -> u32 {
    4
}
fn default_window_bytes_max() -> u64 {
    2 << 30
}

/// Largest job file that is read, in bytes.
pub const JOB_FILE_BYTES_MAX: usize = 1 << 20;

impl Job {
    /// Reads and checks a job file's text. `file` names it in errors.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the line or key, what was expected and, for an unknown key, the nearest known one.
    pub fn from_toml(file: &str, text: &str) -> Result<Self, ConfigError> {
        if text.len() > JOB_FILE_BYTES_MAX {
            return Err(ConfigError::TooLarge {
                file: file.into(),
                bytes: text.len(),
                bytes_max: JOB_FILE_BYTES_MAX,
            });
        }
        let value: toml::Table = text
            .parse()
            .map_err(|e: toml::de::Error| ConfigError::parse(file, text, &e))?;
        unknown::refuse_unknown_keys(file, text, &value)?;
        let mut job: Self = toml::from_str(text).map_err(|e| ConfigError::parse(file, text, &e))?;
        job.name_sources();
        check::check(file, &job)?;
        Ok(job)
    }

    /// Gives unnamed sources their default names.
    fn name_sources(&mut self) {
        for (i, source) in self.data.sources.iter_mut().enumerate() {
            if source.name.is_empty() {
                source.name = format!("source-{i}");
            }
        }
    }

    /// Digest of what decides the training: everything but the number of workers, the cadence of checkpoints, the budgets
    /// of failures and how a worker does its share, which may change without changing what is trained.
    #[must_use]
    pub fn config_hash(&self) -> u64 {
        let mut training = BTreeMap::new();
        let model = serde_json::to_value(&self.model).unwrap_or_default();
        let mut data = serde_json::to_value(&self.data).unwrap_or_default();
        let mut train = serde_json::to_value(&self.train).unwrap_or_default();
        let forget = |section: &mut serde_json::Value, key: &str| section.as_object_mut().and_then(|m| m.remove(key));
        if self.train.batch_norm == BatchNorm::Lane {
            // Jobs from before there was a choice keep their digest.
            forget(&mut train, "batch_norm");
        }
        // Only where bits are promised do they decide them.
        if !self.train.deterministic {
            forget(&mut train, "threads");
            forget(&mut train, "micro_batch");
            forget(&mut train, "device");
        }
        forget(&mut train, "state_hash_steps");
        forget(&mut train, "grad_checkpointing");
        forget(&mut data, "index");
        training.insert("model", model);
        training.insert("data", data);
        training.insert("train", train);
        training.insert("seed", self.seed.into());
        crate::hash::digest_json(&training)
    }
}

#[cfg(test)]
mod tests;
