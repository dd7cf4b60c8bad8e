//! The actor round the follower.

use super::line::Line;
use crate::trainer::{Aborts, Lease};
use argosy_common::conductor::Tick;
use argosy_common::events::ToWorker;
use argosy_common::exit::Exit;
use argosy_common::follower::{Command, Event, Follower, Settings, TrainerOrder};
use argosy_rpc::{Session, clock};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;
use tokio::sync::oneshot;

/// The trainer gets so long to end its step and its uploads after it was told to quit.
const QUIT_PATIENCE: Duration = Duration::from_secs(5);
/// And so long to write a whole state to local disk.
const COPY_PATIENCE: Duration = Duration::from_secs(600);

/// What the actor is told.
#[derive(Debug)]
pub(super) enum Told {
    /// For the follower.
    Happened(Event),
    /// A coordinator said something in the stream with this number.
    Heard { stream: u64, message: ToWorker },
    /// That stream is lost.
    StreamEnded { stream: u64 },
    /// A coordinator took this worker in.
    Answered(Box<Session>),
    /// The timer set for this tick.
    Due { at: Tick },
    /// The trainer's thread is gone by a bug. Its state may be half written; nobody must hear of it any more.
    TrainerPanicked,
}

/// How the agent ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) code: u8,
    pub(super) reason: String,
    /// How long the trainer may take to end.
    pub(super) patience: Duration,
}

/// The actor.
#[derive(Debug)]
pub(super) struct Shell;

/// What the actor works with.
#[derive(Debug)]
pub(super) struct ShellArgs {
    pub(super) settings: Settings,
    pub(super) orders: Sender<TrainerOrder>,
    pub(super) line: Line,
    pub(super) session: Session,
    pub(super) aborts: Aborts,
    pub(super) lease: Lease,
    /// Told once.
    pub(super) ended: oneshot::Sender<Ended>,
}

/// Its state.
#[derive(Debug)]
pub(super) struct ShellState {
    follower: Follower,
    orders: Sender<TrainerOrder>,
    line: Line,
    aborts: Aborts,
    lease: Lease,
    /// The earliest timer under way.
    armed: Option<Tick>,
    patience: Duration,
    ended: Option<oneshot::Sender<Ended>>,
}

impl Actor for Shell {
    type Msg = Told;
    type State = ShellState;
    type Arguments = ShellArgs;

    async fn pre_start(&self, myself: ActorRef<Told>, args: ShellArgs) -> Result<ShellState, ActorProcessingErr> {
        let mut state = ShellState {
            follower: Follower::new(args.settings),
            orders: args.orders,
            line: args.line,
            aborts: args.aborts,
            lease: args.lease,
            armed: None,
            patience: QUIT_PATIENCE,
            ended: Some(args.ended),
        };
        state.welcomed(args.session, &myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Told>,
        told: Told,
        state: &mut ShellState,
    ) -> Result<(), ActorProcessingErr> {
        match told {
            Told::Happened(event) => state.happened(event, &myself),
            Told::Heard { stream, message } if state.line.is_current(stream) => {
                state.happened(Event::Heard(message), &myself);
            }
            Told::StreamEnded { stream } if state.line.is_current(stream) => {
                state.line.drop_stream();
                state.happened(Event::StreamLost, &myself);
            }
            Told::Heard { .. } | Told::StreamEnded { .. } => {} // of a stream that was given up
            Told::Answered(session) => state.welcomed(*session, &myself),
            Told::Due { at } => {
                if state.armed == Some(at) {
                    state.armed = None;
                }
                state.happened(Event::Ticked, &myself);
            }
            Told::TrainerPanicked => state.end(Exit::Panic.code(), "the trainer panicked".into()),
        }
        Ok(())
    }

    /// Last words have to leave before the process does.
    async fn post_stop(&self, _: ActorRef<Told>, state: &mut ShellState) -> Result<(), ActorProcessingErr> {
        state.line.close().await;
        Ok(())
    }
}

impl ShellState {
    fn welcomed(&mut self, session: Session, myself: &ActorRef<Told>) {
        let term = session.welcome.term;
        self.line.open(session, myself.clone());
        self.happened(Event::Welcomed { term }, myself);
    }

    fn happened(&mut self, event: Event, myself: &ActorRef<Told>) {
        // One clock for leases, deadlines and the trainer; it counts suspended time (rule G5).
        for command in self.follower.step(event, clock::now_ms()) {
            self.execute(command, myself);
        }
        self.arm(myself);
    }

    fn execute(&mut self, command: Command, myself: &ActorRef<Told>) {
        match command {
            Command::Order(order) => {
                if order == TrainerOrder::EmergencyCopy {
                    self.patience = COPY_PATIENCE;
                }
                // A trainer that has ended takes no orders; its end was told by itself.
                let _ = self.orders.send(order);
            }
            Command::AbortCollective { generation } => self.aborts.abort(generation),
            Command::Lease { generation, until } => self.lease.set(generation, until),
            Command::Tell(message) => self.line.say(message),
            Command::Reconnect { after_ms } => self.reconnect(after_ms, myself),
            Command::Exit { code, reason } => self.end(code, reason),
        }
    }

    /// Calls the coordinators after a while; the answer comes as a message.
    fn reconnect(&mut self, after_ms: u64, myself: &ActorRef<Told>) {
        self.line.drop_stream();
        let (calls, welcome) = (Arc::clone(&self.line.calls), Arc::clone(&self.line.welcome));
        let myself = myself.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            let answer = match calls.again(&welcome).await {
                Ok(session) => Told::Answered(Box::new(session)),
                Err(_) => Told::Happened(Event::Unreachable), // the line has told why
            };
            let _ = myself.cast(answer); // ended meanwhile
        });
    }

    /// Sets a timer if none under way is early enough. One that has become too early does no harm.
    fn arm(&mut self, myself: &ActorRef<Told>) {
        let Some((at, _)) = self.follower.next_deadline() else {
            return;
        };
        if self.ended.is_none() || self.armed.is_some_and(|armed| armed <= at) {
            return;
        }
        self.armed = Some(at);
        let wait = at.saturating_sub(clock::now_ms()).max(1);
        myself.send_after(Duration::from_millis(wait), move || Told::Due { at });
    }

    fn end(&mut self, code: u8, reason: String) {
        if let Some(ended) = self.ended.take() {
            // Nobody waits any more if the process is ending already.
            let _ = ended.send(Ended {
                code,
                reason,
                patience: self.patience,
            });
        }
    }
}
