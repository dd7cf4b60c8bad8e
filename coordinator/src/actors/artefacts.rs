//! Manifests and garbage in the run's object store.
//!
//! Every key of an attempt begins with its [`attempt_prefix`], so an attempt is deleted without knowing its parts.

use super::conductor;
use argosy_common::conductor::Event;
use argosy_common::events::Manifest;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::path::PathBuf;
use tokio_stream::StreamExt as _;

/// The object store of a run's checkpoints, as a folder of the run folder. Keys are relative to it.
pub const CHECKPOINTS_DIR: &str = "checkpoints";

/// What every key of an attempt begins with, with the slash. The manifest is `manifest.json` under it.
#[must_use]
pub fn attempt_prefix(attempt: u64) -> String {
    format!("{attempt}/")
}

pub(crate) struct Artefacts;

#[derive(Debug)]
pub(crate) enum Msg {
    /// Write create-only, then answer to this one.
    Write {
        manifest: Box<Manifest>,
        reply_to: ActorRef<conductor::Msg>,
    },
    /// Delete everything of these attempts.
    Collect { attempts: Vec<u64> },
}

impl Actor for Artefacts {
    type Msg = Msg;
    type State = LocalFileSystem;
    /// The store's folder.
    type Arguments = PathBuf;

    async fn pre_start(&self, _: ActorRef<Msg>, dir: PathBuf) -> Result<LocalFileSystem, ActorProcessingErr> {
        let store = LocalFileSystem::new_with_prefix(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        Ok(store.with_automatic_cleanup(true).with_fsync(true))
    }

    async fn handle(
        &self,
        _: ActorRef<Msg>,
        message: Msg,
        store: &mut LocalFileSystem,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Write { manifest, reply_to } => {
                let attempt = manifest.attempt;
                let event = match write(store, &manifest).await {
                    Ok(key) => Event::ManifestWritten { attempt, key },
                    Err(reason) => Event::ManifestFailed { attempt, reason },
                };
                let _ = reply_to.cast(conductor::Msg::Event(event)); // gone at the end of a run
            }
            Msg::Collect { attempts } => {
                for attempt in attempts {
                    // Garbage that stays is only disk space; the next run may try again.
                    if let Err(error) = collect(store, attempt).await {
                        tracing::warn!(attempt, %error, "an attempt's files could not all be deleted");
                    }
                }
            }
        }
        Ok(())
    }
}

/// Checks that every part is there, then creates the manifest. In doubt it is read back and compared (rule K3).
async fn write(store: &dyn ObjectStore, manifest: &Manifest) -> Result<String, String> {
    let prefix = attempt_prefix(manifest.attempt);
    for part in &manifest.parts {
        if !part.key.starts_with(&prefix) {
            return Err(format!(
                "part {} has key `{}`, not one under `{prefix}`",
                part.index, part.key
            ));
        }
        let found = store.head(&Key::from(part.key.as_str())).await;
        let bytes = found
            .map_err(|e| format!("part {} is not stored: {e}", part.index))?
            .size;
        if bytes != part.bytes {
            return Err(format!(
                "part {} is stored with {bytes} bytes, its worker wrote {}",
                part.index, part.bytes
            ));
        }
    }
    let key = Key::from(format!("{prefix}manifest.json"));
    let json = serde_json::to_vec_pretty(manifest).map_err(|e| e.to_string())?;
    let create = PutOptions {
        mode: PutMode::Create,
        ..PutOptions::default()
    };
    let put = store.put_opts(&key, PutPayload::from(json.clone()), create).await;
    if let Err(error) = put {
        let stored = match store.get(&key).await {
            Ok(object) => object.bytes().await.map_err(|e| e.to_string())?,
            Err(_) => return Err(format!("{key} could not be written: {error}")),
        };
        if stored != json {
            return Err(format!("{key} exists with other content: {error}"));
        }
    }
    Ok(key.to_string())
}

async fn collect(store: &LocalFileSystem, attempt: u64) -> object_store::Result<()> {
    let folder = Key::from(attempt_prefix(attempt));
    // The manifest goes first: what is left of a half-deleted attempt must not look whole.
    let manifest = folder.clone().join("manifest.json");
    match store.delete(&manifest).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => return Err(error),
    }
    let keys: Vec<_> = store.list(Some(&folder)).collect().await;
    for meta in keys {
        match store.delete(&meta?.location).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use argosy_common::events::PartInfo;
    use argosy_common::ids::StateName;

    fn store() -> (tempfile::TempDir, LocalFileSystem) {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalFileSystem::new_with_prefix(dir.path())
            .unwrap()
            .with_automatic_cleanup(true);
        (dir, store)
    }

    fn manifest(attempt: u64, seed: u64) -> Manifest {
        let part = PartInfo {
            index: 0,
            key: format!("{attempt}/part"),
            bytes: 3,
            checksum: 0,
        };
        Manifest {
            version: 1,
            run: "r".into(),
            attempt,
            name: StateName::INITIAL,
            positions_seen: 0,
            seed,
            config_hash: 0,
            index_hash: 0,
            parent: None,
            parts: vec![part],
            model: serde_json::json!({}),
        }
    }

    fn part(dir: &tempfile::TempDir, attempt: u64, bytes: &[u8]) {
        std::fs::create_dir_all(dir.path().join(attempt.to_string())).unwrap();
        std::fs::write(dir.path().join(format!("{attempt}/part")), bytes).unwrap();
    }

    #[tokio::test]
    async fn manifest_written_again_is_the_same_one_and_never_another() {
        let (dir, store) = store();
        part(&dir, 4, b"abc");
        assert_eq!(write(&store, &manifest(4, 1)).await.unwrap(), "4/manifest.json");
        assert_eq!(write(&store, &manifest(4, 1)).await.unwrap(), "4/manifest.json");
        let refused = write(&store, &manifest(4, 2)).await.unwrap_err();
        assert!(refused.contains("exists with other content"), "{refused}");
        let stored = std::fs::read(dir.path().join("4/manifest.json")).unwrap();
        assert_eq!(serde_json::from_slice::<Manifest>(&stored).unwrap(), manifest(4, 1));
    }

    #[tokio::test]
    async fn manifest_of_a_part_that_is_missing_or_short_is_refused() {
        let (dir, store) = store();
        let missing = write(&store, &manifest(1, 0)).await.unwrap_err();
        assert!(missing.contains("part 0 is not stored"), "{missing}");
        part(&dir, 1, b"ab");
        let short = write(&store, &manifest(1, 0)).await.unwrap_err();
        assert!(short.contains("2 bytes"), "{short}");
        assert!(!dir.path().join("1/manifest.json").exists());
    }

    #[tokio::test]
    async fn collected_attempt_takes_nothing_of_others_with_it() {
        let (dir, store) = store();
        for attempt in [1, 11, 2] {
            part(&dir, attempt, b"abc");
        }
        collect(&store, 1).await.unwrap();
        collect(&store, 7).await.unwrap();
        assert!(!dir.path().join("1").exists());
        assert!(dir.path().join("11/part").exists() && dir.path().join("2/part").exists());
    }
}
