//! Zero-shot classification as OpenCLIP does it (`zero_shot_classifier.py`, `zero_shot.py`): a class is the mean of its
//! normalised prompts, normalised again; logits are 100 times the cosine.

use super::confusion::{self, ClassReport};
use super::source::{Loaded, ModelArgs, load_engine};
use super::{Failure, predictions};
use crate::engine::{Engine, EngineError};
use argosy_common::exit::Exit;
use argosy_common::steplog::MaskReason;
use argosy_shard_loader::eval::EvalConfig;
use argosy_shard_loader::{DataError, EvalReader, EvalSample, Tokenizer};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

/// Batches that are decoded ahead of the towers.
const BATCHES_AHEAD: usize = 4;

/// What is evaluated on what.
#[derive(Clone, Debug, clap::Args)]
pub struct EvalArgs {
    /// Run folder, manifest.json, or folder with open_clip_config.json and open_clip_model.safetensors
    #[arg(long, value_name = "PATH")]
    pub checkpoint: PathBuf,
    #[command(flatten)]
    pub how: ModelArgs,
    /// Shards by pattern, folder or file; samples carry their class in a `.cls` member
    #[arg(long, value_name = "SHARDS")]
    pub data: String,
    /// Names of the classes, line i for class i, from 0
    #[arg(long, value_name = "FILE")]
    pub classes: PathBuf,
    /// Prompts, one a line, `{}` for the class name
    #[arg(long, value_name = "FILE")]
    pub templates: PathBuf,
    /// Subcategory of each class, line i for class i; a prediction also counts if its class has the same
    #[arg(long, value_name = "FILE")]
    pub subcategories: Option<PathBuf>,
    /// Picture suffixes, in order of preference
    #[arg(long, default_value = "jpg;png;jpeg;webp")]
    pub image_key: String,
    /// Pictures with more pixels are left out
    #[arg(long, default_value_t = 25_000_000)]
    pub max_image_pixels: u64,
    /// Rows that go through a tower at once
    #[arg(long, default_value_t = 64)]
    pub batch: usize,
    /// Writes every sample's class and the five classes that came first, as a JSON object a line
    #[arg(long, value_name = "FILE")]
    pub predictions: Option<PathBuf>,
    /// Threads of one tensor operation; all cores by default
    #[arg(long)]
    pub threads: Option<usize>,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What was evaluated.
    pub checkpoint: String,
    /// On what.
    pub data: String,
    /// Share of samples whose class has the highest logit.
    pub top1: f64,
    /// Share of samples whose class is among the five highest.
    pub top5: f64,
    /// Top-1 of each class that has samples, averaged over those classes.
    pub mean_per_class: f64,
    /// Top-1 of a guess: one by the number of classes.
    pub chance: f64,
    /// Samples that were classified.
    pub samples: u64,
    /// Classes to choose from.
    pub classes: usize,
    /// Classes that have samples.
    pub classes_seen: usize,
    /// Prompts of a class.
    pub templates: usize,
    /// The classes that are recognised least, worst first.
    pub worst_classes: Vec<ClassReport>,
    /// The same over subcategories.
    pub subcategories: Option<SubcategoryReport>,
    /// Samples left out, by reason.
    pub left_out: BTreeMap<MaskReason, u64>,
    /// Samples without a `.cls` member.
    pub unlabelled: u64,
    /// Shards that could not be read to their end, with where and why.
    pub damaged: Vec<String>,
}

/// Accuracy over subcategories.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SubcategoryReport {
    /// Share of samples whose predicted class has the subcategory of the right one.
    pub top1: f64,
    /// The same for a guess among classes.
    pub chance: f64,
    /// Different subcategories.
    pub count: usize,
}

impl Report {
    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = String::new();
        let mut row = |what: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{what:<16} {value}");
        };
        let percent = |share: f64| format!("{:.2} %", share * 100.0);
        row("checkpoint", self.checkpoint.clone());
        row("data", self.data.clone());
        row(
            "samples",
            format!(
                "{} of {} classes (of {})",
                self.samples, self.classes_seen, self.classes
            ),
        );
        row("top-1", percent(self.top1));
        row("top-5", percent(self.top5));
        row("mean per class", percent(self.mean_per_class));
        row("chance", percent(self.chance));
        for (i, class) in self.worst_classes.iter().enumerate() {
            row(if i == 0 { "worst classes" } else { "" }, class.sentence());
        }
        if let Some(sub) = &self.subcategories {
            row(
                "subcategory",
                format!(
                    "{} ({} kinds, chance {})",
                    percent(sub.top1),
                    sub.count,
                    percent(sub.chance)
                ),
            );
        }
        for (reason, count) in &self.left_out {
            row("left out", format!("{count} ({reason})"));
        }
        if self.unlabelled > 0 {
            row("left out", format!("{} (no .cls member)", self.unlabelled));
        }
        for damage in &self.damaged {
            row("damaged", damage.clone());
        }
        out
    }
}

fn data_failure(error: DataError) -> Failure {
    (error.exit(), error.to_string())
}

fn engine_failure(error: EngineError) -> Failure {
    (Exit::JobFailed, error.to_string())
}

/// Evaluates.
///
/// # Errors
/// The exit code and a sentence that names what is wrong.
pub fn run(args: &EvalArgs) -> Result<Report, Failure> {
    let classes = lines(&args.classes)?;
    let templates = lines(&args.templates)?;
    if let Some(bad) = templates.iter().find(|t| !t.contains("{}")) {
        let message = format!(
            "template `{bad}` in {} has no {{}} for the class name",
            args.templates.display()
        );
        return Err((Exit::BadConfig, message));
    }
    let subcategories = args
        .subcategories
        .as_deref()
        .map(|file| subcategory_lines(file, classes.len()))
        .transpose()?;
    let threads = args
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let loaded = load_engine(&args.checkpoint, &args.how, threads)?;
    let tokenizer = loaded.tokenizer()?;
    let Loaded {
        mut engine,
        preprocess,
        shown,
        ..
    } = loaded;
    let config = EvalConfig {
        image_size: engine.image_size() as u32,
        resize: preprocess.resize,
        image_key: args.image_key.clone(),
        text_key: "txt".into(),
        max_image_pixels: args.max_image_pixels,
    };
    // Opened before the towers work, so that a wrong path is told at once.
    let reader = EvalReader::open(&args.data, Path::new("."), config).map_err(data_failure)?;
    let weights = classifier(&mut engine, &tokenizer, &classes, &templates, args.batch.max(1))?;
    let mut score = Score::new(classes.len(), subcategories.as_deref());
    score.predictions = args
        .predictions
        .as_deref()
        .map(predictions::Writer::create)
        .transpose()?;
    let reader = classify(&mut engine, reader, &weights, args.batch.max(1), &mut score)?;
    if score.samples == 0 {
        let why = format!(
            "{} left out, {} without a class",
            reader.left_out().values().sum::<u64>(),
            score.unlabelled
        );
        return Err((
            Exit::JobFailed,
            format!("no sample of {} could be classified: {why}", args.data),
        ));
    }
    if let Some(writer) = score.predictions.take() {
        writer.finish()?;
    }
    let mut report = score.report();
    report.worst_classes = confusion::worst(&score.per_class, &score.confused, &classes);
    report.checkpoint = shown;
    report.data = args.data.clone();
    report.templates = templates.len();
    report.left_out = reader.left_out().clone();
    report.damaged = reader.damaged().to_vec();
    Ok(report)
}

/// Lines of a file. Their places are numbers of classes, so an empty one may stand at the end only: left out anywhere else,
/// it would move all that follow.
fn lines(path: &Path) -> Result<Vec<String>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| (Exit::NotFound, format!("{}: {e}", path.display())))?;
    let lines: Vec<String> = text.trim_end().lines().map(|l| l.trim_end().to_owned()).collect();
    if lines.is_empty() {
        return Err((Exit::BadConfig, format!("{} is empty", path.display())));
    }
    if let Some(at) = lines.iter().position(String::is_empty) {
        let message = format!(
            "line {} of {} is empty: line i stands for number i, remove the line or fill it",
            at + 1,
            path.display()
        );
        return Err((Exit::Usage, message));
    }
    Ok(lines)
}

/// One subcategory per class; a leading number and tab, as tables have them, is dropped.
fn subcategory_lines(path: &Path, classes: usize) -> Result<Vec<String>, Failure> {
    let lines: Vec<String> = lines(path)?
        .into_iter()
        .map(|l| l.rsplit('\t').next().unwrap_or_default().to_owned())
        .collect();
    if lines.len() != classes {
        let message = format!("{} has {} lines for {classes} classes", path.display(), lines.len());
        return Err((Exit::BadConfig, message));
    }
    Ok(lines)
}

/// `[classes, d]`: per class the mean of its normalised prompts, normalised.
fn classifier<E: Engine>(
    engine: &mut E,
    tokenizer: &Tokenizer,
    classes: &[String],
    templates: &[String],
    batch: usize,
) -> Result<Vec<f32>, Failure> {
    let (dim, context) = (engine.feature_dim(), engine.context_length());
    let prompts: Vec<String> = classes
        .iter()
        .flat_map(|c| templates.iter().map(move |t| t.replace("{}", c)))
        .collect();
    let mut features = Vec::with_capacity(prompts.len() * dim);
    for chunk in prompts.chunks(batch) {
        let mut tokens = vec![0; chunk.len() * context];
        let lengths: Vec<u16> = chunk
            .iter()
            .zip(tokens.chunks_mut(context))
            .map(|(text, row)| tokenizer.row(text, row))
            .collect();
        features.extend(
            engine
                .encode_text_eval(chunk.len(), &tokens, &lengths, batch)
                .map_err(engine_failure)?,
        );
    }
    check_finite(&features, dim, |row| {
        let (class, template) = (&classes[row / templates.len()], &templates[row % templates.len()]);
        format!("class `{class}` with template `{template}`")
    })?;
    let mut weights = Vec::with_capacity(classes.len() * dim);
    for class in features.chunks(templates.len() * dim) {
        let mean: Vec<f64> = (0..dim)
            .map(|k| class.iter().skip(k).step_by(dim).map(|v| f64::from(*v)).sum::<f64>())
            .collect();
        let norm = mean.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
        weights.extend(mean.iter().map(|v| (v / norm) as f32));
    }
    Ok(weights)
}

/// Refuses features `[n, dim]` that hold NaN or infinity: no logit compares as higher than NaN, so that every sample would
/// count as right. `name` says whose the row is.
fn check_finite(features: &[f32], dim: usize, name: impl Fn(usize) -> String) -> Result<(), Failure> {
    match features.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let whose = name(at / dim.max(1));
            let message = format!(
                "the feature of {whose} is not finite, so nothing can be classified: the weights of this checkpoint are \
                 broken, evaluate another one"
            );
            Err((Exit::JobFailed, message))
        }
    }
}

/// Decodes on one thread, encodes on this one. Gives the reader back for its counts.
fn classify<E: Engine>(
    engine: &mut E,
    mut reader: EvalReader,
    weights: &[f32],
    batch: usize,
    score: &mut Score<'_>,
) -> Result<EvalReader, Failure> {
    let (sender, batches) = sync_channel::<Result<Vec<EvalSample>, DataError>>(BATCHES_AHEAD);
    let reading = std::thread::Builder::new().name("eval-read".into()).spawn(move || {
        loop {
            let batch: Result<Vec<EvalSample>, DataError> = std::iter::from_fn(|| reader.next_sample().transpose())
                .take(batch)
                .collect();
            let last = batch.as_ref().map_or(true, Vec::is_empty);
            // Nobody takes it any more when the towers have failed.
            if sender.send(batch).is_err() || last {
                return reader;
            }
        }
    });
    let reading = reading.map_err(|e| (Exit::NoCapacity, format!("no thread to read with: {e}")))?;
    for samples in batches {
        let samples = samples.map_err(data_failure)?;
        let mut pixels = Vec::new();
        let (mut labels, mut keys) = (Vec::new(), Vec::new());
        for sample in samples {
            let Some(class) = sample.class else {
                score.unlabelled += 1;
                continue;
            };
            if class as usize >= score.classes {
                let message = format!(
                    "sample {} is of class {class}, there are {} classes",
                    sample.key, score.classes
                );
                return Err((Exit::JobFailed, message));
            }
            pixels.extend_from_slice(&sample.pixels);
            labels.push(class);
            keys.push(sample.key);
        }
        let features = engine
            .encode_images_eval(labels.len(), &pixels, batch)
            .map_err(engine_failure)?;
        check_finite(&features, engine.feature_dim(), |row| format!("sample {}", keys[row]))?;
        for (feature, label) in features.chunks(engine.feature_dim()).zip(labels) {
            score.add(feature, weights, label);
        }
        score.write(&keys)?;
    }
    reading
        .join()
        .map_err(|_| (Exit::Panic, "the reading thread panicked".into()))
}

/// Counts of hits.
#[derive(Debug)]
struct Score<'a> {
    classes: usize,
    subcategories: Option<&'a [String]>,
    samples: u64,
    unlabelled: u64,
    top1: u64,
    top5: u64,
    subcategory_hits: u64,
    /// Classes that share the right subcategory, summed over samples.
    subcategory_mates: u64,
    /// Samples and hits of each class.
    per_class: Vec<(u64, u64)>,
    /// Samples by right class and first class, where they differ.
    confused: BTreeMap<(usize, usize), u64>,
    /// Rows of the batch under way, for [`Score::write`].
    batch: Vec<predictions::Ranked>,
    predictions: Option<predictions::Writer>,
}

impl<'a> Score<'a> {
    fn new(classes: usize, subcategories: Option<&'a [String]>) -> Self {
        Self {
            classes,
            subcategories,
            samples: 0,
            unlabelled: 0,
            top1: 0,
            top5: 0,
            subcategory_hits: 0,
            subcategory_mates: 0,
            per_class: vec![(0, 0); classes],
            confused: BTreeMap::new(),
            batch: Vec::new(),
            predictions: None,
        }
    }

    /// One sample: `feature` `[d]` against `weights` `[classes, d]`.
    fn add(&mut self, feature: &[f32], weights: &[f32], label: u32) {
        let logits: Vec<f32> = weights
            .chunks(feature.len())
            .map(|w| 100.0 * w.iter().zip(feature).map(|(a, b)| a * b).sum::<f32>())
            .collect();
        let label = label as usize;
        // Of equal logits the lower class goes first.
        let before = |other: usize| logits[other] > logits[label] || (logits[other] == logits[label] && other < label);
        let rank = (0..self.classes).filter(|c| before(*c)).count();
        let best = (0..self.classes).fold(0, |best, c| if logits[c] > logits[best] { c } else { best });
        if best != label {
            *self.confused.entry((label, best)).or_default() += 1;
        }
        if self.predictions.is_some() {
            self.batch.push(predictions::Ranked::of(label, &logits));
        }
        self.samples += 1;
        self.top1 += u64::from(rank == 0);
        self.top5 += u64::from(rank < 5);
        self.per_class[label].0 += 1;
        self.per_class[label].1 += u64::from(rank == 0);
        if let Some(names) = self.subcategories {
            self.subcategory_hits += u64::from(names[best] == names[label]);
            self.subcategory_mates += names.iter().filter(|n| **n == names[label]).count() as u64;
        }
    }

    /// Hands the rows of a batch to the file of predictions; `keys` name them.
    fn write(&mut self, keys: &[String]) -> Result<(), Failure> {
        if let Some(writer) = &mut self.predictions {
            for (ranked, key) in self.batch.drain(..).zip(keys) {
                writer.write(key, &ranked)?;
            }
        }
        Ok(())
    }

    fn report(&self) -> Report {
        let share = |hits: u64| hits as f64 / self.samples.max(1) as f64;
        let seen: Vec<f64> = self
            .per_class
            .iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, hits)| *hits as f64 / *n as f64)
            .collect();
        let subcategories = self.subcategories.map(|names| SubcategoryReport {
            top1: share(self.subcategory_hits),
            chance: share(self.subcategory_mates) / self.classes.max(1) as f64,
            count: names.iter().collect::<BTreeSet<_>>().len(),
        });
        Report {
            checkpoint: String::new(),
            data: String::new(),
            top1: share(self.top1),
            top5: share(self.top5),
            mean_per_class: seen.iter().sum::<f64>() / seen.len().max(1) as f64,
            chance: 1.0 / self.classes.max(1) as f64,
            samples: self.samples,
            classes: self.classes,
            classes_seen: seen.len(),
            templates: 0,
            worst_classes: Vec::new(),
            subcategories,
            left_out: BTreeMap::new(),
            unlabelled: self.unlabelled,
            damaged: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
