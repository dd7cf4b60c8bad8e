//! From open_clip_train's arguments to a job.

use super::flags::Fate;
use super::line::Line;
use crate::fail::{Failure, Outcome};
use argosy_common::exit::Exit;
use std::collections::BTreeMap;

/// A job's text as it grows, and what did not make it.
#[derive(Debug, Default)]
pub(super) struct Draft {
    /// Keys with their values as TOML, by section in the order of the file.
    sections: BTreeMap<usize, Vec<(String, String)>>,
    /// Flags that cannot be honoured, with the reason.
    pub(super) lost: Vec<(String, String)>,
    /// What is worth knowing.
    pub(super) notes: Vec<String>,
}

const SECTIONS: [&str; 6] = ["", "model", "data", "train", "workers", "checkpoint"];

/// Makes a draft; `gpus` goes over what a launcher says.
pub(super) fn draft(line: &Line, gpus: Option<u64>) -> Outcome<Draft> {
    let mut draft = Draft::default();
    for (flag, words) in &line.said {
        if flag.fate == Fate::Lost {
            let said = [&[flag.name.to_owned()], words.as_slice()].concat().join(" ");
            draft.lost.push((said, flag.note.to_owned()));
        }
    }
    draft.top(line)?;
    draft.model(line)?;
    draft.data(line)?;
    draft.train(line, gpus)?;
    draft.checkpoint(line)?;
    Ok(draft)
}

impl Draft {
    /// The job file.
    pub(super) fn text(&self) -> String {
        let mut text = "# Made by `argosy convert-args` of a command line of open_clip_train.\n".to_owned();
        for (flag, why) in &self.lost {
            text += &format!("# not honoured: {}: {}\n", one_line(flag), one_line(why));
        }
        for (at, keys) in &self.sections {
            if let Some(name) = SECTIONS.get(*at).filter(|name| !name.is_empty()) {
                text += &format!("\n[{name}]\n");
            }
            for (key, value) in keys {
                text += &format!("{key} = {value}\n");
            }
        }
        text
    }

    fn set(&mut self, key: &str, value: impl Into<String>) {
        let (section, key) = key.split_once('.').unwrap_or(("", key));
        let at = SECTIONS.iter().position(|name| *name == section).unwrap_or(0);
        self.sections
            .entry(at)
            .or_default()
            .push((key.to_owned(), value.into()));
    }

    fn lose(&mut self, flag: &str, why: impl Into<String>) {
        self.lost.push((flag.to_owned(), why.into()));
    }

    fn top(&mut self, line: &Line) -> Outcome<()> {
        let model = line.word("--model").unwrap_or("RN50");
        let name = line.word("--name").unwrap_or(model);
        self.set("version", "1");
        self.set("name", string(&plain_name(name)));
        self.set("seed", line.number::<u64>("--seed")?.unwrap_or(0).to_string());
        Ok(())
    }

    fn model(&mut self, line: &Line) -> Outcome<()> {
        let model = line.word("--model").unwrap_or("RN50");
        match (model.strip_prefix("local-dir:"), model.strip_prefix("hf-hub:")) {
            (Some(dir), _) => self.set("model.pretrained", string(dir)),
            (_, Some(hub)) => {
                let why = format!("nothing is downloaded: fetch {hub} and name its folder in `model.pretrained`");
                self.lose(&format!("--model {model}"), why);
                self.set("model.pretrained", string(hub));
            }
            _ => self.set("model.name", string(model)),
        }
        if line.has("--force-quick-gelu") {
            self.set("model.force_quick_gelu", "true");
        }
        for (flag, key) in [("--image-mean", "model.image_mean"), ("--image-std", "model.image_std")] {
            if let Some(words) = line.words(flag) {
                self.set(key, list(flag, words)?);
            }
        }
        match line.word("--pretrained").filter(|p| !p.is_empty()) {
            Some(file) if is_path(file) => self.set("model.pretrained", string(file)),
            Some(tag) => {
                let why = "a tag: nothing is downloaded. Fetch the weights, name the file in `model.pretrained` and the tag in \
                           `model.pretrained_tag`";
                self.lose(&format!("--pretrained {tag}"), why);
            }
            None => {}
        }
        Ok(())
    }

    fn data(&mut self, line: &Line) -> Outcome<()> {
        let kind = line.word("--dataset-type").unwrap_or("auto");
        let Some(data) = line.word("--train-data").filter(|d| !d.is_empty()) else {
            let message = "--train-data is missing: a job names its shards";
            return Err(Failure::new(Exit::Usage, message));
        };
        let table = [".csv", ".tsv"].iter().any(|ending| data.ends_with(ending));
        if table || !["auto", "webdataset"].contains(&kind) {
            let message =
                format!("--train-data {data} --dataset-type {kind}: only shards in WebDataset's form are read");
            return Err(Failure::new(Exit::BadConfig, message).help("pack the pictures and captions into tar files"));
        }
        let mut sources = Vec::new();
        for part in data.split("::") {
            let shards = unpiped(part).ok_or_else(|| {
                let message = format!("--train-data {part}: no address of shards is in that command");
                Failure::new(Exit::BadConfig, message)
                    .help("name the shards by path or by an address like s3://bucket/set/")
            })?;
            sources.push(format!("{{ shards = {} }}", string(&shards)));
        }
        self.set("data.sources", format!("[{}]", sources.join(", ")));
        let samples = line.number::<u64>("--train-num-samples")?;
        if line.has("--dataset-resampled") || sources.len() > 1 {
            match samples {
                Some(samples) => self.set("data.train_num_samples", samples.to_string()),
                None if sources.len() > 1 => {
                    let message = "--train-num-samples is missing: with several sources it says how long an epoch is";
                    return Err(Failure::new(Exit::Usage, message));
                }
                None => {}
            }
        }
        self.captions(line)?;
        if let Some(keys) = line.word("--image-key") {
            self.set("data.image_key", string(keys));
        }
        if let Some(pixels) = line.number::<u64>("--max-image-pixels")? {
            self.set(
                "data.max_image_pixels",
                if pixels == 0 { u64::MAX >> 1 } else { pixels }.to_string(),
            );
        }
        self.augmentation(line)
    }

    fn captions(&mut self, line: &Line) -> Outcome<()> {
        let json = line.word("--json-text-key");
        if let Some(keys) = json {
            let keys: Vec<String> = keys
                .split([';', ','])
                .map(|key| format!("json:{}", key.trim()))
                .collect();
            self.set("data.text_key", string(&keys.join(";")));
        } else if let Some(keys) = line.word("--text-key") {
            self.set("data.text_key", string(keys));
        }
        if let Some(weights) = line.word("--json-text-key-probs") {
            let weights: Vec<String> = weights.split([';', ',']).map(str::to_owned).collect();
            self.set("data.caption_draw", "\"weighted\"");
            self.set("data.caption_weights", list("--json-text-key-probs", &weights)?);
        }
        Ok(())
    }

    /// `scale=(0.4, 1.0)` and the like.
    fn augmentation(&mut self, line: &Line) -> Outcome<()> {
        let mut keys = Vec::new();
        for word in line.words("--aug-cfg").unwrap_or_default() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let numbers: Vec<String> = value
                .trim_matches(|c: char| "()[] ".contains(c))
                .split(',')
                .map(|n| n.trim().to_owned())
                .filter(|n| !n.is_empty())
                .collect();
            match key {
                "scale" | "ratio" | "color_jitter" => keys.push(format!("{key} = {}", list(word, &numbers)?)),
                "color_jitter_prob" | "gray_scale_prob" => keys.push(format!("{key} = {}", float(word, value)?)),
                _ => self.lose(
                    &format!("--aug-cfg {word}"),
                    "only scale, ratio, colour jitter and gray pictures are drawn",
                ),
            }
        }
        if !keys.is_empty() {
            self.set("data.aug_cfg", format!("{{ {} }}", keys.join(", ")));
        }
        Ok(())
    }

    fn train(&mut self, line: &Line, gpus: Option<u64>) -> Outcome<()> {
        let gpus = gpus.or(line.gpus).unwrap_or_else(|| {
            let note = "no launcher says how many GPUs there are: one is taken; --gpus N says otherwise";
            self.notes.push(note.into());
            1
        });
        let each = line.number::<u64>("--batch-size")?.unwrap_or(64);
        let accumulated = line.number::<u64>("--accum-freq")?.unwrap_or(1);
        let batch = each.checked_mul(gpus).and_then(|b| b.checked_mul(accumulated));
        let batch = batch.filter(|b| u32::try_from(*b).is_ok()).ok_or_else(|| {
            let message =
                format!("--batch-size {each} on {gpus} GPUs with --accum-freq {accumulated} is too large a batch");
            Failure::new(Exit::Usage, message)
        })?;
        self.set("train.global_batch", batch.to_string());
        if accumulated > 1 {
            self.set("train.micro_batch", each.to_string());
        }
        self.optimiser(line)?;
        self.schedule(line)?;
        self.precision(line);
        for (flag, key) in [
            ("--grad-checkpointing", "train.grad_checkpointing"),
            ("--lock-image", "train.lock_image"),
            ("--lock-image-freeze-bn-stats", "train.lock_image_freeze_bn_stats"),
            ("--lock-text", "train.lock_text"),
            ("--lock-text-freeze-layer-norm", "train.lock_text_freeze_layer_norm"),
        ] {
            if line.has(flag) {
                self.set(key, "true");
            }
        }
        for (flag, key) in [
            ("--lock-image-unlocked-groups", "train.lock_image_unlocked_groups"),
            ("--lock-text-unlocked-layers", "train.lock_text_unlocked_layers"),
        ] {
            if let Some(count) = line.number::<u64>(flag)? {
                self.set(key, count.to_string());
            }
        }
        if line.has("--siglip") {
            self.set("train.loss", "\"siglip\"");
        }
        if let Some(device) = line.word("--device").filter(|d| *d == "cpu" || d.starts_with("cuda:")) {
            self.set("train.device", string(device));
        }
        let workers = u32::try_from(gpus).unwrap_or(u32::MAX);
        self.set("workers.min", "1");
        self.set("workers.target", workers.to_string());
        self.set("workers.max", workers.max(64).to_string());
        Ok(())
    }

    /// AdamW with open_clip_train's defaults, which depend on the model's name.
    fn optimiser(&mut self, line: &Line) -> Outcome<()> {
        let vit = line.word("--model").unwrap_or("RN50").to_lowercase().contains("vit");
        let (beta2, eps) = if vit { ("0.98", "1e-6") } else { ("0.999", "1e-8") };
        for (flag, key, default) in [
            ("--lr", "train.lr", "5e-4"),
            ("--beta1", "train.beta1", "0.9"),
            ("--beta2", "train.beta2", beta2),
            ("--eps", "train.eps", eps),
            ("--wd", "train.wd", "0.2"),
        ] {
            self.set(key, float(flag, line.word(flag).unwrap_or(default))?);
        }
        for (flag, key) in [
            ("--grad-clip-norm", "train.grad_clip_norm"),
            ("--image-layer-decay", "train.image_layer_decay"),
            ("--visual-layer-decay", "train.image_layer_decay"),
            ("--text-layer-decay", "train.text_layer_decay"),
        ] {
            if let Some(word) = line.word(flag) {
                self.set(key, float(flag, word)?);
            }
        }
        // Only its main branch decays by the other rule, and only its main branch knows such flags.
        if line.said.iter().any(|(flag, _)| flag.main) {
            self.set("train.decay_rule", "\"main\"");
        }
        Ok(())
    }

    fn schedule(&mut self, line: &Line) -> Outcome<()> {
        self.set(
            "train.epochs",
            line.number::<u64>("--epochs")?.unwrap_or(32).to_string(),
        );
        let skipped = line.has("--skip-scheduler");
        let warmup = line.number::<u64>("--warmup")?.unwrap_or(10_000);
        self.set("train.warmup", if skipped { 0 } else { warmup }.to_string());
        match line.word("--lr-scheduler").unwrap_or("cosine") {
            _ if skipped => self.set("train.lr_scheduler", "\"const\""),
            "cosine" => {}
            "const" => self.set("train.lr_scheduler", "\"const\""),
            other => {
                self.lose(
                    &format!("--lr-scheduler {other}"),
                    "there is no cool-down; the constant part is taken",
                );
                self.set("train.lr_scheduler", "\"const\"");
            }
        }
        Ok(())
    }

    fn precision(&mut self, line: &Line) {
        match line.word("--precision") {
            Some("fp32") => {}
            Some("amp_bf16" | "amp_bfloat16") => self.set("train.precision", "\"amp_bf16\""),
            Some(same @ ("bf16" | "pure_bf16")) => self.set("train.precision", string(same)),
            Some(half) => {
                self.lose(
                    &format!("--precision {half}"),
                    "there is no half precision; bfloat16 is taken, which needs no scaler",
                );
                self.set("train.precision", "\"amp_bf16\"");
            }
            None => {
                self.set("train.precision", "\"amp_bf16\"");
                let note = "without --precision OpenCLIP 3 trains in half precision (amp): amp_bf16 is taken, as OpenCLIP 4 does";
                self.notes.push(note.into());
            }
        }
    }

    fn checkpoint(&mut self, line: &Line) -> Outcome<()> {
        let epochs = line.number::<u64>("--save-frequency")?.unwrap_or(1);
        match line
            .number::<u64>("--train-num-samples")?
            .and_then(|n| n.checked_mul(epochs))
        {
            Some(samples) if samples > 0 => self.set("checkpoint.every_samples", samples.to_string()),
            _ => {
                self.set("checkpoint.every_s", "1800");
                let note =
                    "how long an epoch is stands in the shards only: a checkpoint is taken every 30 minutes instead";
                self.notes.push(note.into());
            }
        }
        self.set(
            "checkpoint.keep_last",
            if line.has("--delete-previous-checkpoint") {
                "1"
            } else {
                "0"
            },
        );
        if let Some(url) = line.word("--remote-sync") {
            self.set("checkpoint.url", string(url));
        }
        Ok(())
    }
}

fn string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A number as TOML writes it: Python takes `.5` and `5.` for numbers, too.
fn float(what: &str, word: &str) -> Outcome<String> {
    match word.trim().parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(format!("{number:?}")),
        _ => Err(Failure::new(
            Exit::Usage,
            format!("{what} {word}: a number is expected"),
        )),
    }
}

fn list(what: &str, words: &[String]) -> Outcome<String> {
    let numbers = words
        .iter()
        .map(|word| float(what, word))
        .collect::<Outcome<Vec<_>>>()?;
    Ok(format!("[{}]", numbers.join(", ")))
}

/// Letters, digits, `-`, `_` and `.`, as a job's name has.
fn plain_name(name: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = name
        .trim_start_matches(['.', '/'])
        .chars()
        .map(plain)
        .take(100)
        .collect();
    if name.is_empty() { "job".to_owned() } else { name }
}

fn is_path(pretrained: &str) -> bool {
    let ends = |ending: &str| pretrained.ends_with(ending);
    pretrained.contains('/') || [".pt", ".pth", ".bin", ".safetensors"].into_iter().any(ends)
}

/// The shards of `pipe:aws s3 cp s3://b/{0..9}.tar -`, or what is no pipe as it is. `None` where a pipe names no address.
fn unpiped(part: &str) -> Option<String> {
    let Some(command) = part.trim().strip_prefix("pipe:") else {
        return Some(part.trim().to_owned());
    };
    let words = command.split_whitespace().map(|word| word.trim_matches(['\'', '"']));
    let mut addresses = words.filter(|word| word.contains("://"));
    addresses
        .next()
        .filter(|_| addresses.next().is_none())
        .map(str::to_owned)
}
