//! `argosy-coordinator`: coordinates one run on a cluster, or stands by for the one that does.
#![allow(clippy::print_stderr, reason = "what a command says is its output")]

mod args;
mod lead;
mod scale;
mod secret;

use argosy_common::exit::Exit;
use argosy_common::secret as secrets;
use argosy_coordinator::crash;
use args::{Args, LogFormat};
use clap::Parser as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// An exit code and the sentence that explains it.
type Failure = (Exit, String);

fn main() -> ExitCode {
    let args = Args::parse();
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    secrets::learn_environment(std::env::vars_os().filter_map(text));
    start_logging(args.log_format);
    crash::install("argosy-coordinator", |line| tracing::error!("{line}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = runtime
        .map_err(|e| (Exit::NoCapacity, format!("no threads for the runtime: {e}")))
        .and_then(|runtime| {
            let ended = runtime.block_on(lead::run(args));
            runtime.shutdown_background();
            ended
        });
    match ended {
        // What failed because one of our threads panicked is a bug, whatever it looks like from here.
        ended if crash::happened() => {
            if let Err((_, message)) = ended {
                eprintln!("error: {}", secrets::hide(&message));
            }
            Exit::Panic.into()
        }
        Ok(exit) => exit.into(),
        Err((exit, message)) => {
            eprintln!("error: {}", secrets::hide(&message));
            exit.into()
        }
    }
}

fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_env("ARGOSY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(|| secrets::Hiding(std::io::stderr()));
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
