//! Any history whatever against a plain reference: which generation is open, which are over, and what may follow from that.

use super::plan;
use crate::events::{FromWorker, StepReport, ToWorker};
use crate::follower::{Command, Event, Follower, Settings, TrainerOrder};
use crate::ids::{Generation, StateName, Term};
use crate::plan::Plan;
use proptest::prelude::*;

/// What happens next; generations and reigns are small, so that they meet.
#[derive(Clone, Copy, Debug)]
struct Turn {
    what: u8,
    generation: u64,
    term: u64,
    number: u64,
    flag: bool,
    wait: u64,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let number = prop_oneof![6 => 0u64..9, 1 => any::<u64>()];
    let wait = prop_oneof![6 => 0u64..300, 1 => 0u64..40_000];
    let turn = (0u8..20, 1u64..6, 1u64..4, number, any::<bool>(), wait);
    let turn = turn.prop_map(|(what, generation, term, number, flag, wait)| Turn {
        what,
        generation,
        term,
        number,
        flag,
        wait,
    });
    proptest::collection::vec(turn, 0..120)
}

/// The plain reference: what this worker was told and said, and nothing else.
#[derive(Debug, Default)]
struct Book {
    ready: bool,
    /// Ordered to form, and how far that came: 0 forms, 1 formed, 2 trains.
    open: Option<(Generation, u8)>,
    left: Generation,
    heard_of: Term,
    orphan: bool,
    attempt: u64,
    lease: Option<(Generation, u64)>,
    over: bool,
}

impl Book {
    fn event(&self, turn: Turn) -> Event {
        let generation = Generation(turn.generation);
        let name = StateName {
            step: turn.number,
            applied_gen: generation,
        };
        // The trainer answers for the generation that it was ordered into; all else comes from anywhere.
        let (trained, phase) = self.open.unwrap_or_default();
        match turn.what {
            0 if !self.ready => Event::TrainerReady {
                addr: "a".into(),
                name: StateName::INITIAL,
            },
            1..=3 => Event::Heard(ToWorker::Form {
                plan: Plan {
                    term: Term(turn.term),
                    ..plan(turn.generation)
                },
            }),
            4 | 5 => Event::TrainerFormed { generation: trained },
            6 | 7 => Event::Heard(ToWorker::Activate { generation }),
            8 | 9 => Event::Heard(ToWorker::Close {
                generation,
                after_step: turn.flag.then_some(turn.number),
            }),
            10 | 11 if self.open.is_some() => Event::TrainerStopped {
                generation: trained,
                name,
                cause: turn.flag.then(|| "x".into()),
            },
            12 if phase == 2 => Event::Stepped {
                report: StepReport {
                    generation: trained,
                    name: StateName {
                        step: turn.number,
                        applied_gen: trained,
                    },
                    ..StepReport::default()
                },
            },
            13 => Event::StreamLost,
            14 => Event::Welcomed { term: Term(turn.term) },
            15 => Event::Unreachable,
            16 => Event::Heard(ToWorker::Lease {
                generation,
                asked_at: turn.number,
                lasts_ms: turn.number.max(1),
            }),
            17 => Event::Heard(ToWorker::Checkpoint {
                attempt: turn.number,
                at_step: 9,
                parts: vec![0],
                spare: Vec::new(),
                parts_total: 1,
                since: 0,
            }),
            18 if turn.number == 7 => Event::SignalReceived,
            18 => Event::HeartbeatDue,
            _ => Event::Ticked,
        }
    }

    /// What is known before the brain answers.
    fn hears(&mut self, event: &Event) {
        match event {
            Event::TrainerReady { .. } => self.ready = true,
            Event::TrainerFormed { generation } => {
                self.open = self
                    .open
                    .map(|(g, at)| if g == *generation { (g, at.max(1)) } else { (g, at) });
            }
            Event::TrainerStopped { generation, .. } => {
                self.left = self.left.max(*generation);
                self.open = None;
                self.lease = None;
            }
            Event::StreamLost => self.orphan = true,
            Event::Welcomed { term } if *term >= self.heard_of => {
                self.heard_of = *term;
                self.orphan = false;
            }
            _ => {}
        }
    }

    /// What the brain asks for may be asked for.
    fn judges(&mut self, event: &Event, command: &Command) -> Result<(), TestCaseError> {
        prop_assert!(!self.over, "{command:?} after the end");
        match command {
            Command::Order(TrainerOrder::Form { plan }) => {
                prop_assert!(self.ready && self.open.is_none(), "{self:?}");
                prop_assert!(plan.generation > self.left, "{} was left: {self:?}", plan.generation);
                prop_assert!(plan.term >= self.heard_of, "{} is over: {self:?}", plan.term);
                self.heard_of = plan.term;
                self.open = Some((plan.generation, 0));
            }
            Command::Order(TrainerOrder::Run { generation }) => {
                prop_assert_eq!(self.open, Some((*generation, 1)), "only who has formed trains");
                self.open = Some((*generation, 2));
            }
            Command::Order(TrainerOrder::StopAfter { generation, .. }) | Command::AbortCollective { generation } => {
                prop_assert_eq!(self.open.map(|(g, _)| g), Some(*generation));
            }
            Command::Order(TrainerOrder::Checkpoint { attempt, .. }) => {
                prop_assert!(*attempt > self.attempt, "an order twice");
                self.attempt = *attempt;
            }
            Command::Lease { generation, until: 0 } => {
                prop_assert!(*generation <= self.left, "taken away from who has left");
            }
            Command::Lease { generation, until } => {
                prop_assert_eq!(self.open.map(|(g, _)| g), Some(*generation), "another generation's");
                let grew = self.lease.is_none_or(|(_, before)| before < *until);
                prop_assert!(grew, "a lease never becomes shorter: {self:?}");
                self.lease = Some((*generation, *until));
            }
            Command::Tell(FromWorker::Closed { generation, .. }) => {
                prop_assert!(*generation <= self.left, "said before it was so");
            }
            Command::Tell(FromWorker::Rejoined { inside, left, .. }) => {
                prop_assert_eq!(*inside, self.open.map(|(g, _)| g));
                prop_assert_eq!(*left, self.left);
            }
            Command::Tell(message) => {
                let last_words = matches!(message, FromWorker::Failed { .. });
                prop_assert!(!self.orphan || last_words, "nobody is there to hear {message:?}");
            }
            Command::Reconnect { .. } => prop_assert!(self.orphan, "{event:?}"),
            Command::Exit { .. } => self.over = true,
            Command::Order(_) => {}
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn follower_any_history_matches_the_plain_reference(history in turns(), leases: bool, keeps: bool) {
        let settings = Settings {
            worker: 1,
            seed: 1,
            leases,
            orphan_max_ms: if keeps { 30_000 } else { 0 },
            grace_ms: 5_000,
        };
        let mut follower: Follower = Follower::new(settings);
        let (mut book, mut now) = (Book::default(), 0u64);
        for turn in history {
            now += turn.wait;
            let event = book.event(turn);
            // A trainer that has no lease applies nothing, so it reports nothing (rule G5).
            if matches!(event, Event::Stepped { .. }) && leases && book.lease.is_none() {
                continue;
            }
            book.hears(&event);
            for command in follower.step(event.clone(), now) {
                book.judges(&event, &command)?;
            }
            let view = follower.observe();
            if !book.over {
                prop_assert_eq!(view.generation, book.open.map(|(g, _)| g), "{:?}", event);
                prop_assert_eq!(view.closed, book.left);
                prop_assert_eq!(view.orphan_since.is_some(), book.orphan);
            }
            prop_assert_eq!(follower.next_deadline(), follower.next_deadline());
        }
    }
}
