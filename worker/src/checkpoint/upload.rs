//! Parts on their way to the store, beside the training (rules K1, K2).
//!
//! One attempt at a time: its parts are copied on one thread while the trainer computes, then put by a few tasks at once.
//! Copies for which this worker is only the buddy are kept until the next attempt, in case their owner is lost. Buffers go
//! from attempt to attempt.

use super::{CheckpointError, Layout, PartStore};
use crate::engine::StateRead;
use crate::trainer::{Emit, Failpoint};
use argosy_common::events::{FromWorker, PartFailure, PartInfo};
use argosy_common::follower::Event;
use argosy_common::ids::StateName;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use xxhash_rust::xxh3::Xxh3;

/// Puts under way at once.
const PUTS_AT_ONCE: usize = 4;

/// What to copy and write of one state.
#[derive(Debug)]
pub struct UploadJob {
    /// The run.
    pub run: String,
    /// The attempt; part of every key.
    pub attempt: u64,
    /// The state.
    pub name: StateName,
    /// Parts to write.
    pub parts: Vec<u32>,
    /// Parts to keep a copy of.
    pub spare: Vec<u32>,
    /// Reads the state; let go when all is copied.
    pub reader: Box<dyn StateRead>,
    /// Which bytes are in which part.
    pub layout: Arc<Layout>,
    /// Lines of the step log since the parent; the part behind those of the state.
    pub log: Vec<u8>,
}

/// Key of a part, relative to the folder of checkpoints. `state_parts` is the index of the log.
#[must_use]
pub fn part_key(attempt: u64, part: u32, state_parts: u32) -> String {
    if part == state_parts {
        return format!("{attempt}/steps.jsonl");
    }
    format!("{attempt}/part-{part:05}.safetensors")
}

type Pool = Arc<Mutex<Vec<BytesMut>>>;

fn buffers(pool: &Pool) -> MutexGuard<'_, Vec<BytesMut>> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copied parts of one state: header and bytes of each.
#[derive(Debug)]
struct Copies {
    attempt: u64,
    name: StateName,
    state_parts: u32,
    parts: BTreeMap<u32, (Bytes, Bytes)>,
    pool: Pool,
}

impl Drop for Copies {
    fn drop(&mut self) {
        let parts = std::mem::take(&mut self.parts);
        // A buffer that somebody still reads is let go; another one is allocated then.
        let free = parts.into_values().filter_map(|(_, bytes)| bytes.try_into_mut().ok());
        buffers(&self.pool).extend(free);
    }
}

/// The attempt under way.
#[derive(Debug)]
struct Current {
    attempt: u64,
    copies: watch::Receiver<Option<Arc<Copies>>>,
    tasks: Vec<JoinHandle<()>>,
}

/// Copies and writes parts. Dropping it waits for those that were given to it.
#[derive(Debug)]
pub struct Uploader {
    shared: Shared,
    current: Option<Current>,
    pool: Pool,
}

#[derive(Clone)]
struct Shared {
    store: PartStore,
    emit: Emit,
    failpoint: Arc<Failpoint>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl Uploader {
    /// Writes to `store`. What becomes of each part is emitted.
    #[must_use]
    pub fn new(store: PartStore, emit: Emit, failpoint: Arc<Failpoint>) -> Self {
        Self {
            shared: Shared { store, emit, failpoint },
            current: None,
            pool: Pool::default(),
        }
    }

    /// Where parts go.
    #[must_use]
    pub fn store(&self) -> &PartStore {
        &self.shared.store
    }

    /// Begins to copy and to write. What an earlier attempt still had under way is dropped: a new attempt begins when the
    /// one before is decided.
    ///
    /// # Errors
    /// A sentence, when there is no room for the parts.
    pub fn upload(&mut self, job: UploadJob) -> Result<(), String> {
        if let Some(before) = self.current.take() {
            before.tasks.iter().for_each(JoinHandle::abort);
        }
        let wanted: usize = job.parts.iter().map(|part| job.layout.range(*part).len()).sum();
        self.shared.store.check_space((wanted + job.log.len()) as u64)?;
        let (copied, copies) = watch::channel(None);
        let (attempt, parts) = (job.attempt, job.parts.clone());
        let (shared, pool) = (self.shared.clone(), self.pool.clone());
        let runtime = self.shared.store.handle();
        let begun = copies.clone();
        let copying = runtime.spawn_blocking(move || match copy(job, pool) {
            Ok(copies) => {
                shared.failpoint.hit("upload", copies.name.step);
                copied.send_replace(Some(Arc::new(copies)));
            }
            Err(error) => failed(&shared, attempt, &error.to_string()),
        });
        let writing = runtime.spawn(write(self.shared.clone(), begun, parts));
        self.current = Some(Current {
            attempt,
            copies,
            tasks: vec![copying, writing],
        });
        Ok(())
    }

    /// The owner of these parts is lost: writes our copies.
    pub fn upload_spare(&mut self, attempt: u64, parts: Vec<u32>) {
        let Some(current) = self.current.as_mut().filter(|c| c.attempt == attempt) else {
            return failed(
                &self.shared,
                attempt,
                "the buddy has no copy: it never reached that state",
            );
        };
        let writing = write(self.shared.clone(), current.copies.clone(), parts);
        current.tasks.push(self.shared.store.handle().spawn(writing));
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        let tasks = self.current.take().map(|c| c.tasks).unwrap_or_default();
        self.shared.store.block_on(async {
            for task in tasks {
                // If it panicked, its hook has told.
                let _ = task.await;
            }
        });
    }
}

fn failed(shared: &Shared, attempt: u64, reason: &str) {
    let reason = reason.to_owned();
    (shared.emit)(Event::Passed(FromWorker::PartFailed {
        attempt,
        failure: PartFailure::Store,
        reason,
    }));
}

/// The copy of rule K2. The reader is let go at its end, and APPLY may go on.
fn copy(job: UploadJob, pool: Pool) -> Result<Copies, CheckpointError> {
    let state_parts = job.layout.state_parts();
    let mut parts = BTreeMap::new();
    for part in job.parts.iter().chain(&job.spare) {
        if *part == state_parts {
            parts.insert(*part, (Bytes::new(), Bytes::from(job.log.clone())));
            continue;
        }
        let range = job.layout.range(*part);
        let mut buffer = buffers(&pool).pop().unwrap_or_default();
        buffer.resize(range.len(), 0);
        job.reader.read(range.start, &mut buffer);
        let header = job.layout.header(&job.run, job.name, *part)?;
        parts.insert(*part, (Bytes::from(header), buffer.freeze()));
    }
    Ok(Copies {
        attempt: job.attempt,
        name: job.name,
        state_parts,
        parts,
        pool,
    })
}

/// Writes `wanted` as soon as they are copied, a few at once.
async fn write(shared: Shared, mut copies: watch::Receiver<Option<Arc<Copies>>>, wanted: Vec<u32>) {
    let Ok(copies) = copies.wait_for(Option::is_some).await.map(|c| c.clone()) else {
        return; // the copy failed, and said so
    };
    let Some(copies) = copies else { return };
    let mut puts = JoinSet::new();
    for part in wanted {
        if puts.len() >= PUTS_AT_ONCE {
            puts.join_next().await;
        }
        puts.spawn(write_part(shared.clone(), copies.clone(), part));
    }
    while puts.join_next().await.is_some() {}
}

async fn write_part(shared: Shared, copies: Arc<Copies>, part: u32) {
    let attempt = copies.attempt;
    let Some((header, bytes)) = copies.parts.get(&part) else {
        return failed(&shared, attempt, &format!("part {part} was never copied here"));
    };
    let key = part_key(attempt, part, copies.state_parts);
    let mut digest = Xxh3::new();
    digest.update(header);
    digest.update(bytes);
    let info = PartInfo {
        index: part,
        key: key.clone(),
        bytes: (header.len() + bytes.len()) as u64,
        checksum: digest.digest(),
    };
    match shared.store.create(&key, vec![header.clone(), bytes.clone()]).await {
        Ok(()) => (shared.emit)(Event::Passed(FromWorker::PartUploaded {
            attempt,
            part: info,
            name: copies.name,
        })),
        Err(error) => failed(&shared, attempt, &error.to_string()),
    }
}
