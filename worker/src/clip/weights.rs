//! Weights by name, to safetensors and from what [`crate::weights`] reads.

use super::ModelConfig;
use super::params::{Params, counts_batches};
use crate::engine::{EngineError, Result};
use crate::weights::WeightFile;
use crate::weights::fit::{Part, fit};
use safetensors::Dtype;

/// Overwrites all parameters from a weight file. Every tensor must be there, with the model's shape, and no other;
/// everything is checked before the first value is written.
///
/// # Errors
/// As [`fit`].
pub fn load(config: &ModelConfig, params: &mut Params, file: &WeightFile) -> Result<()> {
    let mut values = params.values.as_slice().to_vec();
    fit(file, config, params, Part::Whole, &mut values)?;
    params.values.as_mut_slice().copy_from_slice(&values);
    Ok(())
}

/// Appends a golden's values.
pub(crate) fn append_f32(name: &str, dtype: Dtype, data: &[u8], out: &mut Vec<f32>) -> Result<()> {
    if dtype != Dtype::F32 {
        return Err(EngineError::State(format!(
            "{name:?} is stored as {dtype:?}; f32 expected"
        )));
    }
    out.extend(data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
    Ok(())
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

    fn tiny(seed: u64) -> (ModelConfig, Params) {
        let config = ModelConfig::by_name("demo-tiny").unwrap();
        let params = Params::new(&config, seed).unwrap();
        (config, params)
    }

    #[test]
    fn weights_round_trip_keeps_every_bit() {
        let ((config, a), (_, mut b)) = (tiny(1), tiny(2));
        assert_ne!(a.values.as_slice(), b.values.as_slice());
        let file = WeightFile::of_bytes(save(&a).unwrap()).unwrap();
        load(&config, &mut b, &file).unwrap();
        assert_eq!(a.values.as_slice(), b.values.as_slice());
    }

    #[test]
    fn weights_missing_extra_or_misshapen_keys_are_all_named_and_nothing_written() {
        let (config, mut params) = tiny(1);
        let before = params.values.as_slice().to_vec();
        let mut bad = save(&params).unwrap();
        for (from, to) in [
            (r#""logit_scale""#, r#""logit_scald""#),
            (
                r#""visual.proj":{"dtype":"F32","shape":[64,32]"#,
                r#""visual.proj":{"dtype":"F32","shape":[32,64]"#,
            ),
        ] {
            let at = bad.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            bad[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
        let file = WeightFile::of_bytes(bad).unwrap();
        let error = load(&config, &mut params, &file).unwrap_err().to_string();
        for named in [
            "1 missing: logit_scale",
            "1 not in the model: logit_scald",
            "visual.proj [32, 64] (the model has [64, 32])",
        ] {
            assert!(error.contains(named), "{error} lacks {named}");
        }
        assert_eq!(params.values.as_slice(), before);
    }
}
