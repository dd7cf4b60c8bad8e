//! Seconds per training step of a trainer that works alone, on fixed pictures and given captions, as `tests/peers/step.py`
//! measures OpenCLIP:
//! `bench_step --model NAME | --config FILE --batch N --precision fp32|bf16 --captions FILE --threads N --steps N [--inputs DIR]`.
//!
//! A step is everything between two of a worker's reports: packing, gathers, checks, row draws and the step log too; only
//! decoding is left out, as it is there. With `--inputs`, weights and pictures are those that `tests/peers/first_step.py`
//! wrote, so that loss and gradient norm of the first step can be laid beside OpenCLIP's.
#![allow(clippy::print_stdout, reason = "its output is its result")]

use anyhow::{Context, Result, bail};
use argosy_common::config::{Precision, TrainConfig};
use argosy_common::events::StepReport;
use argosy_common::follower::{Event, TrainerOrder};
use argosy_common::ids::{Generation, StateName, Term, WorkerId};
use argosy_common::plan::{Member, Plan, StateSource};
use argosy_common::quarantine::Quarantined;
use argosy_common::sampling::{Sampler, lane_digest};
use argosy_common::shape::{RunShape, SourceShape};
use argosy_common::steplog::RowState;
use argosy_shard_loader::{LaneBatch, LoaderError, Tokenizer};
use argosy_worker::checkpoint::PartStore;
use argosy_worker::clip::{ModelConfig, Preprocess};
use argosy_worker::engine::{TorchEngine, TorchOptions};
use argosy_worker::peer::Place;
use argosy_worker::trainer::{Aborts, BatchSource, EngineFactory, Failpoint, Lease, Origin, Setup, Trainer};
use clap::Parser;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const GENERATION: Generation = Generation(1);
const WORKER: WorkerId = WorkerId(1);
/// Rows of a lane, as a run has them by default.
const LANE_ROWS: usize = 8;

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value = "ViT-B-32")]
    model: String,
    #[arg(long)]
    config: Option<PathBuf>,
    #[arg(long, default_value_t = 16)]
    batch: usize,
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// fp32 or bf16, the latter as autocast has it
    #[arg(long, default_value = "fp32")]
    precision: String,
    #[arg(long)]
    captions: PathBuf,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Folder with `model.safetensors` and `pictures.u8`
    #[arg(long)]
    inputs: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let config = match &args.config {
        Some(file) => ModelConfig::from_json(&std::fs::read_to_string(file)?)?.0,
        None => ModelConfig::by_name(&args.model)?,
    };
    let dir = tempfile::tempdir()?;
    let steps = steps(&args, &config, dir.path())?;
    // The first warms up; its numbers are those of the weights as they came.
    let (first, measured) = steps.split_first().context("no step was made")?;
    let median_of = |value: &dyn Fn(&Step) -> f64| median(measured.iter().map(value).collect());
    let seconds = median_of(&|step| step.seconds);
    let phase = |name: &str| median_of(&|step| f64::from(step.report.phase_ms.get(name).copied().unwrap_or(0.0)) / 1e3);
    let out = serde_json::json!({
        "model": args.model, "batch": args.batch, "precision": args.precision, "threads": args.threads,
        "seconds": seconds, "samples_per_second": args.batch as f64 / seconds,
        "encode": phase("encode"), "loss": phase("loss"), "backward": phase("backward"), "apply": phase("apply"),
        "first_loss": first.report.loss, "first_grad_norm": first.report.grad_norm,
    });
    println!("{out}");
    Ok(())
}

/// Middle value, or the mean of the two middle ones.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

struct Step {
    report: StepReport,
    /// Since the report before.
    seconds: f64,
}

/// One step that warms up and those that are measured, by a trainer as a run has it.
fn steps(args: &Args, config: &ModelConfig, dir: &Path) -> Result<Vec<Step>> {
    let (said, heard) = channel();
    let said = Mutex::new(said);
    let (orders, taken) = channel();
    let shape = RunShape {
        seed: 0,
        sources: vec![SourceShape {
            name: "bench".into(),
            shard_rows: vec![u32::try_from(args.batch * (args.steps + 1))?],
        }],
        batch: u32::try_from(args.batch)?,
        lanes: u32::try_from((args.batch / LANE_ROWS).max(1))?,
        window_factor: 1,
        total_positions: (args.batch * (args.steps + 1)) as u64,
    };
    let lanes = shape.lanes;
    anyhow::ensure!(
        shape.batch.is_multiple_of(lanes),
        "--batch {}: a multiple of {LANE_ROWS} is needed",
        args.batch
    );
    let source = Fixed::new(args, config, &shape)?;
    let setup = Setup {
        run: "bench".into(),
        worker: WORKER,
        run_dir: dir.to_path_buf(),
        checkpoints: PartStore::open(&dir.join("checkpoints").to_string_lossy())?,
        run_secret: vec![0; 32],
        place: Place::default(),
        train: TrainConfig {
            lr: 5e-4,
            wd: 0.2,
            warmup: 0,
            ..TrainConfig::default()
        },
        shape,
        make_engine: engine_of(args, config)?,
        aborts: Aborts::default(),
        lease: Lease::not_needed(),
        origin: Origin::default(),
        failpoint: Arc::new(Failpoint::none()),
        emit: Arc::new(move |event| {
            // After the last step nobody listens any more.
            let said = said.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = said.send((Instant::now(), event));
        }),
    };
    let mut trainer = Trainer::new(setup, source).map_err(|(_, message)| anyhow::anyhow!(message))?;
    let thread = std::thread::spawn(move || trainer.run(&taken));
    let (_, Event::TrainerReady { addr, .. }) = heard.recv()? else {
        bail!("the trainer is not ready")
    };
    orders.send(TrainerOrder::Form {
        plan: plan(addr, lanes),
    })?;
    orders.send(TrainerOrder::Run { generation: GENERATION })?;
    let steps = collect(&heard, args.steps + 1);
    drop(orders);
    thread.join().ok().context("the trainer panicked")?;
    steps
}

fn engine_of(args: &Args, config: &ModelConfig) -> Result<EngineFactory<TorchEngine>> {
    let precision = match args.precision.as_str() {
        "fp32" => Precision::Fp32,
        "bf16" => Precision::AmpBf16,
        other => bail!("--precision {other}: fp32 or bf16 expected"),
    };
    let options = TorchOptions {
        threads: args.threads,
        precision,
        ..TorchOptions::default()
    };
    let weights = args.inputs.as_ref().map(|dir| read(&dir.join("model.safetensors")));
    let (config, weights) = (config.clone(), weights.transpose()?);
    Ok(Box::new(move || {
        let mut engine = TorchEngine::new(&config, &Preprocess::default(), options)?;
        if let Some(weights) = &weights {
            engine.load_weights(weights)?;
        }
        Ok(engine)
    }))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}

fn plan(addr: String, lanes: u32) -> Plan {
    Plan {
        run: "bench".into(),
        generation: GENERATION,
        term: Term(1),
        base: StateName::INITIAL,
        source: StateSource::Seed,
        members: vec![Member {
            worker: WORKER,
            addr,
            heals: false,
        }]
        .into(),
        lanes: vec![0; lanes as usize].into(),
        quarantine: Vec::new(),
        skip: None,
    }
}

fn collect(heard: &Receiver<(Instant, Event)>, count: usize) -> Result<Vec<Step>> {
    let (mut out, mut last) = (Vec::new(), Instant::now());
    while out.len() < count {
        match heard.recv()? {
            (at, Event::Stepped { report }) => {
                let seconds = at.saturating_duration_since(last).as_secs_f64();
                out.push(Step { report, seconds });
                last = at;
            }
            (_, Event::TrainerFailed { message, .. }) => bail!(message),
            (_, Event::TrainerStopped { cause, .. }) => bail!("the trainer stopped: {cause:?}"),
            _ => {}
        }
    }
    Ok(out)
}

/// The same rows in every step.
#[derive(Debug)]
struct Fixed {
    sampler: Sampler,
    lanes: Vec<u32>,
    step: u64,
    /// Of all lanes, one behind the other.
    pixels: Vec<u8>,
    tokens: Vec<i32>,
    lengths: Vec<u16>,
}

impl Fixed {
    fn new(args: &Args, config: &ModelConfig, shape: &RunShape) -> Result<Self> {
        let size = config.vision.image_size as usize;
        let bytes = args.batch * size * size * 3;
        let pixels = match &args.inputs {
            Some(dir) => read(&dir.join("pictures.u8"))?,
            None => (0..bytes).map(|k| ((k * 2_654_435_761) >> 13) as u8).collect(),
        };
        anyhow::ensure!(
            pixels.len() == bytes,
            "pictures.u8 has {} bytes, {bytes} expected",
            pixels.len()
        );
        let (tokens, lengths) = captions(args, config.text.context_length as usize)?;
        Ok(Self {
            sampler: Sampler::new(shape.clone()),
            lanes: Vec::new(),
            step: 0,
            pixels,
            tokens,
            lengths,
        })
    }

    fn batch(&mut self, lane: u32, step: u64) -> LaneBatch {
        let samples = self.sampler.step_samples(lane, step);
        let rows = samples.len();
        let (pixels, tokens) = (
            self.pixels.len() / self.lengths.len(),
            self.tokens.len() / self.lengths.len(),
        );
        let from = lane as usize * rows;
        LaneBatch {
            step,
            lane,
            rows: rows as u32,
            digest: lane_digest(lane, &samples),
            states: vec![RowState::Valid; rows],
            pixels: self.pixels[from * pixels..(from + rows) * pixels].to_vec(),
            tokens: self.tokens[from * tokens..(from + rows) * tokens].to_vec(),
            lengths: self.lengths[from..from + rows].to_vec(),
            samples,
        }
    }
}

impl BatchSource for Fixed {
    fn assign(&mut self, lanes: &[u32], from_step: u64) {
        self.lanes = lanes.to_vec();
        self.step = from_step;
    }

    /// Nothing is quarantined here.
    fn leave_out(&mut self, _revisions: &[Quarantined]) {}

    fn next(&mut self, _timeout: Duration) -> std::result::Result<Option<Vec<LaneBatch>>, LoaderError> {
        let step = self.step;
        self.step += 1;
        let lanes = self.lanes.clone();
        Ok(Some(lanes.into_iter().map(|lane| self.batch(lane, step)).collect()))
    }
}

/// Ids and lengths of as many captions as there are rows; the file begins anew when it ends, as in `step.py`.
fn captions(args: &Args, context: usize) -> Result<(Vec<i32>, Vec<u16>)> {
    let text = std::fs::read_to_string(&args.captions).with_context(|| args.captions.display().to_string())?;
    let lines: Vec<&str> = text.lines().collect();
    anyhow::ensure!(!lines.is_empty(), "{} is empty", args.captions.display());
    let tokenizer = Tokenizer::new(context);
    let (mut tokens, mut lengths) = (Vec::new(), Vec::new());
    for row in 0..args.batch {
        let mut ids = vec![0; context];
        lengths.push(tokenizer.row(lines[row % lines.len()], &mut ids));
        tokens.extend(ids);
    }
    Ok((tokens, lengths))
}
