//! The thread that trains. Reads orders between steps, makes steps, and answers with events; knows nothing of the coordinator.
//!
//! ```text
//!   order Form ─▶ base state, ring ─▶ Formed      order Run ─▶ step, step, step ...      any error ─▶ Stopped, state clean
//! ```
//!
//! What is trained at a step does not depend on who computes it; see [`step`] for the step itself, top to bottom.

pub mod aborts;
mod copy;
pub mod failpoint;
mod form;
mod gather;
mod history;
mod lanes;
mod lease;
mod load;
mod overlap;
mod save;
mod source;
mod step;

pub use aborts::Aborts;
pub use copy::Origin;
pub use failpoint::Failpoint;
pub use lease::Lease;
pub use source::BatchSource;
pub use step::PHASES;

use crate::checkpoint::{Layout, PartStore, Uploader};
use crate::collective::{AbortHandle, Collective, CollectiveError};
use crate::engine::{Engine, EngineError};
use crate::peer::{PeerError, PeerServer, Place};
use crate::steplog_writer::StepLogWriter;
use argosy_common::config::TrainConfig;
use argosy_common::events::{AbortReport, FromWorker, NotFinite};
use argosy_common::exit::Exit;
use argosy_common::follower::{Event, TrainerOrder};
use argosy_common::ids::{Generation, StateName, WorkerId};
use argosy_common::plan::Plan;
use argosy_common::shape::RunShape;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

/// Makes the engine with the run's seeded state.
pub type EngineFactory<E> = Box<dyn FnMut() -> Result<E, EngineError> + Send>;
/// Where events go. Called from the trainer and from the thread that uploads.
pub type Emit = Arc<dyn Fn(Event) + Send + Sync>;

/// What a trainer is told once.
pub struct Setup<E> {
    /// The run.
    pub run: String,
    /// Its worker.
    pub worker: WorkerId,
    /// The run folder: step logs go below it.
    pub run_dir: PathBuf,
    /// Where checkpoints lie.
    pub checkpoints: PartStore,
    /// What generation secrets derive from.
    pub run_secret: Vec<u8>,
    /// Where its peers find it, and what it shows them.
    pub place: Place,
    /// How it trains.
    pub train: TrainConfig,
    /// What it trains on.
    pub shape: RunShape,
    /// Makes the seeded state, at the start and when a run goes back to it.
    pub make_engine: EngineFactory<E>,
    /// Cuts collectives off.
    pub aborts: Aborts,
    /// The right to apply steps.
    pub lease: Lease,
    /// What a copy of the state says of itself.
    pub origin: Origin,
    /// Holds a phase for a test's harness.
    pub failpoint: Arc<Failpoint>,
    /// Where events go.
    pub emit: Emit,
}

impl<E> std::fmt::Debug for Setup<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup")
            .field("worker", &self.worker)
            .field("run_dir", &self.run_dir)
            .finish_non_exhaustive()
    }
}

/// Whether the replicated state may be shown to anybody (rule G2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Clean(StateName),
    Dirty,
}

/// The generation the trainer is in.
#[derive(Debug)]
struct InGeneration {
    plan: Plan,
    plan_hash: u64,
    rank: usize,
    collective: Box<dyn Collective>,
    abort: AbortHandle,
    running: bool,
    /// Leave when so many steps are applied.
    stop_after: Option<u64>,
}

/// A checkpoint that waits for its boundary.
#[derive(Debug)]
struct CheckpointOrder {
    attempt: u64,
    at_step: u64,
    parts: Vec<u32>,
    spare: Vec<u32>,
    parts_total: u32,
    since: u64,
}

/// Why the trainer leaves what it was doing.
#[derive(Debug)]
enum Halt {
    /// The generation, with a clean state; the cause unless it was asked to.
    Left(Option<Cause>),
    /// The run: no other worker could do better.
    Failed { exit: Exit, message: String },
}

/// Why a generation broke, as this worker saw it (rules G10, G11).
#[derive(Debug, Default)]
struct Cause {
    why: String,
    /// The rank whose connection broke or carried what must not be used.
    lost: Option<usize>,
    not_finite: Option<NotFinite>,
}

impl From<String> for Cause {
    fn from(why: String) -> Self {
        Self { why, ..Self::default() }
    }
}

impl Halt {
    /// Leaves the generation, for a reason that is nobody's link and no number.
    fn left(why: impl Into<String>) -> Self {
        Self::Left(Some(Cause::from(why.into())))
    }
}

impl From<CollectiveError> for Halt {
    fn from(error: CollectiveError) -> Self {
        let lost = match &error {
            CollectiveError::Aborted => return Self::Left(None),
            CollectiveError::PeerLost { rank, .. } | CollectiveError::Frame { rank, .. } => Some(*rank),
            CollectiveError::Mismatch(_) => None,
        };
        Self::Left(Some(Cause {
            lost,
            ..Cause::from(error.to_string())
        }))
    }
}

impl From<PeerError> for Halt {
    fn from(error: PeerError) -> Self {
        match error {
            PeerError::Aborted => Self::Left(None),
            other => Self::left(other.to_string()),
        }
    }
}

impl From<EngineError> for Halt {
    fn from(error: EngineError) -> Self {
        match error {
            // It was asked to: by an abort, or because a sum failed, which has its own words.
            EngineError::GivenUp => Self::Left(None),
            // The same inputs give the same error on any worker.
            other => Self::Failed {
                exit: Exit::JobFailed,
                message: other.to_string(),
            },
        }
    }
}

/// The trainer. Generic over the arithmetic and over where batches come from.
pub struct Trainer<E, S> {
    setup: Setup<E>,
    engine: E,
    source: S,
    server: PeerServer,
    log: StepLogWriter,
    uploader: Uploader,
    layout: Arc<Layout>,
    history: history::History,
    held: Held,
    inside: Option<InGeneration>,
    checkpoint: Option<CheckpointOrder>,
    /// Word for what a step is doing.
    phase: &'static str,
    /// Reused from step to step.
    buffers: gather::Buffers,
}

impl<E: std::fmt::Debug, S: std::fmt::Debug> std::fmt::Debug for Trainer<E, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("setup", &self.setup)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

impl<E: Engine, S: BatchSource> Trainer<E, S> {
    /// A warm trainer with the seeded state: engine made, port open, log open.
    ///
    /// # Errors
    /// The exit code and a sentence.
    pub fn new(mut setup: Setup<E>, source: S) -> Result<Self, (Exit, String)> {
        let engine = (setup.make_engine)().map_err(|e| (Exit::BadConfig, e.to_string()))?;
        let failed = |what: &str, e: std::io::Error| (Exit::JobFailed, format!("{what}: {e}"));
        let server = PeerServer::start_at(setup.place.clone(), setup.run_secret.clone())
            .map_err(|e| failed("no port for peers", e))?;
        let log = StepLogWriter::open(&setup.run_dir, setup.worker).map_err(|e| failed("the step log", e))?;
        let uploader = Uploader::new(setup.checkpoints.clone(), setup.emit.clone(), setup.failpoint.clone());
        let layout = Arc::new(Layout::new(engine.state_table()));
        let held = Held::Clean(StateName::INITIAL);
        let buffers = gather::Buffers::default();
        Ok(Self {
            setup,
            engine,
            source,
            server,
            log,
            uploader,
            layout,
            history: history::History::default(),
            held,
            inside: None,
            checkpoint: None,
            phase: "",
            buffers,
        })
    }

    /// The engine with the state it has come to.
    #[must_use]
    pub fn into_engine(self) -> E {
        self.engine
    }

    /// Carries out orders until told to quit or until nobody can give any.
    pub fn run(&mut self, orders: &Receiver<TrainerOrder>) {
        self.emit(Event::TrainerReady {
            addr: self.server.addr(),
            name: StateName::INITIAL,
        });
        loop {
            let order = if self.wants_to_step() {
                match orders.try_recv() {
                    Ok(order) => Some(order),
                    Err(TryRecvError::Empty) => None,
                    Err(TryRecvError::Disconnected) => return,
                }
            } else {
                match orders.recv() {
                    Ok(order) => Some(order),
                    Err(_) => return,
                }
            };
            let done = match order {
                Some(TrainerOrder::Quit) => return,
                Some(order) => self.carry_out(order),
                None => self.step(),
            };
            let done = done.and_then(|()| self.at_boundary());
            if let Err(halt) = done
                && !self.halt(halt)
            {
                return;
            }
        }
    }

    fn emit(&self, event: Event) {
        (self.setup.emit)(event);
    }

    fn wants_to_step(&self) -> bool {
        let Held::Clean(name) = self.held else { return false };
        self.inside.as_ref().is_some_and(|g| g.running) && name.step < self.setup.shape.total_steps()
    }

    fn carry_out(&mut self, order: TrainerOrder) -> Result<(), Halt> {
        let current = self.inside.as_ref().map(|g| g.plan.generation);
        match order {
            TrainerOrder::Form { plan } => {
                let generation = plan.generation;
                self.inside = None;
                match self.form(plan) {
                    Ok(inside) => {
                        self.inside = Some(inside);
                        self.emit(Event::TrainerFormed { generation });
                        Ok(())
                    }
                    Err(Halt::Left(cause)) => {
                        self.stopped(generation, cause.map(|c| c.why));
                        Ok(())
                    }
                    Err(failed) => Err(failed),
                }
            }
            TrainerOrder::Run { generation } => {
                if let Some(inside) = self.inside.as_mut().filter(|g| g.plan.generation == generation) {
                    inside.running = true;
                    // Everybody holds the base state; from now on ours changes.
                    self.server.withdraw();
                }
                Ok(())
            }
            TrainerOrder::StopAfter { generation, step } => {
                if let Some(inside) = self.inside.as_mut().filter(|g| g.plan.generation == generation) {
                    inside.stop_after = Some(inside.stop_after.unwrap_or(u64::MAX).min(step));
                } else {
                    tracing::debug!(%generation, ?current, "an order to stop came late");
                }
                Ok(())
            }
            TrainerOrder::Checkpoint {
                attempt,
                at_step,
                parts,
                spare,
                parts_total,
                since,
            } => {
                self.checkpoint = Some(CheckpointOrder {
                    attempt,
                    at_step,
                    parts,
                    spare,
                    parts_total,
                    since,
                });
                if self.inside.is_none() {
                    self.drop_checkpoint("the generation was left before the order came");
                }
                Ok(())
            }
            TrainerOrder::UploadSpare { attempt, parts } => {
                self.uploader.upload_spare(attempt, parts);
                Ok(())
            }
            TrainerOrder::Prime {
                generation,
                lanes,
                from_step,
            } => {
                // Whoever trains keeps its lanes' batches coming and fetches the new ones with the next plan.
                if self.inside.is_none() {
                    self.source.assign(&lanes, from_step);
                }
                self.emit(Event::Passed(FromWorker::Primed { generation, lanes }));
                Ok(())
            }
            TrainerOrder::EmergencyCopy => {
                self.emergency_copy();
                Ok(())
            }
            TrainerOrder::Quit => Ok(()),
        }
    }

    /// What is due between two steps.
    fn at_boundary(&mut self) -> Result<(), Halt> {
        let Held::Clean(name) = self.held else { return Ok(()) };
        self.checkpoint_if_due(name);
        let stop = self.inside.as_ref().and_then(|g| g.stop_after);
        if stop.is_some_and(|step| name.step >= step) {
            return Err(Halt::Left(None));
        }
        Ok(())
    }

    /// Leaves the generation, or the run; false when the thread shall end.
    fn halt(&mut self, halt: Halt) -> bool {
        match halt {
            Halt::Left(cause) => {
                if let Some(inside) = self.inside.take() {
                    if let Some(cause) = &cause {
                        self.report_abort(&inside, cause);
                    }
                    self.stopped(inside.plan.generation, cause.map(|c| c.why));
                }
                true
            }
            Halt::Failed { exit, message } => {
                tracing::error!(message, "the trainer cannot go on");
                self.inside = None;
                self.emit(Event::TrainerFailed {
                    exit: exit.code(),
                    message,
                });
                false
            }
        }
    }

    /// Tells how a step broke before it is told that the generation is left (rule G10).
    fn report_abort(&self, inside: &InGeneration, cause: &Cause) {
        let Held::Clean(name) = self.held else { return };
        let progress = inside.collective.progress();
        let named = |rank: usize| inside.plan.members.get(rank).map(|m| m.worker);
        let report = AbortReport {
            generation: inside.plan.generation,
            step: name.step,
            phase: self.phase.to_owned(),
            entered: progress.entered,
            received: progress
                .received
                .into_iter()
                .filter_map(|(rank, n)| Some((named(rank)?, n)))
                .collect(),
            lost_links: cause.lost.and_then(named).into_iter().collect(),
            not_finite: cause.not_finite.clone(),
        };
        self.emit(Event::Passed(FromWorker::Aborted { report }));
    }

    /// Tells that the generation is left (rule G3): its connections are cut first, so nothing is applied in it any more.
    fn stopped(&mut self, generation: Generation, cause: Option<String>) {
        self.inside = None;
        self.drop_checkpoint("the generation was left before its boundary");
        self.server.close(generation);
        // A dirty state is never reported; an APPLY that did not end ended the process.
        if let Held::Clean(name) = self.held {
            tracing::info!(%generation, %name, cause, "left the generation");
            self.emit(Event::TrainerStopped {
                generation,
                name,
                cause,
            });
        }
    }
}
