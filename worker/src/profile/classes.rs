//! Which operator belongs where. An operator's own time is its span without the spans inside it, so nothing counts twice.

use super::report::Step;
use argosy_torch_ext::record::Span;
use serde::Serialize;

/// Classes of work, in the order they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Matrix products and convolutions of the towers, forward and backward.
    Matmul,
    Attention,
    Norms,
    /// The contrastive loss and its gradient.
    LossTiles,
    /// Clip and update.
    Optimiser,
    /// Everything else that libtorch does in the towers: activations, sums, copies, embeddings.
    Elementwise,
    /// Gathers, sums over workers, sentinel.
    Collective,
    /// The trainer waits for the loader.
    DataWait,
    /// Time of a step in which no operator runs: packing, checks, hashes, the graph's own work.
    Outside,
}

impl Class {
    pub(super) const ALL: [Self; 9] = [
        Self::Matmul,
        Self::Attention,
        Self::Norms,
        Self::LossTiles,
        Self::Optimiser,
        Self::Elementwise,
        Self::Collective,
        Self::DataWait,
        Self::Outside,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Matmul => "towers' products",
            Self::Attention => "attention",
            Self::Norms => "norms",
            Self::LossTiles => "loss tiles",
            Self::Optimiser => "optimiser",
            Self::Elementwise => "elementwise",
            Self::Collective => "collective",
            Self::DataWait => "data wait",
            Self::Outside => "outside libtorch",
        }
    }

    /// Class of a phase as a whole, where its operators have no say.
    pub(super) fn of_phase(phase: &str) -> Option<Self> {
        match phase {
            "load" => Some(Self::DataWait),
            "gather" | "reduce" | "sentinel" => Some(Self::Collective),
            "apply" => Some(Self::Optimiser),
            _ => None,
        }
    }
}

/// Operators that only look at memory in another way.
const VIEWS: [&str; 18] = [
    "view",
    "as_strided",
    "t",
    "transpose",
    "permute",
    "narrow",
    "slice",
    "select",
    "expand",
    "reshape",
    "unsqueeze",
    "squeeze",
    "detach",
    "alias",
    "_unsafe_view",
    "unbind",
    "diagonal",
    "empty",
];

/// Operators that are matrix products or convolutions, and those round them.
const PRODUCTS: [&str; 17] = [
    "mm",
    "addmm",
    "addmm_",
    "bmm",
    "baddbmm",
    "linear",
    "matmul",
    "mkldnn_linear",
    "mkldnn::_linear_pointwise",
    "conv2d",
    "convolution",
    "_convolution",
    "mkldnn_convolution",
    "_slow_conv2d_forward",
    "thnn_conv2d",
    "convolution_backward",
    "cudnn_convolution",
];

/// One operator's own share of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Share {
    pub(super) class: Class,
    pub(super) own_ns: i64,
    pub(super) flops: f64,
    pub(super) bytes: f64,
}

/// Shares of all spans that lie inside one of `steps`; spans of other times (warm-up) are left out.
pub(super) fn shares(steps: &[Step], spans: &[Span]) -> Vec<Share> {
    let mut spans: Vec<&Span> = spans.iter().collect();
    spans.sort_by_key(|s| (s.thread, s.start_ns, -s.end_ns));
    let mut open: Vec<Open<'_>> = Vec::new();
    let mut out = Vec::new();
    let mut towers_began: Vec<bool> = vec![false; steps.len()];
    let close = |open: &mut Vec<Open<'_>>, out: &mut Vec<Share>, thread: u64, start_ns: i64| {
        while let Some(last) = open.pop_if(|o| o.span.thread != thread || o.span.end_ns <= start_ns) {
            out.extend(last.share());
        }
    };
    for span in spans {
        close(&mut open, &mut out, span.thread, span.start_ns);
        let Some((at, phase)) = place(steps, span) else {
            continue;
        };
        if let Some(parent) = open.last_mut() {
            parent.inside_ns += span.end_ns - span.start_ns;
            parent.is_leaf = false;
        }
        let in_node = span.backward || open.iter().any(|o| o.span.backward);
        towers_began[at] |= in_node || super::TOWERS_BACKWARD.to_str() == Ok(&span.name);
        let attention = open.iter().any(|o| is_attention(&o.span.name)) || is_attention(&span.name);
        let class = class(phase, in_node, towers_began[at], attention, &span.name);
        open.push(Open {
            span,
            class,
            inside_ns: 0,
            is_leaf: true,
        });
    }
    close(&mut open, &mut out, u64::MAX, i64::MAX);
    out
}

struct Open<'a> {
    span: &'a Span,
    class: Option<Class>,
    inside_ns: i64,
    is_leaf: bool,
}

impl Open<'_> {
    fn share(&self) -> Option<Share> {
        let operator = self.span.name.strip_prefix("aten::").unwrap_or(&self.span.name);
        let moves = self.is_leaf && !self.span.backward && !VIEWS.contains(&operator);
        Some(Share {
            class: self.class?,
            own_ns: self.span.end_ns - self.span.start_ns - self.inside_ns,
            flops: self.span.flops,
            bytes: if moves { self.span.bytes } else { 0.0 },
        })
    }
}

/// Step and phase in which a span begins.
fn place<'a>(steps: &'a [Step], span: &Span) -> Option<(usize, &'a str)> {
    let at = steps.partition_point(|s| s.end_ns <= span.start_ns);
    let step = steps.get(at)?;
    let phase = step
        .phases
        .iter()
        .find(|p| p.start_ns <= span.start_ns && span.start_ns < p.end_ns)?;
    Some((at, phase.name.as_str()))
}

fn is_attention(name: &str) -> bool {
    name.contains("scaled_dot_product") || name.contains("ScaledDotProduct")
}

/// `None` where the phase as a whole has a class.
fn class(phase: &str, in_node: bool, towers_began: bool, attention: bool, name: &str) -> Option<Class> {
    if Class::of_phase(phase).is_some() {
        return None;
    }
    // Until the towers' way back begins, BACKWARD makes the features' gradient out of tiles.
    if phase == "loss" || (phase == "backward" && !in_node && !towers_began) {
        return Some(Class::LossTiles);
    }
    let operator = name.strip_prefix("aten::").unwrap_or(name);
    Some(if attention {
        Class::Attention
    } else if PRODUCTS.contains(&operator) {
        Class::Matmul
    } else if operator.contains("layer_norm") || operator.contains("batch_norm") {
        Class::Norms
    } else {
        Class::Elementwise
    })
}

#[cfg(test)]
mod tests {
    use super::super::report::Phase;
    use super::*;
    use crate::clip::ModelConfig;
    use crate::engine::{Engine, GatheredLse, RowsIn, TorchEngine, TorchOptions};
    use argosy_torch_ext::record::{self, Recording};

    fn span(name: &str, start_ns: i64, end_ns: i64) -> Span {
        Span {
            name: name.into(),
            start_ns,
            end_ns,
            flops: 0.0,
            bytes: 10.0,
            thread: 1,
            backward: name.ends_with("Backward0"),
        }
    }

    fn step() -> Step {
        let phase = |name: &str, start_ns, end_ns| Phase {
            name: name.into(),
            start_ns,
            end_ns,
        };
        Step {
            start_ns: 100,
            end_ns: 400,
            rows: 1,
            phases: vec![
                phase("encode", 100, 200),
                phase("backward", 200, 300),
                phase("apply", 300, 400),
            ],
        }
    }

    /// A step of a ResNet, recorded; all other threads of this process left out.
    #[test]
    fn convolutions_of_a_resnet_are_products_with_their_work() {
        let text = r#"{"embed_dim": 8, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
            "text_cfg": {"context_length": 9, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}}"#;
        let (config, preprocess) = ModelConfig::from_json(text).unwrap();
        let mut engine = TorchEngine::new(&config, &preprocess, TorchOptions::default()).unwrap();
        let rows = 4usize;
        let pixels: Vec<u8> = (0..rows * 32 * 32 * 3).map(|k| (k * k / 7 % 251) as u8).collect();
        let tokens: Vec<i32> = (0..rows)
            .flat_map(|row| [62, 1 + row as i32, 63, 0, 0, 0, 0, 0, 0])
            .collect();
        let recording = Recording::start();
        record::mark(c"here");
        let start_ns = record::now_ns();
        let lengths = vec![3; rows];
        let (pixels, tokens, lengths) = (&pixels, &tokens, &lengths);
        let rows_in = RowsIn {
            rows,
            pixels,
            tokens,
            lengths,
        };
        let out = engine.encode(&rows_in, usize::MAX).unwrap();
        let encoded_ns = record::now_ns();
        let lse = engine.own_lse(&[0, 1, 2, 3], rows, &out.f, &out.g).unwrap();
        let lost_ns = record::now_ns();
        let (r, c, diag) = (&lse.r, &lse.c, &lse.diag);
        engine.loss_backward(&GatheredLse { r, c, diag }).unwrap();
        let end_ns = record::now_ns();
        let mut spans = recording.spans();
        drop(recording);
        let here = spans.iter().find(|s| s.name == "here").expect("the mark").thread;
        spans.retain(|span| span.thread == here);
        let phase = |name: &str, start_ns, end_ns| Phase {
            name: name.into(),
            start_ns,
            end_ns,
        };
        let step = Step {
            start_ns,
            end_ns,
            rows: 4,
            phases: vec![
                phase("encode", start_ns, encoded_ns),
                phase("loss", encoded_ns, lost_ns),
                phase("backward", lost_ns, end_ns),
            ],
        };
        let named = |part: &str| spans.iter().filter(|s| s.name.contains(part)).count();
        // Three of the stem, three of each of four blocks, and one round each of them.
        assert_eq!((named("aten::conv2d"), named("aten::convolution_backward")), (19, 19));
        let shares = shares(&[step], &spans);
        let flops = |class| shares.iter().filter(|s| s.class == class).map(|s| s.flops).sum::<f64>();
        let whole: f64 = spans.iter().map(|s| s.flops).sum();
        // The stem's second and third convolutions alone: 16 by 16 places, 4 to 4 and 4 to 8 channels, 9 places of a kernel.
        let stem = (rows * 256 * 9 * 2 * (4 * 4 + 4 * 8)) as f64;
        assert!(flops(Class::Matmul) > 3.0 * stem, "{}", flops(Class::Matmul));
        assert!(flops(Class::Matmul) + flops(Class::LossTiles) > 0.99 * whole, "{whole}");
        assert_eq!(flops(Class::Elementwise), 0.0);
    }

    #[test]
    fn own_time_goes_to_the_innermost_operator_and_nothing_counts_twice() {
        let spans = [
            span("aten::mm", 0, 10), // warm-up
            span("aten::conv2d", 101, 109),
            span("aten::convolution", 102, 108),
            span("aten::mkldnn_convolution", 103, 107),
            span("aten::linear", 110, 150),
            span("aten::addmm", 120, 145),
            span("aten::scaled_dot_product_attention", 150, 190),
            span("aten::bmm", 160, 185),
            span("aten::mm", 210, 230), // before the first node: a tile
            span("AddmmBackward0", 240, 280),
            span("aten::mm", 250, 275),
            span("aten::mul", 310, 390), // the phase has its own class
        ];
        let shares = shares(&[step()], &spans);
        let total = |class| {
            shares
                .iter()
                .filter(|s| s.class == class)
                .map(|s| s.own_ns)
                .sum::<i64>()
        };
        assert_eq!(total(Class::Matmul), 8 + 40 + 25);
        assert_eq!(total(Class::Attention), 40);
        assert_eq!(total(Class::LossTiles), 20);
        assert_eq!(total(Class::Elementwise), 15, "the node's own time");
        assert_eq!(total(Class::Optimiser), 0);
        assert_eq!(
            shares.iter().map(|s| s.bytes).sum::<f64>(),
            50.0,
            "leaves alone move bytes"
        );
    }
}
