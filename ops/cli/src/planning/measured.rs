//! How fast a run's workers were, from its events.

use super::Speed;
use crate::fail::{Failure, Outcome};
use argosy_common::events::{RunEvent, StampedEvent};
use argosy_coordinator::EVENTS_FILE;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Images a second of one worker: valid rows over the time of their steps, times the members that shared them. Steps that
/// begin a generation are left out: recovering is not training.
pub(super) fn speed(run: &Path) -> Outcome<Option<Speed>> {
    let path = run.join(EVENTS_FILE);
    let file = match std::fs::File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|e| Failure::io("read", &path, &e))?,
    };
    let mut tally = Tally::default();
    for line in BufReader::new(file).lines() {
        let line = line.map_err(|e| Failure::io("read", &path, &e))?;
        // A line that a kill cut off tells nothing.
        if let Ok(event) = serde_json::from_str(&line) {
            tally.take(&event);
        }
    }
    Ok(tally.images_per_worker_second().map(|images_per_second| Speed {
        images_per_second,
        source: format!("measured in {}", run.display()),
    }))
}

#[derive(Default)]
struct Tally {
    members: u64,
    /// When the step before ended, and which it was.
    last: Option<(u64, u64)>,
    images: u64,
    worker_ms: u64,
}

impl Tally {
    fn take(&mut self, stamped: &StampedEvent) {
        match &stamped.event {
            // A new coordinator counts milliseconds anew.
            RunEvent::RunStarted { .. } => self.last = None,
            RunEvent::GenerationFormed { members, .. } => {
                self.members = members.len() as u64;
                self.last = None;
            }
            RunEvent::StepDone { report, .. } => {
                let step = report.name.step;
                if let Some((at_ms, before)) = self.last
                    && step == before + 1
                    && stamped.at_ms >= at_ms
                {
                    self.images += u64::from(report.valid);
                    self.worker_ms += (stamped.at_ms - at_ms) * self.members;
                }
                self.last = Some((stamped.at_ms, step));
            }
            _ => {}
        }
    }

    fn images_per_worker_second(&self) -> Option<f64> {
        (self.images > 0 && self.worker_ms > 0).then(|| self.images as f64 * 1e3 / self.worker_ms as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_of_a_worker_and_leaves_recoveries_out() {
        let dir = tempfile::tempdir().unwrap();
        let step = |at: u64, step: u64, generation: u64| {
            format!(
                "{{\"at_ms\":{at},\"event\":\"step_done\",\"worker\":1,\"report\":{{\"name\":{{\"step\":{step},\
                 \"applied_gen\":{generation}}},\"valid\":100,\"loss\":1.0}}}}"
            )
        };
        let formed = |members: &str| {
            format!(
                "{{\"at_ms\":0,\"event\":\"generation_formed\",\"generation\":1,\"members\":{members},\"base\":{{\"step\":0,\
                 \"applied_gen\":0}},\"healing\":[],\"reason\":\"r\"}}"
            )
        };
        // Two workers, 100 rows a second: 50 a worker. Then ten seconds of recovery, and one worker with 40 a second.
        let lines = [
            formed("[1,2]"),
            step(1_000, 1, 1),
            step(2_000, 2, 1),
            formed("[1]"),
            step(12_000, 3, 2),
            step(14_500, 4, 2),
            "{\"at_ms\":15000,\"eve".to_owned(),
        ];
        assert_eq!(speed(dir.path()).unwrap(), None);
        std::fs::write(dir.path().join(EVENTS_FILE), lines.join("\n")).unwrap();
        let speed = speed(dir.path()).unwrap().unwrap();
        assert!((speed.images_per_second - 200.0 / 4.5).abs() < 1e-9, "{speed:?}");
    }
}
