//! What an engine is made with.

use crate::clip::locks::Locks;
use crate::clip::{Held, Math, Rounded};
use crate::optim::{DecayRule, LayerDecay};
use argosy_common::config::{Loss, Precision};
use tch::{Device, Kind};

/// What a [`TorchEngine`] needs to know beyond the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TorchOptions {
    /// Initial weights are a function of this and the configuration.
    pub seed: u64,
    /// Threads inside one operation, for the whole process; 0 leaves libtorch's choice.
    pub threads: usize,
    /// What decays.
    pub decay: DecayRule,
    /// How learning rates fall towards the inputs.
    pub layer_decay: LayerDecay,
    /// What is not trained.
    pub locks: Locks,
    /// Edge of a tile of logits.
    pub tile: usize,
    /// In which numbers the towers compute.
    pub precision: Precision,
    pub loss: Loss,
    /// Keeps the blocks' inputs alone for the way back and computes the rest again there.
    pub grad_checkpointing: bool,
    /// Keeps a moving average of the weights, as a fourth array of the state.
    pub ema: bool,
    /// Refuses to choose smaller micro-batches when memory is short, since they would change bits (rule N4).
    pub fixed_shapes: bool,
    pub device: Device,
}

impl Default for TorchOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            threads: 1,
            decay: DecayRule::Classic,
            layer_decay: LayerDecay::default(),
            locks: Locks::default(),
            tile: 1024,
            precision: Precision::Fp32,
            loss: Loss::Clip,
            grad_checkpointing: false,
            ema: false,
            fixed_shapes: false,
            device: Device::Cpu,
        }
    }
}

impl TorchOptions {
    pub(super) fn held(&self) -> Held {
        let (gemm, stream, rounded) = match self.precision {
            Precision::Fp32 => (Kind::Float, Kind::Float, Rounded::None),
            Precision::AmpBf16 => (Kind::BFloat16, Kind::Float, Rounded::None),
            Precision::Bf16 => (Kind::BFloat16, Kind::BFloat16, Rounded::Products),
            Precision::PureBf16 => (Kind::BFloat16, Kind::BFloat16, Rounded::All),
        };
        Held {
            math: Math { gemm, stream },
            rounded,
            device: self.device,
        }
    }
}
