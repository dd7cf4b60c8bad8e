//! What goes on beside the training: scalars for TensorBoard, and evaluation of committed checkpoints.

use crate::evaluate::{self, Evaluator, Setup};
use crate::fail::{Failure, Outcome};
use crate::{out, tensorboard};
use argosy_common::events::{RunEvent, StampedEvent};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Event files for TensorBoard lie here in a run's folder.
pub(crate) const TENSORBOARD_DIR: &str = "tensorboard";

/// Follows a run's events.
#[derive(Debug)]
pub(crate) struct Beside {
    evaluator: Option<Evaluator>,
    tensorboard: Option<tensorboard::Writer>,
}

impl Beside {
    pub(crate) fn start(setup: Setup) -> Outcome<Self> {
        let folder = setup.run_dir.join(TENSORBOARD_DIR);
        Ok(Self {
            evaluator: Evaluator::start(setup)?,
            tensorboard: Some(writer(&folder)?),
        })
    }

    /// Takes one event in; lines that a person wants to read.
    pub(crate) fn take(&mut self, event: &StampedEvent) -> Vec<String> {
        let mut lines = self.write(event);
        let mut finished = Vec::new();
        if let Some(evaluator) = &mut self.evaluator {
            evaluator.take(event);
            finished.extend(std::iter::from_fn(|| evaluator.finished()));
        }
        for event in finished {
            lines.extend(self.result(&event));
        }
        lines
    }

    /// The next result after the run's end; `None` when all checkpoints are evaluated.
    pub(crate) async fn next(&mut self) -> Option<Vec<String>> {
        let event = self.evaluator.as_mut()?.next().await?;
        Some(self.result(&event))
    }

    /// Nothing more will be committed. How many checkpoints are still to be evaluated.
    pub(crate) fn close(&mut self) -> usize {
        self.evaluator.as_mut().map_or(0, |evaluator| {
            evaluator.close();
            evaluator.left()
        })
    }

    fn result(&mut self, event: &StampedEvent) -> Vec<String> {
        let mut lines = self.write(event);
        let warn = matches!(event.event, RunEvent::EvaluationFailed { .. });
        lines.extend(
            evaluate::sentence(&event.event).map(|line| if warn { out::style(&line, out::YELLOW) } else { line }),
        );
        lines
    }

    /// A disk that is full ends the curves, not the run.
    fn write(&mut self, event: &StampedEvent) -> Vec<String> {
        let Some(writer) = &mut self.tensorboard else {
            return Vec::new();
        };
        match writer.take(event) {
            Ok(()) => Vec::new(),
            Err(e) => {
                self.tensorboard = None;
                vec![out::style(
                    &format!("no more scalars for TensorBoard: {e}"),
                    out::YELLOW,
                )]
            }
        }
    }
}

fn writer(folder: &Path) -> Outcome<tensorboard::Writer> {
    // A clock before 1970 gives a file of an odd name, no more.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    tensorboard::Writer::create(folder, now).map_err(|e| Failure::io("write", folder, &e))
}
