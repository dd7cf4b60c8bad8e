//! The border between a trainer, which knows lanes, peers and bytes, and the arithmetic, which knows tensors.
//!
//! Only plain slices cross it. One step is, in this order:
//!
//! 1. [`Engine::encode`] the own rows; gather features of all workers in lane order.
//! 2. [`Engine::own_lse`]; gather the three vectors of all workers in lane order.
//! 3. [`Engine::loss_backward`] fills the flat gradient with this worker's share of the sum.
//! 4. [`Engine::grads_flat`]; the collective adds it up over the workers, in place.
//! 5. [`Engine::apply`], the only call that changes replicated state.
//!
//! Nothing before `apply` changes what [`Engine::export_state`] gives, so a step may be abandoned after any call and
//! begun again with `encode`. Rows that are masked never reach an engine: the caller drops them first, and `V`, the
//! number of valid rows of the global batch, is the divisor everywhere.

use argosy_torch_ext::is_out_of_memory;
use std::fmt::Debug;

pub mod buckets;
pub mod sparse;
pub mod state;
pub mod torch;
pub mod toy;

pub use buckets::buckets;
pub use sparse::SparseTable;
pub use state::{StateRead, StateTensor};
pub use torch::{TorchEngine, TorchOptions};
pub use toy::ToyEngine;

/// What can go wrong in the arithmetic. None of these leaves replicated state half written.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A slice has the wrong length; the caller mixed up rows or steps.
    #[error("{what}: expected {expected} values, got {got}")]
    Length {
        what: &'static str,
        expected: usize,
        got: usize,
    },
    /// Calls came in an order that makes no sense, or an argument contradicts an earlier call.
    #[error("{0}")]
    Protocol(String),
    /// Whoever heard of the gradient's parts wants no more of this step; the next one begins with `encode`.
    #[error("the step was given up while its gradient was made")]
    GivenUp,
    /// A state, weight file or golden folder does not fit the model.
    #[error("{0}")]
    State(String),
    /// The model configuration cannot be used.
    #[error(transparent)]
    Config(#[from] crate::clip::ConfigError),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Tch(#[from] tch::TchError),
    /// libtorch refused an operation of our own C++ file.
    #[error(transparent)]
    Ext(#[from] argosy_torch_ext::ExtError),
}

/// Bytes of a chunk of the state that is hashed by itself.
pub const STATE_CHUNK_BYTES: usize = 64 << 20;

impl EngineError {
    /// Whether memory was short: the same work in smaller pieces may do.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Tch(error) => is_out_of_memory(&error.to_string()),
            Self::Ext(error) => error.is_out_of_memory(),
            _ => false,
        }
    }
}

/// Hears where a final part of the flat gradient begins, and its values; an empty part only asks whether to go on. An error
/// ([`EngineError::GivenUp`]) ends the pass.
pub type Ready<'a> = dyn FnMut(usize, &[f32]) -> Result<()> + 'a;

/// Result of an engine call.
pub type Result<T> = std::result::Result<T, EngineError>;

/// Valid rows of this worker, in lane order.
#[derive(Debug, Clone, Copy)]
pub struct RowsIn<'a> {
    /// Number of rows `n`; 0 is allowed.
    pub rows: usize,
    /// `[n, S, S, 3]`, NHWC, as decoded.
    pub pixels: &'a [u8],
    /// `[n, context]`, padded with 0 behind the end-of-text id.
    pub tokens: &'a [i32],
    /// `[n]`, ids up to and including the end-of-text id.
    pub lengths: &'a [u16],
}

/// L2-normalised features of the own rows, row-major `[rows, dim]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Encoded {
    /// Width of one feature.
    pub dim: usize,
    /// Image features.
    pub f: Vec<f32>,
    /// Text features.
    pub g: Vec<f32>,
}

/// Log-sum-exps of the own rows over all `V` columns, relative to the diagonal of the logits, and that diagonal; all
/// `[own rows]`. Opaque to all but the engine that made them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OwnLse {
    /// Image to text, over the row of each own image: `log sum_j exp(A_ij - A_ii)`.
    pub r: Vec<f32>,
    /// Text to image, over the column of each own text: `log sum_i exp(A_ij - A_jj)`.
    pub c: Vec<f32>,
    /// `s * F_i . G_i`.
    pub diag: Vec<f32>,
}

/// [`OwnLse`] of all workers, `[V]` each, in lane order.
#[derive(Debug, Clone, Copy)]
pub struct GatheredLse<'a> {
    pub r: &'a [f32],
    pub c: &'a [f32],
    pub diag: &'a [f32],
}

/// What the loss phase tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossOut {
    /// Loss of the global batch; the same bits on every worker.
    pub loss: f64,
}

/// Everything of one update that does not live in the state. All f64 so that every worker uses the same numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ApplyHyper {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Largest global L2 norm of the gradient; `None` leaves it alone.
    pub clip_norm: Option<f64>,
    /// What remains of the weights' moving average; for engines that keep one.
    pub ema_decay: Option<f64>,
}

/// What an update tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ApplyOut {
    /// Global L2 norm of the reduced gradient before clipping.
    pub grad_norm: f64,
    /// Scale `s` (not its logarithm) after the update.
    pub logit_scale: f64,
}

/// One tensor inside the canonical flat order (parameters with names sorted by bytes, then running statistics; no gaps).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// OpenCLIP's state-dict name.
    pub name: String,
    /// Empty for a scalar.
    pub shape: Vec<i64>,
    /// First element in the flat order.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

/// The arithmetic of training, on one thread.
///
/// The exported state is `params | exp_avg | exp_avg_sq | (moving average) | applied steps`: three or four arrays of
/// little-endian f32, each `P = state_elements` long in the order of [`Engine::tensor_table`], then one little-endian u64.
/// Equal bytes mean equal states.
pub trait Engine: Debug + Send {
    /// Width `d` of a feature.
    fn feature_dim(&self) -> usize;
    /// Edge `S` of an image in pixels.
    fn image_size(&self) -> usize;
    /// Ids per caption.
    fn context_length(&self) -> usize;
    /// The scale `s` that multiplies cosines (already exponentiated).
    fn logit_scale(&self) -> f64;

    /// Encodes the own rows. Up to `micro_rows` rows (at least 1) keep their graph for the backward pass; more run
    /// without one and are encoded again, piece by piece, in [`Engine::loss_backward`]. Forgets any step begun before.
    fn encode(&mut self, rows: &RowsIn<'_>, micro_rows: usize) -> Result<Encoded>;

    /// Says before `encode` how many of its rows each own lane has, in order, and gives every row a number of its own from
    /// which is drawn what is dropped at random (rule X3). For engines whose rows reach each other, or that drop anything.
    fn begin_lanes(&mut self, _rows: &[usize], _draws: &[u64]) {}

    /// Says before `loss_backward` which turn each own lane with rows has among the `of` lanes with rows (rule BN1).
    fn lane_turns(&mut self, _turns: &[usize], _of: usize) {}

    /// Log-sum-exps of the own rows. `own[k]` is the place of own row `k` among the `valid_rows` rows of `f_all` and
    /// `g_all`, both `[valid_rows, d]`.
    fn own_lse(&mut self, own: &[u32], valid_rows: usize, f_all: &[f32], g_all: &[f32]) -> Result<OwnLse>;

    /// Loss of the global batch, and this worker's share of its gradient into the flat gradient.
    fn loss_backward(&mut self, all: &GatheredLse<'_>) -> Result<LossOut>;

    /// As [`Engine::loss_backward`]; `ready` hears, while the rest is still being computed, of parts of the flat gradient that
    /// are final: where they begin and their values. Each part at most once; what it never hears of is final at the end. It is
    /// asked as often as the pass can end early, whether or not there is a part to tell of.
    fn loss_backward_overlapped(&mut self, all: &GatheredLse<'_>, _ready: &mut Ready<'_>) -> Result<LossOut> {
        self.loss_backward(all)
    }

    /// What people should hear of, since they were last told: one sentence each.
    fn take_notices(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// Puts the step begun last aside under `lane`, so that another one can be begun (rule N4 works lane by lane).
    fn park(&mut self, lane: u32) -> Result<()> {
        Err(EngineError::Protocol(format!(
            "this engine cannot put lane {lane} aside; deterministic mode needs one that can"
        )))
    }

    /// Takes up the step that was put aside under `lane`.
    fn resume(&mut self, lane: u32) -> Result<()> {
        Err(EngineError::Protocol(format!("nothing was put aside for lane {lane}")))
    }

    /// Forgets all that was put aside, as a step that was abandoned leaves it.
    fn forget_parked(&mut self) {}

    /// The flat gradient, `[P]`; zero where this worker's rows reach nothing.
    fn grads_flat(&mut self) -> Result<&mut [f32]>;

    /// The table whose gradient reaches few rows, where the model has one worth leaving out (see [`sparse`]).
    fn sparse_table(&self) -> Option<SparseTable> {
        None
    }

    /// Rows of [`Engine::sparse_table`] that the own rows of this step reach, ascending; known after `encode`.
    fn touched_rows(&self) -> &[u32] {
        &[]
    }

    /// Updates the state from the reduced flat gradient: clip, AdamW, clamp of the scale. Every check comes before the
    /// first write.
    fn apply(&mut self, hyper: &ApplyHyper) -> Result<ApplyOut>;

    /// Names and places of the flat order.
    fn tensor_table(&self) -> Vec<TensorSpec>;

    /// `P`, elements of the flat order.
    fn state_elements(&self) -> usize;

    /// Arrays of `P` in an exported state: three, or four with a moving average of the weights.
    fn state_arrays(&self) -> usize {
        3
    }

    /// Tensors of the exported state in order: what checkpoints hold, and under which names.
    fn state_table(&self) -> Vec<StateTensor> {
        let prefixes = ["", "exp_avg.", "exp_avg_sq.", "ema."];
        state::state_table(&self.tensor_table(), &prefixes[..self.state_arrays()])
    }

    /// Bytes of an exported state.
    fn state_len(&self) -> usize {
        self.state_elements() * self.state_arrays() * 4 + 8
    }

    /// Reads the state beside a forward and backward pass; [`Engine::wait_for_readers`] comes before the next change.
    fn state_reader(&self) -> Box<dyn StateRead> {
        let mut bytes = Vec::new();
        self.export_state(&mut bytes);
        Box::new(state::ExportedState(bytes))
    }

    /// Returns when no reader of [`Engine::state_reader`] is left. Whatever changes the state waits by itself; a trainer
    /// calls it to know how long that took.
    fn wait_for_readers(&self) {}

    /// Updates applied so far; counts bias correction, is part of the state.
    fn applied_steps(&self) -> u64;

    /// Replaces the contents of `out` by the state.
    fn export_state(&self, out: &mut Vec<u8>);

    /// Takes over a whole state. `expected_hash`, where known, is checked over all bytes before the first write; so
    /// `bytes` is the second buffer that healing asks for.
    fn import_state(&mut self, bytes: &[u8], expected_hash: Option<u64>) -> Result<()>;

    /// xxh3 (64 bits) of the bytes that [`Engine::export_state`] gives, without the copy.
    fn state_hash(&self) -> u64;

    /// Hashes of the state's chunks (at most [`STATE_CHUNK_BYTES`] each), in order: equal states have equal hashes, and
    /// workers compare them instead of their states (rule N3).
    fn chunk_hashes(&self) -> Vec<u64> {
        let mut bytes = Vec::new();
        self.export_state(&mut bytes);
        bytes.chunks(STATE_CHUNK_BYTES).map(hash_state_bytes).collect()
    }

    /// Starts from given weights (`[P]`, flat order): moments and the count of updates become zero.
    fn set_params(&mut self, params: &[f32]) -> Result<()>;

    /// L2-normalised features `[rows, d]` of `[rows, S, S, 3]` pixels, without a graph.
    fn encode_images_eval(&mut self, rows: usize, pixels: &[u8], micro_rows: usize) -> Result<Vec<f32>>;

    /// L2-normalised features `[rows, d]` of `[rows, context]` ids, without a graph.
    fn encode_text_eval(&mut self, rows: usize, tokens: &[i32], lengths: &[u16], micro_rows: usize)
    -> Result<Vec<f32>>;
}

/// Whether all values are finite; one pass without branches.
#[must_use]
pub fn all_finite(values: &[f32]) -> bool {
    // An infinite or NaN value has all exponent bits set.
    const EXP: u32 = 0x7f80_0000;
    values
        .chunks(4096)
        .all(|chunk| chunk.iter().fold(true, |ok, v| ok & (v.to_bits() & EXP != EXP)))
}

/// xxh3 of a state's bytes, as in [`Engine::state_hash`].
#[must_use]
pub fn hash_state_bytes(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// Checks a slice's length against what the caller's other arguments imply.
pub(crate) fn expect_len(what: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        Ok(())
    } else {
        Err(EngineError::Length { what, expected, got })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_finite_nan_or_infinity_anywhere_is_found() {
        let mut values = vec![1.0f32; 10_000];
        assert!(all_finite(&values));
        for (at, bad) in [(0, f32::NAN), (4096, f32::INFINITY), (9_999, f32::NEG_INFINITY)] {
            let old = values[at];
            values[at] = bad;
            assert!(!all_finite(&values), "missed {bad} at {at}");
            values[at] = old;
        }
    }
}
