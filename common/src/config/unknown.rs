//! Unknown keys: found before serde sees the file, so that the error can offer the nearest name and the line.

use super::ConfigError;
use super::check::line_of;
use toml::{Table, Value};

/// The known keys of every section; a test compares them with the structs.
const SECTIONS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "version",
            "name",
            "seed",
            "model",
            "data",
            "train",
            "workers",
            "checkpoint",
            "cache",
            "evaluation",
            "failure",
        ],
    ),
    (
        "model",
        &[
            "name",
            "config",
            "image_mean",
            "image_std",
            "force_quick_gelu",
            "pretrained",
            "pretrained_digest",
            "pretrained_tag",
            "pretrained_mismatch",
            "pretrained_image_path",
            "pretrained_text_path",
            "tokenizer",
        ],
    ),
    (
        "data",
        &[
            "sources",
            "train_num_samples",
            "image_key",
            "text_key",
            "index",
            "max_image_pixels",
            "max_sample_bytes",
            "window_factor",
            "window_bytes_max",
            "fast_decode",
            "resized_side",
            "caption_draw",
            "caption_weights",
            "filter",
            "aug_cfg",
        ],
    ),
    ("data.sources", &["name", "shards"]),
    ("data.filter", &["ids", "id_field", "caption_chars", "conditions"]),
    (
        "data.aug_cfg",
        &["scale", "ratio", "color_jitter", "color_jitter_prob", "gray_scale_prob"],
    ),
    (
        "train",
        &[
            "global_batch",
            "lanes",
            "epochs",
            "lr",
            "beta1",
            "beta2",
            "eps",
            "wd",
            "decay_rule",
            "warmup",
            "lr_scheduler",
            "grad_clip_norm",
            "loss",
            "image_layer_decay",
            "text_layer_decay",
            "ema_half_life_samples",
            "precision",
            "grad_checkpointing",
            "device",
            "batch_norm",
            "lock_image",
            "lock_image_unlocked_groups",
            "lock_image_freeze_bn_stats",
            "lock_text",
            "lock_text_unlocked_layers",
            "lock_text_freeze_layer_norm",
            "micro_batch",
            "threads",
            "deterministic",
            "state_hash_steps",
        ],
    ),
    ("workers", &["min", "target", "max"]),
    (
        "checkpoint",
        &["every_samples", "every_s", "keep_last", "keep_every_samples", "url"],
    ),
    ("cache", &["folder", "bytes_max", "free_bytes_min"]),
    ("evaluation", &["every_samples", "threads", "batch", "sets"]),
    ("evaluation.sets", &["name", "data", "classes", "templates"]),
    (
        "failure",
        &[
            "failure_budget_ms",
            "worker_errors_max",
            "nonfinite_max",
            "unreadable_after_s",
        ],
    ),
];

/// Refuses the first key that no section knows.
pub(super) fn refuse_unknown_keys(file: &str, text: &str, table: &Table) -> Result<(), ConfigError> {
    walk(file, text, "", table)
}

fn walk(file: &str, text: &str, section: &str, table: &Table) -> Result<(), ConfigError> {
    let Some((_, known)) = SECTIONS.iter().find(|(name, _)| *name == section) else {
        return Ok(()); // not a section of ours: serde will say which type was expected there
    };
    for (key, value) in table {
        if !known.contains(&key.as_str()) {
            let full = join(section, key);
            return Err(ConfigError::UnknownKey {
                file: file.into(),
                line: line_of_key(text, key),
                nearest: nearest(key, known).map(|n| join(section, n)),
                key: full,
            });
        }
        let inner = join(section, key);
        match value {
            Value::Table(t) => walk(file, text, &inner, t)?,
            Value::Array(items) => {
                for item in items {
                    if let Value::Table(t) = item {
                        walk(file, text, &inner, t)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn join(section: &str, key: &str) -> String {
    if section.is_empty() {
        key.into()
    } else {
        format!("{section}.{key}")
    }
}

/// The known name most like `key`, if any is like it at all.
#[must_use]
pub fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(key, candidate), *candidate))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// First line where `key` stands before an equals sign, in an inline table or in a section's header.
fn line_of_key(text: &str, key: &str) -> usize {
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let code = line.split('#').next().unwrap_or("");
        let before_equals = code.split('=').any(|part| {
            part.rsplit(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-'))
                .find(|s| !s.is_empty())
                == Some(key)
        });
        if before_equals || code.trim().trim_matches(['[', ']']).split('.').any(|s| s.trim() == key) {
            return line_of(text, offset);
        }
        offset += line.len();
    }
    0
}

/// Keys as the structs have them, for the test that keeps the table true.
#[cfg(test)]
pub(super) fn keys_of_structs() -> Vec<(&'static str, Vec<String>)> {
    use crate::config::{
        AugmentationConfig, CacheConfig, CaptionDraw, CheckpointConfig, DataConfig, EvaluationConfig, EvaluationSet,
        FailureConfig, FilterConfig, ModelConfig, Source, TrainConfig, WorkersConfig,
    };
    fn keys<T: serde::Serialize>(value: &T) -> Vec<String> {
        let json = serde_json::to_value(value).expect("our structs serialise");
        json.as_object().expect("structs are objects").keys().cloned().collect()
    }
    let source = Source {
        name: "s".into(),
        shards: "x".into(),
    };
    let data = DataConfig {
        sources: vec![source.clone()],
        train_num_samples: None,
        image_key: String::new(),
        text_key: String::new(),
        index: None,
        max_image_pixels: 0,
        max_sample_bytes: 0,
        window_factor: 0,
        window_bytes_max: 0,
        fast_decode: false,
        resized_side: Some(0),
        caption_draw: CaptionDraw::First,
        caption_weights: Vec::new(),
        filter: FilterConfig::default(),
        aug_cfg: AugmentationConfig::default(),
    };
    let set = EvaluationSet {
        name: String::new(),
        data: String::new(),
        classes: String::new(),
        templates: String::new(),
    };
    // Keys that are left out at their default are set.
    let word = || Some(String::new());
    let model = ModelConfig {
        pretrained_tag: word(),
        pretrained_mismatch: true,
        pretrained_image_path: word(),
        pretrained_text_path: word(),
        tokenizer: word(),
        ..ModelConfig::default()
    };
    let train = TrainConfig {
        lock_image: true,
        lock_image_unlocked_groups: 1,
        lock_image_freeze_bn_stats: true,
        lock_text: true,
        lock_text_unlocked_layers: 1,
        lock_text_freeze_layer_norm: Some(true),
        ..TrainConfig::default()
    };
    vec![
        ("model", keys(&model)),
        ("data", keys(&data)),
        ("data.sources", keys(&source)),
        ("data.filter", keys(&FilterConfig::default())),
        ("data.aug_cfg", keys(&AugmentationConfig::default())),
        ("train", keys(&train)),
        ("workers", keys(&WorkersConfig::default())),
        ("checkpoint", keys(&CheckpointConfig::default())),
        ("cache", keys(&CacheConfig::default())),
        ("evaluation", keys(&EvaluationConfig::default())),
        ("evaluation.sets", keys(&set)),
        ("failure", keys(&FailureConfig::default())),
    ]
}

#[cfg(test)]
pub(super) fn known_keys(section: &str) -> Vec<String> {
    let mut keys: Vec<String> = SECTIONS
        .iter()
        .filter(|(name, _)| *name == section)
        .flat_map(|(_, keys)| keys.iter().map(ToString::to_string))
        .collect();
    keys.sort();
    keys
}
