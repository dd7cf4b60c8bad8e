//! Checks of the fields of a job, each error naming the key, the value and what was expected.

use super::tree::Node;
use super::{BatchNorm, Job};
use crate::shape::LANES_MAX;

/// Why a job file was refused.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ConfigError {
    /// A text that is not in its format, or a value of the wrong type.
    #[error("{place}: {message}")]
    Parse {
        /// The job file and the line, a variable or a flag.
        place: String,
        /// What is wrong there.
        message: String,
    },
    /// A key nobody knows.
    #[error("{place}: unknown key `{key}`{}", hint.as_ref().map(|n| format!("; {n}")).unwrap_or_default())]
    UnknownKey {
        /// Where it was said.
        place: String,
        /// The key with its section.
        key: String,
        /// The nearest known key, or what stands in its place.
        hint: Option<String>,
    },
    /// A value that cannot be meant.
    #[error("{place}: `{key}` is {value}, expected {expected}")]
    Value {
        /// Where it was said; the file alone where a default meets what was said elsewhere.
        place: String,
        /// The key with its section.
        key: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        expected: String,
    },
    /// What lies over the job file does not fit it.
    #[error("{place}: {message}")]
    Layer {
        /// The variable or flag.
        place: String,
        /// What is wrong with it.
        message: String,
    },
    /// A file too large to be a job.
    #[error("{file}: {bytes} bytes is too large for a job file, at most {bytes_max} are read")]
    TooLarge {
        /// The job file.
        file: String,
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
}

impl ConfigError {
    /// The same with the place at which the key, or else its section, was said.
    pub(super) fn located(mut self, said: &Node) -> Self {
        if let Self::Value { place, key, .. } = &mut self
            && let Some(found) = said.nearest_place(key)
        {
            *place = found.to_string();
        }
        self
    }
}

/// Makes the error of a key of `file` whose value is not what is expected.
pub(super) fn refuser(file: &str) -> impl Fn(&'static str, String, &str) -> Result<(), ConfigError> {
    move |key, value, expected| {
        Err(ConfigError::Value {
            place: file.into(),
            key,
            value,
            expected: expected.into(),
        })
    }
}

/// Checks every field against its limits; the first that fails is the error.
pub(super) fn check(file: &str, job: &Job) -> Result<(), ConfigError> {
    let refuse = refuser(file);
    if job.version != 1 {
        return refuse(
            "version",
            job.version.to_string(),
            "1, the only version this Argosy reads",
        );
    }
    let name_ok = |n: &str| {
        !n.is_empty()
            && n.len() <= 100
            && !n.starts_with('.')
            && n.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    if !name_ok(&job.name) {
        return refuse(
            "name",
            format!("{:?}", job.name),
            "1 to 100 letters, digits, `-`, `_` or `.`",
        );
    }
    check_locks(file, job)?;
    check_names(file, job)?;
    check_pixels(file, job)?;
    if job.model.name.is_empty() && job.model.config.is_none() && job.model.pretrained.is_none() {
        return refuse(
            "model.name",
            "empty".into(),
            "the name of a built-in model, `model.config` with a path, or `model.pretrained` with a folder",
        );
    }
    if job.data.sources.is_empty() {
        return refuse("data.sources", "empty".into(), "at least one source with `shards`");
    }
    if job.data.sources.len() > 1 && job.data.train_num_samples.is_none() {
        return refuse(
            "data.train_num_samples",
            "missing".into(),
            "the positions of one epoch, as there are several sources",
        );
    }
    if job.data.train_num_samples == Some(0) {
        return refuse("data.train_num_samples", "0".into(), "at least 1");
    }
    if !(1..=4096).contains(&job.data.window_factor) {
        return refuse("data.window_factor", job.data.window_factor.to_string(), "1 to 4096");
    }
    super::budgets::check(file, job)?;
    if let Some(url) = &job.checkpoint.url {
        refuse_credentials(file, "checkpoint.url", url)?;
    }
    super::cache::check(file, job)?;
    check_captions(file, job)?;
    check_augmentation(file, job)?;
    check_evaluation(file, job)?;
    check_train(file, job)?;
    let w = &job.workers;
    if job.train.batch_norm == BatchNorm::Batch && w.max > 1 {
        let expected = format!("lane, or workers.max = 1 (now {})", w.max);
        return refuse("train.batch_norm", "batch".into(), &expected);
    }
    if w.min == 0 || w.min > w.target || w.target > w.max || w.max > 100_000 {
        let value = format!("min {} target {} max {}", w.min, w.target, w.max);
        return refuse("workers", value, "1 <= min <= target <= max <= 100000");
    }
    if !(500..=600_000).contains(&job.failure.failure_budget_ms) {
        let value = job.failure.failure_budget_ms.to_string();
        return refuse(
            "failure.failure_budget_ms",
            value,
            "500 to 600000 (heartbeats are a tenth of it)",
        );
    }
    if !(1..=30 * 86_400).contains(&job.failure.unreadable_after_s) {
        let value = job.failure.unreadable_after_s.to_string();
        return refuse("failure.unreadable_after_s", value, "1 to 2592000, thirty days");
    }
    Ok(())
}

/// Names of sources stand in ledgers and on pages, and two of one name could not be told apart there.
fn check_names(file: &str, job: &Job) -> Result<(), ConfigError> {
    let refuse = refuser(file);
    let sources = &job.data.sources;
    for (i, source) in sources.iter().enumerate() {
        let name = &source.name;
        let plain = |c: char| c.is_alphanumeric() || "-_. ".contains(c);
        if name.is_empty() || name.chars().count() > 100 || name.starts_with('.') || !name.chars().all(plain) {
            let expected = "1 to 100 letters, digits, spaces, `-`, `_` or `.`";
            return refuse("data.sources.name", format!("{name:?}"), expected);
        }
        if sources[..i].iter().any(|other| other.name == *name) {
            return refuse(
                "data.sources.name",
                format!("{name:?} twice"),
                "another name for each source",
            );
        }
        refuse_credentials(file, "data.sources.shards", &source.shards)?;
        if source.shards.trim().is_empty() {
            return refuse(
                "data.sources.shards",
                "empty".into(),
                "a pattern, a folder, a manifest or an address",
            );
        }
    }
    Ok(())
}

/// Addresses stand in records, logs and manifests. The error does not repeat it.
fn refuse_credentials(file: &str, key: &'static str, address: &str) -> Result<(), ConfigError> {
    if crate::secret::in_address(address) {
        let expected = "one without them: credentials come from the environment (AWS_*, GOOGLE_*, AZURE_*)";
        return refuser(file)(key, "an address with credentials in it".into(), expected);
    }
    Ok(())
}

/// Pixels are divided by the deviation.
fn check_pixels(file: &str, job: &Job) -> Result<(), ConfigError> {
    let (mean, std) = (job.model.image_mean, job.model.image_std);
    let refuse = refuser(file);
    if let Some(mean) = mean.filter(|m| m.iter().any(|v| !v.is_finite())) {
        return refuse("model.image_mean", format!("{mean:?}"), "three finite numbers");
    }
    if let Some(std) = std.filter(|s| s.iter().any(|v| !v.is_finite() || *v <= 0.0)) {
        return refuse("model.image_std", format!("{std:?}"), "three finite numbers above 0");
    }
    Ok(())
}

/// What is said of a locked tower without locking it would do nothing, which nobody wants.
fn check_locks(file: &str, job: &Job) -> Result<(), ConfigError> {
    let t = &job.train;
    let refuse = refuser(file);
    let (groups, layers) = (t.lock_image_unlocked_groups, t.lock_text_unlocked_layers);
    for (key, set, value, locked, with) in [
        (
            "train.lock_image_unlocked_groups",
            groups > 0,
            groups.to_string(),
            t.lock_image,
            "lock_image",
        ),
        (
            "train.lock_image_freeze_bn_stats",
            t.lock_image_freeze_bn_stats,
            "true".into(),
            t.lock_image,
            "lock_image",
        ),
        (
            "train.lock_text_unlocked_layers",
            layers > 0,
            layers.to_string(),
            t.lock_text,
            "lock_text",
        ),
    ] {
        if set && !locked {
            return refuse(key, value, &format!("train.{with} = true as well"));
        }
    }
    if t.lock_text_freeze_layer_norm == Some(false) {
        let expected = "true, or the key left out: norms of a locked text tower are locked like its other weights";
        return refuse("train.lock_text_freeze_layer_norm", "false".into(), expected);
    }
    Ok(())
}

fn check_captions(file: &str, job: &Job) -> Result<(), ConfigError> {
    let data = &job.data;
    let refuse = refuser(file);
    let entries = data.text_key.split(';').filter(|k| !k.trim().is_empty()).count();
    if entries == 0 {
        return refuse(
            "data.text_key",
            format!("{:?}", data.text_key),
            "a suffix like `txt`, or `json:FIELD`",
        );
    }
    let weights = &data.caption_weights;
    let good = weights.iter().all(|w| w.is_finite() && *w >= 0.0) && weights.iter().sum::<f64>() > 0.0;
    if !weights.is_empty() && (weights.len() != entries || !good || data.caption_draw != super::CaptionDraw::Weighted) {
        let expected =
            format!("{entries} numbers >= 0, one per entry of data.text_key, with caption_draw = \"weighted\"");
        return refuse("data.caption_weights", format!("{weights:?}"), &expected);
    }
    if let Some([low, high]) = data.filter.caption_chars
        && low > high
    {
        return refuse(
            "data.filter.caption_chars",
            format!("[{low}, {high}]"),
            "fewest, then most characters",
        );
    }
    if data.filter.id_field.is_some() && data.filter.ids.is_none() {
        return refuse(
            "data.filter.id_field",
            "without data.filter.ids".into(),
            "a list of ids as well",
        );
    }
    Ok(())
}

fn check_augmentation(file: &str, job: &Job) -> Result<(), ConfigError> {
    let aug = &job.data.aug_cfg;
    let refuse = refuser(file);
    let ordered = |r: &[f64; 2]| r.iter().all(|v| v.is_finite()) && r[0] > 0.0 && r[0] <= r[1];
    if !ordered(&aug.scale) || aug.scale[1] > 1.0 {
        return refuse(
            "data.aug_cfg.scale",
            format!("{:?}", aug.scale),
            "two numbers 0 < a <= b <= 1",
        );
    }
    if !ordered(&aug.ratio) {
        return refuse(
            "data.aug_cfg.ratio",
            format!("{:?}", aug.ratio),
            "two numbers 0 < a <= b",
        );
    }
    for (key, p) in [
        ("data.aug_cfg.color_jitter_prob", aug.color_jitter_prob),
        ("data.aug_cfg.gray_scale_prob", aug.gray_scale_prob),
    ] {
        if !(0.0..=1.0).contains(&p) {
            return refuse(key, p.to_string(), "a probability between 0 and 1");
        }
    }
    if let Some(jitter) = aug.color_jitter
        && (jitter.iter().any(|v| !v.is_finite() || *v < 0.0) || jitter[3] > 0.5)
    {
        return refuse(
            "data.aug_cfg.color_jitter",
            format!("{jitter:?}"),
            "four numbers >= 0, the hue at most 0.5",
        );
    }
    Ok(())
}

fn check_evaluation(file: &str, job: &Job) -> Result<(), ConfigError> {
    let e = &job.evaluation;
    let refuse = refuser(file);
    if !(1..=1024).contains(&e.threads) {
        return refuse("evaluation.threads", e.threads.to_string(), "1 to 1024");
    }
    if !(1..=65_536).contains(&e.batch) {
        return refuse("evaluation.batch", e.batch.to_string(), "1 to 65536 rows");
    }
    // Names become names of metrics, and two of one name would write over each other.
    for (i, set) in e.sets.iter().enumerate() {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if set.name.is_empty() || set.name.len() > 100 || !set.name.chars().all(plain) {
            let value = format!("{:?}", set.name);
            return refuse(
                "evaluation.sets.name",
                value,
                "1 to 100 letters, digits, `-`, `_` or `.`",
            );
        }
        if e.sets[..i].iter().any(|other| other.name == set.name) {
            let value = format!("{:?} twice", set.name);
            return refuse("evaluation.sets.name", value, "another name for each set");
        }
        for (key, value) in [
            ("evaluation.sets.data", &set.data),
            ("evaluation.sets.classes", &set.classes),
            ("evaluation.sets.templates", &set.templates),
        ] {
            if value.is_empty() {
                return refuse(key, "empty".into(), "a path");
            }
            refuse_credentials(file, key, value)?;
        }
    }
    Ok(())
}

fn check_train(file: &str, job: &Job) -> Result<(), ConfigError> {
    let t = &job.train;
    let refuse = refuser(file);
    if !(2..=4_194_304).contains(&t.global_batch) {
        return refuse("train.global_batch", t.global_batch.to_string(), "2 to 4194304 rows");
    }
    if let Some(lanes) = t.lanes
        && (lanes == 0 || lanes > LANES_MAX || !t.global_batch.is_multiple_of(lanes))
    {
        let expected = format!(
            "a divisor of train.global_batch ({}), at most {LANES_MAX}",
            t.global_batch
        );
        return refuse("train.lanes", lanes.to_string(), &expected);
    }
    if t.epochs == 0 {
        return refuse("train.epochs", "0".into(), "at least 1");
    }
    if t.batch_norm == BatchNorm::Batch && (t.micro_batch.is_some() || t.deterministic) {
        let expected =
            "lane: statistics of the whole batch need it whole, without train.micro_batch or train.deterministic";
        return refuse("train.batch_norm", "batch".into(), expected);
    }
    if t.micro_batch == Some(0) {
        return refuse("train.micro_batch", "0".into(), "at least 1 row");
    }
    if t.threads.is_some_and(|n| !(1..=1024).contains(&n)) {
        return refuse("train.threads", format!("{:?}", t.threads.unwrap_or(0)), "1 to 1024");
    }
    let numbers: [(&'static str, f64, f64, f64); 5] = [
        ("train.lr", t.lr, 0.0, 100.0),
        ("train.beta1", t.beta1, 0.0, 0.999_999_999),
        ("train.beta2", t.beta2, 0.0, 0.999_999_999),
        ("train.eps", t.eps, f64::MIN_POSITIVE, 1.0),
        ("train.wd", t.wd, 0.0, 1000.0),
    ];
    for (key, value, low, high) in numbers {
        if !(low..=high).contains(&value) {
            return refuse(
                key,
                value.to_string(),
                &format!("a finite number between {low:e} and {high}"),
            );
        }
    }
    for (key, decay) in [
        ("train.image_layer_decay", t.image_layer_decay),
        ("train.text_layer_decay", t.text_layer_decay),
    ] {
        if let Some(value) = decay.filter(|d| !(f64::MIN_POSITIVE..=1.0).contains(d)) {
            return refuse(key, value.to_string(), "a number above 0 and at most 1");
        }
    }
    if t.ema_half_life_samples == Some(0) {
        return refuse(
            "train.ema_half_life_samples",
            "0".into(),
            "at least 1 position; leave the key out for no average",
        );
    }
    let device_ok = |d: &str| {
        d == "auto"
            || d == "cpu"
            || d.strip_prefix("cuda:")
                .is_some_and(|n| n.len() <= 3 && n.parse::<u8>().is_ok())
    };
    if !device_ok(&t.device) {
        return refuse(
            "train.device",
            format!("{:?}", t.device),
            "\"auto\", \"cpu\" or \"cuda:N\"",
        );
    }
    if t.grad_clip_norm.is_some_and(|v| !v.is_finite() || v <= 0.0) {
        return refuse(
            "train.grad_clip_norm",
            format!("{:?}", t.grad_clip_norm.unwrap_or(0.0)),
            "a number above 0",
        );
    }
    Ok(())
}
