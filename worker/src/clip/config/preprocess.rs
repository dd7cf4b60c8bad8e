//! `preprocess_cfg`: how pictures become inputs.

use super::{ConfigError, Result};
use argosy_shard_loader::resize::Filter;
use argosy_shard_loader::transform::{Resize, ResizeMode};
use serde_json::Value;

/// How pictures become inputs: resized, then `(x/255 - mean) / std` per channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preprocess {
    pub mean: [f64; 3],
    pub std: [f64; 3],
    /// How an evaluation picture comes to its size; training crops at random and takes the bicubic filter whatever stands
    /// here, as in OpenCLIP.
    pub resize: Resize,
}

/// OpenCLIP's name of each way to resize.
const RESIZE_MODES: [(&str, ResizeMode); 3] = [
    ("shortest", ResizeMode::Shortest),
    ("longest", ResizeMode::Longest { fill: 0 }),
    ("squash", ResizeMode::Squash),
];
/// OpenCLIP's name of each filter. Its third, `random`, evaluates with the first.
const INTERPOLATIONS: [(&str, Filter); 2] = [("bicubic", Filter::Bicubic), ("bilinear", Filter::Bilinear)];

fn interpolation(filter: Filter) -> &'static str {
    let named = INTERPOLATIONS.iter().find(|(_, own)| *own == filter);
    named.map_or(INTERPOLATIONS[0].0, |(name, _)| name)
}

impl Preprocess {
    /// As `preprocess_cfg` in a published model's configuration.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let same = |mode: ResizeMode| std::mem::discriminant(&mode) == std::mem::discriminant(&self.resize.mode);
        let mode = RESIZE_MODES.iter().find(|(_, mode)| same(*mode));
        let fill = match self.resize.mode {
            ResizeMode::Longest { fill } => fill,
            ResizeMode::Shortest | ResizeMode::Squash => 0,
        };
        serde_json::json!({
            "mean": self.mean, "std": self.std, "interpolation": interpolation(self.resize.filter), "fill_color": fill,
            "resize_mode": mode.map(|(name, _)| name),
        })
    }
}

impl Default for Preprocess {
    /// OpenAI's constants, the default of OpenCLIP.
    fn default() -> Self {
        Self {
            mean: [0.48145466, 0.4578275, 0.40821073],
            std: [0.26862954, 0.26130258, 0.27577711],
            resize: Resize::default(),
        }
    }
}

/// Reads `preprocess_cfg`; what it leaves out is OpenAI's.
pub(super) fn preprocess(value: Option<&Value>) -> Result<Preprocess> {
    let unsupported = |key: &str, value: &Value, why: &str| ConfigError::Unsupported {
        key: format!("preprocess_cfg.{key}"),
        value: value.to_string(),
        why: why.into(),
    };
    let mut out = Preprocess::default();
    let Some(value) = value else { return Ok(out) };
    for (key, slot) in [("mean", &mut out.mean), ("std", &mut out.std)] {
        let Some(list) = value.get(key) else { continue };
        let numbers: Vec<f64> = list
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_f64)
            .collect();
        *slot = numbers.try_into().map_err(|_| ConfigError::Invalid {
            key: format!("preprocess_cfg.{key}"),
            why: format!("three numbers expected, got {list}"),
        })?;
    }
    if out.std.iter().any(|s| *s <= 0.0) {
        let why = format!("must be positive, got {:?}", out.std);
        return Err(ConfigError::Invalid {
            key: "preprocess_cfg.std".into(),
            why,
        });
    }
    if let Some(mode) = value.get("resize_mode").filter(|v| !v.is_null()) {
        let known = RESIZE_MODES.iter().find(|(name, _)| mode == name);
        let why = "Argosy evaluates with shortest, longest or squash";
        out.resize.mode = known.ok_or_else(|| unsupported("resize_mode", mode, why))?.1;
    }
    if let Some(color) = value.get("fill_color").filter(|v| !v.is_null()) {
        let number = color.as_u64().and_then(|n| u8::try_from(n).ok());
        let wanted =
            number.ok_or_else(|| unsupported("fill_color", color, "Argosy fills with one number from 0 to 255"))?;
        if let ResizeMode::Longest { fill } = &mut out.resize.mode {
            *fill = wanted;
        }
    }
    if let Some(filter) = value.get("interpolation").filter(|v| !v.is_null()) {
        let known = INTERPOLATIONS.iter().find(|(name, _)| filter == name);
        let why = "Argosy evaluates with bicubic or bilinear";
        out.resize.filter = known.ok_or_else(|| unsupported("interpolation", filter, why))?.1;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::ModelConfig;

    #[test]
    fn preprocess_resize_mode_is_read_and_written_and_others_are_refused() {
        let read = |preprocess: &str| {
            let json = format!(
                r#"{{"model_cfg": {{"embed_dim": 8, "vision_cfg": {{}}, "text_cfg": {{}}}}, "preprocess_cfg": {preprocess}}}"#
            );
            ModelConfig::from_json(&json)
        };
        for (filter, expected) in [("bicubic", Filter::Bicubic), ("bilinear", Filter::Bilinear)] {
            let (_, pre) = read(&format!(r#"{{"interpolation": "{filter}"}}"#)).unwrap();
            assert_eq!(pre.resize.filter, expected);
            assert_eq!(read(&pre.to_json().to_string()).unwrap().1, pre);
        }
        for (mode, expected) in [
            ("null", ResizeMode::Shortest),
            (r#""shortest""#, ResizeMode::Shortest),
            (r#""squash""#, ResizeMode::Squash),
            (r#""longest""#, ResizeMode::Longest { fill: 0 }),
            (r#""longest", "fill_color": 7"#, ResizeMode::Longest { fill: 7 }),
        ] {
            let (_, pre) = read(&format!(r#"{{"resize_mode": {mode}, "interpolation": "bicubic"}}"#)).unwrap();
            assert_eq!(pre.resize.mode, expected);
            assert_eq!(read(&pre.to_json().to_string()).unwrap().1, pre);
        }
        for (preprocess, key) in [
            (r#"{"resize_mode": "widest"}"#, "preprocess_cfg.resize_mode"),
            (r#"{"fill_color": 300}"#, "preprocess_cfg.fill_color"),
            (r#"{"fill_color": [1, 2, 3]}"#, "preprocess_cfg.fill_color"),
            (r#"{"resize_mode": 1}"#, "preprocess_cfg.resize_mode"),
            (r#"{"interpolation": "nearest"}"#, "preprocess_cfg.interpolation"),
        ] {
            let error = read(preprocess).unwrap_err().to_string();
            assert!(error.contains(key), "{error} does not name {key}");
        }
    }
}
