//! `preprocess_cfg`: how pictures become inputs.

use super::Result;
use super::keys::{Keys, object};
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
        serde_json::json!({
            "mean": self.mean, "std": self.std, "interpolation": interpolation(self.resize.filter), "fill_color": self.fill(),
            "resize_mode": mode.map(|(name, _)| name),
        })
    }

    /// What `cfg`, a `preprocess_cfg`, makes of this one: what it leaves out, or says `null` of, stays (open_clip 3.3.0,
    /// `merge_preprocess_dict`). `image_size` is the model's, where it is known.
    ///
    /// # Errors
    /// Names the key that is unknown, misshapen or not built.
    pub fn overlaid(mut self, cfg: &Value, image_size: Option<i64>) -> Result<Self> {
        if cfg.is_null() {
            return Ok(self);
        }
        let mut keys = Keys::new("preprocess_cfg.", object("preprocess_cfg", cfg)?);
        for (key, slot) in [("mean", &mut self.mean), ("std", &mut self.std)] {
            let value = keys.take(key);
            if !value.is_null() {
                *slot = channels(&keys, key, value)?;
            }
        }
        if self.std.iter().any(|s| *s <= 0.0) {
            return Err(keys.invalid("std", format!("must be positive, got {:?}", self.std)));
        }
        self.overlay_resize(&mut keys)?;
        let size = keys.take("size");
        if !size.is_null() && !is_size(size, image_size) {
            let own = image_size.map_or_else(
                || "a square's side".into(),
                |side| format!("the model's image_size {side}"),
            );
            return Err(keys.invalid("size", format!("{own} expected, got {size}")));
        }
        if keys.text("mode", "RGB")? != "RGB" {
            return Err(keys.unsupported("mode", "pictures are RGB, in OpenCLIP too"));
        }
        keys.finish(&Value::Null)?;
        Ok(self)
    }

    fn overlay_resize(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let mut fill = self.fill();
        let (mode, color, filter) = (
            keys.take("resize_mode"),
            keys.take("fill_color"),
            keys.take("interpolation"),
        );
        if !mode.is_null() {
            let known = RESIZE_MODES.iter().find(|(name, _)| mode == name);
            let refused = || keys.unsupported("resize_mode", "Argosy evaluates with shortest, longest or squash");
            self.resize.mode = known.ok_or_else(refused)?.1;
        }
        if !color.is_null() {
            let number = color.as_u64().and_then(|n| u8::try_from(n).ok());
            let refused = || keys.unsupported("fill_color", "Argosy fills with one number from 0 to 255");
            fill = number.ok_or_else(refused)?;
        }
        if let ResizeMode::Longest { fill: own } = &mut self.resize.mode {
            *own = fill;
        }
        if !filter.is_null() {
            let known = INTERPOLATIONS.iter().find(|(name, _)| filter == name);
            let refused = || keys.unsupported("interpolation", "Argosy evaluates with bicubic or bilinear");
            self.resize.filter = known.ok_or_else(refused)?.1;
        }
        Ok(())
    }

    /// How pictures come to their size, in OpenCLIP's words.
    #[must_use]
    pub fn resize_words(&self) -> String {
        let json = self.to_json();
        let word = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        let fill = match self.resize.mode {
            ResizeMode::Longest { fill } => format!(" filled with {fill}"),
            ResizeMode::Shortest | ResizeMode::Squash => String::new(),
        };
        format!("{} {}{fill}", word("interpolation"), word("resize_mode"))
    }

    /// What pictures that are not square are filled up with.
    fn fill(&self) -> u8 {
        match self.resize.mode {
            ResizeMode::Longest { fill } => fill,
            ResizeMode::Shortest | ResizeMode::Squash => 0,
        }
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

/// OpenCLIP's three numbers, or one for all channels.
fn channels(keys: &Keys<'_>, key: &str, value: &Value) -> Result<[f64; 3]> {
    let numbers: Option<Vec<f64>> = match value {
        Value::Array(list) => list.iter().map(Value::as_f64).collect(),
        other => other.as_f64().map(|all| vec![all; 3]),
    };
    let three = numbers.and_then(|numbers| numbers.try_into().ok());
    three.ok_or_else(|| keys.invalid(key, format!("three numbers expected, got {value}")))
}

/// Whether a `size`, one number or height and width, is the model's `image_size` (a square where that is not known).
fn is_size(value: &Value, image_size: Option<i64>) -> bool {
    let sides: Vec<Option<i64>> = match value {
        Value::Array(list) => list.iter().map(Value::as_i64).collect(),
        other => vec![other.as_i64()],
    };
    let first = sides.first().copied().flatten();
    let wanted = image_size.or(first);
    (1..=2).contains(&sides.len()) && wanted.is_some() && sides.iter().all(|side| *side == wanted)
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
            (r#"{"mean": [0.1, "a", 0.2, 0.3]}"#, "preprocess_cfg.mean"),
            (r#"{"std": [0.1, 0.0, 0.2]}"#, "preprocess_cfg.std"),
            (r#"{"size": 336}"#, "preprocess_cfg.size"),
            (r#"{"size": [224, 336]}"#, "preprocess_cfg.size"),
            (r#"{"mode": "L"}"#, "preprocess_cfg.mode"),
            (r#"{"interpolatoin": "bicubic"}"#, "did you mean interpolation"),
            (r#"[0.5]"#, "preprocess_cfg"),
        ] {
            let error = read(preprocess).unwrap_err().to_string();
            assert!(error.contains(key), "{error} does not name {key}");
        }
    }

    #[test]
    fn preprocess_that_open_clip_wrote_is_read_whole_and_what_is_null_stays() {
        let json = r#"{"model_cfg": {"embed_dim": 8, "vision_cfg": {"image_size": 256}, "text_cfg": {}}, "preprocess_cfg":
            {"size": [256, 256], "mode": "RGB", "mean": 0.5, "std": [0.5, 0.5, 0.25], "interpolation": "bilinear",
            "resize_mode": "squash", "fill_color": 0}}"#;
        let (_, read) = ModelConfig::from_json(json).unwrap();
        let want = Preprocess {
            mean: [0.5; 3],
            std: [0.5, 0.5, 0.25],
            resize: Resize {
                mode: ResizeMode::Squash,
                filter: Filter::Bilinear,
            },
        };
        assert_eq!(read, want);
        let nulls = serde_json::json!({"size": null, "mode": null, "mean": null, "std": null, "interpolation": null,
            "resize_mode": null, "fill_color": null});
        assert_eq!(want.overlaid(&nulls, Some(224)), Ok(want));
        assert_eq!(want.overlaid(&serde_json::json!({"size": 224}), None), Ok(want));
        let filled = Preprocess {
            resize: Resize {
                mode: ResizeMode::Longest { fill: 9 },
                ..want.resize
            },
            ..want
        };
        assert_eq!(
            filled.overlaid(&serde_json::json!({"resize_mode": "longest"}), None),
            Ok(filled)
        );
    }
}
