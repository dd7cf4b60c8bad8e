//! The disk cache under a whole loader: what is read once is not read again, and what is trained never changes for it.

use crate::support::{good_members, loader_config, picture, tar};
use argosy_common::config::Source;
use argosy_common::steplog::MaskReason;
use argosy_shard_loader::index::{self, BuildConfig, Index};
use argosy_shard_loader::{DiskCache, LaneBatch, Loader, LoaderConfig, RetryPolicy, StageReport, Store};
use argosy_test_stores::{Fault, Faults, Op, Rule, S3Double};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);
const BUCKET: &str = "bucket";
const LANES: [u32; 3] = [0, 1, 2];

fn store(double: &S3Double) -> Store {
    let store = Store::new(RetryPolicy::default()).expect("a store");
    store.put_root("s3://bucket", double.client(BUCKET).expect("a client"));
    store
}

/// Three shards of good rows, one of which holds a picture that nobody can decode. `salt` changes their bytes, not their form.
fn put_shards(double: &S3Double, salt: &str) {
    for shard in 0..3 {
        let mut members = good_members(shard, 8);
        for (name, bytes) in &mut members {
            if name.ends_with("txt") {
                bytes.extend_from_slice(salt.as_bytes());
            }
        }
        if shard == 1 {
            members.push(("broken.jpg".into(), picture("cut.jpg")));
            members.push(("broken.txt".into(), b"a cut picture".to_vec()));
        }
        double.insert(BUCKET, &format!("set/{shard}.tar"), tar(&members));
    }
}

fn indexed(double: &S3Double) -> Arc<Index> {
    let source = Source {
        name: "all".into(),
        shards: "s3://bucket/set/".into(),
    };
    let config = BuildConfig::new("jpg;png;jpeg;webp", "txt");
    let built = index::build(&store(double), &[source], Path::new("/"), &config, &|_| {});
    Arc::new(built.expect("indexed").0)
}

/// A loader's configuration over 25 rows in 5 steps a pass.
fn config(index: &Index, passes: u64, cache: Option<DiskCache>) -> LoaderConfig {
    let mut config = loader_config(index.to_shape(), 6, 3, passes);
    config.cache = cache;
    config
}

fn open(folder: &Path) -> Option<DiskCache> {
    Some(DiskCache::open(folder, 1 << 30, 0).expect("opened"))
}

/// Every batch of the run.
fn run(index: &Arc<Index>, config: LoaderConfig, double: &S3Double) -> (Vec<LaneBatch>, StageReport) {
    let steps = config.shape.total_steps();
    let loader = Loader::over(Arc::clone(index), config, store(double)).expect("a loader");
    loader.assign(&LANES, 0);
    let next = |_| loader.next(WAIT).expect("loads").expect("in time");
    let batches = (0..steps).flat_map(next).collect();
    (batches, loader.report())
}

fn masked(batches: &[LaneBatch]) -> Vec<MaskReason> {
    batches
        .iter()
        .flat_map(|b| b.masked().map(|(_, why)| why).collect::<Vec<_>>())
        .collect()
}

#[test]
fn second_pass_and_second_run_read_nothing_from_the_store_and_train_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let double = S3Double::start(Faults::default()).expect("a server");
    put_shards(&double, "");
    let index = indexed(&double);
    let (expected, plain) = run(&index, config(&index, 3, None), &double);
    assert_eq!(masked(&expected), [MaskReason::Format; 3]);

    let (batches, report) = run(&index, config(&index, 3, open(folder.path())), &double);
    assert!(batches == expected, "three passes over a cache that fills");
    assert_eq!(
        report.cache.kept, 26,
        "25 rows, and that one of them was confirmed: {report:?}"
    );
    // Rows of one pass, and the broken one a second time. The gaps between rows are read with them, a few times over.
    assert!(report.stats.bytes * 2 < plain.stats.bytes, "{report:?} {plain:?}");
    assert_eq!(report.cache.rows, 2 * 25, "{report:?}");

    // From here on the store is gone.
    double.faults().add(Rule::new(Op::Get, Fault::Status(404)).forever());
    let asked = double.faults().count(Op::Get);
    let (batches, report) = run(&index, config(&index, 3, open(folder.path())), &double);
    assert!(batches == expected, "a second run");
    assert_eq!((report.stats.bytes, report.store.requests), (0, 0), "{report:?}");
    assert_eq!(double.faults().count(Op::Get), asked);
}

#[test]
fn damaged_cache_is_fetched_again_and_never_trained() {
    let folder = tempfile::tempdir().expect("a folder");
    let double = S3Double::start(Faults::default()).expect("a server");
    put_shards(&double, "");
    let index = indexed(&double);
    let (expected, _) = run(&index, config(&index, 1, open(folder.path())), &double);
    for entry in std::fs::read_dir(folder.path()).expect("a folder") {
        let path = entry.expect("an entry").path();
        let mut bytes = std::fs::read(&path).expect("there");
        match path.extension().and_then(|e| e.to_str()) {
            // Every row has a turned bit, and the last one is torn.
            Some("rows1") => {
                bytes.iter_mut().step_by(97).for_each(|b| *b ^= 4);
                bytes.truncate(bytes.len() - 50);
            }
            // So is the last record.
            Some("list1") => bytes.truncate(bytes.len() - 3),
            _ => continue,
        }
        std::fs::write(&path, bytes).expect("written");
    }
    let (batches, report) = run(&index, config(&index, 1, open(folder.path())), &double);
    assert!(batches == expected, "the store's rows, not the cache's");
    // Of each of three lists the last record is torn, which may be the one that confirms.
    assert!(report.cache.rows == 0 && report.cache.broken >= 22, "{report:?}");
    let (batches, report) = run(&index, config(&index, 1, open(folder.path())), &double);
    assert!(
        batches == expected && report.cache.rows == 25,
        "mended by what was fetched: {report:?}"
    );
}

#[test]
fn objects_with_a_new_etag_are_not_served_from_what_was_kept_of_the_old_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let double = S3Double::start(Faults::default()).expect("a server");
    put_shards(&double, "");
    let old = indexed(&double);
    let (before, _) = run(&old, config(&old, 1, open(folder.path())), &double);
    put_shards(&double, " anew");
    let new = indexed(&double);
    let (after, report) = run(&new, config(&new, 1, open(folder.path())), &double);
    assert_eq!(report.cache.rows, 0, "{report:?}");
    let (plain, _) = run(&new, config(&new, 1, None), &double);
    assert!(after == plain && after != before);
}

#[test]
fn cache_that_is_full_changes_nothing_but_what_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let double = S3Double::start(Faults::default()).expect("a server");
    put_shards(&double, "");
    let index = indexed(&double);
    let (expected, plain) = run(&index, config(&index, 2, None), &double);
    let budget = 30_000;
    let small = DiskCache::open(folder.path(), budget, 0).expect("opened");
    let (batches, report) = run(&index, config(&index, 2, Some(small)), &double);
    assert!(batches == expected);
    assert!(report.cache.rows > 0 && report.cache.refused > 0, "{report:?}");
    assert!(report.stats.bytes < plain.stats.bytes);
    let sizes = std::fs::read_dir(folder.path())
        .expect("a folder")
        .map(|e| e.expect("an entry"));
    let taken: u64 = sizes.map(|e| e.metadata().expect("there").len()).sum();
    // The ledger's own eight bytes are not counted.
    assert!(taken <= budget + 8 && taken > budget / 2, "{taken}");
}

#[test]
fn pictures_kept_resized_are_decoded_once_and_train_the_same_whoever_kept_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let double = S3Double::start(Faults::default()).expect("a server");
    put_shards(&double, "");
    let index = indexed(&double);
    let resized = |passes, cache| {
        let mut config = config(&index, passes, cache);
        config.data.resized_side = Some(20);
        config
    };
    let (exact, _) = run(&index, config(&index, 2, None), &double);
    // Nothing is kept here: every picture is resized anew, with the same bytes.
    let none = DiskCache::open(&folder.path().join("none"), 1, 0).expect("opened");
    let (expected, _) = run(&index, resized(2, Some(none)), &double);
    assert!(expected != exact, "not bit-equal to fresh crops");
    let rows = |batches: &[LaneBatch]| {
        batches
            .iter()
            .map(|b| (b.states.clone(), b.tokens.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(rows(&expected), rows(&exact), "captions and masks are the same");

    let kept = folder.path().join("kept");
    let (batches, report) = run(&index, resized(2, open(&kept)), &double);
    assert!(batches == expected && report.cache.rows >= 24 - 6, "{report:?}");
    let (batches, report) = run(&index, resized(2, open(&kept)), &double);
    assert!(batches == expected);
    // The broken picture is the only one that is still read and tried.
    assert_eq!(report.cache.rows, 2 * 24, "{report:?}");
    let mut wrong = resized(1, open(&kept));
    wrong.data.resized_side = Some(15);
    let text = Loader::over(Arc::clone(&index), wrong, store(&double))
        .expect_err("refused")
        .to_string();
    assert!(
        text.contains("resized_side is 15") && text.contains("16 pixels"),
        "{text}"
    );
}

#[test]
fn first_batch_of_the_next_pass_is_ready_before_the_last_one_of_this_pass_is_taken() {
    let double = S3Double::start(Faults::default()).expect("a server");
    put_shards(&double, "");
    let index = indexed(&double);
    // 25 rows in steps of five, so that no step holds rows of two passes.
    let config = loader_config(index.to_shape(), 5, 5, 2);
    let per_pass = config.shape.total_steps() / 2;
    assert_eq!((per_pass, config.prefetch_steps), (5, 2));
    let loader = Loader::over(Arc::clone(&index), config, store(&double)).expect("a loader");
    loader.assign(&[0, 1, 2, 3, 4], 0);
    for _ in 0..per_pass - 1 {
        loader.next(WAIT).expect("loads").expect("in time");
    }
    assert!(
        loader.wait_ready(2, WAIT),
        "the last one of this pass and the first one of the next"
    );
    assert!(
        !loader.wait_ready(3, Duration::ZERO),
        "no more than are to be made ahead"
    );
    // No answer comes any more: the edge is passed without one.
    double.faults().add(Rule::new(Op::Get, Fault::Hang).forever());
    for step in [per_pass - 1, per_pass] {
        let batches = loader.next(Duration::ZERO).expect("loads").expect("ready");
        assert_eq!(batches[0].step, step);
    }
    double.faults().clear();
    double.faults().release();
}
