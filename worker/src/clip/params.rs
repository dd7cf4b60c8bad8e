//! All parameters in one flat buffer, names sorted; the towers hold views into it.

use super::config::ModelConfig;
use super::init::Init;
use super::ops::Math;
use crate::engine::{EngineError, Result, TensorSpec};
use argosy_torch_ext::FlatBuffer;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Largest value of the `logit_scale` parameter: the scale is at most 100 (Radford et al. 2021, section 2.5).
pub const LOGIT_SCALE_MAX: f64 = 4.605_170_185_988_092;

/// Which weights are held in values that bfloat16 can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rounded {
    /// None.
    #[default]
    None,
    /// Those of matrix products, as OpenCLIP's `convert_weights_to_lp` picks them (`--precision bf16`).
    Products,
    /// All (`--precision pure_bf16`).
    All,
}

/// How parameters are held for computing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub math: Math,
    pub rounded: Rounded,
    pub device: Device,
}

impl Default for Held {
    fn default() -> Self {
        Self {
            math: Math {
                gemm: Kind::Float,
                stream: Kind::Float,
            },
            rounded: Rounded::None,
            device: Device::Cpu,
        }
    }
}

/// One parameter as the towers see it.
#[derive(Debug)]
pub struct Leaf {
    full: Tensor,
    low: Option<Tensor>,
    /// Its place in the flat gradient, in single precision.
    pub(crate) grad: Tensor,
}

impl Leaf {
    /// Its values in single precision or, where the model computes in it, bfloat16.
    pub(crate) fn at(&self, kind: Kind) -> &Tensor {
        match &self.low {
            Some(low) if kind != Kind::Float => low,
            _ => &self.full,
        }
    }

    fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            full: f(&self.full)?,
            low: self.low.as_ref().map(&f).transpose()?,
            grad: f(&self.grad)?,
        })
    }

    /// `[out, ...]` as `[out, in]`.
    pub(crate) fn as_matrix(&self) -> Result<Self> {
        let rows = self.full.size().first().copied().unwrap_or(1);
        self.map(|t| Ok(t.f_view([rows, -1])?))
    }

    /// Rows `start..start + len`.
    pub(crate) fn narrow(&self, start: i64, len: i64) -> Result<Self> {
        self.map(|t| Ok(t.f_narrow(0, start, len)?))
    }
}

/// Parameters and gradients of a model, each one contiguous buffer in the canonical order. On a GPU, and for bfloat16, there
/// are copies to compute with; [`Params::refresh`] brings them up to date after `values` was written.
#[derive(Debug)]
pub struct Params {
    table: Vec<TensorSpec>,
    index: BTreeMap<String, usize>,
    held: Held,
    /// Single precision on the device, where that is not `values` itself.
    remote: Option<Tensor>,
    remote_grads: Option<Tensor>,
    /// bfloat16 on the device, where matrix products want it.
    low: Option<Tensor>,
    /// Values `[P]`.
    pub values: FlatBuffer,
    /// Gradients `[P]`; a backward pass writes them.
    pub grads: FlatBuffer,
}

impl Params {
    /// Parameters of `config`, drawn from `seed` by OpenCLIP's distributions, in single precision on the CPU.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn new(config: &ModelConfig, seed: u64) -> Result<Self> {
        Self::held(config, seed, Held::default())
    }

    /// As [`Params::new`], held for computing as `held` says.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn held(config: &ModelConfig, seed: u64, held: Held) -> Result<Self> {
        let specs = specs(config);
        let total: usize = specs.values().map(|(shape, _)| elements(shape)).sum();
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
        let empty = |kind: Kind| Tensor::f_zeros([total as i64], (kind, held.device));
        let away = held.device != Device::Cpu;
        let mut this = Self {
            table,
            index,
            held,
            remote: away.then(|| empty(Kind::Float)).transpose()?,
            remote_grads: away.then(|| empty(Kind::Float)).transpose()?,
            low: (held.math.gemm != Kind::Float)
                .then(|| empty(held.math.gemm))
                .transpose()?,
            values,
            grads,
        };
        this.round()?;
        this.refresh()?;
        Ok(this)
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

    /// In which numbers the towers compute.
    #[must_use]
    pub fn math(&self) -> Math {
        self.held.math
    }

    /// Where they do.
    #[must_use]
    pub fn device(&self) -> Device {
        self.held.device
    }

    /// Rounds the weights that are held in bfloat16's values; after every update, and for given weights.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn round(&mut self) -> Result<()> {
        for spec in &self.table {
            let rounds = match self.held.rounded {
                Rounded::None => false,
                Rounded::Products => is_product(&spec.name, &spec.shape),
                Rounded::All => true,
            };
            if rounds {
                let mut view = self.values.view(spec.offset, &[spec.len as i64])?;
                let rounded = view.f_to_kind(Kind::BFloat16)?;
                view.f_copy_(&rounded)?;
            }
        }
        Ok(())
    }

    /// Brings the copies for computing up to date with `values`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn refresh(&mut self) -> Result<()> {
        if let Some(remote) = &mut self.remote {
            remote.f_copy_(self.values.tensor())?;
        }
        if let Some(low) = &mut self.low {
            low.f_copy_(self.remote.as_ref().unwrap_or(self.values.tensor()))?;
        }
        Ok(())
    }

    /// Brings gradients that were made on a device into `grads`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn fetch_grads(&mut self) -> Result<()> {
        if let Some(remote) = &self.remote_grads {
            self.grads.tensor().shallow_clone().f_copy_(remote)?;
        }
        Ok(())
    }

    /// The parameter named `name`; shares the buffers' memory.
    ///
    /// # Errors
    /// When there is none.
    pub fn leaf(&self, name: &str) -> Result<Leaf> {
        let spec = self.spec(name)?;
        let cut = |flat: &Tensor| -> Result<Tensor> {
            Ok(flat
                .f_narrow(0, spec.offset as i64, spec.len as i64)?
                .f_view(spec.shape.as_slice())?)
        };
        Ok(Leaf {
            full: cut(self.remote.as_ref().unwrap_or(self.values.tensor()))?,
            low: self.low.as_ref().map(cut).transpose()?,
            grad: cut(self.remote_grads.as_ref().unwrap_or(self.grads.tensor()))?,
        })
    }

    /// Where `name` lies.
    ///
    /// # Errors
    /// When there is none.
    pub fn spec(&self, name: &str) -> Result<&TensorSpec> {
        let place = self.index.get(name).copied();
        place
            .map(|at| &self.table[at])
            .ok_or_else(|| EngineError::State(format!("the model has no tensor {name:?}")))
    }
}

/// Whether OpenCLIP's `convert_weights_to_lp` takes this parameter: linear layers and convolutions with their biases, the
/// attention's packed projection, and the towers' projections.
fn is_product(name: &str, shape: &[i64]) -> bool {
    let last_two = name.rsplitn(3, '.').collect::<Vec<_>>();
    let of = last_two.get(1).copied().unwrap_or_default();
    let linear = ["out_proj", "c_fc", "c_proj", "conv1"].contains(&of);
    linear || name.contains("in_proj_") || (shape.len() == 2 && matches!(name, "text_projection" | "visual.proj"))
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
    put("logit_scale", &[], Init::Constant(config.init_logit_scale));
    if let Some(bias) = config.init_logit_bias {
        put("logit_bias", &[], Init::Constant(bias));
    }

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
        assert_eq!(
            params.leaf("logit_scale").unwrap().at(Kind::Float).double_value(&[]),
            1.5
        );
        assert!(params.leaf("logit_scales").is_err());
    }

    #[test]
    fn params_rounded_for_bf16_are_those_that_open_clip_converts() {
        let config = ModelConfig::by_name("demo-tiny").unwrap();
        let exact = |held: Rounded| -> Vec<String> {
            let held = Held {
                rounded: held,
                ..Held::default()
            };
            let mut params = Params::held(&config, 3, held).unwrap();
            params.values.as_mut_slice().iter_mut().for_each(|v| *v += 0.123_456_7);
            params.round().unwrap();
            let rounded = |s: &&TensorSpec| params.values.as_slice()[s.offset].to_bits() & 0xffff == 0;
            params.table().iter().filter(rounded).map(|s| s.name.clone()).collect()
        };
        let products = exact(Rounded::Products);
        for name in [
            "visual.conv1.weight",
            "visual.proj",
            "text_projection",
            "transformer.resblocks.0.attn.in_proj_bias",
            "visual.transformer.resblocks.1.mlp.c_fc.bias",
        ] {
            assert!(products.iter().any(|n| n == name), "{name}");
        }
        for part in ["ln_", "embedding", "logit"] {
            assert!(!products.iter().any(|n| n.contains(part)), "{part}");
        }
        assert_eq!(
            exact(Rounded::All).len(),
            Params::new(&config, 3).unwrap().table().len()
        );
        assert!(exact(Rounded::None).is_empty());
    }
}
