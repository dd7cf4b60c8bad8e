//! AdamW with moments of our own, clipping by fixed blocks, and OpenCLIP's two rules of what decays.

use crate::clip::Params;
use crate::engine::{ApplyHyper, EngineError, Result, TensorSpec};
use argosy_torch_ext::{AdamWHyper, AdamWLists, FlatBuffer, fused_adamw};
use tch::Tensor;

/// Elements per block of the flat order for sums of squares (rule N1).
pub const BLOCK_ELEMENTS: usize = 65_536;

/// Which parameters decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DecayRule {
    /// OpenCLIP 2.x and 3.x: all but `ndim < 2` and names with `bn`, `ln`, `bias`, `logit_scale`; so the positional
    /// embeddings decay. All published LAION models were trained so.
    #[default]
    Classic,
    /// OpenCLIP's main branch: all but `ndim <= 1`, `positional_embedding` and `class_embedding`.
    Main,
}

impl DecayRule {
    /// Whether weight decay acts on this tensor.
    #[must_use]
    pub fn decays(self, name: &str, shape: &[i64]) -> bool {
        if shape.len() < 2 {
            return false;
        }
        match self {
            Self::Classic => !["bn", "ln", "bias", "logit_scale"]
                .iter()
                .any(|part| name.contains(part)),
            Self::Main => {
                let last = name.rsplit('.').next().unwrap_or(name);
                last != "positional_embedding" && last != "class_embedding"
            }
        }
    }
}

/// Sum of squares of every block of the flat order, in order. Each block's sum depends on its values alone, so whoever
/// owns it gets the same bits.
#[must_use]
pub fn block_squares(values: &[f32]) -> Vec<f64> {
    let block = |block: &[f32]| {
        // Eight running sums let the compiler use vectors; their order is fixed.
        let mut sums = [0.0f64; 8];
        let (whole, rest) = block.as_chunks::<8>();
        for chunk in whole {
            for (sum, v) in sums.iter_mut().zip(chunk) {
                *sum += f64::from(*v) * f64::from(*v);
            }
        }
        for (sum, v) in sums.iter_mut().zip(rest) {
            *sum += f64::from(*v) * f64::from(*v);
        }
        sums.iter().sum()
    };
    values.chunks(BLOCK_ELEMENTS).map(block).collect()
}

/// Factor on the gradient so that its norm is at most `limit` (`torch.nn.utils.clip_grad_norm_`).
#[must_use]
pub fn clip_factor(norm: f64, limit: Option<f64>) -> f64 {
    limit.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0))
}

/// Views of one decay class into the four flat buffers.
#[derive(Debug, Default)]
struct Segments {
    params: Vec<Tensor>,
    grads: Vec<Tensor>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
}

/// AdamW over the flat order.
#[derive(Debug)]
pub struct AdamW {
    /// First moments `[P]`.
    pub exp_avg: FlatBuffer,
    /// Second moments `[P]`.
    pub exp_avg_sq: FlatBuffer,
    /// Updates applied, for bias correction; part of the state.
    pub applied: u64,
    plain: Segments,
    decayed: Segments,
}

impl AdamW {
    /// Moments of zero for `params`.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn new(params: &Params, rule: DecayRule) -> Result<Self> {
        let len = params.values.len();
        let (exp_avg, exp_avg_sq) = (FlatBuffer::zeros(len)?, FlatBuffer::zeros(len)?);
        let (mut plain, mut decayed) = (Segments::default(), Segments::default());
        for (decays, offset, len) in runs(params.table(), rule) {
            let into = if decays { &mut decayed } else { &mut plain };
            let shape = [len as i64];
            into.params.push(params.values.view(offset, &shape)?);
            into.grads.push(params.grads.view(offset, &shape)?);
            into.first.push(exp_avg.view(offset, &shape)?);
            into.second.push(exp_avg_sq.view(offset, &shape)?);
        }
        Ok(Self {
            exp_avg,
            exp_avg_sq,
            applied: 0,
            plain,
            decayed,
        })
    }

    /// One update of the parameters from their flat gradient. Returns the gradient's global norm before clipping.
    ///
    /// # Errors
    /// When the gradient or a hyper-parameter is not finite; nothing is written then.
    pub fn step(&mut self, params: &mut Params, hyper: &ApplyHyper) -> Result<f64> {
        let norm = block_squares(params.grads.as_slice()).iter().sum::<f64>().sqrt();
        if !norm.is_finite() || !hyper.lr.is_finite() || !hyper.weight_decay.is_finite() {
            let (lr, wd) = (hyper.lr, hyper.weight_decay);
            let why = format!("update refused: gradient norm {norm}, lr {lr}, weight decay {wd} must all be finite");
            return Err(EngineError::Protocol(why));
        }
        let factor = clip_factor(norm, hyper.clip_norm);
        if factor < 1.0 {
            let _ = params.grads.tensor().shallow_clone().f_mul_scalar_(factor)?;
        }
        let count = Tensor::from((self.applied + 1) as f32);
        for (segments, weight_decay) in [(&self.plain, 0.0), (&self.decayed, hyper.weight_decay)] {
            let (p, g): (Vec<&Tensor>, Vec<&Tensor>) =
                (segments.params.iter().collect(), segments.grads.iter().collect());
            let (m, v): (Vec<&Tensor>, Vec<&Tensor>) =
                (segments.first.iter().collect(), segments.second.iter().collect());
            let steps = vec![&count; p.len()];
            let lists = AdamWLists {
                params: &p,
                grads: &g,
                exp_avg: &m,
                exp_avg_sq: &v,
                steps: &steps,
            };
            let ApplyHyper {
                lr, beta1, beta2, eps, ..
            } = *hyper;
            fused_adamw(
                &lists,
                &AdamWHyper {
                    lr,
                    beta1,
                    beta2,
                    eps,
                    weight_decay,
                },
            )?;
        }
        self.applied += 1;
        Ok(norm)
    }
}

/// Neighbouring tensors of one class joined: (decays, offset, length).
fn runs(table: &[TensorSpec], rule: DecayRule) -> Vec<(bool, usize, usize)> {
    let mut out: Vec<(bool, usize, usize)> = Vec::new();
    for spec in table {
        let decays = rule.decays(&spec.name, &spec.shape);
        match out.last_mut() {
            Some(last) if last.0 == decays => last.2 += spec.len,
            _ => out.push((decays, spec.offset, spec.len)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::ModelConfig;

    const HYPER: ApplyHyper = ApplyHyper {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.98,
        eps: 1e-6,
        weight_decay: 0.5,
        clip_norm: None,
    };

    #[test]
    fn decay_rules_differ_in_the_positional_embeddings_alone() {
        let params = Params::new(&ModelConfig::by_name("demo-tiny").unwrap(), 0).unwrap();
        let differ: Vec<&str> = params
            .table()
            .iter()
            .filter(|s| DecayRule::Classic.decays(&s.name, &s.shape) != DecayRule::Main.decays(&s.name, &s.shape))
            .map(|s| s.name.as_str())
            .collect();
        assert_eq!(differ, ["positional_embedding", "visual.positional_embedding"]);
        assert!(!DecayRule::Classic.decays("logit_scale", &[]));
        assert!(!DecayRule::Main.decays("visual.class_embedding", &[64]));
    }

    #[test]
    fn adamw_zero_gradient_decays_only_what_the_rule_names() {
        let mut params = Params::new(&ModelConfig::by_name("demo-tiny").unwrap(), 0).unwrap();
        let mut adam = AdamW::new(&params, DecayRule::Classic).unwrap();
        let before = params.values.as_slice().to_vec();
        adam.step(&mut params, &HYPER).unwrap();
        for spec in params.table() {
            let (old, new) = (before[spec.offset], params.values.as_slice()[spec.offset]);
            let want = if DecayRule::Classic.decays(&spec.name, &spec.shape) {
                old * (1.0 - 0.005)
            } else {
                old
            };
            assert!((new - want).abs() <= 1e-7, "{}: {old} -> {new}", spec.name);
        }
    }

    #[test]
    fn adamw_not_finite_gradient_writes_nothing() {
        let mut params = Params::new(&ModelConfig::by_name("demo-tiny").unwrap(), 0).unwrap();
        let mut adam = AdamW::new(&params, DecayRule::Main).unwrap();
        let before = params.values.as_slice().to_vec();
        params.grads.as_mut_slice()[77] = f32::NAN;
        assert!(adam.step(&mut params, &HYPER).is_err());
        assert!(params.values.as_slice() == before && adam.applied == 0);
    }

    #[test]
    fn block_squares_sum_is_the_norm_and_clipping_caps_it() {
        let values: Vec<f32> = (0..BLOCK_ELEMENTS + 13).map(|i| (i % 7) as f32).collect();
        let blocks = block_squares(&values);
        assert_eq!(blocks.len(), 2);
        assert_eq!(
            blocks.iter().sum::<f64>(),
            values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()
        );
        assert_eq!(clip_factor(0.5, Some(1.0)), 1.0);
        assert!((clip_factor(4.0, Some(1.0)) - 0.25).abs() < 1e-6);
        assert_eq!(clip_factor(4.0, None), 1.0);
    }
}
