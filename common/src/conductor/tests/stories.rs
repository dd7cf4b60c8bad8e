//! Single decisions, told event by event.

use crate::conductor::{Command, Conductor, Event, Head, Policy, Restored, Settings};
use crate::events::{FromWorker, Outcome, Record, RunEvent, StepReport, ToWorker};
use crate::ids::{Generation, StateName, Term, WorkerId};
use crate::ledger::Keep;
use crate::plan::{Plan, StateSource};

pub(super) fn settings() -> Settings {
    Settings {
        run: "r".into(),
        term: Term(1),
        lanes: 4,
        total_steps: 100,
        workers_min: 1,
        workers_target: 2,
        workers_max: 4,
        spawns: true,
        failure_budget_ms: 1_000,
        worker_errors_max: 3,
        checkpoint_steps: 0,
        checkpoint_ms: 0,
        keep: Keep {
            last: 0,
            every_steps: 0,
        },
        parts_total: 2,
        seed: 0,
        policy: Policy {
            outage_max_ms: 0,
            ..Policy::default()
        },
    }
}

pub(super) struct Story {
    pub(super) conductor: Conductor,
    pub(super) now: u64,
    pub(super) sent: Vec<(WorkerId, ToWorker)>,
    pub(super) records: Vec<Record>,
    pub(super) dismissed: Vec<WorkerId>,
    spawned: Vec<WorkerId>,
    given: Vec<WorkerId>,
    pub(super) announced: Vec<RunEvent>,
    pub(super) outcome: Option<Outcome>,
}

impl Story {
    pub(super) fn with(restored: Restored) -> Self {
        Self::under(settings(), restored)
    }

    pub(super) fn under(settings: Settings, restored: Restored) -> Self {
        let mut story = Self {
            conductor: Conductor::new(settings, restored),
            now: 0,
            sent: Vec::new(),
            records: Vec::new(),
            dismissed: Vec::new(),
            spawned: Vec::new(),
            given: Vec::new(),
            announced: Vec::new(),
            outcome: None,
        };
        story.tell(Event::Ticked);
        story
    }

    /// A shell whose store answers at once.
    pub(super) fn tell(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for command in self.conductor.step(event, self.now) {
                match command {
                    Command::Persist { record } => {
                        self.records.push(record);
                        events.insert(0, Event::Persisted);
                    }
                    Command::Send { to, message } => {
                        // Whoever is asked to fetch first rows has them at once.
                        if let ToWorker::Prepare { generation, lanes, .. } = message.clone() {
                            let message = FromWorker::Primed { generation, lanes };
                            events.insert(0, Event::Said { worker: to, message });
                        }
                        self.sent.push((to, message));
                    }
                    Command::SpawnWorker { worker } => self.spawned.push(worker),
                    Command::GiveId { worker } => self.given.push(worker),
                    Command::Dismiss { worker, .. } => self.dismissed.push(worker),
                    Command::Announce { event } => self.announced.push(event),
                    Command::End { outcome } => self.outcome = Some(outcome),
                    Command::WriteManifest { .. } | Command::CollectGarbage { .. } => {}
                }
            }
        }
    }

    pub(super) fn ready(&mut self, worker: u32, name: StateName) {
        let worker = WorkerId(worker);
        self.tell(Event::WorkerConnected { worker });
        self.tell(Event::Said {
            worker,
            message: FromWorker::Ready {
                addr: format!("{worker}"),
                name,
            },
        });
    }

    pub(super) fn last_plan(&self) -> Plan {
        let plan = self.sent.iter().rev().find_map(|(_, m)| match m {
            ToWorker::Form { plan } => Some(plan.clone()),
            _ => None,
        });
        plan.expect("a plan was sent")
    }

    pub(super) fn all_formed(&mut self) -> Plan {
        let plan = self.last_plan();
        for member in plan.members.iter() {
            let message = FromWorker::Formed {
                generation: plan.generation,
            };
            self.tell(Event::Said {
                worker: member.worker,
                message,
            });
        }
        plan
    }

    pub(super) fn two_running() -> Self {
        let mut story = Self::with(Restored::default());
        story.ready(1, StateName::INITIAL);
        story.ready(2, StateName::INITIAL);
        story.all_formed();
        story
    }

    pub(super) fn done(&mut self, worker: u32, step: u64, generation: u64) {
        self.done_with(worker, step, generation, Vec::new());
    }

    fn done_with(&mut self, worker: u32, step: u64, generation: u64, state_hashes: Vec<u64>) {
        let name = StateName {
            step,
            applied_gen: Generation(generation),
        };
        let report = StepReport {
            generation: Generation(generation),
            name,
            state_hashes,
            ..StepReport::default()
        };
        self.tell(Event::Said {
            worker: WorkerId(worker),
            message: FromWorker::StepDone { report },
        });
    }

    pub(super) fn close(&mut self, worker: u32, generation: u64, name: StateName) {
        let message = FromWorker::Closed {
            generation: Generation(generation),
            name,
            cause: None,
        };
        self.tell(Event::Said {
            worker: WorkerId(worker),
            message,
        });
    }
}

pub(super) fn name(step: u64, generation: u64) -> StateName {
    StateName {
        step,
        applied_gen: Generation(generation),
    }
}

#[test]
fn plan_is_durable_before_anyone_hears_of_it() {
    let mut conductor: Conductor = Conductor::new(settings(), Restored::default());
    let mut commands = conductor.step(Event::Ticked, 0);
    commands.extend(conductor.step(Event::Persisted, 0)); // the ids that may be given
    for worker in [WorkerId(1), WorkerId(2)] {
        commands.extend(conductor.step(Event::WorkerConnected { worker }, 0));
        let message = FromWorker::Ready {
            addr: "a".into(),
            name: StateName::INITIAL,
        };
        commands.extend(conductor.step(Event::Said { worker, message }, 0));
    }
    assert!(commands.iter().any(|c| matches!(
        c,
        Command::Persist {
            record: Record::GenerationFormed { .. }
        }
    )));
    assert!(
        !commands.iter().any(|c| matches!(c, Command::Send { .. })),
        "nobody may hear of it yet"
    );
    let after = conductor.step(Event::Persisted, 0);
    assert_eq!(after.iter().filter(|c| matches!(c, Command::Send { .. })).count(), 2);
}

#[test]
fn survivor_that_applied_the_step_is_the_truth_and_the_other_heals() {
    let mut story = Story::two_running();
    story.ready(3, StateName::INITIAL);
    story.done(1, 5, 1);
    story.tell(Event::StreamLost { worker: WorkerId(1) });
    story.close(2, 1, name(5, 1));
    let plan = story.last_plan();
    assert_eq!((plan.base, plan.source.clone()), (name(5, 1), StateSource::Peers));
    let healing: Vec<u32> = plan.members.iter().filter(|m| m.heals).map(|m| m.worker.0).collect();
    assert_eq!(healing, vec![3]);
    assert!(
        story.dismissed.contains(&WorkerId(1)),
        "a process whose stream broke must not train on"
    );
}

#[test]
fn lost_member_without_acknowledgement_is_waited_for_until_it_is_proven_gone() {
    let mut story = Story::two_running();
    story.done(1, 5, 1);
    story.tell(Event::StreamLost { worker: WorkerId(1) });
    story.tell(Event::StreamLost { worker: WorkerId(2) });
    story.now += 10_000;
    story.tell(Event::Ticked);
    story.ready(3, StateName::INITIAL);
    assert_eq!(
        story.last_plan().generation,
        Generation(1),
        "both might still train in gen 1"
    );
    for worker in [1, 2] {
        story.tell(Event::WorkerExited {
            worker: WorkerId(worker),
            pid: worker,
            code: None,
            signal: Some(9),
        });
    }
    assert_eq!(story.last_plan().generation, Generation(2));
    assert!(
        story
            .records
            .iter()
            .any(|r| matches!(r, Record::Resumed { manifest: None, .. }))
    );
}

#[test]
fn restart_with_a_checkpoint_goes_on_from_its_manifest() {
    let head = Head {
        key: "3/manifest.json".into(),
        name: name(40, 6),
    };
    let restored = Restored {
        generation: Generation(9),
        head: Some(head),
        ..Restored::default()
    };
    let mut story = Story::with(restored);
    story.ready(11, StateName::INITIAL);
    let plan = story.last_plan();
    assert_eq!((plan.generation, plan.base), (Generation(10), name(40, 6)));
    assert_eq!(
        plan.source,
        StateSource::Manifest {
            key: "3/manifest.json".into()
        }
    );
}

#[test]
fn state_from_before_a_resume_does_not_count_even_when_it_is_further() {
    let head = Head {
        key: "3/manifest.json".into(),
        name: name(40, 6),
    };
    let restored = Restored {
        generation: Generation(9),
        floor: Generation(9),
        head: Some(head),
        ..Restored::default()
    };
    let mut story = Story::with(restored);
    story.ready(11, name(70, 8));
    assert_eq!(story.last_plan().base, name(40, 6));
}

#[test]
fn newcomer_that_fails_before_it_is_ready_ends_itself_and_a_member_that_fails_ends_the_run() {
    let mut story = Story::two_running();
    story.done(1, 5, 1);
    story.tell(Event::WorkerConnected { worker: WorkerId(3) });
    let failed = |worker| Event::Said {
        worker: WorkerId(worker),
        message: FromWorker::Failed {
            exit: 78,
            message: "this machine has no cuda:0".into(),
        },
    };
    story.tell(failed(3));
    assert_eq!(story.outcome, None, "the others train on");
    assert!(story.dismissed.contains(&WorkerId(3)));
    let why = |e: &RunEvent| matches!(e, RunEvent::WorkerLost { reason, .. } if reason.contains("no cuda:0"));
    assert!(story.announced.iter().any(why), "{:?}", story.announced);
    assert_eq!(story.last_plan().generation, Generation(1));
    story.tell(failed(2));
    assert!(matches!(&story.outcome, Some(Outcome::Failed { exit: 78, message }) if message.starts_with("w2: ")));
}

#[test]
fn silent_worker_is_lost_after_the_failure_budget_and_killed() {
    let mut story = Story::two_running();
    story.done(1, 1, 1);
    for _ in 0..5 {
        story.now += 250;
        story.tell(Event::Said {
            worker: WorkerId(1),
            message: FromWorker::Heartbeat,
        });
    }
    assert_eq!(story.dismissed, vec![WorkerId(2)]);
    let close = ToWorker::Close {
        generation: Generation(1),
        after_step: None,
    };
    assert!(story.sent.contains(&(WorkerId(1), close)));
}

#[test]
fn coordinator_that_stood_still_loses_nobody_for_it() {
    let mut story = Story::two_running();
    story.done(1, 1, 1);
    story.now += 60_000;
    story.tell(Event::Ticked);
    assert_eq!(story.dismissed, Vec::new(), "their heartbeats are still in the queue");
    for _ in 0..8 {
        story.now += 250;
        story.tell(Event::Ticked);
    }
    assert_eq!(
        story.dismissed,
        vec![WorkerId(1), WorkerId(2)],
        "silence while we listened counts"
    );
}

#[test]
fn last_step_committed_but_not_recorded_as_the_end_ends_on_resume() {
    let head = Head {
        key: "9/manifest.json".into(),
        name: name(100, 6),
    };
    let story = Story::with(Restored {
        generation: Generation(6),
        head: Some(head),
        ..Restored::default()
    });
    assert!(
        matches!(story.outcome, Some(Outcome::Succeeded { .. })),
        "{:?}",
        story.outcome
    );
}

#[test]
fn stopped_run_whose_last_worker_dies_ends_instead_of_waiting() {
    let mut story = Story::two_running();
    story.done(1, 7, 1);
    story.tell(Event::StopRequested);
    for worker in [1, 2] {
        let worker = WorkerId(worker);
        let (code, signal) = (None, Some(9));
        story.tell(Event::WorkerExited {
            worker,
            pid: 1,
            code,
            signal,
        });
    }
    assert!(
        matches!(story.outcome, Some(Outcome::Interrupted { .. })),
        "{:?}",
        story.outcome
    );
}

#[test]
fn joiner_enters_at_a_boundary_that_all_members_reach() {
    let mut story = Story::two_running();
    story.done(1, 7, 1);
    story.ready(3, StateName::INITIAL);
    let close = ToWorker::Close {
        generation: Generation(1),
        after_step: Some(9),
    };
    assert!(story.sent.contains(&(WorkerId(1), close.clone())) && story.sent.contains(&(WorkerId(2), close)));
    story.close(1, 1, name(9, 1));
    story.close(2, 1, name(9, 1));
    let plan = story.last_plan();
    assert_eq!((plan.base, plan.members.len()), (name(9, 1), 3));
}

#[test]
fn workers_that_die_one_after_the_other_end_the_run_with_a_reason() {
    let mut story = Story::with(Restored::default());
    for _ in 0..10 {
        story.now += 10_000;
        story.tell(Event::Ticked);
        if let Some(worker) = story.spawned.pop() {
            story.tell(Event::WorkerExited {
                worker,
                pid: 1,
                code: Some(1),
                signal: None,
            });
        }
    }
    assert!(
        matches!(story.outcome, Some(Outcome::Failed { exit: 1, .. })),
        "{:?}",
        story.outcome
    );
}

#[test]
fn stop_takes_a_checkpoint_first_and_a_second_stop_does_not_wait() {
    let mut story = Story::two_running();
    story.done(1, 7, 1);
    story.tell(Event::StopRequested);
    assert!(
        story
            .sent
            .iter()
            .any(|(_, m)| matches!(m, ToWorker::Checkpoint { at_step: 9, .. }))
    );
    assert_eq!(story.outcome, None);
    story.tell(Event::StopRequested);
    assert!(matches!(story.outcome, Some(Outcome::Interrupted { .. })));
}

#[test]
fn messages_of_an_old_generation_change_nothing() {
    let mut story = Story::two_running();
    let before = story.conductor.observe();
    story.done(1, 50, 0);
    story.close(2, 0, name(60, 0));
    story.tell(Event::Said {
        worker: WorkerId(99),
        message: FromWorker::Formed {
            generation: Generation(1),
        },
    });
    assert_eq!(story.conductor.observe(), before);
}

/// Members of the last plan that heal.
fn healing(story: &Story) -> Vec<u32> {
    let plan = story.last_plan();
    plan.members.iter().filter(|m| m.heals).map(|m| m.worker.0).collect()
}

#[test]
fn member_whose_state_differs_from_the_majority_heals_and_the_second_time_is_kept_out() {
    let mut story = Story::two_running();
    story.ready(3, StateName::INITIAL);
    (1..=2).for_each(|w| story.close(w, 1, name(2, 1)));
    story.all_formed();
    let mut at = name(2, 2);
    for (generation, expected) in [(2, vec![2]), (3, vec![])] {
        at.step += 2;
        for (worker, hash) in [(1, 7), (2, 8), (3, 7)] {
            story.done_with(worker, at.step, generation, vec![1, hash]);
        }
        at.applied_gen = Generation(generation);
        (1..=3).for_each(|w| story.close(w, generation, at));
        let plan = story.last_plan();
        assert_eq!(plan.generation, Generation(generation + 1));
        assert_eq!((plan.base, &plan.source), (at, &StateSource::Peers));
        assert_eq!(healing(&story), expected, "generation {generation}");
        story.all_formed();
    }
    assert!(story.dismissed.contains(&WorkerId(2)) && story.last_plan().rank_of(WorkerId(2)).is_none());
    // Who healed is a holder like any other.
    assert!(story.outcome.is_none());
}

#[test]
fn states_without_a_majority_all_go_back_and_at_last_the_run_fails() {
    let mut story = Story::two_running();
    for generation in 1..=4 {
        assert!(story.outcome.is_none(), "generation {generation}");
        let step = 3;
        story.done_with(1, step, generation, vec![7]);
        story.done_with(2, step, generation, vec![8]);
        (1..=2).for_each(|w| story.close(w, generation, name(step, generation)));
        if generation < 4 {
            let plan = story.last_plan();
            assert_eq!(
                (plan.base, plan.source.clone()),
                (StateName::INITIAL, StateSource::Seed)
            );
            assert_eq!(healing(&story), [1, 2]);
            let resumed = |r: &&Record| matches!(r, Record::Resumed { .. });
            assert_eq!(
                story.records.iter().filter(resumed).count() as u64,
                generation,
                "names before count no more"
            );
            story.all_formed();
        }
    }
    assert!(matches!(&story.outcome, Some(Outcome::Failed { message, .. }) if message.contains("differ")));
}

#[test]
fn id_that_a_worker_asks_for_is_durable_before_it_is_given_and_no_later_reign_gives_it_again() {
    let mut story = Story::with(Restored::default());
    let before = story.records.len();
    for _ in 0..40 {
        story.tell(Event::IdWanted);
    }
    let given = &story.given;
    assert_eq!(given.len(), 40);
    assert!(given.windows(2).all(|w| w[0] < w[1]), "{given:?}");
    assert!(story.spawned.iter().all(|spawned| !given.contains(spawned)));
    let named: Vec<WorkerId> = story.records[before..]
        .iter()
        .filter_map(|record| match record {
            Record::WorkersNamed { upto } => Some(*upto),
            _ => None,
        })
        .collect();
    assert!(named.last() >= given.last(), "{named:?}");
    // The next reign knows the records only.
    let mut later = Story::with(Restored::from_records(&story.records));
    later.tell(Event::IdWanted);
    assert!(later.given[0] > given[39], "{:?}", later.given);
}
