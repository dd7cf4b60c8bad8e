//! The store of a cluster: etcd. One key is the throne, bound to a lease; the others are records that are only ever created.
//!
//! | key | value |
//! |---|---|
//! | `argosy/RUN/leader` | the leader's address; the key's creation revision is the term (rule G6) |
//! | `argosy/RUN/format` | version of what is written below |
//! | `argosy/RUN/records/NUMBER` | one record, with the term that wrote it |
//!
//! Every write is one transaction that compares the throne's creation revision, so the store itself turns away whoever was
//! deposed. A record's key must not exist and the one before it must: a lost answer is asked for again until the store says
//! what became of it, and asking twice writes once.

mod client;
mod log;
mod reign;

pub use client::{EtcdOptions, EtcdTls, LEASE_MIN};

use super::{Campaign, MetaStore, Sighting, StoreError};
use argosy_common::events::Record;
use argosy_common::ids::Term;
use argosy_rpc::clock;
use client::{Etcd, Trouble};
use etcd_client::{
    Compare, CompareOp, EventType, GetOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse, WatchOptions,
};
use reign::EtcdReign;
use std::sync::Arc;
use std::time::Duration;
use tonic::async_trait;

/// Version of keys and values.
const FORMAT: u64 = 1;
/// After a watch has ended it is begun again so much later, at most.
const WATCH_PAUSE_MAX: Duration = Duration::from_secs(2);
const WATCH_PAUSE_FIRST: Duration = Duration::from_millis(50);

/// A run's records in etcd.
#[derive(Clone, Debug)]
pub struct EtcdStore {
    etcd: Arc<Etcd>,
}

/// Names of a run's keys.
#[derive(Clone, Debug)]
struct Keys {
    leader: String,
    format: String,
    records: String,
}

impl Keys {
    fn new(run: &str) -> Self {
        Self {
            leader: format!("argosy/{run}/leader"),
            format: format!("argosy/{run}/format"),
            records: format!("argosy/{run}/records/"),
        }
    }

    /// Numbers have one length, so that keys stand in their order.
    fn record(&self, revision: u64) -> String {
        format!("{}{revision:016x}", self.records)
    }
}

impl EtcdStore {
    /// Connects. Etcd may be away: then the first campaign says so.
    ///
    /// # Errors
    /// [`StoreError::BadOptions`]; [`StoreError::Denied`] or [`StoreError::Unreachable`] if there is a user to log in.
    pub async fn connect(options: EtcdOptions) -> Result<Self, StoreError> {
        let etcd = Etcd::connect(options).await?;
        Ok(Self { etcd: Arc::new(etcd) })
    }

    async fn check_format(&self) -> Result<(), StoreError> {
        let key = self.etcd.keys.format.as_str();
        let found = self.etcd.ask(|mut c| async move { c.get(key, None).await }).await;
        let found = found.map_err(|e| self.etcd.error(e))?;
        let Some(kv) = found.kvs().first() else { return Ok(()) };
        let text = String::from_utf8_lossy(kv.value());
        match text.parse::<u64>() {
            Ok(found) if found <= FORMAT => Ok(()),
            Ok(found) => Err(StoreError::Newer {
                place: self.etcd.place(),
                found,
                known: FORMAT,
            }),
            Err(_) => Err(self.etcd.broken(0, format!("{key} is `{text}`, not a version"))),
        }
    }

    /// Creates the throne's key under `lease`, or tells who has it.
    async fn take_throne(&self, address: &str, lease: i64) -> Result<Throne, Trouble> {
        let keys = &self.etcd.keys;
        let vacant = Compare::create_revision(keys.leader.as_str(), CompareOp::Equal, 0);
        let bound = PutOptions::new().with_lease(lease);
        let txn = Txn::new()
            .when([vacant])
            .and_then([
                TxnOp::put(keys.leader.as_str(), address, Some(bound)),
                TxnOp::put(keys.format.as_str(), FORMAT.to_string(), None),
            ])
            .or_else([TxnOp::get(keys.leader.as_str(), None)]);
        let answer = self.etcd.call(self.etcd.client().txn(txn.clone())).await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        if answer.succeeded() {
            return Ok(Throne::Ours { created: revision });
        }
        match first_of(&answer.op_responses(), 0) {
            // An earlier try had come through and its answer was lost: no two leases have one id.
            Some(kv) if kv.lease() == lease => Ok(Throne::Ours {
                created: kv.create_revision(),
            }),
            found => Ok(Throne::Taken(Sighting {
                leader: found.map(|kv| String::from_utf8_lossy(kv.value()).into_owned()),
                revision: revision.unsigned_abs(),
            })),
        }
    }

    /// Follows the throne's key until it is deleted (true) or the watch breaks or lags behind a compaction (false).
    async fn watch_throne(&self, from: i64) -> Result<bool, Trouble> {
        let options = WatchOptions::new().with_start_revision(from).with_progress_notify();
        let key = self.etcd.keys.leader.as_str();
        let mut stream = self
            .etcd
            .call(self.etcd.client().watch(key, Some(options.clone())))
            .await?;
        while let Some(heard) = stream.message().await? {
            if heard.canceled() {
                tracing::debug!(compacted = heard.compact_revision(), "a watch was ended by the store");
                return Ok(false);
            }
            if heard.events().iter().any(|e| e.event_type() == EventType::Delete) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

enum Throne {
    Ours { created: i64 },
    Taken(Sighting),
}

#[async_trait]
impl MetaStore for EtcdStore {
    async fn campaign(&self, address: &str) -> Result<Campaign, StoreError> {
        self.check_format().await?;
        let asked = clock::now();
        let lease = self.etcd.options.lease.as_secs().cast_signed();
        // A grant whose answer was lost runs out unused.
        let granted = self
            .etcd
            .ask(|mut c| async move { c.lease_grant(lease, None).await })
            .await;
        let granted = granted.map_err(|e| self.etcd.error(e))?;
        // The store may have raised it: what counts is its answer.
        let ttl = Duration::from_secs(granted.ttl().unsigned_abs());
        let mut tried = self.take_throne(address, granted.id()).await;
        while let Err(trouble) = &tried {
            // Within the lease's time a lost answer can still be asked for; after it the key is gone with the lease.
            if !trouble.is_unclear() || clock::now() > asked + ttl {
                break;
            }
            tokio::time::sleep(WATCH_PAUSE_FIRST).await;
            tried = self.take_throne(address, granted.id()).await;
        }
        match tried.map_err(|e| self.etcd.error(e))? {
            Throne::Ours { created } => {
                let term = Term(created.unsigned_abs());
                let reign = EtcdReign::new(Arc::clone(&self.etcd), term, granted.id(), ttl, asked);
                Ok(Campaign::Elected(Arc::new(reign)))
            }
            Throne::Taken(seen) => {
                let id = granted.id();
                if let Err(error) = self.etcd.call(self.etcd.client().lease_revoke(id)).await {
                    tracing::debug!(?error, "a lease that is not needed is left to run out");
                }
                Ok(Campaign::Taken(seen))
            }
        }
    }

    async fn vacated(&self, seen: &Sighting) -> Result<(), StoreError> {
        let mut from = seen.revision.cast_signed() + 1;
        let mut pause = WATCH_PAUSE_FIRST;
        loop {
            match self.watch_throne(from).await {
                Ok(true) => return Ok(()),
                Ok(false) => pause = WATCH_PAUSE_FIRST,
                Err(trouble) if trouble.is_unclear() => tracing::debug!(?trouble, "a watch broke"),
                Err(trouble) => return Err(self.etcd.error(trouble)),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(WATCH_PAUSE_MAX);
            // Events may have been missed: what holds now is read, and the watch goes on from there.
            let key = self.etcd.keys.leader.as_str();
            match self.etcd.call(self.etcd.client().get(key, None)).await {
                Ok(found) if found.kvs().is_empty() => return Ok(()),
                Ok(found) => from = found.header().map_or(from, |header| header.revision() + 1),
                Err(trouble) if trouble.is_unclear() => {}
                Err(trouble) => return Err(self.etcd.error(trouble)),
            }
        }
    }

    async fn records(&self) -> Result<Vec<Record>, StoreError> {
        log::read(&self.etcd).await
    }
}

/// The first pair that the `index`th operation of a transaction's branch found.
fn first_of(responses: &[TxnOpResponse], index: usize) -> Option<KeyValue> {
    match responses.get(index) {
        Some(TxnOpResponse::Get(found)) => found.kvs().first().cloned(),
        _ => None,
    }
}

/// The last record's key, without its value.
fn last_key() -> GetOptions {
    GetOptions::new()
        .with_prefix()
        .with_sort(etcd_client::SortTarget::Key, etcd_client::SortOrder::Descend)
        .with_limit(1)
        .with_keys_only()
}
