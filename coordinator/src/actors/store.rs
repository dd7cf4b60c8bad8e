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
    /// A write failed: what follows it must not be written.
    failed: bool,
}

impl Actor for Store {
    type Msg = Msg;
    type State = State;
    type Arguments = Arc<dyn Reign>;

    async fn pre_start(&self, _: ActorRef<Msg>, store: Arc<dyn Reign>) -> Result<State, ActorProcessingErr> {
        let revision = store.records().await?.len() as u64;
        Ok(State {
            store,
            revision,
            failed: false,
        })
    }

    /// After an append that failed nothing is written any more: its outcome may be unknown, and the root ends the run.
    async fn handle(&self, _: ActorRef<Msg>, message: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        let Msg::Append { record, reply_to } = message;
        if state.failed {
            return Ok(());
        }
        let answer = match state.store.append(state.revision, &record).await {
            Ok(revision) => {
                state.revision = revision;
                conductor::Msg::Event(Event::Persisted)
            }
            Err(error) => {
                state.failed = true;
                conductor::Msg::StoreFailed(error)
            }
        };
        let _ = reply_to.cast(answer); // gone at the end of a run
        Ok(())
    }
}
