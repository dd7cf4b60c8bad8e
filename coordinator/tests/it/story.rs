//! A run, the world its workers share, and what was seen of it.

use crate::worker;
use argosy_common::config::Job;
use argosy_common::events::{FromWorker, RunEvent, StampedEvent};
use argosy_common::ids::{StateName, WorkerId};
use argosy_common::plan::Plan;
use argosy_common::shape::{RunShape, SourceShape};
use argosy_coordinator::store::MetaStore;
use argosy_coordinator::{
    CoordinatorError, CoordinatorHandle, CoordinatorOptions, Outcome, Spawner, handle, lead, run,
};
use object_store::local::LocalFileSystem;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

pub(crate) const TOKEN: &str = "token of the story";
/// Generous: only a story that hangs ever waits for it.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("the story hangs")
}

/// 20 steps of 8 positions in 4 lanes, the last one short of 3.
pub(crate) fn options(run_dir: &Path, workers: u32, checkpoint_steps: u64) -> CoordinatorOptions {
    let job = format!(
        "version = 1\nname = \"story\"\n[model]\nname = \"ViT-B-32\"\n[data]\nsources = [{{ shards = \"a.tar\" }}]\n\
         [train]\nglobal_batch = 8\nlanes = 4\n[workers]\nmin = 1\ntarget = {workers}\nmax = 4\n\
         [checkpoint]\nevery_samples = {}\n",
        checkpoint_steps * 8
    );
    let checkpoints = run_dir.join("checkpoints");
    std::fs::create_dir_all(&checkpoints).unwrap();
    CoordinatorOptions {
        checkpoints: Arc::new(
            LocalFileSystem::new_with_prefix(&checkpoints)
                .unwrap()
                .with_automatic_cleanup(true),
        ),
        run: "story-1".into(),
        run_dir: run_dir.into(),
        job: Job::from_toml("story.toml", &job).unwrap(),
        job_dir: "/jobs".into(),
        index_path: "/index".into(),
        index_hash: 5,
        files_url: None,
        shape: RunShape {
            seed: 0,
            sources: vec![SourceShape {
                name: "s".into(),
                shard_rows: vec![157],
            }],
            batch: 8,
            lanes: 4,
            window_factor: 4,
            total_positions: 157,
        },
        model: serde_json::json!({"embed_dim": 8}),
        parts_total: 3,
        spawns: true,
        listen: None,
        advertise: None,
        tls: None,
        outage_max_ms: 0,
        orphan_max_ms: 0,
        token: TOKEN.into(),
        run_secret: vec![1; 32],
        decode_threads: 1,
        torch_threads: 1,
        progress: None,
    }
}

#[derive(Debug, Default)]
struct Inner {
    pids: u32,
    endpoint: String,
    refuse_spawns: bool,
    alive: BTreeMap<WorkerId, (u32, JoinHandle<()>)>,
    /// Steps applied, by generation and member: what the collective would enforce.
    progress: BTreeMap<(u64, WorkerId), u64>,
    /// Trainers apply no more than so many steps.
    gate: u64,
    /// Trainers stop before multiples of this until a checkpoint is ordered; 0: nowhere.
    hold: u64,
    fails: Option<(u64, FromWorker)>,
    wrongs: Vec<String>,
}

/// What the workers of a story share.
#[derive(Clone, Debug)]
pub(crate) struct World {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<watch::Sender<()>>,
    handle: CoordinatorHandle,
}

impl World {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.inner());
        self.changed.send_replace(());
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(crate) fn open_gate(&self, steps: u64) {
        self.change(|inner| inner.gate = steps);
    }

    pub(crate) fn hold_at(&self, steps: u64) {
        self.change(|inner| inner.hold = steps);
    }

    pub(crate) fn fail_at(&self, step: u64, word: FromWorker) {
        self.change(|inner| inner.fails = Some((step, word)));
    }

    pub(crate) fn refuse_spawns(&self) {
        self.inner().refuse_spawns = true;
    }

    pub(crate) fn spawned(&self) -> u32 {
        self.inner().pids
    }

    pub(crate) fn endpoint(&self) -> String {
        self.inner().endpoint.clone()
    }

    /// As SIGKILL: the task is gone between two of its awaits, its sockets are closed, and the parent reaps it.
    pub(crate) fn kill(&self, worker: WorkerId) {
        let dead = self.inner().alive.remove(&worker);
        if let Some((pid, task)) = dead {
            task.abort();
            self.handle.worker_exited(worker, pid, None, Some(9));
        }
    }

    pub(crate) fn exited(&self, worker: WorkerId, code: u8) {
        let gone = self.inner().alive.remove(&worker);
        if let Some((pid, _)) = gone {
            self.handle.worker_exited(worker, pid, Some(code.into()), None);
        }
    }

    pub(crate) fn entered(&self, worker: WorkerId, plan: &Plan, name: StateName) {
        self.change(|inner| {
            let heals = plan.members.iter().any(|m| m.worker == worker && m.heals);
            if heals == (name == plan.base) {
                let wrong = format!("{worker} with {name} was told heals={heals} for {}", plan.base);
                inner.wrongs.push(wrong);
            }
            inner.progress.insert((plan.generation.0, worker), plan.base.step);
        });
    }

    pub(crate) fn advanced(&self, worker: WorkerId, plan: &Plan, step: u64) {
        self.change(|inner| {
            inner.progress.insert((plan.generation.0, worker), step);
        });
    }

    /// Whether a member with `step` steps may apply the next: all members have come as far, and the story wants it.
    pub(crate) fn may_step(&self, plan: &Plan, step: u64, ordered: bool) -> bool {
        let inner = self.inner();
        let holds = inner.hold > 0 && step > plan.base.step && step.is_multiple_of(inner.hold) && !ordered;
        let level = plan.members.iter().all(|m| {
            inner
                .progress
                .get(&(plan.generation.0, m.worker))
                .is_some_and(|reached| *reached >= step)
        });
        level && !holds && step < inner.gate
    }

    /// Waits until `worker` has applied so many steps, whether anybody coordinates or not.
    pub(crate) async fn until_applied(&self, worker: WorkerId, step: u64) {
        let mut changes = self.changes();
        let reached = || {
            self.inner()
                .progress
                .iter()
                .any(|(key, s)| key.1 == worker && *s >= step)
        };
        while !reached() {
            in_time(changes.changed()).await.unwrap();
        }
    }

    pub(crate) fn failure_at(&self, step: u64) -> Option<FromWorker> {
        let inner = self.inner();
        let (at, word) = inner.fails.as_ref()?;
        (*at == step).then(|| word.clone())
    }

    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.inner().wrongs, Vec::<String>::new());
    }
}

impl Spawner for World {
    fn spawn(&self, worker: WorkerId, endpoint: &str) -> io::Result<u32> {
        let mut inner = self.inner();
        if inner.refuse_spawns {
            return Err(io::Error::other("no such binary"));
        }
        inner.pids += 1;
        inner.endpoint = endpoint.into();
        let pid = inner.pids;
        let task = tokio::spawn(worker::live(self.clone(), worker, endpoint.to_string()));
        inner.alive.insert(worker, (pid, task));
        Ok(pid)
    }

    fn kill(&self, worker: WorkerId) {
        Self::kill(self, worker);
    }
}

/// A run under way.
pub(crate) struct Story {
    pub(crate) world: World,
    pub(crate) handle: CoordinatorHandle,
    /// Every event so far.
    pub(crate) seen: Vec<StampedEvent>,
    events: broadcast::Receiver<StampedEvent>,
    task: JoinHandle<Result<Outcome, CoordinatorError>>,
}

impl Story {
    pub(crate) fn begin(mut options: CoordinatorOptions) -> Self {
        let (progress, events) = broadcast::channel(4096);
        options.progress = Some(progress);
        let (handle, orders) = handle();
        let world = Self::world(&options, &handle);
        let task = tokio::spawn(run(options, Arc::new(world.clone()), orders));
        Self {
            world,
            handle,
            seen: Vec::new(),
            events,
            task,
        }
    }

    /// One of several coordinators over `store`; workers of `world` are started by hand.
    pub(crate) fn stand(mut options: CoordinatorOptions, store: Arc<dyn MetaStore>, world: Option<World>) -> Self {
        let (progress, events) = broadcast::channel(4096);
        options.progress = Some(progress);
        let (handle, orders) = handle();
        let world = world.unwrap_or_else(|| Self::world(&options, &handle));
        let task = tokio::spawn(lead(options, store, Arc::new(world.clone()), orders));
        Self {
            world,
            handle,
            seen: Vec::new(),
            events,
            task,
        }
    }

    fn world(options: &CoordinatorOptions, handle: &CoordinatorHandle) -> World {
        let cadence = options.job.checkpoint.every_samples / 8;
        World {
            inner: Arc::new(Mutex::new(Inner {
                hold: cadence,
                ..Inner::default()
            })),
            changed: Arc::new(watch::Sender::new(())),
            handle: handle.clone(),
        }
    }

    /// Waits until an event, past or to come, is as wanted.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&RunEvent) -> bool) {
        if self.seen.iter().any(|e| wanted(&e.event)) {
            return;
        }
        loop {
            let event = in_time(self.events.recv()).await.expect("the run ended before");
            self.seen.push(event.clone());
            if wanted(&event.event) {
                return;
            }
        }
    }

    pub(crate) async fn until_step(&mut self, step: u64) {
        self.until(|e| matches!(e, RunEvent::StepDone { report, .. } if report.name.step == step))
            .await;
    }

    /// Waits for the end.
    pub(crate) async fn outcome(&mut self) -> Result<Outcome, CoordinatorError> {
        let outcome = in_time(&mut self.task).await.expect("the run panicked");
        while let Ok(event) = self.events.try_recv() {
            self.seen.push(event);
        }
        outcome
    }

    /// Drops the run half way.
    pub(crate) async fn abandon(&mut self) {
        self.task.abort();
        let _ = in_time(&mut self.task).await;
    }
}
