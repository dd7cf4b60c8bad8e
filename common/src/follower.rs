//! A worker's brain: what this process may do, given what the coordinator said and what its trainer reports.
//!
//! ```text
//!   Idle ──Form──▶ Forming ──trainer formed──▶ Formed ──Activate──▶ Training ──▶ Closed (= Idle)
//!    ▲                │                           │                     │
//!    └────────────────┴────── closed or aborted, name reported ─────────┘
//! ```
//!
//! Rule G3 is kept here: after [`FromWorker::Closed`] for a generation nothing is applied in it, because the trainer is
//! stopped first and its name is taken from its answer. Rule G5: a trainer applies only under a lease, which is asked for
//! with this worker's own clock. Rule G9: without a coordinator the generation goes on while the lease lasts; an orphan keeps
//! its state, looks for a coordinator with jitter and never invents a generation.

mod orphan;
#[cfg(test)]
mod tests;
mod words;

pub(crate) use orphan::RETRY_MAX_MS;

use crate::conductor::Tick;
use crate::events::{FromWorker, ToWorker};
use crate::exit::Exit;
use crate::ids::{Generation, StateName, Term};
use crate::invariants::{debug_assert_holds, lease_held, open_when_applied, term_fences};
use crate::rules::{Rules, Shipped};
use orphan::Orphan;
use serde::Serialize;
use std::marker::PhantomData;

pub use words::{Command, Event, Settings, TrainerOrder};

#[derive(Clone, Debug, PartialEq, Serialize)]
enum Phase {
    Warming,
    Idle,
    Forming(Generation),
    Formed(Generation),
    Training(Generation),
    /// Stop was ordered; the answer is awaited.
    Stopping(Generation),
    Ended,
}

/// A serialisable picture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    /// Word for the phase.
    pub phase: &'static str,
    /// Generation it is in.
    pub generation: Option<Generation>,
    /// Highest generation it has left.
    pub closed: Generation,
    /// State it holds, as far as reports tell.
    pub name: StateName,
    /// Until when it may apply, and in which generation.
    pub lease: Option<(Generation, Tick)>,
    /// Without a coordinator since then.
    pub orphan_since: Option<Tick>,
    /// It was asked to leave.
    pub draining: bool,
}

/// The brain. See the module's picture. `R` is [`Shipped`] everywhere but in tests of the tests.
#[derive(Debug)]
pub struct Follower<R: Rules = Shipped> {
    rules: PhantomData<R>,
    settings: Settings,
    phase: Phase,
    /// Highest generation closed or left; lower or equal ones are history (rule G6).
    closed: Generation,
    /// Highest reign heard of, and that of the stream at hand (rule G6).
    term: Term,
    stream_term: Term,
    addr: String,
    name: StateName,
    lease: Option<(Generation, Tick)>,
    /// Last attempt at a checkpoint that it was told of.
    attempt: u64,
    /// Leave by then, boundary or not.
    leave_by: Option<Tick>,
    orphan: Option<Orphan>,
}

impl<R: Rules> Default for Follower<R> {
    fn default() -> Self {
        Self::new(Settings::default())
    }
}

impl<R: Rules> Follower<R> {
    /// A follower of a process that has just started.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            rules: PhantomData,
            settings,
            phase: Phase::Warming,
            closed: Generation(0),
            term: Term(0),
            stream_term: Term(0),
            addr: String::new(),
            name: StateName::INITIAL,
            lease: None,
            attempt: 0,
            leave_by: None,
            orphan: None,
        }
    }

    /// Takes one event and says what to do about it. `now` is on this worker's clock, which counts suspended time.
    pub fn step(&mut self, event: Event, now: Tick) -> Vec<Command> {
        if self.phase == Phase::Ended {
            return Vec::new();
        }
        let mut commands = match event {
            Event::TrainerReady { addr, name } => {
                self.phase = Phase::Idle;
                self.addr.clone_from(&addr);
                self.name = name;
                self.tell(FromWorker::Ready { addr, name })
            }
            Event::Welcomed { term } => self.welcomed(term),
            Event::Heard(message) => self.heard(message, now),
            Event::StreamLost => self.stream_lost(now),
            Event::Unreachable => self.try_again(),
            Event::SignalReceived => self.drain(now),
            Event::Noticed { grace_ms } => self.leave_within(grace_ms, now),
            Event::TrainerFormed { generation } => {
                if self.phase != Phase::Forming(generation) {
                    return Vec::new();
                }
                self.phase = Phase::Formed(generation);
                let mut commands = self.tell(FromWorker::Formed { generation });
                commands.extend(self.want_lease(now));
                commands
            }
            Event::Stepped { report } => {
                debug_assert_holds::<R>(|| {
                    open_when_applied(crate::ids::WorkerId(self.settings.worker), self.closed, report.name)
                });
                // That it had not run out only the trainer can tell, at the moment of its APPLY.
                debug_assert_holds::<R>(|| match self.lease.unwrap_or_default() {
                    _ if !self.settings.leases => Ok(()),
                    (leased, until) => lease_held(report.generation, leased, until, 0),
                });
                self.name = report.name;
                self.tell(FromWorker::StepDone { report })
            }
            Event::TrainerStopped {
                generation,
                name,
                cause,
            } => self.trainer_stopped(generation, name, cause),
            Event::Passed(message) => self.tell(message),
            Event::TrainerFailed { exit, message } => {
                let mut commands = self.tell(FromWorker::Failed {
                    exit,
                    message: message.clone(),
                });
                commands.extend(self.exit(exit, &message));
                commands
            }
            Event::HeartbeatDue => {
                let mut commands = self.tell(FromWorker::Heartbeat);
                commands.extend(self.want_lease(now));
                commands
            }
            Event::Ticked => Vec::new(),
        };
        commands.extend(self.check_deadlines(now));
        commands
    }

    /// When [`Event::Ticked`] is wanted next, and why.
    #[must_use]
    pub fn next_deadline(&self) -> Option<(Tick, &'static str)> {
        let leave = self.leave_by.map(|at| (at, "the grace period ends"));
        let orphan = self
            .orphan
            .as_ref()
            .map(|o| (o.since + self.settings.orphan_max_ms, "an orphan gives up"));
        [leave, orphan].into_iter().flatten().min()
    }

    fn check_deadlines(&mut self, now: Tick) -> Vec<Command> {
        if self.phase == Phase::Ended {
            return Vec::new();
        }
        if self.leave_by.is_some_and(|at| at <= now) {
            return self.exit(0, "the grace period is over");
        }
        let given_up = self.settings.orphan_max_ms;
        if self.orphan.as_ref().is_some_and(|o| o.since + given_up <= now) {
            let mut commands = vec![Command::Order(TrainerOrder::EmergencyCopy)];
            commands.extend(self.exit(
                Exit::NoCapacity.code(),
                "no coordinator was found; the state is on local disk",
            ));
            return commands;
        }
        Vec::new()
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
            closed: self.closed,
            name: self.name,
            lease: self.lease,
            orphan_since: self.orphan.as_ref().map(|o| o.since),
            draining: self.leave_by.is_some(),
        }
    }

    fn current(&self) -> Option<Generation> {
        match self.phase {
            Phase::Forming(g) | Phase::Formed(g) | Phase::Training(g) | Phase::Stopping(g) => Some(g),
            Phase::Warming | Phase::Idle | Phase::Ended => None,
        }
    }

    /// Says it now, or when there is somebody to say it to.
    fn tell(&mut self, message: FromWorker) -> Vec<Command> {
        match &mut self.orphan {
            None => vec![Command::Tell(message)],
            Some(orphan) => {
                orphan.keep(message);
                Vec::new()
            }
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

    fn trainer_stopped(&mut self, generation: Generation, name: StateName, cause: Option<String>) -> Vec<Command> {
        self.closed = self.closed.max(generation);
        self.name = name;
        let mut commands = Vec::new();
        if self.current() == Some(generation) {
            self.phase = Phase::Idle;
            if R::clears_lease() && self.lease.take().is_some() {
                commands.push(Command::Lease { generation, until: 0 });
            }
        }
        commands.extend(self.tell(FromWorker::Closed {
            generation,
            name,
            cause,
        }));
        commands
    }

    fn want_lease(&self, now: Tick) -> Option<Command> {
        let generation = self
            .current()
            .filter(|_| self.settings.leases && self.orphan.is_none())?;
        Some(Command::Tell(FromWorker::LeaseWanted { generation, at: now }))
    }

    /// The first signal asks for a boundary, if there is one to wait for; the second does not.
    fn drain(&mut self, now: Tick) -> Vec<Command> {
        if self.leave_by.is_some() || self.settings.grace_ms == 0 {
            return self.exit(0, "asked to end by a signal");
        }
        self.leave_within(self.settings.grace_ms, now)
    }

    /// Leaves in order, once: at a boundary, if there is one to wait for.
    fn leave_within(&mut self, grace_ms: u64, now: Tick) -> Vec<Command> {
        let by = now.saturating_add(grace_ms);
        if let Some(at) = self.leave_by.as_mut() {
            *at = by.min(*at); // a later notice may leave less time
            return Vec::new();
        }
        self.leave_by = Some(by);
        let mut commands = self.tell(FromWorker::Draining { grace_ms });
        // Who holds a state asks, in a generation or between two: nobody else may hold it, or a part of a checkpoint.
        if self.phase == Phase::Warming {
            commands.extend(self.exit(0, "asked to leave before it was ready"));
        }
        commands
    }

    fn heard(&mut self, message: ToWorker, now: Tick) -> Vec<Command> {
        if !R::term_holds(self.term, self.stream_term) {
            return Vec::new();
        }
        match message {
            ToWorker::Form { plan } => {
                let generation = plan.generation;
                // An old plan, or one while another generation is open here: the coordinator closes first, so this is late.
                let fits = R::may_enter(self.closed, generation) && R::term_holds(self.term, plan.term);
                if !fits || self.phase != Phase::Idle {
                    return Vec::new();
                }
                debug_assert_holds::<R>(|| term_fences(self.term, plan.term));
                self.term = self.term.max(plan.term);
                self.stream_term = self.stream_term.max(plan.term);
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
                spare,
                parts_total,
                since,
            } => {
                // An order that comes a second time must not take the place of the next one.
                if attempt <= self.attempt {
                    return Vec::new();
                }
                self.attempt = attempt;
                vec![Command::Order(TrainerOrder::Checkpoint {
                    attempt,
                    at_step,
                    parts,
                    spare,
                    parts_total,
                    since,
                })]
            }
            ToWorker::UploadSpare { attempt, parts } => {
                vec![Command::Order(TrainerOrder::UploadSpare { attempt, parts })]
            }
            ToWorker::Prepare {
                generation,
                lanes,
                from_step,
            } => vec![Command::Order(TrainerOrder::Prime {
                generation,
                lanes,
                from_step,
            })],
            ToWorker::Lease {
                generation,
                asked_at,
                lasts_ms,
            } => self.leased(generation, asked_at.min(now), lasts_ms),
            ToWorker::Finish => self.exit(0, "the run is over, or goes on without this worker"),
        }
    }

    /// A lease counts from when it was asked for. An older answer never shortens a newer one.
    fn leased(&mut self, generation: Generation, asked_at: Tick, lasts_ms: u64) -> Vec<Command> {
        let open = matches!(self.phase, Phase::Formed(g) | Phase::Training(g) | Phase::Stopping(g) if g == generation);
        let until = asked_at.saturating_add(lasts_ms);
        if !open || self.lease.is_some_and(|held| held.0 == generation && held.1 >= until) {
            return Vec::new();
        }
        self.lease = Some((generation, until));
        vec![Command::Lease { generation, until }]
    }

    fn close(&mut self, generation: Generation, after_step: Option<u64>) -> Vec<Command> {
        if self.phase == Phase::Idle && generation <= self.closed {
            // Left before. It was said then, but perhaps not to this leader, or before it knew that this worker is back.
            let (name, cause) = (self.name, None);
            return self.tell(FromWorker::Closed {
                generation,
                name,
                cause,
            });
        }
        if self.current() != Some(generation) {
            return Vec::new();
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
