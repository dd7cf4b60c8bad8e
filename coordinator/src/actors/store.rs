//! Makes records durable, one at a time, in order.

use super::conductor;
use crate::store::Reign;
use argosy_common::conductor::Event;
use argosy_common::events::Record;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::sync::Arc;

pub(crate) struct Store;

#[derive(Debug)]
pub(crate) enum Msg {
    /// Make durable, then answer `Persisted` to this one.
    Append {
        record: Record,
        reply_to: ActorRef<conductor::Msg>,
    },
}

#[derive(Debug)]
pub(crate) struct State {
    store: Arc<dyn Reign>,
    revision: u64,
}

impl Actor for Store {
    type Msg = Msg;
    type State = State;
    type Arguments = Arc<dyn Reign>;

    async fn pre_start(&self, _: ActorRef<Msg>, store: Arc<dyn Reign>) -> Result<State, ActorProcessingErr> {
        let revision = store.records().await?.len() as u64;
        Ok(State { store, revision })
    }

    /// Fails when the append did: the outcome is unknown, and the root ends the run.
    async fn handle(&self, _: ActorRef<Msg>, message: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        let Msg::Append { record, reply_to } = message;
        state.revision = state.store.append(state.revision, &record).await?;
        let _ = reply_to.cast(conductor::Msg::Event(Event::Persisted)); // gone at the end of a run
        Ok(())
    }
}
