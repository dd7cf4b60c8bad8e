//! OpenCLIP's model configuration: what is read, and a clear sentence for what is not built.

mod facts;
mod keys;
mod known;
mod preprocess;
mod read;

pub use facts::Facts;
pub use known::{Known, known};
pub use preprocess::Preprocess;

use keys::object;
use serde_json::Value;

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
    /// OpenCLIP has it, Argosy does not.
    #[error("model {name:?} is one of OpenCLIP's that Argosy does not build: it has {why}")]
    NotBuilt { name: String, why: String },
}

type Result<T> = std::result::Result<T, ConfigError>;

/// What an MLP has between its two layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `nn.GELU`.
    Gelu,
    /// `nn.GELU` with `approximate = "tanh"`.
    GeluTanh,
    /// OpenAI's `x * sigmoid(1.702 x)`.
    QuickGelu,
}

/// How all blocks of a transformer are made.
#[derive(Debug, Clone, PartialEq)]
pub struct Stack {
    pub width: i64,
    pub layers: i64,
    pub heads: i64,
    /// Hidden width of the MLP, `floor(width * mlp_ratio)`.
    pub mlp_width: i64,
    /// Initial layer scale, where the model has one.
    pub ls_init_value: Option<f64>,
    /// Whether the model's GELU is the tanh form (`act_kwargs`).
    pub gelu_tanh: bool,
    /// Added to the variance in layer norms (`norm_kwargs`).
    pub norm_eps: f64,
}

impl Stack {
    /// The activation under the model's `quick_gelu`.
    #[must_use]
    pub fn activation(&self, quick_gelu: bool) -> Activation {
        match (quick_gelu, self.gelu_tanh) {
            (true, _) => Activation::QuickGelu,
            (false, true) => Activation::GeluTanh,
            (false, false) => Activation::Gelu,
        }
    }
}

/// Which tokens of the image become its feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImagePool {
    /// The class token.
    Token,
    /// The mean of all others.
    Average,
}

/// A vision transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct VitConfig {
    pub patch_size: i64,
    pub stack: Stack,
    /// A layer norm before the blocks.
    pub ln_pre: bool,
    pub pool: ImagePool,
    /// Whether the last norm comes behind the pooling.
    pub norm_after_pool: bool,
    /// Share of patches left out in training, different ones each time.
    pub patch_dropout: f64,
}

/// CLIP's modified ResNet.
#[derive(Debug, Clone, PartialEq)]
pub struct ResNetConfig {
    /// Blocks of the four stages.
    pub layers: [i64; 4],
    /// Channels of the stem; the last stage has 32 times as many.
    pub width: i64,
    /// Heads of the attention that pools.
    pub heads: i64,
}

/// Kinds of image towers.
#[derive(Debug, Clone, PartialEq)]
pub enum VisionKind {
    Vit(VitConfig),
    ResNet(ResNetConfig),
}

/// The image tower.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    pub image_size: i64,
    pub kind: VisionKind,
}

impl VisionConfig {
    /// Layers between embeddings and projection, as rates decay along them: blocks of a transformer, stages of a ResNet.
    #[must_use]
    pub fn depth(&self) -> i64 {
        match &self.kind {
            VisionKind::Vit(vit) => vit.stack.layers,
            VisionKind::ResNet(resnet) => resnet.layers.len() as i64,
        }
    }

    /// Transformer blocks; none in a ResNet.
    #[must_use]
    pub fn blocks(&self) -> i64 {
        match &self.kind {
            VisionKind::Vit(vit) => vit.stack.layers,
            VisionKind::ResNet(_) => 0,
        }
    }

    /// The transformer, where it is one.
    #[must_use]
    pub fn vit(&self) -> Option<&VitConfig> {
        match &self.kind {
            VisionKind::Vit(vit) => Some(vit),
            VisionKind::ResNet(_) => None,
        }
    }
}

/// Which token of a caption becomes its feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextPool {
    First,
    Last,
    /// The first of the largest ids, CLIP's end of text.
    Argmax,
    /// The first with this id; the first of all where there is none.
    Eos(i32),
}

/// From a pooled token to a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextProjection {
    /// A matrix `[width, embed_dim]`.
    Matrix,
    /// A linear layer with its bias.
    Linear,
    /// The token itself.
    None,
}

/// The text tower.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    pub context_length: i64,
    pub vocab_size: i64,
    pub stack: Stack,
    /// Whether a token sees only those before it.
    pub causal: bool,
    pub pool: TextPool,
    pub projection: TextProjection,
    /// What makes its ids.
    pub tokenizer: TokenizerConfig,
}

/// What is said of a text tower's tokenizer (`hf_tokenizer_name`, `tokenizer_mode`, `tokenizer_kwargs`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerConfig {
    /// Its name on the model hub; CLIP's own where there is none.
    pub name: Option<String>,
    pub mode: Option<String>,
    pub clean: Option<String>,
    pub strip_sep_token: bool,
    pub reduction_mask: Option<String>,
}

impl TokenizerConfig {
    /// How captions are cleaned, where it is not said.
    fn clean(&self) -> &str {
        let own = if self.name.is_none() { "lower" } else { "whitespace" };
        self.clean.as_deref().unwrap_or(own)
    }

    /// Whether the other makes the same ids of the same vocabulary, whatever that is called.
    #[must_use]
    pub fn works_like(&self, other: &Self) -> bool {
        self.name.is_some() == other.name.is_some()
            && self.clean() == other.clean()
            && (&self.mode, self.strip_sep_token, &self.reduction_mask)
                == (&other.mode, other.strip_sep_token, &other.reduction_mask)
    }
}

impl std::fmt::Display for TokenizerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name.as_deref().unwrap_or("CLIP's own"))?;
        for (key, value) in [
            ("mode", &self.mode),
            ("clean", &self.clean),
            ("reduction_mask", &self.reduction_mask),
        ] {
            if let Some(value) = value {
                write!(f, ", {key} {value}")?;
            }
        }
        if self.strip_sep_token {
            f.write_str(", strip_sep_token")
        } else {
            Ok(())
        }
    }
}

/// A CLIP model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub embed_dim: i64,
    pub quick_gelu: bool,
    pub vision: VisionConfig,
    pub text: TextConfig,
    /// Whether the text tower's names begin with `text.` (`CustomTextCLIP`).
    pub custom_text: bool,
    /// Logarithm of the logits' first scale.
    pub init_logit_scale: f64,
    /// First bias of the logits, where the model has one (the sigmoid loss wants it).
    pub init_logit_bias: Option<f64>,
    /// Whether scale and bias are vectors of one element instead of scalars.
    pub nonscalar_logit_scale: bool,
    /// The `model_cfg` object as read, for checkpoints and exports.
    pub source: Value,
}

impl ModelConfig {
    /// Makes the activation the quick GELU, as `--force-quick-gelu`.
    ///
    /// # Errors
    /// When a tower says more of its activation than that one can be told.
    pub fn force_quick_gelu(&mut self) -> Result<()> {
        let mut source = self.source.clone();
        if let Some(map) = source.as_object_mut() {
            map.insert("quick_gelu".into(), true.into());
        }
        *self = read::model(&source)?;
        Ok(())
    }

    /// Gives the model what `--siglip` gives it, whatever its configuration says (open_clip_train 3.3.0, `main.py`): a scale of
    /// 10 and a bias of -10 at first.
    pub fn make_siglip(&mut self) {
        (self.init_logit_scale, self.init_logit_bias) = (10.0f64.ln(), Some(-10.0));
        if let Some(map) = self.source.as_object_mut() {
            map.insert("init_logit_scale".into(), self.init_logit_scale.into());
            map.insert("init_logit_bias".into(), (-10.0).into());
        }
    }

    /// What the text tower's names begin with.
    #[must_use]
    pub fn text_prefix(&self) -> &'static str {
        if self.custom_text { "text." } else { "" }
    }

    /// A configuration that ships with Argosy, under OpenCLIP's name.
    ///
    /// # Errors
    /// [`ConfigError::UnknownName`] with all names, or why OpenCLIP's model of that name is not built.
    pub fn by_name(name: &str) -> Result<Self> {
        match known().into_iter().find(|model| model.name == name) {
            Some(Known { config: Ok(config), .. }) => read::model(&config),
            Some(Known { config: Err(why), .. }) => Err(ConfigError::NotBuilt { name: name.into(), why }),
            None => Err(ConfigError::UnknownName {
                name: name.into(),
                known: Self::names().join(", "),
            }),
        }
    }

    /// Names of [`ModelConfig::by_name`].
    #[must_use]
    pub fn names() -> Vec<String> {
        let built = known().into_iter().filter(|model| model.config.is_ok());
        built.map(|model| model.name).collect()
    }

    /// Reads either a bare model configuration or the `{"model_cfg", "preprocess_cfg"}` of a published model.
    ///
    /// # Errors
    /// Names the key that is missing, unknown or not built.
    pub fn from_json(text: &str) -> Result<(Self, Preprocess)> {
        Self::from_json_over(text, Preprocess::default())
    }

    /// The same, where `preprocess` is what its `preprocess_cfg` leaves out.
    ///
    /// # Errors
    /// As [`ModelConfig::from_json`].
    pub fn from_json_over(text: &str, preprocess: Preprocess) -> Result<(Self, Preprocess)> {
        let value: Value = serde_json::from_str(text).map_err(|e| ConfigError::Syntax(e.to_string()))?;
        let Some(model) = value.get("model_cfg") else {
            return Ok((read::model(&value)?, preprocess));
        };
        let model = read::model(model)?;
        let preprocess = preprocess.overlaid(&value["preprocess_cfg"], Some(model.vision.image_size))?;
        Ok((model, preprocess))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_built_in_names_all_parse_with_known_shapes() {
        for name in ModelConfig::names() {
            ModelConfig::by_name(&name).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        let b32 = ModelConfig::by_name("ViT-B-32").unwrap();
        let stack = &b32.vision.vit().unwrap().stack;
        assert_eq!(
            (b32.embed_dim, stack.heads, stack.mlp_width, b32.text.stack.heads),
            (512, 12, 3072, 8)
        );
        let error = ModelConfig::by_name("ViT-B-31").unwrap_err().to_string();
        assert!(error.contains("ViT-B-32"), "{error}");
    }

    #[test]
    fn config_unknown_or_unbuilt_key_is_named() {
        for (vision, text, key) in [
            (r#""layers": [3, 4, 6]"#, "", "vision_cfg.layers"),
            (r#""timm_model_name": "vit_base""#, "", "vision_cfg.timm_model_name"),
            (r#""pool_type": "none""#, "", "vision_cfg.pool_type"),
            (r#""pool_type": "max""#, "", "vision_cfg.pool_type"),
            (r#""widht": 64"#, "", "vision_cfg.widht"),
            (r#""patch_dropout": 1.0"#, "", "vision_cfg.patch_dropout"),
            (r#""attentional_pool": true"#, "", "vision_cfg.attentional_pool"),
            (r#""norm_kwargs": {"eps": -1}"#, "", "vision_cfg.norm_kwargs"),
            (r#""act_kwargs": {"approximate": "sin"}"#, "", "vision_cfg.act_kwargs"),
            ("", r#""heads": 7"#, "text_cfg.heads"),
            ("", r#""context_length": "77""#, "text_cfg.context_length"),
            ("", r#""pool_type": "none""#, "text_cfg.pool_type"),
            ("", r#""embed_cls": true"#, "text_cfg.embed_cls"),
            ("", r#""proj_type": "none""#, "text_cfg.proj_type"),
            (r#""patch_size": 512"#, "", "vision_cfg.patch_size"),
            (r#""width": 100, "head_width": 30"#, "", "vision_cfg.head_width"),
            (
                r#""layers": [1, 1, 1, 1], "width": 4, "head_width": 40"#,
                "",
                "vision_cfg.head_width",
            ),
            (
                r#""layers": [1, 1, 1, 1], "width": 4, "image_size": 63"#,
                "",
                "vision_cfg.image_size",
            ),
            (r#""block_type": "custom""#, "", "vision_cfg.block_type"),
            ("", r#""block_type": "custom""#, "text_cfg.block_type"),
            ("", r#""hf_tokenizer_name": 7"#, "text_cfg.hf_tokenizer_name"),
            ("", r#""tokenizer_mode": {}"#, "text_cfg.tokenizer_mode"),
            ("", r#""tokenizer_kwargs": ["lower"]"#, "text_cfg.tokenizer_kwargs"),
            (
                "",
                r#""tokenizer_kwargs": {"clean": 1}"#,
                "text_cfg.tokenizer_kwargs.clean",
            ),
            (
                "",
                r#""tokenizer_kwargs": {"reduction_mask": true}"#,
                "text_cfg.tokenizer_kwargs.reduction_mask",
            ),
            (
                "",
                r#""tokenizer_kwargs": {"strip_sep_token": "yes"}"#,
                "text_cfg.tokenizer_kwargs.strip_sep_token",
            ),
            ("", r#""tokenizer_kwargs": {"claen": "lower"}"#, "did you mean clean"),
        ] {
            let json = format!(r#"{{"embed_dim": 8, "vision_cfg": {{{vision}}}, "text_cfg": {{{text}}}}}"#);
            let error = ModelConfig::from_json(&json).unwrap_err().to_string();
            assert!(error.contains(key), "{error} does not name {key}");
            assert!(
                key != "vision_cfg.widht" || error.contains("did you mean width"),
                "{error}"
            );
        }
    }

    #[test]
    fn config_keys_at_their_default_are_accepted() {
        let json = r#"{"model_cfg": {"embed_dim": 8, "custom_text": false,
            "vision_cfg": {"patch_dropout": 0, "pool_type": "tok"}, "text_cfg": {"pool_type": "argmax"}},
            "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}"#;
        let (model, pre) = ModelConfig::from_json(json).unwrap();
        let width = model.vision.vit().unwrap().stack.width;
        assert_eq!(
            (width, model.text.vocab_size, pre.mean[0], pre.std[2]),
            (768, 49_408, 0.5, 0.25)
        );
    }

    #[test]
    fn config_words_for_what_is_the_default_are_accepted() {
        let json = r#"{"embed_dim": 8, "quick_gelu": true,
            "vision_cfg": {"block_type": "default", "act_kwargs": {}, "layers": 1, "width": 64},
            "text_cfg": {"block_type": null, "act_kwargs": {}, "hf_tokenizer_name": "", "tokenizer_kwargs": {"clean": null}}}"#;
        let (model, _) = ModelConfig::from_json(json).unwrap();
        assert_eq!(model.text.tokenizer, TokenizerConfig::default());
        let resnet = r#"{"embed_dim": 8, "text_cfg": {},
            "vision_cfg": {"block_type": "default", "layers": [1, 1, 1, 1], "width": 4, "image_size": 62}}"#;
        ModelConfig::from_json(resnet).unwrap();
    }

    #[test]
    fn config_quick_gelu_is_forced_only_on_what_it_can_replace() {
        let read = |act: &str| {
            let json = format!(r#"{{"embed_dim": 8, "vision_cfg": {{}}, "text_cfg": {{"act_kwargs": {act}}}}}"#);
            ModelConfig::from_json(&json).unwrap().0
        };
        for plain in ["null", "{}"] {
            let mut model = read(plain);
            model.force_quick_gelu().unwrap();
            assert!(model.quick_gelu && model.source["quick_gelu"] == true);
        }
        for more in [r#"{"approximate": "tanh"}"#, r#"{"approximate": "none"}"#] {
            let mut model = read(more);
            let error = model.force_quick_gelu().unwrap_err().to_string();
            assert!(error.contains("text_cfg.act_kwargs"), "{error}");
            assert!(!model.quick_gelu);
        }
    }
}
