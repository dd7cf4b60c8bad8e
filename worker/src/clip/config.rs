//! OpenCLIP's model configuration: what is read, and a clear sentence for what is not built.

use argosy_shard_loader::transform::ResizeMode;
use serde_json::{Map, Value};

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or not an object where one is due.
    #[error("model config: {0}")]
    Syntax(String),
    /// A key that OpenCLIP knows with a value that Argosy does not build, or a key nobody knows.
    #[error("model config: {key} = {value} is not supported: {why}")]
    Unsupported { key: String, value: String, why: String },
    /// A key is missing or has the wrong type or range.
    #[error("model config: {key}: {why}")]
    Invalid { key: String, why: String },
    /// No built-in configuration of that name.
    #[error("model {name:?} is not built in: choose one of {known}, or give a file in OpenCLIP's config format")]
    UnknownName { name: String, known: String },
}

type Result<T> = std::result::Result<T, ConfigError>;

/// The image tower.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    pub image_size: i64,
    pub patch_size: i64,
    pub width: i64,
    pub layers: i64,
    pub heads: i64,
    /// Hidden width of the MLP, `floor(width * mlp_ratio)`.
    pub mlp_width: i64,
    /// Initial layer scale, where the model has one.
    pub ls_init_value: Option<f64>,
}

/// The text tower.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    pub context_length: i64,
    pub vocab_size: i64,
    pub width: i64,
    pub heads: i64,
    pub layers: i64,
    pub mlp_width: i64,
    pub ls_init_value: Option<f64>,
}

/// A CLIP model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub embed_dim: i64,
    pub quick_gelu: bool,
    pub vision: VisionConfig,
    pub text: TextConfig,
    /// Logarithm of the logits' first scale.
    pub init_logit_scale: f64,
    /// First bias of the logits, where the model has one (the sigmoid loss wants it).
    pub init_logit_bias: Option<f64>,
    /// The `model_cfg` object as read, for checkpoints and exports.
    pub source: Value,
}

/// How pictures become inputs: resized, then `(x/255 - mean) / std` per channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preprocess {
    pub mean: [f64; 3],
    pub std: [f64; 3],
    /// How an evaluation picture comes to its size; training crops at random whatever stands here, as in OpenCLIP.
    pub resize_mode: ResizeMode,
}

/// OpenCLIP's name of each way to resize.
const RESIZE_MODES: [(&str, ResizeMode); 3] = [
    ("shortest", ResizeMode::Shortest),
    ("longest", ResizeMode::Longest { fill: 0 }),
    ("squash", ResizeMode::Squash),
];
/// The only filter there is.
const INTERPOLATION: &str = "bicubic";

impl Preprocess {
    /// As `preprocess_cfg` in a published model's configuration.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let same = |mode: ResizeMode| std::mem::discriminant(&mode) == std::mem::discriminant(&self.resize_mode);
        let mode = RESIZE_MODES.iter().find(|(_, mode)| same(*mode));
        let fill = match self.resize_mode {
            ResizeMode::Longest { fill } => fill,
            ResizeMode::Shortest | ResizeMode::Squash => 0,
        };
        serde_json::json!({
            "mean": self.mean, "std": self.std, "interpolation": INTERPOLATION, "fill_color": fill,
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
            resize_mode: ResizeMode::Shortest,
        }
    }
}

const BUILT_IN: &[(&str, &str)] = &[
    ("ViT-B-16", include_str!("models/ViT-B-16.json")),
    ("ViT-B-16-quickgelu", include_str!("models/ViT-B-16-quickgelu.json")),
    ("ViT-B-32", include_str!("models/ViT-B-32.json")),
    ("ViT-B-32-256", include_str!("models/ViT-B-32-256.json")),
    ("ViT-B-32-quickgelu", include_str!("models/ViT-B-32-quickgelu.json")),
    ("ViT-L-14", include_str!("models/ViT-L-14.json")),
    ("ViT-M-32", include_str!("models/ViT-M-32.json")),
    ("ViT-S-16", include_str!("models/ViT-S-16.json")),
    ("ViT-S-32", include_str!("models/ViT-S-32.json")),
    ("ViT-S-32-alt", include_str!("models/ViT-S-32-alt.json")),
    ("demo-64", include_str!("models/demo-64.json")),
    ("demo-tiny", include_str!("models/demo-tiny.json")),
];

/// Keys OpenCLIP knows and Argosy builds at this value only; the value is what a key left out means.
fn fixed_vision() -> Value {
    serde_json::json!({
        "patch_dropout": 0.0, "attentional_pool": false, "no_ln_pre": false, "pos_embed_type": "learnable",
        "final_ln_after_pool": false, "pool_type": "tok", "output_tokens": false, "act_kwargs": null,
        "norm_kwargs": null, "block_type": null, "qk_norm": false, "scaled_cosine_attn": false, "scale_heads": false,
        "scale_attn_inner": false, "scale_attn": false, "scale_fc": false, "timm_model_name": null,
        "timm_model_pretrained": false, "attn_pooler_queries": 256, "attn_pooler_heads": 8
    })
}

fn fixed_text() -> Value {
    serde_json::json!({
        "hf_tokenizer_name": null, "tokenizer_mode": null, "tokenizer_kwargs": null, "embed_cls": false, "pad_id": 0,
        "eos_id": 2, "no_causal_mask": false, "final_ln_after_pool": false, "pool_type": "argmax",
        "proj_bias": false, "proj_type": "linear", "output_tokens": false, "act_kwargs": null, "norm_kwargs": null,
        "block_type": null, "qk_norm": false, "scaled_cosine_attn": false, "scale_heads": false,
        "scale_attn_inner": false, "scale_attn": false, "scale_fc": false, "hf_model_name": null
    })
}

/// `ln(1 / 0.07)`.
const INIT_LOGIT_SCALE: f64 = 2.659_260_036_932_778;

impl ModelConfig {
    /// Gives the model what `--siglip` gives it (open_clip_train 3.3.0, `main.py`): a scale of 10 and a bias of -10 at first.
    pub fn make_siglip(&mut self) {
        (self.init_logit_scale, self.init_logit_bias) = (10.0f64.ln(), Some(-10.0));
        if let Some(map) = self.source.as_object_mut() {
            map.insert("init_logit_scale".into(), self.init_logit_scale.into());
            map.insert("init_logit_bias".into(), (-10.0).into());
        }
    }
    /// A configuration that ships with Argosy, under OpenCLIP's name.
    ///
    /// # Errors
    /// [`ConfigError::UnknownName`] with all names.
    pub fn by_name(name: &str) -> Result<Self> {
        match BUILT_IN.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => Ok(Self::from_json(text)?.0),
            None => Err(ConfigError::UnknownName {
                name: name.into(),
                known: Self::names().join(", "),
            }),
        }
    }

    /// Names of [`ModelConfig::by_name`].
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        BUILT_IN.iter().map(|(name, _)| *name).collect()
    }

    /// Reads either a bare model configuration or the `{"model_cfg", "preprocess_cfg"}` of a published model.
    ///
    /// # Errors
    /// Names the key that is missing, unknown or not built.
    pub fn from_json(text: &str) -> Result<(Self, Preprocess)> {
        let value: Value = serde_json::from_str(text).map_err(|e| ConfigError::Syntax(e.to_string()))?;
        match value.get("model_cfg") {
            Some(model) => Ok((Self::from_value(model)?, preprocess(value.get("preprocess_cfg"))?)),
            None => Ok((Self::from_value(&value)?, Preprocess::default())),
        }
    }

    fn from_value(value: &Value) -> Result<Self> {
        let top = object("model_cfg", value)?;
        let mut keys = Keys::new("", top);
        let embed_dim = keys.whole("embed_dim", None, 1 << 20)?;
        let quick_gelu = keys.flag("quick_gelu", false)?;
        let vision = vision(object("vision_cfg", keys.take("vision_cfg"))?)?;
        let text = text(object("text_cfg", keys.take("text_cfg"))?)?;
        let init_logit_scale = keys.float("init_logit_scale")?.unwrap_or(INIT_LOGIT_SCALE);
        let init_logit_bias = keys.float("init_logit_bias")?;
        keys.finish(&serde_json::json!({"custom_text": false}))?;
        Ok(Self {
            embed_dim,
            quick_gelu,
            vision,
            text,
            init_logit_scale,
            init_logit_bias,
            source: value.clone(),
        })
    }
}

fn vision(map: &Map<String, Value>) -> Result<VisionConfig> {
    let mut keys = Keys::new("vision_cfg.", map);
    if map.get("layers").is_some_and(Value::is_array) {
        return Err(keys.unsupported("layers", "Argosy has no ResNet image towers yet; choose a ViT"));
    }
    if map.get("timm_model_name").is_some_and(|v| !v.is_null()) {
        return Err(keys.unsupported("timm_model_name", "Argosy has no timm towers; choose a native ViT"));
    }
    let width = keys.whole("width", Some(768), 1 << 16)?;
    let head_width = keys.whole("head_width", Some(64), width)?;
    let heads = width / head_width;
    if width % heads != 0 {
        return Err(keys.invalid("head_width", format!("{heads} heads do not divide width {width}")));
    }
    let config = VisionConfig {
        image_size: keys.whole("image_size", Some(224), 4096)?,
        patch_size: keys.whole("patch_size", Some(16), 4096)?,
        layers: keys.whole("layers", Some(12), 1024)?,
        mlp_width: keys.mlp_width(width)?,
        ls_init_value: keys.float("ls_init_value")?,
        width,
        heads,
    };
    if config.patch_size > config.image_size {
        return Err(keys.invalid("patch_size", format!("larger than image_size {}", config.image_size)));
    }
    keys.finish(&fixed_vision())?;
    Ok(config)
}

fn text(map: &Map<String, Value>) -> Result<TextConfig> {
    let mut keys = Keys::new("text_cfg.", map);
    if map.get("hf_model_name").is_some_and(|v| !v.is_null()) {
        return Err(keys.unsupported("hf_model_name", "Argosy has no Hugging Face text towers"));
    }
    let width = keys.whole("width", Some(512), 1 << 16)?;
    let heads = keys.whole("heads", Some(8), width)?;
    if width % heads != 0 {
        return Err(keys.invalid("heads", format!("{heads} heads do not divide width {width}")));
    }
    let config = TextConfig {
        context_length: keys.whole("context_length", Some(77), 4096)?,
        vocab_size: keys.whole("vocab_size", Some(49_408), 1 << 24)?,
        layers: keys.whole("layers", Some(12), 1024)?,
        mlp_width: keys.mlp_width(width)?,
        ls_init_value: keys.float("ls_init_value")?,
        width,
        heads,
    };
    keys.finish(&fixed_text())?;
    Ok(config)
}

fn preprocess(value: Option<&Value>) -> Result<Preprocess> {
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
        out.resize_mode = known.ok_or_else(|| unsupported("resize_mode", mode, why))?.1;
    }
    if let Some(color) = value.get("fill_color").filter(|v| !v.is_null()) {
        let number = color.as_u64().and_then(|n| u8::try_from(n).ok());
        let wanted =
            number.ok_or_else(|| unsupported("fill_color", color, "Argosy fills with one number from 0 to 255"))?;
        if let ResizeMode::Longest { fill } = &mut out.resize_mode {
            *fill = wanted;
        }
    }
    if let Some(filter) = value
        .get("interpolation")
        .filter(|v| !v.is_null() && *v != INTERPOLATION)
    {
        return Err(unsupported("interpolation", filter, "Argosy resizes with bicubic only"));
    }
    Ok(out)
}

fn object<'a>(key: &str, value: &'a Value) -> Result<&'a Map<String, Value>> {
    value.as_object().ok_or_else(|| ConfigError::Invalid {
        key: key.into(),
        why: if value.is_null() {
            "missing".into()
        } else {
            format!("an object expected, got {value}")
        },
    })
}

/// One object's keys; remembers which were read so that the rest can be refused.
struct Keys<'a> {
    prefix: &'static str,
    map: &'a Map<String, Value>,
    read: Vec<&'static str>,
}

impl<'a> Keys<'a> {
    fn new(prefix: &'static str, map: &'a Map<String, Value>) -> Self {
        Self {
            prefix,
            map,
            read: Vec::new(),
        }
    }

    fn take(&mut self, key: &'static str) -> &'a Value {
        self.read.push(key);
        self.map.get(key).unwrap_or(&Value::Null)
    }

    fn invalid(&self, key: &str, why: String) -> ConfigError {
        ConfigError::Invalid {
            key: format!("{}{key}", self.prefix),
            why,
        }
    }

    fn unsupported(&self, key: &str, why: &str) -> ConfigError {
        let value = self.map.get(key).map(Value::to_string).unwrap_or_default();
        ConfigError::Unsupported {
            key: format!("{}{key}", self.prefix),
            value,
            why: why.into(),
        }
    }

    fn whole(&mut self, key: &'static str, default: Option<i64>, most: i64) -> Result<i64> {
        let value = self.take(key);
        let number = if value.is_null() { default } else { value.as_i64() };
        match number {
            Some(n) if (1..=most).contains(&n) => Ok(n),
            _ if value.is_null() => Err(self.invalid(key, "missing".into())),
            _ => Err(self.invalid(key, format!("a whole number in 1..={most} expected, got {value}"))),
        }
    }

    fn flag(&mut self, key: &'static str, default: bool) -> Result<bool> {
        let value = self.take(key);
        if value.is_null() {
            return Ok(default);
        }
        value
            .as_bool()
            .ok_or_else(|| self.invalid(key, format!("true or false expected, got {value}")))
    }

    fn float(&mut self, key: &'static str) -> Result<Option<f64>> {
        let value = self.take(key);
        if value.is_null() {
            return Ok(None);
        }
        let number = value
            .as_f64()
            .ok_or_else(|| self.invalid(key, format!("a number expected, got {value}")))?;
        Ok(Some(number))
    }

    fn mlp_width(&mut self, width: i64) -> Result<i64> {
        let ratio = self.float("mlp_ratio")?.unwrap_or(4.0);
        let hidden = width as f64 * ratio;
        if !(1.0..=1e8).contains(&hidden) {
            return Err(self.invalid("mlp_ratio", format!("{ratio} gives a hidden width of {hidden}")));
        }
        Ok(hidden as i64) // floor, as Python's int()
    }

    /// Refuses every key that was not read, except those in `fixed` at their fixed value.
    fn finish(self, fixed: &Value) -> Result<()> {
        for (key, value) in self.map {
            if self.read.contains(&key.as_str()) {
                continue;
            }
            match fixed.get(key) {
                Some(only) if same(only, value) => {}
                Some(only) => return Err(self.unsupported(key, &format!("Argosy builds only {only}"))),
                None => return Err(self.unsupported(key, "no such key in OpenCLIP's native ViT models")),
            }
        }
        Ok(())
    }
}

/// Equal, or equal as numbers (`0` and `0.0`).
fn same(a: &Value, b: &Value) -> bool {
    a == b || matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_built_in_names_all_parse_with_known_shapes() {
        for name in ModelConfig::names() {
            ModelConfig::by_name(name).unwrap();
        }
        let b32 = ModelConfig::by_name("ViT-B-32").unwrap();
        assert_eq!(
            (b32.embed_dim, b32.vision.heads, b32.vision.mlp_width, b32.text.heads),
            (512, 12, 3072, 8)
        );
        let error = ModelConfig::by_name("ViT-B-31").unwrap_err().to_string();
        assert!(error.contains("ViT-B-32"), "{error}");
    }

    #[test]
    fn config_unknown_or_unbuilt_key_is_named() {
        for (vision, text, key) in [
            (r#""layers": [3, 4, 6, 3]"#, "", "vision_cfg.layers"),
            (r#""timm_model_name": "vit_base""#, "", "vision_cfg.timm_model_name"),
            (r#""pool_type": "avg""#, "", "vision_cfg.pool_type"),
            (r#""widht": 64"#, "", "vision_cfg.widht"),
            ("", r#""heads": 7"#, "text_cfg.heads"),
            ("", r#""context_length": "77""#, "text_cfg.context_length"),
            (r#""patch_size": 512"#, "", "vision_cfg.patch_size"),
        ] {
            let json = format!(r#"{{"embed_dim": 8, "vision_cfg": {{{vision}}}, "text_cfg": {{{text}}}}}"#);
            let error = ModelConfig::from_json(&json).unwrap_err().to_string();
            assert!(error.contains(key), "{error} does not name {key}");
        }
    }

    #[test]
    fn preprocess_resize_mode_is_read_and_written_and_others_are_refused() {
        let read = |preprocess: &str| {
            let json = format!(
                r#"{{"model_cfg": {{"embed_dim": 8, "vision_cfg": {{}}, "text_cfg": {{}}}}, "preprocess_cfg": {preprocess}}}"#
            );
            ModelConfig::from_json(&json)
        };
        for (mode, expected) in [
            ("null", ResizeMode::Shortest),
            (r#""shortest""#, ResizeMode::Shortest),
            (r#""squash""#, ResizeMode::Squash),
            (r#""longest""#, ResizeMode::Longest { fill: 0 }),
            (r#""longest", "fill_color": 7"#, ResizeMode::Longest { fill: 7 }),
        ] {
            let (_, pre) = read(&format!(r#"{{"resize_mode": {mode}, "interpolation": "bicubic"}}"#)).unwrap();
            assert_eq!(pre.resize_mode, expected);
            assert_eq!(read(&pre.to_json().to_string()).unwrap().1, pre);
        }
        for (preprocess, key) in [
            (r#"{"resize_mode": "widest"}"#, "preprocess_cfg.resize_mode"),
            (r#"{"fill_color": 300}"#, "preprocess_cfg.fill_color"),
            (r#"{"fill_color": [1, 2, 3]}"#, "preprocess_cfg.fill_color"),
            (r#"{"resize_mode": 1}"#, "preprocess_cfg.resize_mode"),
            (r#"{"interpolation": "bilinear"}"#, "preprocess_cfg.interpolation"),
        ] {
            let error = read(preprocess).unwrap_err().to_string();
            assert!(error.contains(key), "{error} does not name {key}");
        }
    }

    #[test]
    fn config_keys_at_their_default_are_accepted() {
        let json = r#"{"model_cfg": {"embed_dim": 8, "custom_text": false,
            "vision_cfg": {"patch_dropout": 0, "pool_type": "tok"}, "text_cfg": {"pool_type": "argmax"}},
            "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}"#;
        let (model, pre) = ModelConfig::from_json(json).unwrap();
        assert_eq!(
            (model.vision.width, model.text.vocab_size, pre.mean[0], pre.std[2]),
            (768, 49_408, 0.5, 0.25)
        );
    }
}
