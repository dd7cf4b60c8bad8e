//! The queue of jobs: which may start, what becomes of one whose process ended, and how often it is tried again. States and
//! budgets only; what a job does is no matter here.
//!
//! ```text
//!   Pending ─▶ Starting ─▶ Running ◀─▶ Degraded        Paused ─▶ Pending
//!      ▲           │          │            │              ▲
//!      └───────────┴── Recovering ◀────────┴──── ended ───┴──▶ Succeeded, Failed(reason), Cancelled
//! ```
//!
//! Being preempted is nobody's error and may happen for ever; a job's own errors have a budget.

mod words;

pub use words::{Command, Ending, Event, JobId, JobState, JobView};

use crate::backoff::Backoff;
use crate::conductor::Tick;
use crate::exit::Exit;
use std::collections::BTreeMap;

/// First wait before a job is tried again.
const RETRY_MS_FIRST: u64 = 2_000;
/// Longest such wait.
const RETRY_MS_MAX: u64 = 300_000;

#[derive(Debug)]
struct Job {
    state: JobState,
    errors_max: u32,
    /// Errors of its own since the last progress.
    errors: u32,
    /// Endings of any kind since the last progress: waits grow with them.
    endings: u32,
    preemptions: u64,
    not_before: Tick,
    has_process: bool,
    pause_wanted: bool,
}

/// The brain.
#[derive(Debug)]
pub struct Queue {
    places: usize,
    seed: u64,
    jobs: BTreeMap<JobId, Job>,
}

impl Queue {
    /// A queue that runs up to `places` jobs at once; `seed` spreads waits.
    #[must_use]
    pub fn new(places: usize, seed: u64) -> Self {
        Self {
            places,
            seed,
            jobs: BTreeMap::new(),
        }
    }

    /// Takes one event and says what to do about it. What does not fit the job's state is ignored.
    pub fn step(&mut self, event: Event, now: Tick) -> Vec<Command> {
        let mut commands = Vec::new();
        match event {
            Event::Submitted { job, errors_max } => {
                self.jobs.entry(job).or_insert_with(|| {
                    let (state, reason) = (JobState::Pending, "submitted".to_owned());
                    commands.push(Command::Record { job, state, reason });
                    Job {
                        state: JobState::Pending,
                        errors_max,
                        errors: 0,
                        endings: 0,
                        preemptions: 0,
                        not_before: 0,
                        has_process: false,
                        pause_wanted: false,
                    }
                });
            }
            Event::Trains { job, members, wanted } => self.trains(job, members, wanted, &mut commands),
            Event::Progressed { job } => {
                if let Some(job) = self.jobs.get_mut(&job).filter(|j| j.has_process) {
                    (job.errors, job.endings) = (0, 0);
                }
            }
            Event::Waits { job } => {
                if let Some(j) = self.jobs.get_mut(&job)
                    && matches!(j.state, JobState::Running | JobState::Degraded)
                {
                    j.turn(job, JobState::Recovering, "too few workers", &mut commands);
                }
            }
            Event::Ended { job, ending } => self.ended(job, ending, now, &mut commands),
            Event::PauseRequested { job } => self.pause(job, &mut commands),
            Event::ResumeRequested { job } => {
                if let Some(j) = self.jobs.get_mut(&job) {
                    j.pause_wanted = false;
                    if j.state == JobState::Paused {
                        (j.errors, j.endings, j.not_before) = (0, 0, now);
                        j.turn(job, JobState::Pending, "resumed", &mut commands);
                    }
                }
            }
            Event::CancelRequested { job } => self.cancel(job, &mut commands),
            Event::Ticked => {}
        }
        self.launch(now, &mut commands);
        commands
    }

    /// When [`Event::Ticked`] is wanted next, and why.
    #[must_use]
    pub fn next_deadline(&self) -> Option<(Tick, &'static str)> {
        if self.free_places() == 0 {
            return None; // somebody's end is an event of its own
        }
        let waiting = self.jobs.values().filter(|j| j.wants_a_place() && j.not_before > 0);
        waiting.map(|j| (j.not_before, "a job is tried again")).min()
    }

    /// What it looks like from outside, in order of submission.
    #[must_use]
    pub fn observe(&self) -> Vec<JobView> {
        let view = |(job, j): (&JobId, &Job)| JobView {
            job: *job,
            state: j.state.clone(),
            errors: j.errors,
            preemptions: j.preemptions,
        };
        self.jobs.iter().map(view).collect()
    }

    fn trains(&mut self, job: JobId, members: u32, wanted: u32, commands: &mut Vec<Command>) {
        let Some(j) = self.jobs.get_mut(&job).filter(|j| j.has_process) else {
            return;
        };
        let lives = matches!(
            j.state,
            JobState::Starting | JobState::Running | JobState::Degraded | JobState::Recovering
        );
        if lives {
            let state = if members < wanted {
                JobState::Degraded
            } else {
                JobState::Running
            };
            j.turn(job, state, &format!("{members} of {wanted} workers train"), commands);
        }
    }

    fn pause(&mut self, job: JobId, commands: &mut Vec<Command>) {
        let Some(j) = self.jobs.get_mut(&job) else { return };
        if j.state.is_final() || matches!(j.state, JobState::Paused | JobState::Cancelling) || j.pause_wanted {
            return;
        }
        if j.has_process {
            j.pause_wanted = true;
            commands.push(Command::Stop { job });
        } else {
            j.turn(job, JobState::Paused, "paused before it had a process", commands);
        }
    }

    fn cancel(&mut self, job: JobId, commands: &mut Vec<Command>) {
        let Some(j) = self.jobs.get_mut(&job) else { return };
        if j.state.is_final() || j.state == JobState::Cancelling {
            return;
        }
        if j.has_process {
            j.turn(job, JobState::Cancelling, "somebody cancelled it", commands);
            commands.push(Command::Stop { job });
        } else {
            j.turn(job, JobState::Cancelled, "somebody cancelled it", commands);
        }
    }

    fn ended(&mut self, job: JobId, ending: Ending, now: Tick, commands: &mut Vec<Command>) {
        let Some(j) = self.jobs.get_mut(&job).filter(|j| j.has_process) else {
            return;
        };
        j.has_process = false;
        if ending == Ending::Code(Exit::Ok) {
            j.turn(job, JobState::Succeeded, "done", commands);
            return;
        }
        if j.state == JobState::Cancelling {
            j.turn(job, JobState::Cancelled, "somebody cancelled it", commands);
            return;
        }
        if std::mem::take(&mut j.pause_wanted) {
            j.turn(job, JobState::Paused, "somebody paused it", commands);
            return;
        }
        j.endings = j.endings.saturating_add(1);
        let why = match judge(ending) {
            Judged::Nobodys(why) => {
                j.preemptions += 1;
                why.to_owned()
            }
            Judged::Final(why) => {
                j.turn(job, JobState::Failed(why.to_owned()), why, commands);
                return;
            }
            Judged::Own(why) => {
                j.errors += 1;
                if j.errors > j.errors_max {
                    let reason = format!("{why}, {} times without progress in between", j.errors);
                    j.turn(job, JobState::Failed(reason.clone()), &reason, commands);
                    return;
                }
                format!("{why}, error {} of {} that are forgiven", j.errors, j.errors_max)
            }
        };
        let backoff = Backoff {
            first_ms: RETRY_MS_FIRST,
            max_ms: RETRY_MS_MAX,
            seed: self.seed,
            who: job.0,
        };
        j.not_before = now + backoff.wait_ms(j.endings);
        j.turn(job, JobState::Recovering, &why, commands);
    }

    fn free_places(&self) -> usize {
        let taken = self.jobs.values().filter(|j| j.has_process).count();
        self.places.saturating_sub(taken)
    }

    /// Gives free places away, oldest job first. A job keeps its place while it has a process.
    fn launch(&mut self, now: Tick, commands: &mut Vec<Command>) {
        let mut free = self.free_places();
        for (job, j) in &mut self.jobs {
            if free == 0 {
                return;
            }
            if j.wants_a_place() && j.not_before <= now {
                free -= 1;
                j.has_process = true;
                j.not_before = 0;
                j.turn(*job, JobState::Starting, "a place is free", commands);
                commands.push(Command::Launch { job: *job });
            }
        }
    }
}

impl Job {
    fn wants_a_place(&self) -> bool {
        !self.has_process && matches!(self.state, JobState::Pending | JobState::Recovering)
    }

    fn turn(&mut self, job: JobId, state: JobState, reason: &str, commands: &mut Vec<Command>) {
        debug_assert!(!self.state.is_final(), "{job} has ended as {:?}", self.state);
        if self.state != state {
            self.state = state.clone();
            let reason = reason.to_owned();
            commands.push(Command::Record { job, state, reason });
        }
    }
}

/// Whose fault an ending was.
enum Judged {
    /// Try again, for ever.
    Nobodys(&'static str),
    /// Try again while the budget lasts.
    Own(&'static str),
    /// A retry cannot help.
    Final(&'static str),
}

fn judge(ending: Ending) -> Judged {
    match ending {
        Ending::Preempted => Judged::Nobodys("it was preempted"),
        Ending::Code(Exit::NoCapacity) => Judged::Nobodys("there was no capacity"),
        Ending::Code(Exit::Unavailable) => Judged::Nobodys("a process it needs could not be reached"),
        Ending::Code(Exit::Interrupted) => Judged::Nobodys("somebody interrupted its process"),
        Ending::Code(Exit::BadConfig) => Judged::Final("its job file is wrong"),
        Ending::Code(Exit::Usage) => Judged::Final("its command line is wrong"),
        Ending::Code(Exit::NotFound) => Judged::Final("a file or folder it names does not exist"),
        Ending::Code(Exit::Conflict) => Judged::Final("it contradicts what is there"),
        Ending::Code(Exit::Denied) => Judged::Final("it was denied"),
        Ending::Code(Exit::Panic) => Judged::Own("it met a bug of ours"),
        Ending::Code(_) => Judged::Own("it failed"),
    }
}

#[cfg(test)]
mod tests;
