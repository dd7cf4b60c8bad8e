//! Weights that OpenCLIP knows by tag: what they were trained with, and what was published of them.

use crate::clip::config::known;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Facts of open_clip 3.3.0's `pretrained.py` and its published results; `tests/peers/pretrained.py` writes and compares it.
const TABLE: &str = include_str!("../clip/pretrained.json");

#[derive(Debug, Default, Deserialize)]
struct Table {
    open_clip: String,
    norms: BTreeMap<String, [[f64; 3]; 2]>,
    tags: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    model: String,
    tag: String,
    quick_gelu: bool,
    norm: String,
    interpolation: String,
    resize_mode: String,
    hub: Option<String>,
    file: Option<String>,
    imagenet: Option<f64>,
    average_of_38: Option<f64>,
}

/// Weights under a model's name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Published {
    pub model: String,
    pub tag: String,
    /// Whether they were trained with OpenAI's quick GELU.
    pub quick_gelu: bool,
    /// Of pixels per channel, in `0..1`.
    pub mean: [f64; 3],
    pub std: [f64; 3],
    pub interpolation: String,
    pub resize_mode: String,
    /// What makes ids of captions.
    pub tokenizer: String,
    /// Repository on the model hub that OpenCLIP looks in.
    pub hub: Option<String>,
    /// Name of the file that was released by itself.
    pub file: Option<String>,
    /// Zero-shot top-1 on ImageNet with exactly this name and tag; with another activation than theirs it is lower.
    pub imagenet: Option<f64>,
    /// Average over the 38 data sets of that table.
    pub average_of_38: Option<f64>,
    /// Why Argosy does not build the model.
    pub not_built: Option<String>,
}

/// The release of OpenCLIP that the table is of.
#[must_use]
pub fn open_clip_version() -> String {
    table().open_clip
}

fn table() -> Table {
    serde_json::from_str(TABLE).unwrap_or_default()
}

/// All of them, in OpenCLIP's order.
#[must_use]
pub fn published() -> Vec<Published> {
    let models: BTreeMap<String, Result<serde_json::Value, String>> =
        known().into_iter().map(|model| (model.name, model.config)).collect();
    let table = table();
    let one = |row: Row| {
        let [mean, std] = table.norms.get(&row.norm).copied().unwrap_or_default();
        let config = models.get(&row.model);
        Published {
            tokenizer: tokenizer_of(config.and_then(|config| config.as_ref().ok())),
            not_built: config.and_then(|config| config.as_ref().err().cloned()),
            model: row.model,
            tag: row.tag,
            quick_gelu: row.quick_gelu,
            mean,
            std,
            interpolation: row.interpolation,
            resize_mode: row.resize_mode,
            hub: row.hub,
            file: row.file,
            imagenet: row.imagenet,
            average_of_38: row.average_of_38,
        }
    };
    table.tags.into_iter().map(one).collect()
}

/// What a model's configuration says of its tokenizer.
pub(crate) fn tokenizer_of(config: Option<&serde_json::Value>) -> String {
    let Some(text) = config.map(|config| &config["text_cfg"]) else {
        return "-".into();
    };
    text["hf_tokenizer_name"].as_str().unwrap_or("CLIP").to_owned()
}

/// OpenCLIP takes `-` for `_` and capitals in tags.
fn clean(tag: &str) -> String {
    tag.to_lowercase().replace('-', "_")
}

/// A name without what only says the activation.
fn family(model: &str) -> &str {
    model.strip_suffix("-quickgelu").unwrap_or(model)
}

/// The weights of `tag`, whichever activation the model's name says.
#[must_use]
pub fn by_tag(model: &str, tag: &str) -> Option<Published> {
    let tag = clean(tag);
    let of = |row: &Published| row.tag == tag && family(&row.model) == family(model);
    let all = published();
    let exact = all.iter().find(|row| row.model == model && row.tag == tag).cloned();
    exact.or_else(|| all.into_iter().find(of))
}

/// Whether OpenCLIP has weights for a model of this name.
#[must_use]
pub fn has_tags(model: &str) -> bool {
    published().iter().any(|row| family(&row.model) == family(model))
}

/// All weights of `tag`, where no model is named.
#[must_use]
pub fn of_tag(tag: &str) -> Vec<Published> {
    let tag = clean(tag);
    published().into_iter().filter(|row| row.tag == tag).collect()
}

impl Published {
    /// Whether both were trained with the same activation, inputs and tokenizer.
    #[must_use]
    pub fn trained_like(&self, other: &Self) -> bool {
        let of = |row: &Self| {
            let words = [&row.interpolation, &row.resize_mode, &row.tokenizer].map(String::clone);
            (row.quick_gelu, row.mean, row.std, words)
        };
        of(self) == of(other)
    }

    /// Whether both are weights of the same model, whichever activation its name says.
    #[must_use]
    pub fn same_family(&self, other: &Self) -> bool {
        family(&self.model) == family(&other.model)
    }
}

/// The weights that were released under this file's name.
#[must_use]
pub fn by_file(model: &str, path: &Path) -> Option<Published> {
    let name = path.file_name()?.to_str()?;
    let mut all = published().into_iter().filter(|row| row.file.as_deref() == Some(name));
    all.find(|row| model.is_empty() || family(&row.model) == family(model))
}

/// Published accuracies of these weights under their own activation and under the other, in percent, where both are and differ.
#[must_use]
pub fn cost_of_activation(weights: &Published) -> Option<(f64, f64)> {
    let name = family(&weights.model);
    let quick = format!("{name}-quickgelu");
    let all = published();
    let of = |model: &str| {
        let row = all.iter().find(|row| row.model == model && row.tag == weights.tag);
        row.and_then(|row| row.imagenet)
    };
    let (plain, quick) = (of(name)?, of(&quick)?);
    let (own, other) = if weights.quick_gelu {
        (quick, plain)
    } else {
        (plain, quick)
    };
    (own > other).then_some((100.0 * own, 100.0 * other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::ModelConfig;

    #[test]
    fn published_table_has_every_tag_of_the_release_and_names_known_models() {
        let all = published();
        assert_eq!((all.len(), open_clip_version().as_str()), (196, "3.3.0"));
        let names: Vec<String> = known().into_iter().map(|model| model.name).collect();
        for row in &all {
            assert!(
                names.contains(&row.model) || family(&row.model) != row.model,
                "{}",
                row.model
            );
            assert!(row.std.iter().all(|std| *std > 0.0), "{row:?}");
        }
        let built = all
            .iter()
            .filter(|row| ModelConfig::by_name(&row.model).is_ok())
            .count();
        assert_eq!(built, 108);
    }

    #[test]
    fn published_cost_of_the_wrong_activation_is_that_of_the_results_table() {
        let weights = by_tag("ViT-B-32", "laion400m_e32").unwrap();
        let (own, other) = cost_of_activation(&weights).unwrap();
        assert!(
            (own - 62.93).abs() < 1e-9 && (other - 60.24).abs() < 1e-9,
            "{own} {other}"
        );
        assert!(cost_of_activation(&by_tag("ViT-B-32", "laion2b_s34b_b79k").unwrap()).is_none());
        assert_eq!(by_tag("ViT-B-32", "LAION400M-e32"), Some(weights.clone()));
        let file = Path::new("/x/vit_b_32-quickgelu-laion400m_e32-46683a32.pt");
        assert_eq!(by_file("ViT-B-32", file).map(|row| row.tag), Some(weights.tag));
        assert!(by_file("ViT-L-14", file).is_none());
    }
}
