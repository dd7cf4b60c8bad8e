//! A whole run: opens the store, raises the actors and the server, waits for the outcome.

use crate::actors::conductor::Msg;
use crate::actors::{journal, root};
use crate::admission::{Door, Guests};
use crate::error::CoordinatorError;
use crate::handle::{Order, Orders};
use crate::options::{CoordinatorOptions, Spawner};
use crate::store::{Campaign, MetaStore, RedbPlace, Reign, Sighting, StoreError};
use argosy_common::conductor::{Conductor, Restored};
use argosy_common::events::{MANIFEST_VERSION, Manifest, Outcome, PositionCounts, Record, RunEvent};
use argosy_common::ids::StateName;
use argosy_rpc::server::{Limits, serve};
use ractor::{Actor, ActorCell, ActorRef};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

/// Durable records, in the run folder.
pub const META_FILE: &str = "meta.redb";
/// What happened, one JSON object a line, in the run folder.
pub const EVENTS_FILE: &str = "events.jsonl";
/// Places for workers that come while others leave, beyond the most that are wanted.
const SPARE_CONNECTIONS: usize = 64;
/// After an election that could not be held.
const ELECTION_PAUSE: Duration = Duration::from_millis(500);
/// Reigns that a failed actor ended so soon, in a row, before it counts as a bug that nothing mends.
const BROKEN_MAX: u32 = 3;
const SHORT_REIGN: Duration = Duration::from_secs(60);
/// Connections may take so long to close at the end.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// Coordinates one run to its end, with its records in the run folder.
///
/// A run folder that holds the same run is continued; one whose run has succeeded is reported so at once.
///
/// # Errors
/// [`CoordinatorError`]: the run could not be coordinated. A run that failed is an [`Outcome`].
pub async fn run(
    options: CoordinatorOptions,
    spawner: Arc<dyn Spawner>,
    mut orders: Orders,
) -> Result<Outcome, CoordinatorError> {
    prepare(&options).await?;
    let path = options.run_dir.join(META_FILE);
    match RedbPlace::new(&path).campaign("").await? {
        Campaign::Elected(reign) => reign_over(&options, &spawner, &mut orders, reign).await,
        Campaign::Taken(_) => Err(StoreError::Held { path }.into()),
    }
}

/// Stands for election in `store` until the run is over: leads when it is elected, is a hot standby otherwise.
///
/// Members of a generation train on while leadership changes (rule G9). A leader that is deposed closes its streams, says
/// nothing more to anybody, and stands again. A stop ends a standby, and the run if this one leads.
///
/// # Errors
/// As [`run`]; a store that is away is waited for, and a reign that a failed actor ended is followed by another election.
pub async fn lead(
    options: CoordinatorOptions,
    store: Arc<dyn MetaStore>,
    spawner: Arc<dyn Spawner>,
    mut orders: Orders,
) -> Result<Outcome, CoordinatorError> {
    prepare(&options).await?;
    let listens = options.listen.map(|address| address.to_string());
    let Some(address) = listens.map(|own| options.advertise.clone().unwrap_or(own)) else {
        let reason = "a coordinator among others needs an address that workers know".into();
        return Err(CoordinatorError::BadOptions { reason });
    };
    let mut broken = Broken::default();
    loop {
        let wait = match store.campaign(&address).await {
            Ok(Campaign::Elected(reign)) => {
                let began = Instant::now();
                let ended = reign_over(&options, &spawner, &mut orders, Arc::clone(&reign)).await;
                if let Err(CoordinatorError::Store(error)) = &ended
                    && error.is_deposed()
                {
                    tracing::warn!(%error, "this coordinator does not lead any more");
                    continue;
                }
                if let Err(error) = reign.resign().await {
                    tracing::debug!(%error, "the lease is left to run out");
                }
                match ended {
                    Err(error) if broken.may_stand_again(&error, began.elapsed()) => {
                        tracing::error!(%error, "this reign is over; standing again with what the store holds");
                        Wait::Pause
                    }
                    ended => return ended,
                }
            }
            Ok(Campaign::Taken(seen)) => {
                tracing::info!(leader = seen.leader, "standing by");
                Wait::Vacancy(seen)
            }
            // One that is full grants no lease; both pass when somebody sees to it.
            Err(error @ (StoreError::Unreachable { .. } | StoreError::Full { .. })) => {
                tracing::warn!(%error, "no election can be held");
                Wait::Pause
            }
            Err(error) => return Err(error.into()),
        };
        tokio::select! {
            () = wait.over(store.as_ref()) => {}
            Some(Order::Stop | Order::Leave) = orders.0.recv() => {
                return Ok(Outcome::Interrupted { name: StateName::INITIAL });
            }
        }
    }
}

/// Reigns that broke without an end of the run. Of what they did in the last moment nobody knows what came of it, so the next
/// one begins with what the store holds, here or in another process.
#[derive(Default)]
struct Broken {
    in_a_row: u32,
}

impl Broken {
    fn may_stand_again(&mut self, error: &CoordinatorError, lasted: Duration) -> bool {
        let actor = match error {
            CoordinatorError::ActorFailed { .. } => true,
            CoordinatorError::Store(
                StoreError::Unknown { .. } | StoreError::Unreachable { .. } | StoreError::Full { .. },
            ) => false,
            _ => return false,
        };
        self.in_a_row = if lasted < SHORT_REIGN { self.in_a_row + 1 } else { 1 };
        // A store that is away or full comes back; a bug that is met again at once does not go away.
        !actor || self.in_a_row <= BROKEN_MAX
    }
}

/// What a coordinator that does not lead waits for.
enum Wait {
    Vacancy(Sighting),
    Pause,
}

impl Wait {
    async fn over(self, store: &dyn MetaStore) {
        if let Self::Vacancy(seen) = &self {
            match store.vacated(seen).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "the throne cannot be watched"),
            }
        }
        tokio::time::sleep(ELECTION_PAUSE).await;
    }
}

async fn prepare(options: &CoordinatorOptions) -> Result<(), CoordinatorError> {
    check(options)?;
    let run_dir = options.run_dir.clone();
    tokio::fs::create_dir_all(&run_dir)
        .await
        .map_err(|source| CoordinatorError::Io { path: run_dir, source })
}

/// One reign, to the end of the run or its own.
async fn reign_over(
    options: &CoordinatorOptions,
    spawner: &Arc<dyn Spawner>,
    orders: &mut Orders,
    reign: Arc<dyn Reign>,
) -> Result<Outcome, CoordinatorError> {
    let restored = recover(options, reign.as_ref()).await?;
    if let Some(name) = restored.finished {
        let manifest = restored.head.map(|head| head.key);
        return Ok(Outcome::Succeeded { name, manifest });
    }
    serve_run(options.clone(), Arc::clone(spawner), orders, reign, restored).await
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

/// Reads what the run was, writing down that it exists or that attempts left open are given up.
async fn recover(options: &CoordinatorOptions, reign: &dyn Reign) -> Result<Restored, CoordinatorError> {
    let created = Record::RunCreated {
        run: options.run.clone(),
        config_hash: options.job.config_hash(),
        index_hash: options.index_hash,
    };
    let mut records = reign.records().await?;
    let mut revision = records.len() as u64;
    match records.iter().find(|r| matches!(r, Record::RunCreated { .. })) {
        None => {
            revision = reign.append(revision, &created).await?;
            records.push(created);
        }
        Some(existing) => {
            if let Some(what) = difference(existing, &created) {
                let run_dir = options.run_dir.clone();
                return Err(CoordinatorError::OtherRun { run_dir, what });
            }
        }
    }
    let restored = Restored::from_records(&records);
    for attempt in &restored.open_attempts {
        let reason = "the coordinator ended before it was complete".into();
        let attempt = *attempt;
        let abandoned = Record::CheckpointAbandoned { attempt, reason };
        revision = reign.append(revision, &abandoned).await?;
    }
    Ok(restored)
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
    options: CoordinatorOptions,
    spawner: Arc<dyn Spawner>,
    orders: &mut Orders,
    store: Arc<dyn Reign>,
    restored: Restored,
) -> Result<Outcome, CoordinatorError> {
    let socket_error = |e: std::io::Error| CoordinatorError::Serve(e.into());
    let listen = options.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
    let listener = TcpListener::bind(listen).await.map_err(socket_error)?;
    let scheme = options.tls.as_ref().map_or("http", |_| "https");
    let endpoint = format!("{scheme}://{}", listener.local_addr().map_err(socket_error)?);
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
    let welcome = options.welcome(store.term());
    let (token, tls) = (options.token.clone(), options.tls.clone());
    let settings = options.settings(store.as_ref());
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
        store: Arc::clone(&store),
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
        if let Err(error) = serve(listener, &token, limits, tls.as_ref(), door, stopped).await {
            let _ = supervisor.cast(root::Msg::Failed(error.into()));
        }
    });
    let renewing = tokio::spawn(renew(store, conductor.clone()));
    let cleanup = Cleanup {
        root: root.get_cell(),
        tasks: [server.abort_handle(), renewing.abort_handle()],
    };
    let outcome = heed(orders, &conductor, outcome).await;
    drop(stop_server);
    if matches!(outcome, Err(NoOutcome::Left)) {
        cleanup.root.stop(None); // streams end with it, and workers look for who leads next
    }
    let _ = root_task.await;
    // Sessions ended with the conductor; a peer that does not close its connection is not waited for.
    let _ = tokio::time::timeout(CLOSE_WITHIN, &mut server).await;
    match outcome {
        Ok(outcome) => outcome,
        Err(NoOutcome::Left) => Err(CoordinatorError::Left),
        Err(NoOutcome::Lost) => Err(failed("supervisor", "it ended without an outcome".into())),
    }
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

/// Why a reign ends without an outcome of the run.
enum NoOutcome {
    /// Another is to lead.
    Left,
    /// The supervisor ended without a word.
    Lost,
}

/// Passes orders on until the run's outcome is there.
async fn heed<T>(
    orders: &mut Orders,
    conductor: &ActorRef<Msg>,
    mut outcome: oneshot::Receiver<T>,
) -> Result<T, NoOutcome> {
    loop {
        tokio::select! {
            outcome = &mut outcome => return outcome.map_err(|_| NoOutcome::Lost),
            Some(order) = orders.0.recv() => {
                if matches!(order, Order::Leave) {
                    return Err(NoOutcome::Left);
                }
                let _ = conductor.cast(Msg::Order(order)); // gone: its outcome is on the way
            }
        }
    }
}

/// Keeps the lease alive and tells the conductor until when it may promise anything.
async fn renew(reign: Arc<dyn Reign>, conductor: ActorRef<Msg>) {
    let Some(every) = reign.renew_every() else { return };
    let mut last_words = false;
    while !last_words {
        let renewed = reign.renew().await;
        let message = match renewed {
            Err(error) if error.is_deposed() => {
                last_words = true;
                Msg::StoreFailed(error)
            }
            renewed => {
                if let Err(error) = renewed {
                    tracing::warn!(%error, "the lease could not be renewed");
                }
                Msg::Reigns(reign.holds_for().unwrap_or(Duration::MAX))
            }
        };
        if conductor.cast(message).is_err() {
            return;
        }
        tokio::time::sleep(every).await;
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
