//! Processes that stand for machines.

use argosy_common::events::{RunEvent, StampedEvent};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// One generous deadline for whatever is waited for.
const DEADLINE: Duration = Duration::from_secs(240);
const LOOK: Duration = Duration::from_millis(20);

/// A port of loopback that was free a moment ago: who is told it binds it later.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("its address").port()
}

/// Where a machine's processes run, and what they say is kept.
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) environment: Vec<(&'static str, String)>,
}

impl Machine {
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }

    pub(crate) fn start(&self, program: &Path, args: &[&str]) -> Started {
        let mut command = Command::new(program);
        command.args(args);
        self.spawn(command)
    }

    /// In a process group of its own, with its output at the end of the machine's log.
    pub(crate) fn spawn(&self, mut command: Command) -> Started {
        std::fs::create_dir_all(&self.folder).expect("a folder");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .expect("a log");
        let child = command
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("OMP_NUM_THREADS", "1")
            .env("NO_COLOR", "1")
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Started {
            child,
            name: self.name.clone(),
            log: self.log(),
        }
    }
}

/// A process; ended with its guard.
pub(crate) struct Started {
    child: Child,
    pub(crate) name: String,
    log: PathBuf,
}

impl Started {
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it is alive");
    }

    pub(crate) fn has_ended(&mut self) -> Option<i32> {
        let status = self.child.try_wait().expect("our own child");
        status.map(|status| status.code().unwrap_or(-1))
    }

    /// Waits for its end; its exit code.
    pub(crate) fn wait(&mut self) -> i32 {
        let started = Instant::now();
        loop {
            if let Some(code) = self.has_ended() {
                return code;
            }
            assert!(
                started.elapsed() < DEADLINE,
                "{} does not end\n{}",
                self.name,
                self.said()
            );
            std::thread::park_timeout(LOOK);
        }
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// Waits until `done`, while all these processes live; else everything they said is dumped.
pub(crate) fn until(what: &str, all: &mut [&mut Started], done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        let ended = all
            .iter_mut()
            .find_map(|p| p.has_ended().map(|code| (p.name.clone(), code)));
        if ended.is_some() || started.elapsed() > DEADLINE {
            let said: Vec<String> = all.iter().map(|p| format!("--- {}:\n{}", p.name, p.said())).collect();
            panic!("no {what}; ended: {ended:?}\n{}", said.join("\n"));
        }
        std::thread::park_timeout(LOOK);
    }
}

/// Events of a coordinator so far.
pub(crate) fn events(dir: &Path) -> Vec<RunEvent> {
    stamped(dir).into_iter().map(|stamped| stamped.event).collect()
}

/// The same with their times; a line that is not whole yet is left out.
pub(crate) fn stamped(dir: &Path) -> Vec<StampedEvent> {
    let text = std::fs::read_to_string(dir.join("events.jsonl")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let event = |line: &str| serde_json::from_str::<StampedEvent>(line).unwrap_or_else(|e| panic!("`{line}`: {e}"));
    whole.lines().map(event).collect()
}

/// Every file below `folder`.
pub(crate) fn each_file(folder: &Path, look: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            each_file(&path, look);
        } else {
            look(&path);
        }
    }
}
