//! Weights by name, from and to safetensors.

use super::params::{Params, counts_batches};
use crate::engine::{EngineError, Result};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeSet;

/// Overwrites all parameters from a safetensors file's bytes. Every key must be there, with the model's shape, and no
/// other; everything is checked before the first value is written.
///
/// # Errors
/// Names the first key that is missing, unexpected, or of another shape or type.
pub fn load(params: &mut Params, bytes: &[u8]) -> Result<()> {
    let values = read_flat(params, bytes)?;
    params.values.as_mut_slice().copy_from_slice(&values);
    Ok(())
}

/// The file's values in the flat order of `params`.
///
/// # Errors
/// As [`load`].
pub fn read_flat(params: &Params, bytes: &[u8]) -> Result<Vec<f32>> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|e| EngineError::State(format!("weights are not a safetensors file: {e}")))?;
    let known: BTreeSet<&str> = params.table().iter().map(|s| s.name.as_str()).collect();
    let names: BTreeSet<&str> = file.names().into_iter().collect();
    if let Some(extra) = names.difference(&known).next() {
        let why = "the model of this configuration has no such tensor; check the configuration";
        return Err(EngineError::State(format!("weights: unexpected key {extra:?}: {why}")));
    }
    let mut out = Vec::with_capacity(params.values.len());
    for spec in params.table() {
        let tensor = file
            .tensor(&spec.name)
            .map_err(|_| EngineError::State(format!("weights: key {:?} is missing; the model needs it", spec.name)))?;
        let shape: Vec<i64> = tensor.shape().iter().map(|d| *d as i64).collect();
        if shape != spec.shape {
            let (name, want) = (&spec.name, &spec.shape);
            return Err(EngineError::State(format!(
                "weights: {name:?} has shape {shape:?}, the model needs {want:?}"
            )));
        }
        if counts_batches(&spec.name) && tensor.dtype() == Dtype::I64 {
            out.extend(
                tensor
                    .data()
                    .as_chunks()
                    .0
                    .iter()
                    .map(|b| i64::from_le_bytes(*b) as f32),
            );
            continue;
        }
        append_f32(&spec.name, tensor.dtype(), tensor.data(), &mut out)?;
    }
    Ok(out)
}

/// Appends a tensor's values, widened to f32 where they are stored in 16 bits.
pub(crate) fn append_f32(name: &str, dtype: Dtype, data: &[u8], out: &mut Vec<f32>) -> Result<()> {
    match dtype {
        Dtype::F32 => out.extend(data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
        Dtype::BF16 => {
            out.extend(
                data.as_chunks()
                    .0
                    .iter()
                    .map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)),
            );
        }
        Dtype::F16 => out.extend(data.as_chunks().0.iter().map(|b| half(u16::from_le_bytes(*b)))),
        other => {
            return Err(EngineError::State(format!(
                "weights: {name:?} is stored as {other:?}; f32, f16 or bf16 expected"
            )));
        }
    }
    Ok(())
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

/// All parameters as a safetensors file (f32, sorted names), as `open_clip_model.safetensors` holds them.
///
/// # Errors
/// When the file cannot be laid out.
pub fn save(params: &Params) -> Result<Vec<u8>> {
    let bytes = params.values.as_bytes();
    let counts: Vec<[u8; 8]> = (params.values.as_slice().iter())
        .skip(params.trained_elements())
        .map(|v| (*v as i64).to_le_bytes())
        .collect();
    let mut views = Vec::new();
    for spec in params.table() {
        let shape = spec.shape.iter().map(|d| *d as usize).collect();
        let (dtype, data) = if counts_batches(&spec.name) {
            (Dtype::I64, &counts[spec.offset - params.trained_elements()][..])
        } else {
            (Dtype::F32, &bytes[4 * spec.offset..4 * (spec.offset + spec.len)])
        };
        let view = safetensors::tensor::TensorView::new(dtype, shape, data)
            .map_err(|e| EngineError::State(format!("weights: {}: {e}", spec.name)))?;
        views.push((spec.name.as_str(), view));
    }
    safetensors::serialize(views, None).map_err(|e| EngineError::State(format!("weights: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::ModelConfig;

    fn tiny(seed: u64) -> Params {
        Params::new(&ModelConfig::by_name("demo-tiny").unwrap(), seed).unwrap()
    }

    #[test]
    fn weights_round_trip_keeps_every_bit() {
        let (a, mut b) = (tiny(1), tiny(2));
        assert_ne!(a.values.as_slice(), b.values.as_slice());
        load(&mut b, &save(&a).unwrap()).unwrap();
        assert_eq!(a.values.as_slice(), b.values.as_slice());
    }

    #[test]
    fn weights_missing_extra_or_misshapen_key_is_named_and_nothing_written() {
        let mut params = tiny(1);
        let before = params.values.as_slice().to_vec();
        let good = save(&params).unwrap();
        for (from, to, named) in [
            (r#""logit_scale""#, r#""logit_scald""#, "logit_scald"),
            (
                r#""visual.proj":{"dtype":"F32","shape":[64,32]"#,
                r#""visual.proj":{"dtype":"F32","shape":[32,64]"#,
                "visual.proj",
            ),
        ] {
            let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            let mut bad = good.clone();
            bad[at..at + to.len()].copy_from_slice(to.as_bytes());
            let error = load(&mut params, &bad).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        assert_eq!(params.values.as_slice(), before);
    }

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
}
