//! Starts the run, follows its events, kills a worker at a third of the steps and sees it replaced.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::Stage;

/// A committed checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoint {
    pub(crate) key: String,
    pub(crate) step: u64,
    /// Seconds since the run's coordinator started.
    pub(crate) seconds: f64,
}

/// What happened, told from the event stream.
#[derive(Debug, Default)]
pub(crate) struct Story {
    pub(crate) total_steps: u64,
    /// Processes of workers by their number, in the order of their start.
    pub(crate) pids: BTreeMap<u64, i64>,
    members: Vec<u64>,
    /// Workers that were ever members of a generation, with the first step of the first one.
    joined: BTreeMap<u64, u64>,
    pub(crate) victim: Option<(u64, i64)>,
    /// How the victim ended, as `waitpid` tells it.
    pub(crate) victim_status: Option<i64>,
    pub(crate) workers_lost: u64,
    pub(crate) checkpoints: Vec<Checkpoint>,
    steps_done: u64,
    /// The run's own summary.
    pub(crate) summary: Value,
}

/// Trains to the end.
pub(crate) fn train(stage: &Stage, job: &str) -> Result<Story> {
    let mut command = stage.argosy();
    command
        .arg("run")
        .arg(stage.source.join(job))
        .arg("--run")
        .arg(&stage.run);
    command.args(["--workers", "2", "-o", "json"]).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start argosy")?;
    let followed = follow(stage.run.join("events.jsonl"), &mut child);
    if followed.is_err() {
        // Its workers die with it.
        let _ = child.kill();
    }
    let output = child.wait_with_output().context("cannot wait for argosy")?;
    let mut story = followed?;
    ensure!(output.status.success(), "the run ended with {}", output.status);
    story.summary = serde_json::from_slice(&output.stdout).context("the run gave no summary")?;
    let (worker, pid) = story.victim.context("the run ended before a worker could be killed")?;
    ensure!(
        story.victim_status == Some(9),
        "w{worker} (process {pid}) was not reaped after SIGKILL: {:?}",
        story.victim_status
    );
    ensure!(
        story.rejoined() > 0,
        "no new worker has joined after w{worker} was killed"
    );
    Ok(story)
}

/// Reads events until the process has ended; kills one worker on the way.
fn follow(path: PathBuf, child: &mut Child) -> Result<Story> {
    let mut story = Story::default();
    let (mut offset, mut tail) = (0, String::new());
    loop {
        // Asked before reading: what is written up to the end is then read after it.
        let ended = child.try_wait().context("cannot wait for argosy")?.is_some();
        read_more(&path, &mut offset, &mut tail)?;
        while let Some(end) = tail.find('\n') {
            let line: String = tail.drain(..=end).collect();
            story.take(&serde_json::from_str(&line).with_context(|| format!("event `{line}`"))?);
        }
        if story.victim.is_none() && story.total_steps > 0 && story.steps_done * 3 >= story.total_steps {
            story.kill_one()?;
        }
        if ended {
            return Ok(story);
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn read_more(path: &PathBuf, offset: &mut u64, tail: &mut String) -> Result<()> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        file => file.with_context(|| format!("cannot read {}", path.display()))?,
    };
    file.seek(SeekFrom::Start(*offset))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    // A character may be cut where the writer stands: whole lines only.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    *offset += whole as u64;
    tail.push_str(std::str::from_utf8(&bytes[..whole]).context("events are not UTF-8")?);
    Ok(())
}

impl Story {
    fn take(&mut self, event: &Value) {
        let number = |key: &str| event[key].as_u64().unwrap_or_default();
        match event["event"].as_str().unwrap_or_default() {
            "run_started" => self.total_steps = number("total_steps"),
            "worker_spawned" => {
                self.pids
                    .insert(number("worker"), event["pid"].as_i64().unwrap_or_default());
            }
            "worker_lost" => self.workers_lost += 1,
            "generation_formed" => {
                self.members = event["members"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_u64)
                    .collect();
                let step = event["base"]["step"].as_u64().unwrap_or_default();
                for member in &self.members {
                    self.joined.entry(*member).or_insert(step);
                }
            }
            "worker_exited" if self.victim.is_some_and(|(_, pid)| event["pid"].as_i64() == Some(pid)) => {
                self.victim_status = match (event["signal"].as_i64(), event["code"].as_i64()) {
                    (Some(signal), _) => Some(signal),
                    (None, code) => code.map(|code| code << 8),
                };
            }
            "step_done" => {
                let step = event["report"]["name"]["step"].as_u64().unwrap_or_default();
                self.steps_done = self.steps_done.max(step);
            }
            "checkpoint_committed" => self.checkpoints.push(Checkpoint {
                key: event["key"].as_str().unwrap_or_default().to_owned(),
                step: event["name"]["step"].as_u64().unwrap_or_default(),
                seconds: number("at_ms") as f64 / 1e3,
            }),
            _ => {}
        }
    }

    /// SIGKILL from outside, to the newest member of the generation that trains.
    fn kill_one(&mut self) -> Result<()> {
        let Some((worker, pid)) = self.members.iter().max().and_then(|w| Some((*w, *self.pids.get(w)?))) else {
            return Ok(()); // nobody trains just now
        };
        eprintln!(
            "demo: step {} of {}, SIGKILL to w{worker} (process {pid})",
            self.steps_done, self.total_steps
        );
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)
            .with_context(|| format!("cannot kill process {pid}"))?;
        self.victim = Some((worker, pid));
        Ok(())
    }

    /// Workers that became members after the victim had been one.
    pub(crate) fn rejoined(&self) -> usize {
        let Some((victim, _)) = self.victim else { return 0 };
        self.joined.keys().filter(|worker| **worker > victim).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn story_of_a_killed_worker_counts_its_replacement() {
        let mut story = Story::default();
        for event in [
            json!({"at_ms": 0, "event": "run_started", "total_steps": 30}),
            json!({"at_ms": 1, "event": "worker_spawned", "worker": 1, "pid": 71}),
            json!({"at_ms": 1, "event": "worker_spawned", "worker": 2, "pid": 72}),
            json!({"at_ms": 2, "event": "generation_formed", "members": [1, 2], "base": {"step": 0}}),
            json!({"at_ms": 3, "event": "step_done", "report": {"name": {"step": 10}}}),
        ] {
            story.take(&event);
        }
        assert_eq!((story.steps_done, story.members.clone()), (10, vec![1, 2]));
        story.victim = Some((2, 72));
        for event in [
            json!({"at_ms": 4, "event": "worker_exited", "worker": 2, "pid": 72, "code": null, "signal": 9}),
            json!({"at_ms": 4, "event": "worker_lost", "worker": 2, "reason": "its stream broke"}),
            json!({"at_ms": 5, "event": "generation_formed", "members": [1], "base": {"step": 10}}),
        ] {
            story.take(&event);
        }
        assert_eq!(
            (story.victim_status, story.workers_lost, story.rejoined()),
            (Some(9), 1, 0)
        );
        story.take(&json!({"at_ms": 6, "event": "generation_formed", "members": [1, 3], "base": {"step": 12}}));
        assert_eq!(story.rejoined(), 1);
    }

    #[test]
    fn events_are_read_by_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let (mut offset, mut tail) = (0, String::new());
        read_more(&path, &mut offset, &mut tail).unwrap();
        std::fs::write(&path, "{\"a\":1}\n{\"b\"").unwrap();
        read_more(&path, &mut offset, &mut tail).unwrap();
        assert_eq!((tail.as_str(), offset), ("{\"a\":1}\n", 8));
        std::fs::write(&path, "{\"a\":1}\n{\"b\":2}\n").unwrap();
        read_more(&path, &mut offset, &mut tail).unwrap();
        assert_eq!(tail, "{\"a\":1}\n{\"b\":2}\n");
    }
}
