//! What is compared: a small model for every switch of OpenCLIP's native towers, and a small twin of every native
//! configuration.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// One model, as OpenCLIP is to build and train it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// What it shows.
    pub(crate) about: String,
    /// Its `model_cfg`.
    pub(crate) config: Value,
    /// Arguments of `tests/peers/dump.py`.
    pub(crate) args: Vec<&'static str>,
    /// Lanes with rows of their own; no more workers than that can share them.
    pub(crate) lanes: usize,
}

/// Rows of a batch; no number of workers above one divides them.
const ROWS: usize = 11;
const BATCH: &[&str] = &["--batch", "11", "--fp64"];

/// The small ViT and text tower that the cases change.
fn base() -> Value {
    json!({
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 512, "width": 64, "heads": 4, "layers": 2},
    })
}

/// `with`'s keys put into `config`, objects into objects.
fn merge(config: &mut Value, with: &Value) {
    match (config.as_object_mut(), with.as_object()) {
        (Some(config), Some(with)) => {
            for (key, value) in with {
                merge(config.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        _ => *config = with.clone(),
    }
}

fn case(name: &str, about: &str, with: Value, args: &[&[&'static str]], lanes: usize) -> Case {
    let mut config = base();
    merge(&mut config, &with);
    Case {
        name: name.into(),
        about: about.into(),
        config,
        args: args.concat(),
        lanes,
    }
}

/// A ViT or text tower of another kind.
fn vit(name: &str, about: &str, with: Value) -> Case {
    case(name, about, with, &[BATCH], ROWS)
}

/// Every switch of the native towers.
pub(crate) fn switches() -> Vec<Case> {
    let resnet = |layers: [i64; 4]| json!({"image_size": 64, "layers": layers, "width": 8, "head_width": 32, "patch_size": null});
    let by_lanes: &[&[&str]] = &[&["--batch", "40", "--lanes", "5", "--fp64"]];
    let mut out = vit_switches();
    out.extend(text_switches());
    out.extend([
        case(
            "siglip",
            "sigmoid loss with its bias, projection with a bias, all tokens see all",
            json!({"custom_text": true,
            "text_cfg": {"proj_bias": true, "no_causal_mask": true, "pool_type": "last"}}),
            &[BATCH, &["--siglip"]],
            ROWS,
        ),
        case(
            "resnet",
            "ModifiedResNet, statistics of the whole batch",
            json!({"vision_cfg": resnet([1, 2, 1, 1])}),
            &[&["--batch", "16", "--fp64"]],
            1,
        ),
        case(
            "resnet-lanes",
            "ModifiedResNet, statistics of each of five lanes",
            json!({"vision_cfg": resnet([1, 1, 2, 1])}),
            by_lanes,
            5,
        ),
        case(
            "decay-main",
            "what decays on OpenCLIP's main branch",
            json!({}),
            &[BATCH, &["--decay", "main", "--wd", "2"]],
            ROWS,
        ),
        case(
            "decay-main-resnet",
            "the same, where a ResNet excepts nothing",
            json!({"vision_cfg": resnet([1, 1, 1, 1])}),
            &[&["--batch", "16", "--fp64", "--decay", "main", "--wd", "2"]],
            1,
        ),
        case(
            "resnet-quickgelu",
            "the same with QuickGELU in the text tower, which is all that it changes",
            json!({"quick_gelu": true, "vision_cfg": resnet([1, 1, 1, 1])}),
            by_lanes,
            5,
        ),
        case(
            "long-run",
            "200 steps on five batches in turn, until they are learned",
            json!({}),
            &[&["--batch", "11", "--fp64", "--steps", "200", "--distinct", "5"]],
            ROWS,
        ),
    ]);
    out
}

fn vit_switches() -> Vec<Case> {
    let vision = |with: Value| json!({"vision_cfg": with});
    vec![
        vit("vit", "class token, ln_pre, GELU", json!({})),
        vit(
            "quickgelu-remainder",
            "QuickGELU, pixels that no patch covers",
            json!({"quick_gelu": true, "vision_cfg": {"image_size": 37}}),
        ),
        vit("average", "average pool", vision(json!({"pool_type": "avg"}))),
        vit(
            "average-norm-after",
            "average pool, norm behind it",
            vision(json!({"pool_type": "avg", "final_ln_after_pool": true})),
        ),
        vit(
            "token-norm-after",
            "class token, norm behind the pooling",
            vision(json!({"final_ln_after_pool": true})),
        ),
        vit(
            "clipa",
            "CLIPA: no ln_pre, average pool, norm behind it, no causal mask, last token",
            json!({
            "vision_cfg": {"no_ln_pre": true, "pool_type": "avg", "final_ln_after_pool": true},
            "text_cfg": {"no_causal_mask": true, "pool_type": "last"}}),
        ),
        vit(
            "layer-scale",
            "layer scale in both towers",
            json!({"vision_cfg": {"ls_init_value": 0.1}, "text_cfg": {"ls_init_value": 0.05}}),
        ),
        vit(
            "widths",
            "heads and MLPs of other widths",
            json!({"vision_cfg": {"width": 88, "head_width": 22, "mlp_ratio": 4.3637},
            "text_cfg": {"mlp_ratio": 2.5, "heads": 2}}),
        ),
        vit(
            "patch-dropout",
            "patches left out by the rows' numbers",
            vision(json!({"patch_dropout": 0.5})),
        ),
        vit(
            "norm-eps",
            "another epsilon of the norms, GELU by tanh",
            json!({
            "vision_cfg": {"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}},
            "text_cfg": {"norm_kwargs": {"eps": 1e-3}}}),
        ),
    ]
}

fn text_switches() -> Vec<Case> {
    let text = |with: Value| json!({"text_cfg": with});
    vec![
        vit(
            "custom-text",
            "text tower under `text.`, projection with a bias",
            json!({"custom_text": true, "text_cfg": {"proj_bias": true}}),
        ),
        vit(
            "eos",
            "first end of text by its id",
            text(json!({"pool_type": "eos", "eos_id": 511})),
        ),
        vit(
            "first",
            "first token, no causal mask",
            text(json!({"pool_type": "first", "no_causal_mask": true})),
        ),
        vit(
            "last",
            "last token behind a causal mask",
            text(json!({"pool_type": "last"})),
        ),
        vit(
            "argmax-all",
            "largest id, no causal mask",
            text(json!({"no_causal_mask": true})),
        ),
        vit(
            "no-projection",
            "no text projection, a bias that the softmax loss does not see, vectors of one element",
            json!({
            "embed_dim": 64, "init_logit_bias": -10.0, "nonscalar_logit_scale": true, "text_cfg": {"proj_type": "none"}}),
        ),
        vit(
            "context",
            "own context length and vocabulary",
            text(json!({"context_length": 33, "vocab_size": 1000})),
        ),
    ]
}

/// Small twins of the native configurations in `models` (`worker/src/clip/models.json`): two layers and two heads of the same
/// width, small pictures and captions, all switches as they are. Configurations with the same twin share a case.
pub(crate) fn twins(models: &Value) -> Result<Vec<Case>> {
    let native = models["native"]
        .as_object()
        .context("models.json has no object `native`")?;
    let mut names: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, config) in native.iter().filter(|(name, _)| !name.starts_with("demo-")) {
        names.entry(twin(config).to_string()).or_default().push(name);
    }
    let twin_of = |(config, names): (String, Vec<&str>)| -> Result<Case> {
        let config: Value = serde_json::from_str(&config)?;
        let resnet = config["vision_cfg"]["layers"].is_array();
        Ok(Case {
            name: format!("twin-{}", names[0]),
            about: format!("small twin of {}", names.join(", ")),
            config,
            args: if resnet {
                vec!["--batch", "40", "--lanes", "5", "--fp64"]
            } else {
                BATCH.to_vec()
            },
            lanes: if resnet { 5 } else { ROWS },
        })
    };
    names.into_iter().map(twin_of).collect()
}

fn twin(config: &Value) -> Value {
    let mut twin = config.clone();
    twin["embed_dim"] = json!(32);
    let vision = &mut twin["vision_cfg"];
    if vision["layers"].is_array() {
        merge(vision, &json!({"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}));
    } else {
        let head = vision["head_width"].as_u64().unwrap_or(64);
        let patch = vision["patch_size"].as_u64().unwrap_or(16);
        merge(
            vision,
            &json!({"layers": 2, "width": 2 * head, "image_size": 3 * patch}),
        );
    }
    let text = &mut twin["text_cfg"];
    merge(
        text,
        &json!({"layers": 2, "width": 64, "heads": 2, "context_length": 16, "vocab_size": 512}),
    );
    if !text["eos_id"].is_null() {
        text["eos_id"] = json!(511);
    }
    twin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_have_names_of_their_own_and_are_fourteen_or_more() {
        let mut names: Vec<String> = switches().into_iter().map(|case| case.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(count >= 14, "{count}");
    }

    #[test]
    fn twins_keep_every_switch_and_cover_every_native_configuration_once() {
        let models: Value = serde_json::from_str(include_str!("../../../../worker/src/clip/models.json")).unwrap();
        let twins = twins(&models).unwrap();
        let said: usize = twins.iter().map(|case| case.about.matches(", ").count() + 1).sum();
        assert_eq!(said, 55);
        let of = |name: &str| {
            let found = twins.iter().find(|case| case.about.contains(name));
            found.unwrap_or_else(|| panic!("{name} has no twin")).config.clone()
        };
        assert_eq!(of("ViT-bigG-14-CLIPA")["vision_cfg"]["mlp_ratio"], 4.9231);
        assert_eq!(of("ViT-H-14-CLIPA")["text_cfg"]["pool_type"], "last");
        assert_eq!(of("ViT-H-14-378-quickgelu")["quick_gelu"], true);
        assert_eq!(of("ViT-M-16-alt")["vision_cfg"]["ls_init_value"], 1e-4);
        assert!(of("RN50x64")["vision_cfg"]["layers"].is_array());
    }
}
