//! The copy on local disk of a worker that found no coordinator for too long (rule G9): the last thing it does.
//!
//! It has the form of a checkpoint, so that whatever reads those reads it; no run goes on from it by itself. What became of
//! all positions a worker does not know, so the manifest's counts are empty.

use super::{BatchSource, Held, Trainer};
use crate::checkpoint::{PartStore, part_key};
use crate::engine::Engine;
use argosy_common::events::{LogInfo, MANIFEST_VERSION, Manifest, PartInfo, PositionCounts};
use argosy_common::hash::digest64;
use argosy_common::ids::StateName;
use bytes::Bytes;

/// Folder of such copies in the run folder; each worker has one in it.
const FOLDER: &str = "emergency";

/// What a copy of the state says of itself, besides its parts.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// Digest of the training configuration.
    pub config_hash: u64,
    /// Digest of the index.
    pub index_hash: u64,
    /// The job as it is trained.
    pub job: serde_json::Value,
    /// The model's config in open_clip's JSON form.
    pub model: serde_json::Value,
}

impl<E: Engine, S: BatchSource> Trainer<E, S> {
    /// Writes the state, if it is clean and any. An error is told; there is nobody left who could do better.
    pub(super) fn emergency_copy(&mut self) {
        let Held::Clean(name) = self.held else { return };
        if name == StateName::INITIAL {
            return;
        }
        let folder = self.setup.run_dir.join(FOLDER).join(self.setup.worker.to_string());
        match self.write_copy(name, &folder.to_string_lossy()) {
            Ok(key) => {
                let manifest = folder.join(key);
                tracing::warn!(%name, manifest = %manifest.display(), "the state is on local disk");
            }
            Err(why) => tracing::error!(%name, why, folder = %folder.display(), "the state could not be kept"),
        }
    }

    /// The key of the manifest, below `folder`.
    fn write_copy(&self, name: StateName, folder: &str) -> Result<String, String> {
        let store = PartStore::open(folder).map_err(|e| e.to_string())?;
        store.check_space(self.engine.state_len() as u64)?;
        let attempt = name.step;
        let (reader, total) = (self.engine.state_reader(), self.layout.state_parts());
        let mut parts = Vec::new();
        let mut write = |index: u32, head: Vec<u8>, body: Vec<u8>| -> Result<(), String> {
            let key = part_key(attempt, index, total);
            let mut whole = head;
            whole.extend_from_slice(&body);
            parts.push(PartInfo {
                index,
                key: key.clone(),
                bytes: whole.len() as u64,
                checksum: digest64(&whole),
            });
            store.create_now(&key, Bytes::from(whole)).map_err(|e| e.to_string())
        };
        for index in 0..total {
            let range = self.layout.range(index);
            let mut body = vec![0; range.len()];
            reader.read(range.start, &mut body);
            let head = self
                .layout
                .header(&self.setup.run, name, index)
                .map_err(|e| e.to_string())?;
            write(index, head, body)?;
        }
        write(total, Vec::new(), self.history.whole())?;
        let manifest = self.manifest(name, parts);
        let json = serde_json::to_vec_pretty(&manifest).map_err(|e| e.to_string())?;
        let key = format!("{attempt}/manifest.json");
        store.create_now(&key, Bytes::from(json)).map_err(|e| e.to_string())?;
        Ok(key)
    }

    fn manifest(&self, name: StateName, parts: Vec<PartInfo>) -> Manifest {
        let origin = self.setup.origin.clone();
        let log = parts.last().cloned();
        let history = log.map(|part| LogInfo {
            attempt: name.step,
            from_step: self.history.begins(name.step),
            to_step: name.step,
            part,
        });
        Manifest {
            version: MANIFEST_VERSION,
            argosy: env!("CARGO_PKG_VERSION").into(),
            run: self.setup.run.clone(),
            attempt: name.step,
            name,
            positions_seen: self.setup.shape.positions_before(name.step),
            seed: self.setup.shape.seed,
            config_hash: origin.config_hash,
            index_hash: origin.index_hash,
            parent: None,
            parts,
            history: history.into_iter().collect(),
            ledger: PositionCounts::default(),
            job: origin.job,
            model: origin.model,
        }
    }
}
