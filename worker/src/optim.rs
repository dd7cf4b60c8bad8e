//! AdamW with moments of our own, clipping by fixed blocks, and OpenCLIP's two rules of what decays.

use crate::clip::Params;
use crate::engine::{ApplyHyper, EngineError, Result, TensorSpec};
use argosy_torch_ext::{AdamWHyper, AdamWLists, FlatBuffer, fused_adamw};
use tch::Tensor;

/// Elements per block of the flat order for sums of squares (rule N1).
pub const BLOCK_ELEMENTS: usize = crate::collective::BLOCK_ELEMENTS;

/// Which parameters decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DecayRule {
    /// OpenCLIP 2.x and 3.x: all but `ndim < 2` and names with `bn`, `ln`, `bias`, `logit_scale`; so the positional
    /// embeddings decay. All published LAION models were trained so.
    #[default]
    Classic,
    /// OpenCLIP's main branch (`open_clip_train/optim.py`): all but `ndim <= 1` and what a model's `no_weight_decay()` names:
    /// `class_embedding` and the `positional_embedding` of transformers (a ResNet names nothing, so that of its attention pool
    /// decays).
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
                let own = name.strip_prefix("visual.").or_else(|| name.strip_prefix("text."));
                !matches!(own.unwrap_or(name), "positional_embedding" | "class_embedding")
            }
        }
    }
}

/// Sum of squares of every block of the flat order, in order. Each block's sum depends on its values alone, so whoever
/// owns it gets the same bits.
#[must_use]
pub fn block_squares(values: &[f32]) -> Vec<f64> {
    argosy_torch_ext::block_squares(values, BLOCK_ELEMENTS)
}

/// Factor on the gradient so that its norm is at most `limit` (`torch.nn.utils.clip_grad_norm_`).
#[must_use]
pub fn clip_factor(norm: f64, limit: Option<f64>) -> f64 {
    limit.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0))
}

/// Layer-wise decay of the learning rate, per tower (open_clip 4.x: `--image-layer-decay`, `--text-layer-decay`).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LayerDecay {
    pub image: Option<f64>,
    pub text: Option<f64>,
}

impl LayerDecay {
    /// Factor on the learning rate of a parameter: `decay ^ distance from the projection`. A tower's layers are its embeddings
    /// (with `ln_pre`; a ResNet's stem), its blocks one by one (the last with the final norm; a ResNet's stages), and its
    /// projection (a ResNet's attention pool); of these the model has `blocks` plus two.
    #[must_use]
    pub fn factor(self, name: &str, image_blocks: i64, text_blocks: i64) -> f64 {
        let (decay, blocks, own) = match name.strip_prefix("visual.") {
            Some(own) => (self.image, image_blocks, own),
            None => (self.text, text_blocks, name.strip_prefix("text.").unwrap_or(name)),
        };
        let Some(decay) = decay.filter(|_| !matches!(name, "logit_scale" | "logit_bias")) else {
            return 1.0;
        };
        let distance = if let Some(rest) = own.strip_prefix("transformer.resblocks.") {
            let block: i64 = rest.split('.').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            blocks - block
        } else if let Some(stage) = resnet_stage(own) {
            blocks + 1 - stage
        } else if own.starts_with("attnpool.") || own == "proj" || own.starts_with("text_projection") {
            0
        } else if own.starts_with("ln_post") || own.starts_with("ln_final") {
            1
        } else {
            blocks + 1
        };
        decay.powi(distance as i32)
    }
}

/// Number of a ResNet's stage, from 1.
fn resnet_stage(own: &str) -> Option<i64> {
    own.strip_prefix("layer")?.split('.').next()?.parse().ok()
}

/// What the optimiser does to one parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Treatment {
    pub decays: bool,
    pub lr_factor: f64,
}

/// Views of all parameters of one treatment into the four flat buffers.
#[derive(Debug)]
struct Segments {
    treatment: Treatment,
    /// Values, gradients, first and second moments.
    lists: [Vec<Tensor>; 4],
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
    segments: Vec<Segments>,
}

impl AdamW {
    /// Moments of zero for `params`; `treat` says of every parameter what is done to it, or that nothing is.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn new(params: &Params, treat: impl Fn(&TensorSpec) -> Option<Treatment>) -> Result<Self> {
        let len = params.values.len();
        let (exp_avg, exp_avg_sq) = (FlatBuffer::zeros(len)?, FlatBuffer::zeros(len)?);
        let mut segments: Vec<Segments> = Vec::new();
        for (treatment, offset, len) in runs(params.trained(), treat) {
            let Some(treatment) = treatment else { continue };
            let at = segments
                .iter()
                .position(|s| s.treatment == treatment)
                .unwrap_or_else(|| {
                    let lists = Default::default();
                    segments.push(Segments { treatment, lists });
                    segments.len() - 1
                });
            let buffers = [&params.values, &params.grads, &exp_avg, &exp_avg_sq];
            for (list, buffer) in segments[at].lists.iter_mut().zip(buffers) {
                list.push(buffer.view(offset, &[len as i64])?);
            }
        }
        Ok(Self {
            exp_avg,
            exp_avg_sq,
            applied: 0,
            segments,
        })
    }

    /// One update of the parameters from their flat gradient. Returns the gradient's global norm before clipping.
    ///
    /// # Errors
    /// When the gradient or a hyper-parameter is not finite; nothing is written then.
    pub fn step(&mut self, params: &mut Params, hyper: &ApplyHyper) -> Result<f64> {
        let trained = params.trained_elements();
        let norm = block_squares(&params.grads.as_slice()[..trained])
            .iter()
            .sum::<f64>()
            .sqrt();
        if !norm.is_finite() || !hyper.lr.is_finite() || !hyper.weight_decay.is_finite() {
            let (lr, wd) = (hyper.lr, hyper.weight_decay);
            let why = format!("update refused: gradient norm {norm}, lr {lr}, weight decay {wd} must all be finite");
            return Err(EngineError::Protocol(why));
        }
        let factor = clip_factor(norm, hyper.clip_norm);
        if factor < 1.0 {
            let _ = params.grads.view(0, &[trained as i64])?.f_mul_scalar_(factor)?;
        }
        let count = Tensor::from((self.applied + 1) as f32);
        for segments in &self.segments {
            update(&segments.lists, &count, segments.treatment, hyper)?;
        }
        self.applied += 1;
        Ok(norm)
    }
}

/// The fused kernel over one treatment's segments.
fn update(lists: &[Vec<Tensor>; 4], count: &Tensor, treatment: Treatment, hyper: &ApplyHyper) -> Result<()> {
    let refs: [Vec<&Tensor>; 4] = std::array::from_fn(|k| lists[k].iter().collect());
    let [p, g, m, v] = &refs;
    let steps = vec![count; p.len()];
    let lists = AdamWLists {
        params: p,
        grads: g,
        exp_avg: m,
        exp_avg_sq: v,
        steps: &steps,
    };
    let hyper = AdamWHyper {
        lr: hyper.lr * treatment.lr_factor,
        beta1: hyper.beta1,
        beta2: hyper.beta2,
        eps: hyper.eps,
        weight_decay: if treatment.decays { hyper.weight_decay } else { 0.0 },
    };
    Ok(fused_adamw(&lists, &hyper)?)
}

/// What is done to neighbouring tensors, where they begin, and how long they are together.
type Run = (Option<Treatment>, usize, usize);

/// Neighbouring tensors of one treatment joined.
fn runs(table: &[TensorSpec], treat: impl Fn(&TensorSpec) -> Option<Treatment>) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::new();
    for spec in table {
        let treatment = treat(spec);
        match out.last_mut() {
            Some(last) if last.0 == treatment => last.2 += spec.len,
            _ => out.push((treatment, spec.offset, spec.len)),
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
        ema_decay: None,
    };

    fn by_rule(rule: DecayRule) -> impl Fn(&TensorSpec) -> Option<Treatment> {
        move |spec| {
            Some(Treatment {
                decays: rule.decays(&spec.name, &spec.shape),
                lr_factor: 1.0,
            })
        }
    }

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
        assert!(!DecayRule::Main.decays("text.positional_embedding", &[77, 64]));
        // Nobody names that of a ResNet's pool, and a name's parts count for nothing here.
        assert!(DecayRule::Main.decays("visual.attnpool.positional_embedding", &[50, 64]));
        assert!(DecayRule::Main.decays("visual.bnlnbias.weight", &[2, 2]));
    }

    #[test]
    fn adamw_zero_gradient_decays_only_what_the_rule_names() {
        let mut params = Params::new(&ModelConfig::by_name("demo-tiny").unwrap(), 0).unwrap();
        let mut adam = AdamW::new(&params, by_rule(DecayRule::Classic)).unwrap();
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
    fn layer_decay_counts_from_the_projection_of_each_tower() {
        let decay = LayerDecay {
            image: Some(0.5),
            text: Some(0.1),
        };
        for (name, want) in [
            ("visual.proj", 1.0),
            ("visual.ln_post.weight", 0.5),
            ("visual.transformer.resblocks.11.ln_1.bias", 0.5),
            ("visual.transformer.resblocks.0.mlp.c_fc.weight", 0.5f64.powi(12)),
            ("visual.conv1.weight", 0.5f64.powi(13)),
            ("visual.ln_pre.bias", 0.5f64.powi(13)),
            ("text_projection", 1.0),
            ("ln_final.weight", 0.1),
            ("transformer.resblocks.1.attn.in_proj_bias", 0.1),
            ("transformer.resblocks.0.attn.in_proj_bias", 0.1f64.powi(2)),
            ("token_embedding.weight", 0.1f64.powi(3)),
            ("positional_embedding", 0.1f64.powi(3)),
            ("logit_scale", 1.0),
            ("logit_bias", 1.0),
        ] {
            assert!((decay.factor(name, 12, 2) - want).abs() <= 1e-15, "{name}");
            assert_eq!(LayerDecay::default().factor(name, 12, 2), 1.0);
        }
        // A ResNet's four stages, as OpenCLIP's main branch groups them.
        for (name, distance) in [
            ("visual.attnpool.k_proj.weight", 0),
            ("visual.layer4.2.bn3.bias", 1),
            ("visual.layer3.0.downsample.0.weight", 2),
            ("visual.layer1.0.conv1.weight", 4),
            ("visual.conv1.weight", 5),
            ("visual.bn3.weight", 5),
        ] {
            assert_eq!(decay.factor(name, 4, 2), 0.5f64.powi(distance), "{name}");
        }
    }

    #[test]
    fn adamw_layer_factor_scales_the_update_and_its_decay() {
        let params = || {
            let mut params = Params::new(&ModelConfig::by_name("demo-tiny").unwrap(), 0).unwrap();
            params.grads.as_mut_slice().fill(0.25);
            params
        };
        let half = |spec: &TensorSpec| {
            Some(Treatment {
                decays: true,
                lr_factor: if spec.name.starts_with("visual.") { 0.5 } else { 1.0 },
            })
        };
        let (mut a, mut b) = (params(), params());
        AdamW::new(&a, half).unwrap().step(&mut a, &HYPER).unwrap();
        let lower = ApplyHyper {
            lr: HYPER.lr / 2.0,
            ..HYPER
        };
        AdamW::new(&b, |_: &TensorSpec| {
            Some(Treatment {
                decays: true,
                lr_factor: 1.0,
            })
        })
        .unwrap()
        .step(&mut b, &lower)
        .unwrap();
        for spec in a.table() {
            let same = a.values.as_slice()[spec.offset] == b.values.as_slice()[spec.offset];
            assert_eq!(same, spec.name.starts_with("visual."), "{}", spec.name);
        }
    }

    #[test]
    fn adamw_not_finite_gradient_writes_nothing() {
        let mut params = Params::new(&ModelConfig::by_name("demo-tiny").unwrap(), 0).unwrap();
        let mut adam = AdamW::new(&params, by_rule(DecayRule::Main)).unwrap();
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
