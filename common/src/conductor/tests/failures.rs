//! Failures without a loss, moves by plan, leases and reigns, told event by event.

use super::stories::{Story, name, settings};
use crate::conductor::{Command, Conductor, Event, Policy, Restored, Settings};
use crate::events::{AbortReport, FromWorker, NotFinite, Outcome, Record, RunEvent, ToWorker};
use crate::ids::{Generation, StateName, WorkerId};
use crate::quarantine::RowRange;

fn said(worker: u32, message: FromWorker) -> Event {
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

fn leased() -> Settings {
    Settings {
        spawns: false,
        policy: Policy {
            outage_max_ms: 1_000,
            ..Policy::default()
        },
        ..settings()
    }
}

fn formed(commands: &[Command]) -> bool {
    let plan = |c: &Command| {
        matches!(
            c,
            Command::Persist {
                record: Record::GenerationFormed { .. }
            }
        )
    };
    commands.iter().any(plan)
}

#[test]
fn new_reign_waits_for_an_acknowledgement_or_for_the_last_lease() {
    let restored = Restored {
        generation: Generation(4),
        members: vec![WorkerId(1), WorkerId(2)],
        ends: [(Generation(4), 9)].into(),
        ..Restored::default()
    };
    let mut conductor: Conductor = Conductor::new(leased(), restored.clone());
    let worker = WorkerId(3);
    conductor.step(Event::WorkerConnected { worker }, 0);
    let ready = FromWorker::Ready {
        addr: "a".into(),
        name: StateName::INITIAL,
    };
    assert!(
        !formed(&conductor.step(said(3, ready.clone()), 0)),
        "the old members may train on"
    );
    for now in (100..=1_100).step_by(100) {
        assert!(!formed(&conductor.step(said(3, FromWorker::Heartbeat), now)), "{now}");
    }
    assert!(
        formed(&conductor.step(said(3, FromWorker::Heartbeat), 1_101)),
        "a tenth to spare"
    );

    let mut conductor: Conductor = Conductor::new(leased(), restored);
    conductor.step(Event::WorkerConnected { worker: WorkerId(2) }, 0);
    let inside = Some(Generation(4));
    let back = FromWorker::Rejoined {
        addr: "b".into(),
        name: name(9, 4),
        inside,
        left: Generation(3),
    };
    let close = Command::Send {
        to: WorkerId(2),
        message: ToWorker::Close {
            generation: Generation(4),
            after_step: None,
        },
    };
    assert!(conductor.step(said(2, back), 10).contains(&close));
    let (generation, cause) = (Generation(4), None);
    let closed = FromWorker::Closed {
        generation,
        name: name(9, 4),
        cause,
    };
    assert!(
        formed(&conductor.step(said(2, closed), 20)),
        "one acknowledgement is enough"
    );
}

#[test]
fn generation_whose_members_all_come_back_is_kept_and_otherwise_closed() {
    let record = Record::GenerationFormed {
        generation: Generation(4),
        term: crate::ids::Term(1),
        base: name(6, 3),
        source: crate::plan::StateSource::Peers,
        members: vec![WorkerId(1), WorkerId(2)],
        lanes: vec![0, 1, 0, 1],
        plan_hash: 0,
    };
    let restored = Restored::from_records(&[record]);
    let back = |name| FromWorker::Rejoined {
        addr: "a".into(),
        name,
        inside: Some(Generation(4)),
        left: Generation(3),
    };
    let begin = || {
        let mut conductor: Conductor = Conductor::new(leased(), restored.clone());
        for worker in [1, 2] {
            let worker = WorkerId(worker);
            conductor.step(Event::WorkerConnected { worker }, 0);
        }
        conductor
    };
    let closes = |commands: &[Command]| {
        let close = |c: &&Command| {
            matches!(
                c,
                Command::Send {
                    message: ToWorker::Close { .. },
                    ..
                }
            )
        };
        commands.iter().filter(close).count()
    };

    let mut conductor = begin();
    assert_eq!(closes(&conductor.step(said(1, back(name(9, 4))), 10)), 0);
    assert_eq!(closes(&conductor.step(said(2, back(name(8, 4))), 20)), 0);
    let view = conductor.observe();
    assert_eq!(
        (view.phase, view.generation, view.steps_done),
        ("running", Generation(4), 9)
    );
    assert_eq!(view.members, [WorkerId(1), WorkerId(2)]);

    // One has applied nothing in it and may wait for its order to begin.
    let mut conductor = begin();
    conductor.step(said(1, back(name(9, 4))), 10);
    assert_eq!(closes(&conductor.step(said(2, back(name(6, 3))), 20)), 2);

    // One never comes.
    let mut conductor = begin();
    conductor.step(said(1, back(name(9, 4))), 10);
    let (at, _) = conductor.next_deadline().unwrap();
    assert!(at > 0);
    assert_eq!(
        closes(&conductor.step(Event::StreamLost { worker: WorkerId(2) }, 30)),
        1
    );
    let mut conductor = begin();
    conductor.step(said(1, back(name(9, 4))), 10);
    let patience = leased().failure_budget_ms + crate::follower::RETRY_MAX_MS;
    for now in (100..patience).step_by(100) {
        conductor.step(said(2, FromWorker::Heartbeat), now);
        assert_eq!(closes(&conductor.step(said(1, FromWorker::Heartbeat), now)), 0, "{now}");
    }
    let over = conductor.step(said(1, FromWorker::Heartbeat), patience);
    assert_eq!(closes(&over), 1);
}

#[test]
fn lease_is_renewed_only_while_the_reign_holds() {
    let mut conductor: Conductor = Conductor::new(leased(), Restored::default());
    let worker = WorkerId(1);
    conductor.step(Event::WorkerConnected { worker }, 0);
    conductor.step(
        said(
            1,
            FromWorker::Ready {
                addr: "a".into(),
                name: StateName::INITIAL,
            },
        ),
        0,
    );
    conductor.step(Event::Persisted, 0);
    let wanted = |at| {
        said(
            1,
            FromWorker::LeaseWanted {
                generation: Generation(1),
                at,
            },
        )
    };
    let leases = |commands: Vec<Command>| {
        let lease = |c: &Command| {
            matches!(
                c,
                Command::Send {
                    message: ToWorker::Lease { .. },
                    ..
                }
            )
        };
        commands.iter().any(lease)
    };
    assert!(leases(conductor.step(wanted(5), 10)));
    conductor.step(Event::LeadershipHeld { until: 500 }, 20);
    assert!(leases(conductor.step(wanted(100), 499)));
    assert!(!leases(conductor.step(wanted(200), 500)), "its leadership has run out");
}

#[test]
fn state_beyond_where_its_generation_was_left_is_superseded() {
    let restored = Restored {
        generation: Generation(5),
        ends: [(Generation(0), 0), (Generation(3), 8)].into(),
        ..Restored::default()
    };
    let mut story = Story::with(restored);
    story.ready(1, name(9, 3));
    assert_eq!(
        story.last_plan().base,
        StateName::INITIAL,
        "step 9 of gen 3 is on no lineage"
    );
}
