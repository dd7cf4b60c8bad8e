//! What becomes of every argument of open_clip_train: 3.3.0's, and those that its main branch has besides.

use Fate::{Key, Lost, Needless};
use Takes::{Many, None, One};

/// How many words follow an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    None,
    One,
    Many,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// A key of the job.
    Key(&'static str),
    /// Nothing stands in its place, and nothing is lost.
    Needless,
    /// It cannot be honoured.
    Lost,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) takes: Takes,
    pub(super) fate: Fate,
    /// What it becomes, why it is not needed, or what to do instead.
    pub(super) note: &'static str,
    /// Only in open_clip's main branch (4.x).
    pub(super) main: bool,
}

const fn flag(name: &'static str, takes: Takes, fate: Fate, note: &'static str) -> Flag {
    Flag {
        name,
        takes,
        fate,
        note,
        main: false,
    }
}

const fn later(name: &'static str, takes: Takes, fate: Fate, note: &'static str) -> Flag {
    Flag {
        main: true,
        ..flag(name, takes, fate, note)
    }
}

const FULL_LOSS: &str =
    "the loss is always that of the whole batch with its exact gradient, without the whole matrix in memory";
const PROCESSES: &str = "workers find each other through the coordinator";
const NOT_BUILT: &str = "models of this kind are not built";
const MODEL_FILE: &str = "say it in an open_clip model file, which `model.config` names";
const NAFLEX: &str = "pictures have one size";
const FSDP: &str = "models must fit one device";
const COMPILE: &str = "the step is written by hand; there is nothing to compile";
const RETRIEVAL: &str = "retrieval is not evaluated";
const AUDIO: &str = "sound is not trained on";
const CLASSES: &str = "folders of pictures are not read: make shards with a `.cls` member in each sample and name them in `evaluation.sets`";

pub(super) const FLAGS: &[Flag] = &[
    flag(
        "--train-data",
        One,
        Key("data.sources"),
        "one source for each part between `::`; `pipe:aws s3 cp URL -` and the like become the URL",
    ),
    flag(
        "--train-data-upsampling-factors",
        One,
        Lost,
        "sources are not weighted yet: all their rows are in one permutation",
    ),
    flag("--val-data", One, Lost, RETRIEVAL),
    flag(
        "--train-num-samples",
        One,
        Key("data.train_num_samples"),
        "with --dataset-resampled or several sources: the positions of one epoch; else needless, as the index counts the rows",
    ),
    flag("--val-num-samples", One, Lost, RETRIEVAL),
    flag(
        "--dataset-type",
        One,
        Needless,
        "shards in WebDataset's form are read; `csv` and `synthetic` are not",
    ),
    flag(
        "--dataset-resampled",
        None,
        Lost,
        "shards are not drawn with replacement: every row is trained once a pass; an epoch has --train-num-samples positions as before",
    ),
    flag(
        "--csv-separator",
        One,
        Lost,
        "csv files are not read: pack the pictures into shards",
    ),
    flag(
        "--csv-img-key",
        One,
        Lost,
        "csv files are not read: pack the pictures into shards",
    ),
    flag(
        "--csv-caption-key",
        One,
        Lost,
        "csv files are not read: pack the pictures into shards",
    ),
    flag("--imagenet-val", One, Lost, CLASSES),
    flag("--imagenet-v2", One, Lost, CLASSES),
    flag("--cache-dir", One, Needless, "nothing is downloaded"),
    flag("--logs", One, Needless, "`argosy run --run DIR` says where a run lies"),
    flag(
        "--log-local",
        None,
        Needless,
        "every worker has a log in the run folder",
    ),
    flag(
        "--name",
        One,
        Key("name"),
        "letters, digits, `-`, `_` and `.`; the model's name by default",
    ),
    flag(
        "--workers",
        One,
        Needless,
        "one worker decodes on all its threads (`train.threads`); `workers` of a job counts processes that train",
    ),
    flag(
        "--batch-size",
        One,
        Key("train.global_batch"),
        "times the GPUs and --accum-freq: the rows of a step over all workers",
    ),
    flag("--epochs", One, Key("train.epochs"), "32 by default, as there"),
    flag("--epochs-cooldown", One, Lost, "there is no cool-down"),
    flag("--lr", One, Key("train.lr"), "5e-4 by default, as there"),
    flag("--beta1", One, Key("train.beta1"), "0.9 by default, as there"),
    flag(
        "--beta2",
        One,
        Key("train.beta2"),
        "0.98 for a ViT and 0.999 for others by default, as there",
    ),
    flag(
        "--eps",
        One,
        Key("train.eps"),
        "1e-6 for a ViT and 1e-8 for others by default, as there",
    ),
    flag("--wd", One, Key("train.wd"), "0.2 by default, as there"),
    flag("--momentum", One, Lost, "there is one optimiser, AdamW"),
    flag("--warmup", One, Key("train.warmup"), "10000 steps by default, as there"),
    flag("--opt", One, Lost, "there is one optimiser, AdamW"),
    flag(
        "--use-bn-sync",
        None,
        Lost,
        "BatchNorm takes its statistics lane by lane, so that they do not depend on the number of workers; `train.batch_norm = \"batch\"` is for one worker",
    ),
    flag(
        "--skip-scheduler",
        None,
        Key("train.lr_scheduler"),
        "`const` without warm-up",
    ),
    flag(
        "--lr-scheduler",
        One,
        Key("train.lr_scheduler"),
        "`cosine` or `const`; of `const-cooldown` the constant part",
    ),
    flag("--lr-cooldown-end", One, Lost, "there is no cool-down"),
    flag("--lr-cooldown-power", One, Lost, "there is no cool-down"),
    flag(
        "--save-frequency",
        One,
        Key("checkpoint.every_samples"),
        "times the positions of an epoch, where --train-num-samples tells them; checkpoints need not wait for an epoch's end",
    ),
    flag(
        "--save-most-recent",
        None,
        Needless,
        "the newest checkpoint is always kept, and one that is cut off counts for nothing",
    ),
    flag(
        "--zeroshot-frequency",
        One,
        Lost,
        "say it with `evaluation.every_samples` beside the sets",
    ),
    flag("--val-frequency", One, Lost, RETRIEVAL),
    flag(
        "--resume",
        One,
        Needless,
        "`argosy run --resume` goes on at the exact position; a checkpoint of OpenCLIP can be a start (`model.pretrained`), not a resume",
    ),
    flag(
        "--precision",
        One,
        Key("train.precision"),
        "`fp32`, `amp_bf16`, `bf16`, `pure_bf16`; half precision (`amp`, `fp16`, `pure_fp16`) becomes `amp_bf16`",
    ),
    flag(
        "--model",
        One,
        Key("model.name"),
        "native models; `local-dir:DIR` becomes `model.pretrained`",
    ),
    flag(
        "--pretrained",
        One,
        Key("model.pretrained"),
        "a file or folder; of a tag the weights are to be downloaded first",
    ),
    flag(
        "--pretrained-image",
        None,
        Lost,
        "weights of timm are not read; `model.pretrained_image_path` takes an image tower from a file",
    ),
    flag("--lock-image", None, Key("train.lock_image"), ""),
    flag(
        "--lock-image-unlocked-groups",
        One,
        Key("train.lock_image_unlocked_groups"),
        "",
    ),
    flag(
        "--lock-image-freeze-bn-stats",
        None,
        Key("train.lock_image_freeze_bn_stats"),
        "",
    ),
    flag("--image-mean", Many, Key("model.image_mean"), "three numbers"),
    flag("--image-std", Many, Key("model.image_std"), "three numbers"),
    flag(
        "--image-interpolation",
        One,
        Lost,
        "training pictures are resized bicubically",
    ),
    flag(
        "--image-resize-mode",
        One,
        Lost,
        "evaluation resizes as the model's own configuration says",
    ),
    flag(
        "--aug-cfg",
        Many,
        Key("data.aug_cfg"),
        "`scale`, `ratio`, `color_jitter`, `color_jitter_prob`, `gray_scale_prob`; others are named as lost",
    ),
    flag("--grad-checkpointing", None, Key("train.grad_checkpointing"), ""),
    flag("--local-loss", None, Needless, FULL_LOSS),
    flag("--gather-with-grad", None, Needless, FULL_LOSS),
    flag("--force-context-length", One, Lost, MODEL_FILE),
    flag("--force-image-size", Many, Lost, MODEL_FILE),
    flag("--force-quick-gelu", None, Key("model.force_quick_gelu"), ""),
    flag("--force-patch-dropout", One, Lost, MODEL_FILE),
    flag("--force-custom-text", None, Lost, MODEL_FILE),
    flag("--torchscript", None, Needless, COMPILE),
    flag("--torchcompile", None, Needless, COMPILE),
    flag("--trace", None, Needless, COMPILE),
    flag(
        "--accum-freq",
        One,
        Key("train.micro_batch"),
        "of --batch-size rows; the scale's gradient is that of the whole batch, and dropped patches are the same in both passes",
    ),
    flag(
        "--device",
        One,
        Key("train.device"),
        "`cpu` and `cuda:N`; left to the job's default otherwise",
    ),
    flag("--dist-url", One, Needless, PROCESSES),
    flag("--dist-backend", One, Needless, PROCESSES),
    flag(
        "--report-to",
        One,
        Needless,
        "TensorBoard's files are always written, under open_clip_train's names; Weights & Biases is not spoken to",
    ),
    flag("--wandb-notes", One, Lost, "Weights & Biases is not spoken to"),
    flag("--wandb-project-name", One, Lost, "Weights & Biases is not spoken to"),
    flag("--debug", None, Needless, "`argosy -vv run`"),
    flag(
        "--copy-codebase",
        None,
        Needless,
        "the run folder keeps the job, and the programs say their version",
    ),
    flag("--horovod", None, Needless, PROCESSES),
    flag("--ddp-static-graph", None, Needless, PROCESSES),
    flag("--no-set-device-rank", None, Needless, PROCESSES),
    flag(
        "--seed",
        One,
        Key("seed"),
        "0 by default, as there; equal seeds train the same samples in the same order",
    ),
    flag("--grad-clip-norm", One, Key("train.grad_clip_norm"), ""),
    flag("--lock-text", None, Key("train.lock_text"), ""),
    flag(
        "--lock-text-unlocked-layers",
        One,
        Key("train.lock_text_unlocked_layers"),
        "",
    ),
    flag(
        "--lock-text-freeze-layer-norm",
        None,
        Key("train.lock_text_freeze_layer_norm"),
        "the norms of a locked text tower are always locked",
    ),
    flag(
        "--log-every-n-steps",
        One,
        Needless,
        "every step is in the run's events",
    ),
    flag("--coca-caption-loss-weight", One, Lost, NOT_BUILT),
    flag("--coca-contrastive-loss-weight", One, Lost, NOT_BUILT),
    flag(
        "--remote-sync",
        One,
        Key("checkpoint.url"),
        "checkpoints are written to the store itself, with nothing to synchronise",
    ),
    flag(
        "--remote-sync-frequency",
        One,
        Needless,
        "checkpoints are written to the store itself",
    ),
    flag(
        "--remote-sync-protocol",
        One,
        Needless,
        "the address says it: `s3://`, `gs://`, `az://`",
    ),
    flag(
        "--delete-previous-checkpoint",
        None,
        Key("checkpoint.keep_last"),
        "1; all are kept without it, as there",
    ),
    flag("--distill-model", One, Lost, "there is no distillation"),
    flag("--distill-pretrained", One, Lost, "there is no distillation"),
    flag("--use-bnb-linear", One, Lost, "there are no 8-bit layers"),
    flag("--siglip", None, Key("train.loss"), "`siglip`"),
    flag("--loss-dist-impl", One, Needless, FULL_LOSS),
    later("--image-key", One, Key("data.image_key"), ""),
    later("--text-key", One, Key("data.text_key"), ""),
    later(
        "--json-text-key",
        One,
        Key("data.text_key"),
        "each key becomes `json:KEY`",
    ),
    later(
        "--json-text-key-probs",
        One,
        Key("data.caption_weights"),
        "with `data.caption_draw = \"weighted\"`",
    ),
    later(
        "--max-image-pixels",
        One,
        Key("data.max_image_pixels"),
        "masked in their place, not left out",
    ),
    later("--image-layer-decay", One, Key("train.image_layer_decay"), ""),
    later("--visual-layer-decay", One, Key("train.image_layer_decay"), ""),
    later("--text-layer-decay", One, Key("train.text_layer_decay"), ""),
    later("--audio-layer-decay", One, Lost, AUDIO),
    later(
        "--wd-exclude",
        Many,
        Lost,
        "which parameters decay is one of two rules, `train.decay_rule`",
    ),
    later(
        "--text-pooler-own-group",
        None,
        Lost,
        "layer-wise rates have one grouping",
    ),
    later("--opt-kwargs", Many, Lost, "there is one optimiser, AdamW"),
    later("--opt-fallback-list", Many, Lost, "there is one optimiser, AdamW"),
    later("--val-retrieval-chunk-size", One, Lost, RETRIEVAL),
    later("--val-retrieval-precision", One, Lost, RETRIEVAL),
    later("--torchcompile-strategy", One, Needless, COMPILE),
    later("--torchcompile-backend", One, Needless, COMPILE),
    later("--torchcompile-mode", One, Needless, COMPILE),
    later("--fsdp", None, Lost, FSDP),
    later("--fsdp-no-reshard-after-forward", None, Lost, FSDP),
    later("--fsdp-offload-cpu", None, Lost, FSDP),
    later(
        "--fsdp-checkpoint",
        One,
        Needless,
        "checkpoints are written in parts by all workers",
    ),
    later(
        "--log-metric-every-n-steps",
        One,
        Needless,
        "every step is in the run's events",
    ),
    later(
        "--train-loss-ema-samples",
        One,
        Needless,
        "every step is in the run's events",
    ),
    later("--use-naflex", None, Lost, NAFLEX),
    later("--force-naflex-vision", None, Lost, NAFLEX),
    later("--naflex-num-train-image-tokens", One, Lost, NAFLEX),
    later("--naflex-patch-sizes", Many, Lost, NAFLEX),
    later("--naflex-patch-size-probs", Many, Lost, NAFLEX),
    later("--naflex-seq-lens", Many, Lost, NAFLEX),
    later("--naflex-seq-len-probs", Many, Lost, NAFLEX),
    later("--naflex-max-tokens-per-batch", One, Lost, NAFLEX),
    later("--naflex-max-text-tokens", One, Lost, NAFLEX),
    later("--naflex-batch-divisor", One, Lost, NAFLEX),
    later("--naflex-loss-scale", One, Lost, NAFLEX),
    later("--naflex-pad-multiple", One, Lost, NAFLEX),
    later(
        "--length-bucketing",
        None,
        Needless,
        "captions of like length always go through the tower together, in whatever order they are trained",
    ),
    later("--bucket-pool", One, Needless, "as --length-bucketing"),
    later("--bucket-chunk", One, Needless, "as --length-bucketing"),
    later("--bucket-prefetch-pools", One, Needless, "as --length-bucketing"),
    later("--text-pad-multiple", One, Needless, "as --length-bucketing"),
];

/// The argument of that name, or the only one that begins so: argparse takes beginnings.
pub(super) fn find(name: &str) -> Option<&'static Flag> {
    let exact = FLAGS.iter().find(|flag| flag.name == name);
    // What is the only one in 3.3.0 was meant there, whatever the main branch has besides.
    exact.or_else(|| [false, true].into_iter().find_map(|main| beginning(name, main)))
}

fn beginning(name: &str, main: bool) -> Option<&'static Flag> {
    let mut like = FLAGS
        .iter()
        .filter(|flag| (main || !flag.main) && name.len() > 2 && flag.name.starts_with(name));
    like.next().filter(|_| like.next().is_none())
}
