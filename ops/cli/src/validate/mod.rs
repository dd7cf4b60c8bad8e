//! `argosy validate`: a job's fields, how its parts fit together, and whether the world is as it wants it. Nothing is trained,
//! and what is written is removed again.

mod environment;
mod topology;

use crate::args::{Format, JobArgs, OutputArgs};
use crate::fail::{Failure, Outcome};
use crate::out::{self, Table};
use crate::{job, listing};
use argosy_common::exit::Exit;
use clap::Args;
use serde::Serialize;

#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// Only what can be judged from the file itself: no shard, bucket, program or folder is looked at
    #[arg(long)]
    pub(crate) no_environment: bool,
    /// Warnings fail, too
    #[arg(long)]
    pub(crate) deny_warnings: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Error,
}

/// One check.
#[derive(Debug, Serialize)]
struct Finding {
    /// `fields`, `topology` or `environment`.
    layer: &'static str,
    check: &'static str,
    verdict: Verdict,
    detail: String,
    /// Exit code of an error.
    exit: u8,
}

impl Finding {
    fn new(layer: &'static str, check: &'static str, verdict: Verdict, detail: impl Into<String>) -> Self {
        Self {
            layer,
            check,
            verdict,
            detail: detail.into(),
            exit: Exit::Ok.code(),
        }
    }

    /// What a step of a real start says.
    fn of(layer: &'static str, check: &'static str, outcome: Outcome<(Verdict, String)>) -> Self {
        match outcome {
            Ok((verdict, detail)) => Self::new(layer, check, verdict, detail),
            Err(failure) => Self {
                exit: failure.exit.code(),
                ..Self::new(layer, check, Verdict::Error, failure.message)
            },
        }
    }
}

pub(crate) fn run(args: &ValidateArgs) -> Outcome<Exit> {
    // A job that is none has one thing wrong with it, and it is said as everywhere.
    let loaded = job::load(&args.job)?;
    let keys = crate::run::diff::leaves(&loaded.job);
    let said = keys.keys().filter(|key| loaded.said.place_of(key).is_some()).count();
    let detail = format!("{said} keys are said, the others have their defaults");
    let mut findings = vec![Finding::new("fields", "job file", Verdict::Ok, detail)];
    findings.extend(topology::check(&loaded.job));
    if !args.no_environment {
        findings.extend(environment::check(&loaded)?);
    }
    print(&findings, args.output.output)?;
    conclude(&findings, args.deny_warnings)
}

fn print(findings: &[Finding], format: Format) -> Outcome<()> {
    let value = serde_json::json!({"version": 1, "checks": findings});
    listing::print(format, &value, Some("checks"), |_| {
        let mut table = Table::new(&["layer", "check", "", "detail"]).left();
        for finding in findings {
            let word = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "WARNING",
                Verdict::Error => "ERROR",
            };
            table.row(&[
                finding.layer.into(),
                finding.check.into(),
                word.into(),
                finding.detail.clone(),
            ]);
        }
        table.render()
    })
}

/// The first error's exit code; all errors are listed above.
fn conclude(findings: &[Finding], deny_warnings: bool) -> Outcome<Exit> {
    let count = |verdict| findings.iter().filter(|f| f.verdict == verdict).count();
    let (errors, warnings) = (count(Verdict::Error), count(Verdict::Warning));
    if let Some(first) = findings.iter().find(|f| f.verdict == Verdict::Error) {
        let message = format!("{errors} of {} checks do not hold", findings.len());
        return Err(Failure::new(Exit::from_code(i32::from(first.exit)), message));
    }
    if deny_warnings && warnings > 0 {
        let message = format!("{warnings} warnings, and --deny-warnings was given");
        return Err(Failure::new(Exit::BadConfig, message));
    }
    out::say(&match warnings {
        0 => "the job can be run".to_owned(),
        n => format!("the job can be run; {n} warnings"),
    });
    Ok(Exit::Ok)
}
