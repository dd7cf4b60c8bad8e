//! Trainers over real loaders whose stores lack a shard, one worker's or all of them (rule M2).

use crate::commands::{png, tar};
use crate::fleet::{Rig, Worker, applied, form_and_run, plan_of, start_over};
use argosy_common::config::{Job, Source};
use argosy_common::events::FromWorker;
use argosy_common::follower::Event;
use argosy_common::ids::{Generation, StateName, WorkerId};
use argosy_common::plan::StateSource;
use argosy_common::quarantine::{Quarantined, ReadFault, RowRange};
use argosy_common::shape::RunShape;
use argosy_common::steplog::{MaskReason, StepRecord};
use argosy_shard_loader::{BuildConfig, Index, Loader, LoaderConfig, RetryPolicy, Store, Tokenizer, index};
use argosy_test_stores::{Fault, Faults, Op, Rule, S3Double};
use argosy_worker::engine::ToyEngine;
use std::path::Path;
use std::sync::Arc;

const IMAGE: usize = 4;
const CONTEXT: usize = 8;
const ROWS: u32 = 12;
const SHARDS: usize = 4;

/// A bucket of its own with the same shards as all others: what fails there fails for one worker.
fn bucket(folder: &Path) -> S3Double {
    let double = S3Double::start(Faults::default()).unwrap();
    for shard in 0..SHARDS {
        let mut files = Vec::new();
        for row in 0..ROWS as usize {
            let colour = [(shard * 60) as u8, (row * 20) as u8, 90];
            files.push((format!("{row:03}.png"), png(8, colour)));
            files.push((format!("{row:03}.txt"), format!("{row} in {shard}").into_bytes()));
        }
        let files: Vec<(&str, &[u8])> = files.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
        let path = folder.join("shard.tar");
        tar(&path, &files);
        double.insert("bucket", &format!("set/{shard}.tar"), std::fs::read(path).unwrap());
    }
    double
}

fn store(double: &S3Double) -> Store {
    let policy = RetryPolicy {
        backoff_first_ms: 0,
        ..RetryPolicy::default()
    };
    let store = Store::new(policy).unwrap();
    store.put_root("s3://bucket", double.client("bucket").unwrap());
    store
}

struct Scene {
    dir: tempfile::TempDir,
    rig: Rig,
    index: Arc<Index>,
    job: Job,
}

fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let job =
        "version = 1\nname = \"t\"\n[model]\nname = \"ViT-B-32\"\n[data]\nsources = [{ shards = \".\" }]\n[train]\n";
    let job = Job::from_toml("test.toml", job).unwrap();
    let source = Source {
        name: "all".into(),
        shards: "s3://bucket/set/".into(),
    };
    let config = BuildConfig::of(&job.data, dir.path()).unwrap();
    let first = bucket(dir.path());
    let (index, _) = index::build(&store(&first), &[source], dir.path(), &config, &|_| {}).unwrap();
    let rig = Rig {
        shape: RunShape {
            seed: 5,
            sources: index.to_shape(),
            batch: 8,
            lanes: 2,
            window_factor: 2,
            total_positions: 2 * u64::from(ROWS) * SHARDS as u64,
        },
        image: IMAGE,
        context: CONTEXT,
        ..Rig::default()
    };
    Scene {
        dir,
        rig,
        index: Arc::new(index),
        job,
    }
}

impl Scene {
    fn start(&self, id: u32, double: &S3Double) -> Worker {
        let config = LoaderConfig {
            shape: self.rig.shape.clone(),
            image_size: IMAGE as u32,
            tokenizer: Arc::new(Tokenizer::new(CONTEXT)),
            data: self.job.data.clone(),
            decode_threads: 1,
            prefetch_steps: 1,
            cache: None,
        };
        let loader = Loader::over(Arc::clone(&self.index), config, store(double)).unwrap();
        let make = || Ok(ToyEngine::new(IMAGE, CONTEXT, 3_000, 3));
        start_over(id, self.dir.path(), &self.rig, loader, make)
    }

    fn steps(&self) -> u64 {
        self.rig.shape.total_steps()
    }

    /// What the run comes to on one worker whose store is well.
    fn undisturbed(&self) -> u64 {
        let double = bucket(self.dir.path());
        let mut worker = self.start(9, &double);
        let plan = plan_of(1, StateName::INITIAL, StateSource::Seed, &[&mut worker], vec![0, 0]);
        form_and_run(&plan, &mut [&mut worker]);
        worker.reach(self.steps());
        worker.quit()
    }
}

fn lacks_shard_2(double: &S3Double) {
    double
        .faults()
        .add(Rule::new(Op::Get, Fault::Status(404)).key("set/2.tar").forever());
}

/// Waits until `worker` says that a lane is blocked: the step and the rows.
fn blocked(worker: &mut Worker, generation: u64) -> (u64, RowRange) {
    match worker.event() {
        Event::Passed(FromWorker::LaneBlocked {
            generation: said,
            step,
            rows,
            fault,
            error,
            ..
        }) => {
            assert_eq!((said, fault), (Generation(generation), ReadFault::Shard));
            assert!(error.contains("set/2.tar does not exist"), "{error}");
            (step, rows)
        }
        other => panic!("{}: {other:?}", worker.id),
    }
}

/// All leave generation `generation`; gives the state that is the truth.
fn leave(workers: &mut [&mut Worker], generation: u64) -> StateName {
    workers.iter().for_each(|w| w.aborts.abort(Generation(generation)));
    for worker in workers.iter_mut() {
        loop {
            match worker.event() {
                Event::TrainerStopped { name, .. } => {
                    worker.name = name;
                    break;
                }
                Event::Passed(FromWorker::LaneBlocked { .. }) => {}
                other => panic!("{}: {other:?}", worker.id),
            }
        }
    }
    workers.iter().map(|w| w.name).max().unwrap()
}

const WHOLE: RowRange = RowRange {
    source: 0,
    shard: 2,
    from: 0,
    until: ROWS,
};

#[test]
fn shard_that_one_worker_cannot_read_is_trained_by_another_with_the_same_bits() {
    let scene = scene();
    let (poor, well) = (bucket(scene.dir.path()), bucket(scene.dir.path()));
    lacks_shard_2(&poor);
    let mut workers = vec![scene.start(1, &poor), scene.start(2, &well)];
    let mut all: Vec<&mut Worker> = workers.iter_mut().collect();
    let first = plan_of(1, StateName::INITIAL, StateSource::Seed, &all, vec![0, 1]);
    form_and_run(&first, &mut all);
    let (step, rows) = blocked(all[0], 1);
    assert_eq!(rows, WHOLE);
    let base = leave(&mut all, 1);
    assert_eq!(base.step, step, "nothing was applied without them");
    let second = plan_of(2, base, StateSource::Peers, &all, vec![1, 1]);
    form_and_run(&second, &mut all);
    all.iter_mut().for_each(|w| w.reach(scene.steps()));
    let bits: Vec<u64> = workers.into_iter().map(Worker::quit).collect();
    assert_eq!(bits, [scene.undisturbed(); 2]);
}

#[test]
fn shard_that_no_worker_can_read_takes_no_part_once_the_ledger_says_so_and_all_log_it_alike() {
    let scene = scene();
    let stores = [bucket(scene.dir.path()), bucket(scene.dir.path())];
    stores.iter().for_each(lacks_shard_2);
    let mut workers = vec![scene.start(1, &stores[0]), scene.start(2, &stores[1])];
    let mut all: Vec<&mut Worker> = workers.iter_mut().collect();
    let first = plan_of(1, StateName::INITIAL, StateSource::Seed, &all, vec![0, 0]);
    form_and_run(&first, &mut all);
    blocked(all[0], 1);
    let base = leave(&mut all, 1);
    let second = plan_of(2, base, StateSource::Peers, &all, vec![1, 1]);
    form_and_run(&second, &mut all);
    let (step, rows) = blocked(all[1], 2);
    assert_eq!((step, rows), (base.step, WHOLE));
    let base = leave(&mut all, 2);
    let mut third = plan_of(3, base, StateSource::Peers, &all, vec![0, 1]);
    third.quarantine = vec![Quarantined {
        revision: 1,
        holds_from: base.step,
        rows: WHOLE,
        reason: "gone".into(),
    }];
    form_and_run(&third, &mut all);
    all.iter_mut().for_each(|w| w.reach(scene.steps()));
    let bits: Vec<u64> = workers.into_iter().map(Worker::quit).collect();
    assert_eq!(bits[0], bits[1]);

    let logs = [1, 2].map(|id| applied(scene.dir.path(), WorkerId(id)));
    assert_eq!(logs[0], logs[1], "both tell the same of every step");
    let mut left_out = 0;
    for record in &logs[0] {
        let StepRecord::Applied { masked, valid, .. } = record else {
            panic!("{record:?}")
        };
        assert!(
            masked.iter().all(|row| row.reason == MaskReason::Quarantined),
            "{masked:?}"
        );
        assert_eq!(masked.len() as u32 + valid, 8, "of 8 rows a step");
        left_out += masked.len();
    }
    assert_eq!(left_out, 2 * ROWS as usize, "each of its rows twice, and no other");
}

#[test]
fn rows_that_come_at_a_later_try_are_trained_and_were_told_of_once() {
    let scene = scene();
    let store = bucket(scene.dir.path());
    let gone = Rule::new(Op::Get, Fault::Status(404)).key("set/2.tar");
    store.faults().add(gone.times(2));
    let mut worker = scene.start(1, &store);
    let plan = plan_of(1, StateName::INITIAL, StateSource::Seed, &[&mut worker], vec![0, 0]);
    form_and_run(&plan, &mut [&mut worker]);
    blocked(&mut worker, 1);
    worker.reach(scene.steps());
    assert_eq!(worker.quit(), scene.undisturbed());
}

#[test]
fn shard_that_is_another_one_now_is_refused_and_not_tried_again() {
    let scene = scene();
    let store = bucket(scene.dir.path());
    let changed = Fault::Changed("another shard".into());
    store.faults().add(Rule::new(Op::Get, changed).key("set/2.tar"));
    let mut worker = scene.start(1, &store);
    let plan = plan_of(1, StateName::INITIAL, StateSource::Seed, &[&mut worker], vec![0, 0]);
    form_and_run(&plan, &mut [&mut worker]);
    match worker.event() {
        Event::TrainerFailed { exit, message } => {
            assert!(
                exit == 4 && message.contains("has changed since it was indexed"),
                "{exit} {message}"
            );
        }
        other => panic!("{other:?}"),
    }
}
