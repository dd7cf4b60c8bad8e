//! `argosy audit`: was every position up to the last step trained exactly once? Reads records, step logs and index.

use crate::args::FolderArgs;
use crate::fail::{Failure, Outcome};
use crate::listing;
use crate::out::{self, Table};
use crate::run::folder::{self, RunFile};
use argosy_common::audit::{AuditInput, AuditReport, audit_with};
use argosy_common::events::Record;
use argosy_common::exit::Exit;
use argosy_common::shape::RunShape;
use argosy_common::steplog::{self, StepRecord};
use argosy_coordinator::META_FILE;
use argosy_coordinator::store::read_records;
use std::collections::BTreeMap;
use std::path::Path;

pub(crate) fn run(args: &FolderArgs) -> Outcome<Exit> {
    let facts = folder::read(&args.run)?;
    let index = crate::index::open_in(&args.run, Some(&facts.index))?;
    if index.index_hash() != facts.index_hash {
        let message = format!("index {} is not the one that the run began with", facts.index.display());
        return Err(Failure::new(Exit::Conflict, message).help("put the old index back; the audit needs it"));
    }
    let records = records(&args.run, &facts)?;
    let mut logs = logs(&args.run.join("steps"))?;
    // Who holds a state holds its history: what the workers' own logs lack, perhaps left on another machine, lies there.
    let checkpoints = crate::checkpoints::history(&args.run, &facts, &records)?;
    logs.extend(checkpoints.logs);
    let shape = RunShape {
        seed: facts.seed,
        sources: index.to_shape(),
        batch: facts.batch,
        lanes: facts.lanes,
        window_factor: facts.window_factor,
        total_positions: facts.total_positions,
    };
    let input = AuditInput {
        shape: &shape,
        records: &records,
        logs: &logs,
    };
    let report = audit_with(&input, &checkpoints.saved);
    listing::print(args.output.output, &report, None, |_| table(&report))?;
    let exit = verdict(&report);
    let run = args.run.display();
    out::hint(&match exit {
        Exit::Ok => format!("next: argosy report {run}"),
        _ => format!("next: argosy checkpoints {run} says what is left to go on from"),
    });
    Ok(exit)
}

/// The durable records; those of another configuration are refused.
fn records(run: &Path, facts: &RunFile) -> Outcome<Vec<Record>> {
    let path = run.join(META_FILE);
    if !path.exists() {
        let message = format!("{} is missing: the run never began", path.display());
        return Err(Failure::new(Exit::NotFound, message));
    }
    let records = read_records(&path).map_err(|e| {
        let failure = Failure::new(e.exit(), e.to_string());
        match e.exit() {
            Exit::Conflict => failure.help("the run may be under way; audit it when it has ended"),
            _ => failure,
        }
    })?;
    for record in &records {
        if let Record::RunCreated {
            config_hash,
            index_hash,
            ..
        } = record
            && (*config_hash, *index_hash) != (facts.config_hash, facts.index_hash)
        {
            let message = format!("{} and run.json are of different runs", path.display());
            return Err(Failure::new(Exit::Conflict, message));
        }
    }
    Ok(records)
}

/// The step logs by file name. No folder means that no step was made.
fn logs(dir: &Path) -> Outcome<BTreeMap<String, Vec<StepRecord>>> {
    let mut logs = BTreeMap::new();
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(logs),
        entries => entries.map_err(|e| Failure::io("read", dir, &e))?,
    };
    for entry in entries {
        let path = entry.map_err(|e| Failure::io("read", dir, &e))?.path();
        if path.extension().is_none_or(|e| e != "jsonl") {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(|e| Failure::io("read", &path, &e))?;
        let parsed = steplog::parse(&text).map_err(|(line, why)| {
            Failure::new(Exit::JobFailed, format!("step log {}:{line}: {why}", path.display()))
        })?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        logs.insert(name, parsed);
    }
    Ok(logs)
}

fn table(report: &AuditReport) -> String {
    let mut table = Table::new(&["audit", ""]);
    let mut line = |name: &str, value: String| table.row(&[name.to_owned(), value]);
    line("steps", format!("{} of {}", report.steps, report.total_steps));
    line("positions", out::count(report.positions));
    line("trained", out::count(report.trained));
    for (reason, rows) in &report.masked {
        line(&format!("masked: {reason}"), out::count(*rows));
    }
    for (reason, rows) in &report.skipped {
        line(&format!("skipped: {reason}"), out::count(*rows));
    }
    for (reason, rows) in &report.quarantined {
        line(&format!("quarantined: {reason}"), out::count(*rows));
    }
    for (source, count) in &report.sources {
        line(&format!("source {source}"), out::count(count.positions));
    }
    line("generations", out::count(report.generations));
    line("resumed", out::count(report.resumed));
    line("steps done again", out::count(report.superseded));
    line("findings", out::count(report.findings_total));
    let mut text = table.render();
    for finding in &report.findings {
        text += &format!("finding: {finding}\n");
    }
    text
}

fn verdict(report: &AuditReport) -> Exit {
    if !report.holds {
        let count = report.findings_total;
        out::say(&format!(
            "{} {count} findings: not every position was trained exactly once",
            out::style("FAILED:", out::RED)
        ));
        return Exit::JobFailed;
    }
    let what = if report.finished {
        "the run is finished"
    } else {
        "the run is not finished yet"
    };
    let holds = out::style("holds:", out::GREEN);
    out::say(&format!(
        "{holds} every position up to step {} exactly once; {what}",
        report.steps
    ));
    Exit::Ok
}
