//! One contiguous f32 buffer that is both a Rust slice and the storage of many tensors.
#![allow(unsafe_code)] // slices over libtorch's memory

use crate::{ExtError, Result, ffi};
use tch::{Device, Kind, Tensor};

/// A contiguous f32 buffer in main memory. Tensors made by [`FlatBuffer::view`] share its memory, so a copy, a hash or a
/// reduction of all of them is one pass over one slice.
///
/// libtorch works synchronously on the CPU and the worker keeps a buffer and all its views on one thread, so nothing
/// writes through a view while a slice is borrowed.
#[derive(Debug)]
pub struct FlatBuffer {
    tensor: Tensor,
    data: *mut f32,
    len: usize,
}

// SAFETY: the pointer is into the tensor's own storage, which moves with it; tensors may change threads.
unsafe impl Send for FlatBuffer {}

impl FlatBuffer {
    /// `len` zeros.
    ///
    /// # Errors
    /// When libtorch cannot allocate.
    pub fn zeros(len: usize) -> Result<Self> {
        Self::zeros_for(len, Device::Cpu)
    }

    /// `len` zeros, in memory that cannot be paged out where copies to and from `device` are the faster for it.
    ///
    /// # Errors
    /// When libtorch cannot allocate.
    pub fn zeros_for(len: usize, device: Device) -> Result<Self> {
        let elements = i64::try_from(len).map_err(|_| ext("zeros", "buffer too large"))?;
        let tensor = Tensor::f_zeros([elements], (Kind::Float, Device::Cpu)).map_err(|e| ext("zeros", e))?;
        let tensor = match device {
            Device::Cuda(_) => tensor.f_pin_memory(device).map_err(|e| ext("pin", e))?,
            _ => tensor,
        };
        let (data, got) = ffi::f32_data(tensor.as_ptr().cast_mut())?;
        if got != len {
            return Err(ext("zeros", format!("asked for {len} values, got {got}")));
        }
        Ok(Self { tensor, data, len })
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All values.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: `data` points to `len` initialised floats owned by `self.tensor`, which lives as long as `self`;
        // views are used on the same thread only, never while this borrow is alive (see the type's comment).
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }

    /// All values, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: as for `as_slice`, and `&mut self` keeps other slices away.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }

    /// The same memory as bytes (native order: little-endian where Argosy runs).
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        bytes_of(self.as_slice())
    }

    /// The whole buffer as a tensor that shares its memory.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// A tensor of `shape` over the values from `offset` on, sharing the memory.
    ///
    /// # Errors
    /// When it would reach beyond the end.
    pub fn view(&self, offset: usize, shape: &[i64]) -> Result<Tensor> {
        let len: i64 = shape.iter().product();
        let narrow = i64::try_from(offset).map_err(|e| ext("view", e))?;
        let flat = self.tensor.f_narrow(0, narrow, len).map_err(|e| ext("view", e))?;
        flat.f_view(shape).map_err(|e| ext("view", e))
    }

    /// As [`FlatBuffer::view`], but a leaf of the graph that requires a gradient.
    ///
    /// # Errors
    /// When it would reach beyond the end.
    pub fn leaf(&self, offset: usize, shape: &[i64]) -> Result<Tensor> {
        let view = self.view(offset, shape)?.f_detach().map_err(|e| ext("leaf", e))?;
        view.f_set_requires_grad(true).map_err(|e| ext("leaf", e))
    }
}

/// Reads a [`FlatBuffer`] from another thread. Its owner writes nothing while one exists; who takes a reader arranges that.
#[derive(Debug)]
pub struct FlatReader {
    /// Keeps the memory.
    _tensor: Tensor,
    data: *const f32,
    len: usize,
}

// SAFETY: the pointer is into memory that `_tensor` keeps; a tensor's count of owners is atomic.
unsafe impl Send for FlatReader {}

impl FlatReader {
    /// The values as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: `len` initialised floats that live as long as `_tensor`; nobody writes while this reader exists (see the
        // type's comment).
        bytes_of(unsafe { std::slice::from_raw_parts(self.data, self.len) })
    }
}

impl FlatBuffer {
    /// A reader for another thread. Until it is dropped nothing may write to the buffer or a view of it.
    #[must_use]
    pub fn reader(&self) -> FlatReader {
        FlatReader {
            _tensor: self.tensor.shallow_clone(),
            data: self.data,
            len: self.len,
        }
    }
}

/// Floats as bytes, without a copy.
#[must_use]
pub fn bytes_of(values: &[f32]) -> &[u8] {
    // SAFETY: any float is four initialised bytes, u8 has no alignment, and the length covers exactly the slice.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values)) }
}

/// Floats as bytes to be written, without a copy.
pub fn bytes_of_mut(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: as for `bytes_of`; any four bytes are a float, and the borrow is as exclusive as the slice's own.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), std::mem::size_of_val(values)) }
}

fn ext(call: &'static str, message: impl ToString) -> ExtError {
    ExtError {
        call,
        message: message.to_string(),
    }
}
