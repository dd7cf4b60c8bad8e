//! `argosy config show` and `argosy schema`: what a job is once all layers are settled, and what it may be.

use crate::args::{Format, JobArgs, OutputArgs};
use crate::fail::{Failure, Outcome};
use crate::job::{self, LoadedJob};
use crate::listing;
use crate::out::{self, Table};
use crate::run::diff;
use argosy_common::config::Job;
use argosy_common::exit::Exit;
use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show a job as it is run: defaults < file < environment < flags
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// Say of each key where its value comes from
    #[arg(long)]
    pub(crate) origin: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

pub(crate) fn run(command: &ConfigCommand) -> Outcome<Exit> {
    let ConfigCommand::Show(args) = command;
    let loaded = job::load(&args.job)?;
    let format = args.output.output;
    if args.origin {
        origins(&loaded, format)?;
    } else {
        show(&loaded.job, format)?;
    }
    Ok(Exit::Ok)
}

/// The whole job: TOML for people, which is a job file again; other formats are as good.
fn show(job: &Job, format: Format) -> Outcome<()> {
    let text = toml::to_string(job)
        .map_err(|e| Failure::new(Exit::BadConfig, format!("the job cannot be written as TOML: {e}")))?;
    listing::print(format, job, None, |_| text)
}

/// A line a key.
fn origins(loaded: &LoadedJob, format: Format) -> Outcome<()> {
    let leaves = diff::leaves(&loaded.job);
    let origin = |key: &str| {
        loaded
            .said
            .place_of(key)
            .map_or_else(|| "default".to_owned(), ToString::to_string)
    };
    let rows: Vec<_> = leaves
        .iter()
        .map(|(key, value)| serde_json::json!({"key": key, "value": value, "origin": origin(key)}))
        .collect();
    let value = serde_json::json!({"version": 1, "keys": rows});
    listing::print(format, &value, Some("keys"), |_| {
        let mut table = Table::new(&["key", "value", "origin"]).left();
        for (key, value) in &leaves {
            table.row(&[key.clone(), diff::word(value), origin(key)]);
        }
        table.render()
    })
}

pub(crate) fn schema() -> Outcome<Exit> {
    out::json(&Job::schema())?;
    Ok(Exit::Ok)
}
