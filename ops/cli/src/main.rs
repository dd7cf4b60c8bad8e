//! `argosy`: the command line. Data on stdout, chatter on stderr, exit codes of [`argosy_common::exit`].
//!
//! Links no libtorch: what needs it is carried out by `argosy-worker`, found beside this program.

mod args;
mod audit;
mod beside;
mod checkpoints;
mod clean;
mod convert;
mod crash;
mod data;
mod doctor;
mod documents;
mod evaluate;
mod fail;
mod index;
mod init;
mod job;
mod listing;
mod out;
mod pki;
mod planning;
mod prepare;
mod profile;
mod progress;
mod report;
mod run;
mod scratch;
mod settled;
mod sim;
mod tensorboard;
mod unpack;
mod validate;
mod worker;
mod yaml;

use argosy_common::exit::Exit;
use argosy_common::secret;
use args::{Cli, Command, DataCommand, EvalCommand};
use clap::Parser;
use fail::Outcome;
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, with code 0. A reader that is gone is no error.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage.code()));
        }
    };
    let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    secret::learn_environment(std::env::vars_os().filter_map(text));
    crash::install();
    start_log(cli.verbose);
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| dispatch(cli.command))) {
        Ok(Ok(exit)) => exit.into(),
        Ok(Err(failure)) => {
            failure.print();
            // What failed because one of our threads panicked is a bug, whatever it looks like from here.
            if crash::happened() { Exit::Panic } else { failure.exit }.into()
        }
        Err(_) => Exit::Panic.into(),
    }
}

fn dispatch(command: Command) -> Outcome<Exit> {
    match command {
        Command::Init(args) => init::run(&args),
        Command::ConvertArgs(args) => convert::run(&args),
        Command::Config(command) => settled::run(&command),
        Command::Schema => settled::schema(),
        Command::Validate(args) => validate::run(&args),
        Command::Plan(args) => planning::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Prepare(args) => prepare::run(&args),
        Command::Index(args) => index::run(&args),
        Command::Data(DataCommand::Check(args)) => data::check(&args),
        Command::Eval(EvalCommand::ZeroShot { args }) => worker::pass_on("eval-zero-shot", &args),
        Command::Checkpoints(args) => checkpoints::run(&args),
        Command::Export { args } => worker::pass_on("export", &args),
        Command::Embed { args } => worker::pass_on("embed", &args),
        Command::Models(args) => worker::models(&args),
        Command::Parity(args) => worker::parity(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Sim(args) => sim::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Pki(command) => pki::run(&command),
        Command::Doctor(args) => doctor::run(&args),
        Command::Clean(args) => clean::run(&args),
        Command::Completions { shell } => documents::completions(shell),
        Command::Man { dir } => documents::man(&dir),
        Command::Unpack(args) => unpack::run(&args),
    }
}

/// A log exists only when asked for: errors and progress speak for themselves.
fn start_log(verbose: u8) {
    let asked = std::env::var("ARGOSY_LOG").ok().filter(|filter| !filter.is_empty());
    let filter = match (asked, verbose) {
        (Some(filter), _) => filter,
        (None, 0) => return,
        (None, 1) => "argosy=info,argosy_coordinator=info,argosy_shard_loader=info".into(),
        (None, 2) => "debug".into(),
        (None, _) => "trace".into(),
    };
    let filter = tracing_subscriber::EnvFilter::new(filter);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| secret::Hiding(std::io::stderr()));
    // Only fails when a log was started before, which nobody does.
    let _ = log.try_init();
}
