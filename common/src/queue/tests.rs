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

/// The plain reference: what the shell knows of a job from its own doings and from what it told the queue.
#[derive(Clone, Copy, Debug, Default)]
struct Plain {
    forgiven: u32,
    errors: u32,
    has_process: bool,
    pausing: bool,
    cancelled: bool,
    paused: bool,
    over: bool,
}

impl Plain {
    fn hears(&mut self, event: &Event) {
        match event {
            Event::Progressed { .. } if self.has_process => self.errors = 0,
            Event::PauseRequested { .. } if self.has_process => self.pausing |= !self.cancelled,
            Event::PauseRequested { .. } => self.paused |= !self.over,
            Event::ResumeRequested { .. } => {
                self.errors = if self.paused { 0 } else { self.errors };
                (self.pausing, self.paused) = (false, false);
            }
            Event::CancelRequested { .. } if self.has_process => self.cancelled = true,
            Event::CancelRequested { .. } => self.over = true,
            _ => {}
        }
    }

    /// What becomes of it when its process ends so; `None`: it is tried again.
    fn ends(&mut self, ending: Ending) -> Option<&'static str> {
        self.has_process = false;
        let pausing = std::mem::take(&mut self.pausing);
        let fate = match ending {
            Ending::Code(Exit::Ok) => "succeeded",
            _ if self.cancelled => "cancelled",
            _ if pausing => {
                self.paused = true;
                return Some("paused");
            }
            Ending::Code(Exit::BadConfig) => "failed",
            Ending::Code(Exit::JobFailed) if self.errors == self.forgiven => "failed",
            Ending::Code(Exit::JobFailed) => {
                self.errors += 1;
                return None;
            }
            _ => return None,
        };
        self.over = true;
        Some(fate)
    }
}

fn word(state: &JobState) -> Option<&'static str> {
    match state {
        JobState::Succeeded => Some("succeeded"),
        JobState::Cancelled => Some("cancelled"),
        JobState::Paused => Some("paused"),
        JobState::Failed(_) => Some("failed"),
        JobState::Recovering => None,
        _ => Some("something else"),
    }
}

fn job_of(event: &Event) -> Option<JobId> {
    match event {
        Event::Submitted { job, .. }
        | Event::Trains { job, .. }
        | Event::Progressed { job }
        | Event::Waits { job }
        | Event::Ended { job, .. }
        | Event::PauseRequested { job }
        | Event::ResumeRequested { job }
        | Event::CancelRequested { job } => Some(*job),
        Event::Ticked => None,
    }
}

proptest! {
    #[test]
    fn queue_any_history_matches_the_plain_reference(
        history in proptest::collection::vec((events(), 0u64..100_000), 0..120), places in 1usize..4,
    ) {
        let mut queue = Queue::new(places, 3);
        let mut jobs: BTreeMap<JobId, Plain> = BTreeMap::new();
        let mut now = 0;
        for (event, wait) in history {
            now += wait;
            let mut fate = None;
            if let (Event::Submitted { job, errors_max }, false) = (&event, job_of(&event).is_some_and(|j| jobs.contains_key(&j))) {
                jobs.insert(*job, Plain { forgiven: *errors_max, ..Plain::default() });
            }
            if let Some(plain) = job_of(&event).and_then(|job| jobs.get_mut(&job)).filter(|plain| !plain.over) {
                plain.hears(&event);
                if let (Event::Ended { job, ending }, true) = (&event, plain.has_process) {
                    fate = Some((*job, plain.ends(*ending)));
                }
            }
            for command in queue.step(event.clone(), now) {
                if let Command::Launch { job } = command {
                    let plain = jobs.get_mut(&job).expect("somebody submitted it");
                    prop_assert!(!plain.has_process && !plain.over && !plain.paused, "{job}: {plain:?}");
                    plain.has_process = true;
                }
            }
            prop_assert!(jobs.values().filter(|plain| plain.has_process).count() <= places);
            prop_assert!(queue.next_deadline().is_none_or(|(at, _)| at > now));
            for view in queue.observe() {
                let plain = jobs.get(&view.job).expect("somebody submitted it");
                prop_assert_eq!(view.state.is_final(), plain.over, "{:?} {:?}", &view, plain);
                prop_assert_eq!(view.state == JobState::Paused, plain.paused && !plain.over, "{:?} {:?}", &view, plain);
                let (job, became) = fate.unwrap_or((view.job, word(&view.state)));
                if job == view.job {
                    prop_assert_eq!(word(&view.state), became, "{:?} after {:?}", &view, &event);
                }
            }
        }
    }
}
