//! Batches of the lanes this process owns, step by step.
//!
//! Two threads and a pool run ahead of the trainer by `prefetch_steps`: one fetches windows (rule L7), one has their rows
//! decoded. What they make for a (step, lane) depends on no plan but for its quarantine ledger, so a new plan with the same
//! ledger only says what is still wanted.

mod blocked;
mod fetch;
mod prepare;
mod report;
mod rows;
mod stats;
mod walked;

pub use report::StageReport;
pub use stats::LoaderStats;

use crate::batch::LaneBatch;
use crate::cache::DiskCache;
use crate::error::{DataError, LoaderError};
use crate::index::Index;
use crate::store::{KeepReading, RetryPolicy, Store};
use crate::tokenize::Tokenizer;
use argosy_common::config::DataConfig;
use argosy_common::quarantine::Quarantined;
use argosy_common::shape::RunShape;
use blocked::LeftOut;
use fetch::{Fetcher, RawLane};
use prepare::Preparer;
use rows::RowCache;
use stats::Counters;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a loader needs to know besides the index.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// Which sample stands where.
    pub shape: RunShape,
    /// Side `S` of a picture.
    pub image_size: u32,
    /// Makes the `C` tokens of a caption.
    pub tokenizer: Arc<Tokenizer>,
    /// Limits and augmentation.
    pub data: DataConfig,
    /// Threads that decode.
    pub decode_threads: usize,
    /// Steps that are made ahead of the trainer, at least 1.
    pub prefetch_steps: usize,
    /// Where rows are kept, if anywhere.
    pub cache: Option<DiskCache>,
}

/// Makes the batches of its lanes. Shared between threads; dropping it ends its threads.
#[derive(Debug)]
pub struct Loader {
    inner: Arc<Inner>,
    store: Store,
    cache: RowCache,
    decode_threads: usize,
    report_file: Option<PathBuf>,
    reading: Option<KeepReading>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    counters: Arc<Counters>,
    total_steps: u64,
    prefetch_steps: u64,
}

/// What the threads agree on. `take <= fetch <= take + prefetch_steps`.
#[derive(Debug, Default)]
struct State {
    /// Counts plans, so that work for an old one is noticed.
    plan: u64,
    lanes: Vec<u32>,
    /// Next step to hand out.
    take: u64,
    /// Next step to fetch.
    fetch: u64,
    /// Fetched, not decoded.
    raw: VecDeque<(u64, Vec<RawLane>)>,
    /// Decoded, by step and lane.
    ready: BTreeMap<u64, BTreeMap<u32, LaneBatch>>,
    /// Why no batch comes for this step.
    failed: Option<(u64, LoaderError)>,
    left_out: LeftOut,
    closed: bool,
    /// When the first plan came.
    began: Option<Instant>,
    /// Sums over the trainer's visits: how many, and how many fetched and finished steps lay there.
    visits: u64,
    fetched_seen: u64,
    ready_seen: u64,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before its lock goes, so a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: LoaderError) {
        self.lock().failed.get_or_insert((0, error));
        self.changed.notify_all();
    }
}

/// Tells whoever waits for batches when a thread that makes them has panicked.
struct Alarm(Arc<Inner>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(LoaderError::Stopped(
                "one of its threads panicked, which is a bug".into(),
            ));
        }
    }
}

impl Loader {
    /// Starts the threads. Nothing is read before [`Loader::assign`].
    ///
    /// # Errors
    /// When the shape is not the index's, kept pictures would be too small, or the system gives no threads.
    pub fn new(index: Arc<Index>, config: LoaderConfig) -> Result<Self, DataError> {
        Self::over(index, config, Store::new(RetryPolicy::default())?)
    }

    /// The same, reading from `store`.
    ///
    /// # Errors
    /// As [`Loader::new`].
    pub fn over(index: Arc<Index>, config: LoaderConfig, store: Store) -> Result<Self, DataError> {
        if index.to_shape() != config.shape.sources {
            let why = "the run's shape does not belong to this index; was the index made again since the run began?";
            return Err(DataError::Config(why.into()));
        }
        let counters = Arc::new(Counters::default());
        let inner = Arc::new(Inner {
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
            counters: Arc::clone(&counters),
            total_steps: config.shape.total_steps(),
            prefetch_steps: config.prefetch_steps.max(1) as u64,
        });
        let (store, reading) = store.stoppable();
        let (own_store, decode_threads) = (store.clone(), config.decode_threads.max(1));
        let cache = RowCache::new(config.cache.clone(), &index, &config.data, config.image_size)?;
        let fetcher = Fetcher::new(
            Arc::clone(&index),
            store.clone(),
            cache.clone(),
            &config,
            Arc::clone(&counters),
        );
        let preparer = Preparer::new(index, store, cache.clone(), &config, counters)?;
        let mut loader = Self {
            inner: Arc::clone(&inner),
            store: own_store,
            cache,
            decode_threads,
            report_file: None,
            reading: Some(reading),
            threads: Vec::new(),
        };
        let shared = Arc::clone(&inner);
        loader.start("argosy-fetch", move || fetch_loop(&shared, fetcher))?;
        loader.start("argosy-prepare", move || prepare_loop(&inner, &preparer))?;
        Ok(loader)
    }

    fn start(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), DataError> {
        let alarm = Alarm(Arc::clone(&self.inner));
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            let _alarm = alarm;
            work();
        });
        self.threads
            .push(thread.map_err(|e| DataError::Config(format!("cannot start thread {name}: {e}")))?);
        Ok(())
    }

    /// A new plan: from `from_step` on, the batches of `lanes` are wanted. Cached windows and finished batches of lanes
    /// that stay are kept, the rest is dropped; an earlier failure is forgotten.
    pub fn assign(&self, lanes: &[u32], from_step: u64) {
        let mut state = self.inner.lock();
        let mut lanes = lanes.to_vec();
        lanes.sort_unstable();
        lanes.dedup();
        state.ready.retain(|step, batches| {
            batches.retain(|lane, _| lanes.binary_search(lane).is_ok());
            *step >= from_step && !batches.is_empty()
        });
        state.plan += 1;
        state.began.get_or_insert_with(Instant::now);
        state.lanes = lanes;
        state.take = from_step;
        state.fetch = from_step;
        state.raw.clear();
        state.failed = None;
        drop(state);
        self.inner.changed.notify_all();
    }

    /// The quarantine ledger from now on: its rows are not read, and take no part. What was made under another is dropped.
    pub fn leave_out(&self, revisions: &[Quarantined]) {
        let mut state = self.inner.lock();
        if state.left_out.is(revisions) {
            return;
        }
        state.left_out = LeftOut::new(revisions);
        if state.plan > 0 {
            state.plan += 1;
        }
        state.ready.clear();
        state.raw.clear();
        state.fetch = state.take;
        drop(state);
        self.inner.changed.notify_all();
    }

    /// The next step's batches of all own lanes, in lane order; empty for a worker without lanes. `None` when `timeout`
    /// passes first, as it does before the first [`Loader::assign`].
    ///
    /// # Errors
    /// [`LoaderError::LaneBlocked`] when bytes cannot be had (it stays until the next [`Loader::assign`]),
    /// [`LoaderError::EndOfRun`] beyond the last step.
    pub fn next(&self, timeout: Duration) -> Result<Option<Vec<LaneBatch>>, LoaderError> {
        let started = Instant::now();
        let mut state = self.inner.lock();
        state.visits += 1;
        state.fetched_seen += state.raw.len() as u64;
        state.ready_seen += state.ready.len() as u64;
        loop {
            if state.closed {
                return Err(LoaderError::Stopped("it was dropped".into()));
            }
            if state.take >= self.inner.total_steps {
                return Err(LoaderError::EndOfRun {
                    step: state.take,
                    end: self.inner.total_steps,
                });
            }
            if let Some(batches) = state.take_ready() {
                drop(state);
                self.inner.changed.notify_all();
                self.inner.counters.handed_out(&batches, started.elapsed());
                return Ok(Some(batches));
            }
            // Batches of earlier steps may still be on their way.
            if let Some((_, error)) = state.failed.as_ref().filter(|(at, _)| *at <= state.take) {
                return Err(error.clone());
            }
            let left = timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            state = self
                .inner
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits until the batches of the next `steps` steps lie ready, none of them taken. `false` when `timeout` passes first, as
    /// it does for more steps than are made ahead.
    pub fn wait_ready(&self, steps: usize, timeout: Duration) -> bool {
        let state = self.inner.lock();
        let lacks = |state: &mut State| {
            let wanted = state.take..state.take + steps as u64;
            let whole = |step: u64| state.ready.get(&step).map_or(0, BTreeMap::len) == state.lanes.len();
            state.plan == 0 || !wanted.into_iter().all(whole)
        };
        let waited = self.inner.changed.wait_timeout_while(state, timeout, lacks);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Where the time went, stage by stage.
    #[must_use]
    pub fn report(&self) -> StageReport {
        let state = self.inner.lock();
        let mean = |sum: u64| sum as f64 / state.visits.max(1) as f64;
        StageReport {
            elapsed_seconds: state.began.map_or(0.0, |began| began.elapsed().as_secs_f64()),
            threads: self.decode_threads,
            stats: self.stats(),
            store: self.store.stats(),
            cache: self.cache.stats(),
            fetched_depth: mean(state.fetched_seen),
            ready_depth: mean(state.ready_seen),
        }
    }

    /// Has the report written to `file` as JSON when the loader ends.
    pub fn report_to(&mut self, file: PathBuf) {
        self.report_file = Some(file);
    }

    /// What was done since the start.
    #[must_use]
    pub fn stats(&self) -> LoaderStats {
        self.inner.counters.snapshot()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        let report = self.report();
        tracing::info!(verdict = report.verdict(), "the loader ends");
        if let Some(file) = &self.report_file {
            let folder = file.parent().map_or(Ok(()), std::fs::create_dir_all);
            let written = folder.and_then(|()| std::fs::write(file, format!("{:#}\n", report.to_json())));
            // A run does not fail for want of a report on its speed.
            if let Err(error) = written {
                tracing::warn!(file = %file.display(), %error, "the loader's report cannot be written");
            }
        }
        self.inner.lock().closed = true;
        // A read may have minutes of its budget left; nobody waits for its bytes any more.
        drop(self.reading.take());
        self.inner.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A panic was told by its alarm already.
            let _ = thread.join();
        }
    }
}

impl State {
    /// The batches of the next step, when all of them are there.
    fn take_ready(&mut self) -> Option<Vec<LaneBatch>> {
        let planned = self.plan > 0;
        if !planned || !self.lanes.is_empty() && self.ready.get(&self.take)?.len() != self.lanes.len() {
            return None;
        }
        let batches = self.ready.remove(&self.take).unwrap_or_default();
        self.take += 1;
        self.fetch = self.fetch.max(self.take);
        Some(batches.into_values().collect())
    }
}

/// Fetches step after step, as far ahead as allowed.
fn fetch_loop(inner: &Inner, mut fetcher: Fetcher) {
    loop {
        let mut state = inner.lock();
        while !state.closed
            && (state.lanes.is_empty()
                || state.failed.is_some()
                || state.fetch >= inner.total_steps
                || state.fetch >= state.take + inner.prefetch_steps)
        {
            state = inner.wait(state);
        }
        if state.closed {
            return;
        }
        let (plan, step, taken, lanes) = (state.plan, state.fetch, state.take, state.lanes.clone());
        fetcher.leave_out(state.left_out.clone());
        drop(state);
        // A step may be planned again after a failure, so the last one handed out keeps its windows.
        fetcher.forget(&lanes, taken.saturating_sub(1));
        match fetcher.step(&lanes, step) {
            Ok(raw) => {
                let mut state = inner.lock();
                if state.plan == plan {
                    state.raw.push_back((step, raw));
                    state.fetch = step + 1;
                }
            }
            Err(error) => {
                let mut state = inner.lock();
                if state.closed {
                    return;
                }
                tracing::warn!(%error, "loading failed");
                if state.plan == plan {
                    state.failed.get_or_insert((step, error));
                }
            }
        }
        inner.changed.notify_all();
    }
}

/// Has the rows of fetched steps decoded.
fn prepare_loop(inner: &Inner, preparer: &Preparer) {
    loop {
        let mut state = inner.lock();
        let (plan, left_out, step, mut lanes) = loop {
            if state.closed {
                return;
            }
            match state.raw.pop_front() {
                Some((step, lanes)) => break (state.plan, state.left_out.clone(), step, lanes),
                None => state = inner.wait(state),
            }
        };
        if let Some(done) = state.ready.get(&step) {
            lanes.retain(|raw| !done.contains_key(&raw.lane));
        }
        drop(state);
        let made = preparer.step(step, lanes);
        let mut state = inner.lock();
        match made {
            Ok(_) if !state.left_out.same(&left_out) => {}
            Ok(batches) => {
                for batch in batches {
                    // Made for an older plan perhaps, but what stands in it does not depend on plans.
                    if step >= state.take && state.lanes.binary_search(&batch.lane).is_ok() {
                        state.ready.entry(step).or_default().insert(batch.lane, batch);
                    }
                }
            }
            // A lane that was blocked for an older plan may have moved away since.
            Err(error) if state.plan == plan => {
                state.failed.get_or_insert((step, error));
            }
            Err(_) => {}
        }
        drop(state);
        inner.changed.notify_all();
    }
}
