//! Lanes: whoever reads them, whenever they move, the same batches come out.

use crate::support::{good_members, index, loader_config, tar};
use argosy_shard_loader::{Index, LaneBatch, Loader, LoaderConfig};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);

fn shards() -> (tempfile::TempDir, Arc<Index>) {
    let folder = tempfile::tempdir().expect("a folder");
    for (i, rows) in [13, 7, 22, 9].into_iter().enumerate() {
        std::fs::write(folder.path().join(format!("{i}.tar")), tar(&good_members(i, rows))).expect("written");
    }
    let (index, _) = index(folder.path());
    (folder, Arc::new(index))
}

fn next(loader: &Loader) -> Vec<LaneBatch> {
    loader.next(WAIT).expect("loads").expect("in time")
}

fn collect(into: &mut BTreeMap<(u64, u32), LaneBatch>, batches: Vec<LaneBatch>) {
    for batch in batches {
        let key = (batch.step, batch.lane);
        let again = into.insert(key, batch.clone());
        assert!(
            again.is_none_or(|before| before == batch),
            "done again, {key:?} must be the same"
        );
    }
}

fn one_owner(index: &Arc<Index>, config: &LoaderConfig) -> BTreeMap<(u64, u32), LaneBatch> {
    let loader = Loader::new(Arc::clone(index), config.clone()).expect("a loader");
    let lanes: Vec<u32> = (0..config.shape.lanes).collect();
    loader.assign(&lanes, 0);
    let mut all = BTreeMap::new();
    for _ in 0..config.shape.total_steps() {
        collect(&mut all, next(&loader));
    }
    all
}

#[test]
fn lanes_moved_in_the_middle_give_the_batches_of_one_owner() {
    let (_folder, index) = shards();
    let config = loader_config(index.to_shape(), 12, 4, 3);
    let expected = one_owner(&index, &config);
    let steps = config.shape.total_steps();
    assert!(steps > 8, "{steps}");
    let (a, b) = (
        Loader::new(Arc::clone(&index), config.clone()).expect("a loader"),
        Loader::new(
            Arc::clone(&index),
            LoaderConfig {
                decode_threads: 1,
                prefetch_steps: 5,
                ..config
            },
        )
        .expect("a loader"),
    );
    let mut got = BTreeMap::new();
    a.assign(&[0, 1], 0);
    b.assign(&[2, 3], 0);
    for _ in 0..3 {
        collect(&mut got, next(&a));
        collect(&mut got, next(&b));
    }
    // Step 2 was abandoned: the plan that follows begins with it again, and lane 1 has moved.
    a.assign(&[0], 2);
    b.assign(&[1, 2, 3], 2);
    for _ in 2..6 {
        collect(&mut got, next(&a));
        collect(&mut got, next(&b));
    }
    // One of them is gone.
    drop(b);
    a.assign(&[3, 2, 1, 0], 6);
    for _ in 6..steps {
        let batches = next(&a);
        assert!(batches.windows(2).all(|w| w[0].lane < w[1].lane), "in lane order");
        collect(&mut got, batches);
    }
    assert_eq!(got.len(), expected.len());
    assert!(got == expected, "the same batches, to the byte");
}

#[test]
fn whole_passes_hold_every_caption_equally_often() {
    let (_folder, index) = shards();
    let config = loader_config(index.to_shape(), 10, 5, 2);
    let mut seen: BTreeMap<Vec<i32>, u32> = BTreeMap::new();
    for batch in one_owner(&index, &config).values() {
        for (row, length) in batch.tokens.chunks_exact(12).zip(&batch.lengths) {
            if *length > 0 {
                *seen.entry(row.to_vec()).or_default() += 1;
            }
        }
    }
    assert_eq!(seen.len(), 51);
    assert!(seen.values().all(|n| *n == 2));
}

#[test]
fn worker_without_lanes_gets_empty_steps() {
    let (_folder, index) = shards();
    let config = loader_config(index.to_shape(), 12, 4, 1);
    let loader = Loader::new(Arc::clone(&index), config).expect("a loader");
    loader.assign(&[], 1);
    assert!(next(&loader).is_empty());
    loader.assign(&[2], 2);
    assert_eq!(next(&loader)[0].step, 2);
}

#[test]
fn next_without_a_plan_times_out() {
    let (_folder, index) = shards();
    let config = loader_config(index.to_shape(), 12, 4, 1);
    let loader = Loader::new(Arc::clone(&index), config).expect("a loader");
    assert_eq!(loader.next(Duration::from_millis(1)), Ok(None));
    loader.assign(&[0], 0);
    assert_eq!(next(&loader)[0].lane, 0);
}

#[test]
fn first_step_of_a_new_lane_reads_exactly_its_own_rows() {
    let folder = tempfile::tempdir().expect("a folder");
    // Rows with so much between them that no two are worth one request.
    let mut members = Vec::new();
    for (i, pair) in good_members(0, 48).chunks(2).enumerate() {
        members.extend_from_slice(pair);
        members.push((format!("{i:04}.bin"), vec![0; 100_000]));
    }
    std::fs::write(folder.path().join("0.tar"), tar(&members)).expect("written");
    let (index, _) = index(folder.path());
    let index = Arc::new(index);
    let mut config = loader_config(index.to_shape(), 8, 2, 1);
    config.shape.window_factor = 4;
    // A run of one step, so that nothing is fetched ahead.
    config.shape.total_positions = 8;
    let loader = Loader::new(Arc::clone(&index), config).expect("a loader");
    loader.assign(&[0], 0);
    let samples = next(&loader).remove(0).samples;
    let bytes = |s| {
        index
            .place(s)
            .expect("whole")
            .map_or(0, |place| place.range.end - place.range.start)
    };
    assert_eq!(samples.len(), 4);
    assert_eq!(loader.stats().bytes, samples.into_iter().map(bytes).sum::<u64>());
}

#[test]
fn loader_of_another_index_is_refused() {
    let (_folder, index) = shards();
    let mut config = loader_config(index.to_shape(), 12, 4, 1);
    config.shape.sources[0].shard_rows[0] += 1;
    let text = Loader::new(index, config).expect_err("refused").to_string();
    assert!(text.contains("does not belong to this index"), "{text}");
}

#[test]
fn loader_that_ends_leaves_its_stage_report() {
    let (folder, index) = shards();
    let config = loader_config(index.to_shape(), 12, 4, 1);
    let mut loader = Loader::new(Arc::clone(&index), config).expect("a loader");
    let file = folder.path().join("loader/w1.json");
    loader.report_to(file.clone());
    loader.assign(&[0, 1, 2, 3], 0);
    next(&loader);
    drop(loader);
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).expect("written")).expect("JSON");
    assert_eq!(report["images"], 12);
    assert!(report["bytes"].as_u64() > Some(0) && report["decode_seconds"].as_f64() > Some(0.0));
    assert!(
        report["verdict"].as_str().is_some_and(|v| v.contains("-bound")),
        "{report}"
    );
}
