//! Bytes that break on their way, servers of other habits, and reads that nobody waits for any more.

use crate::stores::{BUCKET, PREFIX, build, config, put, store};
use crate::support::{good_members, loader_config, picture, tar};
use argosy_common::steplog::MaskReason;
use argosy_shard_loader::{BuildConfig, DiskCache, Index, Loader, LoaderStats, RetryPolicy, Store};
use argosy_test_stores::{Fault, Faults, Op, Rule, S3Double};
use std::sync::Arc;
use std::time::{Duration, Instant};

const WAIT: Duration = Duration::from_secs(60);
const ROWS: u64 = 6;

/// One step that takes every row of the index; what came of it.
fn one_step(index: &Arc<Index>, store: &Store, cache: Option<DiskCache>) -> LoaderStats {
    let mut config = loader_config(index.to_shape(), ROWS as u32, 1, 1);
    config.cache = cache;
    let loader = Loader::over(Arc::clone(index), config, store.clone()).expect("a loader");
    loader.assign(&[0], 0);
    loader.next(WAIT).expect("loads").expect("in time");
    loader.stats()
}

/// A shard of six rows, claimed or read when it was indexed.
fn indexed(members: &[(String, Vec<u8>)], adopt: bool) -> (S3Double, Store, Arc<Index>) {
    let double = S3Double::start(Faults::default()).expect("a port");
    put(&double, &[("set/0.tar".into(), tar(members))]);
    double.insert(BUCKET, "set/sizes.json", format!("{{\"0.tar\": {ROWS}}}"));
    let store = store(&double);
    let (index, _) = build(&store, PREFIX, &BuildConfig { adopt, ..config() }).expect("indexed");
    assert!(index.shards().all(|s| s.verified != adopt));
    (double, store, Arc::new(index))
}

// M1: what does not decode, or has no whole header, is fetched once more before it counts.
#[test]
fn row_that_broke_on_its_way_is_fetched_again_and_trained() {
    // Byte 3 lies in the first member's header, byte 512 is the first of its picture.
    for (adopt, at) in [(false, 3), (false, 512), (true, 3), (true, 512)] {
        let (double, store, index) = indexed(&good_members(0, ROWS as usize), adopt);
        // The first read of a shard that is only claimed is the walk over it.
        let walks = u32::from(adopt);
        double
            .faults()
            .add(Rule::new(Op::Get, Fault::Flipped(at)).key("0.tar").after(walks));
        let before = double.faults().count(Op::Get);
        let kept = tempfile::tempdir().expect("a folder");
        let cache = || Some(DiskCache::open(kept.path(), 1 << 30, 0).expect("opened"));
        let stats = one_step(&index, &store, cache());
        let what = format!("adopted {adopt}, byte {at}: {stats:?}");
        assert_eq!(double.faults().fired()["flipped"], 1, "{what}");
        assert_eq!((stats.images, stats.masked.len()), (ROWS, 0), "{what}");
        let asked = double.faults().count(Op::Get) - before;
        assert_eq!(
            asked,
            walks as usize + 2,
            "the rows together, and one of them again: {what}"
        );
        // What was kept of it is what came the second time.
        let walked = double.faults().count(Op::Get) + walks as usize;
        let stats = one_step(&index, &store, cache());
        assert_eq!((stats.images, stats.masked.len()), (ROWS, 0), "{what}");
        assert_eq!(double.faults().count(Op::Get), walked, "{what}");
    }
}

#[test]
fn header_that_broke_on_the_walk_over_a_claimed_shard_hides_no_row() {
    let (double, store, index) = indexed(&good_members(0, ROWS as usize), true);
    double.faults().add(Rule::new(Op::Get, Fault::Flipped(3)).key("0.tar"));
    let stats = one_step(&index, &store, None);
    assert_eq!((stats.images, stats.masked.len()), (ROWS, 0), "{stats:?}");
    assert_eq!(double.faults().fired()["flipped"], 1);
}

#[test]
fn row_that_comes_broken_twice_is_masked_with_its_reason_wherever_it_was_found() {
    for adopt in [false, true] {
        let mut members = good_members(0, ROWS as usize - 1);
        members.push(("9.jpg".into(), picture("cut.jpg")));
        members.push(("9.txt".into(), b"a cut picture".to_vec()));
        let (double, store, index) = indexed(&members, adopt);
        let before = double.faults().count(Op::Get);
        let stats = one_step(&index, &store, None);
        assert_eq!(stats.masked, [(MaskReason::Format, 1)].into(), "adopted {adopt}");
        let asked = double.faults().count(Op::Get) - before;
        assert_eq!(
            asked,
            usize::from(adopt) + 2,
            "adopted {adopt}: asked for once more, not oftener"
        );
    }
}

#[test]
fn weak_etags_of_a_web_server_are_compared_and_never_asked_for() {
    let double = S3Double::start(Faults::default()).expect("a port");
    put(&double, &[("set/0.tar".into(), tar(&good_members(0, ROWS as usize)))]);
    double.weaken(BUCKET, "set/0.tar");
    let store = Store::new(RetryPolicy::default()).expect("a store");
    let address = format!("{}/{BUCKET}/set/{{0..0}}.tar", double.endpoint());
    let (index, _) = build(&store, &address, &config()).expect("indexed");
    let index = Arc::new(index);
    assert!(
        index
            .shards()
            .all(|s| s.etag.is_some_and(|etag| etag.starts_with("W/")))
    );
    assert_eq!(one_step(&index, &store, None).images, ROWS);
    // Of the same length, so that only its etag tells.
    let mut other = tar(&good_members(0, ROWS as usize));
    other[600] ^= 1;
    put(&double, &[("set/0.tar".into(), other)]);
    double.weaken(BUCKET, "set/0.tar");
    let loader = loader_config(index.to_shape(), ROWS as u32, 1, 1);
    let loader = Loader::over(index, loader, store).expect("a loader");
    loader.assign(&[0], 0);
    let error = loader.next(WAIT).expect_err("another object").to_string();
    assert!(error.contains("has changed since it was indexed"), "{error}");
}

#[test]
fn loader_that_is_dropped_while_a_store_hangs_ends_at_once() {
    let (double, store, index) = indexed(&good_members(0, ROWS as usize), false);
    double.faults().add(Rule::new(Op::Get, Fault::Hang).forever());
    let before = double.faults().count(Op::Get);
    let loader = loader_config(index.to_shape(), ROWS as u32, 1, 1);
    let loader = Loader::over(index, loader, store.clone()).expect("a loader");
    loader.assign(&[0], 0);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let asked = |calls: &[argosy_test_stores::Call]| calls.iter().filter(|c| c.op == Op::Get).count() > before;
    runtime.block_on(double.faults().until(asked));
    let began = Instant::now();
    drop(loader);
    // A request alone is waited for 15 s, and asked eight times.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    // Others who read from the store are not concerned.
    double.faults().clear();
    double.faults().release();
    assert!(store.facts("s3://bucket/set/0.tar").is_ok());
}
