//! What is compared with golden values, and how.

use super::bounds::Bounds;
use super::fleet::Fleet;
use super::{Golden, LeftOut, Measure, Options, What};
use crate::engine::{Engine, Result};
use std::collections::BTreeMap;

/// Steps of the free run whose parameters are compared (P3); rounding grows from step to step.
const FREE_STEPS: usize = 3;

/// The worst of everything so far.
pub(super) struct Check {
    bounds: Bounds,
    pub(super) found: BTreeMap<What, Measure>,
    pub(super) left_out: LeftOut,
}

/// Value over bound; what is not a finite number counts as the largest there is (JSON has no infinity).
pub(super) fn ratio(value: f64, bound: f64) -> f64 {
    let ratio = if value == 0.0 { 0.0 } else { value / bound };
    if ratio.is_finite() { ratio } else { f64::MAX }
}

impl Check {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            found: BTreeMap::new(),
            left_out: LeftOut::default(),
        }
    }

    /// Keeps what is further beyond its bound than all before.
    fn keep(&mut self, measure: What, (value, bound): (f64, f64), at: impl Into<String>) {
        let value = if value.is_finite() { value } else { f64::MAX };
        let new = Measure {
            measure,
            value,
            bound,
            holds: ratio(value, bound) <= 1.0,
            at: at.into(),
        };
        let worst = self.found.get(&measure).is_none_or(|old| new.ratio() > old.ratio());
        if worst {
            self.found.insert(measure, new);
        }
    }

    /// Features, loss and gradients of one step from golden parameters (P1, P2).
    pub(super) fn forward_backward(&mut self, golden: &Golden, step: usize, fleet: &mut Fleet) -> Result<()> {
        let bounds = self.bounds;
        let out = fleet.step(&golden.batch(step)?)?;
        for (kind, got) in [("image_features", &out.f), ("text_features", &out.g)] {
            let key = format!("step{step}.{kind}");
            let off = largest(got, &golden.tensor(&key)?, |_| true);
            self.keep(What::Features, (off, bounds.features), key);
        }
        let key = format!("step{step}.loss");
        let want = golden.loss(step)?;
        let beside = (out.loss - want).abs();
        let found = nearer(
            (beside, bounds.loss * want.abs().max(1.0)),
            self.beside_double(golden, &key, &[out.loss], &[want]),
        );
        self.keep(What::Loss, found, key);

        let wanted = golden.flat(step, "grad")?;
        let all = norm(&wanted, None);
        for spec in golden.table() {
            let range = spec.offset..spec.offset + spec.len;
            let (got, want) = (&out.gradient[range.clone()], &wanted[range]);
            let bound = bounds.gradient_relative * norm(want, None) + bounds.gradient_global * all;
            let key = format!("step{step}.grad.{}", spec.name);
            let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
            let beside = self.beside_double(golden, &key, &wide(got), &wide(want));
            let found = nearer((norm(got, Some(want)), bound), beside);
            self.keep(What::Gradient, found, key);
        }
        Ok(())
    }

    /// Our distance from the value in double precision, and what is allowed: a few times OpenCLIP's own. None where the folder
    /// has no such value.
    fn beside_double(&self, golden: &Golden, key: &str, got: &[f64], want: &[f64]) -> Option<(f64, f64)> {
        let exact = golden.double(key).filter(|exact| exact.len() == got.len())?;
        let off = |v: &[f64]| v.iter().zip(exact).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        Some((off(got), self.bounds.double_factor * off(want)))
    }

    /// The optimiser alone: golden parameters and golden gradients in, parameters after the step out (P1).
    pub(super) fn optimizer(&mut self, golden: &Golden, options: &Options) -> Result<()> {
        let mut engine = golden.engine(options.tile)?;
        let mut state = Vec::new();
        for step in 0..golden.whole_steps() {
            // Only the parameters are put back; the moments are our own, made of golden gradients.
            engine.export_state(&mut state);
            for (slot, value) in state.as_chunks_mut::<4>().0.iter_mut().zip(golden.params_before(step)?) {
                *slot = value.to_le_bytes();
            }
            engine.import_state(&state, None)?;
            let gradient = golden.flat(step, "grad")?;
            engine.grads_flat()?[..gradient.len()].copy_from_slice(&gradient);
            engine.apply(&golden.hyper())?;
            let wanted = golden.flat(step, "param")?;
            for spec in golden.table() {
                let range = spec.offset..spec.offset + spec.len;
                let got = &engine.params().values.as_slice()[range.clone()];
                let off = largest(got, &wanted[range], |_| true);
                let name = format!("step{step}.param.{}", spec.name);
                self.keep(What::Optimizer, (off, self.bounds.optimizer), name);
            }
        }
        Ok(())
    }

    /// All steps without help, by all workers; at the end every worker must hold the same bits. The first three are judged by
    /// their parameters (P3), a longer run by its losses: not of BatchNorm's towers, where rounding grows faster than that.
    pub(super) fn free_run(&mut self, golden: &Golden, options: &Options) -> Result<()> {
        let first = golden.params_before(0)?;
        let mut fleet = Fleet::new(golden, options)?;
        fleet.set_params(&first)?;
        let (steps, compared) = (golden.steps(), golden.whole_steps().min(FREE_STEPS));
        let long = steps > FREE_STEPS && !golden.has_batch_norm();
        for step in 0..if long { steps } else { compared } {
            let out = fleet.step(&golden.batch(step)?)?;
            if long {
                let off = (out.loss - golden.loss(step)?).abs();
                self.keep(
                    What::LongRunLoss,
                    (off, self.bounds.long_run_loss),
                    format!("step{step}.loss"),
                );
            }
            fleet.apply(&golden.hyper())?;
            self.buffers(golden, &fleet, step)?;
            // (The first update moves every element by about the learning rate, whichever way rounding says.)
            if step + 1 == FREE_STEPS {
                self.free_parameters(golden, &fleet, &first, step)?;
            }
        }
        fleet.params()?;
        self.eval_features(golden, &mut fleet)
    }

    /// Parameters after the free run's step `last` (P3).
    fn free_parameters(&mut self, golden: &Golden, fleet: &Fleet, first: &[f32], last: usize) -> Result<()> {
        let (got, wanted) = (fleet.params()?, golden.flat(last, "param")?);
        let tiny = self.tiny_gradients(golden, last)?;
        self.left_out.share = tiny.iter().filter(|t| **t).count() as f64 / tiny.len().max(1) as f64;
        let (mut off, mut way) = (0.0, 0.0);
        let (mut double, mut found) = (Some(FromDouble::default()), Vec::new());
        for spec in golden.table() {
            let counts = |i: usize| !is_key_bias(&spec.name, i, spec.len);
            let range = spec.offset..spec.offset + spec.len;
            let (own, theirs, tiny) = (&got[range.clone()], &wanted[range.clone()], &tiny[range.clone()]);
            let bound = self.bounds.free_run_largest;
            let largest_off = largest(own, theirs, |i| counts(i) && !tiny[i]);
            let beside = largest(own, theirs, |i| counts(i) && tiny[i]) / bound;
            self.left_out.free_run = self.left_out.free_run.max(beside);
            let name = format!("step{last}.param.{}", spec.name);
            double = match (double, golden.double(&name)) {
                (Some(sum), Some(exact)) => Some(sum.and([own, theirs], exact, tiny, counts)),
                _ => None,
            };
            found.push((largest_off, name));
            for i in (0..spec.len).filter(|i| counts(*i)) {
                off += (f64::from(own[i]) - f64::from(theirs[i])).powi(2);
                way += (f64::from(theirs[i]) - f64::from(first[spec.offset + i])).powi(2);
            }
        }
        let factor = self.bounds.double_factor;
        for (off, name) in found {
            let beside = double.map(|d| (d.largest[0], factor * d.largest[1]));
            self.keep(What::FreeRun, nearer((off, self.bounds.free_run_largest), beside), name);
        }
        let share = ((off / way).sqrt(), self.bounds.free_run_relative);
        let beside = double.map(|d| (d.squares[0].sqrt(), factor * d.squares[1].sqrt()));
        self.keep(What::FreeRun, nearer(share, beside), "all parameters");
        Ok(())
    }

    /// BatchNorm's running statistics after a step of the free run (rule BN1): the first, and those of the next that the folder
    /// has.
    fn buffers(&mut self, golden: &Golden, fleet: &Fleet, step: usize) -> Result<()> {
        let values = fleet.params()?;
        for spec in fleet.buffers() {
            let key = format!("step{step}.buffer.{}", spec.name);
            if step > 0 && !golden.has(&key) {
                continue;
            }
            let got = &values[spec.offset..spec.offset + spec.len];
            let want = golden.tensor(&key)?;
            let scale = want.iter().fold(1.0f64, |most, v| most.max(f64::from(v.abs())));
            let off = largest(got, &want, |_| true);
            self.keep(What::Buffers, (off, self.bounds.buffers * scale), key);
        }
        Ok(())
    }

    /// Features of the last batch as evaluation makes them: after our own free run where it was short, so that running
    /// statistics are ours, else from golden parameters, where the folder has the last ones.
    fn eval_features(&mut self, golden: &Golden, fleet: &mut Fleet) -> Result<()> {
        let steps = golden.steps();
        if steps > FREE_STEPS {
            if golden.has_batch_norm() || golden.whole_steps() < steps {
                return Ok(());
            }
            fleet.set_params(&golden.params_before(steps)?)?;
        }
        let batch = golden.batch(steps.saturating_sub(1))?;
        for (kind, got) in ["image_features", "text_features"].into_iter().zip(fleet.eval(&batch)?) {
            let key = format!("eval.{kind}");
            let off = largest(&got, &golden.tensor(&key)?, |_| true);
            self.keep(What::EvalFeatures, (off, self.bounds.eval_features), key);
        }
        Ok(())
    }

    /// Whether each element's gradient comes within a few epsilons of zero up to step `last`; see [`LeftOut`].
    fn tiny_gradients(&self, golden: &Golden, last: usize) -> Result<Vec<bool>> {
        let limit = self.bounds.free_run_epsilons * golden.hyper().eps;
        let mut tiny = Vec::new();
        for step in 0..=last {
            let gradient = golden.flat(step, "grad")?;
            tiny.resize(gradient.len(), false);
            for (tiny, g) in tiny.iter_mut().zip(gradient) {
                *tiny |= g != 0.0 && f64::from(g.abs()) < limit;
            }
        }
        Ok(tiny)
    }
}

/// How far our parameters, and OpenCLIP's, are from those of a free run in double precision.
#[derive(Debug, Clone, Copy, Default)]
struct FromDouble {
    squares: [f64; 2],
    /// Without elements of tiny gradients.
    largest: [f64; 2],
}

impl FromDouble {
    /// With one more tensor.
    fn and(mut self, both: [&[f32]; 2], exact: &[f64], tiny: &[bool], counts: impl Fn(usize) -> bool) -> Self {
        for (side, values) in both.into_iter().enumerate() {
            for (i, (value, exact)) in values.iter().zip(exact).enumerate().filter(|(i, _)| counts(*i)) {
                let off = (f64::from(*value) - exact).abs();
                self.squares[side] += off * off;
                if !tiny[i] {
                    self.largest[side] = self.largest[side].max(off);
                }
            }
        }
        self
    }
}

/// The second way to hold, where the first does not and the second is nearer to it.
fn nearer(one: (f64, f64), other: Option<(f64, f64)>) -> (f64, f64) {
    match other {
        // (Where it holds the first way, that is what is told.)
        Some(other) if ratio(one.0, one.1) > 1.0 && ratio(other.0, other.1) < ratio(one.0, one.1) => other,
        _ => one,
    }
}

/// Whether element `i` of a tensor is a key's bias: the middle third of an attention's packed bias, or `k_proj.bias`. Its true gradient is
/// zero (it shifts all logits of a query alike), so AdamW makes steps out of rounding noise there: OpenCLIP against
/// itself, rows reversed, is 0.2 to 1.7 times the bound of P3 apart with these elements and 0.002 to 0.03 without.
fn is_key_bias(name: &str, i: usize, len: usize) -> bool {
    let packed = name.ends_with("in_proj_bias") && (len / 3..2 * (len / 3)).contains(&i);
    packed || name.ends_with("k_proj.bias")
}

/// Largest absolute difference over the places that count; not a number where one is.
fn largest(got: &[f32], want: &[f32], counts: impl Fn(usize) -> bool) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    let differences = got.iter().zip(want).enumerate().filter(|(i, _)| counts(*i));
    differences
        .map(|(_, (a, b))| (f64::from(*a) - f64::from(*b)).abs())
        .fold(0.0, |worst, d| if d.is_nan() || d > worst { d } else { worst })
}

/// L2 norm, or that of the difference.
fn norm(a: &[f32], minus: Option<&[f32]>) -> f64 {
    let sum: f64 = match minus {
        None => a.iter().map(|v| f64::from(*v).powi(2)).sum(),
        Some(b) => a
            .iter()
            .zip(b)
            .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
            .sum(),
    };
    sum.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearer_takes_the_second_way_only_where_the_first_fails_and_it_is_better() {
        let (holds, fails, fails_less) = ((1.0, 2.0), (6.0, 2.0), (4.0, 2.0));
        assert_eq!(nearer(holds, Some((0.0, 1.0))), holds);
        assert_eq!(nearer(fails, Some(holds)), holds);
        assert_eq!(nearer(fails, Some(fails_less)), fails_less);
        assert_eq!(nearer(fails_less, Some(fails)), fails_less);
        assert_eq!(nearer(fails, None), fails);
        // What is not finite never holds, and is never the nearer.
        assert_eq!(nearer(fails, Some((f64::NAN, 1.0))), fails);
        assert_eq!(nearer((f64::NAN, 1.0), Some(fails)), fails);
    }

    #[test]
    fn from_double_sums_both_sides_and_takes_the_largest_where_gradients_are_not_tiny() {
        let exact = [1.0, 2.0, 3.0, 4.0];
        let both: [&[f32]; 2] = [&[1.0, 2.5, 3.0, 9.0], &[1.25, 2.0, 3.0, 9.0]];
        let tiny = [true, false, false, false];
        let sum = FromDouble::default().and(both, &exact, &tiny, |i| i != 3);
        assert_eq!((sum.squares, sum.largest), ([0.25, 0.0625], [0.5, 0.0]));
        let twice = sum.and(both, &exact, &tiny, |_| true);
        assert_eq!((twice.squares, twice.largest), ([25.5, 25.125], [5.0, 5.0]));
    }
}
