//! Shards of which only a claim is known until a run reads them (rule L6).

use crate::stores::{BUCKET, PREFIX, build, config, store};
use crate::support::{good_members, loader_config, record, tar};
use argosy_shard_loader::{BlockCause, BuildConfig, Index, Loader, LoaderError, RetryPolicy, Store};
use argosy_test_stores::{Faults, Op, S3Double};
use std::sync::Arc;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);

fn adopted(store: &Store, shards: &str) -> Arc<Index> {
    let adopting = BuildConfig {
        adopt: true,
        ..config()
    };
    let (index, report) = build(store, shards, &adopting).expect("adopted");
    assert_eq!(report.adopted, report.shards);
    Arc::new(index)
}

#[test]
fn claimed_shards_of_many_lanes_are_walked_once_and_told_of_once() {
    const SHARDS: usize = 70;
    const PASSES: u64 = 3;
    let double = S3Double::start(Faults::default()).expect("a port");
    for i in 0..SHARDS {
        // Two rows where one is claimed.
        double.insert(BUCKET, &format!("set/{i:03}.tar"), tar(&good_members(i, 2)));
    }
    let claims: Vec<String> = (0..SHARDS).map(|i| format!("\"{i:03}.tar\": 1")).collect();
    double.insert(BUCKET, "set/sizes.json", format!("{{{}}}", claims.join(", ")));
    let store = store(&double);
    let index = adopted(&store, PREFIX);
    let config = loader_config(index.to_shape(), SHARDS as u32, SHARDS as u32, PASSES);
    let loader = Loader::over(index, config, store.clone()).expect("a loader");
    let before = double.faults().count(Op::Get);
    loader.assign(&(0..SHARDS as u32).collect::<Vec<_>>(), 0);
    for _ in 0..PASSES {
        loader.next(WAIT).expect("loads").expect("in time");
    }
    let stats = loader.stats();
    assert_eq!(
        (stats.images, stats.rows_beyond),
        (SHARDS as u64 * PASSES, SHARDS as u64)
    );
    let asked = double.faults().count(Op::Get) - before;
    assert_eq!(
        asked,
        SHARDS + SHARDS * PASSES as usize,
        "a walk each, and its row each pass"
    );
}

// 37: rows are masked `missing` for what the indexed shard lacks, never for what stands in its place now.
#[test]
fn claimed_file_that_was_replaced_blocks_its_lane_and_masks_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let shard = folder.path().join("0.tar");
    let whole = tar(&good_members(0, 4));
    std::fs::write(&shard, &whole).expect("written");
    std::fs::write(folder.path().join("sizes.json"), "{\"0.tar\": 4}").expect("written");
    let store = Store::new(RetryPolicy::default()).expect("a store");
    let index = adopted(&store, &folder.path().display().to_string());
    // Larger, and without a single row.
    std::fs::write(
        &shard,
        [record("README", &vec![b'x'; whole.len()]), vec![0; 1024]].concat(),
    )
    .expect("written");
    let config = loader_config(index.to_shape(), 4, 1, 1);
    let loader = Loader::over(index, config, store).expect("a loader");
    loader.assign(&[0], 0);
    let error = loader.next(WAIT).expect_err("another file");
    assert!(
        matches!(
            &error,
            LoaderError::LaneBlocked {
                cause: BlockCause::Changed,
                ..
            }
        ),
        "{error}"
    );
}
