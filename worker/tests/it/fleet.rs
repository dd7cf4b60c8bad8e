//! Trainers on threads of this process, over real loopback sockets, with a test in the coordinator's place.

use argosy_common::config::TrainConfig;
use argosy_common::events::{AbortReport, FromWorker, StepReport};
use argosy_common::follower::{Event, TrainerOrder};
use argosy_common::hash::digest64;
use argosy_common::ids::{Generation, StateName, Term, WorkerId};
use argosy_common::plan::{Member, Plan, StateSource};
use argosy_common::quarantine::Quarantined;
use argosy_common::sampling::{Sampler, lane_digest};
use argosy_common::shape::{RunShape, SourceShape};
use argosy_common::steplog::{MaskReason, RowState, StepRecord, parse};
use argosy_shard_loader::{LaneBatch, LoaderError};
use argosy_worker::checkpoint::PartStore;
use argosy_worker::engine::{Engine, EngineError, ToyEngine};
use argosy_worker::peer::Place;
use argosy_worker::trainer::{Aborts, BatchSource, Failpoint, Lease, Origin, Setup, Trainer};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const LANES: u32 = 6;
const LANE_ROWS: u32 = 4;
const IMAGE: usize = 2;
const CONTEXT: usize = 3;
pub(crate) const ELEMENTS: usize = 40_000; // three blocks of a sum: every rank of three owns one

/// 9 steps, the last one partial, over a bit more than one pass.
pub(crate) fn shape() -> RunShape {
    RunShape {
        seed: 11,
        sources: vec![SourceShape {
            name: "s".into(),
            shard_rows: vec![70, 0, 41, 33],
        }],
        batch: LANES * LANE_ROWS,
        lanes: LANES,
        window_factor: 2,
        total_positions: 8 * u64::from(LANES * LANE_ROWS) + 7,
    }
}

/// Batches that are a pure function of the samples, with some rows masked; may stall at one step.
#[derive(Debug)]
pub(crate) struct MadeUp {
    sampler: Sampler,
    lanes: Vec<u32>,
    step: u64,
    /// No batch comes from this step on.
    stall_at: Arc<AtomicU64>,
    rig: Rig,
}

/// What a fleet trains, and on what.
#[derive(Clone, Debug)]
pub(crate) struct Rig {
    pub(crate) shape: RunShape,
    pub(crate) train: TrainConfig,
    /// Edge of a picture.
    pub(crate) image: usize,
    /// Ids per caption; with more than 3, captions have different lengths.
    pub(crate) context: usize,
    /// Ids are below this.
    pub(crate) vocab: u64,
    /// All rows of this step are masked but one.
    pub(crate) bare_step: Option<u64>,
}

impl Default for Rig {
    fn default() -> Self {
        Self {
            shape: shape(),
            train: TrainConfig {
                warmup: 4,
                ..TrainConfig::default()
            },
            image: IMAGE,
            context: CONTEXT,
            vocab: 1 << 16,
            bare_step: None,
        }
    }
}

impl BatchSource for MadeUp {
    fn assign(&mut self, lanes: &[u32], from_step: u64) {
        self.lanes = lanes.to_vec();
        self.step = from_step;
    }

    /// Nothing is read here.
    fn leave_out(&mut self, _revisions: &[Quarantined]) {}

    fn next(&mut self, _timeout: Duration) -> Result<Option<Vec<LaneBatch>>, LoaderError> {
        if self.step >= self.stall_at.load(Ordering::SeqCst) {
            std::thread::yield_now();
            return Ok(None);
        }
        let step = self.step;
        self.step += 1;
        Ok(Some(
            self.lanes
                .clone()
                .into_iter()
                .map(|lane| self.batch(lane, step))
                .collect(),
        ))
    }
}

impl MadeUp {
    fn batch(&mut self, lane: u32, step: u64) -> LaneBatch {
        let samples = self.sampler.step_samples(lane, step);
        let (image, context) = (self.rig.image, self.rig.context);
        let rows = self.rig.shape.lane_rows() as usize;
        let mut batch = LaneBatch {
            step,
            lane,
            rows: rows as u32,
            digest: lane_digest(lane, &samples),
            states: vec![RowState::Absent; rows],
            pixels: vec![0; rows * image * image * 3],
            tokens: vec![0; rows * context],
            lengths: vec![0; rows],
            samples: samples.clone(),
        };
        for (row, sample) in samples.iter().enumerate() {
            let bits = digest64(sample.to_string().as_bytes());
            let bare = self.rig.bare_step == Some(step) && (lane, row) != (0, 0);
            if bits.is_multiple_of(9) || bare {
                batch.states[row] = RowState::Masked(MaskReason::Format);
                continue;
            }
            batch.states[row] = RowState::Valid;
            let stride = image * image * 3;
            for (i, pixel) in batch.pixels[row * stride..(row + 1) * stride].iter_mut().enumerate() {
                *pixel = bits.rotate_right(5 * i as u32) as u8;
            }
            for (i, token) in batch.tokens[row * context..(row + 1) * context].iter_mut().enumerate() {
                *token = ((bits.rotate_right(20 * i as u32) & 0xffff) % self.rig.vocab) as i32;
            }
            let shorter = if context > 3 { bits as usize % (context - 2) } else { 0 };
            batch.lengths[row] = (context - shorter) as u16;
        }
        batch
    }
}

/// One worker: its thread, what it is told, what it says.
pub(crate) struct Worker<E: Engine + 'static = ToyEngine> {
    pub(crate) id: WorkerId,
    pub(crate) addr: String,
    pub(crate) name: StateName,
    pub(crate) aborts: Aborts,
    pub(crate) stall_at: Arc<AtomicU64>,
    orders: Sender<TrainerOrder>,
    events: Receiver<Event>,
    thread: JoinHandle<E>,
    /// Every step it reported.
    pub(crate) reports: Vec<StepReport>,
    /// How steps broke, as it reported.
    pub(crate) aborted: Vec<AbortReport>,
}

pub(crate) fn start(id: u32, run_dir: &Path) -> Worker {
    start_with(id, run_dir, None, || Ok(ToyEngine::new(IMAGE, CONTEXT, ELEMENTS, 3)))
}

pub(crate) fn start_with<E: Engine + 'static>(
    id: u32,
    run_dir: &Path,
    bare_step: Option<u64>,
    make: impl FnMut() -> Result<E, EngineError> + Send + 'static,
) -> Worker<E> {
    let rig = Rig {
        bare_step,
        ..Rig::default()
    };
    start_rig(id, run_dir, &rig, make)
}

pub(crate) fn start_rig<E: Engine + 'static>(
    id: u32,
    run_dir: &Path,
    rig: &Rig,
    make: impl FnMut() -> Result<E, EngineError> + Send + 'static,
) -> Worker<E> {
    let stall_at = Arc::new(AtomicU64::new(u64::MAX));
    let source = MadeUp {
        sampler: Sampler::new(rig.shape.clone()),
        lanes: Vec::new(),
        step: 0,
        stall_at: stall_at.clone(),
        rig: rig.clone(),
    };
    let worker = start_over(id, run_dir, rig, source, make);
    Worker { stall_at, ..worker }
}

/// The same with batches from elsewhere.
pub(crate) fn start_over<E: Engine + 'static>(
    id: u32,
    run_dir: &Path,
    rig: &Rig,
    source: impl BatchSource + 'static,
    make: impl FnMut() -> Result<E, EngineError> + Send + 'static,
) -> Worker<E> {
    let (orders, taken) = channel();
    let (said, events) = channel();
    let said = Mutex::new(said);
    let aborts = Aborts::default();
    let setup = Setup {
        run: "test".into(),
        worker: WorkerId(id),
        run_dir: run_dir.to_path_buf(),
        checkpoints: PartStore::open(run_dir.join("checkpoints").to_str().unwrap()).unwrap(),
        run_secret: b"secret of the run".to_vec(),
        place: Place::default(),
        train: rig.train.clone(),
        shape: rig.shape.clone(),
        make_engine: Box::new(make),
        aborts: aborts.clone(),
        lease: Lease::not_needed(),
        origin: Origin::default(),
        failpoint: Arc::new(Failpoint::none()),
        emit: Arc::new(move |event| {
            // A test that has ended listens no more.
            let _ = said.lock().unwrap().send(event);
        }),
    };
    let mut trainer = Trainer::new(setup, source).unwrap();
    let thread = std::thread::spawn(move || {
        trainer.run(&taken);
        trainer.into_engine()
    });
    let Ok(Event::TrainerReady { addr, name }) = events.recv_timeout(PATIENCE) else {
        panic!("not ready")
    };
    Worker {
        id: WorkerId(id),
        addr,
        name,
        aborts,
        stall_at: Arc::default(),
        orders,
        events,
        thread,
        reports: Vec::new(),
        aborted: Vec::new(),
    }
}

impl<E: Engine + 'static> Worker<E> {
    pub(crate) fn order(&self, order: TrainerOrder) {
        self.orders.send(order).unwrap();
    }

    /// The next event that tells neither of a step nor how one broke; those are kept.
    pub(crate) fn event(&mut self) -> Event {
        loop {
            match self
                .events
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|e| panic!("{} says nothing: {e}", self.id))
            {
                Event::Stepped { report } => {
                    self.name = report.name;
                    self.reports.push(report);
                }
                Event::Passed(FromWorker::Aborted { report }) => self.aborted.push(report),
                other => return other,
            }
        }
    }

    /// Waits until it has applied so many steps.
    pub(crate) fn reach(&mut self, step: u64) {
        while self.name.step < step {
            match self.events.recv_timeout(PATIENCE) {
                Ok(Event::Stepped { report }) => {
                    self.name = report.name;
                    self.reports.push(report);
                }
                other => panic!("{} at {}: {other:?}", self.id, self.name),
            }
        }
    }

    /// Waits until it has left the generation; gives the cause.
    pub(crate) fn stopped(&mut self, generation: u64) -> Option<String> {
        match self.event() {
            Event::TrainerStopped {
                generation: g,
                name,
                cause,
            } if g == Generation(generation) => {
                self.name = name;
                cause
            }
            other => panic!("{}: {other:?}", self.id),
        }
    }

    /// Ends it; gives the hash of its state.
    pub(crate) fn quit(self) -> u64 {
        self.into_engine().state_hash()
    }

    /// Ends it; gives its engine.
    pub(crate) fn into_engine(self) -> E {
        self.order(TrainerOrder::Quit);
        self.thread.join().unwrap()
    }
}

/// As [`plan_of`] with the lanes of [`shape`].
pub(crate) fn plan<E: Engine + 'static>(
    generation: u64,
    base: StateName,
    source: StateSource,
    workers: &[&mut Worker<E>],
    deal: impl Fn(u32) -> u32,
) -> Plan {
    plan_of(generation, base, source, workers, (0..LANES).map(deal).collect())
}

/// A plan of these workers, lane `q` to `lanes[q]`; who does not hold `base` heals.
pub(crate) fn plan_of<E: Engine + 'static>(
    generation: u64,
    base: StateName,
    source: StateSource,
    workers: &[&mut Worker<E>],
    lanes: Vec<u32>,
) -> Plan {
    Plan {
        run: "test".into(),
        generation: Generation(generation),
        term: Term(1),
        base,
        source,
        members: workers
            .iter()
            .map(|w| Member {
                worker: w.id,
                addr: w.addr.clone(),
                heals: w.name != base,
            })
            .collect(),
        lanes: lanes.into(),
        skip: None,
        quarantine: Vec::new(),
    }
}

/// Forms the generation and lets it run.
pub(crate) fn form_and_run<E: Engine + 'static>(plan: &Plan, workers: &mut [&mut Worker<E>]) {
    form(plan, workers);
    for worker in workers.iter() {
        worker.order(TrainerOrder::Run {
            generation: plan.generation,
        });
    }
}

/// Forms the generation.
pub(crate) fn form<E: Engine + 'static>(plan: &Plan, workers: &mut [&mut Worker<E>]) {
    for worker in workers.iter() {
        worker.order(TrainerOrder::Form { plan: plan.clone() });
    }
    for worker in workers.iter_mut() {
        let event = worker.event();
        assert_eq!(
            event,
            Event::TrainerFormed {
                generation: plan.generation
            },
            "{}",
            worker.id
        );
        worker.name = plan.base;
    }
}

/// A run without any disturbance on `size` workers, from the seed to the end: the hash they all end with.
pub(crate) fn undisturbed(size: u32, deal: impl Fn(u32) -> u32) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let mut workers: Vec<Worker> = (1..=size).map(|id| start(id, dir.path())).collect();
    let mut all: Vec<&mut Worker> = workers.iter_mut().collect();
    let plan = plan(1, StateName::INITIAL, StateSource::Seed, &all, deal);
    form_and_run(&plan, &mut all);
    finish(workers, dir.path())
}

/// Waits for the end of the run, compares logs and states of all, gives the hash.
pub(crate) fn finish(mut workers: Vec<Worker>, run_dir: &Path) -> u64 {
    let total = shape().total_steps();
    workers.iter_mut().for_each(|w| w.reach(total));
    let ids: Vec<WorkerId> = workers.iter().map(|w| w.id).collect();
    let hashes: Vec<u64> = workers.into_iter().map(Worker::quit).collect();
    assert!(
        hashes.iter().all(|h| *h == hashes[0]),
        "equal names mean equal bits: {hashes:x?}"
    );
    let logs: Vec<Vec<StepRecord>> = ids.iter().map(|id| applied(run_dir, *id)).collect();
    for record in logs.iter().flatten() {
        let StepRecord::Applied { name, .. } = record else {
            continue;
        };
        for log in &logs {
            let same_name = |r: &&StepRecord| matches!(r, StepRecord::Applied { name: n, .. } if n == name);
            assert!(
                log.iter().filter(same_name).all(|r| r == record),
                "loggers of {name} agree"
            );
        }
    }
    hashes[0]
}

/// The steps a worker logged.
pub(crate) fn applied(run_dir: &Path, worker: WorkerId) -> Vec<StepRecord> {
    let text = std::fs::read_to_string(run_dir.join(format!("steps/{worker}.jsonl"))).unwrap();
    let is_applied = |r: &StepRecord| matches!(r, StepRecord::Applied { .. });
    parse(&text).unwrap().into_iter().filter(is_applied).collect()
}
