//! A worker's brain: what this process may do, given what the coordinator said and what its trainer reports.
//!
//! ```text
//!   Idle ──Form──▶ Forming ──trainer formed──▶ Formed ──Activate──▶ Training ──▶ Closed (= Idle)
//!    ▲                │                           │                     │
//!    └────────────────┴────── closed or aborted, name reported ─────────┘
//! ```
//!
//! Rule G3 is kept here: after [`FromWorker::Closed`] for a generation nothing is applied in it, because the trainer is
//! stopped first and its name is taken from its answer.

use crate::events::{FromWorker, StepReport, ToWorker};
use crate::ids::{Generation, StateName};
use crate::plan::Plan;
use crate::rules::{Rules, Shipped};
use serde::Serialize;
use std::marker::PhantomData;

/// What the trainer thread is told. It answers with [`Event`]s, and always ends a `Form` or `Run` with `TrainerStopped` or
/// `TrainerFormed`.
#[derive(Clone, Debug, PartialEq)]
pub enum TrainerOrder {
    /// Take the base state, serve those who heal, connect the ring.
    Form {
        /// The generation.
        plan: Plan,
    },
    /// Make steps until told otherwise or until the run's last.
    Run {
        /// The generation.
        generation: Generation,
    },
    /// Stop when this many steps are applied; at once if they already are.
    StopAfter {
        /// The generation.
        generation: Generation,
        /// Count of applied steps.
        step: u64,
    },
    /// Copy and upload these parts when exactly `at_step` steps are applied.
    Checkpoint {
        /// The attempt.
        attempt: u64,
        /// Count of applied steps.
        at_step: u64,
        /// Parts to copy.
        parts: Vec<u32>,
        /// Parts in all.
        parts_total: u32,
    },
    /// End the thread.
    Quit,
}

/// What the shell shall do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Queue an order for the trainer thread; it looks between steps.
    Order(TrainerOrder),
    /// Abort the collective of this generation from outside: sockets are shut, the trainer stops by itself.
    AbortCollective {
        /// The generation.
        generation: Generation,
    },
    /// Send to the coordinator.
    Tell(FromWorker),
    /// Leave the process with this exit code.
    Exit {
        /// See [`crate::exit::Exit`].
        code: u8,
        /// Why.
        reason: String,
    },
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The trainer thread is warm.
    TrainerReady {
        /// Where peers reach this worker.
        addr: String,
        /// State it holds.
        name: StateName,
    },
    /// The coordinator said something.
    Heard(ToWorker),
    /// The stream to the coordinator is lost.
    StreamLost,
    /// The trainer holds the base state and the ring is connected.
    TrainerFormed {
        /// The generation.
        generation: Generation,
    },
    /// The trainer applied a step.
    Stepped {
        /// What happened.
        report: StepReport,
    },
    /// The trainer left the generation, clean.
    TrainerStopped {
        /// The generation.
        generation: Generation,
        /// State it holds.
        name: StateName,
        /// Why, when it was not asked to.
        cause: Option<String>,
    },
    /// Something to pass on as it is: parts of a checkpoint.
    Passed(FromWorker),
    /// The trainer cannot go on.
    TrainerFailed {
        /// See [`crate::exit::Exit`].
        exit: u8,
        /// One sentence for people.
        message: String,
    },
    /// SIGTERM or Ctrl-C reached this process.
    SignalReceived,
    /// It is time for a heartbeat.
    HeartbeatDue,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
enum Phase {
    Warming,
    Idle,
    Forming(Generation),
    Formed(Generation),
    Training(Generation),
    /// Stop was ordered; the answer is awaited.
    Stopping(Generation),
    /// A newer plan waits for the trainer to leave the old generation.
    Ended,
}

/// A serialisable picture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    /// Word for the phase.
    pub phase: &'static str,
    /// Generation it is in.
    pub generation: Option<Generation>,
}

/// The brain. See the module's picture.
#[derive(Debug)]
pub struct Follower<R: Rules = Shipped> {
    rules: PhantomData<R>,
    phase: Phase,
    /// Highest generation closed or left; lower or equal ones are history (rule G6).
    closed: Generation,
}

impl<R: Rules> Default for Follower<R> {
    fn default() -> Self {
        Self {
            rules: PhantomData,
            phase: Phase::Warming,
            closed: Generation(0),
        }
    }
}

impl<R: Rules> Follower<R> {
    /// Takes one event and says what to do about it.
    pub fn step(&mut self, event: Event) -> Vec<Command> {
        if self.phase == Phase::Ended {
            return Vec::new();
        }
        match event {
            Event::TrainerReady { addr, name } => {
                self.phase = Phase::Idle;
                vec![Command::Tell(FromWorker::Ready { addr, name })]
            }
            Event::Heard(message) => self.heard(message),
            // Without a coordinator nobody renews our right to train; leave and be started again (rule G9, simplest form).
            Event::StreamLost => self.exit(crate::exit::Exit::Unavailable.code(), "the coordinator is gone"),
            Event::SignalReceived => self.exit(0, "asked to end by a signal"),
            Event::TrainerFormed { generation } => {
                if self.phase != Phase::Forming(generation) {
                    return Vec::new();
                }
                self.phase = Phase::Formed(generation);
                vec![Command::Tell(FromWorker::Formed { generation })]
            }
            Event::Stepped { report } => vec![Command::Tell(FromWorker::StepDone { report })],
            Event::TrainerStopped {
                generation,
                name,
                cause,
            } => {
                self.closed = self.closed.max(generation);
                if self.current() == Some(generation) {
                    self.phase = Phase::Idle;
                }
                vec![Command::Tell(FromWorker::Closed {
                    generation,
                    name,
                    cause,
                })]
            }
            Event::Passed(message) => vec![Command::Tell(message)],
            Event::TrainerFailed { exit, message } => {
                let told = Command::Tell(FromWorker::Failed {
                    exit,
                    message: message.clone(),
                });
                let mut commands = vec![told];
                commands.extend(self.exit(exit, &message));
                commands
            }
            Event::HeartbeatDue => vec![Command::Tell(FromWorker::Heartbeat)],
        }
    }

    /// What it looks like from outside.
    #[must_use]
    pub fn observe(&self) -> View {
        let phase = match self.phase {
            Phase::Warming => "warming",
            Phase::Idle => "idle",
            Phase::Forming(_) => "forming",
            Phase::Formed(_) => "formed",
            Phase::Training(_) => "training",
            Phase::Stopping(_) => "stopping",
            Phase::Ended => "ended",
        };
        View {
            phase,
            generation: self.current(),
        }
    }

    fn current(&self) -> Option<Generation> {
        match self.phase {
            Phase::Forming(g) | Phase::Formed(g) | Phase::Training(g) | Phase::Stopping(g) => Some(g),
            Phase::Warming | Phase::Idle | Phase::Ended => None,
        }
    }

    fn exit(&mut self, code: u8, reason: &str) -> Vec<Command> {
        let mut commands = Vec::new();
        if let Some(generation) = self.current() {
            commands.push(Command::AbortCollective { generation });
        }
        commands.push(Command::Order(TrainerOrder::Quit));
        commands.push(Command::Exit {
            code,
            reason: reason.into(),
        });
        self.phase = Phase::Ended;
        commands
    }

    fn heard(&mut self, message: ToWorker) -> Vec<Command> {
        match message {
            ToWorker::Form { plan } => {
                let generation = plan.generation;
                // An old plan, or one while another generation is open here: the coordinator closes first, so this is late.
                if !R::may_enter(self.closed, generation) || self.phase != Phase::Idle {
                    return Vec::new();
                }
                self.phase = Phase::Forming(generation);
                vec![Command::Order(TrainerOrder::Form { plan })]
            }
            ToWorker::Activate { generation } => {
                if self.phase != Phase::Formed(generation) {
                    return Vec::new();
                }
                self.phase = Phase::Training(generation);
                vec![Command::Order(TrainerOrder::Run { generation })]
            }
            ToWorker::Close { generation, after_step } => self.close(generation, after_step),
            ToWorker::Checkpoint {
                attempt,
                at_step,
                parts,
                parts_total,
            } => {
                vec![Command::Order(TrainerOrder::Checkpoint {
                    attempt,
                    at_step,
                    parts,
                    parts_total,
                })]
            }
            ToWorker::Finish => self.exit(0, "the run is over"),
        }
    }

    fn close(&mut self, generation: Generation, after_step: Option<u64>) -> Vec<Command> {
        if self.current() != Some(generation) {
            return Vec::new(); // closed before: its name was reported then
        }
        let training = matches!(self.phase, Phase::Training(_) | Phase::Stopping(_));
        self.phase = Phase::Stopping(generation);
        match after_step {
            Some(step) if training => vec![Command::Order(TrainerOrder::StopAfter { generation, step })],
            // Not training, or no time for a boundary: whatever the trainer waits for is cut off.
            _ => vec![
                Command::Order(TrainerOrder::StopAfter { generation, step: 0 }),
                Command::AbortCollective { generation },
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Term, WorkerId};
    use crate::plan::{Member, StateSource};

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
            }],
            lanes: vec![0],
        }
    }

    fn training(generation: u64) -> Follower {
        let mut follower: Follower = Follower::default();
        follower.step(Event::TrainerReady {
            addr: "a".into(),
            name: StateName::INITIAL,
        });
        follower.step(Event::Heard(ToWorker::Form { plan: plan(generation) }));
        follower.step(Event::TrainerFormed {
            generation: Generation(generation),
        });
        let run = follower.step(Event::Heard(ToWorker::Activate {
            generation: Generation(generation),
        }));
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
        follower.step(stopped);
        assert!(follower.step(Event::Heard(ToWorker::Form { plan: plan(3) })).is_empty());
        assert!(
            follower
                .step(Event::Heard(ToWorker::Activate {
                    generation: Generation(3)
                }))
                .is_empty()
        );
        assert_eq!(follower.step(Event::Heard(ToWorker::Form { plan: plan(4) })).len(), 1);
    }

    #[test]
    fn close_without_a_boundary_stops_the_trainer_and_cuts_the_collective() {
        let mut follower = training(1);
        let commands = follower.step(Event::Heard(ToWorker::Close {
            generation: Generation(1),
            after_step: None,
        }));
        assert!(commands.contains(&Command::AbortCollective {
            generation: Generation(1)
        }));
        assert_eq!(follower.observe().phase, "stopping");
    }

    #[test]
    fn planned_close_waits_for_the_boundary_and_a_sudden_one_overrides_it() {
        let mut follower = training(1);
        let planned = follower.step(Event::Heard(ToWorker::Close {
            generation: Generation(1),
            after_step: Some(9),
        }));
        assert_eq!(
            planned,
            vec![Command::Order(TrainerOrder::StopAfter {
                generation: Generation(1),
                step: 9
            })]
        );
        let sudden = follower.step(Event::Heard(ToWorker::Close {
            generation: Generation(1),
            after_step: None,
        }));
        assert!(sudden.contains(&Command::AbortCollective {
            generation: Generation(1)
        }));
    }

    #[test]
    fn lost_coordinator_ends_the_worker() {
        let mut follower = training(1);
        let commands = follower.step(Event::StreamLost);
        assert!(matches!(commands.last(), Some(Command::Exit { code: 5, .. })));
        assert!(follower.step(Event::HeartbeatDue).is_empty());
    }
}
