//! What stands between the coordinator's stream and the trainer's thread: an actor that steps the follower and does what it
//! says. No policy here.

pub(crate) mod assemble;
mod shell;

use crate::crash;
use argosy_common::events::ToWorker;
use argosy_common::exit::Exit;
use argosy_common::follower::{Event, TrainerOrder};
use argosy_common::ids::WorkerId;
use argosy_rpc::{Hello, Session, Welcome};
use ractor::{Actor, ActorRef};
use shell::{Shell, ShellArgs, Told};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// The trainer gets so long to end its step and its uploads after it was told to quit.
const QUIT_PATIENCE: Duration = Duration::from_secs(5);
/// Last words get so long to reach the coordinator.
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);

/// How a worker joins.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// The coordinator, `http://host:port`.
    pub endpoint: String,
    /// File that holds the token.
    pub token_file: PathBuf,
    /// The id the coordinator gave.
    pub worker: WorkerId,
}

/// Lives as a worker until the run is over, the coordinator is gone, or nothing can go on.
///
/// # Errors
/// The exit code and a sentence.
pub async fn join(options: JoinOptions) -> Result<Exit, (Exit, String)> {
    let token = std::fs::read_to_string(&options.token_file).map_err(|e| {
        (
            Exit::NotFound,
            format!("token file {}: {e}", options.token_file.display()),
        )
    })?;
    let hello = Hello {
        worker: options.worker,
        pid: std::process::id(),
        numeric_class: assemble::numeric_class().to_string(),
        returning: false,
    };
    let session = argosy_rpc::connect(&options.endpoint, token.trim(), hello)
        .await
        .map_err(|e| (e.exit(), e.to_string()))?;
    let Session {
        welcome,
        outgoing,
        incoming,
    } = session;
    crash::set_place(welcome.run_dir.as_ref(), options.worker);
    tracing::info!(run = welcome.run, worker = %options.worker, "joined");

    let (orders, taken) = channel();
    let (ended, end) = oneshot::channel();
    let aborts = crate::trainer::Aborts::default();
    let args = ShellArgs {
        orders,
        outgoing,
        aborts: aborts.clone(),
        ended,
    };
    let failed = |what: &str, e: &dyn std::fmt::Display| (Exit::Panic, format!("{what}: {e}"));
    let (shell, shell_task) = Actor::spawn(None, Shell, args)
        .await
        .map_err(|e| failed("no agent", &e))?;

    let heartbeat_ms = welcome.heartbeat_ms.max(1);
    let trainer_done = start_trainer(welcome, options.worker, aborts, taken, shell.clone())
        .map_err(|e| failed("no thread for the trainer", &e))?;
    let listening = tokio::spawn(listen(incoming, shell.clone()));
    let beating = tokio::spawn(beat(heartbeat_ms, shell.clone()));
    let signals = tokio::spawn(heed_signals(shell.clone()));

    let (code, reason) = end.await.unwrap_or((Exit::Panic.code(), "the agent ended".into()));
    tracing::info!(code, reason, "leaving");
    beating.abort();
    signals.abort();
    let trainer = tokio::time::timeout(QUIT_PATIENCE, trainer_done).await;
    if trainer.is_err() {
        tracing::warn!("the trainer is still busy and is left behind");
    }
    // Its end drops the sending half; the coordinator ends the other half when it has read everything.
    shell.stop(None);
    let _ = shell_task.await;
    let _ = tokio::time::timeout(FLUSH_PATIENCE, listening).await;
    match Exit::from_code(i32::from(code)) {
        Exit::Ok => Ok(Exit::Ok),
        exit => Err((exit, reason)),
    }
}

/// Starts the trainer's thread. The receiver resolves when it has ended.
fn start_trainer(
    welcome: Welcome,
    worker: WorkerId,
    aborts: crate::trainer::Aborts,
    orders: Receiver<TrainerOrder>,
    shell: ActorRef<Told>,
) -> std::io::Result<oneshot::Receiver<()>> {
    let (done, ended) = oneshot::channel();
    let told = shell.clone();
    let emit: crate::trainer::Emit = Arc::new(move |event: Event| {
        if let Event::Stepped { report } = &event {
            crash::note(report.generation, report.name.step);
        }
        // An agent that has ended listens no more; neither will this process live much longer.
        let _ = told.cast(Told::Happened(event));
    });
    std::thread::Builder::new().name("trainer".into()).spawn(move || {
        let work = || match assemble::trainer(&welcome, worker, aborts, emit.clone()) {
            Ok(mut trainer) => trainer.run(&orders),
            Err((exit, message)) => emit(Event::TrainerFailed {
                exit: exit.code(),
                message,
            }),
        };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
            let _ = shell.cast(Told::TrainerPanicked);
        }
        let _ = done.send(());
    })?;
    Ok(ended)
}

async fn listen(mut incoming: mpsc::Receiver<ToWorker>, shell: ActorRef<Told>) {
    while let Some(message) = incoming.recv().await {
        let _ = shell.cast(Told::Happened(Event::Heard(message)));
    }
    let _ = shell.cast(Told::Happened(Event::StreamLost));
}

/// From the runtime and not from the trainer: a long step is no death.
async fn beat(every_ms: u64, shell: ActorRef<Told>) {
    let mut interval = tokio::time::interval(Duration::from_millis(every_ms));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if shell.cast(Told::Happened(Event::HeartbeatDue)).is_err() {
            return;
        }
    }
}

async fn heed_signals(shell: ActorRef<Told>) {
    let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::warn!("signals cannot be heeded; SIGTERM ends this worker in mid step");
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    let _ = shell.cast(Told::Happened(Event::SignalReceived));
}
