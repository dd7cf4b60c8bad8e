//! The supervisor: all actors live together and end together.

use super::artefacts::{self, Artefacts};
use super::conductor::{self, Shell};
use super::journal::{self, Journal};
use super::store::Store;
use crate::admission::Guests;
use crate::error::CoordinatorError;
use crate::options::Spawner;
use crate::store::Reign;
use argosy_common::conductor::Conductor;
use argosy_common::events::{Manifest, Outcome, RunEvent};
use argosy_common::shape::RunShape;
use object_store::ObjectStore;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Writes under way may take so long at the end of a run.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);

pub(crate) struct Root;

#[derive(Debug)]
pub(crate) enum Msg {
    /// The brain ended the run and all workers have left.
    Ended(Outcome),
    /// Something beside the actors failed.
    Failed(CoordinatorError),
}

/// Everything the actors need.
pub(crate) struct Args {
    pub(crate) brain: Conductor,
    pub(crate) store: Arc<dyn Reign>,
    pub(crate) journal: journal::Args,
    pub(crate) checkpoints: Arc<dyn ObjectStore>,
    pub(crate) endpoint: String,
    pub(crate) spawner: Arc<dyn Spawner>,
    pub(crate) guests: Arc<Guests>,
    pub(crate) shape: RunShape,
    pub(crate) manifest: Manifest,
    /// Announced before anything else.
    pub(crate) started: RunEvent,
    /// Deleted before anything else: attempts of a coordinator that died.
    pub(crate) garbage: Vec<u64>,
    /// Committed attempts that need not stay; the logs in them do.
    pub(crate) expired: Vec<u64>,
    /// Gets the conductor.
    pub(crate) ready: oneshot::Sender<ActorRef<conductor::Msg>>,
    /// Gets the result, once.
    pub(crate) result: oneshot::Sender<Result<Outcome, CoordinatorError>>,
}

pub(crate) struct State {
    names: BTreeMap<ActorId, &'static str>,
    /// Ended in this order: what others write to comes last.
    children: Vec<(ActorCell, JoinHandle<()>)>,
    result: Option<oneshot::Sender<Result<Outcome, CoordinatorError>>>,
}

impl Actor for Root {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, myself: ActorRef<Msg>, args: Args) -> Result<State, ActorProcessingErr> {
        let me = myself.get_cell();
        let (journal, journal_task) = Actor::spawn_linked(None, Journal, args.journal, me.clone()).await?;
        let (store, store_task) = Actor::spawn_linked(None, Store, args.store, me.clone()).await?;
        let (artefacts, artefacts_task) = Actor::spawn_linked(None, Artefacts, args.checkpoints, me.clone()).await?;
        journal.cast(args.started)?;
        for (attempts, keep_logs) in [(args.garbage, false), (args.expired, true)] {
            artefacts.cast(artefacts::Msg::Collect { attempts, keep_logs })?;
        }
        let shell = conductor::Args {
            brain: args.brain,
            began_ms: argosy_rpc::clock::now_ms(),
            endpoint: args.endpoint,
            spawner: args.spawner,
            guests: args.guests,
            store: store.clone(),
            artefacts: artefacts.clone(),
            journal: journal.clone(),
            root: myself.clone(),
            shape: args.shape,
            manifest: args.manifest,
        };
        let (conductor, conductor_task) = Actor::spawn_linked(None, Shell, shell, me).await?;
        let names = [
            (conductor.get_id(), "conductor"),
            (store.get_id(), "store"),
            (artefacts.get_id(), "artefacts"),
            (journal.get_id(), "journal"),
        ];
        let _ = args.ready.send(conductor.clone());
        Ok(State {
            names: names.into_iter().collect(),
            children: vec![
                (conductor.get_cell(), conductor_task),
                (store.get_cell(), store_task),
                (artefacts.get_cell(), artefacts_task),
                (journal.get_cell(), journal_task),
            ],
            result: Some(args.result),
        })
    }

    async fn handle(&self, myself: ActorRef<Msg>, message: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Ended(outcome) => state.end(&myself, Ok(outcome)).await,
            Msg::Failed(error) => state.end(&myself, Err(error)).await,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (who, reason) = match event {
            SupervisionEvent::ActorFailed(who, error) => (who, error.to_string()),
            SupervisionEvent::ActorTerminated(who, _, reason) => (who, reason.unwrap_or_else(|| "it stopped".into())),
            _ => return Ok(()),
        };
        let actor = state.names.get(&who.get_id()).copied().unwrap_or("supervisor");
        state
            .end(&myself, Err(CoordinatorError::ActorFailed { actor, reason }))
            .await;
        Ok(())
    }
}

impl State {
    /// The first result counts. Every child finishes what it was told before, in an order in which nobody writes to one that
    /// is gone.
    async fn end(&mut self, myself: &ActorRef<Msg>, outcome: Result<Outcome, CoordinatorError>) {
        let Some(result) = self.result.take() else {
            return;
        };
        for (child, mut task) in self.children.drain(..) {
            if let Err(error) = child.drain() {
                tracing::debug!(%error, "an actor was gone before the end");
            }
            // The task, not only the mailbox: what the actor held, as the store's lock, is given back then.
            if tokio::time::timeout(DRAIN_WITHIN, &mut task).await.is_err() {
                tracing::warn!("an actor did not end in time");
                task.abort();
            }
        }
        let _ = result.send(outcome);
        myself.stop(None);
    }
}
