//! Scalars of a run for TensorBoard, under the tags of open_clip_train 3.3.0, so that its runs and ours lie over each other.

mod record;

use argosy_common::events::{RunEvent, StampedEvent, StepReport};
use record::{What, record};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// A run's file holds no more steps than about this: evenly spaced ones, if it has more.
const STEPS_MAX: u64 = 10_000;

/// Writes one file of events, record by record, so that TensorBoard sees them while the run goes on.
#[derive(Debug)]
pub(crate) struct Writer {
    file: File,
    /// Every so many steps are written.
    stride: u64,
    workers: usize,
    /// Milliseconds of the run's beginning, since 1970.
    unix_ms: u64,
    /// When the step before was told of, on the run's clock.
    before_ms: Option<u64>,
}

impl Writer {
    /// A new file in `folder`, named so that TensorBoard takes it for events, and unlike those before it.
    pub(crate) fn create(folder: &Path, unix_seconds: u64) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let name = |n: u32| format!("events.out.tfevents.{unix_seconds}.argosy.{}.{n}", std::process::id());
        let mut options = File::options();
        options.append(true).create_new(true);
        let mut n = 0;
        let mut file = loop {
            match options.open(folder.join(name(n))) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => n += 1,
                opened => break opened?,
            }
        };
        file.write_all(&record(unix_seconds as f64, 0, What::Version))?;
        Ok(Self {
            file,
            stride: 1,
            workers: 1,
            unix_ms: unix_seconds * 1000,
            before_ms: None,
        })
    }

    /// Writes what an event has to say, if anything.
    pub(crate) fn take(&mut self, stamped: &StampedEvent) -> io::Result<()> {
        let at_ms = stamped.at_ms;
        match &stamped.event {
            RunEvent::RunStarted {
                total_steps, unix_ms, ..
            } => {
                self.stride = total_steps.div_ceil(STEPS_MAX).max(1);
                self.unix_ms = *unix_ms;
                Ok(())
            }
            // Steps behind the one resumed from are trained again.
            RunEvent::Resumed { name, .. } => {
                let restart = record(self.wall(at_ms), name.step + 1, What::Restart);
                self.file.write_all(&restart)
            }
            RunEvent::GenerationFormed { members, .. } => {
                self.workers = members.len().max(1);
                Ok(())
            }
            RunEvent::StepDone { report, .. } => self.step(at_ms, report),
            RunEvent::EvaluationDone {
                set, name, top1, top5, ..
            } => {
                let tags = [
                    (format!("val/{set}-zeroshot-val-top1"), *top1),
                    (format!("val/{set}-zeroshot-val-top5"), *top5),
                ];
                self.scalars(at_ms, name.step, &tags)
            }
            _ => Ok(()),
        }
    }

    /// Names from `train_one_epoch` in open_clip_train/train.py; times in seconds.
    fn step(&mut self, at_ms: u64, report: &StepReport) -> io::Result<()> {
        let before = self.before_ms.replace(at_ms);
        // The first step has nobody to be measured against but itself.
        let batch_time = before.map_or(f64::from(report.step_ms()), |b| at_ms.saturating_sub(b) as f64) / 1e3;
        if !report.name.step.is_multiple_of(self.stride) {
            return Ok(());
        }
        let data_time = f64::from(report.phase_ms.get("load").copied().unwrap_or(0.0)) / 1e3;
        let per_second = f64::from(report.valid) / batch_time.max(1e-3);
        let mut tags = vec![
            ("train/data_time".to_owned(), data_time),
            ("train/batch_time".to_owned(), batch_time),
            ("train/samples_per_second".to_owned(), per_second),
            (
                "train/samples_per_second_per_gpu".to_owned(),
                per_second / self.workers as f64,
            ),
            ("train/scale".to_owned(), report.logit_scale),
            ("train/lr".to_owned(), report.lr),
        ];
        if let Some(loss) = report.loss {
            tags.push(("train/contrastive_loss".to_owned(), loss));
            tags.push(("train/loss".to_owned(), loss));
        }
        self.scalars(at_ms, report.name.step, &tags)
    }

    fn scalars(&mut self, at_ms: u64, step: u64, tags: &[(String, f64)]) -> io::Result<()> {
        let wall = self.wall(at_ms);
        let scalar = |(tag, value): &(String, f64)| {
            let value = *value as f32;
            record(wall, step, What::Scalar { tag, value })
        };
        // One write, so that a reader rarely meets half of it; it would wait for the rest.
        let bytes: Vec<u8> = tags.iter().flat_map(scalar).collect();
        self.file.write_all(&bytes)
    }

    fn wall(&self, at_ms: u64) -> f64 {
        (self.unix_ms + at_ms) as f64 / 1e3
    }
}

#[cfg(test)]
mod tests;
