//! Values that are not finite never reach a state (rule G11, first form: the run ends and says where they came from).

use crate::fleet::{Worker, form_and_run, plan, start_with};
use argosy_common::follower::Event;
use argosy_common::ids::StateName;
use argosy_common::plan::StateSource;
use argosy_worker::engine::{
    ApplyHyper, ApplyOut, Encoded, Engine, GatheredLse, LossOut, OwnLse, Result, RowsIn, TensorSpec, ToyEngine,
};

/// What goes wrong, in the second step of one worker.
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
    fn now(&self, poison: Poison) -> bool {
        self.poison == poison && self.toy.applied_steps() == 1
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

/// Two workers, the second poisoned. Gives what it said and what the first said, after a healthy first step.
fn poisoned(poison: Poison) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    let make = |poison| {
        move || {
            Ok(Poisoned {
                toy: ToyEngine::new(2, 3, 10, 3),
                poison,
            })
        }
    };
    let mut workers: Vec<Worker<Poisoned>> = vec![
        start_with(1, dir.path(), None, make(Poison::None)),
        start_with(2, dir.path(), None, make(poison)),
    ];
    let mut all: Vec<&mut Worker<Poisoned>> = workers.iter_mut().collect();
    let plan = plan(1, StateName::INITIAL, StateSource::Seed, &all, |lane| lane % 2);
    form_and_run(&plan, &mut all);
    let Event::TrainerFailed { exit: 1, message } = all[1].event() else {
        panic!("the guilty worker goes on")
    };
    let Some(cause) = all[0].stopped(1) else {
        panic!("the other worker was not asked to stop")
    };
    assert!(all.iter().all(|w| w.name.step == 1), "nothing was applied");
    (message, cause)
}

#[test]
fn feature_that_is_not_finite_ends_the_run_before_loss_and_names_lane_and_sample() {
    let (message, cause) = poisoned(Poison::Feature);
    // Worker 2 owns lanes 1, 3, 5; value 5 belongs to its second valid row.
    assert!(message.contains("lane 1") && message.contains("sample 0/"), "{message}");
    assert!(cause.contains("lane 1") && cause.contains("not finite"), "{cause}");
}

#[test]
fn gradient_that_is_not_finite_ends_the_run_before_apply_and_names_the_lanes() {
    let (message, cause) = poisoned(Poison::Gradient);
    assert!(message.contains("[1, 3, 5]"), "{message}");
    assert!(cause.contains("rank 1"), "{cause}");
}
