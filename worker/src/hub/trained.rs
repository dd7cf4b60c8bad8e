//! Weights work as published only with the activation, normalisation and tokenizer that they were trained with. What is known
//! of them, file by file, is compared before they are loaded; another choice is an error that says what it costs.

#[cfg(test)]
mod tests;

use super::published::{self, Published};
use super::{HUB_CONFIG, HUB_TOKENIZER, beside, read_text};
use crate::clip::config::{Facts, TokenizerConfig, VisionKind};
use crate::clip::{ConfigError, ModelConfig, Preprocess};
use crate::model::tokenizer_file;
use crate::weights::fit::Part;
use argosy_common::config;
use std::path::Path;

/// The published case of an activation that is not the weights' own, for where theirs was not measured.
const KNOWN_CASE: (&str, &str) = ("ViT-B-32", "laion400m_e32");
const OVERRIDE: &str = "or set model.pretrained_mismatch = true to take them so";

/// What is known of the weights that a job starts from: of the whole model's, and of single towers'.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainedWith(Vec<Known>);

/// What is known of one file.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    /// The job's key that names it.
    key: &'static str,
    /// What of it the model has in the end: a tower's own file replaces what the whole model's brought.
    part: Part,
    /// Where that is known from.
    from: String,
    quick_gelu: Option<bool>,
    preprocess: Option<Preprocess>,
    /// What makes ids.
    tokenizer: Option<TokenizerConfig>,
    /// Whether the job's captions are read by the `tokenizer.json` beside it.
    own_tokenizer: bool,
    published: Option<Published>,
}

impl TrainedWith {
    /// What a job's weights were trained with: by their tag, by the name under which a file was released, or by the
    /// configuration beside them. Nothing of those of which none of these tells.
    ///
    /// # Errors
    /// Names the tag that does not belong to the model, or what is wrong with the configuration.
    pub fn of(model: &config::ModelConfig, base: &Path) -> Result<Self, ConfigError> {
        let tag = model.pretrained_tag.as_deref();
        if let (None, Some(tag)) = (&model.pretrained, tag) {
            return Err(no_download(&model.name, tag));
        }
        let (image, text) = (&model.pretrained_image_path, &model.pretrained_text_path);
        let left = match (image, text) {
            (None, None) => Some(Part::Whole),
            (Some(_), None) => Some(Part::Text),
            (None, Some(_)) => Some(Part::Image),
            (Some(_), Some(_)) => None,
        };
        let files = [
            ("model.pretrained", &model.pretrained, tag, left),
            ("model.pretrained_image_path", image, None, Some(Part::Image)),
            ("model.pretrained_text_path", text, None, Some(Part::Text)),
        ];
        let mut all = Vec::new();
        for (key, path, tag, part) in files {
            let (Some(path), Some(part)) = (path, part) else {
                continue;
            };
            let (place, tokenizer) = (base.join(path), tokenizer_file(model, base));
            let own = beside(&place, HUB_TOKENIZER);
            let found = Known::of(key, part, (&place, tag), model)?;
            all.extend(found.map(|known| Known {
                own_tokenizer: own.is_some() && own == tokenizer,
                ..known
            }));
        }
        Ok(Self(all))
    }

    /// How the image tower's pictures were prepared, where that is known.
    #[must_use]
    pub fn preprocess(&self) -> Option<Preprocess> {
        let mut of_image = self.0.iter().filter(|known| known.part != Part::Text);
        of_image.find_map(|known| known.preprocess)
    }

    /// Compares with a model as it would be built.
    ///
    /// # Errors
    /// Says what differs, what it costs, and how to go on.
    pub fn check(&self, model: &ModelConfig, preprocess: &Preprocess) -> Result<(), ConfigError> {
        self.check_agreement(model)?;
        for known in &self.0 {
            let wrong = known.differences(model, preprocess);
            if !wrong.is_empty() {
                let why = format!("{} (known from {}); {OVERRIDE}", wrong.join("; "), known.from);
                return Err(invalid(known.key, why));
            }
        }
        Ok(())
    }

    /// A model has one activation, whatever its towers were trained with.
    fn check_agreement(&self, model: &ModelConfig) -> Result<(), ConfigError> {
        let known = self.0.iter();
        let said: Vec<(&Known, bool)> = known.filter_map(|one| Some((one, one.activation(model)?))).collect();
        let Some((first, quick)) = said.first().copied() else {
            return Ok(());
        };
        let Some((other, _)) = said.iter().find(|(_, own)| *own != quick) else {
            return Ok(());
        };
        let (own, theirs) = (activation_name(!quick), activation_name(quick));
        let why = format!(
            "they were trained with {own} (known from {}), those of {} with {theirs} (known from {}), and a model has one \
             activation: choose weights that agree; {OVERRIDE}",
            other.from, first.key, first.from
        );
        Err(invalid(other.key, why))
    }
}

impl Known {
    fn of(
        key: &'static str,
        part: Part,
        (place, tag): (&Path, Option<&str>),
        model: &config::ModelConfig,
    ) -> Result<Option<Self>, ConfigError> {
        // OpenCLIP takes tags where we take files.
        let word = place.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !place.exists() && published::by_tag(&model.name, word).is_some() {
            return Err(no_download(&model.name, word));
        }
        if let Some(tag) = tag {
            return Self::tagged(key, part, model, tag).map(Some);
        }
        // A tower may come from a model of another name.
        let name = if part == Part::Whole { model.name.as_str() } else { "" };
        if let Some(row) = published::by_file(name, place).filter(|_| !place.is_dir()) {
            return Ok(Some(Self::published(key, part, row)));
        }
        let path = beside(place, HUB_CONFIG);
        path.map(|path| Self::configured(key, part, &path, model)).transpose()
    }

    fn tagged(key: &'static str, part: Part, model: &config::ModelConfig, tag: &str) -> Result<Self, ConfigError> {
        if let Some(row) = published::by_tag(&model.name, tag) {
            return Ok(Self::published(key, part, row));
        }
        // A configuration of one's own has any name, or none.
        let rows = if published::has_tags(&model.name) {
            Vec::new()
        } else {
            published::of_tag(tag)
        };
        let Some(first) = rows.first() else {
            return Err(invalid("model.pretrained_tag", unknown_tag(&model.name, tag)));
        };
        if rows.iter().any(|row| !row.trained_like(first)) {
            let names: Vec<&str> = rows.iter().map(|row| row.model.as_str()).collect();
            let why = format!(
                "{tag:?} is a tag of {}, which were trained in different ways: say by model.name which of them is meant",
                names.join(", ")
            );
            return Err(invalid("model.pretrained_tag", why));
        }
        let known = Self::published(key, part, first.clone());
        if rows.iter().all(|row| row.same_family(first)) {
            return Ok(known);
        }
        Ok(Self {
            from: format!("{tag} in open_clip {}", published::open_clip_version()),
            published: None,
            ..known
        })
    }

    fn published(key: &'static str, part: Part, row: Published) -> Self {
        let resize = serde_json::json!({
            "mean": row.mean, "std": row.std, "resize_mode": row.resize_mode, "interpolation": row.interpolation,
        });
        let config = ModelConfig::by_name(&row.model).ok();
        Self {
            key,
            part,
            from: format!(
                "{} of {} in open_clip {}",
                row.tag,
                row.model,
                published::open_clip_version()
            ),
            quick_gelu: Some(row.quick_gelu),
            preprocess: Preprocess::default().overlaid(&resize, None).ok(),
            tokenizer: config.map(|config| config.text.tokenizer),
            own_tokenizer: false,
            published: Some(row),
        }
    }

    /// What the configuration at `path` says of what is wanted of the weights.
    fn configured(
        key: &'static str,
        part: Part,
        path: &Path,
        model: &config::ModelConfig,
    ) -> Result<Self, ConfigError> {
        let from = path.display().to_string();
        let wrong = |e: ConfigError| invalid(key, format!("{from}: {e}"));
        let text = read_text(path).map_err(|e| invalid(key, e.to_string()))?;
        let facts = Facts::from_json(&text).map_err(wrong)?;
        let lenient = model.pretrained_mismatch;
        if part == Part::Whole && !lenient {
            ModelConfig::from_json(&text).map_err(wrong)?;
        }
        let preprocess = match facts.preprocess {
            _ if part == Part::Text => None,
            Ok(preprocess) => Some(preprocess),
            // Nothing that it says is asked for.
            Err(_) if lenient && model.image_mean.is_some() && model.image_std.is_some() => None,
            Err(e) if lenient => {
                let why = format!("{from}: {e}; say by model.image_mean and model.image_std what the pixels are");
                return Err(invalid(key, why));
            }
            Err(e) => return Err(wrong(e)),
        };
        let tokenizer = match facts.tokenizer {
            _ if part == Part::Image => None,
            Err(e) if !lenient => return Err(wrong(e)),
            tokenizer => tokenizer.ok(),
        };
        let quick_gelu = match facts.quick_gelu {
            Err(e) if !lenient => return Err(wrong(e)),
            quick_gelu => quick_gelu.ok(),
        };
        Ok(Self {
            key,
            part,
            from,
            quick_gelu,
            preprocess,
            tokenizer,
            own_tokenizer: false,
            published: None,
        })
    }

    /// The activation of what the model has of these weights.
    fn activation(&self, model: &ModelConfig) -> Option<bool> {
        // CLIP's ResNets have none that `quick_gelu` changes.
        let resnet = matches!(model.vision.kind, VisionKind::ResNet(_));
        self.quick_gelu.filter(|_| self.part != Part::Image || !resnet)
    }

    fn differences(&self, model: &ModelConfig, preprocess: &Preprocess) -> Vec<String> {
        let mut wrong = Vec::new();
        if let Some(quick) = self.activation(model).filter(|quick| *quick != model.quick_gelu) {
            let (own, other) = (activation_name(quick), activation_name(model.quick_gelu));
            let fix = if quick {
                "choose the model's -quickgelu name, or model.force_quick_gelu = true"
            } else {
                "choose the model's name without -quickgelu, and no model.force_quick_gelu"
            };
            let cost = self.cost();
            wrong.push(format!(
                "they were trained with {own} and the model has {other}, {cost}; {fix}"
            ));
        }
        if let Some(own) = self.preprocess.filter(|_| self.part != Part::Text) {
            wrong.extend(other_inputs(&own, preprocess));
        }
        let (other, text) = (&model.text.tokenizer, self.part != Part::Image);
        if let Some(own) = self.tokenizer.as_ref().filter(|_| text)
            && (!own.works_like(other) || own.name != other.name && !self.own_tokenizer)
        {
            wrong.push(format!(
                "their captions were ids of another tokenizer ({own}) than the model's ({other}): ids would mean other words, \
                 and accuracy falls to chance"
            ));
        }
        wrong
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

fn activation_name(quick: bool) -> &'static str {
    if quick { "QuickGELU" } else { "GELU" }
}

/// What of a model's inputs is not what its weights had.
fn other_inputs(own: &Preprocess, model: &Preprocess) -> Vec<String> {
    let mut wrong = Vec::new();
    for (what, own, other) in [("mean", own.mean, model.mean), ("std", own.std, model.std)] {
        if own.iter().zip(other).any(|(a, b)| (a - b).abs() > 1e-6) {
            wrong.push(format!(
                "they were trained on pixels with {what} {own:?}, and the job says {other:?} (model.image_{what}, or \
                 preprocess_cfg.{what} in model.config), which moves every input of the first layer (its cost was never \
                 published); leave the key out"
            ));
        }
    }
    if own.resize != model.resize {
        let (own, other) = (own.resize_words(), model.resize_words());
        wrong.push(format!(
            "their pictures were evaluated at a size made by {own}, and preprocess_cfg in model.config says {other} (its cost \
             was never published); leave its resize_mode and interpolation out"
        ));
    }
    wrong
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
        return format!("{tag:?} is none of open_clip's tags; `argosy models` lists them");
    }
    format!("{tag:?} is no tag of {name}: it has {}", tags.join(", "))
}

fn no_download(name: &str, tag: &str) -> ConfigError {
    let alone = || published::of_tag(tag).into_iter().next();
    let row = published::by_tag(name, tag).or_else(|| if published::has_tags(name) { None } else { alone() });
    let Some(row) = row else {
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
