//! What a coordinator is told, and who starts its workers.

use crate::store::Reign;
use argosy_common::conductor::{Policy, Settings};
use argosy_common::config::Job;
use argosy_common::events::StampedEvent;
use argosy_common::ids::{Term, WorkerId};
use argosy_common::ledger::Keep;
use argosy_common::shape::RunShape;
use argosy_rpc::{NO_ID, Tls, Welcome};
use object_store::ObjectStore;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::broadcast;

/// Starts and ends worker processes. Every process that was started is reported to
/// [`crate::CoordinatorHandle::worker_exited`] once it is reaped.
pub trait Spawner: Send + Sync + 'static {
    /// Starts a process that joins the coordinator at `endpoint` as `worker`; returns its process id. Must not block.
    ///
    /// # Errors
    /// Why it could not be started; counts as a process that ended at once.
    fn spawn(&self, worker: WorkerId, endpoint: &str) -> io::Result<u32>;

    /// Ends a process by force, if it still runs.
    fn kill(&self, worker: WorkerId);
}

/// Everything a run needs to know. All of it is injected; the coordinator reads no environment and no job file.
#[derive(Clone)]
pub struct CoordinatorOptions {
    /// The run's id.
    pub run: String,
    /// Folder of the run, made if missing: `meta.redb`, `events.jsonl`.
    pub run_dir: PathBuf,
    /// Where its checkpoints lie.
    pub checkpoints: Arc<dyn ObjectStore>,
    /// The job, with what the command line changed.
    pub job: Job,
    /// Folder that relative paths of the job start at.
    pub job_dir: PathBuf,
    /// The index.
    pub index_path: PathBuf,
    /// Where workers that share no folder with this process find the run's files.
    pub files_url: Option<String>,
    /// Its digest.
    pub index_hash: u64,
    /// The data's shape: lanes, fitted window factor, length of the run.
    pub shape: RunShape,
    /// The model's config in open_clip's JSON form, for manifests.
    pub model: serde_json::Value,
    /// Parts of a checkpoint; from 1.
    pub parts_total: u32,
    /// The coordinator asks its [`Spawner`] for workers; else they are started by hand.
    pub spawns: bool,
    /// Where it listens while it leads; by default a free port of 127.0.0.1. Off loopback it needs certificates.
    pub listen: Option<SocketAddr>,
    /// What it says of its place in the store, for people; by default where it listens.
    pub advertise: Option<String>,
    /// A step lease lasts so long (rule G5); 0: workers train without one and end with their stream.
    pub outage_max_ms: u64,
    /// Workers look for a coordinator so long (rule G9); 0: they end with their stream.
    pub orphan_max_ms: u64,
    /// Certificates of this coordinator; without them it listens on loopback only.
    pub tls: Option<Tls>,
    /// Workers must show it.
    pub token: String,
    /// What generation secrets derive from; at least 16 random bytes.
    pub run_secret: Vec<u8>,
    /// Hint for workers; 0 leaves it to them.
    pub decode_threads: u32,
    /// Hint for workers; 0 leaves it to them.
    pub torch_threads: u32,
    /// Every event goes here as well; subscribe before the run starts.
    pub progress: Option<broadcast::Sender<StampedEvent>>,
}

impl fmt::Debug for CoordinatorOptions {
    /// Without token and secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoordinatorOptions")
            .field("run", &self.run)
            .field("run_dir", &self.run_dir)
            .field("listen", &self.listen)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

impl CoordinatorOptions {
    /// What the brain is told.
    pub(crate) fn settings(&self, reign: &dyn Reign) -> Settings {
        let job = &self.job;
        Settings {
            run: self.run.clone(),
            term: reign.term(),
            lanes: self.shape.lanes,
            total_steps: self.shape.total_steps(),
            workers_min: job.workers.min,
            workers_target: job.workers.target,
            workers_max: job.workers.max,
            spawns: self.spawns,
            failure_budget_ms: job.failure.failure_budget_ms,
            worker_errors_max: job.failure.worker_errors_max,
            checkpoint_steps: job
                .checkpoint
                .every_samples
                .div_ceil(u64::from(self.shape.batch.max(1))),
            checkpoint_ms: job.checkpoint.every_s.saturating_mul(1000),
            keep: Keep {
                last: job.checkpoint.keep_last,
                every_steps: job
                    .checkpoint
                    .keep_every_samples
                    .div_ceil(u64::from(self.shape.batch.max(1))),
            },
            parts_total: self.parts_total,
            seed: job.seed,
            policy: Policy {
                outage_max_ms: self.outage_max_ms,
                reign_ms: reign.renewal_holds_for().map_or(0, |held| held.as_millis() as u64),
                unreadable_after_ms: job.failure.unreadable_after_s.saturating_mul(1000),
                nonfinite_max: job.failure.nonfinite_max,
                ..Policy::default()
            },
        }
    }

    /// What a worker is told.
    pub(crate) fn welcome(&self, term: Term) -> Welcome {
        let path = |path: &PathBuf| path.to_string_lossy().into_owned();
        Welcome {
            worker: NO_ID, // each is told its own
            files_url: self.files_url.clone(),
            run: self.run.clone(),
            job: self.job.clone(),
            job_dir: path(&self.job_dir),
            index_path: path(&self.index_path),
            index_hash: self.index_hash,
            lanes: self.shape.lanes,
            window_factor: self.shape.window_factor,
            total_positions: self.shape.total_positions,
            run_dir: path(&self.run_dir),
            heartbeat_ms: (self.job.failure.failure_budget_ms / 5).max(50),
            run_secret: self.run_secret.clone(),
            decode_threads: self.decode_threads,
            torch_threads: self.torch_threads,
            term,
            leases: self.outage_max_ms > 0,
            orphan_max_ms: self.orphan_max_ms,
        }
    }
}
