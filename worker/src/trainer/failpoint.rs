//! Holds the process inside a phase, so that a test's harness can end it there. Always compiled in; without its environment
//! variable it costs one relaxed load.

use argosy_common::ids::WorkerId;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// `phase:step` or `phase:step:worker`.
pub const FAILPOINT_VARIABLE: &str = "ARGOSY_FAILPOINT";

/// Phases that can be held.
pub const PHASES: [&str; 12] = [
    "load",
    "encode",
    "gather",
    "loss",
    "backward",
    "reduce",
    "sentinel",
    "apply",
    "log",
    "heal",
    "checkpoint",
    "upload",
];

/// One place where the process stops and waits to be killed.
#[derive(Debug, Default)]
pub struct Failpoint {
    armed: AtomicBool,
    phase: String,
    step: u64,
    file: PathBuf,
}

impl Failpoint {
    /// None.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// As `text` says, for `worker`; none if it names another worker.
    ///
    /// # Errors
    /// A sentence, when the text is not of the form `phase:step[:worker]`.
    pub fn parse(text: &str, worker: WorkerId, run_dir: &std::path::Path) -> Result<Self, String> {
        let wrong = || {
            format!("{FAILPOINT_VARIABLE}={text}: expected phase:step or phase:step:worker, phase one of {PHASES:?}")
        };
        let mut fields = text.split(':');
        let phase = fields.next().filter(|p| PHASES.contains(p)).ok_or_else(wrong)?;
        let step: u64 = fields.next().and_then(|s| s.parse().ok()).ok_or_else(wrong)?;
        let only: Option<u32> = fields.next().map(|w| w.parse().map_err(|_| wrong())).transpose()?;
        if fields.next().is_some() {
            return Err(wrong());
        }
        let armed = only.is_none_or(|w| w == worker.0);
        if armed {
            tracing::warn!(phase, step, %worker, "a failpoint is set: this process will stop there and wait");
        }
        let file = run_dir.join("failpoints").join(format!("{worker}-{phase}-{step}"));
        Ok(Self {
            armed: AtomicBool::new(armed),
            phase: phase.to_owned(),
            step,
            file,
        })
    }

    /// Stops here for good if this is the place, after saying so in a file.
    pub fn hit(&self, phase: &'static str, step: u64) {
        if self.armed.load(Ordering::Relaxed) {
            self.hold_if_here(phase, step);
        }
    }

    #[cold]
    fn hold_if_here(&self, phase: &str, step: u64) {
        if phase != self.phase || step != self.step {
            return;
        }
        let folder = self.file.parent().map_or(Ok(()), std::fs::create_dir_all);
        let written = folder.and_then(|()| std::fs::write(&self.file, format!("{}\n", std::process::id())));
        tracing::warn!(phase, step, ?written, file = %self.file.display(), "held at a failpoint");
        loop {
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn failpoint_of_another_worker_or_step_lets_pass() {
        let dir = std::path::Path::new("/nonexistent");
        let other = Failpoint::parse("load:3:9", WorkerId(1), dir).unwrap();
        other.hit("load", 3);
        let own = Failpoint::parse("load:3:1", WorkerId(1), dir).unwrap();
        own.hit("load", 2);
        own.hit("apply", 3);
        Failpoint::none().hit("load", 0);
    }

    #[test]
    fn failpoint_at_its_place_writes_its_file_and_holds() {
        let dir = tempfile::tempdir().unwrap();
        let point = Arc::new(Failpoint::parse("apply:4", WorkerId(2), dir.path()).unwrap());
        let theirs = point.clone();
        let held = std::thread::spawn(move || theirs.hit("apply", 4));
        let file = dir.path().join("failpoints/w2-apply-4");
        let started = std::time::Instant::now();
        while !std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')) {
            assert!(started.elapsed().as_secs() < 30, "no file");
            std::thread::yield_now();
        }
        held.thread().unpark();
        assert!(!held.is_finished(), "it never goes on by itself");
    }

    #[test]
    fn failpoint_that_cannot_be_read_is_refused_with_its_form() {
        let dir = std::path::Path::new("/nonexistent");
        for text in ["", "load", "load:x", "nowhere:1", "load:1:w2", "load:1:2:3"] {
            assert!(
                Failpoint::parse(text, WorkerId(1), dir)
                    .unwrap_err()
                    .contains("phase:step"),
                "{text}"
            );
        }
    }
}
