//! Runs the binaries that ship, as processes, and follows what they announce. Waits for events, never for time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper of tests fails the test that called it"
)]

use crate::canary;
use argosy_common::events::{RunEvent, StampedEvent};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// One generous deadline for whatever is waited for; a story that reaches it dumps all it knows and fails.
const DEADLINE: Duration = Duration::from_secs(180);

/// A program of this build: it lies beside the test programs' folder.
pub(crate) fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let folder = own.parent().and_then(Path::parent).expect("target folder");
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is missing: build it first, as `cargo build --workspace --all-targets` does",
        path.display()
    );
    path
}

/// Stories start several processes each and run one at a time, under any test runner.
pub(crate) struct Turn {
    _lock: Flock<std::fs::File>,
}

pub(crate) fn my_turn() -> Turn {
    let path = program("argosy").with_file_name("stories.lock");
    let file = std::fs::File::create(path).expect("a lock file");
    let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e);
    Turn {
        _lock: lock.expect("the lock"),
    }
}

fn argosy(args: &[&str]) -> Command {
    let mut command = Command::new(program("argosy"));
    command
        .args(args)
        .env("OMP_NUM_THREADS", "1")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .process_group(0);
    command
}

/// Variables of a program's environment.
pub(crate) type Environment = [(&'static str, String)];

/// Runs a command to its end: exit code, stdout, stderr.
pub(crate) fn argosy_to_end(args: &[&str]) -> (Option<i32>, String, String) {
    argosy_to_end_in(&[], args)
}

/// The same with more in its environment.
pub(crate) fn argosy_to_end_in(environment: &Environment, args: &[&str]) -> (Option<i32>, String, String) {
    let more = environment.iter().map(|(name, value)| (name, value));
    let output = argosy(args).envs(more).output().expect("argosy starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A run under way.
pub(crate) struct Run {
    child: Child,
    pub(crate) dir: PathBuf,
    output: PathBuf,
    events: Events,
    ended: Option<ExitStatus>,
}

/// Reads `events.jsonl` as it grows.
struct Events {
    path: PathBuf,
    offset: u64,
    tail: String,
    seen: Vec<StampedEvent>,
}

impl Events {
    fn read_more(&mut self) {
        let Ok(mut file) = std::fs::File::open(&self.path) else {
            return;
        };
        let mut more = Vec::new();
        file.seek(SeekFrom::Start(self.offset)).expect("a seekable file");
        file.read_to_end(&mut more).expect("events");
        self.offset += more.len() as u64;
        self.tail += &String::from_utf8(more).expect("events are UTF-8");
        while let Some(end) = self.tail.find('\n') {
            let line: String = self.tail.drain(..=end).collect();
            self.seen
                .push(serde_json::from_str(&line).unwrap_or_else(|e| panic!("event `{line}`: {e}")));
        }
    }
}

impl Run {
    /// Starts `argosy run JOB --run DIR --workers N MORE`.
    pub(crate) fn start(job: &Path, dir: &Path, workers: u32, more: &[&str]) -> Self {
        Self::start_in(&[], job, dir, workers, more)
    }

    /// The same with more in its environment.
    pub(crate) fn start_in(environment: &Environment, job: &Path, dir: &Path, workers: u32, more: &[&str]) -> Self {
        let output = dir.with_extension(format!("out{}", more.len()));
        let file = std::fs::File::create(&output).expect("a file for what it says");
        let path = dir.join("events.jsonl");
        // Events of a run that is resumed are there already; this start's are what comes behind them.
        let offset = path.metadata().map_or(0, |m| m.len());
        let workers = workers.to_string();
        let mut args = vec!["run", text(job), "--run", text(dir), "--workers", &workers];
        args.extend(more);
        let mut command = argosy(&args);
        command.env(canary::CANARY.0, canary::CANARY.1);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdout(file.try_clone().expect("a second handle")).stderr(file);
        Self {
            child: command.spawn().expect("argosy starts"),
            dir: dir.to_owned(),
            output,
            events: Events {
                path,
                offset,
                tail: String::new(),
                seen: Vec::new(),
            },
            ended: None,
        }
    }

    /// Waits for the first event, seen or to come, for which `found` says something.
    pub(crate) fn wait_for_event<T>(&mut self, what: &str, found: impl Fn(&RunEvent) -> Option<T>) -> T {
        let started = Instant::now();
        let mut next = 0;
        loop {
            let over = self.poll_end();
            self.events.read_more();
            for stamped in &self.events.seen[next..] {
                if let Some(value) = found(&stamped.event) {
                    return value;
                }
            }
            next = self.events.seen.len();
            if over || started.elapsed() > DEADLINE {
                self.fail(&format!("no event: {what}"));
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Waits until it has said these words.
    pub(crate) fn wait_for_words(&mut self, words: &str) {
        let started = Instant::now();
        while !std::fs::read_to_string(&self.output)
            .unwrap_or_default()
            .contains(words)
        {
            if self.poll_end() || started.elapsed() > DEADLINE {
                self.fail(&format!("it does not say: {words}"));
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Waits until the run folder has this file.
    pub(crate) fn wait_for_file(&mut self, name: &str) {
        let started = Instant::now();
        while !self.dir.join(name).is_file() {
            if self.poll_end() || started.elapsed() > DEADLINE {
                self.fail(&format!("there is no {name}"));
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// All events up to now.
    pub(crate) fn events(&mut self) -> Vec<RunEvent> {
        self.events.read_more();
        self.events.seen.iter().map(|s| s.event.clone()).collect()
    }

    /// Sends a signal to the run's own process.
    pub(crate) fn signal(&self, signal: Signal) {
        assert!(self.ended.is_none(), "the run has ended");
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the run is alive");
    }

    /// Waits for the end of the run's process; its exit code. Nothing it started may be left.
    pub(crate) fn wait_for_end(&mut self) -> i32 {
        let started = Instant::now();
        while !self.poll_end() {
            if started.elapsed() > DEADLINE {
                self.fail("the run does not end");
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let pids: Vec<u32> = self.events().iter().filter_map(spawned).map(|(_, pid)| pid).collect();
        for pid in pids {
            assert!(
                !is_our_worker(pid, &self.dir),
                "process {pid} is left behind\n{}",
                self.dump()
            );
        }
        canary::check(&self.dir, &self.output);
        match self.ended.and_then(|status| status.code()) {
            Some(code) => code,
            None => self.fail("the run was ended by a signal"),
        }
    }

    /// Waits until the run's process and these workers of it are gone.
    pub(crate) fn wait_until_gone(&mut self, pids: &[u32]) {
        let started = Instant::now();
        while !self.poll_end() || pids.iter().any(|pid| is_our_worker(*pid, &self.dir)) {
            if started.elapsed() > DEADLINE {
                self.fail("a worker is left behind");
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn poll_end(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("our own child");
        }
        self.ended.is_some()
    }

    /// Everything that is known, for a story that failed.
    pub(crate) fn dump(&mut self) -> String {
        self.events.read_more();
        let mut text = format!("exit: {:?}\n--- said:\n", self.ended);
        text += &std::fs::read_to_string(&self.output).unwrap_or_default();
        text += "--- events:\n";
        let skipped = self.events.seen.len().saturating_sub(40);
        for stamped in &self.events.seen[skipped..] {
            text += &format!("{:>7} {:?}\n", stamped.at_ms, stamped.event);
        }
        for entry in std::fs::read_dir(self.dir.join("logs")).into_iter().flatten().flatten() {
            let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
            text += &format!("--- {}:\n{log}\n", entry.path().display());
        }
        text
    }

    fn fail(&mut self, why: &str) -> ! {
        panic!("{why}\n{}", self.dump());
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.poll_end() {
            // Its workers are in groups of their own and die with it.
            let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// Is this process a worker of the run in `dir`? A pid alone may have been given to somebody else by now.
fn is_our_worker(pid: u32, dir: &Path) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).contains(text(dir))
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Kills a worker's process; it must be there.
pub(crate) fn kill_worker(pid: u32) {
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("the worker is alive");
}

/// Lets a worker stand still, as a frozen machine does.
pub(crate) fn stop_worker(pid: u32) {
    kill(Pid::from_raw(pid as i32), Signal::SIGSTOP).expect("the worker is alive");
}

/// Asks a worker's process to end, as a scheduler does before it kills.
pub(crate) fn ask_to_leave(pid: u32) {
    kill(Pid::from_raw(pid as i32), Signal::SIGTERM).expect("the worker is alive");
}

/// A worker that was started, with its process.
pub(crate) fn spawned(event: &RunEvent) -> Option<(u32, u32)> {
    match event {
        RunEvent::WorkerSpawned { worker, pid } => Some((worker.0, *pid)),
        _ => None,
    }
}

/// `argosy audit` of a run that must hold, as JSON.
pub(crate) fn audit(dir: &Path) -> serde_json::Value {
    audit_in(&[], dir)
}

/// The same with more in its environment.
pub(crate) fn audit_in(environment: &Environment, dir: &Path) -> serde_json::Value {
    let (code, out, err) = argosy_to_end_in(environment, &["audit", text(dir), "-o", "json"]);
    assert_eq!(code, Some(0), "the audit does not hold\n{out}\n{err}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("not JSON ({e}): {out}"))
}
