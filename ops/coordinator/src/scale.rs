//! An operator's command that is run while workers are missing: what it does about it is its own business.

use argosy_common::events::RunEvent;
use argosy_common::ids::WorkerId;
use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;

/// A command that takes longer is killed.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// Who is here, and when the command was last run.
#[derive(Debug)]
pub(crate) struct Scale {
    command: String,
    run: String,
    target: usize,
    every: Duration,
    here: BTreeSet<WorkerId>,
    asked: Option<Instant>,
    over: bool,
}

impl Scale {
    pub(crate) fn new(command: String, run: String, target: u32, every: Duration) -> Self {
        Self {
            command,
            run,
            target: target as usize,
            every,
            here: BTreeSet::new(),
            asked: None,
            over: false,
        }
    }

    /// Takes note of who comes and goes.
    pub(crate) fn note(&mut self, event: &RunEvent) {
        match event {
            RunEvent::RunStarted { .. } => {
                self.here.clear();
                self.over = false;
            }
            RunEvent::WorkerReady { worker } => {
                self.here.insert(*worker);
            }
            RunEvent::WorkerLost { worker, .. } | RunEvent::WorkerExited { worker, .. } => {
                self.here.remove(worker);
            }
            RunEvent::RunFinished { .. } => self.over = true,
            _ => {}
        }
    }

    /// How many are missing, if the command is due.
    fn due(&mut self, now: Instant) -> Option<usize> {
        let missing = self.target.saturating_sub(self.here.len());
        let waits = self.asked.is_some_and(|asked| now < asked + self.every);
        if missing == 0 || waits || self.over {
            return None;
        }
        self.asked = Some(now);
        Some(missing)
    }

    /// Runs the command if it is due, and waits for its end.
    pub(crate) async fn ask(&mut self, now: Instant) {
        let Some(missing) = self.due(now) else { return };
        tracing::info!(missing, target = self.target, "asking for workers");
        let started = Command::new("sh")
            .arg("-c")
            .arg(&self.command)
            .env("ARGOSY_RUN", &self.run)
            .env("ARGOSY_WORKERS_HERE", self.here.len().to_string())
            .env("ARGOSY_WORKERS_TARGET", self.target.to_string())
            .env("ARGOSY_WORKERS_WANTED", missing.to_string())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let ended = match started {
            Ok(mut child) => tokio::time::timeout(COMMAND_MAX, child.wait()).await,
            Err(error) => {
                tracing::warn!(%error, "the command for workers could not be started");
                return;
            }
        };
        match ended {
            Ok(Ok(status)) if status.success() => {}
            Ok(Ok(status)) => tracing::warn!(%status, "the command for workers failed"),
            Ok(Err(error)) => tracing::warn!(%error, "the command for workers is lost"),
            Err(_) => tracing::warn!("the command for workers took too long and was killed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use argosy_common::events::Outcome;
    use argosy_common::ids::StateName;

    fn ready(worker: u32) -> RunEvent {
        RunEvent::WorkerReady {
            worker: WorkerId(worker),
        }
    }

    #[tokio::test]
    async fn command_is_told_how_many_are_missing_and_is_run_only_while_some_are() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let words = "$ARGOSY_RUN $ARGOSY_WORKERS_HERE $ARGOSY_WORKERS_TARGET $ARGOSY_WORKERS_WANTED";
        let command = format!("echo {words} >> {}", out.display());
        let mut scale = Scale::new(command, "r-1".into(), 3, Duration::from_secs(60));
        let said = || std::fs::read_to_string(&out).unwrap_or_default();
        let now = Instant::now();
        scale.note(&ready(1));
        scale.ask(now).await;
        assert_eq!(said(), "r-1 1 3 2\n");
        scale.ask(now + Duration::from_secs(59)).await;
        assert_eq!(said(), "r-1 1 3 2\n", "it has time to do something");
        for worker in [2, 3] {
            scale.note(&ready(worker));
        }
        scale.ask(now + Duration::from_secs(61)).await;
        assert_eq!(said(), "r-1 1 3 2\n", "nobody is missing");
        scale.note(&RunEvent::WorkerLost {
            worker: WorkerId(2),
            reason: "x".into(),
        });
        scale.ask(now + Duration::from_secs(62)).await;
        assert_eq!(said(), "r-1 1 3 2\nr-1 2 3 1\n");
        scale.note(&RunEvent::RunFinished {
            outcome: Outcome::Interrupted {
                name: StateName::INITIAL,
            },
        });
        scale.ask(now + Duration::from_secs(999)).await;
        assert_eq!(said().lines().count(), 2, "the run is over");
    }

    #[tokio::test]
    async fn command_that_fails_or_does_not_exist_disturbs_nobody() {
        for command in ["exit 3", "/no/such/program"] {
            let mut scale = Scale::new(command.into(), "r".into(), 1, Duration::from_secs(1));
            scale.ask(Instant::now()).await;
        }
    }
}
