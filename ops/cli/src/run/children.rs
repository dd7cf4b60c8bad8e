//! Worker processes: each in a process group of its own, each with a log file, none left behind.

use argosy_common::ids::WorkerId;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

/// How a worker process is started.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// The program.
    pub(crate) program: PathBuf,
    /// Holds the token.
    pub(crate) token_file: PathBuf,
    /// Log files lie here.
    pub(crate) logs: PathBuf,
    /// Threads of one worker's tensor operations.
    pub(crate) threads: u32,
}

/// A process that ended and was reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exited {
    pub(crate) worker: WorkerId,
    pub(crate) pid: u32,
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
}

type OnExit = Arc<dyn Fn(Exited) + Send + Sync>;

/// Pids of processes that are not reaped yet: only those may be signalled, any other pid may be somebody else's by now.
#[derive(Default)]
struct Alive {
    pids: Mutex<BTreeMap<WorkerId, u32>>,
    changed: Condvar,
}

struct Order {
    worker: WorkerId,
    endpoint: String,
    reply: mpsc::SyncSender<io::Result<u32>>,
}

/// The worker processes of one run.
pub(crate) struct Children {
    orders: mpsc::Sender<Order>,
    alive: Arc<Alive>,
}

impl fmt::Debug for Children {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Children")
            .field("alive", &self.pids())
            .finish_non_exhaustive()
    }
}

impl Children {
    /// `on_exit` hears of every process after it was reaped, from a thread of its own.
    pub(crate) fn new(recipe: Recipe, on_exit: impl Fn(Exited) + Send + Sync + 'static) -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel::<Order>();
        let alive = Arc::new(Alive::default());
        let (shared, on_exit): (_, OnExit) = (Arc::clone(&alive), Arc::new(on_exit));
        // The kernel kills the children when the *thread* that started them ends, so one thread starts all of them and
        // lives as long as the run does.
        std::thread::Builder::new().name("children".into()).spawn(move || {
            while let Ok(order) = inbox.recv() {
                let started = start(&recipe, &order, &shared, &on_exit);
                let _ = order.reply.send(started);
            }
        })?;
        Ok(Self { orders, alive })
    }

    /// Starts `argosy-worker join` under this id; its pid.
    pub(crate) fn spawn(&self, worker: WorkerId, endpoint: &str) -> io::Result<u32> {
        let gone = || io::Error::other("the thread that starts workers is gone");
        let (reply, answer) = mpsc::sync_channel(1);
        let order = Order {
            worker,
            endpoint: endpoint.to_owned(),
            reply,
        };
        self.orders.send(order).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }

    /// Kills a worker, if it is alive.
    pub(crate) fn kill(&self, worker: WorkerId) {
        if let Ok(pids) = self.alive.pids.lock()
            && let Some(pid) = pids.get(&worker)
        {
            send_kill(*pid);
        }
    }

    /// Waits until all processes are reaped; kills those that are still there after `patience`.
    pub(crate) fn end(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let Ok(mut pids) = self.alive.pids.lock() else { return };
        let mut killed = false;
        while !pids.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && !std::mem::replace(&mut killed, true) {
                pids.values().for_each(|pid| send_kill(*pid));
            }
            // A killed process is reaped in no time, unless the kernel holds it: then it is the kernel's to keep.
            if killed && deadline.elapsed() > Duration::from_secs(5) {
                return;
            }
            let nap = if killed { Duration::from_millis(100) } else { left };
            let Ok((guard, _)) = self.alive.changed.wait_timeout(pids, nap) else {
                return;
            };
            pids = guard;
        }
    }

    fn pids(&self) -> Vec<u32> {
        self.alive
            .pids
            .lock()
            .map(|p| p.values().copied().collect())
            .unwrap_or_default()
    }
}

fn send_kill(pid: u32) {
    // Fails only for a process that has ended and waits to be reaped.
    let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
}

fn start(recipe: &Recipe, order: &Order, alive: &Arc<Alive>, on_exit: &OnExit) -> io::Result<u32> {
    let log = std::fs::File::create(recipe.logs.join(format!("{}.log", order.worker)))?;
    let mut command = Command::new(&recipe.program);
    command
        .arg("join")
        .args(["--endpoint", &order.endpoint])
        .arg("--token-file")
        .arg(&recipe.token_file)
        .args(["--worker", &order.worker.0.to_string()])
        .env("OMP_NUM_THREADS", recipe.threads.to_string())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C on the terminal is for us: we end the run, and the run ends its workers.
        .process_group(0);
    let parent = nix::unistd::getpid();
    // SAFETY: only async-signal-safe system calls are made between fork and exec.
    #[allow(unsafe_code, reason = "there is no other way to die with a parent that was killed")]
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() != parent {
                return Err(io::Error::from_raw_os_error(nix::libc::ESRCH));
            }
            Ok(())
        });
    }
    let mut pids = alive
        .pids
        .lock()
        .map_err(|_| io::Error::other("a thread that reaps workers panicked"))?;
    let child = command.spawn()?;
    let pid = child.id();
    pids.insert(order.worker, pid);
    drop(pids);
    let (worker, alive, on_exit) = (order.worker, Arc::clone(alive), Arc::clone(on_exit));
    std::thread::Builder::new()
        .name(format!("reap-{worker}"))
        .spawn(move || reap(worker, child, &alive, &on_exit))?;
    Ok(pid)
}

/// Waits for the end of a process, takes it off the list of those that may be signalled, and only then frees its pid.
fn reap(worker: WorkerId, mut child: Child, alive: &Alive, on_exit: &OnExit) {
    let pid = child.id();
    let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    while let Err(nix::errno::Errno::EINTR) = waitid(Id::Pid(Pid::from_raw(pid as i32)), ended) {}
    let status = match alive.pids.lock() {
        Ok(mut pids) => {
            pids.remove(&worker);
            child.wait()
        }
        Err(_) => child.wait(),
    };
    alive.changed.notify_all();
    let (code, signal) = status.map_or((None, None), |s| (s.code(), s.signal()));
    on_exit(Exited {
        worker,
        pid,
        code,
        signal,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A stand-in for `argosy-worker` that runs `script`.
    fn recipe(dir: &std::path::Path, script: &str) -> Recipe {
        let program = dir.join("worker");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Recipe {
            program,
            token_file: dir.join("token"),
            logs: dir.to_owned(),
            threads: 1,
        }
    }

    #[test]
    fn child_that_exits_is_reaped_with_its_code_and_its_words_are_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let (tell, told) = mpsc::channel();
        let children = Children::new(recipe(dir.path(), "echo \"$@\"; exit 7"), move |e| {
            let _ = tell.send(e);
        })
        .unwrap();
        let pid = children.spawn(WorkerId(3), "http://127.0.0.1:1").unwrap();
        let exited = told.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(
            (exited.worker, exited.pid, exited.code, exited.signal),
            (WorkerId(3), pid, Some(7), None)
        );
        let log = std::fs::read_to_string(dir.path().join("w3.log")).unwrap();
        assert!(
            log.contains("join --endpoint http://127.0.0.1:1") && log.contains("--worker 3"),
            "{log}"
        );
    }

    #[test]
    fn children_that_stay_are_killed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (tell, told) = mpsc::channel();
        let children = Children::new(recipe(dir.path(), "exec sleep 1000"), move |e| {
            let _ = tell.send(e);
        })
        .unwrap();
        for worker in 0..2 {
            children.spawn(WorkerId(worker), "e").unwrap();
        }
        children.kill(WorkerId(0));
        children.end(Duration::ZERO);
        for _ in 0..2 {
            assert_eq!(told.recv_timeout(Duration::from_secs(60)).unwrap().signal, Some(9));
        }
        assert!(children.pids().is_empty());
    }
}
