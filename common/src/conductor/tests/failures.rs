//! Failures without a loss, and moves by plan, told event by event.

use super::stories::{Story, name};
use crate::conductor::{Command, Event, Restored};
use crate::events::{AbortReport, FromWorker, NotFinite, Outcome, Record, RunEvent, ToWorker};
use crate::ids::{Generation, StateName, WorkerId};
use crate::quarantine::{ReadFault, RowRange};

pub(super) fn said(worker: u32, message: FromWorker) -> Event {
    let worker = WorkerId(worker);
    Event::Said { worker, message }
}

fn blames(story: &Story) -> Vec<Option<WorkerId>> {
    let blamed = story.announced.iter().filter_map(|event| match event {
        RunEvent::Blamed { worker, .. } => Some(*worker),
        _ => None,
    });
    blamed.collect()
}

impl Story {
    /// Both members of generation `generation` abort at `step` with these lanes not finite, and close.
    fn not_finite(&mut self, generation: u64, members: &[u32], step: u64, lanes: &[u32], held: StateName) {
        for worker in members {
            let report = AbortReport {
                generation: Generation(generation),
                step,
                not_finite: Some(NotFinite {
                    lanes: lanes.to_vec(),
                    sum: false,
                }),
                ..AbortReport::default()
            };
            self.tell(said(*worker, FromWorker::Aborted { report }));
            self.close(*worker, generation, held);
        }
    }
}

#[test]
fn lanes_that_are_not_finite_go_to_another_worker_and_on_both_the_step_is_passed_over() {
    let mut story = Story::two_running();
    story.done(1, 5, 1);
    story.done(2, 5, 1);
    let guilty = story.last_plan().lanes_of(0)[0];
    story.not_finite(1, &[1, 2], 5, &[guilty], name(5, 1));
    let second = story.all_formed();
    let owner = second.members[second.lanes[guilty as usize] as usize].worker;
    assert_eq!(
        (owner, second.skip.clone()),
        (WorkerId(2), None),
        "once again, elsewhere"
    );
    story.not_finite(2, &[1, 2], 5, &[guilty], name(5, 1));
    let third = story.all_formed();
    assert!(third.skip.is_some_and(|why| why.contains("two workers")));
    assert_eq!(story.conductor.observe().cordoned, Vec::new(), "the data is at fault");
}

#[test]
fn step_that_is_finite_elsewhere_cordons_the_first_worker_and_it_drains() {
    let mut story = Story::two_running();
    story.done(1, 5, 1);
    let guilty = story.last_plan().lanes_of(0)[0];
    story.not_finite(1, &[1, 2], 5, &[guilty], name(5, 1));
    story.all_formed();
    let report = crate::events::StepReport {
        generation: Generation(2),
        name: name(6, 2),
        loss: Some(1.0),
        ..crate::events::StepReport::default()
    };
    story.tell(said(2, FromWorker::StepDone { report }));
    assert_eq!(story.conductor.observe().cordoned, vec![WorkerId(1)]);
    for worker in [1, 2] {
        story.close(worker, 2, name(8, 2));
    }
    let plan = story.last_plan();
    assert_eq!(plan.members.len(), 1, "only the other trains on");
    assert!(story.sent.contains(&(WorkerId(1), ToWorker::Finish)));
}

#[test]
fn steps_passed_over_in_a_row_end_the_run() {
    let mut story = Story::two_running();
    for generation in 1..=3 {
        let report = AbortReport {
            generation: Generation(generation),
            step: generation - 1,
            not_finite: Some(NotFinite {
                lanes: Vec::new(),
                sum: true,
            }),
            ..AbortReport::default()
        };
        story.tell(said(1, FromWorker::Aborted { report }));
        for worker in [1, 2] {
            story.close(worker, generation, name(generation - 1, generation - 1));
        }
        story.now += 60_000;
        story.tell(Event::Ticked);
        if story.outcome.is_none() {
            story.all_formed();
            story.done(1, generation, generation + 1); // passed over: no loss
        }
    }
    assert!(
        matches!(story.outcome, Some(Outcome::Failed { exit: 1, .. })),
        "{:?}",
        story.outcome
    );
}

#[test]
fn broken_link_between_the_living_is_tried_again_before_anybody_is_expelled() {
    let mut story = Story::two_running();
    for generation in 1..=2 {
        for (worker, peer) in [(1, 2), (2, 1)] {
            let report = AbortReport {
                generation: Generation(generation),
                lost_links: vec![WorkerId(peer)],
                ..AbortReport::default()
            };
            story.tell(said(worker, FromWorker::Aborted { report }));
            story.close(worker, generation, StateName::INITIAL);
        }
        if generation == 1 {
            assert_eq!(blames(&story), vec![None], "nobody yet");
            assert_eq!(story.all_formed().members.len(), 2);
        }
    }
    assert_eq!(
        blames(&story),
        vec![None, Some(WorkerId(2))],
        "equal in all: the higher id"
    );
    assert_eq!(story.dismissed, vec![WorkerId(2)]);
}

#[test]
fn rows_that_two_workers_cannot_read_are_given_up_durably_from_the_step_that_waits() {
    let mut story = Story::two_running();
    story.done(1, 5, 1);
    let rows = RowRange {
        source: 0,
        shard: 3,
        from: 0,
        until: 10,
    };
    let lane = story.last_plan().lanes_of(0)[0];
    let blocked = |generation: u64| FromWorker::LaneBlocked {
        generation: Generation(generation),
        step: 5,
        lane,
        rows,
        fault: ReadFault::Shard,
        error: "503".into(),
    };
    story.tell(said(1, blocked(1)));
    for worker in [1, 2] {
        story.close(worker, 1, name(5, 1));
    }
    let plan = story.all_formed();
    assert_eq!(plan.members[plan.lanes[lane as usize] as usize].worker, WorkerId(2));
    assert!(plan.quarantine.is_empty(), "one failure gives nothing up");
    story.tell(said(2, blocked(2)));
    for worker in [1, 2] {
        story.close(worker, 2, name(5, 1));
    }
    let plan = story.last_plan();
    assert_eq!((plan.quarantine[0].rows, plan.quarantine[0].holds_from), (rows, 5));
    let at = |wanted: fn(&Record) -> bool| story.records.iter().rposition(wanted);
    let revision = at(|r| matches!(r, Record::Quarantined { .. }));
    assert!(revision.is_some() && revision < at(|r| matches!(r, Record::GenerationFormed { .. })));
    let restored = Restored::from_records(&story.records);
    assert_eq!(restored.quarantine.last(), 1);
}

#[test]
fn drained_member_leaves_at_a_boundary_when_its_lanes_are_primed_elsewhere() {
    let mut story = Story::two_running();
    story.done(1, 7, 1);
    story.done(2, 7, 1);
    story.tell(said(1, FromWorker::Draining { grace_ms: 30_000 }));
    let prepared = story
        .sent
        .iter()
        .any(|(to, m)| *to == WorkerId(2) && matches!(m, ToWorker::Prepare { .. }));
    assert!(prepared, "its lanes are fetched first");
    let (generation, after_step) = (Generation(1), Some(9));
    assert!(
        story
            .sent
            .contains(&(WorkerId(1), ToWorker::Close { generation, after_step }))
    );
    for worker in [1, 2] {
        story.close(worker, 1, name(9, 1));
    }
    let plan = story.last_plan();
    let members: Vec<WorkerId> = plan.members.iter().map(|m| m.worker).collect();
    assert_eq!(
        (members, plan.base),
        (vec![WorkerId(2)], name(9, 1)),
        "no step is done twice"
    );
    assert!(story.sent.contains(&(WorkerId(1), ToWorker::Finish)));
    let (worker, pid, code, signal) = (WorkerId(1), 1, Some(0), None);
    story.tell(Event::WorkerExited {
        worker,
        pid,
        code,
        signal,
    });
    assert_eq!(story.last_plan().generation, plan.generation, "its end changes nothing");
}

#[test]
fn last_clean_member_that_drains_commits_its_boundary_first() {
    let mut story = Story::two_running();
    story.done(1, 7, 1);
    for worker in [1, 2] {
        story.tell(Event::DrainRequested {
            worker: WorkerId(worker),
            grace_ms: 60_000,
        });
    }
    for worker in [1, 2] {
        story.close(worker, 1, name(9, 1));
    }
    story.all_formed();
    story.done(1, 10, 2);
    let copies = |(_, m): &(WorkerId, ToWorker)| matches!(m, ToWorker::Checkpoint { .. });
    assert!(story.sent.iter().any(copies), "a checkpoint first");
    assert!(
        !story.sent.iter().any(|(_, m)| matches!(m, ToWorker::Finish)),
        "nobody goes before"
    );
}

#[test]
fn joiner_waits_for_another_that_is_warming_up_and_both_join_at_once() {
    let mut story = Story::two_running();
    story.done(1, 7, 1);
    story.tell(Event::WorkerConnected { worker: WorkerId(4) });
    story.ready(3, StateName::INITIAL);
    let closes = |(_, m): &(WorkerId, ToWorker)| matches!(m, ToWorker::Close { .. });
    assert!(!story.sent.iter().any(closes), "not yet");
    story.ready(4, StateName::INITIAL);
    assert!(story.sent.iter().any(closes));
    story.close(1, 1, name(9, 1));
    story.close(2, 1, name(9, 1));
    assert_eq!(story.last_plan().members.len(), 4, "one generation for both");
}

#[test]
fn rows_that_were_fetched_for_a_generation_that_is_over_do_not_count_for_a_move() {
    let mut story = Story::two_running();
    story.done(1, 7, 1);
    let worker = WorkerId(3);
    let addr = "3".to_owned();
    let name = StateName::INITIAL;
    let mut told = story.conductor.step(Event::WorkerConnected { worker }, story.now);
    told.extend(
        story
            .conductor
            .step(said(3, FromWorker::Ready { addr, name }), story.now),
    );
    let lanes = told.iter().find_map(|command| match command {
        Command::Send {
            to,
            message: ToWorker::Prepare { lanes, .. },
        } => (*to == worker).then(|| lanes.clone()),
        _ => None,
    });
    let lanes = lanes.expect("it is told what will be its own");
    let mut primed = |generation| {
        let generation = Generation(generation);
        let lanes = lanes.clone();
        let commands = story
            .conductor
            .step(said(3, FromWorker::Primed { generation, lanes }), story.now);
        let closes = |command: &Command| {
            matches!(
                command,
                Command::Send {
                    message: ToWorker::Close { .. },
                    ..
                }
            )
        };
        commands.iter().any(closes)
    };
    assert!(!primed(0), "what an orphan had to say to its old leader");
    assert!(primed(1));
}
