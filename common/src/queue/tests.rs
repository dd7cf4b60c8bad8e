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
