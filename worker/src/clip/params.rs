//! All parameters in one flat buffer, names sorted; the towers hold views into it.

use super::config::ModelConfig;
use super::ops::Math;
use super::specs::{BATCHES_TRACKED, Specs, elements};
use crate::engine::{EngineError, Result, TensorSpec};
use argosy_torch_ext::FlatBuffer;
use std::collections::{BTreeMap, BTreeSet};
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
    /// Elements of the parameters; behind them lie the running statistics of BatchNorm.
    trained: usize,
    held: Held,
    /// Parameters that are not trained: no gradient is computed of them.
    frozen: BTreeSet<String>,
    /// Whether BatchNorm keeps its running statistics and uses them in training.
    frozen_statistics: bool,
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
        let specs = Specs::of(config);
        let (trained, total) = (specs.parameters(), specs.elements());
        let device = held.device;
        let (mut values, grads) = (
            FlatBuffer::zeros_for(total, device)?,
            FlatBuffer::zeros_for(total, device)?,
        );
        let (mut table, mut index) = (Vec::new(), BTreeMap::new());
        let mut offset = 0;
        for (name, (shape, init)) in specs.trained.into_iter().chain(specs.buffers) {
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
            trained,
            held,
            frozen: BTreeSet::new(),
            frozen_statistics: false,
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

    /// Names, shapes and places: parameters sorted by name, then running statistics sorted by name.
    #[must_use]
    pub fn table(&self) -> &[TensorSpec] {
        &self.table
    }

    /// Those of the parameters.
    #[must_use]
    pub fn trained(&self) -> &[TensorSpec] {
        &self.table[..self
            .table
            .partition_point(|spec| spec.offset + spec.len <= self.trained)]
    }

    /// Those of BatchNorm's running statistics.
    #[must_use]
    pub fn buffers(&self) -> &[TensorSpec] {
        &self.table[self.trained().len()..]
    }

    /// Says which parameters are not trained; before towers are made of them.
    pub fn lock(&mut self, frozen: BTreeSet<String>, statistics: bool) {
        (self.frozen, self.frozen_statistics) = (frozen, statistics);
    }

    /// Whether the parameter is trained.
    #[must_use]
    pub fn trains(&self, name: &str) -> bool {
        !self.frozen.contains(name)
    }

    /// Whether any of the parameters whose names `of` holds for is trained.
    #[must_use]
    pub fn trains_any(&self, of: impl Fn(&str) -> bool) -> bool {
        self.trained()
            .iter()
            .any(|spec| of(&spec.name) && self.trains(&spec.name))
    }

    /// Whether BatchNorm keeps its running statistics and uses them in training.
    #[must_use]
    pub fn statistics_frozen(&self) -> bool {
        self.frozen_statistics
    }

    /// Elements of the parameters, which come first.
    #[must_use]
    pub fn trained_elements(&self) -> usize {
        self.trained
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
        for spec in self.trained() {
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

    /// Brings gradients that were made on a device into `grads`; what lies behind the parameters there was made here.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn fetch_grads(&mut self) -> Result<()> {
        if let Some(remote) = &self.remote_grads {
            let own = |flat: &Tensor| flat.f_narrow(0, 0, self.trained as i64);
            own(self.grads.tensor())?.f_copy_(&own(remote)?)?;
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

/// Whether a tensor is a count of batches, which files hold as an integer.
pub(crate) fn counts_batches(name: &str) -> bool {
    name.ends_with(BATCHES_TRACKED)
}

/// Whether OpenCLIP's `convert_weights_to_lp` takes this parameter: linear layers and convolutions with their biases, the
/// attention's packed projection, and the towers' projections.
fn is_product(name: &str, shape: &[i64]) -> bool {
    let last_two = name.rsplitn(3, '.').collect::<Vec<_>>();
    let of = last_two.get(1).copied().unwrap_or_default();
    let linear = [
        "out_proj",
        "c_fc",
        "c_proj",
        "q_proj",
        "k_proj",
        "v_proj",
        "text_projection",
        "conv1",
        "conv2",
        "conv3",
    ];
    let linear = linear.contains(&of) || name.ends_with("downsample.0.weight");
    let name = name.strip_prefix("text.").unwrap_or(name);
    linear || name.contains("in_proj_") || (shape.len() == 2 && matches!(name, "text_projection" | "visual.proj"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_of_vit_b_32_number_as_published() {
        let config = ModelConfig::by_name("ViT-B-32").unwrap();
        let total = Specs::of(&config).parameters();
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
