//! A committed checkpoint's way back into one state.

use super::layout::{HEADER_BYTES_MAX, PART_BYTES};
use super::{CheckpointError, Layout, PartStore};
use argosy_common::events::{MANIFEST_VERSION, Manifest, PartInfo};
use argosy_common::hash::digest64;
use argosy_common::ids::StateName;
use bytes::Bytes;
use tokio::task::JoinSet;

/// Largest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// Parts on their way at once.
const READS_AT_ONCE: usize = 4;

/// Reads the manifest with this key.
///
/// # Errors
/// When it is missing, damaged, or of another version.
pub fn read_manifest(store: &PartStore, key: &str) -> Result<Manifest, CheckpointError> {
    let text = store.block_on(store.read(key, MANIFEST_BYTES_MAX))?;
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| CheckpointError::manifest(key, e))?;
    if value["version"].as_u64() != Some(u64::from(MANIFEST_VERSION)) {
        let why = format!(
            "it has format version {}, this Argosy reads {MANIFEST_VERSION}",
            value["version"]
        );
        return Err(CheckpointError::manifest(key, why));
    }
    serde_json::from_value(value).map_err(|e| CheckpointError::manifest(key, e))
}

/// The state that the manifest with key `key` stands for, as [`crate::engine::Engine::import_state`] takes it. It must be
/// `name`, of a model with this layout.
///
/// # Errors
/// Names the manifest, part and tensor that is wrong.
pub fn restore(store: &PartStore, key: &str, name: StateName, layout: &Layout) -> Result<Vec<u8>, CheckpointError> {
    let manifest = read_manifest(store, key)?;
    if manifest.name != name {
        let why = format!("it is of {}, {name} is wanted", manifest.name);
        return Err(CheckpointError::manifest(key, why));
    }
    restore_manifest(store, key, &manifest, layout)
}

/// The state of `manifest`.
///
/// # Errors
/// As [`restore`].
pub fn restore_manifest(
    store: &PartStore,
    key: &str,
    manifest: &Manifest,
    layout: &Layout,
) -> Result<Vec<u8>, CheckpointError> {
    let total = layout.state_parts() + 1;
    if !manifest.parts.iter().map(|p| p.index).eq(0..total) {
        let why = format!(
            "it lists {} parts, this model's state and its log have {total}",
            manifest.parts.len()
        );
        return Err(CheckpointError::manifest(key, why));
    }
    let mut state = vec![0; layout.state_bytes()];
    let parts = &manifest.parts[..total as usize - 1];
    read_parts(store, parts, |part, bytes| {
        layout.decode(&part.key, manifest.name, part.index, &bytes, &mut state)
    })?;
    Ok(state)
}

/// Reads parts, a few at once, checks length and checksum of each and hands it to `take`, in any order.
pub(super) fn read_parts(
    store: &PartStore,
    parts: &[PartInfo],
    mut take: impl FnMut(&PartInfo, Bytes) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    store.block_on(async {
        let mut reads: JoinSet<Result<(PartInfo, Bytes), CheckpointError>> = JoinSet::new();
        let mut left = parts.iter().cloned();
        loop {
            while reads.len() < READS_AT_ONCE
                && let Some(part) = left.next()
            {
                let store = store.clone();
                reads.spawn(async move { read_part(&store, &part).await.map(|bytes| (part, bytes)) });
            }
            match reads.join_next().await {
                None => return Ok(()),
                Some(Ok(read)) => {
                    let (part, bytes) = read?;
                    take(&part, bytes)?;
                }
                Some(Err(error)) => {
                    return Err(CheckpointError::Store {
                        object: "a part".into(),
                        why: format!("reading it ended: {error}"),
                        missing: false,
                    });
                }
            }
        }
    })
}

async fn read_part(store: &PartStore, part: &PartInfo) -> Result<Bytes, CheckpointError> {
    let wrong = |why: String| CheckpointError::part(part.index, &part.key, why);
    // A row that is larger than a part is one tensor's and bounded by the state; twice the size leaves room for it.
    let most = 2 * PART_BYTES as u64 + HEADER_BYTES_MAX;
    if part.bytes > most {
        return Err(wrong(format!(
            "the manifest says {} bytes, at most {most} are read",
            part.bytes
        )));
    }
    let bytes = match store.read(&part.key, part.bytes).await {
        Err(CheckpointError::Store { why, missing: true, .. }) => return Err(wrong(why)),
        read => read?,
    };
    if bytes.len() as u64 != part.bytes {
        return Err(wrong(format!(
            "it has {} bytes, the manifest says {}",
            bytes.len(),
            part.bytes
        )));
    }
    let digest = {
        let bytes = bytes.clone();
        tokio::task::spawn_blocking(move || digest64(&bytes)).await
    };
    if digest.ok() != Some(part.checksum) {
        return Err(wrong("its checksum is not the manifest's; the file is damaged".into()));
    }
    Ok(bytes)
}
