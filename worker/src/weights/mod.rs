//! Weights as others store them: safetensors, and PyTorch's files, read without PyTorch and without running anything of them.
//!
//! A [`WeightFile`] knows names, shapes and places from the file's own table; values are read when a model asks for them, so a
//! checkpoint with an optimiser three times its size costs no memory. [`fit`] makes a model's flat order of it, or says by
//! name what does not fit.

mod archive;
pub mod fit;
mod legacy;
mod pickle;
mod safe;
mod source;
mod torch;
mod values;

use crate::engine::{EngineError, Result};
use source::Source;
use std::collections::BTreeMap;
use std::path::Path;
use values::StorageKind;

/// Most tensors of one file.
const TENSORS_MAX: usize = 1 << 17;

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    F16,
    BF16,
    F32,
    F64,
    I64,
    /// Known, and not taken for weights.
    Other(&'static str),
}

impl Number {
    /// Bytes of one element that can be read.
    fn bytes(self) -> Option<usize> {
        match self {
            Self::F16 | Self::BF16 => Some(2),
            Self::F32 => Some(4),
            Self::F64 | Self::I64 => Some(8),
            Self::Other(_) => None,
        }
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::I64 => "i64",
            Self::Other(name) => name,
        })
    }
}

impl From<StorageKind> for Number {
    fn from(kind: StorageKind) -> Self {
        match kind {
            StorageKind::F16 => Self::F16,
            StorageKind::BF16 => Self::BF16,
            StorageKind::F32 => Self::F32,
            StorageKind::F64 => Self::F64,
            StorageKind::I64 => Self::I64,
            StorageKind::I8 => Self::Other("i8"),
            StorageKind::U8 => Self::Other("u8"),
            StorageKind::I16 => Self::Other("i16"),
            StorageKind::I32 => Self::Other("i32"),
            StorageKind::Bool => Self::Other("bool"),
        }
    }
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub number: Number,
    pub shape: Vec<u64>,
    /// First byte in the file.
    start: u64,
    /// Steps between elements, where they do not lie one after another.
    strides: Option<Vec<u64>>,
}

impl Entry {
    /// Elements, or `None` beyond any file.
    #[must_use]
    pub fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |n, size| n.checked_mul(*size))
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    Safetensors,
    /// A zip archive, as `torch.save` writes since PyTorch 1.6.
    Torch,
    /// As `torch.save` wrote before.
    TorchOld,
    /// As `torch.jit.save` writes.
    TorchScript,
}

/// Tensors by name.
#[derive(Debug)]
pub struct WeightFile {
    pub container: Container,
    entries: BTreeMap<String, Entry>,
    source: Source,
}

impl WeightFile {
    /// Opens a file, whatever of the four it is: its first bytes tell.
    ///
    /// # Errors
    /// Names the file, and what of it is broken or not taken.
    pub fn open(path: &Path) -> Result<Self> {
        let source = Source::open(path).map_err(|e| EngineError::State(format!("{}: {e}", path.display())))?;
        Self::read(source).map_err(|why| EngineError::State(format!("{}: {why}", path.display())))
    }

    /// The same of bytes in memory.
    ///
    /// # Errors
    /// As [`WeightFile::open`], without a name.
    pub fn of_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::read(Source::Memory(bytes)).map_err(EngineError::State)
    }

    fn read(source: Source) -> std::result::Result<Self, String> {
        let mut first = [0u8; 16];
        let len = source.len();
        let head = &mut first[..len.min(16) as usize];
        source.read_at(head, 0)?;
        let (container, entries) = if head.starts_with(b"PK\x03\x04") {
            archive::read(&source)?
        } else if legacy::begins(head) {
            (Container::TorchOld, legacy::read(&source)?)
        } else {
            (Container::Safetensors, safe::read(&source)?)
        };
        if entries.is_empty() {
            return Err("there is no tensor in it".into());
        }
        Ok(Self {
            container,
            entries,
            source,
        })
    }

    /// All tensors, sorted by name.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// xxh3 of the whole file.
    ///
    /// # Errors
    /// When it cannot be read any more.
    pub fn digest(&self) -> Result<u64> {
        self.source.digest().map_err(EngineError::State)
    }

    /// Appends a tensor's values, widened to f32; f64 is rounded.
    ///
    /// # Errors
    /// When its numbers are of no kind that weights have, or the file cannot be read any more.
    pub fn append(&self, name: &str, entry: &Entry, out: &mut Vec<f32>) -> Result<()> {
        let failed = |why: String| EngineError::State(format!("{name:?}: {why}"));
        let number = entry.number;
        let width = number
            .bytes()
            .ok_or_else(|| failed(format!("stored as {number}; f32, f16, bf16, f64 or i64 expected")))?;
        let count = entry
            .elements()
            .ok_or_else(|| failed("more elements than any file has".into()))?;
        if count == 0 {
            return Ok(());
        }
        // How far the view reaches was checked when the file's table was read.
        let reach = match &entry.strides {
            None => count,
            Some(strides) => {
                let steps = entry.shape.iter().zip(strides);
                1 + steps.map(|(size, stride)| size.saturating_sub(1) * stride).sum::<u64>()
            }
        };
        let bytes = usize::try_from(reach).ok().and_then(|reach| reach.checked_mul(width));
        let mut raw = vec![0u8; bytes.ok_or_else(|| failed("too large for memory".into()))?];
        self.source.read_at(&mut raw, entry.start).map_err(failed)?;
        match &entry.strides {
            None => widen(number, &raw, out),
            Some(strides) => {
                let mut values = Vec::with_capacity(raw.len() / width);
                widen(number, &raw, &mut values);
                gather(&entry.shape, strides, &values, out);
            }
        }
        Ok(())
    }
}

/// `raw` as f32.
fn widen(number: Number, raw: &[u8], out: &mut Vec<f32>) {
    match number {
        Number::F32 => out.extend(raw.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
        Number::F64 => out.extend(raw.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32)),
        Number::I64 => out.extend(raw.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f32)),
        Number::F16 => out.extend(raw.as_chunks().0.iter().map(|b| half(u16::from_le_bytes(*b)))),
        Number::BF16 => {
            let wide = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            out.extend(raw.as_chunks().0.iter().map(wide));
        }
        Number::Other(_) => {}
    }
}

/// Elements of a view in row-major order.
fn gather(shape: &[u64], strides: &[u64], values: &[f32], out: &mut Vec<f32>) {
    let count: u64 = shape.iter().product();
    let mut at = vec![0u64; shape.len()];
    let mut place = 0u64;
    for _ in 0..count {
        out.push(values.get(place as usize).copied().unwrap_or(f32::NAN));
        for axis in (0..shape.len()).rev() {
            at[axis] += 1;
            place += strides[axis];
            if at[axis] < shape[axis] {
                break;
            }
            place -= at[axis] * strides[axis];
            at[axis] = 0;
        }
    }
}

/// IEEE 754 binary16 to f32, exact.
fn half(bits: u16) -> f32 {
    let (sign, exp, frac) = (bits >> 15, (bits >> 10) & 31, bits & 0x3ff);
    let magnitude = match exp {
        0 => f32::from(frac) * 2f32.powi(-24),
        31 if frac == 0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + f32::from(frac) / 1024.0) * 2f32.powi(i32::from(exp) - 15),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_known_values_are_exact() {
        for (bits, want) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x0001, 5.960_464_5e-8),
            (0x7bff, 65504.0),
            (0x3555, 0.333_251_95),
        ] {
            assert_eq!(half(bits), want);
        }
    }

    #[test]
    fn gather_follows_strides_as_a_transposed_view_has_them() {
        let mut out = Vec::new();
        gather(&[2, 3], &[1, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &mut out);
        assert_eq!(out, [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        out.clear();
        gather(&[2, 2], &[0, 1], &[7.0, 8.0], &mut out);
        assert_eq!(out, [7.0, 8.0, 7.0, 8.0]);
    }
}
