//! CLIP's ResNet (`ModifiedResNet`, `modified_resnet.py`): a stem of three convolutions, bottlenecks whose strides are
//! average pools, and attention that pools.
//!
//! Unlike the transformers it is written on libtorch's graph: convolutions dominate, and their way back is libtorch's anyway.
//! Each lane goes through by itself, so that BatchNorm's statistics are the lane's (rule BN1); they are handed out, and the
//! running ones change in APPLY only.

use super::config::ResNetConfig;
use super::ops::{Math, Sink, cast};
use super::params::{Leaf, Params};
use super::specs::{Bottleneck, blocks_of};
use crate::engine::{EngineError, Result};
use tch::{Kind, Tensor, no_grad};

const BN_EPS: f64 = 1e-5;

/// A lane's contribution to the running statistics: its means and unbiased variances where `running_mean` and `running_var`
/// lie behind the parameters, zero elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct LaneStatistics(pub Vec<f32>);

/// A parameter, and the same memory as a leaf of the graph.
#[derive(Debug)]
struct Weight {
    leaf: Leaf,
    graph: Tensor,
}

impl Weight {
    fn new(params: &Params, name: &str) -> Result<Self> {
        let leaf = params.leaf(name)?;
        let graph = leaf.at(Kind::Float).f_detach()?.f_set_requires_grad(true)?;
        Ok(Self { leaf, graph })
    }
}

/// A convolution without a bias and the norm behind it.
#[derive(Debug)]
struct Conv {
    weight: usize,
    scale: usize,
    shift: usize,
    mean: Leaf,
    var: Leaf,
    /// Where the running statistics lie behind the parameters.
    mean_at: usize,
    var_at: usize,
    stride: i64,
    padding: i64,
}

#[derive(Debug)]
struct Bottle {
    convs: [Conv; 3],
    around: Option<Conv>,
    stride: i64,
}

/// Linear layer as places among the weights.
#[derive(Debug, Clone, Copy)]
struct Layer {
    weight: usize,
    bias: usize,
}

/// The tower over views into [`Params`].
#[derive(Debug)]
pub struct ResNet {
    weights: Vec<Weight>,
    stem: [Conv; 3],
    blocks: Vec<Bottle>,
    positions: usize,
    query: Layer,
    key: Layer,
    value: Layer,
    out: Layer,
    heads: i64,
    math: Math,
    /// Elements behind the parameters.
    buffers: usize,
}

/// What the backward pass needs: features with their graph, and every lane's statistics.
#[derive(Debug)]
pub struct SavedResNet {
    features: Tensor,
    statistics: Vec<LaneStatistics>,
}

impl SavedResNet {
    pub(super) fn statistics(&self) -> &[LaneStatistics] {
        &self.statistics
    }
}

/// Collects weights while the tower is put together.
struct Builder<'a> {
    params: &'a Params,
    weights: Vec<Weight>,
}

impl Builder<'_> {
    fn weight(&mut self, name: &str) -> Result<usize> {
        self.weights.push(Weight::new(self.params, name)?);
        Ok(self.weights.len() - 1)
    }

    fn conv(&mut self, conv: &str, norm: &str, stride: i64, padding: i64) -> Result<Conv> {
        let name = |part: &str| format!("visual.{norm}.{part}");
        let at = |part: &str| -> Result<usize> {
            Ok(self.params.spec(&name(part))?.offset - self.params.trained_elements())
        };
        let (mean_at, var_at) = (at("running_mean")?, at("running_var")?);
        Ok(Conv {
            weight: self.weight(&format!("visual.{conv}.weight"))?,
            scale: self.weight(&name("weight"))?,
            shift: self.weight(&name("bias"))?,
            mean: self.params.leaf(&name("running_mean"))?,
            var: self.params.leaf(&name("running_var"))?,
            mean_at,
            var_at,
            stride,
            padding,
        })
    }

    fn bottle(&mut self, block: &Bottleneck) -> Result<Bottle> {
        let prefix = block.prefix.strip_prefix("visual.").unwrap_or(&block.prefix);
        let mut conv = |number: i64, padding: i64| {
            self.conv(
                &format!("{prefix}.conv{number}"),
                &format!("{prefix}.bn{number}"),
                1,
                padding,
            )
        };
        let convs = [conv(1, 0)?, conv(2, 1)?, conv(3, 0)?];
        let around = block.downsample.then(|| {
            let (conv, norm) = (format!("{prefix}.downsample.0"), format!("{prefix}.downsample.1"));
            self.conv(&conv, &norm, 1, 0)
        });
        Ok(Bottle {
            convs,
            around: around.transpose()?,
            stride: block.stride,
        })
    }

    fn layer(&mut self, name: &str) -> Result<Layer> {
        Ok(Layer {
            weight: self.weight(&format!("visual.attnpool.{name}_proj.weight"))?,
            bias: self.weight(&format!("visual.attnpool.{name}_proj.bias"))?,
        })
    }
}

/// How BatchNorm finds its statistics.
enum Norming {
    Running,
    /// From what goes through; kept here.
    Own(LaneStatistics),
}

impl ResNet {
    pub(super) fn new(config: &ResNetConfig, params: &Params) -> Result<Self> {
        let mut build = Builder {
            params,
            weights: Vec::new(),
        };
        let stem = [
            build.conv("conv1", "bn1", 2, 1)?,
            build.conv("conv2", "bn2", 1, 1)?,
            build.conv("conv3", "bn3", 1, 1)?,
        ];
        let blocks = blocks_of(config);
        let blocks = blocks.iter().map(|b| build.bottle(b)).collect::<Result<_>>()?;
        let positions = build.weight("visual.attnpool.positional_embedding")?;
        let [query, key, value, out] = [
            build.layer("q")?,
            build.layer("k")?,
            build.layer("v")?,
            build.layer("c")?,
        ];
        Ok(Self {
            weights: build.weights,
            stem,
            blocks,
            positions,
            query,
            key,
            value,
            out,
            heads: config.heads,
            math: params.math(),
            buffers: params.values.len() - params.trained_elements(),
        })
    }

    /// L2-normalised features of `[n, 3, S, S]`. With the rows of each lane, as in training: statistics lane by lane; without,
    /// the running ones. `keep` keeps the graph.
    pub(super) fn forward(&self, x: &Tensor, lanes: Option<&[usize]>, keep: bool) -> Result<(Tensor, SavedResNet)> {
        let mut statistics = Vec::new();
        let graph = if keep {
            self.all_lanes(x, lanes, &mut statistics)?
        } else {
            no_grad(|| self.all_lanes(x, lanes, &mut statistics))?
        };
        let features = graph.f_detach()?;
        let saved = SavedResNet {
            features: graph,
            statistics,
        };
        Ok((features, saved))
    }

    fn all_lanes(&self, x: &Tensor, lanes: Option<&[usize]>, statistics: &mut Vec<LaneStatistics>) -> Result<Tensor> {
        let Some(lanes) = lanes else {
            return self.lane(x, &mut Norming::Running);
        };
        let (rows, sum) = (x.size()[0] as usize, lanes.iter().sum::<usize>());
        if rows != sum {
            let why = format!("{rows} images in lanes of {sum} rows: BatchNorm needs whole lanes");
            return Err(EngineError::Protocol(why));
        }
        let (mut parts, mut start) = (Vec::new(), 0);
        for &len in lanes.iter().filter(|len| **len > 0) {
            let mut norming = Norming::Own(LaneStatistics(vec![0.0; self.buffers]));
            parts.push(self.lane(&x.f_narrow(0, start, len as i64)?, &mut norming)?);
            start += len as i64;
            if let Norming::Own(own) = norming {
                statistics.push(own);
            }
        }
        match parts.len() {
            1 => Ok(parts.remove(0)),
            _ => Ok(Tensor::f_cat(&parts, 0)?),
        }
    }

    fn lane(&self, x: &Tensor, norming: &mut Norming) -> Result<Tensor> {
        let mut x = x.shallow_clone();
        for conv in &self.stem {
            x = self.conv(&x, conv, norming)?.f_relu()?;
        }
        x = pool(&x, 2)?;
        for block in &self.blocks {
            let mut out = self.conv(&x, &block.convs[0], norming)?.f_relu()?;
            out = self.conv(&out, &block.convs[1], norming)?.f_relu()?;
            out = self.conv(&pool(&out, block.stride)?, &block.convs[2], norming)?;
            let around = match &block.around {
                Some(conv) => self.conv(&pool(&x, block.stride)?, conv, norming)?,
                None => x,
            };
            x = out.f_add(&around)?.f_relu()?;
        }
        let y = self.attention_pool(&x)?;
        let norm = y
            .f_norm_scalaropt_dim(2.0, [-1i64].as_slice(), true)?
            .f_clamp_min(1e-12)?;
        Ok(y.f_div(&norm)?)
    }

    fn conv(&self, x: &Tensor, conv: &Conv, norming: &mut Norming) -> Result<Tensor> {
        let gemm = self.math.gemm;
        let (stride, padding) = ([conv.stride; 2], [conv.padding; 2]);
        let weight = cast(&self.weights[conv.weight].graph, gemm)?;
        let y = cast(x, gemm)?.f_conv2d(&weight, None::<&Tensor>, stride, padding, [1, 1], 1)?;
        let y = cast(&y, Kind::Float)?;
        let (scale, shift) = (&self.weights[conv.scale].graph, &self.weights[conv.shift].graph);
        match norming {
            Norming::Running => {
                let (mean, var) = (conv.mean.at(Kind::Float), conv.var.at(Kind::Float));
                Ok(y.f_batch_norm(
                    Some(scale),
                    Some(shift),
                    Some(mean),
                    Some(var),
                    false,
                    0.1,
                    BN_EPS,
                    true,
                )?)
            }
            Norming::Own(own) => {
                // With a momentum of one the running statistics become this lane's own.
                let (mean, var) = (
                    conv.mean.at(Kind::Float).f_zeros_like()?,
                    conv.var.at(Kind::Float).f_zeros_like()?,
                );
                let out = y.f_batch_norm(
                    Some(scale),
                    Some(shift),
                    Some(&mean),
                    Some(&var),
                    true,
                    1.0,
                    BN_EPS,
                    true,
                )?;
                let alone = y.numel() as i64 == mean.size()[0];
                own.keep(conv.mean_at, &mean)?;
                if !alone {
                    // (One value a channel has no variance; it stays 0.)
                    own.keep(conv.var_at, &var)?;
                }
                Ok(out)
            }
        }
    }

    /// `AttentionPool2d`: all places and their mean, the mean alone asks. `[n, c, h, w]` to `[n, d]`.
    fn attention_pool(&self, x: &Tensor) -> Result<Tensor> {
        let size = x.size();
        let (n, width) = (size[0], size[1]);
        let x = x.f_reshape([n, width, -1])?.f_permute([0, 2, 1])?;
        let mean = x.f_mean_dim([1i64].as_slice(), true, Kind::Float)?;
        let x = Tensor::f_cat(&[&mean, &x], 1)?.f_add(&self.weights[self.positions].graph)?;
        let (tokens, head) = (x.size()[1], width / self.heads);
        let split =
            |y: Tensor, len: i64| -> Result<Tensor> { Ok(y.f_reshape([n, len, self.heads, head])?.f_transpose(1, 2)?) };
        let q = split(self.linear(&x.f_narrow(1, 0, 1)?, self.query)?, 1)?;
        let k = split(self.linear(&x, self.key)?, tokens)?;
        let v = split(self.linear(&x, self.value)?, tokens)?;
        let scores = q
            .f_mul_scalar((head as f64).powf(-0.5))?
            .f_matmul(&k.f_transpose(2, 3)?)?;
        let mixed = scores.f_softmax(-1, None::<Kind>)?.f_matmul(&v)?;
        let mixed = mixed.f_transpose(1, 2)?.f_reshape([n, width])?;
        cast(&self.linear(&mixed, self.out)?, Kind::Float)
    }

    fn linear(&self, x: &Tensor, layer: Layer) -> Result<Tensor> {
        let gemm = self.math.gemm;
        let (weight, bias) = (
            cast(&self.weights[layer.weight].graph, gemm)?,
            cast(&self.weights[layer.bias].graph, gemm)?,
        );
        Ok(cast(x, gemm)?.f_linear(&weight, Some(&bias))?)
    }

    /// Gradients of all weights from that of the features.
    pub(super) fn backward(&self, saved: &SavedResNet, d_features: &Tensor, sink: Sink) -> Result<()> {
        // The gradient of this sum is what the graph shall be given.
        let sum = saved
            .features
            .f_mul(&cast(d_features, Kind::Float)?)?
            .f_sum(Kind::Float)?;
        let leaves: Vec<&Tensor> = self.weights.iter().map(|w| &w.graph).collect();
        let gradients = Tensor::f_run_backward(&[&sum], &leaves, false, false)?;
        for (weight, gradient) in self.weights.iter().zip(gradients) {
            sink.put(&weight.leaf.grad, &gradient)?;
        }
        Ok(())
    }
}

impl LaneStatistics {
    fn keep(&mut self, at: usize, values: &Tensor) -> Result<()> {
        let values = super::to_vec(values)?;
        self.0[at..at + values.len()].copy_from_slice(&values);
        Ok(())
    }
}

fn pool(x: &Tensor, edge: i64) -> Result<Tensor> {
    if edge == 1 {
        return Ok(x.shallow_clone());
    }
    Ok(x.f_avg_pool2d([edge, edge], [edge, edge], [0, 0], false, true, None::<i64>)?)
}
