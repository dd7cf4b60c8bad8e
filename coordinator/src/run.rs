//! A whole run: opens the store, raises the actors and the server, waits for the outcome.

use crate::actors::conductor::Msg;
use crate::actors::{journal, root};
use crate::admission::{Door, Guests};
use crate::error::CoordinatorError;
use crate::handle::Orders;
use crate::options::{CoordinatorOptions, Spawner};
use crate::store::{RedbStore, Reign, StoreError};
use argosy_common::conductor::{Conductor, Restored};
use argosy_common::events::{MANIFEST_VERSION, Manifest, Outcome, PositionCounts, Record, RunEvent};
use argosy_common::ids::StateName;
use argosy_rpc::server::{Limits, serve};
use ractor::{Actor, ActorCell, ActorRef};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

/// Durable records, in the run folder.
pub const META_FILE: &str = "meta.redb";
/// What happened, one JSON object a line, in the run folder.
pub const EVENTS_FILE: &str = "events.jsonl";
/// Places for workers that come while others leave, beyond the most that are wanted.
const SPARE_CONNECTIONS: usize = 64;
/// Connections may take so long to close at the end.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// Coordinates one run to its end.
///
/// A run folder that holds the same run is continued; one whose run has succeeded is reported so at once.
///
/// # Errors
/// [`CoordinatorError`]: the run could not be coordinated. A run that failed is an [`Outcome`].
pub async fn run(
    options: CoordinatorOptions,
    spawner: Arc<dyn Spawner>,
    orders: Orders,
) -> Result<Outcome, CoordinatorError> {
    check(&options)?;
    let run_dir = options.run_dir.clone();
    tokio::fs::create_dir_all(&run_dir)
        .await
        .map_err(|source| CoordinatorError::Io { path: run_dir, source })?;
    let (store, restored) = recover(&options).await?;
    if let Some(name) = restored.finished {
        let manifest = restored.head.map(|head| head.key);
        return Ok(Outcome::Succeeded { name, manifest });
    }
    serve_run(options, spawner, orders, store, restored).await
}

fn check(options: &CoordinatorOptions) -> Result<(), CoordinatorError> {
    let shape = &options.shape;
    let reason = if shape.lanes == 0 || shape.lane_rows() == 0 {
        "the shape has no lanes, or a batch smaller than its lanes"
    } else if shape.total_positions == 0 {
        "there is nothing to train: the index has no kept rows, or epochs is 0"
    } else if options.parts_total == 0 {
        "a checkpoint needs at least one part"
    } else if options.token.is_empty() || options.run_secret.len() < 16 {
        "the token is empty or the run's secret is shorter than 16 bytes"
    } else {
        return Ok(());
    };
    Err(CoordinatorError::BadOptions { reason: reason.into() })
}

/// Opens the store and reads what the run was, writing down that it exists or that attempts left open are given up.
async fn recover(options: &CoordinatorOptions) -> Result<(Arc<dyn Reign>, Restored), CoordinatorError> {
    let path = options.run_dir.join(META_FILE);
    let created = Record::RunCreated {
        run: options.run.clone(),
        config_hash: options.job.config_hash(),
        index_hash: options.index_hash,
    };
    let work = move || open_run(&path, &created);
    let opened = tokio::task::spawn_blocking(work).await;
    let opened = opened.map_err(|e| CoordinatorError::ActorFailed {
        actor: "store",
        reason: e.to_string(),
    })?;
    match opened? {
        Opened::Run(store, restored) => Ok((store, *restored)),
        Opened::Other(what) => Err(CoordinatorError::OtherRun {
            run_dir: options.run_dir.clone(),
            what,
        }),
    }
}

enum Opened {
    Run(Arc<dyn Reign>, Box<Restored>),
    Other(&'static str),
}

fn open_run(path: &Path, created: &Record) -> Result<Opened, StoreError> {
    let store = RedbStore::open(path)?;
    let mut records = store.records()?;
    let mut revision = records.len() as u64;
    match records.iter().find(|r| matches!(r, Record::RunCreated { .. })) {
        None => {
            revision = store.append(revision, created)?;
            records.push(created.clone());
        }
        Some(existing) => {
            if let Some(what) = difference(existing, created) {
                return Ok(Opened::Other(what));
            }
        }
    }
    let restored = Restored::from_records(&records);
    for attempt in &restored.open_attempts {
        let reason = "the coordinator ended before it was complete".into();
        let attempt = *attempt;
        revision = store.append(revision, &Record::CheckpointAbandoned { attempt, reason })?;
    }
    Ok(Opened::Run(Arc::new(store), Box::new(restored)))
}

/// What differs between the run that a folder holds and the one that was asked for.
fn difference(existing: &Record, wanted: &Record) -> Option<&'static str> {
    let (
        Record::RunCreated {
            run: a,
            config_hash: config_a,
            index_hash: index_a,
        },
        Record::RunCreated {
            run: b,
            config_hash: config_b,
            index_hash: index_b,
        },
    ) = (existing, wanted)
    else {
        return None;
    };
    if config_a != config_b {
        Some("training configuration (model, data, train or seed of the job)")
    } else if index_a != index_b {
        Some("index: the data has changed")
    } else if a != b {
        Some("name")
    } else {
        None
    }
}

async fn serve_run(
    mut options: CoordinatorOptions,
    spawner: Arc<dyn Spawner>,
    orders: Orders,
    store: Arc<dyn Reign>,
    restored: Restored,
) -> Result<Outcome, CoordinatorError> {
    let socket_error = |e: std::io::Error| CoordinatorError::Serve(e.into());
    let listener = match options.listener.take() {
        Some(listener) => listener,
        None => TcpListener::bind(("127.0.0.1", 0)).await.map_err(socket_error)?,
    };
    let endpoint = format!("http://{}", listener.local_addr().map_err(socket_error)?);
    tracing::info!(
        run = options.run,
        endpoint,
        term = store.term().0,
        "the coordinator is up"
    );
    let guests = Arc::new(Guests::new(options.spawns));
    let limits = limits(&options);
    let (ready, conductor) = oneshot::channel();
    let (result, outcome) = oneshot::channel();
    let welcome = options.welcome();
    let token = options.token.clone();
    let settings = options.settings(store.term());
    // What expired before is deleted again: whether it was, nobody wrote down.
    let expired = settings.keep.expired(&restored.committed);
    let args = root::Args {
        brain: Conductor::new(settings, restored.clone()),
        started: started(&options),
        manifest: manifest(&options),
        garbage: restored.garbage(),
        expired,
        journal: journal::Args {
            path: options.run_dir.join(EVENTS_FILE),
            progress: options.progress,
        },
        checkpoints: options.checkpoints.clone(),
        store,
        endpoint,
        spawner,
        guests: Arc::clone(&guests),
        shape: options.shape,
        ready,
        result,
    };
    let failed = |actor, reason: String| CoordinatorError::ActorFailed { actor, reason };
    let (root, root_task) = Actor::spawn(None, root::Root, args)
        .await
        .map_err(|e| failed("supervisor", e.to_string()))?;
    let conductor = conductor.await.map_err(|e| failed("conductor", e.to_string()))?;
    let door = Arc::new(Door::new(welcome, conductor.clone(), restored.worker, guests));
    let (stop_server, stopped) = oneshot::channel::<()>();
    let supervisor = root.clone();
    let mut server = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        if let Err(error) = serve(listener, &token, limits, door, stopped).await {
            let _ = supervisor.cast(root::Msg::Failed(error.into()));
        }
    });
    let forwarding = tokio::spawn(forward(orders, conductor));
    let _cleanup = Cleanup {
        root: root.get_cell(),
        tasks: [server.abort_handle(), forwarding.abort_handle()],
    };
    let outcome = outcome.await;
    drop(stop_server);
    let _ = root_task.await;
    // Sessions ended with the conductor; a peer that does not close its connection is not waited for.
    let _ = tokio::time::timeout(CLOSE_WITHIN, &mut server).await;
    outcome.map_err(|_| failed("supervisor", "it ended without an outcome".into()))?
}

/// Ends what runs beside [`run`], also when its caller drops it half way.
struct Cleanup {
    root: ActorCell,
    tasks: [AbortHandle; 2],
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        self.root.stop(None);
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn limits(options: &CoordinatorOptions) -> Limits {
    let budget = Duration::from_millis(options.job.failure.failure_budget_ms);
    Limits {
        connections_max: options.job.workers.max as usize + SPARE_CONNECTIONS,
        hello_within: budget,
        keep_alive: budget,
    }
}

async fn forward(mut orders: Orders, conductor: ActorRef<Msg>) {
    while let Some(order) = orders.0.recv().await {
        if conductor.cast(Msg::Order(order)).is_err() {
            return;
        }
    }
}

fn started(options: &CoordinatorOptions) -> RunEvent {
    RunEvent::RunStarted {
        run: options.run.clone(),
        lanes: options.shape.lanes,
        batch: options.shape.batch,
        total_steps: options.shape.total_steps(),
        total_positions: options.shape.total_positions,
        // A clock that is set before 1970 is nobody's.
        unix_ms: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |t| t.as_millis() as u64),
    }
}

/// The manifest's fields that are the same in all of the run; the others are filled in when one is written.
fn manifest(options: &CoordinatorOptions) -> Manifest {
    Manifest {
        version: MANIFEST_VERSION,
        argosy: env!("CARGO_PKG_VERSION").into(),
        run: options.run.clone(),
        attempt: 0,
        name: StateName::INITIAL,
        positions_seen: 0,
        seed: options.shape.seed,
        config_hash: options.job.config_hash(),
        index_hash: options.index_hash,
        parent: None,
        parts: Vec::new(),
        history: Vec::new(),
        ledger: PositionCounts::default(),
        job: serde_json::to_value(&options.job).unwrap_or_default(),
        model: options.model.clone(),
    }
}
