//! One evaluation as a process of its own.

use super::Setup;
use crate::job;
use argosy_common::config::EvaluationSet;
use nix::libc;
use nix::sys::signal::Signal;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// The nicest a process can be.
const NICE: i32 = 19;
/// When memory runs out, an evaluation goes before a trainer does.
const OOM_SCORE: &str = "800";

/// What `argosy-worker eval-zero-shot -o json` says, as far as a run cares.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Scores {
    pub(super) top1: f64,
    pub(super) top5: f64,
    pub(super) mean_per_class: f64,
    pub(super) chance: f64,
    pub(super) samples: u64,
}

/// Evaluates the checkpoint with this key on one set; on failure what the process said last.
pub(super) fn evaluate(setup: &Setup, set: &EvaluationSet, key: &str) -> Result<Scores, String> {
    let mut command = Command::new(&setup.worker);
    command
        .arg("eval-zero-shot")
        .arg("--checkpoint")
        .arg(format!("{}/{key}", setup.checkpoints.trim_end_matches('/')))
        .args(["--data", &job::below(&setup.base, &set.data)])
        .arg("--classes")
        .arg(setup.base.join(&set.classes))
        .arg("--templates")
        .arg(setup.base.join(&set.templates))
        .args(["--threads", &setup.config.threads.to_string()])
        .args(["--batch", &setup.config.batch.to_string()])
        .args(["-o", "json"])
        .env("OMP_NUM_THREADS", setup.config.threads.to_string())
        .env("ARGOSY_LOG", "error")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C on the terminal is for us.
        .process_group(0);
    humble(&mut command);
    let child = command
        .spawn()
        .map_err(|e| format!("{}: {e}", setup.worker.display()))?;
    // Refused on odd systems; then it counts like any other process.
    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), OOM_SCORE);
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|l| !l.trim().is_empty());
        let last = last.map(|l| l.trim().trim_start_matches("error: ").to_owned());
        return Err(last.unwrap_or_else(|| format!("the process ended with {}", output.status)));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| format!("the process gave no result: {e}"))
}

/// Lets the child run only where nobody else wants to, and end with us.
fn humble(command: &mut Command) {
    let parent = nix::unistd::getpid();
    // SAFETY: only async-signal-safe system calls are made between fork and exec.
    #[allow(unsafe_code, reason = "there is no other way to die with a parent that was killed")]
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
            Ok(())
        });
    }
}
