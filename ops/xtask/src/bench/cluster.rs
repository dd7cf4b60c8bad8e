//! What checkpoints and joins cost a run of ViT-B/32 with its moments (1.8 GB), several worker processes on this machine.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use super::{Bench, Better, Bound, Measure, Session};

pub(crate) const CHECKPOINT_STALL: Bench = Bench {
    name: "checkpoint-stall",
    about: "Wait in APPLY for a checkpoint's copy, ViT-B/32 with moments, four workers",
    run: checkpoint_stall,
};

pub(crate) const JOIN_STALL: Bench = Bench {
    name: "join-stall",
    about: "Pause of training while a worker joins and takes 1.8 GB of state",
    run: join_stall,
};

/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(900);

fn checkpoint_stall(session: &mut Session<'_>) -> Result<()> {
    let wait = Measure {
        label: "ViT-B/32 with moments (1.8 GB), W = 4: longest wait in APPLY".into(),
        unit: "ms",
        better: Better::Lower,
        bound: Some(Bound::AtMost(50.0)),
    };
    let mut started: Option<Run> = None;
    session.alone(wait, |session| {
        // Begun in the first round: the machine has to be quiet before.
        let run = match &mut started {
            Some(run) => run,
            none => {
                // A checkpoint every third step: the copy may use the time of one.
                let more = "[checkpoint]\nevery_samples = 24\nkeep_last = 1\n";
                let run = none.insert(Run::start(session, 4, more)?);
                run.until("a first checkpoint", committed)?; // its buffers are not there yet
                run.waits()?;
                run
            }
        };
        run.until("a checkpoint", committed)?;
        Ok(run.waits()?.into_iter().fold(0.0, f64::max))
    })?;
    let events = started.as_ref().map(|run| &run.events[..]).unwrap_or_default();
    let mut steps: Vec<f64> = events.iter().filter_map(step_ms).collect();
    steps.sort_by(f64::total_cmp);
    session.note(format!(
        "{} checkpoints were committed; a step takes {:.0} ms (median). A wait is the lap between the sentinel and the first \
         write of APPLY, of the worker that waited longest.",
        events.iter().filter_map(committed).count(),
        steps.get(steps.len() / 2).copied().unwrap_or_default()
    ));
    Ok(())
}

fn join_stall(session: &mut Session<'_>) -> Result<()> {
    let stall = Measure {
        label: "version 1 (state moves at the boundary), ViT-B/32 with moments, W = 1 to 2".into(),
        unit: "ms",
        better: Better::Lower,
        bound: None,
    };
    let mut started: Option<Run> = None;
    session.alone(stall, |session| match &mut started {
        Some(run) => run.join(),
        none => none.insert(Run::start(session, 2, "")?).join(),
    })?;
    session.note(
        "A worker is killed, its replacement warms up beside the training and joins. The stall is the time from the last step \
         before the join to the first one behind it, less a step of the new generation.",
    );
    Ok(())
}

fn committed(event: &Value) -> Option<u64> {
    (event["event"] == "checkpoint_committed").then(|| event["name"]["step"].as_u64())?
}

fn step_ms(event: &Value) -> Option<f64> {
    let phases = event["report"]["phase_ms"].as_object()?;
    Some(phases.values().filter_map(Value::as_f64).sum())
}

/// A run under way.
struct Run {
    child: Child,
    dir: PathBuf,
    offset: u64,
    tail: String,
    events: Vec<Value>,
    /// Lines of each worker's log that were read.
    logs_read: std::collections::BTreeMap<PathBuf, usize>,
}

impl Run {
    fn start(session: &Session<'_>, workers: u32, more: &str) -> Result<Self> {
        let argosy = session.build("argosy", ["--bin", "argosy"])?;
        session.build("argosy-worker", ["--bin", "argosy-worker"])?;
        let place = session.workspace()?;
        let archive = session.root().join("ops/demo/noto.tar.zst");
        let status = Command::new(&argosy).arg("unpack").arg(&archive).arg(&place).status()?;
        ensure!(status.success(), "cannot unpack {}", archive.display());
        let job = place.join("job.toml");
        let text = format!(
            "version = 1\nname = \"stall\"\n[model]\nname = \"ViT-B-32\"\n\
             [data]\nsources = [{{ name = \"noto\", shards = \"noto/train-00000.tar\" }}]\n\
             [train]\nglobal_batch = 8\nlanes = 4\nepochs = 1000\nthreads = 1\nstate_hash_steps = 0\n{more}"
        );
        std::fs::write(&job, text).with_context(|| format!("cannot write {}", job.display()))?;
        let dir = place.join("run");
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).context("the last round's run"),
            _ => {}
        }
        let log = File::create(place.join("run.log"))?;
        let mut command = Command::new(argosy);
        command.arg("run").arg(&job).arg("--run").arg(&dir);
        command.args(["--workers", &workers.to_string()]);
        command.env("ARGOSY_LOG_FORMAT", "json").env("OMP_NUM_THREADS", "1");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(Self {
            child: command.spawn().context("cannot start argosy")?,
            dir,
            offset: 0,
            tail: String::new(),
            events: Vec::new(),
            logs_read: std::collections::BTreeMap::new(),
        })
    }

    /// Waits for the next event, none seen before, for which `found` says something.
    fn until<T>(&mut self, what: &str, found: impl Fn(&Value) -> Option<T>) -> Result<T> {
        let began = Instant::now();
        loop {
            let ended = self.child.try_wait()?;
            let first = self.events.len();
            self.read_more()?;
            let new = self.events.split_off(first);
            let mut new = new.into_iter();
            for event in new.by_ref() {
                let value = found(&event);
                self.events.push(event);
                if let Some(value) = value {
                    // What comes behind it is read again by the next wait.
                    let rest: String = new.map(|e| e.to_string() + "\n").collect();
                    self.tail = rest + &self.tail;
                    return Ok(value);
                }
            }
            if let Some(status) = ended {
                bail!(
                    "the run ended with {status} before {what}; see run.log beside {}",
                    self.dir.display()
                );
            }
            ensure!(began.elapsed() < PATIENCE, "waited too long for {what}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn read_more(&mut self) -> Result<()> {
        match File::open(self.dir.join("events.jsonl")) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            file => {
                let mut file = file?;
                file.seek(SeekFrom::Start(self.offset))?;
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes)?;
                let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                self.offset += whole as u64;
                self.tail += std::str::from_utf8(&bytes[..whole]).context("events are not UTF-8")?;
            }
        }
        for line in std::mem::take(&mut self.tail).lines() {
            self.events.push(serde_json::from_str(line)?);
        }
        Ok(())
    }

    /// Milliseconds that APPLY waited for copies, as the workers' logs tell since the last call.
    fn waits(&mut self) -> Result<Vec<f64>> {
        let mut waits = Vec::new();
        for entry in std::fs::read_dir(self.dir.join("logs"))? {
            let path = entry?.path();
            let text = std::fs::read_to_string(&path)?;
            let read = self.logs_read.entry(path).or_default();
            let lines = text
                .lines()
                .skip(*read)
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            waits.extend(lines.filter_map(|line| line["fields"]["copy_wait_ms"].as_f64()));
            *read = text.lines().count();
        }
        Ok(waits)
    }

    /// Kills a member and lets its replacement join; the stall in milliseconds.
    fn join(&mut self) -> Result<f64> {
        self.until("a generation of two", two_members)?;
        self.until("steps of it", |e| (e["event"] == "step_done").then_some(()))?;
        let worker = self.newest_member().context("no member")?;
        let pid = self.pid(worker).context("no process")?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("the worker is gone already")?;
        let generation = self.until("the join", |e| two_members(e).filter(|_| heals(e)))?;
        for _ in 0..4 {
            let of_it = |e: &Value| e["report"]["generation"].as_u64() == Some(generation);
            self.until("steps behind the join", |e| of_it(e).then_some(()))?;
        }
        // The next round begins with the generation at hand.
        let formed = self.events.iter().rposition(|e| two_members(e) == Some(generation));
        let formed = self.events[formed.context("it was seen")?].clone();
        self.tail = formed.to_string() + "\n" + &self.tail;
        let steps = |new: bool| {
            let of = move |e: &&Value| (e["report"]["generation"].as_u64() == Some(generation)) == new;
            let steps = self.events.iter().filter(|e| e["event"] == "step_done").filter(of);
            steps.filter_map(|e| e["at_ms"].as_f64()).collect::<Vec<_>>()
        };
        let (before, behind) = (steps(false), steps(true));
        let (last, first) = (
            before.last().context("steps before")?,
            behind.first().context("steps behind")?,
        );
        let mut each: Vec<f64> = behind.windows(2).map(|w| w[1] - w[0]).collect();
        each.sort_by(f64::total_cmp);
        Ok(first - last - each[each.len() / 2])
    }

    fn newest_member(&self) -> Option<u64> {
        let formed = self.events.iter().rev().find(|e| e["event"] == "generation_formed")?;
        formed["members"].as_array()?.iter().filter_map(Value::as_u64).max()
    }

    fn pid(&self, worker: u64) -> Option<i32> {
        let spawned = |e: &&Value| e["event"] == "worker_spawned" && e["worker"].as_u64() == Some(worker);
        i32::try_from(self.events.iter().find(spawned)?["pid"].as_i64()?).ok()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Its workers are in groups of their own and die with it.
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let _ = killpg(pid, Signal::SIGKILL);
        let _ = self.child.wait();
        // 1.8 GB a checkpoint: nobody reads them.
        let _ = std::fs::remove_dir_all(Path::new(&self.dir).join("checkpoints"));
    }
}

/// The number of a generation of two that was formed.
fn two_members(event: &Value) -> Option<u64> {
    let members = event["members"].as_array()?;
    (event["event"] == "generation_formed" && members.len() == 2).then(|| event["generation"].as_u64())?
}

fn heals(formed: &Value) -> bool {
    formed["healing"].as_array().is_some_and(|healing| !healing.is_empty())
}
