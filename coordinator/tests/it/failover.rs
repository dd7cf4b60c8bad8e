//! Several coordinators over one real etcd: one leads, the others stand by.

use crate::stores::etcd::EtcdPlace;
use crate::stores::{Place as _, elected};
use crate::story::{Story, in_time, options};
use crate::{generations, steps, succeeded, worker};
use argosy_common::events::{Record, RunEvent, StampedEvent};
use argosy_common::exit::Exit;
use argosy_common::ids::{Generation, StateName, WorkerId};
use argosy_coordinator::store::{Campaign, MetaStore, RedbPlace, Sighting, StoreError};
use argosy_coordinator::{CoordinatorError, CoordinatorOptions, EVENTS_FILE, META_FILE, Outcome};
use argosy_rpc::Returning;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A port of loopback that was free a moment ago: a coordinator binds it when it is elected, not before.
fn free() -> SocketAddr {
    std::net::TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
}

fn among(dir: &Path, listen: SocketAddr) -> CoordinatorOptions {
    let mut options = options(dir, 2, 0);
    options.job.workers.min = 2; // one generation, not one of the first alone and a second when the other comes
    CoordinatorOptions {
        listen: Some(listen),
        spawns: false,
        outage_max_ms: 120_000,
        orphan_max_ms: 60_000,
        ..options
    }
}

struct House {
    place: EtcdPlace,
    dir: tempfile::TempDir,
    addresses: [SocketAddr; 2],
    first: Story,
}

impl House {
    /// A leader, two workers that know both addresses, six steps made.
    async fn with_six_steps() -> Self {
        Self::with_lease(Duration::from_secs(2)).await
    }

    async fn with_lease(lease: Duration) -> Self {
        let place = EtcdPlace::with_lease(1, lease).await;
        let dir = tempfile::tempdir().unwrap();
        let addresses = [free(), free()];
        let mut first = Story::stand(among(dir.path(), addresses[0]), place.store(), None);
        let endpoints: Vec<String> = addresses.iter().map(|a| format!("http://{a}")).collect();
        for id in [1, 2] {
            tokio::spawn(worker::live_among(first.world.clone(), WorkerId(id), endpoints.clone()));
        }
        first.world.open_gate(6);
        first.until_step(6).await;
        Self {
            place,
            dir,
            addresses,
            first,
        }
    }

    fn standby(&self) -> Story {
        let options = among(self.dir.path(), self.addresses[1]);
        Story::stand(options, self.place.store(), Some(self.first.world.clone()))
    }

    async fn formed(&self) -> Vec<Generation> {
        let records = self.place.store().records().await.unwrap();
        let formed = records.iter().filter_map(|record| match record {
            Record::GenerationFormed { generation, .. } => Some(*generation),
            _ => None,
        });
        formed.collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standby_takes_over_keeps_the_generation_and_members_train_meanwhile() {
    let mut house = House::with_six_steps().await;
    let before = house.formed().await;
    let mut second = house.standby();
    let killed = Instant::now();
    house.first.abandon().await;
    let world = house.first.world.clone();
    world.open_gate(12);
    for id in [1, 2] {
        world.until_applied(WorkerId(id), 12).await;
    }
    assert!(second.seen.is_empty(), "nobody leads yet");
    second.until(|e| matches!(e, RunEvent::RunStarted { .. })).await;
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(5), "it led {took:?} after the kill");
    // Orphans look for a coordinator ever more rarely, and nobody waits for them.
    for id in [1, 2] {
        let back = |e: &RunEvent| matches!(e, RunEvent::WorkerReady { worker } if worker.0 == id);
        second.until(back).await;
    }
    world.open_gate(u64::MAX);
    assert_eq!(
        succeeded(&second.outcome().await.unwrap()).applied_gen,
        before[before.len() - 1]
    );
    assert_eq!(house.formed().await, before, "nobody left, so nothing was formed");
    assert!(generations(&second.seen).is_empty());
    assert!(steps(&second.seen).contains(&20), "{:?}", steps(&second.seen));
    world.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deposed_leader_writes_nothing_more_and_stands_by() {
    let mut house = House::with_six_steps().await;
    let before = house.formed().await;
    // Its lease is taken away under it, as after a long stop of its process.
    let mut etcd = house.place.client().await;
    let throne = etcd.get("argosy/story-1/leader", None).await.unwrap();
    let mut second = house.standby();
    etcd.lease_revoke(throne.kvs()[0].lease()).await.unwrap();
    house.first.world.open_gate(u64::MAX);
    // Either may win the next election; the run goes on under one of them and both hear of its end.
    let ends = tokio::join!(house.first.outcome(), second.outcome());
    for end in [ends.0, ends.1] {
        succeeded(&end.unwrap());
    }
    house.first.world.assert_clean();
    let formed = house.formed().await;
    assert!(formed.starts_with(&before), "{formed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_train_on_while_etcd_is_away_longer_than_the_leaders_lease() {
    let mut house = House::with_six_steps().await;
    let before = house.formed().await;
    let proxy = &house.place.proxies[0];
    let etcd = house.place.servers.proxy(0).await; // ours, past the door that is closed to the coordinator
    let mut witness = etcd_client::Client::connect([etcd.address.as_str()], None)
        .await
        .unwrap();
    proxy.close();
    house.first.world.open_gate(12);
    for id in [1, 2] {
        house.first.world.until_applied(WorkerId(id), 12).await;
    }
    // The store gives the throne up; the leader cannot know and promises nothing beyond its own deadline.
    while !witness
        .get("argosy/story-1/leader", None)
        .await
        .unwrap()
        .kvs()
        .is_empty()
    {
        tokio::task::yield_now().await;
    }
    house.first.world.open_gate(16);
    for id in [1, 2] {
        house.first.world.until_applied(WorkerId(id), 16).await;
    }
    house.place.proxies[0].open();
    house.first.world.open_gate(u64::MAX);
    succeeded(&house.first.outcome().await.unwrap());
    assert_eq!(house.formed().await, before, "its next reign kept the generation");
    house.first.world.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_whose_etcd_is_full_says_what_to_do_and_goes_on_when_there_is_room() {
    let mut house = House::with_six_steps().await;
    let before = house.formed().await;
    house.place.fill().await;
    // Asked of one that is full, an election cannot be held: a standby waits, too.
    let mut second = house.standby();
    house.first.world.open_gate(u64::MAX);
    // To the last step nothing has to be written; its checkpoint has.
    for id in [1, 2] {
        house.first.world.until_applied(WorkerId(id), 18).await;
    }
    house
        .first
        .until(|e| matches!(e, RunEvent::StoreFilledUp { reason } if reason.contains("NOSPACE") && reason.contains("quota")))
        .await;
    let committed = |e: &StampedEvent| matches!(e.event, RunEvent::CheckpointCommitted { .. });
    assert!(!house.first.seen.iter().any(committed));
    house.place.make_room().await;
    let name = succeeded(&house.first.outcome().await.unwrap());
    assert_eq!((name.step, name.applied_gen), (20, before[before.len() - 1]));
    assert!(house.first.seen.iter().any(|e| e.event == RunEvent::StoreHasRoom));
    succeeded(&second.outcome().await.unwrap());
    assert_eq!(house.formed().await, before);
    house.first.world.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_that_returns_with_a_state_of_another_configuration_or_other_data_is_refused_and_nobody_else_notices() {
    let mut house = House::with_six_steps().await;
    let endpoint = format!("http://{}", house.addresses[0]);
    let own = Returning {
        config_hash: among(house.dir.path(), house.addresses[0]).job.config_hash(),
        index_hash: 5,
    };
    let config = Returning {
        config_hash: own.config_hash ^ 1,
        ..own
    };
    let data = Returning { index_hash: 6, ..own };
    for (returning, word) in [(config, "another training configuration"), (data, "another index")] {
        let refused = in_time(worker::enter(&endpoint, WorkerId(3), Some(returning)))
            .await
            .unwrap_err();
        assert_eq!(refused.exit(), Exit::Conflict, "{refused}");
        let said = refused.to_string();
        assert!(said.contains(word) && said.contains("start it anew"), "{said}");
    }
    house.first.world.open_gate(u64::MAX);
    succeeded(&house.first.outcome().await.unwrap());
    assert_eq!(generations(&house.first.seen).len(), 1, "{:?}", house.first.seen);
    house.first.world.assert_clean();
}

/// A store over a file that mends something when somebody stands for the second time.
#[derive(Debug)]
struct Mending {
    place: RedbPlace,
    campaigns: AtomicU32,
    /// Where events cannot be written at first.
    broken: PathBuf,
}

#[tonic::async_trait]
impl MetaStore for Mending {
    async fn campaign(&self, address: &str) -> Result<Campaign, StoreError> {
        if self.campaigns.fetch_add(1, Ordering::SeqCst) == 1 {
            std::fs::remove_file(&self.broken).unwrap();
        }
        self.place.campaign(address).await
    }

    async fn vacated(&self, seen: &Sighting) -> Result<(), StoreError> {
        self.place.vacated(seen).await
    }

    async fn records(&self) -> Result<Vec<Record>, StoreError> {
        self.place.records().await
    }
}

/// Events go to a device that is always full: the journal fails with its first line. A bug that stays ends it in the end.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_actor_ends_a_reign_and_the_next_one_goes_on_from_the_store() {
    for mends in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let options = CoordinatorOptions {
            listen: Some(free()),
            ..options(dir.path(), 1, 0)
        };
        let events = dir.path().join(EVENTS_FILE);
        std::os::unix::fs::symlink("/dev/full", &events).unwrap();
        let store = Arc::new(Mending {
            place: RedbPlace::new(dir.path().join(META_FILE)),
            campaigns: AtomicU32::new(if mends { 0 } else { 2 }),
            broken: events,
        });
        let mut story = Story::stand(options, store.clone(), None);
        story.world.open_gate(u64::MAX);
        let ended = story.outcome().await;
        if mends {
            succeeded(&ended.unwrap());
        } else {
            let error = ended.unwrap_err();
            assert!(
                matches!(error, CoordinatorError::ActorFailed { actor: "journal", .. }),
                "{error}"
            );
            assert!(
                store.campaigns.load(Ordering::SeqCst) == 2 + 4,
                "it stood again before it gave up"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_that_leaves_hands_over_before_its_lease_runs_out_and_the_generation_is_kept() {
    let mut house = House::with_lease(Duration::from_secs(60)).await;
    let before = house.formed().await;
    let mut second = house.standby();
    let left = Instant::now();
    house.first.handle.leave();
    let ended = in_time(house.first.outcome()).await.unwrap_err();
    assert!(matches!(ended, CoordinatorError::Left), "{ended}");
    second.until(|e| matches!(e, RunEvent::RunStarted { .. })).await;
    assert!(left.elapsed() < Duration::from_secs(30), "{:?}", left.elapsed());
    house.first.world.open_gate(u64::MAX);
    succeeded(&second.outcome().await.unwrap());
    assert_eq!(house.formed().await, before, "nobody left, so nothing was formed");
    house.first.world.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_without_an_id_is_given_one_that_nobody_had() {
    let place = EtcdPlace::new(1).await;
    let dir = tempfile::tempdir().unwrap();
    let address = free();
    let mut first = Story::stand(among(dir.path(), address), place.store(), None);
    let endpoint = format!("http://{address}");
    let mut given = Vec::new();
    while given.len() < 3 {
        match worker::join(&endpoint, argosy_rpc::NO_ID).await {
            Ok(session) => given.push(session.welcome.worker),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await, // nobody leads yet
        }
    }
    first.abandon().await;
    let address = free();
    let mut options = among(dir.path(), address);
    options.listen = Some(address);
    let _second = Story::stand(options, place.store(), Some(first.world.clone()));
    let endpoint = format!("http://{address}");
    let next = loop {
        match worker::join(&endpoint, argosy_rpc::NO_ID).await {
            Ok(session) => break session.welcome.worker,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await, // its lease has to run out
        }
    };
    assert!(
        given.is_sorted() && given.iter().all(|id| *id < next && id.0 > 0),
        "{given:?}, {next}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_ends_a_standby_and_leaves_the_leader_alone() {
    let place = EtcdPlace::new(1).await;
    let dir = tempfile::tempdir().unwrap();
    let reign = elected(&place.store()).await;
    let mut standby = Story::stand(among(dir.path(), free()), place.store(), None);
    standby.handle.stop();
    let ended = in_time(standby.outcome()).await.unwrap();
    assert!(
        matches!(
            ended,
            Outcome::Interrupted {
                name: StateName::INITIAL
            }
        ),
        "{ended:?}"
    );
    reign.renew().await.unwrap();
}
