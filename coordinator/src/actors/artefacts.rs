//! Manifests and garbage in the run's object store.
//!
//! Every key of an attempt begins with its [`attempt_prefix`], so an attempt is deleted without knowing its parts.

use super::conductor;
use argosy_common::conductor::Event;
use argosy_common::events::{LogInfo, Manifest, PartInfo, PositionCounts};
use argosy_common::hash::digest64;
use argosy_common::steplog::{self, StepRecord};
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::sync::Arc;
use tokio_stream::StreamExt as _;

/// The folder of a run's checkpoints in its run folder, where the job names no other place.
pub const CHECKPOINTS_DIR: &str = "checkpoints";
/// Name of the log in an attempt.
const LOG_NAME: &str = "steps.jsonl";
/// Name of the manifest in an attempt.
const MANIFEST_NAME: &str = "manifest.json";

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
    /// Delete everything of these attempts, but their logs if later manifests refer to them.
    Collect { attempts: Vec<u64>, keep_logs: bool },
}

pub(crate) struct State {
    store: Arc<dyn ObjectStore>,
    /// The manifest written last: the next one's parent, most of the time.
    last: Option<(String, Manifest)>,
}

impl Actor for Artefacts {
    type Msg = Msg;
    type State = State;
    type Arguments = Arc<dyn ObjectStore>;

    async fn pre_start(&self, _: ActorRef<Msg>, store: Arc<dyn ObjectStore>) -> Result<State, ActorProcessingErr> {
        Ok(State { store, last: None })
    }

    async fn handle(&self, _: ActorRef<Msg>, message: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Write { manifest, reply_to } => {
                let attempt = manifest.attempt;
                let written = state.write(*manifest).await;
                let event = match written {
                    Ok(key) => Event::ManifestWritten { attempt, key },
                    Err(reason) => Event::ManifestFailed { attempt, reason },
                };
                let _ = reply_to.cast(conductor::Msg::Event(event)); // gone at the end of a run
            }
            Msg::Collect { attempts, keep_logs } => {
                for attempt in attempts {
                    // Garbage that stays is only disk space; the next run may try again.
                    if let Err(error) = collect(state.store.as_ref(), attempt, keep_logs).await {
                        tracing::warn!(attempt, %error, "an attempt's files could not all be deleted");
                    }
                }
            }
        }
        Ok(())
    }
}

impl State {
    async fn write(&mut self, mut manifest: Manifest) -> Result<String, String> {
        check_parts(self.store.as_ref(), &manifest).await?;
        let parent = self.parent(&manifest).await?;
        trace(self.store.as_ref(), &mut manifest, parent.as_ref()).await?;
        let key = write(self.store.as_ref(), &manifest).await?;
        self.last = Some((key.clone(), manifest));
        Ok(key)
    }

    async fn parent(&self, manifest: &Manifest) -> Result<Option<Manifest>, String> {
        let Some(key) = &manifest.parent else { return Ok(None) };
        if let Some((_, last)) = self.last.as_ref().filter(|(k, _)| k == key) {
            return Ok(Some(last.clone()));
        }
        let json = read(self.store.as_ref(), key).await?;
        let parent = serde_json::from_slice(&json).map_err(|e| format!("the parent manifest {key}: {e}"))?;
        Ok(Some(parent))
    }
}

async fn read(store: &dyn ObjectStore, key: &str) -> Result<Vec<u8>, String> {
    let failed = |e: object_store::Error| format!("{key} cannot be read: {e}");
    let object = store.get(&Key::from(key)).await.map_err(failed)?;
    Ok(object.bytes().await.map_err(failed)?.to_vec())
}

/// Checks that every part is there.
async fn check_parts(store: &dyn ObjectStore, manifest: &Manifest) -> Result<(), String> {
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
    Ok(())
}

/// Puts the history into the manifest: the parent's logs and the one that came as the last part, which must hold exactly the
/// steps between them (rule AU1), and what became of all positions (rule M4).
async fn trace(store: &dyn ObjectStore, manifest: &mut Manifest, parent: Option<&Manifest>) -> Result<(), String> {
    let log: &PartInfo = manifest.parts.last().ok_or("a checkpoint has at least a log")?;
    let bytes = read(store, &log.key).await?;
    if digest64(&bytes) != log.checksum {
        return Err(format!("{} is not what its worker wrote", log.key));
    }
    let text = String::from_utf8(bytes).map_err(|e| format!("{}: {e}", log.key))?;
    let records = steplog::parse(&text).map_err(|(line, why)| format!("{}:{line}: {why}", log.key))?;
    let (from, mut counts, mut history) = match parent {
        Some(parent) => (parent.name.step, parent.ledger.clone(), parent.history.clone()),
        None => (0, PositionCounts::default(), Vec::new()),
    };
    let to = manifest.name.step;
    let logged = records.iter().filter_map(|record| match record {
        StepRecord::Applied { name, .. } => Some(name.step),
        _ => None,
    });
    if !logged.eq(from + 1..=to) {
        return Err(format!("{} does not hold the steps from {from} to {to}", log.key));
    }
    for record in &records {
        count(record, &mut counts);
    }
    history.push(LogInfo {
        attempt: manifest.attempt,
        from_step: from,
        to_step: to,
        part: log.clone(),
    });
    manifest.history = history;
    manifest.ledger = counts;
    Ok(())
}

fn count(record: &StepRecord, counts: &mut PositionCounts) {
    let StepRecord::Applied {
        valid, masked, skipped, ..
    } = record
    else {
        return;
    };
    match skipped {
        Some(reason) => *counts.skipped.entry(reason.clone()).or_default() += u64::from(*valid),
        None => counts.trained += u64::from(*valid),
    }
    for row in masked {
        *counts.masked.entry(row.reason).or_default() += 1;
    }
}

/// Creates the manifest. In doubt it is read back and compared (rule K3).
async fn write(store: &dyn ObjectStore, manifest: &Manifest) -> Result<String, String> {
    let key = Key::from(format!("{}{MANIFEST_NAME}", attempt_prefix(manifest.attempt)));
    let json = serde_json::to_vec_pretty(manifest).map_err(|e| e.to_string())?;
    let create = PutOptions {
        mode: PutMode::Create,
        ..PutOptions::default()
    };
    let put = store.put_opts(&key, PutPayload::from(json.clone()), create).await;
    if let Err(error) = put {
        let Ok(stored) = read(store, key.as_ref()).await else {
            return Err(format!("{key} could not be written: {error}"));
        };
        if stored != json {
            return Err(format!("{key} exists with other content: {error}"));
        }
    }
    Ok(key.to_string())
}

async fn collect(store: &dyn ObjectStore, attempt: u64, keep_log: bool) -> object_store::Result<()> {
    let folder = Key::from(attempt_prefix(attempt));
    // The manifest goes first: what is left of a half-deleted attempt must not look whole.
    let manifest = folder.clone().join(MANIFEST_NAME);
    match store.delete(&manifest).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => return Err(error),
    }
    let keys: Vec<_> = store.list(Some(&folder)).collect().await;
    for meta in keys {
        let location = meta?.location;
        if keep_log && location.filename() == Some(LOG_NAME) {
            continue;
        }
        match store.delete(&location).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
