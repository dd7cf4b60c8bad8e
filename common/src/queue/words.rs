//! The queue's words: states of a job, what happens to it, what is done about it.

use crate::exit::Exit;
use serde::Serialize;
use std::fmt;

/// A job of the queue, in the order of submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct JobId(pub u32);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {}", self.0)
    }
}

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "reason", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum JobState {
    /// Waits for a place.
    Pending,
    /// Its process was ordered; nothing trains yet.
    Starting,
    /// Trains with all the workers it wants.
    Running,
    /// Trains with fewer.
    Degraded,
    /// Nothing trains: too few workers, or its process ended and is started again.
    Recovering,
    /// Stopped with a checkpoint until somebody resumes it.
    Paused,
    /// Told to stop for good.
    Cancelling,
    /// Stopped for good because somebody wanted it.
    Cancelled,
    /// Done.
    Succeeded,
    /// Cannot go on.
    Failed(String),
}

impl JobState {
    /// Nothing changes it any more.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Cancelled | Self::Succeeded | Self::Failed(_))
    }
}

/// What is known of how a job's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With an exit code.
    Code(Exit),
    /// By a signal, or with its machine.
    Preempted,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants it run.
    Submitted {
        /// Which; an id that is known already is ignored.
        job: JobId,
        /// So many errors of its own are forgiven.
        errors_max: u32,
    },
    /// It trains, with so many of the workers it wants.
    Trains {
        /// Which.
        job: JobId,
        /// Members now.
        members: u32,
        /// Members wanted.
        wanted: u32,
    },
    /// It made progress: errors before it are forgotten.
    Progressed {
        /// Which.
        job: JobId,
    },
    /// It waits for workers.
    Waits {
        /// Which.
        job: JobId,
    },
    /// Its process ended.
    Ended {
        /// Which.
        job: JobId,
        /// How.
        ending: Ending,
    },
    /// Somebody wants it to stop for now.
    PauseRequested {
        /// Which.
        job: JobId,
    },
    /// Somebody wants it to go on.
    ResumeRequested {
        /// Which.
        job: JobId,
    },
    /// Somebody wants it stopped for good.
    CancelRequested {
        /// Which.
        job: JobId,
    },
    /// A deadline has come.
    Ticked,
}

/// What the shell shall do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Make the new state durable and tell people; before what follows.
    Record {
        /// Which.
        job: JobId,
        /// Its state now.
        state: JobState,
        /// Why.
        reason: String,
    },
    /// Start its process; it goes on from its last checkpoint.
    Launch {
        /// Which.
        job: JobId,
    },
    /// Ask its process for a checkpoint and an end.
    Stop {
        /// Which.
        job: JobId,
    },
}

/// A picture of one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JobView {
    /// Which.
    pub job: JobId,
    /// Where it stands.
    #[serde(flatten)]
    pub state: JobState,
    /// Errors of its own since the last progress.
    pub errors: u32,
    /// Times it was preempted.
    pub preemptions: u64,
}
