//! Zero-shot evaluation of committed checkpoints beside the training: one process at a time, of the lowest priority, which
//! has nothing but the checkpoint's files. No step waits for it.

mod process;
mod results;

use crate::fail::{Failure, Outcome};
use crate::job::LoadedJob;
use argosy_common::config::EvaluationConfig;
use argosy_common::events::{Outcome as RunOutcome, RunEvent, StampedEvent};
use argosy_common::exit::Exit;
use argosy_common::ids::StateName;
use argosy_common::shape::RunShape;
use results::Results;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;
use tokio::sync::mpsc;

/// Checkpoints that may wait. Beyond it evaluation is slower than its cadence, and the oldest that waits is passed over.
const WAITING_MAX: usize = 16;

/// What every evaluation of a run has in common.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) worker: PathBuf,
    pub(crate) run_dir: PathBuf,
    /// Where checkpoints lie: a folder or an address.
    pub(crate) checkpoints: String,
    /// Relative paths of the sets start here.
    pub(crate) base: PathBuf,
    pub(crate) config: EvaluationConfig,
    /// Newest checkpoints that are kept: older ones cannot be read any more. 0: all.
    pub(crate) keep_last: u32,
    pub(crate) shape: RunShape,
    /// Positions of one epoch.
    pub(crate) epoch_positions: u64,
}

/// A checkpoint to be evaluated.
#[derive(Clone, Debug, PartialEq)]
struct Due {
    key: String,
    name: StateName,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Due>,
    closed: bool,
}

type Shared = Arc<(Mutex<Queue>, Condvar)>;

/// Follows a run's events and evaluates.
#[derive(Debug)]
pub(crate) struct Evaluator {
    queue: Shared,
    done: mpsc::UnboundedReceiver<StampedEvent>,
    /// To be handed to the thread once the run's clock is known.
    parts: Option<(Setup, Results, mpsc::UnboundedSender<StampedEvent>)>,
    every: u64,
    shape: RunShape,
    /// Steps that are evaluated or wait for it.
    steps: Vec<u64>,
}

/// Refuses files that are named and not there, before anything starts.
pub(crate) fn check(loaded: &LoadedJob) -> Outcome<()> {
    for set in &loaded.job.evaluation.sets {
        for (key, file) in [("classes", &set.classes), ("templates", &set.templates)] {
            let path = loaded.base.join(file);
            if !path.is_file() {
                let message = format!("evaluation set `{}`: `{key}` {} is no file", set.name, path.display());
                return Err(Failure::new(Exit::NotFound, message));
            }
        }
    }
    Ok(())
}

impl Evaluator {
    /// Nothing, when the job has no sets. What earlier processes of the run have evaluated is not evaluated again.
    pub(crate) fn start(setup: Setup) -> Outcome<Option<Self>> {
        if setup.config.sets.is_empty() {
            return Ok(None);
        }
        let results = Results::open(&setup.run_dir, setup.epoch_positions)?;
        let committed = results.committed(&setup.checkpoints);
        let (sender, done) = mpsc::unbounded_channel();
        let mut evaluator = Self {
            queue: Shared::default(),
            done,
            every: setup.config.every_samples,
            shape: setup.shape.clone(),
            steps: results.steps().to_vec(),
            parts: Some((setup, results, sender)),
        };
        // What waited when an earlier process was stopped.
        for (key, name) in committed {
            evaluator.consider(&key, name, false);
        }
        Ok(Some(evaluator))
    }

    /// Queues the checkpoint that an event tells of, if it is due.
    pub(crate) fn take(&mut self, stamped: &StampedEvent) {
        if let Some((setup, results, sender)) = self.parts.take() {
            self.spawn(setup, results, sender, stamped.at_ms);
        }
        match &stamped.event {
            RunEvent::CheckpointCommitted { key, name } => self.consider(key, *name, false),
            RunEvent::Resumed {
                name,
                manifest: Some(key),
            } => self.consider(key, *name, false),
            RunEvent::RunFinished { outcome } => {
                if let RunOutcome::Succeeded {
                    name,
                    manifest: Some(key),
                } = outcome
                {
                    self.consider(key, *name, true);
                }
                self.close();
            }
            _ => {}
        }
    }

    /// What has been evaluated since the last call; does not wait.
    pub(crate) fn finished(&mut self) -> Option<StampedEvent> {
        self.done.try_recv().ok()
    }

    /// The next one; `None` when all are evaluated.
    pub(crate) async fn next(&mut self) -> Option<StampedEvent> {
        self.done.recv().await
    }

    /// Checkpoints that wait or are under way.
    pub(crate) fn left(&self) -> usize {
        self.queue.0.lock().map_or(0, |q| q.waiting.len())
    }

    /// Nothing more will come.
    pub(crate) fn close(&mut self) {
        // A run that ended before its first event has no thread to close the channel.
        self.parts = None;
        if let Ok(mut queue) = self.queue.0.lock() {
            queue.closed = true;
        }
        self.queue.1.notify_all();
    }

    fn consider(&mut self, key: &str, name: StateName, last: bool) {
        if self.steps.contains(&name.step) || !(last || self.is_due(name.step)) {
            return;
        }
        self.steps.push(name.step);
        if let Ok(mut queue) = self.queue.0.lock() {
            queue.waiting.push_back(Due {
                key: key.to_owned(),
                name,
            });
        }
        self.queue.1.notify_all();
    }

    /// Has a multiple of the cadence been passed since the checkpoint evaluated before?
    fn is_due(&self, step: u64) -> bool {
        let before = self.steps.iter().copied().filter(|s| *s < step).max().unwrap_or(0);
        match self.every {
            0 => true,
            every => self.shape.positions_before(step) / every > self.shape.positions_before(before) / every,
        }
    }

    fn spawn(&self, setup: Setup, results: Results, sender: mpsc::UnboundedSender<StampedEvent>, at_ms: u64) {
        let clock = Clock {
            at_ms,
            read: Instant::now(),
        };
        let queue = Arc::clone(&self.queue);
        // Without the thread the channel closes and nothing is evaluated; the training does not suffer for it.
        let _ = std::thread::Builder::new()
            .name("evaluate".into())
            .spawn(move || work(&setup, results, &queue, &sender, &clock));
    }
}

/// The run's clock, read once.
#[derive(Debug)]
struct Clock {
    at_ms: u64,
    read: Instant,
}

impl Clock {
    fn now_ms(&self) -> u64 {
        self.at_ms + self.read.elapsed().as_millis() as u64
    }
}

/// Evaluates checkpoint after checkpoint until the queue is closed and empty.
fn work(
    setup: &Setup,
    mut results: Results,
    queue: &Shared,
    sender: &mpsc::UnboundedSender<StampedEvent>,
    clock: &Clock,
) {
    let waiting_max = match setup.keep_last as usize {
        0 => WAITING_MAX,
        kept => kept.min(WAITING_MAX),
    };
    while let Some((due, passed_over)) = wait(queue, waiting_max) {
        for old in passed_over {
            for set in &setup.config.sets {
                let reason =
                    format!("{waiting_max} later checkpoints wait already: evaluation is slower than its cadence");
                let event = failed(&set.name, &old, reason);
                tell(&mut results, sender, clock, event);
            }
        }
        let mut done = Vec::new();
        for set in &setup.config.sets {
            let began = Instant::now();
            let event = match process::evaluate(setup, set, &due.key) {
                Ok(scores) => RunEvent::EvaluationDone {
                    set: set.name.clone(),
                    key: due.key.clone(),
                    name: due.name,
                    top1: scores.top1,
                    top5: scores.top5,
                    mean_per_class: scores.mean_per_class,
                    chance: scores.chance,
                    samples: scores.samples,
                    seconds: began.elapsed().as_secs_f64(),
                },
                Err(reason) => failed(&set.name, &due, reason),
            };
            done.push(event.clone());
            tell(&mut results, sender, clock, event);
        }
        let positions = setup.shape.positions_before(due.name.step);
        if let Err(e) = results.line(due.name.step, positions, &done) {
            tracing::warn!("results.jsonl: {e}");
        }
        if let Ok(mut queue) = queue.0.lock() {
            queue.waiting.pop_front();
        }
    }
}

fn failed(set: &str, due: &Due, reason: String) -> RunEvent {
    RunEvent::EvaluationFailed {
        set: set.to_owned(),
        key: due.key.clone(),
        name: due.name,
        reason,
    }
}

/// The next checkpoint, which stays in the queue while it is under way, and those that are passed over for `waiting_max`
/// later ones.
fn wait(queue: &Shared, waiting_max: usize) -> Option<(Due, Vec<Due>)> {
    let (lock, changed) = &**queue;
    let mut queue = lock.lock().ok()?;
    while queue.waiting.is_empty() {
        if queue.closed {
            return None;
        }
        queue = changed.wait(queue).ok()?;
    }
    let over = queue.waiting.len().saturating_sub(waiting_max);
    let passed_over = queue.waiting.drain(..over).collect();
    queue.waiting.front().cloned().map(|due| (due, passed_over))
}

fn tell(results: &mut Results, sender: &mpsc::UnboundedSender<StampedEvent>, clock: &Clock, event: RunEvent) {
    let stamped = StampedEvent {
        at_ms: clock.now_ms(),
        event,
    };
    if let Err(e) = results.event(&stamped) {
        tracing::warn!("events.jsonl: {e}");
    }
    let _ = sender.send(stamped); // nobody listens: the process ends
}

/// One line for a person.
pub(crate) fn sentence(event: &RunEvent) -> Option<String> {
    Some(match event {
        RunEvent::EvaluationDone {
            set,
            name,
            top1,
            top5,
            samples,
            seconds,
            ..
        } => format!(
            "evaluated step {} on {set}: top-1 {:.2} %, top-5 {:.2} % of {samples} in {seconds:.1} s",
            name.step,
            top1 * 100.0,
            top5 * 100.0
        ),
        RunEvent::EvaluationFailed { set, name, reason, .. } => {
            format!("step {} was not evaluated on {set}: {reason}", name.step)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
