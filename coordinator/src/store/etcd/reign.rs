//! A reign over a run's keys in etcd.

use super::client::{Etcd, Trouble};
use super::{Compare, CompareOp, KeyValue, StoreError, Txn, TxnOp, TxnOpResponse, first_of, last_key, log};
use crate::store::Reign;
use argosy_common::events::Record;
use argosy_common::ids::Term;
use argosy_rpc::clock;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::async_trait;

/// Between two tries of a write, at first and at most.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// The throne's key is ours while its lease lasts.
#[derive(Debug)]
pub(super) struct EtcdReign {
    etcd: Arc<Etcd>,
    term: Term,
    lease: i64,
    ttl: Duration,
    /// Surely ours until then, on our clock.
    until: Mutex<Duration>,
}

enum Written {
    Now,
    Before,
}

impl EtcdReign {
    /// `asked`: when the lease was asked for; the store may have begun to count then.
    pub(super) fn new(etcd: Arc<Etcd>, term: Term, lease: i64, ttl: Duration, asked: Duration) -> Self {
        Self {
            etcd,
            term,
            lease,
            ttl,
            until: Mutex::new(fence(asked, ttl)),
        }
    }

    fn until(&self) -> std::sync::MutexGuard<'_, Duration> {
        // One number: a panic elsewhere leaves nothing half done.
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn throne_is_ours(&self) -> Compare {
        let created = self.term.0.cast_signed();
        Compare::create_revision(self.etcd.keys.leader.as_str(), CompareOp::Equal, created)
    }

    /// One try. `again`: an earlier one may have come through.
    async fn try_append(
        &self,
        expected: u64,
        value: &[u8],
        again: bool,
    ) -> Result<Result<Written, StoreError>, Trouble> {
        let keys = &self.etcd.keys;
        let key = keys.record(expected + 1);
        let mut compares = vec![
            self.throne_is_ours(),
            Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
        ];
        if expected > 0 {
            compares.push(Compare::create_revision(keys.record(expected), CompareOp::Greater, 0));
        }
        let txn = Txn::new()
            .when(compares)
            .and_then([TxnOp::put(key.as_str(), value, None)])
            .or_else([
                TxnOp::get(key.as_str(), None),
                TxnOp::get(keys.leader.as_str(), None),
                TxnOp::get(keys.records.as_str(), Some(last_key())),
            ]);
        let answer = self.etcd.call(self.etcd.client().txn(txn)).await?;
        if answer.succeeded() {
            return Ok(Ok(Written::Now));
        }
        let found = answer.op_responses();
        // A reign has one writer, and its term is in the value: what stands there can only be the earlier try.
        if again && first_of(&found, 0).is_some_and(|kv| kv.value() == value) {
            return Ok(Ok(Written::Before));
        }
        Ok(Err(self.refusal(expected, &found)))
    }

    fn refusal(&self, expected: u64, found: &[TxnOpResponse]) -> StoreError {
        let ours = self.term;
        let throne = first_of(found, 1).map(|kv: KeyValue| Term(kv.create_revision().unsigned_abs()));
        match throne {
            None => StoreError::Lapsed { ours },
            Some(theirs) if theirs != ours => StoreError::Fenced { ours, theirs },
            Some(_) => {
                let last = first_of(found, 2);
                let last = last.and_then(|kv| log::number(&self.etcd.keys.records, kv.key()));
                StoreError::Conflict {
                    expected,
                    found: last.unwrap_or(0),
                }
            }
        }
    }
}

/// A third of the lease is left unused: clocks differ, and what was said in the last moment has to arrive.
fn fence(asked: Duration, ttl: Duration) -> Duration {
    asked + surely(ttl)
}

fn surely(ttl: Duration) -> Duration {
    ttl * 2 / 3
}

#[async_trait]
impl Reign for EtcdReign {
    fn term(&self) -> Term {
        self.term
    }

    fn holds_for(&self) -> Option<Duration> {
        Some(self.until().saturating_sub(clock::now()))
    }

    fn renewal_holds_for(&self) -> Option<Duration> {
        Some(surely(self.ttl))
    }

    fn renew_every(&self) -> Option<Duration> {
        Some(self.ttl / 6)
    }

    async fn renew(&self) -> Result<(), StoreError> {
        let asked = clock::now();
        let lease = self.lease;
        match self
            .etcd
            .ask(|mut c| async move { c.lease_keep_alive(lease).await })
            .await
        {
            Ok(_) => {
                let mut until = self.until();
                *until = (*until).max(fence(asked, self.ttl));
                Ok(())
            }
            Err(trouble) if trouble.lease_is_gone() => Err(StoreError::Lapsed { ours: self.term }),
            Err(trouble) => Err(self.etcd.error(trouble)),
        }
    }

    async fn append(&self, expected_revision: u64, record: &Record) -> Result<u64, StoreError> {
        let revision = expected_revision + 1;
        let value = log::encode(&self.etcd, self.term, revision, record)?;
        let give_up = clock::now() + self.etcd.options.patience;
        let (mut again, mut pause) = (false, RETRY_FIRST);
        loop {
            let trouble = match self.try_append(expected_revision, &value, again).await {
                Ok(answered) => return answered.map(|_: Written| revision),
                Err(trouble) => trouble,
            };
            if !trouble.is_unclear() {
                return Err(self.etcd.error(trouble));
            }
            tracing::debug!(%trouble, revision, "asking again what became of a record");
            if clock::now() + pause > give_up {
                let reason = trouble.to_string();
                return Err(StoreError::Unknown { revision, reason });
            }
            again = true;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Etcd refuses what needs space and does all else: the lease is renewed meanwhile.
    fn outlasts_a_full_store(&self) -> bool {
        true
    }

    async fn records(&self) -> Result<Vec<Record>, StoreError> {
        log::read(&self.etcd).await
    }

    async fn resign(&self) -> Result<(), StoreError> {
        *self.until() = Duration::ZERO;
        let lease = self.lease;
        match self.etcd.call(self.etcd.client().lease_revoke(lease)).await {
            Ok(_) => Ok(()),
            Err(trouble) if trouble.lease_is_gone() => Ok(()),
            Err(trouble) => Err(self.etcd.error(trouble)),
        }
    }
}
