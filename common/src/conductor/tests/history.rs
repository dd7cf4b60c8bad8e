//! Any history whatever: the brain takes it without a panic, and what it makes durable is a run that reads back as it stands.

use super::stories::settings;
use crate::conductor::{Command, Conductor, Event, Policy, Restored, Settings, View};
use crate::events::{AbortReport, FromWorker, NotFinite, PartFailure, PartInfo, Record, StepReport, ToWorker};
use crate::ids::{Generation, StateName, Term, WorkerId};
use crate::invariants::{Checked, InvariantId, durable_first, ensure, generations_grow, one_attempt};
use crate::quarantine::{ReadFault, RowRange};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use std::collections::{BTreeSet, VecDeque};

/// What happens next, in numbers that are taken relative to where the brain stands.
#[derive(Clone, Copy, Debug)]
struct Turn {
    what: u8,
    worker: u32,
    number: u64,
    flag: bool,
    wait: u64,
}

fn turns(most: usize) -> impl Strategy<Value = Vec<Turn>> {
    let number = prop_oneof![8 => 0u64..12, 1 => Just(u64::MAX), 1 => any::<u64>()];
    let wait = prop_oneof![6 => 0u64..400, 1 => 0u64..200_000];
    let turn = (0u8..30, 1u32..6, number, any::<bool>(), wait);
    let turn = turn.prop_map(|(what, worker, number, flag, wait)| Turn {
        what,
        worker,
        number,
        flag,
        wait,
    });
    proptest::collection::vec(turn, 0..most)
}

/// The shell's own book: what was asked to be made durable, and how much of it is.
struct Shell {
    brain: Conductor,
    settings: Settings,
    now: u64,
    records: Vec<Record>,
    durable: usize,
    unanswered: VecDeque<()>,
    formed: BTreeSet<Generation>,
    over: bool,
}

impl Shell {
    fn new(settings: Settings) -> Self {
        Self {
            brain: Conductor::new(settings.clone(), Restored::default()),
            settings,
            now: 0,
            records: Vec::new(),
            durable: 0,
            unanswered: VecDeque::new(),
            formed: BTreeSet::new(),
            over: false,
        }
    }

    fn durable_generation(&self) -> Generation {
        let generation = |record: &Record| match record {
            Record::GenerationFormed { generation, .. } => Some(*generation),
            _ => None,
        };
        self.records[..self.durable]
            .iter()
            .rev()
            .find_map(generation)
            .unwrap_or_default()
    }

    fn tell(&mut self, event: Event) -> Result<(), TestCaseError> {
        for command in self.brain.step(event, self.now) {
            match command {
                Command::Persist { record } => {
                    self.takes(&record)?;
                    self.records.push(record);
                    self.unanswered.push_back(());
                }
                Command::Send { message, .. } => {
                    let spoken_of = match &message {
                        ToWorker::Form { plan } => Some(plan.generation),
                        ToWorker::Activate { generation } => Some(*generation),
                        _ => None,
                    };
                    if let Some(generation) = spoken_of {
                        holds(durable_first(generation, self.durable_generation()))?;
                    }
                }
                Command::End { .. } => self.over = true,
                _ => {}
            }
        }
        let due = self.brain.next_deadline();
        prop_assert_eq!(due, self.brain.next_deadline(), "asking changes nothing");
        Ok(())
    }

    /// The plain reference: each record follows on those before it.
    fn takes(&mut self, record: &Record) -> Result<(), TestCaseError> {
        let attempts = |records: &[Record]| {
            let opened = |r: &Record| match r {
                Record::CheckpointOpened { attempt, .. } => Some(*attempt),
                _ => None,
            };
            records.iter().filter_map(opened).collect::<Vec<_>>()
        };
        let ended = |attempt: u64| {
            let ends = |r: &&Record| match r {
                Record::CheckpointCommitted { attempt: a, .. } | Record::CheckpointAbandoned { attempt: a, .. } => {
                    *a == attempt
                }
                _ => false,
            };
            self.records.iter().filter(ends).count()
        };
        match record {
            Record::GenerationFormed {
                generation,
                members,
                lanes,
                ..
            } => {
                let last = self.formed.last().copied().unwrap_or_default();
                holds(generations_grow(last, *generation))?;
                prop_assert_eq!(generation.0, last.0 + 1);
                prop_assert_eq!(lanes.len(), self.settings.lanes as usize);
                prop_assert!(lanes.iter().all(|owner| (*owner as usize) < members.len()));
                prop_assert!(members.len() >= self.settings.workers_min as usize);
                prop_assert!(members.len() <= self.settings.workers_max as usize);
                self.formed.insert(*generation);
            }
            Record::CheckpointOpened { attempt, .. } => {
                let all = attempts(&self.records);
                let last = all.last().copied().unwrap_or(0);
                holds(one_attempt(last, *attempt, all.iter().any(|a| ended(*a) == 0)))?;
            }
            Record::CheckpointCommitted { attempt, .. } | Record::CheckpointAbandoned { attempt, .. } => {
                prop_assert!(attempts(&self.records).contains(attempt));
                prop_assert_eq!(ended(*attempt), 0, "attempt {} ends twice", attempt);
            }
            Record::Quarantined { entry } => {
                let before = self.records.iter().filter(|r| matches!(r, Record::Quarantined { .. }));
                prop_assert_eq!(entry.revision, before.count() as u64 + 1);
            }
            _ => {}
        }
        Ok(())
    }

    fn persisted(&mut self) -> Result<(), TestCaseError> {
        if self.unanswered.pop_front().is_some() {
            self.durable += 1;
            self.tell(Event::Persisted)?;
        }
        Ok(())
    }

    /// The process dies; what was under way was done or not. The next reads the records and stands where they say.
    fn restart(&mut self, done: bool) -> Result<(), TestCaseError> {
        if done && self.durable < self.records.len() {
            self.durable += 1;
        }
        self.records.truncate(self.durable);
        self.unanswered.clear();
        self.formed = self.records.iter().filter_map(generation_of).collect();
        self.settings.term = Term(self.settings.term.0 + 1);
        let restored = Restored::from_records(&self.records);
        // As the shell does before it asks the brain anything: attempts of a reign before are given up.
        for attempt in &restored.open_attempts {
            self.records.push(Record::CheckpointAbandoned {
                attempt: *attempt,
                reason: "the coordinator ended".into(),
            });
        }
        self.durable = self.records.len();
        self.over = restored.finished.is_some();
        self.brain = Conductor::new(self.settings.clone(), restored);
        self.now = 0;
        self.agrees(&self.brain.observe())
    }

    /// The brain stands where its records say.
    fn agrees(&self, view: &View) -> Result<(), TestCaseError> {
        let restored = Restored::from_records(&self.records[..self.durable]);
        if self.durable == self.records.len() {
            prop_assert_eq!(view.generation, restored.generation);
            prop_assert_eq!(view.quarantine, restored.quarantine.last());
            prop_assert_eq!(view.head.as_ref(), restored.head.as_ref());
        }
        holds(ensure(
            InvariantId::GenerationsGrow,
            view.generation >= restored.generation,
            || format!("{} behind {}", view.generation, restored.generation),
        ))
    }

    fn name(&self, turn: Turn) -> StateName {
        let view = self.brain.observe();
        let step = match turn.number {
            small if small < 12 => (view.steps_done + small).saturating_sub(3),
            wild => wild,
        };
        let applied_gen = Generation(view.generation.0.saturating_sub(u64::from(turn.flag)));
        if step == 0 {
            StateName::INITIAL
        } else {
            StateName { step, applied_gen }
        }
    }

    fn turn(&mut self, turn: Turn) -> Result<(), TestCaseError> {
        self.now = self.now.saturating_add(turn.wait);
        let worker = WorkerId(turn.worker);
        let view = self.brain.observe();
        let generation = match turn.number {
            wild if wild > 100 => Generation(wild),
            _ => Generation(view.generation.0.saturating_sub(u64::from(turn.number == 11))),
        };
        let name = self.name(turn);
        let attempt = turn.number.min(9);
        let addr = format!("{worker}");
        let said = |message| Event::Said { worker, message };
        let event = match turn.what {
            0 => return self.restart(turn.flag),
            1..=4 => return self.persisted(),
            5 | 6 => Event::WorkerConnected { worker },
            7..=9 => said(FromWorker::Ready { addr, name }),
            10..=12 => said(FromWorker::Formed { generation }),
            13 => Event::StreamLost { worker },
            14..=17 => {
                let state_hashes = if turn.flag { vec![turn.number] } else { Vec::new() };
                let report = StepReport {
                    generation,
                    name: StateName {
                        step: name.step,
                        applied_gen: generation,
                    },
                    loss: (turn.number != 3).then_some(1.0),
                    state_hashes,
                    ..StepReport::default()
                };
                said(FromWorker::StepDone { report })
            }
            18 => said(FromWorker::Closed {
                generation,
                name,
                cause: turn.flag.then(|| "x".into()),
            }),
            19 => said(FromWorker::PartUploaded {
                attempt,
                part: PartInfo {
                    index: turn.worker - 1,
                    key: format!("{attempt}/{}", turn.worker),
                    bytes: 1,
                    checksum: 0,
                },
                name,
            }),
            20 => Event::ManifestWritten {
                attempt,
                key: format!("{attempt}/manifest.json"),
            },
            21 => said(FromWorker::PartFailed {
                attempt,
                failure: if turn.flag {
                    PartFailure::Late
                } else {
                    PartFailure::Store
                },
                reason: "x".into(),
            }),
            22 => said(FromWorker::Draining { grace_ms: turn.number }),
            23 => said(FromWorker::Aborted {
                report: AbortReport {
                    generation,
                    step: name.step,
                    entered: turn.worker,
                    lost_links: vec![WorkerId(turn.number as u32 % 6)],
                    not_finite: turn.flag.then(|| NotFinite {
                        lanes: vec![turn.number as u32 % 9],
                        sum: turn.number == 5,
                    }),
                    ..AbortReport::default()
                },
            }),
            24 => said(FromWorker::LaneBlocked {
                generation,
                step: name.step,
                lane: turn.number as u32,
                rows: RowRange {
                    source: 0,
                    shard: turn.worker,
                    from: 0,
                    until: turn.number as u32 % 3,
                },
                fault: if turn.flag { ReadFault::Way } else { ReadFault::Shard },
                error: "503".into(),
            }),
            25 => said(FromWorker::Rejoined {
                addr,
                name,
                inside: turn.flag.then_some(generation),
                left: generation,
            }),
            26 => said(FromWorker::Primed {
                generation,
                lanes: (0..turn.number as u32 % 5).collect(),
            }),
            27 => Event::WorkerExited {
                worker,
                pid: 1,
                code: None,
                signal: Some(9),
            },
            28 if turn.number == 7 => Event::StopRequested,
            28 => Event::ManifestFailed {
                attempt,
                reason: "x".into(),
            },
            _ => Event::Ticked,
        };
        self.tell(event)?;
        self.agrees(&self.brain.observe())
    }
}

fn generation_of(record: &Record) -> Option<Generation> {
    match record {
        Record::GenerationFormed { generation, .. } => Some(*generation),
        _ => None,
    }
}

fn holds(checked: Checked) -> Result<(), TestCaseError> {
    checked.map_err(|violation| TestCaseError::fail(violation.to_string()))
}

/// One machine or a fleet, with leases or without, one worker wanted at least or two.
fn kinds() -> impl Strategy<Value = Settings> {
    (any::<bool>(), any::<bool>(), 1u32..3, 0u64..4).prop_map(|(spawns, leased, workers_min, checkpoint_steps)| {
        Settings {
            spawns,
            workers_min,
            workers_target: 3,
            total_steps: 12,
            checkpoint_steps,
            worker_errors_max: 100,
            policy: Policy {
                outage_max_ms: if leased { 5_000 } else { 0 },
                ..Policy::default()
            },
            ..settings()
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn conductor_any_history_makes_a_run_durable_that_reads_back_as_it_stands(kind in kinds(), history in turns(160)) {
        let mut shell = Shell::new(kind);
        shell.tell(Event::Ticked)?;
        for turn in history {
            shell.turn(turn)?;
        }
    }
}

#[test]
fn conductor_that_is_asked_twice_for_the_same_decides_the_same() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..50 {
        let history = turns(80).new_tree(&mut runner).expect("a history").current();
        let decide = || {
            let mut shell = Shell::new(settings());
            let told = |turn: &Turn| {
                let _ = shell.turn(*turn);
                shell.brain.observe()
            };
            history.iter().map(told).collect::<Vec<_>>()
        };
        assert_eq!(decide(), decide());
    }
}
