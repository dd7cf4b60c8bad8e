//! Parts on their way to the store, beside the training.

use super::layout::encode_part;
use super::{CHECKPOINTS_DIR, CheckpointError};
use crate::engine::TensorSpec;
use crate::trainer::{Emit, Failpoint};
use argosy_common::events::{FromWorker, PartInfo};
use argosy_common::follower::Event;
use argosy_common::hash::digest64;
use argosy_common::ids::StateName;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// A copied state and which parts of it to write.
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
    /// As [`crate::engine::Engine::export_state`] gives it.
    pub state: Vec<u8>,
    /// Its tensors.
    pub table: Vec<TensorSpec>,
}

/// Key of a part, relative to the folder of checkpoints.
#[must_use]
pub fn part_key(attempt: u64, part: u32) -> String {
    format!("{attempt}/part-{part:05}.safetensors")
}

/// The thread that writes parts. Dropping it waits for the parts that were given to it.
#[derive(Debug)]
pub struct Uploader {
    jobs: Option<SyncSender<UploadJob>>,
    thread: Option<JoinHandle<()>>,
}

impl Uploader {
    /// Starts the thread. What becomes of each part is emitted.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(run_dir: PathBuf, emit: Emit, failpoint: Arc<Failpoint>) -> std::io::Result<Self> {
        // One job waits while one is written; a third would hold a third copy of the state.
        let (jobs, queue) = sync_channel::<UploadJob>(1);
        let thread = std::thread::Builder::new().name("upload".into()).spawn(move || {
            let root = run_dir.join(CHECKPOINTS_DIR);
            for job in queue {
                failpoint.hit("upload", job.name.step);
                for part in &job.parts {
                    let message = match write_part(&root, &job, *part) {
                        Ok(info) => FromWorker::PartUploaded {
                            attempt: job.attempt,
                            part: info,
                            name: job.name,
                        },
                        Err(error) => FromWorker::PartFailed {
                            attempt: job.attempt,
                            reason: error.to_string(),
                        },
                    };
                    emit(Event::Passed(message));
                }
            }
        })?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// Takes a job, without waiting.
    ///
    /// # Errors
    /// A sentence, when earlier parts are still being written.
    pub fn upload(&self, job: UploadJob) -> Result<(), String> {
        let Some(jobs) = &self.jobs else {
            return Err("the uploading thread has ended".into());
        };
        jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => {
                "parts of earlier checkpoints are still being written; take checkpoints less often".into()
            }
            TrySendError::Disconnected(_) => "the uploading thread has ended".into(),
        })
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // If it panicked, its hook has told.
            let _ = thread.join();
        }
    }
}

fn write_part(root: &Path, job: &UploadJob, part: u32) -> Result<PartInfo, CheckpointError> {
    let bytes = encode_part(&job.run, job.name, part, &job.state, &job.table)?;
    let key = part_key(job.attempt, part);
    let path = root.join(&key);
    let io = |e: std::io::Error| CheckpointError::Io {
        file: path.display().to_string(),
        why: e.to_string(),
    };
    create_whole(&path, &bytes).map_err(io)?;
    Ok(PartInfo {
        index: part,
        key,
        bytes: bytes.len() as u64,
        checksum: digest64(&bytes),
    })
}

/// Puts a file where none was, whole and durable. One that is there already must be the same (rule K3).
fn create_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = PathBuf::from(beside);
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    // A link, unlike a rename, never replaces what is there.
    let linked = std::fs::hard_link(&beside, path);
    std::fs::remove_file(&beside)?;
    match linked {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && std::fs::read(path)? == bytes => {}
        other => other?,
    }
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_exists_is_kept_and_must_be_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("3/part");
        create_whole(&path, b"one").unwrap();
        create_whole(&path, b"one").unwrap();
        assert!(create_whole(&path, b"two").is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(
            std::fs::read_dir(dir.path().join("3")).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }
}
