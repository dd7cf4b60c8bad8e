//! Rule N4: in deterministic mode the state at the end has the same bits for every world size and every history of losses.

use crate::fleet::{Rig, Worker, form, form_and_run, plan_of, start_rig};
use crate::saved::{checkpoint, uploaded, write_manifest};
use argosy_common::config::{Loss, TrainConfig};
use argosy_common::follower::TrainerOrder;
use argosy_common::ids::{Generation, StateName};
use argosy_common::plan::StateSource;
use argosy_common::shape::{RunShape, SourceShape};
use argosy_worker::clip::locks::Locks;
use argosy_worker::clip::{ModelConfig, Params, Preprocess};
use argosy_worker::engine::{Engine, TorchEngine, TorchOptions};
use argosy_worker::model::describe;
use std::path::Path;
use std::sync::atomic::Ordering;

/// More than eight, no power of two.
const LANES: u32 = 11;
const LANE_ROWS: u32 = 3;
const WORLDS: [u32; 5] = [1, 2, 3, 5, 8];

/// A model, and what it is trained on.
pub(crate) struct Case {
    pub(crate) rig: Rig,
    config: String,
    pub(crate) options: TorchOptions,
}

impl Case {
    /// Of a ViT and a text tower, as `vision` says otherwise.
    pub(crate) fn new(steps: u64, micro_batch: Option<u32>, vision: serde_json::Value) -> Self {
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
            options: TorchOptions::default(),
        }
    }

    /// A small ResNet.
    pub(crate) fn resnet(steps: u64) -> Self {
        let vision = serde_json::json!({"image_size": 32, "layers": [1, 1, 1, 1], "width": 2, "head_width": 32});
        Self::new(steps, None, vision)
    }

    /// The model as it is built.
    pub(crate) fn model(&self) -> (ModelConfig, Preprocess) {
        let (mut config, preprocess) = ModelConfig::from_json(&self.config).unwrap();
        if self.options.loss == Loss::Siglip {
            config.make_siglip();
        }
        (config, preprocess)
    }

    fn vit(steps: u64, micro_batch: Option<u32>) -> Self {
        Self::new(steps, micro_batch, serde_json::json!({}))
    }

    fn start(&self, id: u32, dir: &Path) -> Worker<TorchEngine> {
        let ((config, preprocess), options) = (self.model(), self.options);
        start_rig(id, dir, &self.rig, move || {
            TorchEngine::new(&config, &preprocess, options)
        })
    }

    /// Trains on two workers until they have written a checkpoint of step `at`, and loses both; gives the manifest's key and
    /// the state that it names.
    pub(crate) fn checkpointed(&self, dir: &Path, at: u64) -> (String, StateName) {
        let mut workers = fleet(1..=2, dir, self);
        for worker in &workers {
            worker.stall_at.store(at + 2, Ordering::SeqCst);
        }
        let mut all: Vec<_> = workers.iter_mut().collect();
        let first = plan_of(1, StateName::INITIAL, StateSource::Seed, &all, deal(2));
        form(&first, &mut all);
        all[0].order(checkpoint(1, at, vec![0, 1]));
        all[1].order(checkpoint(1, at, vec![]));
        for worker in &all {
            let generation = Generation(1);
            worker.order(TrainerOrder::Run { generation });
        }
        let (parts, name) = uploaded(all[0]);
        assert_eq!(name.step, at);
        workers[0].aborts.abort(Generation(1));
        let (config, preprocess) = self.model();
        let model = describe(&config, &preprocess, false).model;
        (write_manifest(dir, name, parts, model), name)
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

fn fleet(ids: std::ops::RangeInclusive<u32>, dir: &Path, case: &Case) -> Vec<Worker<TorchEngine>> {
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

/// Loses both workers behind a checkpoint of step `at`; `size` others that know nothing go on from it.
fn restored(size: u32, at: u64, case: &Case) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let (key, base) = case.checkpointed(dir.path(), at);
    let mut workers = fleet(3..=size + 2, dir.path(), case);
    let mut all: Vec<_> = workers.iter_mut().collect();
    let second = plan_of(2, base, StateSource::Manifest { key }, &all, deal(size));
    form_and_run(&second, &mut all);
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
    // Running statistics are part of the state that is hashed, healed, saved and compared.
    let case = Case::resnet(6);
    let one = undisturbed(1, &case);
    assert_eq!(undisturbed(3, &case), one, "three workers");
    assert_eq!(disturbed(3, 3, &case), one, "after a loss and a join");
    assert_eq!(restored(3, 4, &case), one, "from a checkpoint");
}

#[test]
fn deterministic_training_with_locked_towers_gives_the_same_bits_for_every_history() {
    let free = undisturbed(1, &Case::vit(5, None));
    for (image, text) in [(Some(0), None), (Some(1), Some(2)), (None, Some(0)), (None, Some(3))] {
        let mut case = Case::vit(5, None);
        case.options.locks = Locks {
            image,
            text,
            freeze_bn_stats: false,
        };
        let one = undisturbed(1, &case);
        assert_ne!(one, free, "{image:?} {text:?}: nothing is locked");
        assert_eq!(undisturbed(3, &case), one, "{image:?} {text:?}: three workers");
        assert_eq!(
            disturbed(2, 2, &case),
            one,
            "{image:?} {text:?}: after a loss and a join"
        );
        assert_eq!(restored(3, 2, &case), one, "{image:?} {text:?}: from a checkpoint");
    }
}

/// Without that mode rows of the token table are exchanged by themselves, and a locked table has none.
#[test]
fn training_with_a_locked_text_tower_on_three_workers_is_that_on_one() {
    for text in [Some(0), Some(1), Some(3)] {
        let mut case = Case::vit(5, None);
        case.rig.train.deterministic = false;
        case.options.locks.text = text;
        let (config, _) = case.model();
        let frozen = case.options.locks.frozen(&config).unwrap();
        assert!(frozen.contains("token_embedding.weight"));
        let [one, three] = [1, 3].map(|size| {
            let dir = tempfile::tempdir().unwrap();
            let mut workers = fleet(1..=size, dir.path(), &case);
            let mut all: Vec<_> = workers.iter_mut().collect();
            let plan = plan_of(1, StateName::INITIAL, StateSource::Seed, &all, deal(size));
            form_and_run(&plan, &mut all);
            let total = case.rig.shape.total_steps();
            workers.iter_mut().for_each(|w| w.reach(total));
            let losses: Vec<Option<f64>> = workers[0].reports.iter().map(|report| report.loss).collect();
            let engines: Vec<TorchEngine> = workers.into_iter().map(Worker::into_engine).collect();
            let hashes: Vec<u64> = engines.iter().map(Engine::state_hash).collect();
            assert!(hashes.iter().all(|h| *h == hashes[0]), "{text:?}: {hashes:x?}");
            (losses, engines.into_iter().next().unwrap())
        });
        for (step, (a, b)) in one.0.iter().zip(&three.0).enumerate() {
            let off = (a.unwrap_or(0.0) - b.unwrap_or(0.0)).abs();
            assert!(
                a.is_some() == b.is_some() && off <= 1e-5 * a.unwrap_or(1.0).max(1.0),
                "{text:?} {step}: {a:?} {b:?}"
            );
        }
        let (first, _) = case.model();
        let first = Params::new(&first, case.options.seed).unwrap();
        for spec in first.trained() {
            let range = spec.offset..spec.offset + spec.len;
            let of = |params: &Params| params.values.as_slice()[range.clone()].to_vec();
            let same = of(&first) == of(three.1.params());
            assert_eq!(same, frozen.contains(&spec.name), "{text:?}: {}", spec.name);
        }
    }
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
