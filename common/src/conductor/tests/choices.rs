//! Who trains, with which share, and whose word counts, told event by event.

use super::failures::said;
use super::stories::{Story, name, settings};
use crate::conductor::{Command, Event, Policy, Restored, Settings};
use crate::events::{AbortReport, FromWorker, PartFailure, PartInfo, Record, RunEvent, StepReport, ToWorker};
use crate::ids::{Generation, StateName, Term, WorkerId};
use crate::plan::StateSource;
use std::collections::BTreeMap;

impl Story {
    /// Steps up to `last` of generation `generation`, each with its own milliseconds of computing by worker.
    fn steps(&mut self, generation: u64, steps: std::ops::RangeInclusive<u64>, own: &[(u32, f32)]) {
        for step in steps {
            for (worker, ms) in own {
                let report = StepReport {
                    generation: Generation(generation),
                    name: name(step, generation),
                    phase_ms: BTreeMap::from([("encode".to_owned(), *ms), ("gather".to_owned(), 100.0 - ms)]),
                    ..StepReport::default()
                };
                self.tell(said(*worker, FromWorker::StepDone { report }));
            }
        }
    }

    fn slow(&self) -> Vec<String> {
        let moves = self.announced.iter().filter_map(|event| match event {
            RunEvent::LanesMoving { reason, .. } if reason.contains("slow") => Some(reason.clone()),
            _ => None,
        });
        moves.collect()
    }

    fn abandoned(&self) -> usize {
        let abandoned = |r: &&Record| matches!(r, Record::CheckpointAbandoned { .. });
        self.records.iter().filter(abandoned).count()
    }

    fn aborts(&mut self, worker: u32, generation: u64, step: u64, held: StateName) {
        let report = AbortReport {
            generation: Generation(generation),
            step,
            ..AbortReport::default()
        };
        self.tell(said(worker, FromWorker::Aborted { report }));
        self.close(worker, generation, held);
    }
}

#[test]
fn more_ready_than_there_is_room_for_go_on_from_the_newest_state_with_those_who_hold_it() {
    let two = Settings {
        spawns: false,
        workers_min: 2,
        workers_max: 2,
        ..settings()
    };
    let mut story = Story::under(two, Restored::default());
    story.ready(3, StateName::INITIAL);
    story.ready(4, StateName::INITIAL);
    story.all_formed();
    for worker in [1, 2] {
        story.ready(worker, StateName::INITIAL); // as they came back: there is no room for them
    }
    story.done(3, 6, 1);
    story.done(4, 6, 1);
    story.aborts(3, 1, 6, name(6, 1));
    story.aborts(4, 1, 6, name(6, 1));
    let plan = story.last_plan();
    let members: Vec<WorkerId> = plan.members.iter().map(|m| m.worker).collect();
    assert_eq!((plan.generation, plan.base), (Generation(2), name(6, 1)));
    assert_eq!(
        (members, plan.source),
        (vec![WorkerId(3), WorkerId(4)], StateSource::Peers)
    );
}

#[test]
fn slow_member_gives_lanes_away_and_is_not_evicted() {
    let mut story = Story::two_running();
    story.steps(1, 1..=31, &[(1, 10.0), (2, 30.0)]);
    assert_eq!(story.slow(), Vec::<String>::new(), "a bad moment is forgotten");
    story.steps(1, 32..=34, &[(1, 10.0), (2, 30.0)]);
    assert_eq!(story.slow().len(), 1);
    assert!(story.slow()[0].contains("w2"), "{:?}", story.slow());
    story.close(1, 1, name(34, 1));
    story.close(2, 1, name(34, 1));
    let plan = story.all_formed();
    let lanes: BTreeMap<WorkerId, usize> = (0..2)
        .map(|rank| (plan.members[rank].worker, plan.lanes_of(rank).len()))
        .collect();
    assert_eq!(lanes, BTreeMap::from([(WorkerId(1), 3), (WorkerId(2), 1)]));
    assert_eq!(story.dismissed, Vec::new());
}

#[test]
fn slow_member_of_a_generation_that_was_kept_gives_lanes_away_as_well() {
    let leased = Settings {
        spawns: false,
        policy: Policy {
            outage_max_ms: 10_000,
            ..Policy::default()
        },
        ..settings()
    };
    let formed = Record::GenerationFormed {
        generation: Generation(4),
        term: Term(1),
        base: name(6, 3),
        source: StateSource::Peers,
        members: vec![WorkerId(1), WorkerId(2)],
        lanes: vec![0, 1, 0, 1],
        plan_hash: 0,
    };
    let mut story = Story::under(leased, Restored::from_records(&[formed]));
    for worker in [1, 2] {
        story.tell(Event::WorkerConnected {
            worker: WorkerId(worker),
        });
        let back = FromWorker::Rejoined {
            addr: "a".into(),
            name: name(9, 4),
            inside: Some(Generation(4)),
            left: Generation(3),
        };
        story.tell(said(worker, back));
    }
    assert_eq!(story.conductor.observe().phase, "running");
    story.steps(4, 10..=34, &[(1, 10.0), (2, 30.0)]);
    assert_eq!(story.slow().len(), 1);
}

#[test]
fn worker_that_is_still_starting_is_not_blamed_for_a_step_that_broke_twice() {
    let mut story = Story::two_running();
    story.tell(Event::WorkerConnected { worker: WorkerId(3) });
    for now in [300, 600] {
        story.now = now;
        for worker in [1, 2] {
            story.tell(said(worker, FromWorker::Heartbeat));
        }
    }
    for generation in [1, 2] {
        story.aborts(1, generation, 0, StateName::INITIAL);
        story.aborts(2, generation, 0, StateName::INITIAL);
        story.all_formed();
    }
    let blamed = story.announced.iter().filter_map(|event| match event {
        RunEvent::Blamed { worker, .. } => Some(*worker),
        _ => None,
    });
    assert_eq!(blamed.collect::<Vec<_>>(), vec![None, None]);
    assert_eq!(story.dismissed, Vec::new());
}

/// Two members; their parts of attempt 1 are asked for.
fn saving() -> Story {
    let often = Settings {
        spawns: false,
        workers_min: 2,
        workers_max: 2,
        checkpoint_steps: 4,
        ..settings()
    };
    let mut story = Story::under(often, Restored::default());
    story.ready(1, StateName::INITIAL);
    story.ready(2, StateName::INITIAL);
    story.all_formed();
    story.done(1, 4, 1);
    let asked = |(_, m): &&(WorkerId, ToWorker)| matches!(m, ToWorker::Checkpoint { attempt: 1, .. });
    assert_eq!(story.sent.iter().filter(asked).count(), 2, "{:?}", story.sent);
    story
}

#[test]
fn part_that_failed_counts_only_from_who_owes_it_and_of_the_attempt_under_way() {
    let mut story = saving();
    story.ready(3, StateName::INITIAL);
    let failed = |attempt| FromWorker::PartFailed {
        attempt,
        failure: PartFailure::Store,
        reason: "503".into(),
    };
    story.tell(said(1, failed(7)));
    story.tell(said(3, failed(1)));
    assert_eq!(story.abandoned(), 0);
    story.tell(said(1, failed(1)));
    assert_eq!(story.abandoned(), 1);
    story.tell(said(2, failed(1)));
    assert_eq!(story.abandoned(), 1, "it is over already");
}

#[test]
fn manifest_that_is_told_twice_is_committed_once() {
    let mut story = saving();
    let step = story.sent.iter().find_map(|(_, m)| match m {
        ToWorker::Checkpoint { at_step, .. } => Some(*at_step),
        _ => None,
    });
    let step = step.expect("asked for");
    for worker in [1, 2] {
        let part = PartInfo {
            index: worker - 1,
            key: format!("{worker}"),
            bytes: 1,
            checksum: 0,
        };
        let name = name(step, 1);
        story.tell(said(worker, FromWorker::PartUploaded { attempt: 1, part, name }));
    }
    let mut commits = 0;
    for _ in 0..2 {
        let (attempt, key) = (1, "1/manifest.json".to_owned());
        let commands = story.conductor.step(Event::ManifestWritten { attempt, key }, story.now);
        let commit = |c: &&Command| {
            matches!(
                c,
                Command::Persist {
                    record: Record::CheckpointCommitted { .. }
                }
            )
        };
        commits += commands.iter().filter(commit).count();
    }
    assert_eq!(commits, 1);
}
