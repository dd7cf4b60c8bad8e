//! Weights work as published only with the activation, normalisation and tokenizer that they were trained with. What is known
//! of them is compared before they are loaded; another choice is an error that says what it costs.

use super::published::{self, Published};
use super::{HUB_CONFIG, read_config};
use crate::clip::config::TokenizerConfig;
use crate::clip::{ConfigError, ModelConfig, Preprocess};
use argosy_common::config;
use std::path::Path;

/// The published case of an activation that is not the weights' own, for where theirs was not measured.
const KNOWN_CASE: (&str, &str) = ("ViT-B-32", "laion400m_e32");

/// What is known of weights.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedWith {
    /// Where that is known from.
    pub from: String,
    pub quick_gelu: bool,
    pub preprocess: Preprocess,
    /// What makes ids.
    pub tokenizer: TokenizerConfig,
    published: Option<Published>,
}

impl TrainedWith {
    /// What a job's weights were trained with: by their tag, by the configuration beside them, or by the name under which
    /// their file was released. `None` where none of these tells.
    ///
    /// # Errors
    /// Names the tag that does not belong to the model, or what is wrong with the configuration.
    pub fn of(model: &config::ModelConfig, base: &Path) -> Result<Option<Self>, ConfigError> {
        let Some(place) = model.pretrained.as_ref().map(|place| base.join(place)) else {
            return match &model.pretrained_tag {
                None => Ok(None),
                Some(tag) => Err(no_download(&model.name, tag)),
            };
        };
        // OpenCLIP takes tags where we take files.
        let word = place.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !place.exists() && published::by_tag(&model.name, word).is_some() {
            return Err(no_download(&model.name, word));
        }
        if let Some(tag) = &model.pretrained_tag {
            let found = published::by_tag(&model.name, tag);
            return found
                .map(|row| Self::published(row, &model.name))
                .transpose()?
                .map(Some)
                .ok_or_else(|| invalid("model.pretrained_tag", unknown_tag(&model.name, tag)));
        }
        if place.join(HUB_CONFIG).is_file() {
            let (config, preprocess) = match read_config(&place) {
                Ok(read) => read,
                // What the weights were trained with cannot be had here, and is not asked for.
                Err(_) if model.pretrained_mismatch => return Ok(None),
                Err(e) => return Err(invalid("model.pretrained", e.to_string())),
            };
            return Ok(Some(Self {
                from: format!("{}", place.join(HUB_CONFIG).display()),
                quick_gelu: config.quick_gelu,
                preprocess,
                tokenizer: config.text.tokenizer,
                published: None,
            }));
        }
        published::by_file(&model.name, &place)
            .map(|row| Self::published(row, &model.name))
            .transpose()
    }

    fn published(row: Published, name: &str) -> Result<Self, ConfigError> {
        let config = ModelConfig::by_name(&row.model).or_else(|_| ModelConfig::by_name(name))?;
        let resize = serde_json::json!({
            "mean": row.mean, "std": row.std, "resize_mode": row.resize_mode, "interpolation": row.interpolation,
        });
        let text = serde_json::json!({"model_cfg": config.source, "preprocess_cfg": resize}).to_string();
        let (_, preprocess) = ModelConfig::from_json(&text)?;
        Ok(Self {
            from: format!(
                "{} of {} in open_clip {}",
                row.tag,
                row.model,
                published::open_clip_version()
            ),
            quick_gelu: row.quick_gelu,
            preprocess,
            tokenizer: config.text.tokenizer,
            published: Some(row),
        })
    }

    /// Compares with a model as it would be built.
    ///
    /// # Errors
    /// Says what differs, what it costs, and how to go on.
    pub fn check(&self, model: &ModelConfig, preprocess: &Preprocess) -> Result<(), ConfigError> {
        let from = &self.from;
        let mut wrong = Vec::new();
        if model.quick_gelu != self.quick_gelu {
            let name = |quick: bool| if quick { "QuickGELU" } else { "GELU" };
            let (own, other) = (name(self.quick_gelu), name(model.quick_gelu));
            let fix = if self.quick_gelu {
                "choose the model's -quickgelu name, or model.force_quick_gelu = true"
            } else {
                "choose the model's name without -quickgelu, and no model.force_quick_gelu"
            };
            let cost = self.cost();
            wrong.push(format!(
                "they were trained with {own} and the model has {other}, {cost}; {fix}"
            ));
        }
        for (what, own, other) in [
            ("mean", self.preprocess.mean, preprocess.mean),
            ("std", self.preprocess.std, preprocess.std),
        ] {
            if own.iter().zip(other).any(|(a, b)| (a - b).abs() > 1e-6) {
                wrong.push(format!(
                    "they were trained on pixels with {what} {own:?}, and model.image_{what} is {other:?}, which moves every \
                     input of the first layer (its cost was never published); leave the key out"
                ));
            }
        }
        if model.text.tokenizer != self.tokenizer {
            let (own, other) = (&self.tokenizer, &model.text.tokenizer);
            wrong.push(format!(
                "their captions were ids of another tokenizer ({own}) than the model's ({other}): ids would mean other words, \
                 and accuracy falls to chance"
            ));
        }
        if wrong.is_empty() {
            return Ok(());
        }
        let wrong = wrong.join("; ");
        let why = format!("{wrong} (known from {from}); or set model.pretrained_mismatch = true to take them so");
        Err(invalid("model.pretrained", why))
    }

    /// What another activation costs, as published.
    fn cost(&self) -> String {
        if let Some((own, other)) = self.published.as_ref().and_then(published::cost_of_activation) {
            return format!("which costs: {own:.1} -> {other:.1} % zero-shot on ImageNet, as published");
        }
        let known = published::by_tag(KNOWN_CASE.0, KNOWN_CASE.1);
        match known.as_ref().and_then(published::cost_of_activation) {
            Some((own, other)) => format!(
                "which costs accuracy: not published for these, for {} {own:.1} -> {other:.1} % zero-shot on ImageNet",
                KNOWN_CASE.1
            ),
            None => "which costs accuracy".into(),
        }
    }
}

fn invalid(key: &str, why: String) -> ConfigError {
    ConfigError::Invalid { key: key.into(), why }
}

fn unknown_tag(name: &str, tag: &str) -> String {
    let all = published::published();
    let tags: Vec<&str> = all
        .iter()
        .filter(|row| row.model == name)
        .map(|row| row.tag.as_str())
        .collect();
    if tags.is_empty() {
        return format!("{tag:?}: open_clip has no tags for model {name:?}; `argosy models` lists those it has");
    }
    format!("{tag:?} is no tag of {name}: it has {}", tags.join(", "))
}

fn no_download(name: &str, tag: &str) -> ConfigError {
    let Some(row) = published::by_tag(name, tag) else {
        return invalid("model.pretrained_tag", unknown_tag(name, tag));
    };
    let places = [
        row.hub.map(|hub| format!("repository {hub}")),
        row.file.map(|file| format!("file {file}")),
    ];
    let places: Vec<String> = places.into_iter().flatten().collect();
    let why = format!(
        "nothing is downloaded: fetch these weights ({}) and name them by model.pretrained",
        places.join(", or ")
    );
    invalid("model.pretrained_tag", why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::resolve;

    fn job(name: &str, tag: &str) -> config::ModelConfig {
        config::ModelConfig {
            name: name.into(),
            pretrained: Some("weights.pt".into()),
            pretrained_tag: Some(tag.into()),
            ..config::ModelConfig::default()
        }
    }

    fn refused(job: &config::ModelConfig) -> String {
        resolve(job, Path::new(".")).unwrap_err().to_string()
    }

    #[test]
    fn weights_under_the_wrong_activation_are_refused_with_the_published_cost() {
        let wrong = job("ViT-B-32", "laion400m_e32");
        let error = refused(&wrong);
        assert!(
            error.contains("62.9 -> 60.2 %") && error.contains("pretrained_mismatch"),
            "{error}"
        );
        resolve(&job("ViT-B-32-quickgelu", "laion400m_e32"), Path::new(".")).unwrap();
        for allowed in [
            config::ModelConfig {
                force_quick_gelu: true,
                ..wrong.clone()
            },
            config::ModelConfig {
                pretrained_mismatch: true,
                ..wrong
            },
        ] {
            resolve(&allowed, Path::new(".")).unwrap();
        }
        let other = job("ViT-B-32-quickgelu", "laion2b_s34b_b79k");
        let error = refused(&other);
        assert!(
            error.contains("trained with GELU") && error.contains("for laion400m_e32 62.9"),
            "{error}"
        );
        let named = config::ModelConfig {
            pretrained: Some("x/vit_b_32-quickgelu-laion400m_e32-46683a32.pt".into()),
            pretrained_tag: None,
            ..job("ViT-B-32", "")
        };
        assert!(refused(&named).contains("62.9 -> 60.2 %"));
    }

    #[test]
    fn weights_bring_their_normalisation_and_refuse_another() {
        let large = job("ViT-L-14", "laion2b_s32b_b82k");
        let (_, preprocess) = resolve(&large, Path::new(".")).unwrap();
        assert_eq!((preprocess.mean, preprocess.std), ([0.5; 3], [0.5; 3]));
        let wrong = config::ModelConfig {
            image_mean: Some([0.48145466, 0.4578275, 0.40821073]),
            ..large
        };
        let error = refused(&wrong);
        assert!(
            error.contains("model.image_mean") && error.contains("[0.5, 0.5, 0.5]"),
            "{error}"
        );
    }

    #[test]
    fn tag_that_is_unknown_or_without_a_file_says_what_there_is() {
        let error = refused(&job("ViT-B-32", "laion400m_e33"));
        assert!(error.contains("laion400m_e32"), "{error}");
        let alone = config::ModelConfig {
            pretrained: None,
            ..job("ViT-B-32", "laion2b_s34b_b79k")
        };
        let instead = config::ModelConfig {
            pretrained: Some("laion2b_s34b_b79k".into()),
            pretrained_tag: None,
            ..alone.clone()
        };
        for job in [alone, instead] {
            let error = refused(&job);
            assert!(
                error.contains("nothing is downloaded") && error.contains("laion/CLIP-ViT-B-32"),
                "{error}"
            );
        }
    }

    #[test]
    fn folder_whose_configuration_differs_from_the_job_is_refused_by_what_differs() {
        let folder = tempfile::tempdir().unwrap();
        let config = ModelConfig::by_name("ViT-B-32-quickgelu").unwrap();
        let text = serde_json::json!({"model_cfg": config.source, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}});
        std::fs::write(folder.path().join(HUB_CONFIG), text.to_string()).unwrap();
        let of = |name: &str| config::ModelConfig {
            name: name.into(),
            pretrained: Some(folder.path().to_string_lossy().into_owned()),
            ..config::ModelConfig::default()
        };
        assert!(refused(&of("ViT-B-32")).contains("trained with QuickGELU"));
        let (_, preprocess) = resolve(&of("ViT-B-32-quickgelu"), Path::new(".")).unwrap();
        assert_eq!(preprocess.mean, [0.1, 0.2, 0.3]);
    }
}
