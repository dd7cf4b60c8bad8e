//! Finds `argosy-worker`, the program that links libtorch, and lets it do what needs libtorch.

use crate::args::{Format, ModelsArgs, ParityArgs};
use crate::fail::{Failure, Outcome};
use crate::{listing, out};
use argosy_common::exit::Exit;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// Overrides the search; for tests and odd installations.
pub(crate) const WORKER_ENV: &str = "ARGOSY_WORKER";

/// Path of the worker program.
pub(crate) fn find() -> Outcome<PathBuf> {
    if let Some(path) = std::env::var_os(WORKER_ENV).map(PathBuf::from) {
        return if path.is_file() {
            Ok(path)
        } else {
            let message = format!("{WORKER_ENV} names {}, which does not exist", path.display());
            Err(Failure::new(Exit::NotFound, message))
        };
    }
    let own = std::env::current_exe()
        .map_err(|e| Failure::new(Exit::Unavailable, format!("cannot tell where argosy itself lies: {e}")))?;
    let beside = own.with_file_name("argosy-worker");
    if beside.is_file() {
        return Ok(beside);
    }
    let message = format!(
        "argosy-worker is missing: expected beside argosy, at {}",
        beside.display()
    );
    Err(Failure::new(Exit::NotFound, message)
        .help("build it with `cargo build -p argosy-worker`, or set ARGOSY_WORKER"))
}

/// Exit of a process that did its own talking; a signal counts as 128 + its number, as in a shell.
pub(crate) fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::from_code(code),
        (None, Some(2)) => Exit::Interrupted,
        _ => Exit::JobFailed,
    }
}

/// The worker program for a command of ours: its log is as quiet as ours unless somebody asks.
fn quiet(worker: &Path) -> Command {
    let mut command = Command::new(worker);
    if std::env::var_os("ARGOSY_LOG").is_none() {
        command.env("ARGOSY_LOG", "warn");
    }
    command
}

/// Runs `argosy-worker NAME ARGS...` with our stdin, stdout and stderr.
pub(crate) fn pass_on(name: &str, args: &[OsString]) -> Outcome<Exit> {
    let worker = find()?;
    let status = quiet(&worker)
        .arg(name)
        .args(args)
        .status()
        .map_err(|e| Failure::io("start", &worker, &e))?;
    if let Some(signal) = status.signal().filter(|s| *s != 2) {
        let message = format!("argosy-worker {name} was ended by signal {signal}");
        return Err(Failure::new(Exit::JobFailed, message));
    }
    Ok(exit_of(status))
}

/// The same for a command that takes `-o table` and `-o json`; what else is wanted is made of its JSON here, with `rows` as
/// in [`listing::print`].
pub(crate) fn pass_on_as(name: &str, args: &[OsString], format: Format, rows: Option<&str>) -> Outcome<Exit> {
    let with = |word: &str| [args, &[OsString::from("-o"), word.into()]].concat();
    if let Format::Table | Format::Wide = format {
        return pass_on(name, &with("table"));
    }
    let worker = find()?;
    let output = quiet(&worker)
        .arg(name)
        .args(with("json"))
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| Failure::io("start", &worker, &e))?;
    // A check that does not hold has said so on stderr, and its numbers are as good as those of one that does.
    match serde_json::from_slice(&output.stdout) {
        Ok(value) => listing::machines(format, value, rows)?,
        Err(_) => out::data(&String::from_utf8_lossy(&output.stdout))?,
    }
    Ok(exit_of(output.status))
}

pub(crate) fn models(args: &ModelsArgs) -> Outcome<Exit> {
    let mut list: Vec<OsString> = args.parts.iter().map(OsString::from).collect();
    if args.all {
        list.push("--all".into());
    }
    pass_on_as("models", &list, args.output.output, Some("models"))
}

pub(crate) fn parity(args: &ParityArgs) -> Outcome<Exit> {
    if !args.dir.is_dir() {
        let message = format!("folder {} does not exist", args.dir.display());
        return Err(Failure::new(Exit::NotFound, message).help("make one with tests/peers/dump.py"));
    }
    let mut list: Vec<OsString> = vec![args.dir.clone().into()];
    for (flag, value) in [
        ("--workers", args.workers),
        ("--lanes", args.lanes),
        ("--micro-batch", args.micro_batch),
    ] {
        if let Some(value) = value {
            list.push(flag.into());
            list.push(value.to_string().into());
        }
    }
    pass_on_as("parity", &list, args.output.output, None)
}

/// Stdout of `argosy-worker ARGS...`; its stderr is ours.
pub(crate) fn ask<I: AsRef<OsStr>>(worker: &Path, args: &[I]) -> Outcome<Vec<u8>> {
    let output = quiet(worker)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|e| Failure::io("start", worker, &e))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(exit_of(output.status), sentence(&said, output.status)))
}

/// The sentence a failed worker ended with, without the log before it and without a second `error:`.
fn sentence(said: &str, status: ExitStatus) -> String {
    let from = said.rfind("error: ").map_or(0, |at| at + "error: ".len());
    match said[from..].trim() {
        "" => format!("argosy-worker ended with {status}"),
        sentence => sentence.to_owned(),
    }
}
