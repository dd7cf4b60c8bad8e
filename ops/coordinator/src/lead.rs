//! From the command line to a coordinator that leads or stands by, and to its end.

use crate::args::Args;
use crate::scale::Scale;
use crate::{Failure, secret};
use argosy_common::config::Job;
use argosy_common::events::{Outcome, RunEvent, StampedEvent};
use argosy_common::exit::Exit;
use argosy_common::ids::WorkerId;
use argosy_common::node::Role;
use argosy_common::package::{FOLDER, Package};
use argosy_coordinator::package::fetch;
use argosy_coordinator::store::{EtcdOptions, EtcdStore, EtcdTls, MetaStore, RedbStore, StoreError};
use argosy_coordinator::{
    CoordinatorError, CoordinatorHandle, CoordinatorOptions, META_FILE, Orders, Spawner, handle, lead,
};
use argosy_rpc::Tls;
use argosy_shard_loader::objects::{self, Objects};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast;

/// Events that may wait for whoever follows them.
const EVENTS_QUEUED: usize = 1 << 14;
/// After a write without an answer etcd is asked for so long what became of it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries to reach etcd at the start.
const ETCD_PAUSE: Duration = Duration::from_secs(1);
/// So often it is looked at whether workers are missing.
const SCALE_LOOK: Duration = Duration::from_secs(5);

/// Workers of a cluster are started by others.
#[derive(Debug)]
struct NoSpawner;

impl Spawner for NoSpawner {
    fn spawn(&self, worker: WorkerId, _endpoint: &str) -> std::io::Result<u32> {
        let why = format!("{worker} cannot be started here: workers of a cluster come by themselves");
        Err(std::io::Error::new(std::io::ErrorKind::Unsupported, why))
    }

    fn kill(&self, _worker: WorkerId) {}
}

pub(crate) async fn run(args: Args) -> Result<Exit, Failure> {
    let token = secret::read("token", &args.token_file)?;
    secret::check_token(&token, &args.token_file)?;
    argosy_common::secret::learn(&token);
    let tls = certificates(&args)?;
    std::fs::create_dir_all(&args.dir).map_err(|e| (Exit::Denied, format!("folder {}: {e}", args.dir.display())))?;
    let dir = std::fs::canonicalize(&args.dir).map_err(|e| (Exit::Denied, format!("{}: {e}", args.dir.display())))?;
    argosy_coordinator::crash::set_folder(&dir);
    let place = objects::open(&args.run).map_err(|e| (e.exit(), e.to_string()))?;
    let (package, mut job) = fetch(&place.objects, &dir)
        .await
        .map_err(|e| (e.exit(), e.to_string()))?;
    let location = job.checkpoint.location("", &package.run);
    if location.trim_end_matches('/') != args.run.trim_end_matches('/') {
        let message = format!(
            "the run at {} was prepared to lie at {location}; give that address",
            args.run
        );
        return Err((Exit::Conflict, message));
    }
    if let Some(workers) = args.workers {
        set_workers(&mut job, workers);
    }
    let store: Arc<dyn MetaStore> = Arc::new(connect(&args, &package.run).await?);
    let (progress, events) = broadcast::channel(EVENTS_QUEUED);
    let scale = args.scale.clone().map(|command| {
        let every = Duration::from_secs(args.scale_every_s);
        Scale::new(command, package.run.clone(), job.workers.target, every)
    });
    let options = options(&args, &dir, (package, job), place, (token, tls), progress);
    let (control, orders) = handle();
    let beside = [tokio::spawn(heed_signals(control)), tokio::spawn(follow(events, scale))];
    let ended = coordinate(options, Arc::clone(&store), orders).await;
    keep_copy(store.as_ref(), &dir.join(META_FILE)).await;
    beside.iter().for_each(tokio::task::JoinHandle::abort);
    ended
}

async fn coordinate(options: CoordinatorOptions, store: Arc<dyn MetaStore>, orders: Orders) -> Result<Exit, Failure> {
    match lead(options, store, Arc::new(NoSpawner), orders).await {
        Ok(Outcome::Succeeded { name, .. }) => {
            tracing::info!(step = name.step, "the run is over: all positions are trained");
            Ok(Exit::Ok)
        }
        Ok(Outcome::Interrupted { .. }) => Ok(Exit::Interrupted),
        Ok(Outcome::Failed { exit, message }) => Err((Exit::from_code(i32::from(exit)), message)),
        Err(CoordinatorError::Left) => {
            tracing::info!("the lead is left to another coordinator");
            Ok(Exit::Ok)
        }
        Err(error) => Err((error.exit(), error.to_string())),
    }
}

/// The certificates of this coordinator; without them it is found on loopback only.
fn certificates(args: &Args) -> Result<Option<Tls>, Failure> {
    let Some(folder) = &args.tls else {
        if args.listen.ip().is_loopback() {
            return Ok(None);
        }
        let message = format!(
            "refusing to listen on {}: off loopback certificates are needed; name their folder with --tls (see `argosy pki`)",
            args.listen
        );
        return Err((Exit::BadConfig, message));
    };
    let tls = Tls::open(folder).map_err(|e| (Exit::BadConfig, e.to_string()))?;
    if !tls.is_for(Role::Coordinator) {
        let message = format!(
            "the certificate in {} is not a coordinator's; make one with `argosy pki issue DIR NAME --role coordinator`",
            folder.display()
        );
        return Err((Exit::Denied, message));
    }
    Ok(Some(tls))
}

/// `--workers N` is the target; the limits give way to it.
fn set_workers(job: &mut Job, workers: u32) {
    let limits = &mut job.workers;
    limits.target = workers;
    limits.min = limits.min.min(workers);
    limits.max = limits.max.max(workers);
}

fn etcd_options(args: &Args, run: &str) -> Result<EtcdOptions, Failure> {
    let user = match (&args.etcd_user, &args.etcd_password_file) {
        (Some(name), Some(file)) => Some((name.clone(), secret::read("etcd password", file)?)),
        _ => None,
    };
    let secure = args.etcd.iter().any(|url| url.starts_with("https://"));
    let folder = args.etcd_tls.as_ref().or(args.tls.as_ref().filter(|_| secure));
    Ok(EtcdOptions {
        endpoints: args.etcd.clone(),
        run: run.to_owned(),
        lease: Duration::from_secs(args.lease_s),
        patience: PATIENCE,
        user,
        tls: folder.map(|folder| etcd_tls(folder)).transpose()?,
    })
}

/// An authority to believe, and, where the folder has them, a certificate to show.
fn etcd_tls(folder: &Path) -> Result<EtcdTls, Failure> {
    let read = |file: &str| {
        let path = folder.join(file);
        std::fs::read_to_string(&path).map_err(|e| {
            (
                Exit::NotFound,
                format!("certificates for etcd: {}: {e}", path.display()),
            )
        })
    };
    let identity = match folder.join(argosy_rpc::tls::CERTIFICATE_FILE).exists() {
        true => Some((
            read(argosy_rpc::tls::CERTIFICATE_FILE)?,
            read(argosy_rpc::tls::KEY_FILE)?,
        )),
        false => None,
    };
    Ok(EtcdTls {
        ca: read(argosy_rpc::tls::CA_FILE)?,
        identity,
    })
}

/// An etcd that is away is waited for; what waiting does not mend ends here.
async fn connect(args: &Args, run: &str) -> Result<EtcdStore, Failure> {
    let options = etcd_options(args, run)?;
    loop {
        match EtcdStore::connect(options.clone()).await {
            Ok(store) => return Ok(store),
            Err(error @ StoreError::Unreachable { .. }) => tracing::warn!(%error, "waiting for etcd"),
            Err(error) => return Err((error.exit(), error.to_string())),
        }
        tokio::time::sleep(ETCD_PAUSE).await;
    }
}

fn options(
    args: &Args,
    dir: &Path,
    (package, job): (Package, Job),
    place: Objects,
    (token, tls): (String, Option<Tls>),
    progress: broadcast::Sender<StampedEvent>,
) -> CoordinatorOptions {
    CoordinatorOptions {
        run_secret: secret::run_secret(&token, &package.run),
        run: package.run,
        run_dir: dir.to_owned(),
        checkpoints: place.objects,
        job_dir: "/".into(), // a prepared job names nothing relative
        index_path: dir.join(argosy_common::package::INDEX_FILE),
        files_url: Some(format!("{}/{FOLDER}", args.run.trim_end_matches('/'))),
        index_hash: package.index_hash,
        shape: package.shape,
        model: package.model,
        parts_total: package.parts_total,
        spawns: false,
        listen: Some(args.listen),
        advertise: args.advertise.clone(),
        outage_max_ms: args.outage_max_s * 1000,
        orphan_max_ms: args.orphan_max_s * 1000,
        tls,
        token,
        decode_threads: 0,
        // In deterministic mode the machine has no say (rule N4).
        torch_threads: job.train.threads.unwrap_or(u32::from(job.train.deterministic)),
        job,
        progress: Some(progress),
    }
}

/// Ctrl-C ends the run behind a checkpoint, SIGTERM leaves the lead to a standby.
async fn heed_signals(control: CoordinatorHandle) {
    let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::warn!("signals cannot be heeded; SIGTERM ends this coordinator, and its lease has to run out");
        return;
    };
    loop {
        tokio::select! {
            _ = term.recv() => control.leave(),
            _ = interrupt.recv() => {
                tracing::info!("stopping the run: taking a checkpoint first (again to end at once)");
                control.stop();
            }
        }
    }
}

/// Logs what happens, and asks for workers that are missing.
async fn follow(mut events: broadcast::Receiver<StampedEvent>, mut scale: Option<Scale>) {
    let mut look = tokio::time::interval(SCALE_LOOK);
    // Only a leader knows who is here.
    let mut leads = false;
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            _ = look.tick(), if leads && scale.is_some() => {
                if let Some(scale) = &mut scale {
                    scale.ask(Instant::now()).await;
                }
                continue;
            }
        };
        match event {
            Ok(StampedEvent { event, .. }) => {
                if !matches!(event, RunEvent::StepDone { .. }) {
                    argosy_coordinator::crash::remember(format!("{event:?}"));
                }
                leads |= matches!(event, RunEvent::RunStarted { .. });
                if let Some(scale) = &mut scale {
                    scale.note(&event);
                }
                match event {
                    RunEvent::StepDone { report, worker } => {
                        tracing::debug!(%worker, step = report.name.step, loss = report.loss, "step");
                    }
                    event => tracing::info!("{event:?}"),
                }
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// A copy of the records beside the run's files, for those who look at the folder later.
async fn keep_copy(store: &dyn MetaStore, path: &Path) {
    let records = match store.records().await {
        Ok(records) => records,
        Err(error) => return tracing::warn!(%error, "no copy of the run's records is kept"),
    };
    let path = path.to_owned();
    let copied = tokio::task::spawn_blocking(move || {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.to_string()),
            _ => {}
        }
        let copy = RedbStore::open(&path).map_err(|e| e.to_string())?;
        for (revision, record) in records.iter().enumerate() {
            copy.append(revision as u64, record).map_err(|e| e.to_string())?;
        }
        Ok(())
    });
    match copied.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error, "no copy of the run's records is kept"),
        Err(error) => tracing::warn!(%error, "no copy of the run's records is kept"),
    }
}
