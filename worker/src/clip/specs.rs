//! Name, shape and initial distribution of every tensor of a model (open_clip 3.3.0: `CLIP.__init__`,
//! `VisionTransformer.__init__`, `ModifiedResNet.init_parameters`, `TextTransformer.init_parameters`; the rest are
//! PyTorch's defaults).

use super::config::{ModelConfig, ResNetConfig, Stack, TextProjection, VisionKind, VitConfig};
use super::init::Init;
use std::collections::BTreeMap;

/// Tensors by name, trained and not.
#[derive(Debug, Default)]
pub struct Specs {
    /// Parameters.
    pub trained: BTreeMap<String, Spec>,
    /// Running statistics of BatchNorm.
    pub buffers: BTreeMap<String, Spec>,
}

/// Shape and initial values.
pub type Spec = (Vec<i64>, Init);

/// Elements of a shape; 1 for a scalar.
#[must_use]
pub fn elements(shape: &[i64]) -> usize {
    shape.iter().product::<i64>().max(0) as usize
}

impl Specs {
    /// All tensors of `config`; nothing is allocated.
    #[must_use]
    pub fn of(config: &ModelConfig) -> Self {
        let mut this = Self::default();
        let scalar: &[i64] = if config.nonscalar_logit_scale { &[1] } else { &[] };
        this.put("logit_scale", scalar, Init::Constant(config.init_logit_scale));
        if let Some(bias) = config.init_logit_bias {
            this.put("logit_bias", scalar, Init::Constant(bias));
        }
        match &config.vision.kind {
            VisionKind::Vit(vit) => this.vit(vit, config.vision.image_size, config.embed_dim),
            VisionKind::ResNet(resnet) => this.resnet(resnet, config.vision.image_size, config.embed_dim),
        }
        this.text(config);
        this
    }

    /// Elements of all parameters.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.trained.values().map(|(shape, _)| elements(shape)).sum()
    }

    /// Elements of parameters and buffers.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.parameters() + self.buffers.values().map(|(shape, _)| elements(shape)).sum::<usize>()
    }

    fn put(&mut self, name: &str, shape: &[i64], init: Init) {
        self.trained.insert(name.to_owned(), (shape.to_vec(), init));
    }

    fn vit(&mut self, vit: &VitConfig, image_size: i64, embed: i64) {
        let (width, patch) = (vit.stack.width, vit.patch_size);
        let scale = (width as f64).powf(-0.5);
        let grid = image_size / patch;
        self.put("visual.class_embedding", &[width], Init::Normal(scale));
        self.put(
            "visual.positional_embedding",
            &[grid * grid + 1, width],
            Init::Normal(scale),
        );
        self.put("visual.proj", &[width, embed], Init::Normal(scale));
        self.put(
            "visual.conv1.weight",
            &[width, 3, patch, patch],
            Init::fan_in(3 * patch * patch),
        );
        if vit.ln_pre {
            self.norm("visual.ln_pre", width);
        }
        self.norm("visual.ln_post", width);
        let inits = BlockInits {
            in_proj: Init::Uniform((6.0 / (4.0 * width as f64)).sqrt()), // xavier_uniform_ over [3W, W]
            out_proj: Init::fan_in(width),
            c_fc: Init::fan_in(width),
            c_proj: Init::fan_in(vit.stack.mlp_width),
        };
        self.blocks("visual.", &vit.stack, &inits);
    }

    fn text(&mut self, config: &ModelConfig) {
        let (t, embed, prefix) = (&config.text, config.embed_dim, config.text_prefix());
        let (width, layers) = (t.stack.width, t.stack.layers);
        let attn = (width as f64).powf(-0.5);
        let name = |name: &str| format!("{prefix}{name}");
        self.put(
            &name("token_embedding.weight"),
            &[t.vocab_size, width],
            Init::Normal(0.02),
        );
        self.put(
            &name("positional_embedding"),
            &[t.context_length, width],
            Init::Normal(0.01),
        );
        match t.projection {
            TextProjection::Matrix => self.put(&name("text_projection"), &[width, embed], Init::Normal(attn)),
            TextProjection::Linear => {
                self.put(&name("text_projection.weight"), &[embed, width], Init::Normal(attn));
                self.put(&name("text_projection.bias"), &[embed], Init::Constant(0.0));
            }
            TextProjection::None => {}
        }
        self.norm(&name("ln_final"), width);
        let depth = (2.0 * layers as f64).powf(-0.5);
        let inits = BlockInits {
            in_proj: Init::Normal(attn),
            out_proj: Init::Normal(attn * depth),
            c_fc: Init::Normal((2.0 * width as f64).powf(-0.5)),
            c_proj: Init::Normal(attn * depth),
        };
        self.blocks(prefix, &t.stack, &inits);
    }

    fn norm(&mut self, prefix: &str, width: i64) {
        self.put(&format!("{prefix}.weight"), &[width], Init::Constant(1.0));
        self.put(&format!("{prefix}.bias"), &[width], Init::Constant(0.0));
    }

    fn blocks(&mut self, tower: &str, stack: &Stack, init: &BlockInits) {
        let (width, mlp) = (stack.width, stack.mlp_width);
        for layer in 0..stack.layers {
            let prefix = format!("{tower}transformer.resblocks.{layer}");
            self.norm(&format!("{prefix}.ln_1"), width);
            self.norm(&format!("{prefix}.ln_2"), width);
            let mut put = |name: &str, shape: &[i64], init: Init| self.put(&format!("{prefix}.{name}"), shape, init);
            put("attn.in_proj_weight", &[3 * width, width], init.in_proj);
            put("attn.in_proj_bias", &[3 * width], Init::Constant(0.0));
            put("attn.out_proj.weight", &[width, width], init.out_proj);
            put("attn.out_proj.bias", &[width], Init::Constant(0.0));
            put("mlp.c_fc.weight", &[mlp, width], init.c_fc);
            put("mlp.c_fc.bias", &[mlp], Init::fan_in(width));
            put("mlp.c_proj.weight", &[width, mlp], init.c_proj);
            put("mlp.c_proj.bias", &[width], Init::fan_in(mlp));
            if let Some(value) = stack.ls_init_value {
                put("ls_1.gamma", &[width], Init::Constant(value));
                put("ls_2.gamma", &[width], Init::Constant(value));
            }
        }
    }

    fn resnet(&mut self, resnet: &ResNetConfig, image_size: i64, embed: i64) {
        let stem = resnet.width / 2;
        for (number, input, output) in [(1, 3, stem), (2, stem, stem), (3, stem, resnet.width)] {
            self.conv(&format!("visual.conv{number}"), input, output, 3);
            self.batch_norm(&format!("visual.bn{number}"), output, 1.0);
        }
        for block in blocks_of(resnet) {
            let (prefix, planes) = (&block.prefix, block.planes);
            for (number, input, output, edge, scale) in [
                (1, block.input, planes, 1, 1.0),
                (2, planes, planes, 3, 1.0),
                (3, planes, EXPANSION * planes, 1, 0.0), // a block begins as the identity
            ] {
                self.conv(&format!("{prefix}.conv{number}"), input, output, edge);
                self.batch_norm(&format!("{prefix}.bn{number}"), output, scale);
            }
            if block.downsample {
                self.conv(&format!("{prefix}.downsample.0"), block.input, EXPANSION * planes, 1);
                self.batch_norm(&format!("{prefix}.downsample.1"), EXPANSION * planes, 1.0);
            }
        }
        let (width, grid) = (32 * resnet.width, image_size / 32);
        let std = Init::Normal((width as f64).powf(-0.5));
        self.put("visual.attnpool.positional_embedding", &[grid * grid + 1, width], std);
        for (name, output) in [("q", width), ("k", width), ("v", width), ("c", embed)] {
            self.put(&format!("visual.attnpool.{name}_proj.weight"), &[output, width], std);
            self.put(
                &format!("visual.attnpool.{name}_proj.bias"),
                &[output],
                Init::fan_in(width),
            );
        }
    }

    fn conv(&mut self, prefix: &str, input: i64, output: i64, edge: i64) {
        let shape = [output, input, edge, edge];
        self.put(&format!("{prefix}.weight"), &shape, Init::fan_in(input * edge * edge));
    }

    fn batch_norm(&mut self, prefix: &str, channels: i64, scale: f64) {
        self.put(&format!("{prefix}.weight"), &[channels], Init::Constant(scale));
        self.put(&format!("{prefix}.bias"), &[channels], Init::Constant(0.0));
        for (name, shape, value) in [
            ("running_mean", vec![channels], 0.0),
            ("running_var", vec![channels], 1.0),
            (BATCHES_TRACKED, Vec::new(), 0.0),
        ] {
            let init = Init::Constant(value);
            self.buffers.insert(format!("{prefix}.{name}"), (shape, init));
        }
    }
}

/// Last part of the name of a BatchNorm's count of batches; an integer in files.
pub const BATCHES_TRACKED: &str = "num_batches_tracked";

/// Output channels of a bottleneck per channel inside.
pub const EXPANSION: i64 = 4;

/// One bottleneck of a ResNet.
#[derive(Debug, Clone)]
pub struct Bottleneck {
    pub prefix: String,
    pub input: i64,
    pub planes: i64,
    pub stride: i64,
    /// Whether the way around it has a convolution.
    pub downsample: bool,
}

/// All bottlenecks in order.
#[must_use]
pub fn blocks_of(resnet: &ResNetConfig) -> Vec<Bottleneck> {
    let mut out = Vec::new();
    let mut input = resnet.width;
    for (stage, count) in resnet.layers.iter().enumerate() {
        let planes = resnet.width << stage;
        for block in 0..*count {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            out.push(Bottleneck {
                prefix: format!("visual.layer{}.{block}", stage + 1),
                input,
                planes,
                stride,
                downsample: stride > 1 || input != EXPANSION * planes,
            });
            input = EXPANSION * planes;
        }
    }
    out
}

struct BlockInits {
    in_proj: Init,
    out_proj: Init,
    c_fc: Init,
    c_proj: Init,
}
