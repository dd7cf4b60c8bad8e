//! Programs of others beside ours: OpenCLIP's Python, and whatever answers in JSON.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The Python of the peers' environment, as `tests/peers/setup.sh` makes it.
pub(crate) fn python(venv: Option<&Path>) -> Result<PathBuf> {
    let venv = venv.context(
        "this needs OpenCLIP: make its environment with `bash tests/peers/setup.sh DIR` and pass `--peers DIR` (or set \
         PEERS_VENV)",
    )?;
    let python = venv.join("bin/python");
    ensure!(
        python.is_file(),
        "{} is missing; make it with `bash tests/peers/setup.sh`",
        python.display()
    );
    Ok(python)
}

/// Runs a program that prints one JSON object as its last line.
pub(crate) fn json(command: &mut Command) -> Result<Value> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?} ended with {}", output.status);
    last_line(&output.stdout).with_context(|| format!("{command:?}"))
}

/// The JSON object on the last line that is not empty.
pub(crate) fn last_line(stdout: &[u8]) -> Result<Value> {
    let text = String::from_utf8_lossy(stdout);
    let last = text
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("the last line is no JSON: {last}"))
}
