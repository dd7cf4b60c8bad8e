//! Holds the process inside a phase, so that a test's harness can end it there, or spoils a number of a step. Always compiled
//! in; without its environment variable it costs one relaxed load.

use argosy_common::ids::WorkerId;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// `phase:step` or `phase:step:worker` holds; `nan:step:worker` makes a feature of the worker's first lane NaN, once;
/// `nan-lane:step:lane` one of the lane's, whoever computes it, as often as the step is made. With `+` behind the step:
/// at the first such place from there on, a lane in all of them.
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

/// Whose feature is spoilt.
#[derive(Clone, Copy, Debug)]
enum Spoilt {
    First,
    Lane(u32),
}

/// One place where the process stops and waits to be killed, or one number that it spoils.
#[derive(Debug, Default)]
pub struct Failpoint {
    armed: AtomicBool,
    spoilt: Option<Spoilt>,
    /// In all steps behind it as well.
    from_there_on: bool,
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
        let spoils = ["nan", "nan-lane"];
        let phase = fields
            .next()
            .filter(|p| PHASES.contains(p) || spoils.contains(p))
            .ok_or_else(wrong)?;
        let step = fields.next().ok_or_else(wrong)?;
        let from_there_on = step.ends_with('+') && phase != "nan";
        let step = step.strip_suffix('+').filter(|_| from_there_on).unwrap_or(step);
        let step: u64 = step.parse().map_err(|_| wrong())?;
        let third: Option<u32> = fields.next().map(|w| w.parse().map_err(|_| wrong())).transpose()?;
        if fields.next().is_some() || (spoils.contains(&phase) && third.is_none()) {
            return Err(wrong());
        }
        let spoilt = match (phase, third) {
            ("nan", _) => Some(Spoilt::First),
            ("nan-lane", Some(lane)) => Some(Spoilt::Lane(lane)),
            _ => None,
        };
        let armed = phase == "nan-lane" || third.is_none_or(|w| w == worker.0);
        if armed {
            tracing::warn!(text, %worker, "a failpoint is set: this process will stop or spoil a number");
        }
        let file = run_dir.join("failpoints").join(format!("{worker}-{phase}-{step}"));
        Ok(Self {
            armed: AtomicBool::new(armed),
            spoilt,
            from_there_on,
            phase: phase.to_owned(),
            step,
            file,
        })
    }

    /// Which of `lanes`, the own ones, is to have a feature that is NaN in this step.
    #[must_use]
    pub fn spoils(&self, step: u64, lanes: &[u32]) -> Option<u32> {
        if !self.armed.load(Ordering::Relaxed) {
            return None;
        }
        let now = step == self.step || (self.from_there_on && step > self.step);
        let lane = match self.spoilt.filter(|_| now)? {
            Spoilt::First => lanes
                .first()
                .copied()
                .filter(|_| self.armed.swap(false, Ordering::Relaxed)),
            Spoilt::Lane(lane) => lanes.contains(&lane).then_some(lane),
        };
        if let Some(lane) = lane {
            tracing::warn!(step, lane, "a failpoint spoils a feature");
        }
        lane
    }

    /// Stops here for good if this is the place, after saying so in a file.
    pub fn hit(&self, phase: &'static str, step: u64) {
        if self.armed.load(Ordering::Relaxed) {
            self.hold_if_here(phase, step);
        }
    }

    #[cold]
    fn hold_if_here(&self, phase: &str, step: u64) {
        let here = step == self.step || (self.from_there_on && step > self.step);
        if phase != self.phase || !here {
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
    fn failpoint_that_spoils_names_the_lane_of_its_step_and_worker() {
        let dir = std::path::Path::new("/nonexistent");
        let parse = |text| Failpoint::parse(text, WorkerId(2), dir).unwrap();
        let once = parse("nan:4:2");
        assert_eq!([3, 4, 4].map(|step| once.spoils(step, &[5, 6])), [None, Some(5), None]);
        assert_eq!(parse("nan:4:1").spoils(4, &[5, 6]), None);
        let lane = parse("nan-lane:4:6");
        assert_eq!(
            [4, 4, 5].map(|step| lane.spoils(step, &[5, 6])),
            [Some(6), Some(6), None]
        );
        assert_eq!(lane.spoils(4, &[5]), None);
        assert_eq!(parse("nan-lane:4+:6").spoils(9, &[6]), Some(6));
        lane.hit("nan-lane", 9);
    }

    #[test]
    fn failpoint_that_cannot_be_read_is_refused_with_its_form() {
        let dir = std::path::Path::new("/nonexistent");
        for text in [
            "",
            "load",
            "load:x",
            "nowhere:1",
            "load:1:w2",
            "load:1:2:3",
            "nan:1",
            "nan:1+:2",
            "nan-lane:2",
        ] {
            assert!(
                Failpoint::parse(text, WorkerId(1), dir)
                    .unwrap_err()
                    .contains("phase:step"),
                "{text}"
            );
        }
    }
}
