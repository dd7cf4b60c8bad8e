//! All parameters in one flat buffer, names sorted; the towers hold views into it.

use super::config::ModelConfig;
use super::init::Init;
use crate::engine::{EngineError, Result, TensorSpec};
use argosy_torch_ext::{FlatBuffer, set_grad};
use std::collections::BTreeMap;
use tch::Tensor;

/// Largest value of the `logit_scale` parameter: the scale is at most 100 (Radford et al. 2021, section 2.5).
pub const LOGIT_SCALE_MAX: f64 = 4.605_170_185_988_092;

/// Parameters and gradients of a model, each one contiguous buffer in the canonical order.
#[derive(Debug)]
pub struct Params {
    table: Vec<TensorSpec>,
    index: BTreeMap<String, usize>,
    leaves: Vec<Tensor>,
    grad_views: Vec<Tensor>,
    /// Values `[P]`.
    pub values: FlatBuffer,
    /// Gradients `[P]`; a backward pass adds to them.
    pub grads: FlatBuffer,
}

impl Params {
    /// Parameters of `config`, drawn from `seed` by OpenCLIP's distributions.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn new(config: &ModelConfig, seed: u64) -> Result<Self> {
        let specs = specs(config);
        let total = specs.values().map(|(shape, _)| elements(shape)).sum();
        let (mut values, grads) = (FlatBuffer::zeros(total)?, FlatBuffer::zeros(total)?);
        let (mut table, mut index) = (Vec::new(), BTreeMap::new());
        let mut offset = 0;
        for (name, (shape, init)) in specs {
            let len = elements(&shape);
            init.fill(seed, &name, &mut values.as_mut_slice()[offset..offset + len]);
            index.insert(name.clone(), table.len());
            table.push(TensorSpec {
                name,
                shape,
                offset,
                len,
            });
            offset += len;
        }
        let (mut leaves, mut grad_views) = (Vec::new(), Vec::new());
        for spec in &table {
            let leaf = values.leaf(spec.offset, &spec.shape)?;
            let grad = grads.view(spec.offset, &spec.shape)?;
            set_grad(&leaf, &grad)?;
            leaves.push(leaf);
            grad_views.push(grad);
        }
        Ok(Self {
            table,
            index,
            leaves,
            grad_views,
            values,
            grads,
        })
    }

    /// Parameters of a model of `config`, without making one.
    #[must_use]
    pub fn count(config: &ModelConfig) -> usize {
        specs(config).values().map(|(shape, _)| elements(shape)).sum()
    }

    /// Names, shapes and places.
    #[must_use]
    pub fn table(&self) -> &[TensorSpec] {
        &self.table
    }

    /// The leaf named `name`; shares the buffer's memory.
    ///
    /// # Errors
    /// When there is none.
    pub fn leaf(&self, name: &str) -> Result<Tensor> {
        Ok(self.leaves[self.place(name)?].shallow_clone())
    }

    /// The gradient of `name`; shares the buffer's memory.
    ///
    /// # Errors
    /// When there is none.
    pub fn grad(&self, name: &str) -> Result<Tensor> {
        Ok(self.grad_views[self.place(name)?].shallow_clone())
    }

    /// Where `name` lies.
    ///
    /// # Errors
    /// When there is none.
    pub fn spec(&self, name: &str) -> Result<&TensorSpec> {
        Ok(&self.table[self.place(name)?])
    }

    fn place(&self, name: &str) -> Result<usize> {
        self.index
            .get(name)
            .copied()
            .ok_or_else(|| EngineError::State(format!("the model has no tensor {name:?}")))
    }
}

/// Elements of a shape; 1 for a scalar.
#[must_use]
pub fn elements(shape: &[i64]) -> usize {
    shape.iter().product::<i64>().max(0) as usize
}

type Specs = BTreeMap<String, (Vec<i64>, Init)>;

/// Name, shape and initial distribution of every parameter (open_clip 3.3.0: `CLIP.__init__`,
/// `VisionTransformer.__init__`, `TextTransformer.init_parameters`; the rest are PyTorch's defaults).
fn specs(config: &ModelConfig) -> Specs {
    let (v, t, embed) = (&config.vision, &config.text, config.embed_dim);
    let mut out = Specs::new();
    let mut put = |name: &str, shape: &[i64], init: Init| {
        out.insert(name.to_owned(), (shape.to_vec(), init));
    };
    put("logit_scale", &[], Init::Constant((1.0f64 / 0.07).ln()));

    let scale = (v.width as f64).powf(-0.5);
    let grid = v.image_size / v.patch_size;
    put("visual.class_embedding", &[v.width], Init::Normal(scale));
    put(
        "visual.positional_embedding",
        &[grid * grid + 1, v.width],
        Init::Normal(scale),
    );
    put("visual.proj", &[v.width, embed], Init::Normal(scale));
    let fan_in = 3 * v.patch_size * v.patch_size;
    put(
        "visual.conv1.weight",
        &[v.width, 3, v.patch_size, v.patch_size],
        Init::fan_in(fan_in),
    );

    put("token_embedding.weight", &[t.vocab_size, t.width], Init::Normal(0.02));
    put("positional_embedding", &[t.context_length, t.width], Init::Normal(0.01));
    put(
        "text_projection",
        &[t.width, embed],
        Init::Normal((t.width as f64).powf(-0.5)),
    );

    for (prefix, width) in [
        ("visual.ln_pre", v.width),
        ("visual.ln_post", v.width),
        ("ln_final", t.width),
    ] {
        layer_norm(&mut out, prefix, width);
    }
    for layer in 0..v.layers {
        let w = v.width as f64;
        let inits = BlockInits {
            in_proj: Init::Uniform((6.0 / (4.0 * w)).sqrt()), // xavier_uniform_ over [3W, W]
            out_proj: Init::fan_in(v.width),
            c_fc: Init::fan_in(v.width),
            c_proj: Init::fan_in(v.mlp_width),
        };
        let prefix = format!("visual.transformer.resblocks.{layer}");
        block(&mut out, &prefix, v.width, v.mlp_width, v.ls_init_value, &inits);
    }
    for layer in 0..t.layers {
        let (attn, depth) = ((t.width as f64).powf(-0.5), (2.0 * t.layers as f64).powf(-0.5));
        let inits = BlockInits {
            in_proj: Init::Normal(attn),
            out_proj: Init::Normal(attn * depth),
            c_fc: Init::Normal((2.0 * t.width as f64).powf(-0.5)),
            c_proj: Init::Normal(attn * depth),
        };
        let prefix = format!("transformer.resblocks.{layer}");
        block(&mut out, &prefix, t.width, t.mlp_width, t.ls_init_value, &inits);
    }
    out
}

struct BlockInits {
    in_proj: Init,
    out_proj: Init,
    c_fc: Init,
    c_proj: Init,
}

fn layer_norm(out: &mut Specs, prefix: &str, width: i64) {
    out.insert(format!("{prefix}.weight"), (vec![width], Init::Constant(1.0)));
    out.insert(format!("{prefix}.bias"), (vec![width], Init::Constant(0.0)));
}

fn block(out: &mut Specs, prefix: &str, width: i64, mlp: i64, ls: Option<f64>, init: &BlockInits) {
    layer_norm(out, &format!("{prefix}.ln_1"), width);
    layer_norm(out, &format!("{prefix}.ln_2"), width);
    let mut put = |name: &str, shape: &[i64], init: Init| {
        out.insert(format!("{prefix}.{name}"), (shape.to_vec(), init));
    };
    put("attn.in_proj_weight", &[3 * width, width], init.in_proj);
    put("attn.in_proj_bias", &[3 * width], Init::Constant(0.0));
    put("attn.out_proj.weight", &[width, width], init.out_proj);
    put("attn.out_proj.bias", &[width], Init::Constant(0.0));
    put("mlp.c_fc.weight", &[mlp, width], init.c_fc);
    put("mlp.c_fc.bias", &[mlp], Init::fan_in(width));
    put("mlp.c_proj.weight", &[width, mlp], init.c_proj);
    put("mlp.c_proj.bias", &[width], Init::fan_in(mlp));
    if let Some(value) = ls {
        put("ls_1.gamma", &[width], Init::Constant(value));
        put("ls_2.gamma", &[width], Init::Constant(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_of_vit_b_32_number_as_published() {
        let config = ModelConfig::by_name("ViT-B-32").unwrap();
        let total: usize = specs(&config).values().map(|(shape, _)| elements(shape)).sum();
        assert_eq!(total, 151_277_313); // docs/model_profile.csv says 151.28 million
    }

    #[test]
    fn params_flat_order_is_sorted_gapless_and_shared_with_leaves() {
        let config = ModelConfig::by_name("demo-tiny").unwrap();
        let mut params = Params::new(&config, 3).unwrap();
        let mut end = 0;
        for pair in params.table().windows(2) {
            assert!(pair[0].name < pair[1].name && pair[0].offset + pair[0].len == pair[1].offset);
            end = pair[1].offset + pair[1].len;
        }
        assert_eq!(end, params.values.len());
        let at = params.spec("logit_scale").unwrap().offset;
        params.values.as_mut_slice()[at] = 1.5;
        assert_eq!(params.leaf("logit_scale").unwrap().double_value(&[]), 1.5);
        assert!(params.leaf("logit_scales").is_err());
    }
}
