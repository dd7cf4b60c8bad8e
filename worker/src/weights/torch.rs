//! From pickled values to named tensors.

use super::pickle::Unpickled;
use super::values::{Heap, Object, StorageKind, View};
use super::{Entry, TENSORS_MAX};
use std::collections::BTreeMap;

/// Byte at which each storage begins, by its key.
pub(super) type Storages = BTreeMap<String, u64>;
/// Modules within modules.
const DEPTH_MAX: usize = 64;
/// Longest name of a tensor, with those of its modules.
const NAME_BYTES_MAX: usize = 1024;

pub(super) fn bytes_of(kind: StorageKind) -> u64 {
    match kind {
        StorageKind::I8 | StorageKind::U8 | StorageKind::Bool => 1,
        StorageKind::F16 | StorageKind::BF16 | StorageKind::I16 => 2,
        StorageKind::F32 | StorageKind::I32 => 4,
        StorageKind::F64 | StorageKind::I64 => 8,
    }
}

/// Tensors of a state dict, or of the one under `state_dict` in a checkpoint.
pub(super) fn of_state_dict(read: &Unpickled, storages: &Storages) -> Result<BTreeMap<String, Entry>, String> {
    let heap = &read.heap;
    let dictionary = |value| match heap.get(value) {
        Some(Object::Dict(entries)) => Some(entries),
        _ => None,
    };
    let top = dictionary(read.root).ok_or("it holds no dictionary of tensors")?;
    let inner = top.iter().find(|(key, _)| heap.text(*key) == Some("state_dict"));
    let table = match inner {
        Some((_, value)) => dictionary(*value).ok_or("its `state_dict` is no dictionary")?,
        None => top,
    };
    let mut out = BTreeMap::new();
    for (key, value) in table {
        let name = heap.text(*key).ok_or("a key of its state dict is no text")?;
        let Some(Object::Tensor(view)) = heap.get(*value) else {
            return Err(format!("{name:?} of its state dict is no tensor"));
        };
        // As in Python a key set twice has its last value.
        out.insert(name.to_owned(), entry(heap, view, storages)?);
        limit(out.len())?;
    }
    Ok(out)
}

/// Tensors of a compiled model under the names its state dict has: attributes of modules within modules.
pub(super) fn of_module(read: &Unpickled, storages: &Storages) -> Result<BTreeMap<String, Entry>, String> {
    let heap = &read.heap;
    let mut out = BTreeMap::new();
    let mut open = vec![(String::new(), read.root, 0)];
    // A module may be an attribute of several, but a file that names one a million times is none of ours.
    let mut visits = 0usize;
    while let Some((prefix, module, depth)) = open.pop() {
        let Some(Object::Module(attributes)) = heap.get(module) else {
            return Err("a TorchScript archive whose object is no module".into());
        };
        for (key, value) in attributes {
            visits += 1;
            limit(visits)?;
            let name = heap.text(*key).ok_or("an attribute's name is no text")?;
            if prefix.len() + name.len() >= NAME_BYTES_MAX {
                return Err(format!("a name of more than {NAME_BYTES_MAX} bytes"));
            }
            match heap.get(*value) {
                Some(Object::Tensor(view)) => {
                    out.insert(format!("{prefix}{name}"), entry(heap, view, storages)?);
                }
                Some(Object::Module(_)) if depth >= DEPTH_MAX => {
                    return Err(format!("modules within modules, more than {DEPTH_MAX} deep"));
                }
                Some(Object::Module(_)) => open.push((format!("{prefix}{name}."), *value, depth + 1)),
                _ => {}
            }
        }
    }
    Ok(out)
}

fn limit(count: usize) -> Result<(), String> {
    if count > TENSORS_MAX {
        return Err(format!("more than {TENSORS_MAX} tensors"));
    }
    Ok(())
}

fn entry(heap: &Heap, view: &View, storages: &Storages) -> Result<Entry, String> {
    let Some(Object::Storage { kind, key, .. }) = heap.object(view.storage) else {
        return Err("a tensor without a storage".into());
    };
    let start = storages
        .get(key)
        .ok_or_else(|| format!("storage {key} is not in the file"))?;
    let start = view
        .offset
        .checked_mul(bytes_of(*kind))
        .and_then(|offset| start.checked_add(offset));
    Ok(Entry {
        number: (*kind).into(),
        start: start.ok_or("a tensor that begins beyond any file")?,
        strides: (!contiguous(view)).then(|| view.strides.clone()),
        shape: view.shape.clone(),
    })
}

/// Whether elements lie one after another; steps along sides of one element mean nothing.
fn contiguous(view: &View) -> bool {
    let mut step = Some(1u64);
    for (size, stride) in view.shape.iter().zip(&view.strides).rev() {
        if *size != 1 && Some(*stride) != step {
            return false;
        }
        step = step.and_then(|step| step.checked_mul(*size));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguous_knows_sides_of_one_and_of_zero() {
        let view = |shape: &[u64], strides: &[u64]| View {
            storage: 0,
            offset: 0,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
        };
        assert!(contiguous(&view(&[2, 3], &[3, 1])) && contiguous(&view(&[], &[])));
        assert!(contiguous(&view(&[2, 1, 3], &[3, 77, 1])));
        assert!(!contiguous(&view(&[3, 2], &[1, 3])) && !contiguous(&view(&[2], &[0])));
    }
}
