//! Leases, and what a new reign does with what it finds, told event by event.

use super::failures::said;
use super::stories::{Story, name, settings};
use crate::conductor::{Command, Conductor, Event, Policy, Restored, Settings};
use crate::events::{FromWorker, Record, ToWorker};
use crate::ids::{Generation, StateName, WorkerId};

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

    let mut patient = leased();
    patient.policy.reign_ms = 500;
    let mut conductor: Conductor = Conductor::new(patient, restored.clone());
    conductor.step(Event::WorkerConnected { worker }, 0);
    conductor.step(said(3, ready), 0);
    for now in (100..=1_600).step_by(100) {
        assert!(!formed(&conductor.step(said(3, FromWorker::Heartbeat), now)), "{now}");
    }
    assert!(
        formed(&conductor.step(said(3, FromWorker::Heartbeat), 1_651)),
        "the store lost the last reign's lease, and it renewed until it noticed"
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
    let begin_leased = |outage_max_ms| {
        let policy = Policy {
            outage_max_ms,
            ..Policy::default()
        };
        let settings = Settings { policy, ..leased() };
        let mut conductor: Conductor = Conductor::new(settings, restored.clone());
        for worker in [1, 2] {
            let worker = WorkerId(worker);
            conductor.step(Event::WorkerConnected { worker }, 0);
        }
        conductor
    };
    let begin = || begin_leased(1_000);
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

    // One is asked to leave before all are back: it goes by a move of its lanes, as ever.
    let mut conductor = begin();
    conductor.step(said(1, back(name(9, 4))), 10);
    let (worker, grace_ms) = (WorkerId(1), 60_000);
    let told = conductor.step(Event::DrainRequested { worker, grace_ms }, 15);
    let goes = |c: &Command| {
        matches!(
            c,
            Command::Send {
                message: ToWorker::Finish,
                ..
            }
        )
    };
    assert!(!told.iter().any(goes), "{told:?}");
    let told = conductor.step(said(2, back(name(9, 4))), 20);
    assert_eq!(conductor.observe().phase, "running");
    let prepares = |c: &Command| {
        matches!(
            c,
            Command::Send {
                message: ToWorker::Prepare { .. },
                ..
            }
        )
    };
    assert!(!told.iter().any(goes) && told.iter().any(prepares), "{told:?}");

    // One has applied nothing in it and may wait for its order to begin.
    let mut conductor = begin();
    conductor.step(said(1, back(name(9, 4))), 10);
    assert_eq!(closes(&conductor.step(said(2, back(name(6, 3))), 20)), 2);

    // One came back and was broken off by its peers before the other came.
    let mut conductor = begin();
    let left = |name| FromWorker::Closed {
        generation: Generation(4),
        name,
        cause: Some("a peer is gone".into()),
    };
    conductor.step(said(1, back(name(9, 4))), 10);
    conductor.step(said(1, left(name(9, 4))), 15);
    assert_eq!(closes(&conductor.step(said(2, back(name(8, 4))), 20)), 1);
    let view = conductor.observe();
    assert_eq!(
        (view.phase, view.generation),
        ("persisting", Generation(5)),
        "who has left it forms the next"
    );

    // The same, but its word of leaving comes first.
    let mut conductor = begin();
    conductor.step(said(1, left(name(9, 4))), 10);
    assert_eq!(
        closes(&conductor.step(said(1, back(name(9, 4))), 15)),
        1,
        "it says it once more"
    );
    conductor.step(said(1, left(name(9, 4))), 20);
    assert_eq!(conductor.observe().ready, [WorkerId(1)]);

    // One never comes.
    let mut conductor = begin();
    conductor.step(said(1, back(name(9, 4))), 10);
    let (at, _) = conductor.next_deadline().unwrap();
    assert!(at > 0);
    assert_eq!(
        closes(&conductor.step(Event::StreamLost { worker: WorkerId(2) }, 30)),
        1
    );
    // Nor while somebody may train on in it: within the last lease, and then no longer than orphans look for a coordinator.
    let patience = leased().failure_budget_ms + crate::follower::RETRY_MAX_MS;
    for (lease, until) in [(1_000, 1_101), (60_000, patience)] {
        let mut conductor = begin_leased(lease);
        conductor.step(said(1, back(name(9, 4))), 0);
        for now in (100..until).step_by(100) {
            conductor.step(said(2, FromWorker::Heartbeat), now);
            assert_eq!(closes(&conductor.step(said(1, FromWorker::Heartbeat), now)), 0, "{now}");
        }
        let over = conductor.step(said(1, FromWorker::Heartbeat), until);
        assert_eq!(closes(&over), 1);
    }
}

/// A newcomer must not go back to the checkpoint, or begin anew, while a member with all that was trained can be reached.
#[test]
fn newcomer_forms_nothing_before_those_who_are_back_have_said_what_they_hold() {
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
    let mut conductor: Conductor = Conductor::new(leased(), restored);
    for worker in [1, 3] {
        let worker = WorkerId(worker);
        conductor.step(Event::WorkerConnected { worker }, 0);
    }
    let back = |name| FromWorker::Rejoined {
        addr: "a".into(),
        name,
        inside: Some(Generation(4)),
        left: Generation(3),
    };
    let (addr, name0) = ("c".into(), StateName::INITIAL);
    conductor.step(said(3, FromWorker::Ready { addr, name: name0 }), 5);
    conductor.step(said(1, back(name(9, 4))), 10);
    for now in (100..=1_100).step_by(100) {
        assert!(!formed(&conductor.step(said(1, FromWorker::Heartbeat), now)), "{now}");
        assert!(!formed(&conductor.step(said(3, FromWorker::Heartbeat), now)), "{now}");
    }
    // The lease is over: who is back is asked to leave, and waited for.
    let over = conductor.step(said(3, FromWorker::Heartbeat), 1_101);
    assert!(!formed(&over) && over.iter().any(|c| matches!(c, Command::Send { to: WorkerId(1), .. })));
    let (generation, cause) = (Generation(4), None);
    let closed = FromWorker::Closed {
        generation,
        name: name(9, 4),
        cause,
    };
    let commands = conductor.step(said(1, closed), 1_150);
    let from = |c: &Command| matches!(c, Command::Persist { record: Record::GenerationFormed { base, .. } } if *base == name(9, 4));
    assert!(commands.iter().any(from), "{commands:?}");
    // Another member of the old generation is too late to have it kept.
    let worker = WorkerId(2);
    conductor.step(Event::WorkerConnected { worker }, 1_200);
    let commands = conductor.step(said(2, back(name(9, 4))), 1_210);
    assert!(
        commands.iter().any(|c| matches!(
            c,
            Command::Send {
                message: ToWorker::Close { .. },
                ..
            }
        )),
        "{commands:?}"
    );
    assert_eq!(conductor.observe().generation, Generation(5));
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
