//! Values that are not finite never reach a state: the step breaks on all, with the guilty lanes, and is done again or passed
//! over (rule G11). What is decided then is told by the conductor's stories; twin in the simulator: `nan-member`, `nan-data`.

use crate::fleet::{LANES, Worker, applied, form_and_run, plan, start_with};
use argosy_common::events::{AbortReport, NotFinite};
use argosy_common::ids::{Generation, StateName, WorkerId};
use argosy_common::plan::StateSource;
use argosy_common::steplog::StepRecord;
use argosy_worker::engine::{
    ApplyHyper, ApplyOut, Encoded, Engine, GatheredLse, LossOut, OwnLse, Result, RowsIn, TensorSpec, ToyEngine,
};

/// What goes wrong in a worker's second step, when it is made for the first time.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Poison {
    None,
    Feature,
    Gradient,
}

#[derive(Debug)]
struct Poisoned {
    toy: ToyEngine,
    poison: Poison,
}

impl Poisoned {
    fn now(&mut self, poison: Poison) -> bool {
        let now = self.poison == poison && self.toy.applied_steps() == 1;
        if now {
            self.poison = Poison::None;
        }
        now
    }
}

impl Engine for Poisoned {
    fn encode(&mut self, rows: &RowsIn<'_>, micro_rows: usize) -> Result<Encoded> {
        let mut encoded = self.toy.encode(rows, micro_rows)?;
        if self.now(Poison::Feature) {
            encoded.g[5] = f32::NAN;
        }
        Ok(encoded)
    }

    fn loss_backward(&mut self, all: &GatheredLse<'_>) -> Result<LossOut> {
        let out = self.toy.loss_backward(all)?;
        if self.now(Poison::Gradient) {
            self.toy.grads_flat()?[7] = f32::INFINITY;
        }
        Ok(out)
    }

    fn feature_dim(&self) -> usize {
        self.toy.feature_dim()
    }
    fn image_size(&self) -> usize {
        self.toy.image_size()
    }
    fn context_length(&self) -> usize {
        self.toy.context_length()
    }
    fn logit_scale(&self) -> f64 {
        self.toy.logit_scale()
    }
    fn own_lse(&mut self, own: &[u32], valid_rows: usize, f_all: &[f32], g_all: &[f32]) -> Result<OwnLse> {
        self.toy.own_lse(own, valid_rows, f_all, g_all)
    }
    fn grads_flat(&mut self) -> Result<&mut [f32]> {
        self.toy.grads_flat()
    }
    fn apply(&mut self, hyper: &ApplyHyper) -> Result<ApplyOut> {
        self.toy.apply(hyper)
    }
    fn tensor_table(&self) -> Vec<TensorSpec> {
        self.toy.tensor_table()
    }
    fn state_elements(&self) -> usize {
        self.toy.state_elements()
    }
    fn applied_steps(&self) -> u64 {
        self.toy.applied_steps()
    }
    fn export_state(&self, out: &mut Vec<u8>) {
        self.toy.export_state(out);
    }
    fn import_state(&mut self, bytes: &[u8], expected_hash: Option<u64>) -> Result<()> {
        self.toy.import_state(bytes, expected_hash)
    }
    fn state_hash(&self) -> u64 {
        self.toy.state_hash()
    }
    fn set_params(&mut self, params: &[f32]) -> Result<()> {
        self.toy.set_params(params)
    }
    fn encode_images_eval(&mut self, rows: usize, pixels: &[u8], micro_rows: usize) -> Result<Vec<f32>> {
        self.toy.encode_images_eval(rows, pixels, micro_rows)
    }
    fn encode_text_eval(
        &mut self,
        rows: usize,
        tokens: &[i32],
        lengths: &[u16],
        micro_rows: usize,
    ) -> Result<Vec<f32>> {
        self.toy.encode_text_eval(rows, tokens, lengths, micro_rows)
    }
}

fn fleet(dir: &std::path::Path, poison: [Poison; 2]) -> Vec<Worker<Poisoned>> {
    let make = |poison| {
        move || {
            Ok(Poisoned {
                toy: ToyEngine::new(2, 3, 10, 3),
                poison,
            })
        }
    };
    (1..)
        .zip(poison)
        .map(|(id, poison)| start_with(id, dir, None, make(poison)))
        .collect()
}

/// What a worker says of a broken generation, and why it left.
fn broke(worker: &mut Worker<Poisoned>, generation: u64) -> (AbortReport, String) {
    let cause = worker.stopped(generation).unwrap();
    (worker.aborted.pop().unwrap(), cause)
}

/// Two workers, the second poisoned; what both said after a healthy first step.
fn poisoned(poison: Poison) -> [(AbortReport, String); 2] {
    let dir = tempfile::tempdir().unwrap();
    let mut workers = fleet(dir.path(), [Poison::None, poison]);
    let mut all: Vec<&mut Worker<Poisoned>> = workers.iter_mut().collect();
    let plan = plan(1, StateName::INITIAL, StateSource::Seed, &all, |lane| lane % 2);
    form_and_run(&plan, &mut all);
    let [first, second] = &mut workers[..] else {
        panic!("two")
    };
    let said = [broke(first, 1), broke(second, 1)];
    assert!(workers.iter().all(|w| w.name.step == 1), "nothing was applied");
    said
}

fn lanes(lanes: &[u32]) -> Option<NotFinite> {
    Some(NotFinite {
        lanes: lanes.to_vec(),
        sum: false,
    })
}

#[test]
fn feature_that_is_not_finite_breaks_the_step_before_loss_and_all_name_its_lane() {
    // Worker 2 owns lanes 1, 3, 5; value 5 belongs to its second valid row.
    for (report, cause) in poisoned(Poison::Feature) {
        assert_eq!((report.step, &*report.phase, report.entered), (1, "gather", 1));
        assert_eq!(report.not_finite, lanes(&[1]));
        assert!(cause.contains("lane 1") && cause.contains("not finite"), "{cause}");
    }
}

#[test]
fn owner_of_a_row_that_is_not_finite_names_the_sample() {
    let [_, (_, cause)] = poisoned(Poison::Feature);
    assert!(cause.contains("sample 0/"), "{cause}");
}

#[test]
fn gradient_that_is_not_finite_breaks_the_step_before_apply_and_all_name_the_workers_lanes() {
    for (report, cause) in poisoned(Poison::Gradient) {
        assert_eq!((report.step, &*report.phase), (1, "sentinel"));
        assert_eq!(report.not_finite, lanes(&[1, 3, 5]));
        assert!(cause.contains("[1, 3, 5]"), "{cause}");
    }
}

#[test]
fn step_done_again_with_the_lanes_elsewhere_gives_the_bits_of_a_run_without_trouble() {
    let ends = [Poison::None, Poison::Feature, Poison::Gradient].map(|poison| {
        let dir = tempfile::tempdir().unwrap();
        let mut workers = fleet(dir.path(), [Poison::None, poison]);
        let mut all: Vec<&mut Worker<Poisoned>> = workers.iter_mut().collect();
        let first = plan(1, StateName::INITIAL, StateSource::Seed, &all, |lane| lane % 2);
        form_and_run(&first, &mut all);
        if poison != Poison::None {
            for worker in &mut all {
                broke(worker, 1);
                assert_eq!(
                    worker.name,
                    StateName {
                        step: 1,
                        applied_gen: Generation(1)
                    }
                );
            }
            let again = plan(2, all[0].name, StateSource::Peers, &all, |lane| 1 - lane % 2);
            form_and_run(&again, &mut all);
        }
        all.iter_mut().for_each(|w| w.reach(9));
        workers.into_iter().map(Worker::quit).collect::<Vec<_>>()
    });
    assert!(ends.iter().flatten().all(|hash| *hash == ends[0][0]), "{ends:x?}");
}

#[test]
fn step_passed_over_by_plan_changes_the_name_alone_and_is_logged_with_reason_and_ids() {
    let dir = tempfile::tempdir().unwrap();
    let mut workers = fleet(dir.path(), [Poison::None, Poison::Feature]);
    let mut all: Vec<&mut Worker<Poisoned>> = workers.iter_mut().collect();
    let first = plan(1, StateName::INITIAL, StateSource::Seed, &all, |lane| lane % 2);
    form_and_run(&first, &mut all);
    for worker in &mut all {
        broke(worker, 1);
    }
    let mut over = plan(2, all[0].name, StateSource::Peers, &all, |lane| lane % 2);
    over.skip = Some("lanes [1] are not finite".into());
    form_and_run(&over, &mut all);
    all[0].reach(2);
    let report = all[0].reports.last().unwrap().clone();
    assert_eq!(
        (report.name.step, report.name.applied_gen, report.loss),
        (2, Generation(2), None)
    );
    // The step behind it is an ordinary one again, and nothing of the plan's skip is left.
    all.iter_mut().for_each(|w| w.reach(9));
    let log = applied(dir.path(), WorkerId(1));
    let StepRecord::Applied {
        lanes, skipped, valid, ..
    } = &log[1]
    else {
        panic!("{log:?}")
    };
    assert_eq!(skipped.as_deref(), Some("lanes [1] are not finite"));
    assert!(lanes.len() == LANES as usize && *valid > 2, "{:?}", log[1]);
    let skipped = |r: &StepRecord| matches!(r, StepRecord::Applied { skipped: Some(_), .. });
    assert_eq!(log.iter().filter(|r| skipped(r)).count(), 1);
    let applied: Vec<u64> = workers.into_iter().map(Worker::quit).collect();
    assert_eq!(applied[0], applied[1]);
}
