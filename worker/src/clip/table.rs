//! The page that says of every configuration of open_clip whether it is built (`ops/models.md`).

use super::ModelConfig;
use super::config::{Activation, ImagePool, Known, Stack, TextConfig, TextPool, VisionConfig, VisionKind, known};
use super::specs::Specs;
use std::fmt::Write;

const HEAD: &str = "# Models of open_clip 3.3.0\n
Written by `ARGOSY_BLESS=1 cargo test -p argosy-worker models_page`; a test holds names, configurations, counts and shapes against \
what open_clip says\n(`tests/goldens/models.json`), without allocating a weight. `cargo xtask \
parity` trains a small twin of each beside OpenCLIP's.\n";

/// The page.
#[must_use]
pub fn page() -> String {
    let all: Vec<Known> = known().into_iter().filter(|m| !m.name.starts_with("demo-")).collect();
    let built: Vec<(&str, ModelConfig)> = all
        .iter()
        .filter(|m| m.config.is_ok())
        .filter_map(|m| Some((m.name.as_str(), ModelConfig::by_name(&m.name).ok()?)))
        .collect();
    let mut out = HEAD.to_owned();
    let (count, refused) = (all.len(), all.len() - built.len());
    let _ = write!(
        out,
        "\n{count} configurations: {} are built, {refused} are refused by name.\n\n## Built\n\n| name | parameters | embed \
         | image tower | text tower |\n|---|---|---|---|---|\n",
        built.len()
    );
    for (name, config) in &built {
        let parameters = Specs::of(config).parameters() as f64 / 1e6;
        let (image, text) = (image(config), text(config));
        let _ = writeln!(
            out,
            "| {name} | {parameters:.2} M | {} | {image} | {text} |",
            config.embed_dim
        );
    }
    out += "\n## Refused\n\n| it has | names | |\n|---|---|---|\n";
    let mut reasons: Vec<&String> = all.iter().filter_map(|m| m.config.as_ref().err()).collect();
    reasons.sort();
    reasons.dedup();
    for reason in reasons {
        let names: Vec<&str> = all
            .iter()
            .filter(|m| m.config.as_ref() == Err(reason))
            .map(|m| m.name.as_str())
            .collect();
        let _ = writeln!(out, "| {reason} | {} | {} |", names.len(), names.join(", "));
    }
    out
}

fn image(config: &ModelConfig) -> String {
    let VisionConfig { image_size, kind } = &config.vision;
    match kind {
        VisionKind::ResNet(resnet) => {
            let layers = resnet.layers.map(|n| n.to_string()).join(" ");
            format!(
                "ResNet {layers}, width {}, {} heads, {image_size} px",
                resnet.width, resnet.heads
            )
        }
        VisionKind::Vit(vit) => {
            let mut said = format!(
                "ViT {}, patch {}, {image_size} px",
                stack(&vit.stack, config.quick_gelu),
                vit.patch_size
            );
            if !vit.ln_pre {
                said += ", no ln_pre";
            }
            if vit.pool == ImagePool::Average {
                said += ", average pool";
            }
            if vit.norm_after_pool {
                said += ", norm after it";
            }
            said
        }
    }
}

fn text(config: &ModelConfig) -> String {
    let TextConfig {
        context_length,
        vocab_size,
        ..
    } = config.text;
    let mut said = format!(
        "{}, {context_length} of {vocab_size} ids",
        stack(&config.text.stack, config.quick_gelu)
    );
    if !config.text.causal {
        said += ", no causal mask";
    }
    match config.text.pool {
        TextPool::Argmax => {}
        TextPool::First => said += ", first token",
        TextPool::Last => said += ", last token",
        TextPool::Eos(id) => {
            let _ = write!(said, ", first id {id}");
        }
    }
    said
}

fn stack(stack: &Stack, quick_gelu: bool) -> String {
    let Stack {
        layers, width, heads, ..
    } = stack;
    let mut said = format!("{layers} x {width}, {heads} heads");
    if stack.mlp_width != 4 * width {
        let _ = write!(said, ", MLP {}", stack.mlp_width);
    }
    if stack.ls_init_value.is_some() {
        said += ", layer scale";
    }
    if stack.activation(quick_gelu) == Activation::QuickGelu {
        said += ", QuickGELU";
    }
    said
}
