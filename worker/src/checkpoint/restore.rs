//! A committed checkpoint's way back into one state.

use super::layout::{PART_ELEMENTS, decode_part_of, parts_total, read_label, state_bytes};
use super::{CHECKPOINTS_DIR, CheckpointError};
use crate::engine::TensorSpec;
use argosy_common::events::Manifest;
use argosy_common::hash::digest64;
use argosy_common::ids::StateName;
use std::path::Path;

/// Version of the manifest's format.
const MANIFEST_VERSION: u32 = 1;

/// Reads a manifest.
///
/// # Errors
/// When it is missing, damaged, or of another version.
pub fn read_manifest(path: &Path) -> Result<Manifest, CheckpointError> {
    let file = path.display().to_string();
    let text = std::fs::read(path).map_err(|e| CheckpointError::Io {
        file: file.clone(),
        why: e.to_string(),
    })?;
    let wrong = |why: String| CheckpointError::Manifest { key: file.clone(), why };
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    if manifest.version != MANIFEST_VERSION {
        let why = format!(
            "it has format version {}, this Argosy reads {MANIFEST_VERSION}",
            manifest.version
        );
        return Err(wrong(why));
    }
    Ok(manifest)
}

/// The state that the manifest with key `key` of the run in `run_dir` stands for, as
/// [`crate::engine::Engine::import_state`] takes it. It must be `name`, of a model with the tensors of `table`.
///
/// # Errors
/// Names the manifest, part and tensor that is wrong.
pub fn restore(run_dir: &Path, key: &str, name: StateName, table: &[TensorSpec]) -> Result<Vec<u8>, CheckpointError> {
    let root = run_dir.join(CHECKPOINTS_DIR);
    let manifest = read_manifest(&root.join(key))?;
    if manifest.name != name {
        let why = format!("it is of {}, {name} is wanted", manifest.name);
        return Err(CheckpointError::Manifest { key: key.into(), why });
    }
    restore_manifest(&root, &manifest, table)
}

/// The state of `manifest`, whose parts lie under `root`.
///
/// # Errors
/// As [`restore`].
pub fn restore_manifest(root: &Path, manifest: &Manifest, table: &[TensorSpec]) -> Result<Vec<u8>, CheckpointError> {
    let parameters: usize = table.iter().map(|s| s.len).sum();
    // How many arrays the state has stands in its parts.
    let mut state = Vec::new();
    for part in &manifest.parts {
        let path = root.join(&part.key);
        let wrong = |why: String| CheckpointError::Part {
            index: part.index,
            key: part.key.clone(),
            why,
        };
        let bytes = std::fs::read(&path).map_err(|e| wrong(e.to_string()))?;
        if bytes.len() as u64 != part.bytes {
            return Err(wrong(format!(
                "it has {} bytes, the manifest says {}",
                bytes.len(),
                part.bytes
            )));
        }
        if digest64(&bytes) != part.checksum {
            return Err(wrong("its checksum is not the manifest's; the file is damaged".into()));
        }
        if state.is_empty() {
            let arrays = read_label(&bytes).map_err(wrong)?.arrays;
            check_parts(manifest, parts_total(parameters, arrays))?;
            state = vec![0; state_bytes(parameters, arrays)];
        }
        decode_part_of(
            &part.key,
            manifest.name,
            part.index,
            &bytes,
            table,
            &mut state,
            PART_ELEMENTS,
        )?;
    }
    if state.is_empty() {
        // A manifest without parts.
        check_parts(manifest, parts_total(parameters, 3))?;
    }
    Ok(state)
}

fn check_parts(manifest: &Manifest, total: u32) -> Result<(), CheckpointError> {
    if manifest.parts.iter().map(|p| p.index).eq(0..total) {
        return Ok(());
    }
    let why = format!(
        "it lists {} parts, this model's state has {total}",
        manifest.parts.len()
    );
    Err(CheckpointError::Manifest {
        key: format!("of attempt {}", manifest.attempt),
        why,
    })
}
