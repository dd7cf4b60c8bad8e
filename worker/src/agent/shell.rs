//! The actor round the follower.

use crate::trainer::Aborts;
use argosy_common::events::FromWorker;
use argosy_common::exit::Exit;
use argosy_common::follower::{Command, Event, Follower, TrainerOrder};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::sync::mpsc::Sender;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// What the actor is told.
#[derive(Debug)]
pub(super) enum Told {
    /// For the follower.
    Happened(Event),
    /// The trainer's thread is gone by a bug. Its state may be half written; nobody must hear of it any more.
    TrainerPanicked,
}

/// The actor.
#[derive(Debug)]
pub(super) struct Shell;

/// What the actor works with.
#[derive(Debug)]
pub(super) struct ShellArgs {
    pub(super) orders: Sender<TrainerOrder>,
    pub(super) outgoing: mpsc::Sender<FromWorker>,
    pub(super) aborts: Aborts,
    /// Told once, with the exit code and the reason.
    pub(super) ended: oneshot::Sender<(u8, String)>,
}

/// Its state.
#[derive(Debug)]
pub(super) struct ShellState {
    follower: Follower,
    orders: Sender<TrainerOrder>,
    outgoing: mpsc::Sender<FromWorker>,
    aborts: Aborts,
    /// The follower's clock is the milliseconds since then.
    began: Instant,
    ended: Option<oneshot::Sender<(u8, String)>>,
}

impl Actor for Shell {
    type Msg = Told;
    type State = ShellState;
    type Arguments = ShellArgs;

    async fn pre_start(&self, _: ActorRef<Told>, args: ShellArgs) -> Result<ShellState, ActorProcessingErr> {
        let ShellArgs {
            orders,
            outgoing,
            aborts,
            ended,
        } = args;
        Ok(ShellState {
            follower: Follower::default(),
            orders,
            outgoing,
            aborts,
            began: Instant::now(),
            ended: Some(ended),
        })
    }

    async fn handle(&self, _: ActorRef<Told>, told: Told, state: &mut ShellState) -> Result<(), ActorProcessingErr> {
        match told {
            Told::Happened(event) => {
                let now = state.began.elapsed().as_millis() as u64;
                for command in state.follower.step(event, now) {
                    state.execute(command).await;
                }
            }
            Told::TrainerPanicked => state.end(Exit::Panic.code(), "the trainer panicked".into()),
        }
        Ok(())
    }
}

impl ShellState {
    async fn execute(&mut self, command: Command) {
        match command {
            Command::Order(order) => {
                // A trainer that has ended takes no orders; its end was told by itself.
                let _ = self.orders.send(order);
            }
            Command::AbortCollective { generation } => self.aborts.abort(generation),
            Command::Tell(message) => {
                // A lost stream is told by its reader.
                let _ = self.outgoing.send(message).await;
            }
            Command::Exit { code, reason } => self.end(code, reason),
            // This worker trains without a lease and ends with its stream; its follower is told so and asks for neither.
            Command::Lease { .. } | Command::Reconnect { .. } => tracing::warn!(?command, "not asked for"),
        }
    }

    fn end(&mut self, code: u8, reason: String) {
        if let Some(ended) = self.ended.take() {
            // Nobody waits any more if the process is ending already.
            let _ = ended.send((code, reason));
        }
    }
}
