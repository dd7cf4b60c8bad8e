//! Which element of a state lies in which part, and under which name.
//!
//! The flat order is all parameters, then `exp_avg`, then `exp_avg_sq`, then the weights' moving average where one is kept,
//! each in the order of the tensor table. A tensor that
//! lies in one part as a whole has its own name and shape; a piece of it is called `tensor[a:b]`, elements `a..b` of its
//! row-major values. The count of applied updates stands in the last part.

use super::CheckpointError;
use crate::engine::TensorSpec;
use argosy_common::ids::StateName;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::ops::Range;

/// Version of a part's format.
pub const FORMAT_VERSION: u32 = 1;
/// Elements of a part: 64 MiB of f32.
pub const PART_ELEMENTS: usize = 16 << 20;
/// Key of the part's own description in its metadata.
const METADATA_KEY: &str = "argosy";
/// Name of the count of applied updates.
const APPLIED_STEPS: &str = "applied_steps";
const PREFIXES: [&str; 4] = ["", "exp_avg.", "exp_avg_sq.", "ema."];

/// What a part says of itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct PartLabel {
    pub(super) version: u32,
    pub(super) run: String,
    pub(super) name: StateName,
    pub(super) part: u32,
    pub(super) parts_total: u32,
    /// Arrays of the state, each as long as the parameters.
    #[serde(default = "arrays_without_average")]
    pub(super) arrays: usize,
}

fn arrays_without_average() -> usize {
    3
}

/// Parts of a state of `arrays` arrays of `parameters` elements.
#[must_use]
pub fn parts_total(parameters: usize, arrays: usize) -> u32 {
    parts_total_of(parameters, arrays, PART_ELEMENTS)
}

pub(super) fn parts_total_of(parameters: usize, arrays: usize, part_elements: usize) -> u32 {
    (arrays * parameters).div_ceil(part_elements).max(1) as u32
}

/// Bytes of such a state: its arrays and the count of updates.
pub(super) fn state_bytes(parameters: usize, arrays: usize) -> usize {
    4 * arrays * parameters + 8
}

/// Arrays of a state of so many bytes; none when it is no state of this model.
fn arrays_of(parameters: usize, bytes: usize) -> Option<usize> {
    (3..=PREFIXES.len()).find(|arrays| state_bytes(parameters, *arrays) == bytes)
}

/// A run of elements of one tensor.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    name: String,
    shape: Vec<usize>,
    /// Place in the flat order of the state.
    at: Range<usize>,
}

/// The pieces of one part, in flat order.
fn pieces(table: &[TensorSpec], parameters: usize, part: Range<usize>) -> Vec<Piece> {
    let mut out = Vec::new();
    for (array, prefix) in PREFIXES.iter().enumerate() {
        for spec in table {
            let start = array * parameters + spec.offset;
            let (from, to) = (part.start.max(start), part.end.min(start + spec.len));
            if from >= to {
                continue;
            }
            let whole = to - from == spec.len;
            let name = match whole {
                true => format!("{prefix}{}", spec.name),
                false => format!("{prefix}{}[{}:{}]", spec.name, from - start, to - start),
            };
            let shape = match whole {
                true => spec.shape.iter().map(|d| *d as usize).collect(),
                false => vec![to - from],
            };
            out.push(Piece {
                name,
                shape,
                at: from..to,
            });
        }
    }
    out
}

fn part_range(part: u32, elements: usize, part_elements: usize) -> Range<usize> {
    let start = part as usize * part_elements;
    start..(start + part_elements).min(elements)
}

fn parameters_of(table: &[TensorSpec]) -> usize {
    table.iter().map(|s| s.len).sum()
}

/// Part `part` of `state` (as [`crate::engine::Engine::export_state`] gives it) as a safetensors file.
///
/// # Errors
/// When there is no such part.
pub fn encode_part(
    run: &str,
    name: StateName,
    part: u32,
    state: &[u8],
    table: &[TensorSpec],
) -> Result<Vec<u8>, CheckpointError> {
    encode_part_of(run, name, part, state, table, PART_ELEMENTS)
}

pub(super) fn encode_part_of(
    run: &str,
    name: StateName,
    part: u32,
    state: &[u8],
    table: &[TensorSpec],
    part_elements: usize,
) -> Result<Vec<u8>, CheckpointError> {
    let wrong = |why: String| CheckpointError::Part {
        index: part,
        key: "to be written".into(),
        why,
    };
    let parameters = parameters_of(table);
    let arrays = arrays_of(parameters, state.len()).ok_or_else(|| {
        let len = state.len();
        wrong(format!("{len} bytes are no state of {parameters} parameters"))
    })?;
    let total = parts_total_of(parameters, arrays, part_elements);
    if part >= total {
        return Err(wrong(format!("this state has {total} parts")));
    }
    let elements = arrays * parameters;
    let mut views = Vec::new();
    let pieces = pieces(table, parameters, part_range(part, elements, part_elements));
    for piece in &pieces {
        let data = &state[4 * piece.at.start..4 * piece.at.end];
        let view = TensorView::new(Dtype::F32, piece.shape.clone(), data).map_err(|e| wrong(e.to_string()))?;
        views.push((piece.name.as_str(), view));
    }
    if part + 1 == total {
        let count = TensorView::new(Dtype::U64, vec![1], &state[4 * elements..]).map_err(|e| wrong(e.to_string()))?;
        views.push((APPLIED_STEPS, count));
    }
    let label = PartLabel {
        version: FORMAT_VERSION,
        run: run.into(),
        name,
        part,
        parts_total: total,
        arrays,
    };
    let label = serde_json::to_string(&label).map_err(|e| wrong(e.to_string()))?;
    let metadata = HashMap::from([(METADATA_KEY.to_owned(), label)]);
    safetensors::serialize(views, Some(metadata)).map_err(|e| wrong(e.to_string()))
}

/// What a part's file says of itself, or why it cannot be told.
pub(super) fn read_label(file: &[u8]) -> Result<PartLabel, String> {
    let (_, header) = SafeTensors::read_metadata(file).map_err(|e| format!("not a safetensors file: {e}"))?;
    let label = header.metadata().as_ref().and_then(|m| m.get(METADATA_KEY));
    let label = label.ok_or("it carries no label of Argosy's")?;
    let label: PartLabel = serde_json::from_str(label).map_err(|e| format!("its label: {e}"))?;
    if label.version != FORMAT_VERSION {
        return Err(format!(
            "it has format version {}, this Argosy reads {FORMAT_VERSION}",
            label.version
        ));
    }
    if !(3..=PREFIXES.len()).contains(&label.arrays) {
        return Err(format!("it says its state has {} arrays", label.arrays));
    }
    Ok(label)
}

/// Reads a part's file into its place in `state`. `key` names it in errors.
pub(super) fn decode_part_of(
    key: &str,
    name: StateName,
    part: u32,
    file: &[u8],
    table: &[TensorSpec],
    state: &mut [u8],
    part_elements: usize,
) -> Result<(), CheckpointError> {
    let wrong = |why: String| CheckpointError::Part {
        index: part,
        key: key.into(),
        why,
    };
    let parameters = parameters_of(table);
    let label = read_label(file).map_err(wrong)?;
    let (total, elements) = (
        parts_total_of(parameters, label.arrays, part_elements),
        label.arrays * parameters,
    );
    if state.len() != 4 * elements + 8 {
        let arrays = label.arrays;
        return Err(wrong(format!(
            "its state has {arrays} arrays, the manifest's other parts do not"
        )));
    }
    if (label.part, label.parts_total, label.name) != (part, total, name) {
        return Err(wrong(format!(
            "it says it is part {} of {} of {}; part {part} of {total} of {name} is expected",
            label.part, label.parts_total, label.name
        )));
    }
    let tensors = SafeTensors::deserialize(file).map_err(|e| wrong(e.to_string()))?;
    let pieces = pieces(table, parameters, part_range(part, elements, part_elements));
    let expected = pieces.len() + usize::from(part + 1 == total);
    if tensors.len() != expected {
        return Err(wrong(format!(
            "it holds {} tensors, the model has {expected} there",
            tensors.len()
        )));
    }
    for piece in pieces {
        let tensor = tensors
            .tensor(&piece.name)
            .map_err(|_| wrong(format!("tensor `{}` is missing", piece.name)))?;
        if tensor.dtype() != Dtype::F32 || tensor.shape() != piece.shape {
            let (dtype, shape) = (tensor.dtype(), tensor.shape());
            let why = format!(
                "tensor `{}` is {dtype:?} {shape:?}, the model needs F32 {:?}",
                piece.name, piece.shape
            );
            return Err(wrong(why));
        }
        state[4 * piece.at.start..4 * piece.at.end].copy_from_slice(tensor.data());
    }
    if part + 1 == total {
        let count = tensors
            .tensor(APPLIED_STEPS)
            .map_err(|_| wrong(format!("tensor `{APPLIED_STEPS}` is missing")))?;
        if count.data().len() != 8 {
            return Err(wrong(format!("tensor `{APPLIED_STEPS}` is not one number of 64 bits")));
        }
        state[4 * elements..].copy_from_slice(count.data());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use argosy_common::ids::Generation;

    fn table() -> Vec<TensorSpec> {
        let spec = |name: &str, shape: &[i64], offset, len| TensorSpec {
            name: name.into(),
            shape: shape.to_vec(),
            offset,
            len,
        };
        vec![spec("a", &[2, 3], 0, 6), spec("b", &[], 6, 1), spec("c", &[10], 7, 10)]
    }

    const NAME: StateName = StateName {
        step: 5,
        applied_gen: Generation(2),
    };

    #[test]
    fn parts_of_any_size_put_the_state_together_again() {
        let table = table();
        for (arrays, part_elements) in [3, 4]
            .into_iter()
            .flat_map(|a| [1, 4, 7, 17, 50, 51, 1000].map(|n| (a, n)))
        {
            let state: Vec<u8> = (0..state_bytes(17, arrays)).map(|i| (i * 31 % 251) as u8).collect();
            let total = parts_total_of(17, arrays, part_elements);
            let mut back = vec![0; state.len()];
            for part in 0..total {
                let file = encode_part_of("r", NAME, part, &state, &table, part_elements).unwrap();
                decode_part_of("k", NAME, part, &file, &table, &mut back, part_elements).unwrap();
            }
            assert_eq!(back, state, "{arrays} arrays in parts of {part_elements}");
        }
    }

    #[test]
    fn part_names_whole_tensors_plainly_and_pieces_by_their_elements() {
        let names: Vec<String> = pieces(&table(), 17, 4..20).into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["a[4:6]", "b", "c", "exp_avg.a[0:3]"]);
    }

    #[test]
    fn part_of_another_state_index_or_model_is_refused_with_its_key() {
        let table = table();
        let state = vec![1; 12 * 17 + 8];
        let file = encode_part_of("r", NAME, 0, &state, &table, 20).unwrap();
        let mut back = vec![0; state.len()];
        let mut refused = |name, part, table: &[TensorSpec], file: &[u8]| {
            decode_part_of("7/part-00000.safetensors", name, part, file, table, &mut back, 20)
                .unwrap_err()
                .to_string()
        };
        assert!(refused(StateName::INITIAL, 0, &table, &file).contains("step 5 of gen 2"));
        assert!(refused(NAME, 1, &table, &file).contains("7/part-00000.safetensors"));
        let mut other = table.clone();
        other[1].name = "bb".into();
        assert!(refused(NAME, 0, &other, &file).contains("`bb` is missing"));
        assert!(refused(NAME, 0, &table, &file[..file.len() - 1]).contains("safetensors"));
    }

    #[test]
    fn parts_total_of_known_models_follows_from_their_parameters() {
        assert_eq!(parts_total(1, 3), 1);
        assert_eq!(parts_total(PART_ELEMENTS, 3), 3);
        assert_eq!(parts_total(PART_ELEMENTS, 4), 4);
        assert_eq!(parts_total(151_277_313, 3), 28);
    }
}
