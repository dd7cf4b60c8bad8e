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

use crate::backoff::Backoff;
use crate::conductor::Tick;
use crate::exit::Exit;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// First wait before a job is tried again.
const RETRY_MS_FIRST: u64 = 2_000;
/// Longest such wait.
const RETRY_MS_MAX: u64 = 300_000;

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

    /// Gives free places away, oldest job first. A job keeps its place while it has a process.
    fn launch(&mut self, now: Tick, commands: &mut Vec<Command>) {
        let mut free = self
            .places
            .saturating_sub(self.jobs.values().filter(|j| j.has_process).count());
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: JobId = JobId(1);

    fn submitted(errors_max: u32) -> Queue {
        let mut queue = Queue::new(1, 7);
        let commands = queue.step(Event::Submitted { job: ONE, errors_max }, 0);
        assert_eq!(commands.last(), Some(&Command::Launch { job: ONE }));
        queue
    }

    fn end(queue: &mut Queue, ending: Ending, now: Tick) -> JobState {
        queue.step(Event::Ended { job: ONE, ending }, now);
        queue.observe()[0].state.clone()
    }

    #[test]
    fn preempted_job_is_started_again_for_ever_and_waits_longer_each_time() {
        let mut queue = submitted(0);
        let (mut now, mut last) = (0, 0);
        for times in 1..200 {
            assert_eq!(end(&mut queue, Ending::Preempted, now), JobState::Recovering);
            let (at, _) = queue.next_deadline().expect("it is tried again");
            assert!(times > 8 || at - now > last / 2, "{at} {now} {last}");
            last = at - now;
            now = at;
            assert!(queue.step(Event::Ticked, now).contains(&Command::Launch { job: ONE }));
        }
        assert!(last <= RETRY_MS_MAX);
    }

    #[test]
    fn errors_of_its_own_end_a_job_unless_there_was_progress() {
        let mut queue = submitted(1);
        let failed = Ending::Code(Exit::JobFailed);
        assert_eq!(end(&mut queue, failed, 0), JobState::Recovering);
        queue.step(Event::Ticked, 1_000_000);
        queue.step(Event::Progressed { job: ONE }, 1_000_000);
        assert_eq!(end(&mut queue, failed, 1_000_000), JobState::Recovering, "forgiven");
        queue.step(Event::Ticked, 2_000_000);
        let JobState::Failed(reason) = end(&mut queue, failed, 2_000_000) else {
            panic!("two in a row")
        };
        assert_eq!(reason, "it failed, 2 times without progress in between");
    }

    #[test]
    fn wrong_job_file_fails_at_once() {
        let mut queue = submitted(9);
        assert!(matches!(
            end(&mut queue, Ending::Code(Exit::BadConfig), 0),
            JobState::Failed(_)
        ));
    }

    #[test]
    fn paused_and_cancelled_jobs_stop_first_and_give_their_place_away() {
        let mut queue = submitted(0);
        let two = JobId(2);
        queue.step(
            Event::Submitted {
                job: two,
                errors_max: 0,
            },
            0,
        );
        assert_eq!(
            queue.step(Event::PauseRequested { job: ONE }, 1),
            vec![Command::Stop { job: ONE }]
        );
        let ending = Ending::Code(Exit::Interrupted);
        let next = queue.step(Event::Ended { job: ONE, ending }, 2);
        assert_eq!(queue.observe()[0].state, JobState::Paused);
        assert!(next.contains(&Command::Launch { job: two }));
        queue.step(Event::CancelRequested { job: two }, 3);
        assert_eq!(queue.observe()[1].state, JobState::Cancelling);
        queue.step(Event::ResumeRequested { job: ONE }, 4);
        let next = queue.step(Event::Ended { job: two, ending }, 5);
        assert_eq!(queue.observe()[1].state, JobState::Cancelled);
        assert!(next.contains(&Command::Launch { job: ONE }), "it is its turn again");
    }

    fn events() -> impl Strategy<Value = Event> {
        let endings = prop_oneof![
            Just(Ending::Preempted),
            Just(Ending::Code(Exit::Ok)),
            Just(Ending::Code(Exit::JobFailed)),
            Just(Ending::Code(Exit::BadConfig)),
            Just(Ending::Code(Exit::Interrupted)),
        ];
        let job = || (0u32..5).prop_map(JobId);
        prop_oneof![
            (job(), 0u32..3).prop_map(|(job, errors_max)| Event::Submitted { job, errors_max }),
            (job(), 0u32..4).prop_map(|(job, members)| Event::Trains {
                job,
                members,
                wanted: 3
            }),
            job().prop_map(|job| Event::Progressed { job }),
            job().prop_map(|job| Event::Waits { job }),
            (job(), endings).prop_map(|(job, ending)| Event::Ended { job, ending }),
            job().prop_map(|job| Event::PauseRequested { job }),
            job().prop_map(|job| Event::ResumeRequested { job }),
            job().prop_map(|job| Event::CancelRequested { job }),
            Just(Event::Ticked),
        ]
    }

    proptest! {
        /// The plain reference is the shell's own book: processes it was told to start and told of as ended.
        #[test]
        fn queue_any_history_keeps_its_places_and_never_leaves_a_final_state(
            history in proptest::collection::vec((events(), 0u64..100_000), 0..80), places in 1usize..4,
        ) {
            let mut queue = Queue::new(places, 3);
            let mut processes = std::collections::BTreeSet::new();
            let mut finals: BTreeMap<JobId, JobState> = BTreeMap::new();
            let mut now = 0;
            for (event, wait) in history {
                now += wait;
                if let Event::Ended { job, .. } = &event {
                    processes.remove(job);
                }
                for command in queue.step(event, now) {
                    if let Command::Launch { job } = command {
                        prop_assert!(processes.insert(job), "{job} had a process");
                    }
                }
                prop_assert!(processes.len() <= places);
                for view in queue.observe() {
                    if let Some(before) = finals.get(&view.job) {
                        prop_assert_eq!(before, &view.state);
                    }
                    if view.state.is_final() {
                        finals.insert(view.job, view.state);
                    }
                }
            }
        }
    }
}
