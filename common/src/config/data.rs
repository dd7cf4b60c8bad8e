//! The `[data]` section: where the pairs come from and how they are prepared.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the pairs come from and how they are prepared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CaptionDraw {
    /// The first entry of `text_key` that the sample has.
    #[default]
    First,
    /// Any that it has, drawn anew at every position by `caption_weights`.
    Weighted,
}

/// Which samples are kept when the index is made. A sample must meet all that is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FilterConfig {
    /// File with one id per line; relative to the job file's folder.
    pub ids: Option<String>,
    /// Field of the sample's JSON that holds its id; its key in the shard by default.
    pub id_field: Option<String>,
    /// Fewest and most characters of a caption. Rows without one that fits are left out; of the others only those that fit
    /// are trained.
    pub caption_chars: Option<[u32; 2]>,
    /// Conditions on fields of the sample's JSON, as in `similarity >= 0.3`.
    pub conditions: Vec<String>,
}

/// One set of shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
