//! The simulator's store, on its virtual clock.

use super::{Place, record};
use argosy_common::events::Record;
use argosy_common::ids::Term;
use argosy_coordinator::store::{Campaign, MetaStore, Reign, Sighting, StoreError};
use argosy_sim::etcd::{Etcd, Op, Reply};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tonic::async_trait;

const LEASE_MS: u64 = 2_000;

#[derive(Debug)]
struct World {
    etcd: Etcd,
    now: u64,
    answers_lost: bool,
    answer_ms: u64,
}

#[derive(Clone, Debug)]
struct Store {
    world: Arc<Mutex<World>>,
    changed: Arc<watch::Sender<()>>,
}

impl Store {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn pass(&self, ms: u64) {
        let mut world = self.world();
        world.now += ms;
        let now = world.now;
        world.etcd.expire(now);
        self.changed.send_replace(());
    }

    /// `None`: no answer came.
    fn execute(&self, op: Op) -> Option<Reply> {
        let mut world = self.world();
        let now = world.now;
        let reply = world.etcd.execute(op, 0, 0, now);
        world.now += world.answer_ms;
        self.changed.send_replace(());
        (!world.answers_lost).then_some(reply)
    }
}

#[async_trait]
impl MetaStore for Store {
    async fn campaign(&self, _: &str) -> Result<Campaign, StoreError> {
        let asked = self.world().now;
        match self.execute(Op::Campaign) {
            Some(Reply::Elected { term }) => Ok(Campaign::Elected(Arc::new(SimReign {
                store: self.clone(),
                term,
                until: Mutex::new(asked + LEASE_MS * 2 / 3),
            }))),
            Some(Reply::Taken { revision }) => Ok(Campaign::Taken(Sighting { leader: None, revision })),
            other => panic!("a campaign was answered with {other:?}"),
        }
    }

    async fn vacated(&self, seen: &Sighting) -> Result<(), StoreError> {
        let mut changes = self.changed.subscribe();
        let mut from = seen.revision;
        loop {
            {
                let world = self.world();
                match world.etcd.watch(from) {
                    Ok(heard) if heard.iter().any(|change| change.deleted) => return Ok(()),
                    Ok(_) => {}
                    Err(_) if world.etcd.leader().is_none() => return Ok(()),
                    Err(_) => from = world.etcd.revision(),
                }
            }
            let _ = changes.changed().await;
        }
    }

    async fn records(&self) -> Result<Vec<Record>, StoreError> {
        Ok(self.world().etcd.records().to_vec())
    }
}

#[derive(Debug)]
struct SimReign {
    store: Store,
    term: Term,
    until: Mutex<u64>,
}

#[async_trait]
impl Reign for SimReign {
    fn term(&self) -> Term {
        self.term
    }

    fn holds_for(&self) -> Option<Duration> {
        let now = self.store.world().now;
        Some(Duration::from_millis(self.until.lock().unwrap().saturating_sub(now)))
    }

    fn renewal_holds_for(&self) -> Option<Duration> {
        Some(Duration::from_millis(LEASE_MS * 2 / 3))
    }

    fn renew_every(&self) -> Option<Duration> {
        Some(Duration::from_millis(LEASE_MS / 6))
    }

    async fn renew(&self) -> Result<(), StoreError> {
        let asked = self.store.world().now;
        match self.store.execute(Op::Renew { term: self.term }) {
            Some(Reply::Renewed { .. }) => {
                *self.until.lock().unwrap() = asked + LEASE_MS * 2 / 3;
                Ok(())
            }
            _ => Err(StoreError::Lapsed { ours: self.term }),
        }
    }

    async fn append(&self, expected_revision: u64, record: &Record) -> Result<u64, StoreError> {
        let op = Op::Append {
            term: self.term,
            expected: expected_revision as usize,
            record: Box::new(record.clone()),
        };
        let ours = self.term;
        match self.store.execute(op) {
            Some(Reply::Appended) => Ok(expected_revision + 1),
            Some(_) => {
                let world = self.store.world();
                Err(match world.etcd.leader().map(|leader| leader.term) {
                    None => StoreError::Lapsed { ours },
                    Some(theirs) if theirs != ours => StoreError::Fenced { ours, theirs },
                    Some(_) => StoreError::Conflict {
                        expected: expected_revision,
                        found: world.etcd.records().len() as u64,
                    },
                })
            }
            None => Err(StoreError::Unknown {
                revision: expected_revision + 1,
                reason: "no answer".into(),
            }),
        }
    }

    async fn records(&self) -> Result<Vec<Record>, StoreError> {
        self.store.records().await
    }

    async fn resign(&self) -> Result<(), StoreError> {
        self.store.world().etcd.forget_leader();
        self.store.changed.send_replace(());
        Ok(())
    }
}

pub(crate) struct SimPlace(Store);

impl SimPlace {
    pub(crate) fn new() -> Self {
        Self(Store {
            world: Arc::new(Mutex::new(World {
                etcd: Etcd::new(LEASE_MS, true),
                now: 0,
                answers_lost: false,
                answer_ms: 0,
            })),
            changed: Arc::new(watch::Sender::new(())),
        })
    }
}

#[async_trait]
impl Place for SimPlace {
    fn store(&self) -> Arc<dyn MetaStore> {
        Arc::new(self.0.clone())
    }

    async fn outlive(&mut self, _reign: Arc<dyn Reign>) {
        self.0.pass(LEASE_MS);
    }

    async fn forget_history(&mut self) {
        self.0.world().etcd.compact();
    }

    async fn append_unheard(&mut self, reign: &Arc<dyn Reign>, revision: u64) -> Result<u64, String> {
        self.0.world().answers_lost = true;
        let done = reign.append(revision - 1, &record(revision)).await;
        self.0.world().answers_lost = false;
        done.map_err(|e| e.to_string())
    }

    async fn fill(&mut self) {
        panic!("the simulated store has no size");
    }

    async fn make_room(&mut self) {}

    fn slow(&mut self, ms: u64) {
        self.0.world().answer_ms = ms;
    }
}
