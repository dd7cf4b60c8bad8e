//! The run itself: coordinator, children and signals in one loop.

use super::Prepared;
use super::children::{Children, Recipe};
use super::folder;
use super::progress::{Progress, Summary};
use crate::beside::Beside;
use crate::crash;
use crate::evaluate::Setup;
use crate::fail::{Failure, Outcome};
use argosy_common::events::{Outcome as RunOutcome, RunEvent, StampedEvent};
use argosy_common::exit::Exit;
use argosy_common::ids::{StateName, WorkerId};
use argosy_common::secret;
use argosy_coordinator::{CoordinatorHandle, CoordinatorOptions, Spawner, handle};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast;

/// Workers that were told to finish get so long before they are killed.
const FINISH_PATIENCE: Duration = Duration::from_secs(20);
/// Events that may wait while the terminal is slow.
const EVENTS_QUEUED: usize = 1 << 14;

#[derive(Debug)]
struct LocalSpawner(Arc<Children>);

impl Spawner for LocalSpawner {
    fn spawn(&self, worker: WorkerId, endpoint: &str) -> io::Result<u32> {
        self.0.spawn(worker, endpoint)
    }

    fn kill(&self, worker: WorkerId) {
        self.0.kill(worker);
    }
}

/// Trains until the end, an interruption or a failure.
pub(crate) fn train(prepared: &Prepared) -> Outcome<Summary> {
    let token = folder::hex(&folder::random::<32>()?);
    secret::learn(&token);
    let token_file = prepared.dir.join("token");
    folder::write_secret(&token_file, &token)?;
    let logs = prepared.dir.join("logs");
    std::fs::create_dir_all(&logs).map_err(|e| Failure::io("create", &logs, &e))?;
    let recipe = Recipe {
        program: prepared.worker.clone(),
        token_file,
        logs,
        threads: prepared.threads,
    };
    let (control, orders) = handle();
    let reports = control.clone();
    let children = Children::new(recipe, move |e| {
        reports.worker_exited(e.worker, e.pid, e.code, e.signal)
    })
    .map_err(|e| Failure::new(Exit::NoCapacity, format!("cannot start a thread: {e}")))?;
    let children = Arc::new(children);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::NoCapacity, format!("cannot start the coordinator's threads: {e}")))?;
    let (events, watch) = broadcast::channel(EVENTS_QUEUED);
    let options = options(prepared, token, events)?;
    let spawner = Arc::new(LocalSpawner(Arc::clone(&children)));
    let mut progress = Progress::new(&prepared.shape, prepared.started);
    let mut beside = Beside::start(setup(prepared))?;
    let outcome = runtime.block_on(async {
        let coordinator = argosy_coordinator::run(options, spawner, orders);
        drive(coordinator, watch, &control, &mut progress, &mut beside).await
    });
    let patience = match &outcome {
        Ok((_, Leave::Now)) | Err(_) => Duration::ZERO,
        Ok(_) => FINISH_PATIENCE,
    };
    children.end(patience);
    runtime.shutdown_background();
    match outcome {
        Ok((outcome, _)) => {
            let mut summary = progress.finish(&outcome);
            summary.run_dir = prepared.dir.display().to_string();
            Ok(summary)
        }
        Err(error) => {
            progress.finish(&RunOutcome::Failed {
                exit: error.exit().code(),
                message: error.to_string(),
            });
            let failure = Failure::new(error.exit(), error.to_string());
            Err(failure.help(format!("to go on: {}", prepared.resume)))
        }
    }
}

fn setup(prepared: &Prepared) -> Setup {
    let job = &prepared.loaded.job;
    Setup {
        worker: prepared.worker.clone(),
        run_dir: prepared.dir.clone(),
        checkpoints: job
            .checkpoint
            .location(&prepared.dir.to_string_lossy(), &prepared.facts.run),
        base: prepared.loaded.base.clone(),
        config: job.evaluation.clone(),
        keep_last: job.checkpoint.keep_last,
        epoch_positions: prepared.shape.total_positions / job.train.epochs.max(1),
        shape: prepared.shape.clone(),
    }
}

fn options(
    prepared: &Prepared,
    token: String,
    progress: broadcast::Sender<StampedEvent>,
) -> Outcome<CoordinatorOptions> {
    Ok(CoordinatorOptions {
        run: prepared.facts.run.clone(),
        run_dir: prepared.dir.clone(),
        checkpoints: prepared.checkpoints.objects.clone(),
        job: prepared.loaded.job.clone(),
        job_dir: prepared.loaded.base.clone(),
        index_path: prepared.index_path.clone(),
        index_hash: prepared.facts.index_hash,
        files_url: None,
        shape: prepared.shape.clone(),
        model: prepared.model.model.clone(),
        parts_total: prepared.model.parts_total,
        spawns: true,
        listen: None,
        advertise: None,
        tls: None,
        outage_max_ms: 0,
        orphan_max_ms: 0,
        token,
        run_secret: folder::random::<32>()?.to_vec(),
        decode_threads: prepared.threads,
        torch_threads: prepared.threads,
        progress: Some(progress),
    })
}

/// Whether workers are given time to end by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    InOrder,
    Now,
}

/// The coordinator until it ends; events to the progress; the first Ctrl-C asks it to stop, the second leaves at once.
async fn drive<E>(
    coordinator: impl Future<Output = Result<RunOutcome, E>>,
    mut watch: broadcast::Receiver<StampedEvent>,
    control: &CoordinatorHandle,
    progress: &mut Progress,
    beside: &mut Beside,
) -> Result<(RunOutcome, Leave), E> {
    let mut coordinator = std::pin::pin!(coordinator);
    // Without handlers Ctrl-C kills us, and the kernel our workers: rude, but nothing is left behind.
    let mut interrupt = signal(SignalKind::interrupt()).ok();
    let mut terminate = signal(SignalKind::terminate()).ok();
    let mut watching = true;
    let mut asked = 0;
    let outcome = loop {
        tokio::select! {
            outcome = &mut coordinator => break outcome?,
            event = watch.recv(), if watching => match event {
                Ok(event) => show(&event, progress, beside),
                // A terminal that was stopped for long: the journal has what it missed.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => watching = false,
            },
            () = either(&mut interrupt, &mut terminate) => {
                asked += 1;
                if asked > 1 {
                    let name = StateName::INITIAL;
                    return Ok((RunOutcome::Interrupted { name }, Leave::Now));
                }
                progress.line("stopping: taking a checkpoint first (again to leave at once)");
                control.stop();
            }
        }
    };
    while let Ok(event) = watch.try_recv() {
        show(&event, progress, beside);
    }
    let left = beside.close();
    if left > 0 && matches!(outcome, RunOutcome::Succeeded { .. }) {
        progress.line(&format!(
            "evaluating the last checkpoints, {left} to go (Ctrl-C leaves them out)"
        ));
        loop {
            tokio::select! {
                lines = beside.next() => match lines {
                    Some(lines) => lines.iter().for_each(|line| progress.line(line)),
                    None => break,
                },
                () = either(&mut interrupt, &mut terminate) => break,
            }
        }
    }
    Ok((outcome, Leave::InOrder))
}

fn show(event: &StampedEvent, progress: &mut Progress, beside: &mut Beside) {
    if !matches!(event.event, RunEvent::StepDone { .. }) {
        crash::remember(format!("{} {:?}", event.at_ms, event.event));
    }
    progress.take(event);
    for line in beside.take(event) {
        progress.line(&line);
    }
}

/// Resolves at the next signal of either kind.
async fn either(a: &mut Option<tokio::signal::unix::Signal>, b: &mut Option<tokio::signal::unix::Signal>) {
    let next = async |signal: &mut Option<tokio::signal::unix::Signal>| match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    };
    tokio::select! {
        _ = next(a) => {}
        _ = next(b) => {}
    }
}
