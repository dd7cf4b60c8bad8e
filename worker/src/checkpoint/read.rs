//! Tensors of a checkpoint by name, for programs that train nothing: export, evaluation, embedding.

use super::layout::{parse_piece, table_of_parts};
use super::restore::read_parts;
use super::{CheckpointError, PartStore};
use argosy_common::events::Manifest;
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, BTreeSet};

/// A state's tensors as its parts name them.
#[derive(Debug, Default)]
pub struct ReadState {
    /// `[rows, ...]` shape and little-endian f32 values by name; only those that were asked for.
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
    /// Names of all tensors of the state.
    pub names: BTreeSet<String>,
}

/// Part, name, type, shape, and the bytes if they are wanted.
type Piece = (u32, String, Dtype, Vec<usize>, Option<Vec<u8>>);

/// Reads the tensors of `manifest` that `wants` names. What a state is made of stands in its parts, so that a state with
/// more arrays than this program knows (an average, running statistics) is read too.
///
/// # Errors
/// Names the part that is missing or damaged.
pub fn read_state(
    store: &PartStore,
    manifest: &Manifest,
    wants: impl Fn(&str) -> bool,
) -> Result<ReadState, CheckpointError> {
    let state_parts = manifest.parts.len().saturating_sub(1);
    let mut pieces: Vec<Piece> = Vec::new();
    read_parts(store, &manifest.parts[..state_parts], |part, file| {
        let wrong = |why: String| CheckpointError::part(part.index, &part.key, why);
        let (_, header) = SafeTensors::read_metadata(&file).map_err(|e| wrong(e.to_string()))?;
        let read = SafeTensors::deserialize(&file).map_err(|e| wrong(e.to_string()))?;
        for name in header.offset_keys() {
            let tensor = read.tensor(&name).map_err(|e| wrong(e.to_string()))?;
            let data = wants(parse_piece(&name).0).then(|| tensor.data().to_vec());
            pieces.push((part.index, name, tensor.dtype(), tensor.shape().to_vec(), data));
        }
        Ok(())
    })?;
    // Parts come in any order; within one, names come in the order of their bytes.
    pieces.sort_by_key(|piece| piece.0);
    let named = pieces.iter().map(|(_, n, d, s, _)| (n.as_str(), *d, s.as_slice()));
    let table = table_of_parts(named);
    let mut out = ReadState::default();
    for tensor in table {
        if wants(&tensor.name) {
            let empty = Vec::with_capacity(tensor.at.len());
            out.tensors.insert(tensor.name.clone(), (tensor.shape, empty));
        }
        out.names.insert(tensor.name);
    }
    for (_, name, _, _, data) in pieces {
        if let (Some((_, bytes)), Some(data)) = (out.tensors.get_mut(parse_piece(&name).0), data) {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(out)
}
