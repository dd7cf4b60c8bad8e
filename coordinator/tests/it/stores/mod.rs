//! What every store promises a coordinator, asked of all of them: the file of one machine, real etcd servers, and the store
//! of the simulator's worlds.

pub(crate) mod etcd;
mod file;
mod secured;
mod simulated;

use crate::story::in_time;
use argosy_common::events::Record;
use argosy_coordinator::store::{Campaign, MetaStore, Reign, Sighting, StoreError};
use etcd::EtcdPlace;
use file::FilePlace;
use simulated::SimPlace;
use std::sync::Arc;
use std::time::Duration;
use tonic::async_trait;

/// A store with what can happen to it.
#[async_trait]
pub(crate) trait Place: Send {
    fn store(&self) -> Arc<dyn MetaStore>;
    /// Time passes in which nobody renews `reign`, until its lease is over.
    async fn outlive(&mut self, reign: Arc<dyn Reign>);
    /// Watches that lag behind now cannot go on from where they were.
    async fn forget_history(&mut self);
    /// Appends [`record`] `revision`; the store does it, and its answer does not come.
    async fn append_unheard(&mut self, reign: &Arc<dyn Reign>, revision: u64) -> Result<u64, String>;
    /// Uses all space up.
    async fn fill(&mut self);
    async fn make_room(&mut self);
    /// From now on every answer takes so long.
    fn slow(&mut self, ms: u64);
}

pub(crate) fn record(attempt: u64) -> Record {
    Record::CheckpointOpened {
        attempt,
        at_step: attempt,
    }
}

fn records(upto: u64) -> Vec<Record> {
    (1..=upto).map(record).collect()
}

pub(crate) async fn elected(store: &Arc<dyn MetaStore>) -> Arc<dyn Reign> {
    match store.campaign("here").await.unwrap() {
        Campaign::Elected(reign) => reign,
        Campaign::Taken(seen) => panic!("somebody else reigns: {seen:?}"),
    }
}

async fn taken(store: &Arc<dyn MetaStore>) -> Sighting {
    match store.campaign("there").await.unwrap() {
        Campaign::Taken(seen) => seen,
        Campaign::Elected(reign) => panic!("two reign: {reign:?}"),
    }
}

async fn append_compares_the_revision(place: impl Place) {
    let store = place.store();
    let reign = elected(&store).await;
    assert_eq!(reign.append(0, &record(1)).await.unwrap(), 1);
    for wrong in [0, 2, 7] {
        let refused = reign.append(wrong, &record(9)).await.unwrap_err();
        let StoreError::Conflict { expected, found: 1 } = refused else {
            panic!("{refused}");
        };
        assert_eq!(expected, wrong);
    }
    for next in 2..=30 {
        assert_eq!(reign.append(next - 1, &record(next)).await.unwrap(), next);
    }
    assert_eq!(store.records().await.unwrap(), records(30));
    assert_eq!(reign.records().await.unwrap(), records(30));
}

async fn one_reigns_and_a_later_reign_has_a_greater_term(place: impl Place) {
    let store = place.store();
    let first = elected(&store).await;
    let seen = taken(&store).await;
    assert_eq!(taken(&store).await.leader, seen.leader);
    first.append(0, &record(1)).await.unwrap();
    let term = first.term();
    first.resign().await.unwrap();
    drop(first); // of a file it is the end of the process that gives it up
    store.vacated(&seen).await.unwrap();
    let second = elected(&store).await;
    assert!(second.term() > term, "{:?} behind {term:?}", second.term());
    assert_eq!(second.append(1, &record(2)).await.unwrap(), 2);
    assert_eq!(store.records().await.unwrap(), records(2));
}

/// Not asked of the file: its reign ends with its process.
async fn reign_whose_lease_ran_out_writes_nothing_more_and_knew_before(mut place: impl Place) {
    let store = place.store();
    let old = elected(&store).await;
    old.append(0, &record(1)).await.unwrap();
    old.renew().await.unwrap();
    let held = old.holds_for().unwrap();
    assert!(held > Duration::ZERO && held < Duration::from_secs(2), "{held:?}");
    assert!(held > old.renew_every().unwrap() * 2, "one renewal may fail");
    place.outlive(Arc::clone(&old)).await;
    assert_eq!(old.holds_for(), Some(Duration::ZERO), "it fenced itself before");
    let refused = old.append(1, &record(2)).await.unwrap_err();
    assert!(refused.is_deposed(), "{refused}");
    let new = elected(&store).await;
    for _ in 0..2 {
        let refused = old.append(1, &record(2)).await.unwrap_err();
        assert!(
            matches!(&refused, StoreError::Fenced { ours, theirs } if *ours == old.term() && *theirs == new.term())
        );
    }
    let over = old.renew().await.unwrap_err();
    assert!(over.is_deposed(), "{over}");
    assert_eq!(new.append(1, &record(2)).await.unwrap(), 2);
    assert_eq!(store.records().await.unwrap(), records(2));
}

async fn watcher_behind_a_compaction_still_hears_that_the_throne_is_vacant(mut place: impl Place) {
    let store = place.store();
    let reign = elected(&store).await;
    let seen = taken(&store).await;
    for next in 1..=3 {
        reign.append(next - 1, &record(next)).await.unwrap();
    }
    // One begins to watch where history has been forgotten and hears later; one when everything is over.
    place.forget_history().await;
    let (watched, from) = (Arc::clone(&store), seen.clone());
    let watching = tokio::spawn(async move { watched.vacated(&from).await });
    tokio::task::yield_now().await;
    reign.resign().await.unwrap();
    drop(reign);
    place.forget_history().await;
    watching.await.unwrap().unwrap();
    store.vacated(&seen).await.unwrap();
    elected(&store).await;
}

async fn append_whose_answer_is_lost_is_written_once_or_its_outcome_is_unknown(mut place: impl Place) {
    let store = place.store();
    let reign = elected(&store).await;
    reign.append(0, &record(1)).await.unwrap();
    let done = place.append_unheard(&reign, 2).await;
    // In doubt the coordinator ends; what reigns next believes the store.
    let reign = match &done {
        Ok(revision) => {
            assert_eq!(*revision, 2);
            reign
        }
        Err(_) => {
            place.outlive(reign).await;
            elected(&store).await
        }
    };
    let stored = reign.records().await.unwrap();
    assert!(
        stored == records(2) || done.is_err() && stored == records(1),
        "{stored:?}"
    );
    let last = stored.len() as u64;
    assert_eq!(reign.append(last, &record(last + 1)).await.unwrap(), last + 1);
    assert_eq!(store.records().await.unwrap(), records(last + 1));
}

/// Not asked of the simulated store, which has no size.
async fn store_without_space_says_so_and_writes_nothing(mut place: impl Place) {
    let store = place.store();
    let reign = elected(&store).await;
    reign.append(0, &record(1)).await.unwrap();
    place.fill().await;
    let mut refused = None;
    // There may be a last free page.
    for next in 2..2_000 {
        if let Err(error) = reign.append(next - 1, &record(next)).await {
            refused = Some((next, error));
            break;
        }
    }
    let (number, error) = refused.expect("it took two thousand records");
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(error.to_string().contains("nothing was written"), "{error}");
    place.make_room().await;
    place.outlive(reign).await;
    let reign = elected(&store).await;
    assert_eq!(reign.records().await.unwrap(), records(number - 1));
    assert_eq!(reign.append(number - 1, &record(number)).await.unwrap(), number);
}

async fn slow_store_is_waited_for_and_its_reign_goes_on(mut place: impl Place) {
    let store = place.store();
    let reign = elected(&store).await;
    place.slow(150);
    for next in 1..=3 {
        assert_eq!(reign.append(next - 1, &record(next)).await.unwrap(), next);
        reign.renew().await.unwrap();
        assert_ne!(reign.holds_for(), Some(Duration::ZERO));
    }
    place.slow(0);
    assert_eq!(store.records().await.unwrap(), records(3));
}

macro_rules! conformance {
    ($($property:ident: $($store:ident)+;)+) => {$(
        mod $property {
            $(conformance!(@ $store $property);)+
        }
    )+};
    (@ file $property:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn file() { super::super::in_time(super::$property(super::FilePlace::default())).await }
    };
    (@ etcd $property:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn etcd() { super::super::in_time(async { super::$property(super::EtcdPlace::new(1).await).await }).await }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = "three servers on two cores: the long tier"]
        async fn etcd_of_three() { super::super::in_time(async { super::$property(super::EtcdPlace::new(3).await).await }).await }
    };
    (@ simulated $property:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn simulated() { super::super::in_time(super::$property(super::SimPlace::new())).await }
    };
}

conformance! {
    append_compares_the_revision: file etcd simulated;
    one_reigns_and_a_later_reign_has_a_greater_term: file etcd simulated;
    reign_whose_lease_ran_out_writes_nothing_more_and_knew_before: etcd simulated;
    watcher_behind_a_compaction_still_hears_that_the_throne_is_vacant: file etcd simulated;
    append_whose_answer_is_lost_is_written_once_or_its_outcome_is_unknown: file etcd simulated;
    store_without_space_says_so_and_writes_nothing: file etcd;
    slow_store_is_waited_for_and_its_reign_goes_on: file etcd simulated;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "three servers on two cores: the long tier"]
async fn reign_outlives_the_death_of_any_one_server_and_loses_no_record() {
    let mut place = EtcdPlace::new(3).await;
    let store = place.store();
    let reign = elected(&store).await;
    let mut revision = 0;
    for member in 0..3 {
        // One of the three leads the others; whoever it is, it is killed once.
        place.servers.kill(member);
        for _ in 0..20 {
            revision = reign.append(revision, &record(revision + 1)).await.unwrap();
            let renewed = reign.renew().await;
            assert!(
                !renewed.is_err_and(|e| e.is_deposed()),
                "a change of etcd's leader prolongs leases"
            );
        }
        place.servers.restart(member);
        while reign.renew().await.is_err() {}
        revision = reign.append(revision, &record(revision + 1)).await.unwrap();
    }
    assert_eq!(store.records().await.unwrap(), records(revision));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_that_was_away_finds_the_reign_as_it_was_and_the_record_that_waited() {
    let place = EtcdPlace::with_lease(1, Duration::from_secs(20)).await;
    let store = place.store();
    let reign = elected(&store).await;
    reign.append(0, &record(1)).await.unwrap();
    place.proxies[0].close();
    let away = reign.renew().await.unwrap_err();
    assert!(matches!(away, StoreError::Unreachable { .. }), "{away}");
    let waiting = Arc::clone(&reign);
    let appending = tokio::spawn(async move { waiting.append(1, &record(2)).await });
    assert!(store.records().await.is_err(), "it is away");
    place.proxies[0].open();
    assert_eq!(in_time(appending).await.unwrap().unwrap(), 2);
    reign.renew().await.unwrap();
    assert_eq!(store.records().await.unwrap(), records(2));
}

#[tokio::test]
async fn options_that_etcd_cannot_meet_are_refused_with_the_reason() {
    use argosy_coordinator::store::EtcdStore;
    let good = || etcd::etcd_options(vec!["http://127.0.0.1:1".into()]);
    let mut short = good();
    short.lease = Duration::from_millis(1_500);
    let mut nowhere = good();
    nowhere.endpoints.clear();
    let mut name = good();
    name.run = "../other".into();
    let mut clear = good();
    clear.endpoints = vec!["http://etcd.example:2379".into()];
    clear.user = Some(("root".into(), "secret".into()));
    for (options, word) in [
        (short, "G12"),
        (nowhere, "endpoint"),
        (name, "../other"),
        (clear, "in clear"),
    ] {
        let error = EtcdStore::connect(options).await.unwrap_err();
        assert!(matches!(error, StoreError::BadOptions { .. }), "{error}");
        assert!(
            error.to_string().contains(word) && !error.to_string().contains("secret"),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_that_stands_still_as_on_a_stalled_disk_is_waited_for_and_writes_once() {
    let mut place = EtcdPlace::with_lease(1, Duration::from_secs(20)).await;
    let store = place.store();
    let reign = elected(&store).await;
    assert_eq!(reign.append(0, &record(1)).await.unwrap(), 1);
    for next in 2..=4 {
        place.servers.stand_still(0, true);
        let (writer, asked) = (Arc::clone(&reign), record(next));
        let appending = tokio::spawn(async move { writer.append(next - 1, &asked).await });
        // The first try is given up meanwhile, and asked for again.
        assert!(reign.renew().await.is_err(), "it stands still");
        assert!(!appending.is_finished());
        place.servers.stand_still(0, false);
        assert_eq!(in_time(appending).await.unwrap().unwrap(), next);
    }
    reign.renew().await.unwrap();
    assert_eq!(store.records().await.unwrap(), records(4));
}
