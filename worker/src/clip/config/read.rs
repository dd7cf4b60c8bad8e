//! From JSON to towers. Defaults and meaning of all keys are those of `CLIPVisionCfg` and `CLIPTextCfg` (open_clip 3.3.0,
//! `model.py`).

use super::keys::Keys;
use super::{
    ImagePool, ModelConfig, ResNetConfig, Result, Stack, TextConfig, TextPool, TextProjection, TokenizerConfig,
    VisionConfig, VisionKind, VitConfig, object,
};
use serde_json::{Map, Value};

/// `ln(1 / 0.07)`.
const INIT_LOGIT_SCALE: f64 = 2.659_260_036_932_778;
/// PyTorch's default of a layer norm.
const NORM_EPS: f64 = 1e-5;

/// Keys OpenCLIP knows and Argosy builds at this value only; the value is what a key left out means.
fn fixed_vision() -> Value {
    serde_json::json!({
        "attentional_pool": false, "pos_embed_type": "learnable", "output_tokens": false,
        "qk_norm": false, "scaled_cosine_attn": false, "scale_heads": false,
        "scale_attn_inner": false, "scale_attn": false, "scale_fc": false, "timm_model_name": null,
        "timm_model_pretrained": false, "timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": false,
        "timm_drop": 0.0, "timm_drop_path": null, "attn_pooler_queries": 256, "attn_pooler_heads": 8
    })
}

fn fixed_text() -> Value {
    serde_json::json!({
        "embed_cls": false, "output_tokens": false, "qk_norm": false,
        "scaled_cosine_attn": false, "scale_heads": false, "scale_attn_inner": false, "scale_attn": false,
        "scale_fc": false, "hf_model_name": null, "hf_model_pretrained": true, "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler"
    })
}

pub(super) fn model(value: &Value) -> Result<ModelConfig> {
    let top = object("model_cfg", value)?;
    let mut keys = Keys::new("", top);
    if top.get("multimodal_cfg").is_some_and(|v| !v.is_null()) {
        return Err(keys.unsupported("multimodal_cfg", "Argosy has no captioning decoder (CoCa)"));
    }
    let embed_dim = keys.whole("embed_dim", None, 1 << 20)?;
    let quick_gelu = keys.flag("quick_gelu", false)?;
    let vision = vision(object("vision_cfg", keys.take("vision_cfg"))?, quick_gelu)?;
    let text = text(object("text_cfg", keys.take("text_cfg"))?, embed_dim, quick_gelu)?;
    let config = ModelConfig {
        embed_dim,
        quick_gelu,
        vision,
        text,
        custom_text: keys.flag("custom_text", false)?,
        init_logit_scale: keys.float("init_logit_scale")?.unwrap_or(INIT_LOGIT_SCALE),
        init_logit_bias: keys.float("init_logit_bias")?,
        nonscalar_logit_scale: keys.flag("nonscalar_logit_scale", false)?,
        source: value.clone(),
    };
    keys.finish(&serde_json::json!({"multimodal_cfg": null}))?;
    Ok(config)
}

fn vision(map: &Map<String, Value>, quick_gelu: bool) -> Result<VisionConfig> {
    let mut keys = Keys::new("vision_cfg.", map);
    if map.get("timm_model_name").is_some_and(|v| !v.is_null()) {
        return Err(keys.unsupported("timm_model_name", "Argosy has no timm towers; choose a native ViT"));
    }
    let image_size = keys.whole("image_size", Some(224), 4096)?;
    let kind = if map.get("layers").is_some_and(Value::is_array) {
        VisionKind::ResNet(resnet(&mut keys, image_size)?)
    } else {
        VisionKind::Vit(vit(&mut keys, image_size, quick_gelu)?)
    };
    block_type(&mut keys)?;
    keys.finish(&fixed_vision())?;
    Ok(VisionConfig { image_size, kind })
}

fn resnet(keys: &mut Keys<'_>, image_size: i64) -> Result<ResNetConfig> {
    let list = keys.take("layers");
    let numbers = list.as_array().into_iter().flatten().filter_map(Value::as_i64);
    let numbers: Vec<i64> = numbers.filter(|n| (1..=1024).contains(n)).collect();
    let layers = numbers
        .try_into()
        .map_err(|_| keys.invalid("layers", format!("four whole numbers in 1..=1024 expected, got {list}")))?;
    let width = keys.whole("width", Some(768), 1 << 12)?;
    if width % 2 != 0 {
        return Err(keys.invalid("width", format!("{width} is odd; the stem begins with half of it")));
    }
    let head_width = keys.whole("head_width", Some(64), 32 * width)?;
    let heads = 32 * width / head_width;
    if (32 * width) % heads != 0 {
        return Err(keys.invalid(
            "head_width",
            format!("{heads} heads do not divide width {}", 32 * width),
        ));
    }
    if image_size < 32 {
        return Err(keys.invalid(
            "image_size",
            format!("at least 32 expected for a ResNet, got {image_size}"),
        ));
    }
    if image_size % 32 == 31 {
        // Its first convolution rounds up, so that one cell more comes out than there are positions.
        let (smaller, larger) = (image_size - 1, image_size + 1);
        return Err(keys.invalid(
            "image_size",
            format!("a ResNet gives one cell more than it has positions at {image_size}; choose {smaller} or {larger}"),
        ));
    }
    // OpenCLIP's ResNet does not look at these.
    for ignored in [
        "patch_size",
        "mlp_ratio",
        "ls_init_value",
        "patch_dropout",
        "no_ln_pre",
        "pool_type",
        "final_ln_after_pool",
        "act_kwargs",
        "norm_kwargs",
    ] {
        keys.take(ignored);
    }
    Ok(ResNetConfig { layers, width, heads })
}

fn vit(keys: &mut Keys<'_>, image_size: i64, quick_gelu: bool) -> Result<VitConfig> {
    let width = keys.whole("width", Some(768), 1 << 16)?;
    let head_width = keys.whole("head_width", Some(64), width)?;
    let heads = width / head_width;
    if width % heads != 0 {
        return Err(keys.invalid("head_width", format!("{heads} heads do not divide width {width}")));
    }
    let patch_size = keys.whole("patch_size", Some(16), 4096)?;
    if patch_size > image_size {
        return Err(keys.invalid("patch_size", format!("larger than image_size {image_size}")));
    }
    let pool = match keys.text("pool_type", "tok")? {
        "tok" => ImagePool::Token,
        "avg" => ImagePool::Average,
        "none" => {
            let why =
                "it gives a feature for every patch, and a contrast needs one for every picture; choose tok or avg";
            return Err(keys.unsupported("pool_type", why));
        }
        _ => return Err(keys.unsupported("pool_type", "choose tok or avg")),
    };
    let patch_dropout = keys.float("patch_dropout")?.unwrap_or(0.0);
    if !(0.0..1.0).contains(&patch_dropout) {
        return Err(keys.invalid(
            "patch_dropout",
            format!("a share from 0 to below 1 expected, got {patch_dropout}"),
        ));
    }
    Ok(VitConfig {
        patch_size,
        stack: stack(keys, width, heads, quick_gelu)?,
        ln_pre: !keys.flag("no_ln_pre", false)?,
        pool,
        norm_after_pool: keys.flag("final_ln_after_pool", false)?,
        patch_dropout,
    })
}

fn text(map: &Map<String, Value>, embed_dim: i64, quick_gelu: bool) -> Result<TextConfig> {
    let mut keys = Keys::new("text_cfg.", map);
    if map.get("hf_model_name").is_some_and(|v| !v.is_null()) {
        return Err(keys.unsupported("hf_model_name", "Argosy has no Hugging Face text towers"));
    }
    let width = keys.whole("width", Some(512), 1 << 16)?;
    let heads = keys.whole("heads", Some(8), width)?;
    if width % heads != 0 {
        return Err(keys.invalid("heads", format!("{heads} heads do not divide width {width}")));
    }
    let eos = keys.integer("eos_id", 2)?;
    let pool = match keys.text("pool_type", "argmax")? {
        "first" => TextPool::First,
        "last" => TextPool::Last,
        "argmax" => TextPool::Argmax,
        "eos" => TextPool::Eos(eos),
        "none" => {
            let why = "it gives a feature for every token, and a contrast needs one for every caption";
            return Err(keys.unsupported("pool_type", why));
        }
        _ => return Err(keys.unsupported("pool_type", "choose first, last, argmax or eos")),
    };
    // A pad mask, or a norm behind the pooling, OpenCLIP 3.3.0 reads but never builds.
    keys.integer("pad_id", 0)?;
    keys.flag("final_ln_after_pool", false)?;
    let biased = keys.flag("proj_bias", false)?;
    let projection = match keys.text("proj_type", "linear")? {
        "none" if width != embed_dim => {
            let why = format!("without a projection the width {width} must be embed_dim {embed_dim}");
            return Err(keys.invalid("proj_type", why));
        }
        "none" => TextProjection::None,
        _ if biased => TextProjection::Linear,
        _ => TextProjection::Matrix,
    };
    let config = TextConfig {
        context_length: keys.whole("context_length", Some(77), 4096)?,
        vocab_size: keys.whole("vocab_size", Some(49_408), 1 << 24)?,
        stack: stack(&mut keys, width, heads, quick_gelu)?,
        causal: !keys.flag("no_causal_mask", false)?,
        pool,
        projection,
        tokenizer: tokenizer(&mut keys)?,
    };
    block_type(&mut keys)?;
    keys.finish(&fixed_text())?;
    Ok(config)
}

fn tokenizer(keys: &mut Keys<'_>) -> Result<TokenizerConfig> {
    let mut out = TokenizerConfig {
        name: keys.word("hf_tokenizer_name")?,
        mode: keys.word("tokenizer_mode")?,
        ..TokenizerConfig::default()
    };
    let kwargs = keys.take("tokenizer_kwargs");
    if kwargs.is_null() {
        return Ok(out);
    }
    let mut kwargs = Keys::new(
        "text_cfg.tokenizer_kwargs.",
        object("text_cfg.tokenizer_kwargs", kwargs)?,
    );
    out.clean = kwargs.word("clean")?;
    out.reduction_mask = kwargs.word("reduction_mask")?;
    out.strip_sep_token = kwargs.flag("strip_sep_token", false)?;
    kwargs.finish(&Value::Null)?;
    Ok(out)
}

/// What `model_cfg` says of the tokenizer, read by itself.
pub(super) fn tokenizer_of(model: &Value) -> Result<TokenizerConfig> {
    tokenizer(&mut Keys::new("text_cfg.", object("text_cfg", &model["text_cfg"])?))
}

/// What `model_cfg` says of the activation, read by itself.
pub(super) fn quick_gelu_of(model: &Value) -> Result<bool> {
    Keys::new("", object("model_cfg", model)?).flag("quick_gelu", false)
}

/// OpenCLIP's other block is chosen by what Argosy does not build; this one also has a name.
fn block_type(keys: &mut Keys<'_>) -> Result<()> {
    match keys.text("block_type", "default")? {
        "default" => Ok(()),
        _ => Err(keys.unsupported("block_type", "Argosy builds only default")),
    }
}

fn stack(keys: &mut Keys<'_>, width: i64, heads: i64, quick_gelu: bool) -> Result<Stack> {
    let layers = keys.whole("layers", Some(12), 1024)?;
    let mlp_width = keys.mlp_width(width)?;
    let ls_init_value = keys.float("ls_init_value")?;
    let kwargs = keys.take("act_kwargs");
    let gelu_tanh = match kwargs {
        Value::Null => false,
        Value::Object(map) if map.is_empty() => false,
        _ if quick_gelu => {
            return Err(keys.unsupported("act_kwargs", "the quick GELU takes no arguments"));
        }
        Value::Object(map) if map.len() == 1 && kwargs["approximate"] == "tanh" => true,
        Value::Object(map) if map.len() == 1 && kwargs["approximate"] == "none" => false,
        _ => return Err(keys.unsupported("act_kwargs", r#"Argosy knows {"approximate": "tanh"} only"#)),
    };
    let kwargs = keys.take("norm_kwargs");
    let norm_eps = match kwargs {
        Value::Null => NORM_EPS,
        Value::Object(map) if map.is_empty() => NORM_EPS,
        Value::Object(map) if map.len() == 1 => kwargs["eps"].as_f64().unwrap_or(-1.0),
        _ => -1.0,
    };
    if !(0.0..1.0).contains(&norm_eps) {
        return Err(keys.unsupported("norm_kwargs", r#"Argosy knows {"eps": NUMBER} only"#));
    }
    Ok(Stack {
        width,
        layers,
        heads,
        mlp_width,
        ls_init_value,
        gelu_tanh,
        norm_eps,
    })
}
