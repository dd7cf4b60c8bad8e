//! What stands between the coordinator's stream and the trainer's thread: an actor that steps the follower and does what it
//! says. No policy here.

pub(crate) mod assemble;
mod line;
mod package;
mod shell;

use crate::crash;
use crate::peer::Place;
use crate::preempt::{self, Provider, Watch};
use crate::trainer::{Aborts, Lease};
use argosy_common::exit::Exit;
use argosy_common::follower::{Event, Settings, TrainerOrder};
use argosy_common::ids::WorkerId;
use argosy_rpc::{Hello, NO_ID, Tls, Welcome};
use assemble::Home;
use line::{Calls, Line};
use ractor::{Actor, ActorRef};
use shell::{Ended, Shell, ShellArgs, Told};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How a worker joins.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// The coordinators, `http://host:port` each. Of several one leads; the others are asked when it is gone.
    pub endpoints: Vec<String>,
    /// File that holds the token.
    pub token_file: PathBuf,
    /// The id the coordinator gave; without one it is asked for.
    pub worker: Option<WorkerId>,
    /// Folder with this machine's certificates.
    pub tls: Option<PathBuf>,
    /// The machine's name; by default the one that its certificate has.
    pub name: Option<String>,
    /// Folder for what this worker fetches and writes, where it shares none with the coordinator.
    pub dir: PathBuf,
    /// Where peers find it; by default the address that it reaches the coordinator from.
    pub listen: Option<SocketAddr>,
    /// The host that peers reach it at, where that is another.
    pub advertise: Option<String>,
    /// When and how it leaves.
    pub leave: LeaveArgs,
}

/// Shorter than the half minute after which most schedulers kill.
const GRACE_S: u64 = 25;

/// How a worker leaves a run that goes on (rule G13).
#[derive(Clone, Debug, clap::Args)]
pub struct LeaveArgs {
    /// Seconds that SIGTERM leaves to hand lanes over at a boundary; 0 ends at once
    #[arg(long, value_name = "S", default_value_t = GRACE_S)]
    pub grace_s: u64,
    /// Leave when this cloud announces the machine's end; nothing is asked without it
    #[arg(long, value_enum, value_name = "CLOUD")]
    pub notices: Option<Provider>,
    /// Address of the cloud's metadata service, if it is not the usual one
    #[arg(long, value_name = "URL", requires = "notices")]
    pub notices_url: Option<String>,
}

/// Lives as a worker until the run is over, no coordinator was found for too long, or nothing can go on.
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
    argosy_common::secret::learn(&token);
    let tls = options.tls.as_deref().map(Tls::open).transpose();
    let tls = tls.map_err(|e| (Exit::BadConfig, e.to_string()))?;
    let named = options.name.clone().or_else(|| tls.as_ref().map(Tls::node));
    let hello = Hello {
        worker: options.worker.unwrap_or(NO_ID),
        node: named.unwrap_or_default(),
        pid: std::process::id(),
        numeric_class: assemble::numeric_class().to_string(),
        returning: None,
    };
    let mut calls = Calls::new(options.endpoints.clone(), token.trim().to_owned(), tls.clone(), hello);
    let session = calls.first().await.map_err(|e| (e.exit(), e.to_string()))?;
    let welcome = session.welcome.clone();
    let worker = welcome.worker;
    calls.named(worker);
    let arrival = Arrival {
        place: place(&options, session.local, tls),
        welcome: welcome.clone(),
        dir: options.dir.clone(),
        runtime: Handle::current(),
    };
    tracing::info!(run = welcome.run, %worker, node = calls.node(), "joined");

    let (orders, taken) = channel();
    let (ended, end) = oneshot::channel();
    let aborts = Aborts::default();
    let lease = match welcome.leases {
        true => Lease::needed(),
        false => Lease::not_needed(),
    };
    let args = ShellArgs {
        settings: Settings {
            worker: worker.0,
            seed: welcome.job.seed,
            leases: welcome.leases,
            orphan_max_ms: welcome.orphan_max_ms,
            grace_ms: options.leave.grace_s.saturating_mul(1000),
        },
        orders,
        line: Line::new(calls, welcome.clone()),
        session,
        aborts: aborts.clone(),
        lease: lease.clone(),
        ended,
    };
    let failed = |what: &str, e: &dyn std::fmt::Display| (Exit::Panic, format!("{what}: {e}"));
    let (shell, shell_task) = Actor::spawn(None, Shell, args)
        .await
        .map_err(|e| failed("no agent", &e))?;

    let heartbeat_ms = welcome.heartbeat_ms.max(1);
    let cuts = Cuts { aborts, lease };
    let trainer_done = start_trainer(arrival, worker, cuts, taken, shell.clone())
        .map_err(|e| failed("no thread for the trainer", &e))?;
    let beside = [
        tokio::spawn(beat(heartbeat_ms, shell.clone())),
        tokio::spawn(heed_signals(shell.clone())),
        tokio::spawn(heed_notices(options.leave, shell.clone())),
    ];

    let Ended { code, reason, patience } = end.await.unwrap_or(Ended {
        code: Exit::Panic.code(),
        reason: "the agent ended".into(),
        patience: Duration::ZERO,
    });
    tracing::info!(code, reason, "leaving");
    beside.iter().for_each(tokio::task::JoinHandle::abort);
    if tokio::time::timeout(patience, trainer_done).await.is_err() {
        tracing::warn!("the trainer is still busy and is left behind");
    }
    shell.stop(None);
    let _ = shell_task.await;
    match Exit::from_code(i32::from(code)) {
        Exit::Ok => Ok(Exit::Ok),
        exit => Err((exit, reason)),
    }
}

/// Where peers find this worker: the address that it reaches the coordinator from, unless it was told another.
fn place(options: &JoinOptions, local: IpAddr, tls: Option<Tls>) -> Place {
    let default = SocketAddr::new(local, 0);
    let place = Place::default();
    Place {
        listen: options
            .listen
            .unwrap_or(if tls.is_some() { default } else { place.listen }),
        advertise: options.advertise.clone(),
        tls,
    }
}

/// What the trainer's thread begins with. Files are fetched there, so that heartbeats go on meanwhile.
struct Arrival {
    welcome: Welcome,
    dir: PathBuf,
    place: Place,
    runtime: Handle,
}

impl Arrival {
    /// What the coordinator said stays as it is elsewhere: it is compared with what the next one says.
    fn settle(self, worker: WorkerId) -> Result<Home, (Exit, String)> {
        let own = self.runtime.block_on(package::at_home(&self.welcome, &self.dir))?;
        crash::set_place(own.run_dir.as_ref(), worker);
        Ok(Home {
            config_hash: self.welcome.job.config_hash(),
            welcome: own,
            place: self.place,
        })
    }
}

/// How the agent reaches into the trainer's thread.
struct Cuts {
    aborts: Aborts,
    lease: Lease,
}

/// Starts the trainer's thread. The receiver resolves when it has ended.
fn start_trainer(
    arrival: Arrival,
    worker: WorkerId,
    cuts: Cuts,
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
        let settled = || {
            let home = arrival.settle(worker)?;
            assemble::trainer(&home, worker, (cuts.aborts, cuts.lease), emit.clone())
        };
        let work = || match settled() {
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

async fn heed_notices(leave: LeaveArgs, shell: ActorRef<Told>) {
    let Some(provider) = leave.notices else { return };
    let watch = Watch {
        provider,
        url: leave.notices_url,
    };
    preempt::watch(&watch, |notice| {
        tracing::warn!(
            reason = notice.reason,
            grace_s = notice.grace.as_secs(),
            "this machine will be taken away"
        );
        let grace_ms = u64::try_from(notice.grace.as_millis()).unwrap_or(u64::MAX);
        let _ = shell.cast(Told::Happened(Event::Noticed { grace_ms })); // leaving already
    })
    .await;
}

async fn heed_signals(shell: ActorRef<Told>) {
    let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::warn!("signals cannot be heeded; SIGTERM ends this worker in mid step");
        return;
    };
    // The second one does not wait any more.
    loop {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        if shell.cast(Told::Happened(Event::SignalReceived)).is_err() {
            return;
        }
    }
}
