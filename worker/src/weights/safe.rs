//! safetensors: a header that is checked whole before a value is read.

use super::source::Source;
use super::{Entry, Number, TENSORS_MAX};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::collections::BTreeMap;

/// Largest header: a hundred bytes for each tensor of a model with a hundred thousand.
const HEADER_BYTES_MAX: u64 = 16 << 20;

/// Tensors by name.
pub(super) fn read(source: &Source) -> Result<BTreeMap<String, Entry>, String> {
    let not = "not a weight file: safetensors, or what torch.save wrote, is expected";
    let mut first = [0u8; 8];
    if source.len() < 8 {
        return Err(format!("{not} ({} bytes)", source.len()));
    }
    source.read_at(&mut first, 0)?;
    let header_len = u64::from_le_bytes(first);
    if header_len > HEADER_BYTES_MAX && header_len > source.len() {
        // Anything that is no safetensors file lands here: its first bytes are no length.
        return Err(format!(
            "{not}; as safetensors its header would have {header_len} bytes"
        ));
    }
    let header = source.bytes(8, header_len, HEADER_BYTES_MAX, "its safetensors header")?;
    let header = std::str::from_utf8(&header).map_err(|_| format!("{not}; its header is not UTF-8"))?;
    // The crate checks that offsets neither overlap nor leave gaps, and fit shapes and types.
    let metadata: Metadata = serde_json::from_str(header).map_err(|e| format!("its safetensors header: {e}"))?;
    let (data, have) = (metadata.data_len() as u64, source.len() - 8 - header_len);
    if data != have {
        return Err(format!("its header says {data} bytes of tensors, {have} follow it"));
    }
    let tensors = metadata.tensors();
    if tensors.len() > TENSORS_MAX {
        return Err(format!("{} tensors, at most {TENSORS_MAX} are read", tensors.len()));
    }
    let entry = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let entry = Entry {
            number: number(info.dtype),
            shape: info.shape.iter().map(|size| *size as u64).collect(),
            start: 8 + header_len + info.data_offsets.0 as u64,
            strides: None,
        };
        (name, entry)
    };
    Ok(tensors.into_iter().map(entry).collect())
}

fn number(dtype: Dtype) -> Number {
    match dtype {
        Dtype::F16 => Number::F16,
        Dtype::BF16 => Number::BF16,
        Dtype::F32 => Number::F32,
        Dtype::F64 => Number::F64,
        Dtype::I64 => Number::I64,
        Dtype::I32 => Number::Other("i32"),
        Dtype::I16 => Number::Other("i16"),
        Dtype::I8 => Number::Other("i8"),
        Dtype::U8 => Number::Other("u8"),
        Dtype::BOOL => Number::Other("bool"),
        _ => Number::Other("a type that no model here has"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::WeightFile;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0u8; data]);
        bytes
    }

    #[test]
    fn safetensors_that_lie_about_their_bytes_are_refused_with_the_reason() {
        let two = |second: &str| format!(r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},"b":{second}}}"#);
        for (bytes, why) in [
            (vec![1, 2, 3], "3 bytes"),
            (u64::MAX.to_le_bytes().to_vec(), "not a weight file"),
            (((1u64 << 40).to_le_bytes()).to_vec(), "header would have"),
            (100u64.to_le_bytes().to_vec(), "reaches to byte 108"),
            (file("{", 0), "header"),
            (
                file(&two(r#"{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#), 12),
                "invalid",
            ),
            (
                file(&two(r#"{"dtype":"F32","shape":[2],"data_offsets":[12,20]}"#), 20),
                "invalid",
            ),
            (
                file(&two(r#"{"dtype":"F32","shape":[3],"data_offsets":[8,16]}"#), 16),
                "invalid shape",
            ),
            (
                file(
                    &two(r#"{"dtype":"F32","shape":[9999999999,9999999999],"data_offsets":[8,16]}"#),
                    16,
                ),
                "overflow",
            ),
            (
                file(&two(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,16]}"#), 12),
                "16 bytes of tensors, 12",
            ),
            (
                file(&two(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,16]}"#), 20),
                "16 bytes of tensors, 20",
            ),
            (file("{}", 0), "no tensor"),
        ] {
            let error = WeightFile::of_bytes(bytes).unwrap_err().to_string();
            assert!(error.to_lowercase().contains(why), "{error:?} lacks {why:?}");
        }
        let mut large = (17u64 << 20).to_le_bytes().to_vec();
        large.resize(18 << 20, b' ');
        let error = WeightFile::of_bytes(large).unwrap_err().to_string();
        assert!(error.contains("at most 16777216"), "{error}");
    }
}
