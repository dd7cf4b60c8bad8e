//! The coordinator's brain: who is a member, which generation trains from which state, when a checkpoint is taken.
//!
//! ```text
//!            joined, lost, closed, done ...                      persist, send, spawn, dismiss ...
//!   shell ───────────── Event ──────────────▶ Conductor::step ──────────────── Command ─────────────▶ shell
//!
//!   Waiting ──enough ready──▶ Persisting ──durable──▶ Forming ──all formed──▶ Running ──all trained──▶ Ended
//!      ▲                          │                      │                       │
//!      └──────────────────────── Closing ◀── a member lost, aborted or joining ──┘
//! ```
//!
//! Total: no input makes it panic, no input is an error. A message of a generation that is over is ignored (rule G6).

mod blocked;
mod checkpoint;
mod divergence;
mod forming;
mod generation;
mod keep;
mod lease;
mod moves;
mod seats;
#[cfg(test)]
mod tests;
mod trouble;
mod words;

use crate::divergence::StateWatch;
use crate::events::{FromWorker, Outcome, PartFailure, Record, RunEvent, StepReport, ToWorker};
use crate::ids::{Generation, StateName, WorkerId};
use crate::ledger::Ledger;
use crate::plan::Plan;
use crate::quarantine::ReadFault;
use crate::rules::{Rules, Shipped};
use keep::Kept;
use lease::LeaseBook;
use moves::Moves;
use seats::Seats;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::marker::PhantomData;
use trouble::Trouble;

pub use words::{Command, Event, Head, OpenGeneration, Policy, Restored, Settings, Tick, View};

/// Where the conductor stands.
#[derive(Clone, Debug, PartialEq)]
enum Phase {
    /// Not enough workers.
    Waiting,
    /// Members of `plan` were asked to close; `awaiting` have not answered.
    Closing {
        plan: Plan,
        awaiting: BTreeSet<WorkerId>,
        acknowledged: bool,
        /// At a boundary, because lanes move.
        planned: bool,
        /// Somebody was lost on the way or before.
        lost: bool,
        deadline: Tick,
    },
    /// The plan's record is on its way to the store.
    Persisting { plan: Plan, reason: String },
    /// Members take the base state and connect.
    Forming {
        plan: Plan,
        formed: BTreeSet<WorkerId>,
        deadline: Tick,
    },
    /// Steps are made.
    Running { plan: Plan },
    /// Over.
    Ended,
}

/// The brain. See the module's picture. `R` is [`Shipped`] everywhere but in tests of the tests.
#[derive(Debug)]
pub struct Conductor<R: Rules = Shipped> {
    rules: PhantomData<R>,
    settings: Settings,
    phase: Phase,
    seats: Seats,
    generation: Generation,
    lanes: Vec<WorkerId>,
    ledger: Ledger,
    /// A generation was formed before in this run (perhaps by another process): old names may exist somewhere.
    has_history: bool,
    /// Names applied in generations before this one do not count (rule G1).
    floor: Generation,
    /// Where each generation on the lineage was left: other names of theirs are superseded (rule AU2).
    ends: BTreeMap<Generation, u64>,
    /// Newest generation whose record is durable (rule G5).
    durable: Generation,
    /// Why the next generation is formed.
    why: String,
    lease: LeaseBook,
    /// The generation of the reign before, while its members come back and it may be kept.
    kept: Option<Kept>,
    moves: Moves,
    trouble: Trouble,
    /// Ids up to this one are durably ours to give.
    named_upto: WorkerId,
    /// Workers that came without an id and wait for one.
    ids_wanted: u32,
    /// Members of generations that nobody acknowledged leaving and that are not proven gone (rule G5).
    unproven: BTreeSet<WorkerId>,
    /// Highest count of applied steps reported in the current generation.
    steps_done: u64,
    /// Slowest recent step, for the time-outs that derive from it.
    step_ms: f32,
    /// Losses since the last applied step.
    losses_in_a_row: u32,
    /// Not before this tick may another worker be spawned or generation be formed.
    not_before: Option<Tick>,
    /// Processes that are proven gone (rule G5).
    exited: BTreeSet<WorkerId>,
    /// Workers lost in a row before they were ever ready.
    failed_starts: u32,
    /// Generations formed since the last applied step.
    fruitless: u32,
    /// Persists under way; what to do after each, in order.
    pending: VecDeque<AfterPersist>,
    stopping: bool,
    /// Steps done when the stop was asked for: a checkpoint of fewer does not answer it.
    stop_step: u64,
    /// When the cadence in time began to count: at the last commit or the first step.
    checkpoint_since: Option<Tick>,
    /// Not before this tick is another attempt opened: the store did not take the last one.
    retry_at: Tick,
    /// Some step changed the weights.
    any_update: bool,
    /// When the brain was last stepped.
    last_step: Tick,
    announced_waiting: Option<(u32, u32)>,
    /// Compares states of one name (rule N3).
    states: StateWatch,
    /// Hold a name whose bits are in doubt: they heal, and nobody heals from them.
    suspects: BTreeSet<WorkerId>,
}

/// What follows a durable record.
#[derive(Clone, Debug, PartialEq)]
enum AfterPersist {
    Nothing,
    SendPlan,
    Name { upto: WorkerId },
    StartAttempt { attempt: u64 },
    Collect { attempt: u64 },
    Commit { attempt: u64, key: String, name: StateName },
    End { outcome: Outcome },
}

/// The step's working set: commands in the making.
struct Turn {
    now: Tick,
    commands: Vec<Command>,
}

impl Turn {
    fn send(&mut self, to: WorkerId, message: ToWorker) {
        self.commands.push(Command::Send { to, message });
    }

    fn announce(&mut self, event: RunEvent) {
        self.commands.push(Command::Announce { event });
    }
}

impl<R: Rules> Conductor<R> {
    /// A conductor for a new run, or one that goes on where `restored` says.
    #[must_use]
    pub fn new(settings: Settings, restored: Restored) -> Self {
        let ledger = Ledger::new(&settings, &restored);
        Self {
            rules: PhantomData,
            seats: Seats::new(restored.worker, settings.failure_budget_ms),
            named_upto: restored.worker,
            ids_wanted: 0,
            durable: restored.generation,
            why: String::new(),
            lease: LeaseBook::new(&settings, &restored),
            kept: Kept::new(&settings, &restored),
            moves: Moves::default(),
            trouble: Trouble::new(restored.quarantine.clone()),
            ends: restored.ends.clone(),
            generation: restored.generation,
            lanes: Vec::new(),
            ledger,
            has_history: restored.generation > Generation(0),
            floor: restored.floor,
            unproven: LeaseBook::unproven(&settings, &restored),
            steps_done: restored.head.as_ref().map_or(0, |h| h.name.step),
            step_ms: 0.0,
            losses_in_a_row: 0,
            not_before: None,
            exited: BTreeSet::new(),
            failed_starts: 0,
            fruitless: 0,
            pending: VecDeque::new(),
            stopping: false,
            stop_step: 0,
            checkpoint_since: None,
            retry_at: 0,
            any_update: restored.head.is_some(),
            last_step: 0,
            announced_waiting: None,
            states: StateWatch::default(),
            suspects: BTreeSet::new(),
            phase: if restored.finished.is_some() {
                Phase::Ended
            } else {
                Phase::Waiting
            },
            settings,
        }
    }

    /// Takes one event and says what to do about it. `now` never goes back; if it does, deadlines are late, nothing breaks.
    pub fn step(&mut self, event: Event, now: Tick) -> Vec<Command> {
        // Ticks come four times in a failure budget. After a longer gap it was this process that stood still (stopped,
        // suspended, starved), and the heartbeats of those who did not are still in the queue.
        if now.saturating_sub(self.last_step) > self.settings.failure_budget_ms / 2 {
            self.seats.forgive(now);
        }
        self.last_step = now;
        let mut turn = Turn {
            now,
            commands: Vec::new(),
        };
        self.lease.starts::<R>(now);
        if let Some(kept) = &mut self.kept {
            kept.starts(now);
        }
        if self.phase == Phase::Ended {
            self.after_the_end(event, &mut turn);
            return turn.commands;
        }
        match event {
            Event::WorkerSpawned { worker, pid } => {
                self.seats.spawned(worker, now);
                turn.announce(RunEvent::WorkerSpawned { worker, pid });
            }
            Event::WorkerConnected { worker } => self.seats.connected(worker, now),
            Event::StreamLost { worker } => self.lose(worker, "its stream broke", &mut turn),
            Event::WorkerExited {
                worker,
                pid,
                code,
                signal,
            } => {
                turn.announce(RunEvent::WorkerExited {
                    worker,
                    pid,
                    code,
                    signal,
                });
                self.unproven.remove(&worker);
                self.exited.insert(worker);
                self.lose(worker, "its process ended", &mut turn);
            }
            Event::Said { worker, message } => self.said(worker, message, &mut turn),
            Event::Persisted => self.persisted(&mut turn),
            Event::ManifestWritten { attempt, key } => self.manifest_written(attempt, key, &mut turn),
            Event::ManifestFailed { attempt, reason } => {
                self.ledger.unseal(attempt);
                self.part_failed(attempt, PartFailure::Store, &reason, &mut turn);
            }
            Event::IdWanted => self.ids_wanted += 1,
            Event::StopRequested => self.stop_requested(&mut turn),
            Event::DrainRequested { worker, grace_ms } => self.drain(worker, grace_ms, &mut turn),
            Event::LeadershipHeld { until } => self.lease.leads_until(until),
            Event::Ticked => {}
        }
        self.check_deadlines(&mut turn);
        self.settle(&mut turn);
        turn.commands
    }

    /// When [`Event::Ticked`] is wanted next, and why.
    #[must_use]
    pub fn next_deadline(&self) -> Option<(Tick, &'static str)> {
        let backing_off = self.not_before.map(|tick| (tick, "back-off after losses"));
        let own_pace = (
            self.last_step + self.settings.failure_budget_ms / 4,
            "a pause of our own is noticed",
        );
        let watching = (self.seats.len() > 0).then_some(own_pace);
        let lease = self.lease.over_at().filter(|_| !self.unproven.is_empty());
        let lease = lease.map(|at| (at, "the last lease has run out"));
        let kept = self.kept.as_ref().and_then(Kept::next_deadline);
        // Those that have passed were looked at in the last step; what keeps them waiting ends with an event of its own.
        let moves = self.moves.next_deadline(&self.settings);
        let moves = moves.filter(|(at, _)| *at > self.last_step);
        let trouble = self.trouble.next_deadline(&self.settings);
        let answers = match &self.phase {
            Phase::Closing { deadline, .. } => Some((*deadline, "members answer the closing")),
            Phase::Forming { deadline, .. } => Some((*deadline, "members form")),
            Phase::Waiting | Phase::Persisting { .. } | Phase::Running { .. } => None,
            Phase::Ended => return None,
        };
        let seats = self.seats.next_deadline();
        // Asked after every event of a fleet: nothing is allocated here.
        let returns = self.lease.next_deadline();
        let deadlines = [
            seats,
            backing_off,
            watching,
            lease,
            kept,
            returns,
            moves,
            trouble,
            answers,
        ];
        deadlines.into_iter().flatten().min()
    }

    /// What it looks like from outside.
    #[must_use]
    pub fn observe(&self) -> View {
        let (phase, plan) = match &self.phase {
            Phase::Waiting => ("waiting", None),
            Phase::Closing { plan, .. } => ("closing", Some(plan)),
            Phase::Persisting { plan, .. } => ("persisting", Some(plan)),
            Phase::Forming { plan, .. } => ("forming", Some(plan)),
            Phase::Running { plan } => ("running", Some(plan)),
            Phase::Ended => ("ended", None),
        };
        View {
            phase,
            generation: self.generation,
            members: plan
                .map(|p| p.members.iter().map(|m| m.worker).collect())
                .unwrap_or_default(),
            ready: self.seats.ready(),
            draining: self.moves.leaving().collect(),
            cordoned: self.trouble.cordoned.iter().copied().collect(),
            moving: self.moves.under_way.as_ref().map(|m| m.reason.clone()),
            quarantine: self.trouble.quarantine.last(),
            reason: self.why.clone(),
            steps_done: self.steps_done,
            head: self.ledger.head().cloned(),
        }
    }

    /// One message of one worker. Whatever it says, it is alive.
    fn said(&mut self, worker: WorkerId, message: FromWorker, turn: &mut Turn) {
        if !self.seats.heard(worker, turn.now) {
            return; // dismissed before: its words do not count any more
        }
        if message.name().is_some_and(|name| !self.can_be(name)) {
            return; // of another run, or made up
        }
        match message {
            FromWorker::Heartbeat => {}
            FromWorker::Ready { addr, name } => {
                self.failed_starts = 0;
                self.seats.set_ready(worker, addr, name);
                turn.announce(RunEvent::WorkerReady { worker });
                self.keep_out(worker, turn);
            }
            FromWorker::Formed { generation } => self.member_formed(worker, generation, turn),
            FromWorker::Closed {
                generation,
                name,
                cause,
            } => self.member_closed(worker, generation, name, cause, turn),
            FromWorker::StepDone { report } => self.step_done(worker, report, turn),
            FromWorker::PartUploaded { attempt, part, name } => self.part_uploaded(worker, attempt, part, name, turn),
            FromWorker::PartFailed {
                attempt,
                failure,
                reason,
            } if self.ledger.owes(worker, attempt) => {
                self.part_failed(attempt, failure, &format!("{worker}: {reason}"), turn);
            }
            FromWorker::PartFailed { .. } => {} // of an attempt that is over, or of parts that are another's by now
            FromWorker::RestoreFailed { key, damaged, reason } => self.restore_failed(key, damaged, &reason, turn),
            FromWorker::LeaseWanted { generation, at } => self.lease_wanted(worker, generation, at, turn),
            // What was fetched for a generation that is over may have been dropped with it.
            FromWorker::Primed { generation, lanes } if R::is_current(self.generation, generation) => {
                self.moves.primed(worker, &lanes);
            }
            FromWorker::Primed { .. } => {}
            FromWorker::Notice { message } => turn.announce(RunEvent::WorkerNotice { worker, message }),
            FromWorker::Draining { grace_ms } => self.drain(worker, grace_ms, turn),
            FromWorker::Aborted { report } => self.aborted(worker, report),
            FromWorker::LaneBlocked {
                generation,
                step,
                lane,
                rows,
                fault,
                error,
            } => {
                if self.member_of(worker, generation) {
                    match fault {
                        ReadFault::Shard => self.lane_blocked(worker, step, lane, rows, &error, turn),
                        ReadFault::Way => self.way_blocked(worker, lane, &error, turn),
                    }
                }
            }
            FromWorker::Rejoined {
                addr,
                name,
                inside,
                left,
            } => self.rejoined(worker, addr, name, inside, left, turn),
            // Before it was ready that may be its machine's fault: others, who are ready, go on without it.
            FromWorker::Failed { message, .. }
                if self.seats.ready_at(worker).is_none() && self.seats.ready_count() > 0 =>
            {
                self.lose(worker, &message, turn);
            }
            FromWorker::Failed { exit, message } => {
                let message = format!("{worker}: {message}");
                self.end(Outcome::Failed { exit, message }, turn);
            }
        }
    }

    /// Whether a state of this name can have been trained in this run.
    fn can_be(&self, name: StateName) -> bool {
        name.step <= self.settings.total_steps && name.applied_gen <= self.generation
    }

    fn step_done(&mut self, worker: WorkerId, report: StepReport, turn: &mut Turn) {
        // A planned close lets the last steps before its boundary be made and counted.
        let (Phase::Running { plan } | Phase::Closing { plan, .. }) = &self.phase else {
            return;
        };
        if !R::is_current(plan.generation, report.generation) || plan.rank_of(worker).is_none() {
            return;
        }
        // One that comes a second time, behind the word of leaving, must not take the state back that was left with.
        let held = self.seats.ready_at(worker).map(|(_, name)| name);
        if held.is_none_or(|held| R::compare(report.name, held).is_gt()) {
            self.seats.set_name(worker, report.name);
        }
        self.losses_in_a_row = 0;
        self.fruitless = 0;
        self.moves.stepped(worker, &report);
        // A slow step raises the time-outs at once, faster ones lower them little by little.
        self.step_ms = report.step_ms().max(self.step_ms * 0.9);
        self.trouble_passed(&report, turn);
        let first = report.name.step > self.steps_done;
        let (name, hashes) = (report.name, report.state_hashes.clone());
        self.steps_done = self.steps_done.max(report.name.step);
        if first {
            self.any_update |= report.loss.is_some();
            turn.announce(RunEvent::StepDone { report, worker });
        }
        if !hashes.is_empty() {
            self.compare_states(worker, name, hashes, turn);
        }
    }

    /// Whether `worker` is a member of the generation at hand, and that is `generation`.
    fn member_of(&self, worker: WorkerId, generation: Generation) -> bool {
        match &self.phase {
            Phase::Running { plan } | Phase::Forming { plan, .. } | Phase::Closing { plan, .. } => {
                R::is_current(plan.generation, generation) && plan.rank_of(worker).is_some()
            }
            Phase::Waiting | Phase::Persisting { .. } | Phase::Ended => false,
        }
    }

    /// The first stop waits for a generation under way to train, takes a checkpoint and ends; the second ends at once.
    fn stop_requested(&mut self, turn: &mut Turn) {
        if std::mem::replace(&mut self.stopping, true) {
            self.interrupt(turn);
        } else {
            self.stop_step = self.steps_done;
        }
    }

    fn interrupt(&mut self, turn: &mut Turn) {
        let name = self.ledger.head().map_or(StateName::INITIAL, |h| h.name);
        self.end(Outcome::Interrupted { name }, turn);
    }

    /// Tells everybody and ends. Nothing that happens later changes the outcome.
    fn end(&mut self, outcome: Outcome, turn: &mut Turn) {
        for worker in self.seats.connected_workers() {
            turn.send(worker, ToWorker::Finish);
        }
        turn.announce(RunEvent::RunFinished {
            outcome: outcome.clone(),
        });
        turn.commands.push(Command::End { outcome });
        self.phase = Phase::Ended;
    }

    /// After the end only the deaths of workers are still announced.
    fn after_the_end(&mut self, event: Event, turn: &mut Turn) {
        match event {
            Event::WorkerExited {
                worker,
                pid,
                code,
                signal,
            } => {
                turn.announce(RunEvent::WorkerExited {
                    worker,
                    pid,
                    code,
                    signal,
                });
            }
            Event::WorkerConnected { worker } => turn.send(worker, ToWorker::Finish),
            _ => {}
        }
    }

    fn persist(&mut self, record: Record, then: AfterPersist, turn: &mut Turn) {
        turn.commands.push(Command::Persist { record });
        self.pending.push_back(then);
    }

    fn persisted(&mut self, turn: &mut Turn) {
        match self.pending.pop_front() {
            None | Some(AfterPersist::Nothing) => {}
            Some(AfterPersist::SendPlan) => {
                self.durable = self.generation;
                self.send_plan(turn);
            }
            Some(AfterPersist::Name { upto }) => self.named_upto = self.named_upto.max(upto),
            Some(AfterPersist::StartAttempt { attempt }) => self.start_attempt(attempt, turn),
            Some(AfterPersist::Collect { attempt }) => turn.commands.push(Command::CollectGarbage {
                attempts: vec![attempt],
                keep_logs: false,
            }),
            Some(AfterPersist::Commit { attempt, key, name }) => self.committed(attempt, key, name, turn),
            Some(AfterPersist::End { outcome }) => self.end(outcome, turn),
        }
    }
}
