//! Rule N4: in deterministic mode the state at the end has the same bits for every world size and every history of losses.

use crate::fleet::{Rig, Worker, form_and_run, plan_of, start_rig};
use argosy_common::config::TrainConfig;
use argosy_common::follower::TrainerOrder;
use argosy_common::ids::{Generation, StateName};
use argosy_common::plan::StateSource;
use argosy_common::shape::{RunShape, SourceShape};
use argosy_worker::clip::ModelConfig;
use argosy_worker::engine::{TorchEngine, TorchOptions};
use std::sync::atomic::Ordering;

/// More than eight, no power of two.
const LANES: u32 = 11;
const LANE_ROWS: u32 = 3;
const WORLDS: [u32; 5] = [1, 2, 3, 5, 8];

/// A model, and what it is trained on.
struct Case {
    rig: Rig,
    config: String,
}

impl Case {
    /// Of a ViT and a text tower, as `vision` says otherwise.
    fn new(steps: u64, micro_batch: Option<u32>, vision: serde_json::Value) -> Self {
        let mut config = serde_json::json!({
            "embed_dim": 16,
            "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
            "text_cfg": {"context_length": 12, "vocab_size": 97, "width": 32, "heads": 2, "layers": 2},
        });
        for (key, value) in vision.as_object().into_iter().flatten() {
            config["vision_cfg"][key] = value.clone();
        }
        let image = config["vision_cfg"]["image_size"].as_u64().unwrap() as usize;
        Self {
            rig: rig(steps, micro_batch, image),
            config: config.to_string(),
        }
    }

    fn vit(steps: u64, micro_batch: Option<u32>) -> Self {
        Self::new(steps, micro_batch, serde_json::json!({}))
    }

    fn start(&self, id: u32, dir: &std::path::Path) -> Worker<TorchEngine> {
        let config = self.config.clone();
        start_rig(id, dir, &self.rig, move || {
            let (config, preprocess) = ModelConfig::from_json(&config).unwrap();
            TorchEngine::new(&config, &preprocess, TorchOptions::default())
        })
    }
}

fn rig(steps: u64, micro_batch: Option<u32>, image: usize) -> Rig {
    let batch = LANES * LANE_ROWS;
    Rig {
        shape: RunShape {
            seed: 5,
            sources: vec![SourceShape {
                name: "s".into(),
                shard_rows: vec![80, 41, 33],
            }],
            batch,
            lanes: LANES,
            window_factor: 2,
            total_positions: (steps - 1) * u64::from(batch) + 9, // the last step is a partial one
        },
        train: TrainConfig {
            warmup: 3,
            lr: 1e-3,
            grad_clip_norm: Some(1.0),
            micro_batch,
            deterministic: true,
            state_hash_steps: 1,
            ..TrainConfig::default()
        },
        image,
        context: 12,
        vocab: 97,
        bare_step: Some(2),
    }
}

fn fleet(ids: std::ops::RangeInclusive<u32>, dir: &std::path::Path, case: &Case) -> Vec<Worker<TorchEngine>> {
    ids.map(|id| case.start(id, dir)).collect()
}

/// Uneven, and with the lanes of one worker apart from each other.
fn deal(size: u32) -> Vec<u32> {
    (0..LANES).map(|lane| (lane * lane + lane / 3) % size).collect()
}

fn ends(mut workers: Vec<Worker<TorchEngine>>, rig: &Rig) -> u64 {
    let total = rig.shape.total_steps();
    workers.iter_mut().for_each(|w| w.reach(total));
    let last: Vec<Vec<u64>> = workers
        .iter()
        .map(|w| w.reports.last().unwrap().state_hashes.clone())
        .collect();
    assert!(last.iter().all(|h| !h.is_empty() && *h == last[0]), "{last:x?}");
    let hashes: Vec<u64> = workers.into_iter().map(Worker::quit).collect();
    assert!(hashes.iter().all(|h| *h == hashes[0]), "{hashes:x?}");
    hashes[0]
}

fn undisturbed(size: u32, case: &Case) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let mut workers = fleet(1..=size, dir.path(), case);
    let mut all: Vec<_> = workers.iter_mut().collect();
    let plan = plan_of(1, StateName::INITIAL, StateSource::Seed, &all, deal(size));
    form_and_run(&plan, &mut all);
    ends(workers, &case.rig)
}

/// Loses the last worker of `size` while it stands in LOAD of step `at`, then goes on with the others, then with one more
/// that heals.
fn disturbed(size: u32, at: u64, case: &Case) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let mut workers = fleet(1..=size, dir.path(), case);
    workers[size as usize - 1].stall_at.store(at, Ordering::SeqCst);
    let mut all: Vec<_> = workers.iter_mut().collect();
    let first = plan_of(1, StateName::INITIAL, StateSource::Seed, &all, deal(size));
    form_and_run(&first, &mut all);
    workers.iter_mut().for_each(|w| w.reach(at));
    // Its sockets close as those of a killed process do; the others are in the middle of the step.
    let lost = workers.pop().unwrap();
    lost.aborts.abort(Generation(1));
    drop(lost);
    workers.iter_mut().for_each(|w| drop(w.stopped(1)));
    let mut all: Vec<_> = workers.iter_mut().collect();
    let second = plan_of(2, all[0].name, StateSource::Peers, &all, deal(size - 1));
    form_and_run(&second, &mut all);
    for worker in &all {
        worker.order(TrainerOrder::StopAfter {
            generation: Generation(2),
            step: at + 2,
        });
    }
    workers.iter_mut().for_each(|w| {
        w.reach(at + 2);
        drop(w.stopped(2));
    });
    // The boundary may have been passed by one when the order came; then they stand apart, and the rest heals too.
    let base = workers.iter().map(|w| w.name).max().unwrap();
    workers.extend(fleet(size + 1..=size + 1, dir.path(), case));
    let mut all: Vec<_> = workers.iter_mut().collect();
    let third = plan_of(3, base, StateSource::Peers, &all, deal(size));
    form_and_run(&third, &mut all);
    ends(workers, &case.rig)
}

#[test]
fn deterministic_training_gives_the_same_bits_for_every_world_size() {
    let case = Case::vit(6, None);
    let one = undisturbed(1, &case);
    for size in WORLDS {
        assert_eq!(undisturbed(size, &case), one, "{size} workers");
    }
    assert_eq!(disturbed(3, 3, &case), one, "after a loss and a join");
}

#[test]
fn deterministic_training_in_micro_batches_gives_the_same_bits_for_every_world_size() {
    let case = Case::vit(4, Some(2));
    assert_eq!(undisturbed(3, &case), undisturbed(1, &case));
}

#[test]
fn deterministic_training_of_a_resnet_gives_the_same_bits_and_statistics_for_every_history() {
    // Running statistics are part of the state that is hashed, healed and compared.
    let resnet = serde_json::json!({"image_size": 32, "layers": [1, 1, 1, 1], "width": 2, "head_width": 32});
    let case = Case::new(6, None, resnet);
    let one = undisturbed(1, &case);
    assert_eq!(undisturbed(3, &case), one, "three workers");
    assert_eq!(disturbed(3, 3, &case), one, "after a loss and a join");
}

#[test]
fn deterministic_training_with_patch_dropout_drops_the_same_patches_for_every_history() {
    let dropping = |share: f64| Case::new(5, None, serde_json::json!({"image_size": 32, "patch_dropout": share}));
    let case = dropping(0.5);
    let one = undisturbed(1, &case);
    assert_eq!(undisturbed(3, &case), one, "three workers");
    assert_eq!(disturbed(2, 2, &case), one, "after a loss and a join");
    assert_ne!(undisturbed(1, &dropping(0.0)), one, "nothing was dropped");
}

#[test]
#[ignore = "200 steps on five world sizes, undisturbed and disturbed; minutes"]
fn deterministic_training_over_200_steps_gives_the_same_bits_for_every_history() {
    let case = Case::vit(200, None);
    let one = undisturbed(1, &case);
    for size in WORLDS {
        assert_eq!(undisturbed(size, &case), one, "{size} workers");
        if size > 1 {
            for at in [1, 77, 150] {
                assert_eq!(disturbed(size, at, &case), one, "{size} workers, one lost at step {at}");
            }
        }
    }
}
