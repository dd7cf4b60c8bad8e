//! The job file: what a user writes, checked before anything starts.
//!
//! TOML, YAML or JSON of one schema, `version = 1`. Unknown keys are refused with the nearest known name. OpenCLIP's flag
//! names where they exist.

mod budgets;
mod cache;
mod check;
mod data;
mod layers;
mod schema;
mod train;
mod tree;
mod unknown;

pub use budgets::{BudgetsConfig, ErrorKind};
pub use cache::CacheConfig;
pub use check::ConfigError;
pub use data::{AugmentationConfig, CaptionDraw, DataConfig, FilterConfig, Source};
pub use layers::{JOB_VARIABLES, Layers, Setting, SettledJob};
pub use train::{BatchNorm, DecayRule, Loss, LrScheduler, Precision, TrainConfig};
pub use tree::{JobFormat, Node, Place};
pub use unknown::nearest;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A whole job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Version of this format; 1.
    pub version: u32,
    /// Name for people; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// In a coordinator's queue jobs of a higher priority go first, and may take the place of lower ones.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
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
    /// How often a coordinator's queue tries it again.
    #[serde(default, skip_serializing_if = "BudgetsConfig::is_default")]
    pub budgets: BudgetsConfig,
}

/// Which model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// Start from the weights in this folder (`open_clip_model.safetensors` beside `open_clip_config.json`) or file
    /// (safetensors, or what PyTorch saved), as `--pretrained`; a folder's configuration is used when neither `name` nor
    /// `config` says another.
    pub pretrained: Option<String>,
    /// Digest of those weights, of the towers' and of the tokenizer's; written by `argosy run`, so that a run goes on with
    /// what it began with.
    pub pretrained_digest: Option<String>,
    /// open_clip's tag of those weights, where the file does not tell: what they were trained with is then checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretrained_tag: Option<String>,
    /// Takes the weights even where activation, normalisation or tokenizer are not those that they were trained with.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pretrained_mismatch: bool,
    /// Weights of the image tower alone, loaded behind `pretrained`: a file of the tower or of a whole model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretrained_image_path: Option<String>,
    /// The same for the text tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretrained_text_path: Option<String>,
    /// A `tokenizer.json` that makes ids of captions, for a model whose configuration names a tokenizer of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
}

/// How many workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FailureConfig {
    /// A worker silent for so long is gone; the other time-outs derive from it.
    pub failure_budget_ms: u64,
    /// Failures of workers by their own error in a row (without a step between) that end the run.
    pub worker_errors_max: u32,
    /// Steps in a row that are passed over because their numbers are not finite, before the run ends.
    pub nonfinite_max: u32,
    /// Rows that no worker could read for so many seconds are given up, although two have not tried. They are given up at
    /// once when two workers failed at them; never for what is wrong with credentials, network or store.
    pub unreadable_after_s: u64,
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
            nonfinite_max: 3,
            unreadable_after_s: 600,
        }
    }
}

/// Largest job file that is read, in bytes.
pub const JOB_FILE_BYTES_MAX: usize = 1 << 20;

impl Job {
    /// Reads and checks a text in TOML as it is, whatever the name of the file.
    ///
    /// # Errors
    /// As [`Job::read`].
    pub fn from_toml(file: &str, text: &str) -> Result<Self, ConfigError> {
        Self::read_as(file, text, JobFormat::Toml, &Layers::default()).map(|settled| settled.job)
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

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests;
