//! The steps themselves: the trainer that trains, on a thread, with a recording of its operators.

use super::report::{Profile, Step};
use super::{ProfileArgs, machine, trace};
use crate::agent;
use crate::agent::assemble::Home;
use crate::peer::Place;
use crate::trainer::{Aborts, Emit, Lease};
use argosy_common::config::{Job, Precision};
use argosy_common::events::FromWorker;
use argosy_common::exit::Exit;
use argosy_common::follower::{Event, TrainerOrder};
use argosy_common::ids::{Generation, StateName, Term, WorkerId};
use argosy_common::plan::{Member, Plan, StateSource};
use argosy_rpc::Welcome;
use argosy_shard_loader::Index;
use argosy_torch_ext::record::{Recording, Span, now_ns};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use tch::{Device, Kind};

const RUN: &str = "profile";
const WORKER: WorkerId = WorkerId(1);
const GENERATION: Generation = Generation(1);

type Failure = (Exit, String);
/// An event and when it was told.
type Told = (i64, Event);

/// Measures the job; `progress` is told a line a step.
///
/// # Errors
/// The exit code and a sentence.
pub fn run(args: &ProfileArgs, progress: &dyn Fn(&str)) -> Result<Profile, Failure> {
    let welcome = welcome(args)?;
    progress("measuring this machine's peaks");
    crate::engine::torch::set_threads(args.threads as usize);
    let kind = match welcome.job.train.precision {
        Precision::Fp32 => Kind::Float,
        Precision::AmpBf16 | Precision::Bf16 | Precision::PureBf16 => Kind::BFloat16,
    };
    let measure = || machine::measure(args.threads, kind).map_err(|e| (Exit::JobFailed, e.to_string()));
    let before = measure()?;
    let (steps, spans) = train(args, &welcome, progress)?;
    let machine = before.or_better(measure()?);
    let profile = Profile::new(&steps, &spans, machine, args.trace.clone());
    trace::write(&args.trace, &steps, &spans)
        .map_err(|e| (Exit::JobFailed, format!("trace {}: {e}", args.trace.display())))?;
    Ok(profile)
}

/// What a coordinator would have told a lone worker.
fn welcome(args: &ProfileArgs) -> Result<Welcome, Failure> {
    let file = args.job.display().to_string();
    let text = std::fs::read_to_string(&args.job).map_err(|e| (Exit::NotFound, format!("job file {file}: {e}")))?;
    let job = Job::from_toml(&file, &text).map_err(|e| (Exit::BadConfig, e.to_string()))?;
    let chosen = crate::device::choose(&job.train.device).map_err(|message| (Exit::BadConfig, message))?;
    if chosen.device != Device::Cpu {
        // A GPU's operators run later than they are called, and it is calls that are recorded.
        let why = "only steps on the CPU are taken apart: add --set train.device=cpu, or use NVIDIA's nsys";
        return Err((Exit::BadConfig, format!("train.device = {:?}: {why}", job.train.device)));
    }
    let index = Index::open(&args.index).map_err(|e| (e.exit(), e.to_string()))?;
    let utf8 = |path: &Path| {
        let text = path.to_str().map(str::to_owned);
        text.ok_or_else(|| (Exit::Usage, format!("path {} is not UTF-8", path.display())))
    };
    Ok(Welcome {
        worker: WorkerId(1),
        files_url: None,
        run: RUN.into(),
        job_dir: utf8(&args.base)?,
        index_path: utf8(&args.index)?,
        index_hash: index.index_hash(),
        lanes: job.train.lanes.unwrap_or(1),
        window_factor: job.data.window_factor,
        total_positions: args.total_positions,
        run_dir: utf8(&args.work)?,
        heartbeat_ms: 1_000,
        run_secret: vec![0; 32],
        decode_threads: args.threads,
        torch_threads: args.threads,
        term: Term(1),
        leases: false,
        orphan_max_ms: 0,
        job,
    })
}

fn train(args: &ProfileArgs, welcome: &Welcome, progress: &dyn Fn(&str)) -> Result<(Vec<Step>, Vec<Span>), Failure> {
    let (said, heard) = channel();
    let said = Mutex::new(said);
    let emit: Emit = Arc::new(move |event| {
        // After the last step nobody listens any more.
        let _ = said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send((now_ns(), event));
    });
    // One step warms up and is left out; the recording begins with it, since it has to begin before the thread.
    let recording = Recording::start();
    let (orders, taken) = channel();
    let home = Home {
        welcome: welcome.clone(),
        config_hash: welcome.job.config_hash(),
        place: Place::default(),
    };
    let mut trainer = agent::assemble::trainer(&home, WORKER, (Aborts::default(), Lease::not_needed()), emit)?;
    let thread = std::thread::Builder::new()
        .name("trainer".into())
        .spawn(move || trainer.run(&taken))
        .map_err(|e| (Exit::NoCapacity, format!("no thread for the trainer: {e}")))?;
    let order = |order| {
        // A trainer that has ended said why in its last event.
        let _ = orders.send(order);
    };
    let addr = loop {
        match next(&heard)? {
            (_, Event::TrainerReady { addr, .. }) => break addr,
            (_, Event::Passed(FromWorker::Notice { message })) => progress(&message),
            (_, other) => return Err((Exit::Panic, format!("the trainer began with {other:?}"))),
        }
    };
    order(TrainerOrder::Form {
        plan: plan(welcome.lanes, addr),
    });
    order(TrainerOrder::StopAfter {
        generation: GENERATION,
        step: args.steps + 1,
    });
    order(TrainerOrder::Run { generation: GENERATION });
    let steps = collect(&heard, args.steps, progress);
    order(TrainerOrder::Quit);
    drop(orders);
    let ended = thread.join();
    let spans = recording.spans();
    drop(recording);
    if ended.is_err() {
        return Err((Exit::Panic, "the trainer panicked".into()));
    }
    Ok((steps?, spans))
}

/// The steps behind the first one, until the trainer stops or the job ends.
fn collect(heard: &Receiver<Told>, steps: u64, progress: &dyn Fn(&str)) -> Result<Vec<Step>, Failure> {
    let mut out = Vec::new();
    while (out.len() as u64) < steps {
        match next(heard)? {
            (_, Event::Stepped { report }) if report.name.step == 1 => progress("warmed up"),
            (at, Event::Stepped { report }) => {
                progress(&format!(
                    "step {} of {steps}: {:.0} ms",
                    out.len() + 1,
                    report.step_ms()
                ));
                out.push(Step::new(at, &report));
            }
            (_, Event::TrainerFailed { exit, message }) => return Err((Exit::from_code(i32::from(exit)), message)),
            (_, Event::TrainerStopped { cause, .. }) => {
                let cause = cause.unwrap_or_else(|| "the job has fewer steps; give --steps".into());
                return Err((
                    Exit::JobFailed,
                    format!("the trainer stopped after {} steps: {cause}", out.len()),
                ));
            }
            _ => {}
        }
    }
    Ok(out)
}

fn next(heard: &Receiver<Told>) -> Result<Told, Failure> {
    heard
        .recv()
        .map_err(|_| (Exit::Panic, "the trainer ended without a word".into()))
}

fn plan(lanes: u32, addr: String) -> Plan {
    Plan {
        run: RUN.into(),
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
