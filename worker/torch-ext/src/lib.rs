//! What tch does not expose of libtorch: backward with upstream gradients, gradients that live in a buffer of ours, and
//! the fused AdamW kernel over lists of tensors. One small C++ file over ATen; all unsafe code of the worker is here.

mod ffi;
mod flat;
pub mod record;

pub use flat::{FlatBuffer, FlatReader, bytes_of, bytes_of_mut};

use ffi::RawTensor;
use tch::Tensor;

/// A C++ exception, caught at the border.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("libtorch ({call}): {message}")]
pub struct ExtError {
    /// Function of this crate that failed.
    pub call: &'static str,
    /// First line of what libtorch said.
    pub message: String,
}

/// Result of a call into libtorch.
pub type Result<T> = std::result::Result<T, ExtError>;

/// Which libtorch this is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Build {
    /// Its version.
    pub version: String,
    /// The processor's instruction set that its kernels use here (`ATEN_CPU_CAPABILITY` lowers it).
    pub capability: String,
    /// Flags and libraries it was built with.
    pub config: String,
}

/// A GPU as its driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    pub name: String,
    /// Compute capability, `(9, 0)` for Hopper.
    pub capability: (i32, i32),
    /// Newest CUDA that the driver speaks, `13.0`.
    pub driver: String,
}

/// GPU number `index`, without loading libtorch's CUDA library or taking memory of the GPU.
///
/// # Errors
/// When there is no driver or no such GPU.
pub fn gpu(index: usize) -> Result<Gpu> {
    let index = i32::try_from(index).map_err(|e| ExtError {
        call: "gpu",
        message: e.to_string(),
    })?;
    let (name, [major, minor, driver]) = ffi::gpu(index)?;
    Ok(Gpu {
        name,
        capability: (major, minor),
        driver: format!("{}.{}", driver / 1000, driver % 1000 / 10),
    })
}

/// Keeps single precision whole on CUDA, for the whole process; `deterministic` takes only kernels whose bits repeat.
pub fn exact_cuda(deterministic: bool) {
    ffi::exact_cuda(deterministic);
}

/// The libtorch in use.
#[must_use]
pub fn build() -> Build {
    // None of these can fail; an empty word differs from every other build's.
    let [version, capability, config] = [0, 1, 2].map(|what| ffi::build(what).unwrap_or_default());
    Build {
        version,
        capability,
        config,
    }
}

/// Runs the backward pass from `outputs` with the given upstream gradients (same shapes, pairwise) and adds into the
/// `.grad` of every leaf reached.
///
/// # Errors
/// When the lists differ in length or libtorch refuses (shapes, a graph already freed).
pub fn backward(outputs: &[&Tensor], upstream: &[&Tensor]) -> Result<()> {
    same_len("backward", outputs.len(), &[upstream.len()])?;
    ffi::backward(&raw(outputs), &raw(upstream))
}

/// Makes `grad` the place where backward passes add the gradient of `leaf`; it keeps its storage from then on.
///
/// # Errors
/// When `leaf` is no leaf that requires a gradient, or shapes or types differ.
pub fn set_grad(leaf: &Tensor, grad: &Tensor) -> Result<()> {
    ffi::set_grad(leaf.as_ptr().cast_mut(), grad.as_ptr().cast_mut())
}

/// Tensors of one parameter group, pairwise; `steps` are f32 scalars that hold the count *after* this update.
#[derive(Debug, Clone, Copy)]
pub struct AdamWLists<'a> {
    pub params: &'a [&'a Tensor],
    pub grads: &'a [&'a Tensor],
    pub exp_avg: &'a [&'a Tensor],
    pub exp_avg_sq: &'a [&'a Tensor],
    pub steps: &'a [&'a Tensor],
}

/// Numbers of one AdamW update (Loshchilov and Hutter, decoupled decay).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWHyper {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

/// One AdamW update in place: `p *= 1 - lr*wd`, then `p -= lr * m^ / (sqrt(v^) + eps)` with bias-corrected moments.
///
/// # Errors
/// When the lists differ in length or libtorch refuses; parameters may then be partly written.
pub fn fused_adamw(lists: &AdamWLists<'_>, hyper: &AdamWHyper) -> Result<()> {
    let others = [
        lists.grads.len(),
        lists.exp_avg.len(),
        lists.exp_avg_sq.len(),
        lists.steps.len(),
    ];
    same_len("fused_adamw", lists.params.len(), &others)?;
    if lists.params.is_empty() {
        return Ok(());
    }
    ffi::fused_adamw(
        [
            &raw(lists.params),
            &raw(lists.grads),
            &raw(lists.exp_avg),
            &raw(lists.exp_avg_sq),
            &raw(lists.steps),
        ],
        hyper,
    )
}

/// Sum of squares of every block of `block` values (the last may be short), in double precision. Each sum's bits depend on its
/// values alone. Uses libtorch's threads.
#[must_use]
pub fn block_squares(values: &[f32], block: usize) -> Vec<f64> {
    ffi::block_squares(values, block.max(1))
}

/// `x W^T + bias`, plus `add` where given (the residual path); on the CPU in one pass of oneDNN. No graph.
///
/// # Errors
/// When shapes or types do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, add: Option<&Tensor>) -> Result<Tensor> {
    let or_null = |t: Option<&Tensor>| t.map_or(std::ptr::null_mut(), |t| t.as_ptr().cast_mut());
    ffi::linear(
        x.as_ptr().cast_mut(),
        weight.as_ptr().cast_mut(),
        or_null(bias),
        or_null(add),
    )
}

/// Gradients `(x, weight, bias)` of a layer norm over the last dimension, from what the forward pass gave.
///
/// # Errors
/// When shapes or types do not fit.
pub fn layer_norm_backward(
    dy: &Tensor,
    x: &Tensor,
    mean: &Tensor,
    rstd: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    let inputs = [dy, x, mean, rstd, weight, bias].map(|t| t.as_ptr().cast_mut());
    let [dx, dw, db] = ffi::layer_norm_backward(inputs)?;
    Ok((dx, dw, db))
}

/// Large CPU tensors come from a cache of this crate from now on, for the whole process.
pub fn pool_install() {
    ffi::pool_install();
}

/// Bytes of pooled tensors (those of 256 KiB and more) that are alive, and the most there were at once; `reset` begins to
/// count the peak anew.
#[must_use]
pub fn pool_stats(reset: bool) -> (u64, u64) {
    ffi::pool_stats(reset)
}

/// Refuses pooled tensors beyond so many bytes in all, as a machine without more memory would; 0 takes the limit away.
pub fn pool_limit(bytes: u64) {
    ffi::pool_limit(bytes);
}

/// Loads libtorch's CUDA library so that its symbols are everybody's; before the first question about CUDA.
///
/// # Errors
/// In the words of the system's loader.
pub fn load_cuda(path: &std::path::Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|e| ExtError {
        call: "load_cuda",
        message: e.to_string(),
    })?;
    ffi::load_cuda(&path)
}

impl ExtError {
    /// Whether memory was short.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        is_out_of_memory(&self.message)
    }
}

/// Whether a message of libtorch's says that memory was short: ours, CUDA's and its own CPU allocator's.
#[must_use]
pub fn is_out_of_memory(message: &str) -> bool {
    ["not enough memory", "out of memory", "can't allocate memory"]
        .iter()
        .any(|part| message.contains(part))
}

fn raw(tensors: &[&Tensor]) -> Vec<RawTensor> {
    tensors.iter().map(|t| t.as_ptr().cast_mut()).collect()
}

fn same_len(call: &'static str, first: usize, others: &[usize]) -> Result<()> {
    if others.iter().all(|n| *n == first) {
        return Ok(());
    }
    Err(ExtError {
        call,
        message: format!("lists of tensors differ in length: {first} and {others:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn build_names_version_and_capability() {
        let build = build();
        assert!(build.version.starts_with("2.11"), "{build:?}");
        assert!(
            !build.capability.is_empty() && build.config.contains("OpenMP"),
            "{build:?}"
        );
    }

    #[test]
    fn backward_with_upstream_gradients_adds_into_the_given_buffer() {
        let mut grads = FlatBuffer::zeros(5).unwrap();
        let params = FlatBuffer::zeros(5).unwrap();
        let leaf = params.leaf(1, &[2, 2]).unwrap();
        set_grad(&leaf, &grads.view(1, &[2, 2]).unwrap()).unwrap();
        let up = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]).view([2, 2]);
        for _ in 0..2 {
            let out = &leaf * 3.0;
            backward(&[&out], &[&up]).unwrap();
        }
        assert_eq!(grads.as_slice(), &[0.0, 6.0, 12.0, 18.0, 24.0]);
        grads.as_mut_slice().fill(0.0);
        assert_eq!(leaf.grad().abs().sum(Kind::Double).double_value(&[]), 0.0);
    }

    #[test]
    fn backward_of_wrong_shape_is_an_error_not_an_abort() {
        let leaf = Tensor::zeros([3], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        let out = &leaf * 2.0;
        let error = backward(&[&out], &[&Tensor::zeros([4], (Kind::Float, tch::Device::Cpu))]).unwrap_err();
        assert_eq!(error.call, "backward");
        assert!(backward(&[&out], &[]).is_err());
        assert!(set_grad(&out, &leaf).is_err(), "not a leaf");
    }

    #[test]
    fn block_squares_are_those_of_eight_running_sums_whatever_the_threads() {
        let values: Vec<f32> = (0..5003u32)
            .map(|k| (k.wrapping_mul(2_654_435_761) >> 8) as f32 * 1e-5)
            .collect();
        let plain = |block: &[f32]| {
            let mut sums = [0.0f64; 8];
            for (k, v) in block.iter().enumerate() {
                sums[k % 8] += f64::from(*v) * f64::from(*v);
            }
            sums.iter().sum::<f64>()
        };
        let want: Vec<f64> = values.chunks(100).map(plain).collect();
        for threads in [1, 3] {
            tch::set_num_threads(threads);
            assert_eq!(block_squares(&values, 100), want, "{threads} threads");
        }
        assert!(block_squares(&[], 7).is_empty());
    }

    #[test]
    fn fused_adamw_two_updates_follow_the_formula() {
        let hyper = AdamWHyper {
            lr: 0.1,
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-6,
            weight_decay: 0.2,
        };
        let mut bufs: Vec<FlatBuffer> = (0..4).map(|_| FlatBuffer::zeros(2).unwrap()).collect();
        bufs[0].as_mut_slice().copy_from_slice(&[1.0, -2.0]);
        bufs[1].as_mut_slice().copy_from_slice(&[0.5, 0.25]);
        let (mut p, mut m, mut v) = ([1.0f64, -2.0], [0.0f64; 2], [0.0f64; 2]);
        for count in 1..=2 {
            let step = Tensor::from(count as f32);
            let views: Vec<Tensor> = bufs.iter().map(|b| b.view(0, &[2]).unwrap()).collect();
            let lists = AdamWLists {
                params: &[&views[0]],
                grads: &[&views[1]],
                exp_avg: &[&views[2]],
                exp_avg_sq: &[&views[3]],
                steps: &[&step],
            };
            fused_adamw(&lists, &hyper).unwrap();
            for (k, g) in [0.5f64, 0.25].into_iter().enumerate() {
                m[k] = 0.9 * m[k] + 0.1 * g;
                v[k] = 0.98 * v[k] + 0.02 * g * g;
                let (mh, vh) = (m[k] / (1.0 - 0.9f64.powi(count)), v[k] / (1.0 - 0.98f64.powi(count)));
                p[k] = p[k] * (1.0 - 0.1 * 0.2) - 0.1 * mh / (vh.sqrt() + 1e-6);
            }
        }
        for (got, want) in bufs[0].as_slice().iter().zip(p) {
            assert!((f64::from(*got) - want).abs() < 1e-6, "{got} is not {want}");
        }
    }
}
