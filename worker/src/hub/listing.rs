//! `argosy models`: every model by name, and the weights that were published for it.

use super::published::{self, Published};
use crate::clip::ModelConfig;
use crate::clip::config::known;
use crate::clip::specs::Specs;
use serde::Serialize;
use std::fmt::Write as _;

/// What is listed.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ListArgs {
    /// Only models or tags with all of these in their names
    #[arg(value_name = "PART")]
    pub parts: Vec<String>,
    /// Those that Argosy does not build as well, with the reason
    #[arg(long)]
    pub all: bool,
}

/// A model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listed {
    pub name: String,
    /// `GELU` or `QuickGELU`.
    pub activation: Option<&'static str>,
    /// Trained numbers.
    pub parameters: Option<u64>,
    /// Edge of an image in pixels.
    pub image_size: Option<i64>,
    /// Ids of a caption.
    pub context_length: Option<i64>,
    pub tokenizer: Option<String>,
    /// Why it is not built.
    pub not_built: Option<String>,
    /// Published weights.
    pub pretrained: Vec<Published>,
}

/// The listing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listing {
    /// The release of OpenCLIP whose names and tags these are.
    pub open_clip: String,
    pub models: Vec<Listed>,
}

/// Models whose name, or some of whose tags, hold all parts; of a model that only its tags name, those tags.
#[must_use]
pub fn list(args: &ListArgs) -> Listing {
    let parts: Vec<String> = args.parts.iter().map(|part| part.to_lowercase()).collect();
    let has = |text: &str| parts.iter().all(|part| text.to_lowercase().contains(part));
    let weights = published::published();
    let models = known().into_iter().filter_map(|model| {
        let whole = has(&model.name);
        let of = |row: &&Published| row.model == model.name && (whole || has(&format!("{} {}", row.model, row.tag)));
        let pretrained: Vec<Published> = weights.iter().filter(of).cloned().collect();
        let shown = (args.all || model.config.is_ok()) && (whole || !pretrained.is_empty());
        shown.then(|| one(model.name, model.config.err(), pretrained))
    });
    Listing {
        open_clip: published::open_clip_version(),
        models: models.collect(),
    }
}

fn one(name: String, not_built: Option<String>, pretrained: Vec<Published>) -> Listed {
    let config = ModelConfig::by_name(&name).ok();
    let config = config.as_ref();
    Listed {
        activation: config.map(|c| activation(c.quick_gelu)),
        parameters: config.map(|c| Specs::of(c).parameters() as u64),
        image_size: config.map(|c| c.vision.image_size),
        context_length: config.map(|c| c.text.context_length),
        tokenizer: config.map(|c| c.text.tokenizer.to_string()),
        name,
        not_built,
        pretrained,
    }
}

fn activation(quick: bool) -> &'static str {
    if quick { "QuickGELU" } else { "GELU" }
}

impl Listing {
    /// One line a model and tag.
    #[must_use]
    pub fn table(&self) -> String {
        let head = [
            "model",
            "parameters",
            "pretrained",
            "trained with",
            "mean",
            "std",
            "resize",
            "tokenizer",
            "ImageNet",
        ];
        let mut rows = vec![head.map(str::to_owned)];
        for model in &self.models {
            let size = match (&model.parameters, &model.not_built) {
                (Some(n), _) => format!("{:.1}M", *n as f64 / 1e6),
                (None, why) => format!("not built: it has {}", why.as_deref().unwrap_or("-")),
            };
            let tokenizer = model.tokenizer.clone().unwrap_or_else(|| "-".into());
            let blank = || "-".to_owned();
            if model.pretrained.is_empty() {
                let own = model.activation.unwrap_or("-").to_owned();
                rows.push([
                    model.name.clone(),
                    size.clone(),
                    blank(),
                    own,
                    blank(),
                    blank(),
                    blank(),
                    tokenizer.clone(),
                    blank(),
                ]);
            }
            for weights in &model.pretrained {
                let channels = |v: [f64; 3]| v.map(|v| format!("{v:.3}")).join(" ");
                let accuracy = weights
                    .imagenet
                    .map_or_else(blank, |share| format!("{:.1} %", 100.0 * share));
                rows.push([
                    model.name.clone(),
                    size.clone(),
                    weights.tag.clone(),
                    activation(weights.quick_gelu).into(),
                    channels(weights.mean),
                    channels(weights.std),
                    format!("{} {}", weights.interpolation, weights.resize_mode),
                    tokenizer.clone(),
                    accuracy,
                ]);
            }
        }
        let widths: Vec<usize> = (0..head.len())
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        let mut out = String::new();
        for row in &rows {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{}", cells.join("  ").trim_end());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listing_shows_what_weights_were_trained_with_and_filters_by_parts() {
        let listing = list(&ListArgs {
            parts: vec!["vit-b-32".into(), "LAION400M".into()],
            all: false,
        });
        let names: Vec<&str> = listing.models.iter().map(|model| model.name.as_str()).collect();
        assert_eq!(names, ["ViT-B-32", "ViT-B-32-quickgelu"]);
        let table = listing.table();
        let line = table
            .lines()
            .find(|line| line.starts_with("ViT-B-32-quickgelu") && line.contains("e32"))
            .unwrap();
        for part in [
            "151.3M",
            "QuickGELU",
            "0.481 0.458 0.408",
            "bicubic shortest",
            "CLIP's own",
            "62.9 %",
        ] {
            assert!(line.contains(part), "{line} lacks {part}");
        }
        let large = list(&ListArgs {
            parts: vec!["laion2b_s32b_b82k".into()],
            all: false,
        });
        assert_eq!((large.models.len(), large.models[0].pretrained[0].mean), (1, [0.5; 3]));
    }

    #[test]
    fn listing_of_all_has_every_name_and_the_reason_of_those_not_built() {
        let all = list(&ListArgs {
            parts: Vec::new(),
            all: true,
        });
        let built = list(&ListArgs::default());
        assert_eq!(
            (all.models.len(), built.models.len()),
            (known().len(), ModelConfig::names().len())
        );
        let refused = all.models.iter().find(|model| model.name == "EVA02-L-14").unwrap();
        assert!(refused.not_built.as_deref().unwrap().contains("timm") && !refused.pretrained.is_empty());
        assert!(all.table().contains("not built: it has a timm image tower"));
    }
}
