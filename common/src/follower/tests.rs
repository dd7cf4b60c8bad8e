mod history;

use super::*;
use crate::ids::WorkerId;
use crate::plan::{Member, Plan, StateSource};

fn plan(generation: u64) -> Plan {
    Plan {
        run: "r".into(),
        generation: Generation(generation),
        term: Term(1),
        base: StateName::INITIAL,
        source: StateSource::Seed,
        members: vec![Member {
            worker: WorkerId(1),
            addr: "127.0.0.1:1".into(),
            heals: false,
        }]
        .into(),
        lanes: vec![0].into(),
        skip: None,
        quarantine: Vec::new(),
    }
}

fn step(follower: &mut Follower, event: Event) -> Vec<Command> {
    follower.step(event, 0)
}

fn training(generation: u64) -> Follower {
    let mut follower: Follower = Follower::default();
    step(
        &mut follower,
        Event::TrainerReady {
            addr: "a".into(),
            name: StateName::INITIAL,
        },
    );
    step(&mut follower, Event::Heard(ToWorker::Form { plan: plan(generation) }));
    step(
        &mut follower,
        Event::TrainerFormed {
            generation: Generation(generation),
        },
    );
    let run = step(
        &mut follower,
        Event::Heard(ToWorker::Activate {
            generation: Generation(generation),
        }),
    );
    assert_eq!(
        run,
        vec![Command::Order(TrainerOrder::Run {
            generation: Generation(generation)
        })]
    );
    follower
}

#[test]
fn closed_generation_is_never_entered_again() {
    let mut follower = training(3);
    let stopped = Event::TrainerStopped {
        generation: Generation(3),
        name: StateName::INITIAL,
        cause: Some("x".into()),
    };
    step(&mut follower, stopped);
    let close = Event::Heard(ToWorker::Close {
        generation: Generation(3),
        after_step: None,
    });
    let again = step(&mut follower, close);
    assert!(
        matches!(
            again[..],
            [Command::Tell(FromWorker::Closed {
                generation: Generation(3),
                ..
            })]
        ),
        "{again:?}"
    );
    assert!(step(&mut follower, Event::Heard(ToWorker::Form { plan: plan(3) })).is_empty());
    assert!(
        follower
            .step(
                Event::Heard(ToWorker::Activate {
                    generation: Generation(3)
                }),
                0
            )
            .is_empty()
    );
    assert_eq!(
        step(&mut follower, Event::Heard(ToWorker::Form { plan: plan(4) })).len(),
        1
    );
}

#[test]
fn close_without_a_boundary_stops_the_trainer_and_cuts_the_collective() {
    let mut follower = training(1);
    let commands = step(
        &mut follower,
        Event::Heard(ToWorker::Close {
            generation: Generation(1),
            after_step: None,
        }),
    );
    assert!(commands.contains(&Command::AbortCollective {
        generation: Generation(1)
    }));
    assert_eq!(follower.observe().phase, "stopping");
}

#[test]
fn planned_close_waits_for_the_boundary_and_a_sudden_one_overrides_it() {
    let mut follower = training(1);
    let planned = step(
        &mut follower,
        Event::Heard(ToWorker::Close {
            generation: Generation(1),
            after_step: Some(9),
        }),
    );
    assert_eq!(
        planned,
        vec![Command::Order(TrainerOrder::StopAfter {
            generation: Generation(1),
            step: 9
        })]
    );
    let sudden = step(
        &mut follower,
        Event::Heard(ToWorker::Close {
            generation: Generation(1),
            after_step: None,
        }),
    );
    assert!(sudden.contains(&Command::AbortCollective {
        generation: Generation(1)
    }));
}

#[test]
fn lost_coordinator_ends_the_worker() {
    let mut follower = training(1);
    let commands = step(&mut follower, Event::StreamLost);
    assert!(matches!(commands.last(), Some(Command::Exit { code: 5, .. })));
    assert!(step(&mut follower, Event::HeartbeatDue).is_empty());
}

/// A follower with all of its rights and duties, training in generation 1 of reign 3.
fn leased() -> Follower {
    let settings = Settings {
        worker: 1,
        seed: 1,
        leases: true,
        orphan_max_ms: 60_000,
        grace_ms: 5_000,
    };
    let mut follower: Follower = Follower::new(settings);
    follower.step(Event::Welcomed { term: Term(3) }, 0);
    let (addr, name) = ("a".into(), StateName::INITIAL);
    follower.step(Event::TrainerReady { addr, name }, 0);
    let plan = Plan {
        term: Term(3),
        ..plan(1)
    };
    follower.step(Event::Heard(ToWorker::Form { plan }), 0);
    let generation = Generation(1);
    let formed = follower.step(Event::TrainerFormed { generation }, 100);
    assert!(formed.contains(&Command::Tell(FromWorker::LeaseWanted { generation, at: 100 })));
    follower.step(Event::Heard(ToWorker::Activate { generation }), 110);
    follower
}

#[test]
fn lease_counts_from_when_it_was_asked_for_however_late_the_answer_comes() {
    let mut follower = leased();
    let lease = |generation, asked_at| {
        Event::Heard(ToWorker::Lease {
            generation: Generation(generation),
            asked_at,
            lasts_ms: 1_000,
        })
    };
    let generation = Generation(1);
    let got = follower.step(lease(1, 100), 900);
    assert_eq!(
        got,
        vec![Command::Lease {
            generation,
            until: 1_100
        }]
    );
    assert!(
        follower.step(lease(1, 50), 950).is_empty(),
        "an older answer shortens nothing"
    );
    assert!(follower.step(lease(2, 900), 950).is_empty(), "another generation's");
    let until = follower.step(lease(1, 99_999), 1_000);
    assert_eq!(
        until,
        vec![Command::Lease {
            generation,
            until: 2_000
        }],
        "nobody asked in the future"
    );
    let (name, cause) = (StateName::INITIAL, None);
    let left = follower.step(
        Event::TrainerStopped {
            generation,
            name,
            cause,
        },
        1_200,
    );
    assert_eq!(
        left[0],
        Command::Lease { generation, until: 0 },
        "it ends with the generation"
    );
}

#[test]
fn orphan_keeps_its_state_and_tells_where_it_stands_when_it_is_taken_in_again() {
    let mut follower = leased();
    let lost = follower.step(Event::StreamLost, 1_000);
    assert!(matches!(lost[..], [Command::Reconnect { .. }]), "{lost:?}");
    assert_eq!(
        follower.observe().generation,
        Some(Generation(1)),
        "the generation goes on"
    );
    let name = StateName {
        step: 4,
        applied_gen: Generation(1),
    };
    let (generation, cause) = (Generation(1), Some("a peer is gone".into()));
    assert!(follower.step(Event::HeartbeatDue, 1_100).is_empty());
    follower.step(
        Event::TrainerStopped {
            generation,
            name,
            cause,
        },
        1_200,
    );
    let refused = follower.step(Event::Welcomed { term: Term(2) }, 1_300);
    assert!(
        matches!(refused[..], [Command::Reconnect { .. }]),
        "deposed: {refused:?}"
    );
    let back = follower.step(Event::Welcomed { term: Term(4) }, 1_400);
    let rejoined = FromWorker::Rejoined {
        addr: "a".into(),
        name,
        inside: None,
        left: generation,
    };
    assert_eq!(back[0], Command::Tell(rejoined));
    assert!(matches!(
        &back[1],
        Command::Tell(FromWorker::Closed {
            generation: Generation(1),
            ..
        })
    ));
}

#[test]
fn orphan_that_finds_nobody_copies_its_state_and_leaves_for_lack_of_capacity() {
    let mut follower = leased();
    follower.step(Event::StreamLost, 1_000);
    let mut waits = Vec::new();
    for _ in 0..8 {
        for command in follower.step(Event::Unreachable, 1_000) {
            if let Command::Reconnect { after_ms } = command {
                waits.push(after_ms);
            }
        }
    }
    assert!(waits.last() > waits.first(), "{waits:?}");
    assert_eq!(follower.next_deadline().map(|d| d.0), Some(61_000));
    let end = follower.step(Event::Ticked, 61_000);
    assert!(end.contains(&Command::Order(TrainerOrder::EmergencyCopy)), "{end:?}");
    assert!(matches!(end.last(), Some(Command::Exit { code: 75, .. })));
}

#[test]
fn message_of_a_deposed_coordinator_is_ignored() {
    let mut follower = leased();
    follower.step(Event::Welcomed { term: Term(2) }, 0);
    let close = ToWorker::Close {
        generation: Generation(1),
        after_step: None,
    };
    assert!(follower.step(Event::Heard(close), 0).is_empty());
}

#[test]
fn signal_asks_for_a_boundary_and_the_end_of_the_grace_does_not() {
    let mut follower = leased();
    let first = follower.step(Event::SignalReceived, 1_000);
    assert_eq!(first, vec![Command::Tell(FromWorker::Draining { grace_ms: 5_000 })]);
    assert!(follower.step(Event::Ticked, 5_999).is_empty());
    let late = follower.step(Event::Ticked, 6_000);
    assert!(matches!(late.last(), Some(Command::Exit { code: 0, .. })), "{late:?}");
}

#[test]
fn signal_between_two_generations_asks_since_nobody_else_may_hold_the_state() {
    let mut follower = leased();
    let (generation, cause) = (Generation(1), None);
    let name = StateName {
        step: 4,
        applied_gen: generation,
    };
    follower.step(
        Event::TrainerStopped {
            generation,
            name,
            cause,
        },
        500,
    );
    let asked = follower.step(Event::SignalReceived, 1_000);
    assert_eq!(asked, vec![Command::Tell(FromWorker::Draining { grace_ms: 5_000 })]);
    // It is needed once more, and goes when it is told.
    let plan = Plan {
        term: Term(3),
        ..plan(2)
    };
    assert_eq!(follower.step(Event::Heard(ToWorker::Form { plan }), 1_100).len(), 1);
    let told = follower.step(Event::Heard(ToWorker::Finish), 2_000);
    assert!(matches!(told.last(), Some(Command::Exit { code: 0, .. })), "{told:?}");
}

#[test]
fn signal_before_a_worker_is_ready_ends_it_with_a_word() {
    let mut follower: Follower = Follower::new(Settings {
        grace_ms: 5_000,
        ..Settings::default()
    });
    let told = follower.step(Event::SignalReceived, 0);
    assert_eq!(told[0], Command::Tell(FromWorker::Draining { grace_ms: 5_000 }));
    assert!(matches!(told.last(), Some(Command::Exit { code: 0, .. })), "{told:?}");
}
