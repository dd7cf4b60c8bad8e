//! What a person sees of a run: a bar on a terminal, plain lines elsewhere, and a summary at the end.

use crate::out;
use argosy_common::events::{Outcome, RunEvent, StampedEvent, StepReport};
use argosy_common::exit::Exit;
use argosy_common::ids::{StateName, WorkerId};
use argosy_common::shape::RunShape;
use argosy_common::steplog::MaskReason;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::IsTerminal;
use std::time::Instant;

/// Plain lines come no more often than this.
const LINE_EVERY_MS: u64 = 5_000;
/// Speed is measured over the last so many milliseconds.
const SPEED_OVER_MS: u64 = 15_000;

/// The end of a run in numbers; `-o json` prints it.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Summary {
    pub(crate) version: u32,
    pub(crate) run: String,
    pub(crate) run_dir: String,
    /// `succeeded`, `interrupted` or `failed`.
    pub(crate) outcome: String,
    pub(crate) exit: u8,
    /// Why, when it did not succeed.
    pub(crate) message: Option<String>,
    /// From the start of this process to the beginning of its first step: the first generation is told to train.
    pub(crate) first_step_begins_seconds: Option<f64>,
    /// The same to that step's end.
    pub(crate) first_step_seconds: Option<f64>,
    pub(crate) steps: u64,
    pub(crate) total_steps: u64,
    pub(crate) loss_first: Option<f64>,
    pub(crate) loss_last: Option<f64>,
    /// Valid rows over the time between the first and the last applied step.
    pub(crate) images_per_second: f64,
    pub(crate) train_seconds: f64,
    pub(crate) workers_started: u64,
    pub(crate) workers_lost: u64,
    pub(crate) generations: u64,
    pub(crate) resumed: u64,
    pub(crate) checkpoints: u64,
    /// Rows that took no part in the steps of this process.
    pub(crate) masked: u64,
    /// The same by reason.
    pub(crate) masked_by_reason: BTreeMap<MaskReason, u64>,
    /// Key of the last committed manifest.
    pub(crate) checkpoint: Option<String>,
}

/// Follows a run's events.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
    bar: Option<ProgressBar>,
    shape: RunShape,
    summary: Summary,
    last: Option<StepReport>,
    workers: BTreeSet<WorkerId>,
    generation: u64,
    /// Times and valid rows of recent steps.
    recent: VecDeque<(u64, u32)>,
    /// Rows masked at each step that had any; a step done again replaces its entry.
    masked: BTreeMap<u64, BTreeMap<MaskReason, u32>>,
    first_step_ms: Option<u64>,
    last_step_ms: u64,
    images: u64,
    line_after_ms: u64,
    over: bool,
}

impl Progress {
    /// For a process that began with the run at `started`.
    pub(crate) fn new(shape: &RunShape, started: Instant) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| step_bar(shape.total_steps()));
        Self {
            started,
            bar,
            summary: Summary {
                version: 1,
                total_steps: shape.total_steps(),
                ..Summary::default()
            },
            shape: shape.clone(),
            last: None,
            workers: BTreeSet::new(),
            generation: 0,
            recent: VecDeque::new(),
            masked: BTreeMap::new(),
            first_step_ms: None,
            last_step_ms: 0,
            images: 0,
            line_after_ms: 0,
            over: false,
        }
    }

    /// Takes one event in and shows what is worth showing.
    pub(crate) fn take(&mut self, stamped: &StampedEvent) {
        if let RunEvent::StepDone { report, .. } = &stamped.event {
            self.step(stamped.at_ms, report);
            return;
        }
        self.count(&stamped.event);
        if let Some(line) = self.sentence(&stamped.event) {
            self.line(&line);
        }
        self.draw();
    }

    /// A line of chatter that does not tear the bar.
    pub(crate) fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| out::say(line)),
            None => out::say(line),
        }
    }

    pub(crate) fn finish(&mut self, outcome: &Outcome) -> Summary {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let (word, exit, message) = match outcome {
            Outcome::Succeeded { name, manifest } => {
                // A run that had ended before announces no steps.
                self.summary.steps = name.step;
                self.summary.checkpoint.clone_from(manifest);
                ("succeeded", Exit::Ok.code(), None)
            }
            Outcome::Interrupted { .. } => ("interrupted", Exit::Interrupted.code(), None),
            Outcome::Failed { exit, message } => ("failed", *exit, Some(message.clone())),
        };
        self.summary.outcome = word.into();
        self.summary.exit = exit;
        self.summary.message = message;
        self.summary.masked_by_reason.clear();
        for (reason, rows) in self.masked.values().flatten() {
            *self.summary.masked_by_reason.entry(*reason).or_default() += u64::from(*rows);
        }
        self.summary.masked = self.summary.masked_by_reason.values().sum();
        let span_ms = self
            .last_step_ms
            .saturating_sub(self.first_step_ms.unwrap_or(self.last_step_ms));
        self.summary.train_seconds = span_ms as f64 / 1e3;
        if span_ms > 0 {
            // The first step's rows were made before the clock started.
            self.summary.images_per_second = self.images as f64 * 1e3 / span_ms as f64;
        }
        self.summary.clone()
    }

    fn step(&mut self, at_ms: u64, report: &StepReport) {
        let step = report.name.step;
        if self.summary.first_step_seconds.is_none() {
            let seconds = self.started.elapsed().as_secs_f64();
            self.summary.first_step_seconds = Some(seconds);
            let begins = self.summary.first_step_begins_seconds.unwrap_or(seconds);
            self.line(&format!(
                "step {step} is the first: begun {begins:.1} s after the start, done after {seconds:.1} s"
            ));
        }
        self.summary.steps = step;
        if let Some(loss) = report.loss {
            self.summary.loss_first.get_or_insert(loss);
            self.summary.loss_last = Some(loss);
        }
        let before = step.saturating_sub(1);
        if report.masked.is_empty() {
            self.masked.remove(&before);
        } else {
            self.masked.insert(before, report.masked.clone());
        }
        if self.first_step_ms.is_some() {
            self.images += u64::from(report.valid);
        }
        self.first_step_ms.get_or_insert(at_ms);
        self.last_step_ms = at_ms;
        self.recent.push_back((at_ms, report.valid));
        while self.recent.len() > 2 && self.recent.front().is_some_and(|(t, _)| t + SPEED_OVER_MS < at_ms) {
            self.recent.pop_front();
        }
        self.last = Some(report.clone());
        let last_of_all = step == self.summary.total_steps;
        if self.bar.is_none() && (at_ms >= self.line_after_ms || last_of_all) {
            self.line_after_ms = at_ms + LINE_EVERY_MS;
            self.line(&format!("step {step}/{}  {}", self.summary.total_steps, self.numbers()));
        }
        self.draw();
    }

    fn draw(&self) {
        if let Some(bar) = &self.bar {
            bar.set_position(self.summary.steps);
            bar.set_message(self.numbers());
        }
    }

    /// Images a second over the recent steps; 0 before the second step.
    fn speed(&self) -> f64 {
        let (Some((first, _)), Some((last, _))) = (self.recent.front(), self.recent.back()) else {
            return 0.0;
        };
        let images: u64 = self.recent.iter().skip(1).map(|(_, rows)| u64::from(*rows)).sum();
        match last - first {
            0 => 0.0,
            ms => images as f64 * 1e3 / ms as f64,
        }
    }

    /// What matters most comes first: a narrow terminal cuts the end.
    fn numbers(&self) -> String {
        let speed = self.speed();
        let Some(report) = &self.last else {
            return format!("starting  {}", plural(self.workers.len(), "worker"));
        };
        let loss = report.loss.map_or_else(|| "skipped".to_owned(), |l| format!("{l:.3}"));
        let mut text = format!("loss {loss}");
        if speed > 0.0 {
            let done = self.shape.positions_before(self.summary.steps);
            let left = self.shape.total_positions.saturating_sub(done);
            text += &format!("  {speed:.0} images/s  ETA {}", out::duration(left as f64 / speed));
        }
        let workers = plural(self.workers.len(), "worker");
        let (lanes, generation) = (self.shape.lanes, self.generation);
        text + &format!("  {workers}  lr {:.1e}  {lanes} lanes  gen {generation}", report.lr)
    }

    fn count(&mut self, event: &RunEvent) {
        let summary = &mut self.summary;
        match event {
            RunEvent::RunStarted { run, .. } => summary.run.clone_from(run),
            RunEvent::WorkerSpawned { .. } => summary.workers_started += 1,
            RunEvent::WorkerReady { worker } => {
                self.workers.insert(*worker);
            }
            RunEvent::WorkerLost { worker, .. } => {
                self.workers.remove(worker);
                summary.workers_lost += 1;
            }
            RunEvent::GenerationFormed { generation, .. } => {
                self.generation = generation.0;
                summary.generations += 1;
            }
            RunEvent::Resumed { name, manifest } => {
                summary.resumed += 1;
                summary.steps = name.step;
                if manifest.is_some() {
                    summary.checkpoint.clone_from(manifest);
                }
            }
            RunEvent::GenerationActivated { .. } => {
                let seconds = self.started.elapsed().as_secs_f64();
                summary.first_step_begins_seconds.get_or_insert(seconds);
            }
            RunEvent::CheckpointCommitted { key, .. } => {
                summary.checkpoints += 1;
                summary.checkpoint = Some(key.clone());
            }
            RunEvent::RunFinished { .. } => self.over = true,
            _ => {}
        }
    }

    /// One line for an event that a person wants to know of.
    fn sentence(&self, event: &RunEvent) -> Option<String> {
        let warn = |text: &str| out::style(text, out::YELLOW);
        Some(match event {
            RunEvent::WorkerSpawned { worker, pid } => format!("{worker} started as process {pid}"),
            RunEvent::WorkerReady { worker } => format!("{worker} is ready"),
            RunEvent::WorkerLost { worker, reason } => format!("{}: {reason}", warn(&format!("{worker} lost"))),
            RunEvent::StatesDiffered {
                name,
                healing,
                cordoned,
            } => states_differed(*name, healing, cordoned),
            RunEvent::WorkerExited { .. } if self.over => return None,
            RunEvent::WorkerExited {
                worker, code, signal, ..
            } => match (code, signal) {
                (_, Some(signal)) => format!("{worker} was ended by signal {}", signal_name(*signal)),
                (Some(code), None) => format!("{worker} exited with code {code}; see logs/{worker}.log"),
                (None, None) => format!("{worker} is gone"),
            },
            RunEvent::GenerationFormed {
                generation,
                members,
                base,
                healing,
                reason,
            } => {
                let list = |ids: &[WorkerId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                let heal = match healing.as_slice() {
                    [] => String::new(),
                    ids => format!(", {} heals", list(ids)),
                };
                let at = base.step;
                format!(
                    "generation {}: {} from step {at}{heal} ({reason})",
                    generation.0,
                    list(members)
                )
            }
            RunEvent::LanesMoving { reason, lanes, .. } => format!("{lanes} lanes will move: {reason}"),
            RunEvent::WorkerNotice { worker, message } => warn(&format!("{worker}: {message}")),
            RunEvent::WorkerDraining { worker, .. } => format!("{worker} is asked to leave and drains"),
            RunEvent::Blamed {
                worker: Some(worker),
                reason,
            } => warn(&format!("{worker} goes: {reason}")),
            RunEvent::Blamed { worker: None, reason } => warn(reason),
            RunEvent::StoreFilledUp { reason } => warn(reason),
            RunEvent::StoreHasRoom => "the store of the run's records has room again".to_owned(),
            RunEvent::Quarantined { entry } => warn(&format!(
                "rows {}..{} of shard {} (source {}) are given up from step {} on: {}",
                entry.rows.from, entry.rows.until, entry.rows.shard, entry.rows.source, entry.holds_from, entry.reason
            )),
            RunEvent::Waiting { have, need } => warn(&format!("waiting: {have} of {need} workers are ready")),
            RunEvent::Resumed { name, manifest } => match manifest {
                Some(key) => format!("going on from step {} of checkpoint {key}", name.step),
                None => "going on from the seed".to_owned(),
            },
            RunEvent::CheckpointCommitted { key, name } => format!("checkpoint at step {}: {key}", name.step),
            RunEvent::CheckpointAbandoned { attempt, reason } => {
                warn(&format!("checkpoint {attempt} given up: {reason}"))
            }
            RunEvent::CheckpointRejected { key, reason } => {
                warn(&format!("checkpoint {key} is damaged and passed over: {reason}"))
            }
            // Comes from beside the run, with words of its own.
            RunEvent::EvaluationDone { .. } | RunEvent::EvaluationFailed { .. } => return None,
            RunEvent::RunStarted { .. }
            | RunEvent::GenerationActivated { .. }
            | RunEvent::GenerationClosing { .. }
            | RunEvent::StepDone { .. }
            | RunEvent::RunFinished { .. } => return None,
        })
    }
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn signal_name(signal: i32) -> String {
    nix::sys::signal::Signal::try_from(signal).map_or_else(|_| signal.to_string(), |s| format!("{signal} ({s})"))
}

fn step_bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("[{bar:20}] {pos}/{len}  {wide_msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

impl Summary {
    /// Two or three lines for a person.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{}: step {} of {}", self.outcome, self.steps, self.total_steps);
        // A run that had ended before, or that was stopped before its first step, has no numbers.
        if let (Some(first), Some(last)) = (self.loss_first, self.loss_last) {
            let (speed, time) = (self.images_per_second, out::duration(self.train_seconds));
            text += &format!(", loss {first:.4} to {last:.4}, {speed:.0} images/s in {time}");
        }
        text.push('\n');
        text += &format!(
            "workers: {} started, {} lost; generations: {}; checkpoints: {}; rows masked: {}\n",
            self.workers_started, self.workers_lost, self.generations, self.checkpoints, self.masked
        );
        if !self.masked_by_reason.is_empty() {
            let counts = self.masked_by_reason.iter();
            let words: Vec<String> = counts.map(|(reason, rows)| format!("{reason} {rows}")).collect();
            text.pop();
            text += &format!(" ({})\n", words.join(", "));
        }
        text
    }
}

fn states_differed(name: StateName, healing: &[WorkerId], cordoned: &[WorkerId]) -> String {
    let list = |workers: &[WorkerId]| workers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut line = out::style(&format!("states differ at step {}", name.step), out::YELLOW);
    if !healing.is_empty() {
        line += &format!("; {} heal", list(healing));
    }
    if !cordoned.is_empty() {
        line += &format!("; {} for the second time, kept out", list(cordoned));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use argosy_common::ids::{Generation, StateName};
    use argosy_common::shape::SourceShape;

    fn shape() -> RunShape {
        RunShape {
            seed: 0,
            sources: vec![SourceShape {
                name: "s".into(),
                shard_rows: vec![30],
            }],
            batch: 8,
            lanes: 4,
            window_factor: 1,
            total_positions: 30,
        }
    }

    fn done(at_ms: u64, step: u64, valid: u32) -> StampedEvent {
        let masked = if step == 1 {
            BTreeMap::from([(MaskReason::Caption, 1)])
        } else {
            BTreeMap::new()
        };
        let name = StateName {
            step,
            applied_gen: Generation(1),
        };
        let report = StepReport {
            name,
            valid,
            masked,
            loss: Some(4.0 - step as f64),
            ..StepReport::default()
        };
        StampedEvent {
            at_ms,
            event: RunEvent::StepDone {
                report,
                worker: WorkerId(1),
            },
        }
    }

    #[test]
    fn summary_counts_masked_rows_once_and_not_those_beyond_the_end() {
        let mut progress = Progress::new(&shape(), Instant::now());
        for event in [
            done(1000, 1, 7),
            done(2000, 2, 8),
            done(2500, 1, 7),
            done(3000, 2, 8),
            done(4000, 3, 8),
            done(5000, 4, 6),
        ] {
            progress.take(&event);
        }
        let name = StateName::INITIAL;
        let summary = progress.finish(&Outcome::Interrupted { name });
        assert_eq!((summary.masked, summary.steps, summary.exit), (1, 4, 130));
        assert!(
            summary.text().contains("rows masked: 1 (caption 1)"),
            "{}",
            summary.text()
        );
        assert_eq!((summary.loss_first, summary.loss_last), (Some(3.0), Some(0.0)));
        assert!(
            (summary.images_per_second - 37.0 / 4.0).abs() < 1e-9,
            "{}",
            summary.images_per_second
        );
    }
}
