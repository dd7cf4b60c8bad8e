//! Declarations of `cpp/shim.h` and the thinnest safe functions over them.
#![allow(unsafe_code)] // the C++ border

use crate::{AdamWHyper, ExtError, Result};
use std::ffi::{CStr, c_char, c_int};
use tch::Tensor;

/// `at::Tensor*`, as tch hands it out.
pub(crate) type RawTensor = *mut torch_sys::C_tensor;

unsafe extern "C" {
    fn argosy_ext_free(message: *mut c_char);
    fn argosy_ext_build(what: c_int, out: *mut *mut c_char) -> *mut c_char;
    fn argosy_ext_backward(outputs: *const RawTensor, upstream: *const RawTensor, n: usize) -> *mut c_char;
    fn argosy_ext_set_grad(leaf: RawTensor, grad: RawTensor) -> *mut c_char;
    fn argosy_ext_fused_adamw(
        params: *const RawTensor,
        grads: *const RawTensor,
        exp_avg: *const RawTensor,
        exp_avg_sq: *const RawTensor,
        steps: *const RawTensor,
        n: usize,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
    fn argosy_ext_linear(
        x: RawTensor,
        weight: RawTensor,
        bias: RawTensor,
        add: RawTensor,
        out: *mut RawTensor,
    ) -> *mut c_char;
    fn argosy_ext_layer_norm_backward(
        dy: RawTensor,
        x: RawTensor,
        mean: RawTensor,
        rstd: RawTensor,
        weight: RawTensor,
        bias: RawTensor,
        out: *mut RawTensor,
    ) -> *mut c_char;
    fn argosy_ext_block_squares(values: *const f32, len: usize, block: usize, out: *mut f64);
    fn argosy_ext_pool_install();
    fn argosy_ext_pool_stats(live: *mut u64, peak: *mut u64, reset: i32);
    fn argosy_ext_pool_limit(bytes: u64);
    fn argosy_ext_load_cuda(path: *const c_char) -> *mut c_char;
    fn argosy_ext_exact_cuda(deterministic: c_int);
    fn argosy_ext_gpu(
        index: c_int,
        name: *mut *mut c_char,
        major: *mut c_int,
        minor: *mut c_int,
        driver: *mut c_int,
    ) -> *mut c_char;
    fn argosy_ext_f32_data(tensor: RawTensor, data: *mut *mut f32, len: *mut usize) -> *mut c_char;
}

fn check(call: &'static str, message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    Err(ExtError {
        call,
        message: taken(message).lines().next().unwrap_or_default().to_owned(),
    })
}

/// See `cpp/shim.h`.
pub(crate) fn build(what: c_int) -> Result<String> {
    let mut out = std::ptr::null_mut();
    // SAFETY: a place to write one pointer to.
    check("build", unsafe { argosy_ext_build(what, &raw mut out) })?;
    Ok(taken(out))
}

/// Text that the shim gave away; empty for null.
fn taken(text: *mut c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: a zero-terminated string from malloc that is ours; it is read before it is freed and not used afterwards.
    unsafe {
        let out = CStr::from_ptr(text).to_string_lossy().into_owned();
        argosy_ext_free(text);
        out
    }
}

/// Name, compute capability and driver version of a GPU.
pub(crate) fn gpu(index: c_int) -> Result<(String, [i32; 3])> {
    let mut name = std::ptr::null_mut();
    let mut numbers: [c_int; 3] = [0; 3];
    let [major, minor, driver] = &mut numbers;
    // SAFETY: places to write one pointer and three numbers to.
    check("gpu", unsafe {
        argosy_ext_gpu(index, &raw mut name, major, minor, driver)
    })?;
    Ok((taken(name), numbers))
}

pub(crate) fn exact_cuda(deterministic: bool) {
    // SAFETY: a number; it sets switches of libtorch's.
    unsafe { argosy_ext_exact_cuda(c_int::from(deterministic)) }
}

pub(crate) fn backward(outputs: &[RawTensor], upstream: &[RawTensor]) -> Result<()> {
    // SAFETY: both lists hold pointers of live tensors (borrowed by the caller) and have the same length; the shim
    // copies the handles and catches every exception.
    check("backward", unsafe {
        argosy_ext_backward(outputs.as_ptr(), upstream.as_ptr(), outputs.len())
    })
}

pub(crate) fn set_grad(leaf: RawTensor, grad: RawTensor) -> Result<()> {
    // SAFETY: both are live tensors; the shim checks that one fits the other and takes a counted handle of `grad`.
    check("set_grad", unsafe { argosy_ext_set_grad(leaf, grad) })
}

pub(crate) fn fused_adamw(lists: [&[RawTensor]; 5], h: &AdamWHyper) -> Result<()> {
    let [params, grads, exp_avg, exp_avg_sq, steps] = lists.map(<[RawTensor]>::as_ptr);
    let n = lists[0].len();
    // SAFETY: five lists of `n` live tensors each; libtorch checks shapes and types and the shim catches what it throws.
    check("fused_adamw", unsafe {
        argosy_ext_fused_adamw(
            params,
            grads,
            exp_avg,
            exp_avg_sq,
            steps,
            n,
            h.lr,
            h.beta1,
            h.beta2,
            h.weight_decay,
            h.eps,
        )
    })
}

/// `x W^T + b (+ add)`; null stands for what is not there.
pub(crate) fn linear(x: RawTensor, weight: RawTensor, bias: RawTensor, add: RawTensor) -> Result<Tensor> {
    let mut out: RawTensor = std::ptr::null_mut();
    // SAFETY: live tensors or null where the shim allows it, and one place to write to.
    check("linear", unsafe {
        argosy_ext_linear(x, weight, bias, add, &raw mut out)
    })?;
    Ok(owned(out))
}

/// Gradients of input, weight and bias of a layer norm over the last dimension.
pub(crate) fn layer_norm_backward(inputs: [RawTensor; 6]) -> Result<[Tensor; 3]> {
    let [dy, x, mean, rstd, weight, bias] = inputs;
    let mut out: [RawTensor; 3] = [std::ptr::null_mut(); 3];
    // SAFETY: six live tensors and three places to write to.
    check("layer_norm_backward", unsafe {
        argosy_ext_layer_norm_backward(dy, x, mean, rstd, weight, bias, out.as_mut_ptr())
    })?;
    Ok(out.map(owned))
}

/// Takes over a tensor that the shim made with `new`.
fn owned(raw: RawTensor) -> Tensor {
    // SAFETY: the shim hands out every such pointer once, and tch frees it as it frees its own.
    unsafe { Tensor::from_ptr(raw) }
}

pub(crate) fn block_squares(values: &[f32], block: usize) -> Vec<f64> {
    let mut out = vec![0.0; values.len().div_ceil(block)];
    // SAFETY: a slice with its length, and room for one sum for every begun block.
    unsafe { argosy_ext_block_squares(values.as_ptr(), values.len(), block, out.as_mut_ptr()) };
    out
}

pub(crate) fn pool_install() {
    // SAFETY: no arguments; the shim does it once.
    unsafe { argosy_ext_pool_install() }
}

pub(crate) fn pool_stats(reset: bool) -> (u64, u64) {
    let (mut live, mut peak) = (0, 0);
    // SAFETY: two places to write to.
    unsafe { argosy_ext_pool_stats(&raw mut live, &raw mut peak, i32::from(reset)) };
    (live, peak)
}

pub(crate) fn pool_limit(bytes: u64) {
    // SAFETY: a number.
    unsafe { argosy_ext_pool_limit(bytes) }
}

pub(crate) fn load_cuda(path: &CStr) -> Result<()> {
    // SAFETY: a zero-terminated path; running the library's constructors is what is asked for.
    check("load_cuda", unsafe { argosy_ext_load_cuda(path.as_ptr()) })
}

/// Address and length of a contiguous f32 tensor in main memory.
pub(crate) fn f32_data(tensor: RawTensor) -> Result<(*mut f32, usize)> {
    let (mut data, mut len) = (std::ptr::null_mut(), 0usize);
    // SAFETY: a live tensor and two places to write to.
    check("f32_data", unsafe {
        argosy_ext_f32_data(tensor, &raw mut data, &raw mut len)
    })?;
    Ok((data, len))
}
