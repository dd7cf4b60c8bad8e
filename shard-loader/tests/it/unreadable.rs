//! Rows that cannot be read, told apart from stores that cannot, and rows that were given up (rule M2).

use crate::stores::{BUCKET, build, config, put, store};
use crate::support::{good_members, loader_config, tar};
use argosy_common::ids::SampleId;
use argosy_common::quarantine::{Quarantined, ReadFault, RowRange};
use argosy_common::steplog::{MaskReason, RowState};
use argosy_shard_loader::{BlockCause, Index, LaneBatch, Loader, LoaderConfig, LoaderError, Store};
use argosy_test_stores::{Fault, Faults, Op, Rule, S3Double};
use std::sync::Arc;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);
/// An answer that no second try changes, and that says nothing of the object.
const REFUSED: Fault = Fault::Status(422);

struct Scene {
    double: S3Double,
    store: Store,
    index: Arc<Index>,
    config: LoaderConfig,
}

fn scene(shards: usize) -> Scene {
    let double = S3Double::start(Faults::default()).expect("a port");
    let names = (0..shards).map(|i| (format!("set/{i}.tar"), tar(&good_members(i, 12))));
    put(&double, &names.collect::<Vec<_>>());
    let store = store(&double);
    let (index, _) = build(&store, "s3://bucket/set/", &config()).expect("indexed");
    let config = loader_config(index.to_shape(), 4, 1, 1);
    Scene {
        double,
        store,
        index: Arc::new(index),
        config,
    }
}

impl Scene {
    fn loader(&self) -> Loader {
        let loader = Loader::over(Arc::clone(&self.index), self.config.clone(), self.store.clone());
        loader.expect("a loader")
    }

    fn fails(&self, fault: Fault, key: &str) {
        self.double.faults().add(Rule::new(Op::Get, fault).key(key).forever());
    }
}

/// Batches up to the end of the run, or the error that comes before it.
fn until_blocked(loader: &Loader, config: &LoaderConfig) -> (Vec<LaneBatch>, Option<LoaderError>) {
    let mut batches = Vec::new();
    for _ in 0..config.shape.total_steps() {
        match loader.next(WAIT) {
            Ok(step) => batches.extend(step.expect("in time")),
            Err(error) => return (batches, Some(error)),
        }
    }
    (batches, None)
}

fn undisturbed(scene: &Scene) -> Vec<LaneBatch> {
    let loader = scene.loader();
    loader.assign(&[0], 0);
    until_blocked(&loader, &scene.config).0
}

fn of_shard(batch: &LaneBatch, shard: u32) -> bool {
    batch.samples.iter().any(|id| id.shard == shard)
}

#[test]
fn shard_that_cannot_be_read_blocks_the_step_that_needs_it_and_is_told_from_a_store_that_is_away() {
    // What fails, where, and whose fault it is to be.
    let cases = [
        (Fault::Status(404), "set/2.tar", BlockCause::Missing, ReadFault::Shard),
        (REFUSED, "set/2.tar", BlockCause::Unreadable, ReadFault::Shard),
        (Fault::Status(403), "set/2.tar", BlockCause::Denied, ReadFault::Way),
        (Fault::Status(404), "set/", BlockCause::Missing, ReadFault::Way),
        (REFUSED, "set/", BlockCause::Unreadable, ReadFault::Way),
    ];
    for (fault, key, wanted, whose) in cases {
        let scene = scene(4);
        let all = undisturbed(&scene);
        let case = format!("{fault:?} of {key}");
        scene.fails(fault, key);
        let loader = scene.loader();
        loader.assign(&[0], 0);
        let (before, error) = until_blocked(&loader, &scene.config);
        let Some(LoaderError::LaneBlocked {
            lane,
            rows,
            cause,
            fault,
            ..
        }) = error
        else {
            panic!("{case}: {error:?}");
        };
        assert_eq!((lane, cause, fault), (0, wanted, whose), "{case}");
        let reached = all.iter().take_while(|b| key == "set/2.tar" && !of_shard(b, 2)).count();
        assert_eq!(before, all[..reached], "{case}: what can be read comes first");
        if key == "set/2.tar" {
            assert_eq!((rows.source, rows.shard), (0, 2), "{case}");
            let needed = all[reached].samples.iter().filter(|id| id.shard == 2);
            assert!(needed.clone().count() > 0 && rows.from < rows.until, "{case}");
        }
        if cause == BlockCause::Missing && whose == ReadFault::Shard {
            assert_eq!((rows.from, rows.until), (0, 12), "{case}: the shard is gone as a whole");
        }
        // It is the same at the next try, and over when the store is well again.
        loader.assign(&[0], reached as u64);
        assert!(loader.next(WAIT).is_err(), "{case}");
        scene.double.faults().clear();
        loader.assign(&[0], reached as u64);
        let (rest, error) = until_blocked(
            &loader,
            &LoaderConfig {
                shape: argosy_common::shape::RunShape {
                    total_positions: 4 * (all.len() - reached) as u64,
                    ..scene.config.shape.clone()
                },
                ..scene.config.clone()
            },
        );
        assert_eq!((rest.as_slice(), error), (&all[reached..], None), "{case}");
    }
}

#[test]
fn store_of_one_shard_gives_nothing_up() {
    let scene = scene(1);
    scene.fails(Fault::Status(404), BUCKET);
    let loader = scene.loader();
    loader.assign(&[0], 0);
    let Err(LoaderError::LaneBlocked { fault, .. }) = loader.next(WAIT) else {
        panic!("blocked");
    };
    assert_eq!(fault, ReadFault::Way);
}

/// What a batch is to be when `left` is left out from its step on.
fn without(batch: &LaneBatch, left: &Quarantined, config: &LoaderConfig) -> LaneBatch {
    let mut batch = batch.clone();
    let (pixels, context) = ((config.image_size * config.image_size * 3) as usize, 12);
    for (row, id) in batch.samples.iter().enumerate() {
        if batch.step >= left.holds_from && left.rows.contains(*id) {
            batch.states[row] = RowState::Masked(MaskReason::Quarantined);
            batch.lengths[row] = 0;
            batch.pixels[row * pixels..(row + 1) * pixels].fill(0);
            batch.tokens[row * context..(row + 1) * context].fill(0);
        }
    }
    batch
}

#[test]
fn rows_that_were_given_up_take_no_part_from_their_step_on_whether_they_can_be_read_or_not() {
    let scene = scene(4);
    let all = undisturbed(&scene);
    let lost = all.iter().position(|b| of_shard(b, 2)).expect("it is trained") as u64;
    let rows = RowRange {
        source: 0,
        shard: 2,
        from: 0,
        until: 12,
    };
    // The first step that needs the shard is done with it, so a revision need not hold for all of its rows.
    let left = Quarantined {
        revision: 1,
        holds_from: lost + 1,
        rows,
        reason: "404".into(),
    };
    let expected: Vec<LaneBatch> = all.iter().map(|b| without(b, &left, &scene.config)).collect();
    assert!(expected != all && expected[lost as usize] == all[lost as usize]);

    // Read before: batches and windows that lie ready are held to the ledger too.
    let warm = scene.loader();
    warm.assign(&[0], 0);
    assert!(warm.wait_ready(2, WAIT));
    warm.leave_out(std::slice::from_ref(&left));
    warm.assign(&[0], 0);
    assert_eq!(until_blocked(&warm, &scene.config), (expected.clone(), None));

    // Gone: it is not asked for.
    let cold = scene.loader();
    scene.fails(Fault::Status(404), "set/2.tar");
    cold.leave_out(std::slice::from_ref(&left));
    cold.assign(&[0], lost + 1);
    for batch in &expected[lost as usize + 1..] {
        assert_eq!(&cold.next(WAIT).expect("loads").expect("in time")[0], batch);
    }
    assert_eq!(scene.double.faults().fired().get("status"), None);
    let id = |row| SampleId {
        source: 0,
        shard: 2,
        row,
    };
    assert!(rows.contains(id(11)) && !rows.contains(id(12)));
}

#[test]
fn second_failure_of_a_shard_names_the_whole_of_it() {
    let scene = scene(4);
    let all = undisturbed(&scene);
    let lost = all.iter().position(|b| of_shard(b, 2)).expect("it is trained") as u64;
    scene.fails(REFUSED, "set/2.tar");
    let loader = scene.loader();
    let rows_at = |step: u64| {
        loader.assign(&[0], step);
        match loader.next(WAIT) {
            Err(LoaderError::LaneBlocked { rows, .. }) => rows,
            other => panic!("{other:?}"),
        }
    };
    let first = rows_at(lost);
    assert!((first.from, first.until) != (0, 12), "{first:?}");
    let revision = Quarantined {
        revision: 1,
        holds_from: lost,
        rows: first,
        reason: "422".into(),
    };
    loader.leave_out(&[revision]);
    let next = all.iter().position(|b| {
        let lacks = |id: &SampleId| id.shard == 2 && !first.contains(*id);
        b.samples.iter().any(lacks)
    });
    let second = rows_at(next.expect("more of it is needed") as u64);
    assert_eq!((second.shard, second.from, second.until), (2, 0, 12));
}
