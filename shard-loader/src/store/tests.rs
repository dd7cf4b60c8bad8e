//! Reads that get through and reads that must not, told to a store that fails on purpose. Numbers are those of the list of
//! faults the project checks (object store and data, 34 to 40).

use super::policy::Latency;
use super::reader::{Pinned, ReadCounters, ReadError, Reader};
use super::*;
use argosy_test_stores::{Fault, Faults, FaultyStore, Op, Rule, Storm};
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{ObjectStoreExt, PutPayload};
use std::time::Duration;
use tokio::time::Instant;

struct World {
    store: FaultyStore,
    faults: Faults,
    policy: RetryPolicy,
    latency: Latency,
    counters: ReadCounters,
    content: Vec<u8>,
    etag: Option<String>,
}

const KEY: &str = "0.tar";
const SIZE: usize = 300_000;

async fn world() -> World {
    let content: Vec<u8> = (0..SIZE as u32).map(|i| (i % 251) as u8).collect();
    let faults = Faults::default();
    let store = FaultyStore::new(Arc::new(InMemory::new()), faults.clone());
    let etag = store
        .put(&Key::from(KEY), PutPayload::from(content.clone()))
        .await
        .expect("written")
        .e_tag;
    World {
        store,
        faults,
        policy: RetryPolicy::default(),
        latency: Latency::default(),
        counters: ReadCounters::default(),
        content,
        etag,
    }
}

impl World {
    async fn read(&self, range: Range<u64>) -> Result<Bytes, ReadError> {
        let reader = Reader {
            objects: &self.store,
            policy: &self.policy,
            latency: Some(&self.latency),
            counters: &self.counters,
        };
        let pinned = Pinned {
            bytes: SIZE as u64,
            etag: self.etag.as_deref(),
        };
        reader.read(&Key::from(KEY), range, pinned).await
    }

    /// The keys under `set`, as a reader of `store` lists them.
    async fn listed(&self, store: &FaultyStore) -> Result<Vec<String>, ReadError> {
        let reader = Reader {
            objects: store,
            policy: &self.policy,
            latency: Some(&self.latency),
            counters: &self.counters,
        };
        let listed = reader.list(&Key::from("set")).await?;
        Ok(listed.into_iter().map(|meta| meta.location.to_string()).collect())
    }

    async fn reads_well(&self) {
        let bytes = self.read(1000..SIZE as u64).await.expect("gets through");
        assert!(bytes == self.content[1000..], "the bytes of the object, once each");
    }

    fn fail(&self, fault: Fault) {
        self.faults.add(Rule::new(Op::Get, fault));
    }

    /// Ranges asked for, in order.
    fn asked(&self) -> Vec<Range<u64>> {
        let calls = self.faults.calls();
        calls
            .into_iter()
            .filter(|c| c.op == Op::Get)
            .filter_map(|c| c.range)
            .collect()
    }
}

// 34: SlowDown, 429, time-outs and stalls pass, with pauses and within a budget.
#[tokio::test(start_paused = true)]
async fn read_through_busy_answers_gets_every_byte_once() {
    let w = world().await;
    for fault in [
        Fault::Status(503),
        Fault::Status(429),
        Fault::Status(500),
        Fault::LostReply,
    ] {
        w.fail(fault);
    }
    w.reads_well().await;
    assert_eq!(w.asked(), vec![1000..SIZE as u64; 5]);
    assert_eq!(w.faults.fired(), BTreeMap::from([("status", 3), ("lost_reply", 1)]));
}

#[tokio::test(start_paused = true)]
async fn read_that_breaks_off_goes_on_from_the_failed_byte() {
    let w = world().await;
    w.fail(Fault::CutAfter(70_000));
    w.fail(Fault::CutAfter(100));
    w.fail(Fault::StallAfter(5_000));
    w.reads_well().await;
    let end = SIZE as u64;
    assert_eq!(w.asked(), [1000..end, 71_000..end, 71_100..end, 76_100..end]);
    assert_eq!(w.counters.stalls.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn read_that_hangs_or_trickles_is_given_up_and_asked_again() {
    let w = world().await;
    w.fail(Fault::Hang);
    w.reads_well().await;
    // A byte a second is alive by the socket's measure and dead by ours.
    w.fail(Fault::Slow {
        piece_bytes: 1,
        gap_ms: 1000,
    });
    let began = Instant::now();
    w.reads_well().await;
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    assert_eq!(w.counters.stalls.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn read_of_a_dead_store_ends_within_its_budget_and_says_why() {
    let w = world().await;
    w.faults.add(Rule::new(Op::Get, Fault::Status(503)).forever());
    let began = Instant::now();
    let error = w.read(0..10).await.expect_err("dead");
    assert!(
        matches!(&error, ReadError::Unreadable(why) if why.contains("503") && why.contains("8 failures")),
        "{error:?}"
    );
    assert_eq!(w.faults.count(Op::Get), 8);
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn read_whose_budget_is_spent_is_not_tried_again() {
    let mut w = world().await;
    w.policy = RetryPolicy {
        failures_max: 1000,
        budget_ms: 30_000,
        ..w.policy
    };
    w.faults.add(Rule::new(Op::Get, Fault::Status(503)).forever());
    let began = Instant::now();
    let error = w.read(0..10).await.expect_err("dead");
    assert!(
        matches!(&error, ReadError::Unreadable(why) if why.contains("given up")),
        "{error:?}"
    );
    // It ends with the first failure behind the budget, at most one pause later.
    let took = began.elapsed();
    assert!(
        (Duration::from_secs(30)..=Duration::from_secs(40)).contains(&took),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn read_through_a_storm_gets_every_byte_once() {
    let mut hits = 0;
    for seed in 0..20 {
        println!("SEED read_storm {seed}");
        let w = world().await;
        w.faults.storm(Storm { seed, per_mille: 500 });
        for start in (0..SIZE as u64).step_by(50_000) {
            let bytes = w.read(start..start + 50_000).await.expect("gets through");
            assert!(
                bytes == w.content[start as usize..start as usize + 50_000],
                "seed {seed}"
            );
        }
        hits += w.faults.fired().values().sum::<u64>();
    }
    assert!(hits > 60, "{hits}: a storm that hits little shows little");
}

#[tokio::test(start_paused = true)]
async fn read_that_is_slow_to_answer_gets_a_second_request() {
    let w = world().await;
    for _ in 0..20 {
        w.read(0..10).await.expect("read");
    }
    w.fail(Fault::Hang);
    let began = Instant::now();
    w.reads_well().await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(w.counters.hedges.load(Ordering::Relaxed), 1);
    assert_eq!(w.counters.stalls.load(Ordering::Relaxed), 0);
}

// 35: refused credentials end in one sentence, not in a storm of requests.
#[tokio::test(start_paused = true)]
async fn read_that_is_denied_asks_once_more_and_ends() {
    for code in [401, 403] {
        let w = world().await;
        w.faults.add(Rule::new(Op::Get, Fault::Status(code)).forever());
        assert!(matches!(w.read(0..10).await, Err(ReadError::Denied(_))));
        assert_eq!(w.faults.count(Op::Get), 2, "{code}");
    }
    let w = world().await;
    w.fail(Fault::Status(403));
    w.reads_well().await;
}

// 36: a deleted object is missing at once.
#[tokio::test(start_paused = true)]
async fn read_of_a_deleted_object_is_missing_without_a_second_try() {
    let w = world().await;
    w.store.delete(&Key::from(KEY)).await.expect("deleted");
    assert!(matches!(w.read(0..10).await, Err(ReadError::Missing)));
    assert_eq!(w.faults.count(Op::Get), 1);
}

// 37: another object under the same name is refused, also in the middle of a read and at equal size.
#[tokio::test(start_paused = true)]
async fn read_of_a_changed_object_is_refused() {
    for other in [vec![1; SIZE], vec![1; 10]] {
        let w = world().await;
        w.fail(Fault::Changed(other.clone().into()));
        assert!(
            matches!(w.read(0..10).await, Err(ReadError::Changed(_))),
            "{}",
            other.len()
        );
        let w = world().await;
        w.fail(Fault::CutAfter(2000));
        w.fail(Fault::Changed(other.into()));
        assert!(matches!(w.read(0..SIZE as u64).await, Err(ReadError::Changed(_))));
    }
}

// 38: a page that answers for the store is not the object.
#[tokio::test(start_paused = true)]
async fn read_answered_by_a_portal_is_tried_again() {
    let w = world().await;
    w.fail(Fault::WrongContent("<html>log in</html>".into()));
    w.reads_well().await;
    assert_eq!(w.faults.count(Op::Get), 2);
}

/// Pages of ten keys each.
async fn keys(w: &World, pages: usize) -> (FaultyStore, Vec<String>) {
    let inner = InMemory::new();
    let keys: Vec<String> = (0..pages * 10).map(|i| format!("set/{i:04}.tar")).collect();
    for key in &keys {
        inner.put(&Key::from(key.as_str()), "x".into()).await.expect("written");
    }
    (FaultyStore::with_pages(Arc::new(inner), w.faults.clone(), 10), keys)
}

// 39: what takes long because it is long is no stall, and what came is not asked for again.
#[tokio::test(start_paused = true)]
async fn list_of_many_slow_pages_goes_on_behind_what_came() {
    let w = world().await;
    let (store, keys) = keys(&w, 40).await;
    w.faults.add(Rule::new(Op::List, Fault::Status(503)).after(20).times(2));
    w.faults.add(Rule::new(Op::List, Fault::Hang).after(10));
    let (piece_bytes, gap_ms) = (1, 10_000);
    w.faults
        .add(Rule::new(Op::List, Fault::Slow { piece_bytes, gap_ms }).forever());
    let began = Instant::now();
    assert!(
        w.listed(&store).await.expect("listed") == keys,
        "each key once, in order"
    );
    assert_eq!(w.faults.count(Op::List), 43, "forty pages and three failures");
    // Longer than a stall, and than the budget of a read.
    assert!(began.elapsed() > Duration::from_secs(400), "{:?}", began.elapsed());
    assert_eq!(w.counters.stalls.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn list_whose_keys_come_out_of_order_begins_anew_after_a_failure() {
    let w = world().await;
    let (store, keys) = keys(&w, 5).await;
    w.faults.add(Rule::new(Op::List, Fault::ListedReversed).after(1));
    w.faults.add(Rule::new(Op::List, Fault::Status(503)).after(1));
    let listed = w.listed(&store).await.expect("listed");
    assert!(listed == keys, "{listed:?}");
    assert_eq!(w.faults.count(Op::List), 3 + 5, "two pages, a failure, all pages");
}

#[tokio::test(start_paused = true)]
async fn list_that_stays_dead_ends_and_says_why() {
    let w = world().await;
    let (store, _) = keys(&w, 5).await;
    w.faults.add(Rule::new(Op::List, Fault::Status(503)).after(2).forever());
    let error = w.listed(&store).await.expect_err("dead");
    assert!(
        matches!(&error, ReadError::Unreadable(why) if why.contains("503") && why.contains("8 failures")),
        "{error:?}"
    );
}
