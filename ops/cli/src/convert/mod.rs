//! `argosy convert-args`: the job of a command line of open_clip_train, and what of it cannot be honoured.

mod draft;
mod flags;
mod line;
mod page;

use crate::fail::Outcome;
use crate::out;
use argosy_common::config::Job;
use argosy_common::exit::Exit;
use clap::Args;
use flags::Fate;
use line::Line;

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// GPUs that the command runs on [default: as its launcher says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) gpus: Option<u64>,
    /// The command line, whole (`torchrun ... -m open_clip_train.main ...`) or its arguments alone
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true
    )]
    pub(crate) words: Vec<String>,
}

/// The job on stdout, what is lost on stderr.
pub(crate) fn run(args: &ConvertArgs) -> Outcome<Exit> {
    let line = Line::read(&args.words)?;
    let draft = draft::draft(&line, args.gpus)?;
    let text = draft.text();
    // What we write must be what we read.
    Job::from_toml("the job of that command line", &text)?;
    out::data(&text)?;
    let needless: Vec<&str> = line
        .said
        .iter()
        .filter(|(flag, _)| flag.fate == Fate::Needless)
        .map(|(flag, _)| flag.name)
        .collect();
    if !needless.is_empty() {
        out::say(&format!("needless: {}", needless.join(" ")));
    }
    for note in &draft.notes {
        out::say(&format!("{} {note}", out::style("note:", out::YELLOW)));
    }
    for (flag, why) in &draft.lost {
        out::say(&format!("{} {flag}: {why}", out::style("not honoured:", out::RED)));
    }
    out::hint("next: argosy validate JOB, then argosy plan JOB; ops/migrating.md has the whole table");
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests;
