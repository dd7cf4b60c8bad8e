//! Makes records durable, one at a time, in order.

use super::conductor;
use crate::store::{Reign, StoreError};
use argosy_common::conductor::Event;
use argosy_common::events::{Record, RunEvent};
use ractor::{Actor, ActorProcessingErr, ActorRef, ActorStatus};
use std::sync::Arc;
use std::time::Duration;

/// A store that is full is asked again so often: somebody has to make room first.
const FULL_PAUSE: Duration = Duration::from_secs(1);

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
        let answer = match state.append(&record, &reply_to).await {
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

impl State {
    /// Appends, waiting for room where the store has none: it has written nothing, and whoever waits for this record waits
    /// as for a store that is away.
    async fn append(&self, record: &Record, conductor: &ActorRef<conductor::Msg>) -> Result<u64, StoreError> {
        let mut full = false;
        loop {
            let tried = self.store.append(self.revision, record).await;
            let error = match tried {
                Err(error @ StoreError::Full { .. }) if self.store.outlasts_a_full_store() => error,
                other => {
                    if full && other.is_ok() {
                        tracing::info!("the store has room again");
                        let _ = conductor.cast(conductor::Msg::Announce(RunEvent::StoreHasRoom)); // gone
                    }
                    return other;
                }
            };
            if !std::mem::replace(&mut full, true) {
                tracing::error!(%error, "no record can be written; steps go on, and this is tried again every second");
                let reason = error.to_string();
                let _ = conductor.cast(conductor::Msg::Announce(RunEvent::StoreFilledUp { reason })); // gone
            }
            if conductor.get_status() >= ActorStatus::Stopping {
                return Err(error);
            }
            tokio::time::sleep(FULL_PAUSE).await;
        }
    }
}
