//! The follower's words: what it is told, what it asks for.

use crate::conductor::Tick;
use crate::events::{FromWorker, StepReport, ToWorker};
use crate::ids::{Generation, StateName, Term};
use crate::plan::Plan;

/// What the follower is told once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// This worker; who waits, when waits are spread.
    pub worker: u32,
    /// Seed of the run, for the same.
    pub seed: u64,
    /// Steps need a lease (rule G5).
    pub leases: bool,
    /// A worker without a coordinator looks for one so long and keeps its state; 0: it ends at once (rule G9).
    pub orphan_max_ms: u64,
    /// After a signal it stays so long to leave at a boundary; 0: it ends at once (rule G13).
    pub grace_ms: u64,
}

/// What the trainer thread is told. It answers with [`Event`]s, and always ends a `Form` or `Run` with `TrainerStopped` or
/// `TrainerFormed`.
#[derive(Clone, Debug, PartialEq)]
pub enum TrainerOrder {
    /// Take the base state, serve those who heal, connect the ring.
    Form {
        /// The generation.
        plan: Plan,
    },
    /// Make steps until told otherwise or until the run's last.
    Run {
        /// The generation.
        generation: Generation,
    },
    /// Stop when this many steps are applied; at once if they already are.
    StopAfter {
        /// The generation.
        generation: Generation,
        /// Count of applied steps.
        step: u64,
    },
    /// Copy and upload these parts when exactly `at_step` steps are applied.
    Checkpoint {
        /// The attempt.
        attempt: u64,
        /// Count of applied steps.
        at_step: u64,
        /// Parts to copy and to upload.
        parts: Vec<u32>,
        /// Parts to copy for the case that their owner is lost.
        spare: Vec<u32>,
        /// Parts in all.
        parts_total: u32,
        /// Steps of the parent, which the log begins behind.
        since: u64,
    },
    /// Upload copies whose owner is lost.
    UploadSpare {
        /// The attempt.
        attempt: u64,
        /// Parts.
        parts: Vec<u32>,
    },
    /// Fetch the first rows of these lanes for step `from_step`, beside whatever is done now; answer with
    /// [`FromWorker::Primed`] passed on.
    Prime {
        /// The generation that trains meanwhile.
        generation: Generation,
        /// Lanes to come.
        lanes: Vec<u32>,
        /// First step that may need them.
        from_step: u64,
    },
    /// Write the state to local disk: nobody can be reached any more (rule G9).
    EmergencyCopy,
    /// End the thread.
    Quit,
}

/// What the shell shall do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Queue an order for the trainer thread; it looks between steps.
    Order(TrainerOrder),
    /// Abort the collective of this generation from outside: sockets are shut, the trainer stops by itself.
    AbortCollective {
        /// The generation.
        generation: Generation,
    },
    /// The trainer may apply steps of `generation` until its clock says `until` and no longer; without a lease it waits in
    /// place before APPLY (rule G5). Replaces the lease before; `until` 0 takes it away.
    Lease {
        /// The generation.
        generation: Generation,
        /// On the worker's clock.
        until: Tick,
    },
    /// Send to the coordinator.
    Tell(FromWorker),
    /// Try to reach a coordinator after so long; answer [`Event::Welcomed`] or [`Event::Unreachable`].
    Reconnect {
        /// Wait before.
        after_ms: u64,
    },
    /// Leave the process with this exit code.
    Exit {
        /// See [`crate::exit::Exit`].
        code: u8,
        /// Why.
        reason: String,
    },
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The trainer thread is warm.
    TrainerReady {
        /// Where peers reach this worker.
        addr: String,
        /// State it holds.
        name: StateName,
    },
    /// A coordinator took this worker in; what is heard from now on is said in this reign.
    Welcomed {
        /// The reign.
        term: Term,
    },
    /// The coordinator said something.
    Heard(ToWorker),
    /// No coordinator could be reached.
    Unreachable,
    /// A deadline of [`super::Follower::next_deadline`] has come.
    Ticked,
    /// The stream to the coordinator is lost.
    StreamLost,
    /// The trainer holds the base state and the ring is connected.
    TrainerFormed {
        /// The generation.
        generation: Generation,
    },
    /// The trainer applied a step.
    Stepped {
        /// What happened.
        report: StepReport,
    },
    /// The trainer left the generation, clean.
    TrainerStopped {
        /// The generation.
        generation: Generation,
        /// State it holds.
        name: StateName,
        /// Why, when it was not asked to.
        cause: Option<String>,
    },
    /// Something to pass on as it is: parts of a checkpoint.
    Passed(FromWorker),
    /// The trainer cannot go on.
    TrainerFailed {
        /// See [`crate::exit::Exit`].
        exit: u8,
        /// One sentence for people.
        message: String,
    },
    /// SIGTERM or Ctrl-C reached this process; the second one does not wait.
    SignalReceived,
    /// The machine will be taken away: its provider's notice leaves so long (rule G13).
    Noticed {
        /// Grace from now.
        grace_ms: u64,
    },
    /// It is time for a heartbeat.
    HeartbeatDue,
}
