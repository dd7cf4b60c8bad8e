//! Starts the run, follows its events, kills a worker at a third of the steps and sees it replaced; near the end presses
//! Ctrl-C and goes on with another number of workers.

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
    /// Zero-shot results from beside the training: set, step and top-1.
    pub(crate) evaluations: Vec<(String, u64, f64)>,
    steps_done: u64,
    /// The step at which Ctrl-C was pressed.
    pub(crate) interrupted_at: Option<u64>,
    /// The step that the next process went on from.
    pub(crate) resumed_from: Option<u64>,
    /// The run's own summary, of both processes together.
    pub(crate) summary: Value,
    /// Milliseconds of the processes before this one.
    before_ms: u64,
    last_ms: u64,
}

/// Where the reader of events stands.
#[derive(Debug, Default)]
struct Reader {
    path: PathBuf,
    offset: u64,
    tail: String,
}

/// Workers before Ctrl-C and after it.
const WORKERS: [&str; 2] = ["2", "1"];
/// How `argosy run` ends when it was asked to stop.
const INTERRUPTED: i32 = 130;

/// Trains to the end, in two processes.
pub(crate) fn train(stage: &Stage, job: &str) -> Result<Story> {
    let mut reader = Reader {
        path: stage.run.join("events.jsonl"),
        ..Reader::default()
    };
    let mut story = Story::default();
    let mut before = act(stage, job, &mut reader, &mut story)?;
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
    let step = story
        .interrupted_at
        .context("the run ended before it could be interrupted")?;
    let after = act(stage, job, &mut reader, &mut story)?;
    ensure!(
        story.resumed_from.is_some_and(|from| from >= step),
        "interrupted at step {step}, the run went on from {:?}",
        story.resumed_from
    );
    // The second process tells of its own part only.
    before["loss_last"] = after["loss_last"].clone();
    before["resumed_first_step_seconds"] = after["first_step_begins_seconds"].clone();
    let seconds = |part: &Value| part["train_seconds"].as_f64().unwrap_or_default();
    before["train_seconds"] = (seconds(&before) + seconds(&after)).into();
    story.summary = before;
    Ok(story)
}

/// One process of the run: the first until Ctrl-C, the second to the end. Its summary.
fn act(stage: &Stage, job: &str, reader: &mut Reader, story: &mut Story) -> Result<Value> {
    let resumes = story.interrupted_at.is_some();
    let mut command = stage.argosy();
    command
        .arg("run")
        .arg(stage.source.join(job))
        .arg("--run")
        .arg(&stage.run);
    command.args(["--workers", WORKERS[usize::from(resumes)], "-o", "json"]);
    if resumes {
        eprintln!("demo: goes on with {} worker", WORKERS[1]);
        command.arg("--resume");
    }
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start argosy")?;
    let followed = follow(reader, &mut child, story);
    if followed.is_err() {
        // Its workers die with it.
        let _ = child.kill();
    }
    let output = child.wait_with_output().context("cannot wait for argosy")?;
    followed?;
    let wanted = if resumes { 0 } else { INTERRUPTED };
    ensure!(
        output.status.code() == Some(wanted),
        "the run ended with {}, {wanted} was expected",
        output.status
    );
    serde_json::from_slice(&output.stdout).context("the run gave no summary")
}

/// Reads events until the process has ended; kills one worker on the way, and presses Ctrl-C later.
fn follow(reader: &mut Reader, child: &mut Child, story: &mut Story) -> Result<()> {
    loop {
        // Asked before reading: what is written up to the end is then read after it.
        let ended = child.try_wait().context("cannot wait for argosy")?.is_some();
        read_more(&reader.path, &mut reader.offset, &mut reader.tail)?;
        while let Some(end) = reader.tail.find('\n') {
            let line: String = reader.tail.drain(..=end).collect();
            story.take(&serde_json::from_str(&line).with_context(|| format!("event `{line}`"))?);
        }
        if ended {
            return Ok(());
        }
        if story.victim.is_none() && story.total_steps > 0 && story.steps_done * 3 >= story.total_steps {
            story.kill_one()?;
        }
        let late = story.steps_done * 20 >= story.total_steps * 17;
        if story.interrupted_at.is_none() && story.rejoined() > 0 && late {
            eprintln!("demo: step {} of {}, Ctrl-C", story.steps_done, story.total_steps);
            kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT).context("cannot interrupt argosy")?;
            story.interrupted_at = Some(story.steps_done);
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
        let kind = event["event"].as_str().unwrap_or_default();
        if kind == "run_started" {
            self.before_ms = self.last_ms;
        }
        self.last_ms = self.last_ms.max(self.before_ms + number("at_ms"));
        match kind {
            "run_started" => self.total_steps = number("total_steps"),
            "resumed" => self.resumed_from = event["name"]["step"].as_u64(),
            "evaluation_done" => self.evaluations.push((
                event["set"].as_str().unwrap_or_default().to_owned(),
                event["name"]["step"].as_u64().unwrap_or_default(),
                event["top1"].as_f64().unwrap_or_default(),
            )),
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
                step: event["name"]["step"].as_u64().unwrap_or_default(),
                seconds: (self.before_ms + number("at_ms")) as f64 / 1e3,
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
