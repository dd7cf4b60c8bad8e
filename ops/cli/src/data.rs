//! `argosy data check`: what is wrong with a data set, before a run trains on it.

use crate::args::{DataCheckArgs, Format};
use crate::fail::Outcome;
use crate::listing;
use crate::out::{self, Table};
use crate::progress::ShardProgress;
use argosy_common::exit::Exit;
use argosy_shard_loader::check::{self, CheckConfig, CheckReport};
use argosy_shard_loader::{BuildConfig, RetryPolicy, Store};
use std::path::Path;

/// Largest sample, as a job has it by default.
const SAMPLE_BYTES_MAX: u64 = 64 << 20;

pub(crate) fn check(args: &DataCheckArgs) -> Outcome<Exit> {
    let config = CheckConfig {
        build: BuildConfig::new(&args.keys.image_key, &args.keys.text_key),
        max_image_pixels: args.max_image_pixels,
        max_sample_bytes: SAMPLE_BYTES_MAX,
        listed_max: args.list,
    };
    let store = Store::new(RetryPolicy::default())?;
    let progress = ShardProgress::new("checking");
    let checked = check::check(
        &store,
        &args.shards.join("::"),
        Path::new("."),
        &config,
        &|done, all| progress.tell(done, all, None),
    );
    drop(progress);
    let report = checked?;
    show(&report, args.output.output)?;
    let untrained = report.untrained();
    let oddities = report.reasons.values().sum::<u64>() - untrained;
    if oddities > 0 {
        out::say(&format!(
            "{} of these would be trained all the same, once for each time they are there (repeated_key, repeated_shard)",
            out::count(oddities)
        ));
    }
    if untrained == 0 {
        out::hint(&format!("next: argosy init {}", args.shards.join("::")));
        return Ok(Exit::Ok);
    }
    out::hint("next: mend or remove what is listed; a run would leave it out or mask it, and count it");
    // Data that a run would mask is the run's to count; whoever asks here wants to know it by the exit code.
    Ok(Exit::JobFailed)
}

fn show(report: &CheckReport, format: Format) -> Outcome<()> {
    let problems = report.problems.iter();
    let problems: Vec<_> = problems
        .map(|p| serde_json::json!({"shard": p.shard, "key": p.key, "reason": p.reason, "detail": p.detail}))
        .collect();
    let value = serde_json::json!({
        "version": 1,
        "shards": report.shards,
        "samples": report.samples,
        "good": report.good,
        "filtered": report.filtered,
        "reasons": report.reasons,
        "problems": problems,
    });
    let table = |_| {
        let mut table = Table::new(&["shard", "key", "reason", "detail"]);
        for p in &report.problems {
            table.row(&[p.shard.clone(), p.key.clone(), p.reason.clone(), p.detail.clone()]);
        }
        if report.problems.is_empty() {
            String::new()
        } else {
            table.render()
        }
    };
    listing::print(format, &value, Some("problems"), table)?;
    let reasons: Vec<String> = report
        .reasons
        .iter()
        .map(|(r, n)| format!("{} {r}", out::count(*n)))
        .collect();
    let verdict = if reasons.is_empty() {
        "nothing is wrong with them".to_owned()
    } else {
        reasons.join(", ")
    };
    let unlisted = report.reasons.values().sum::<u64>() - report.problems.len() as u64;
    out::say(&format!(
        "{} shards, {} samples, {} good: {verdict}{}",
        out::count(report.shards as u64),
        out::count(report.samples),
        out::count(report.good),
        if unlisted > 0 {
            format!(" ({} not listed, see --list)", out::count(unlisted))
        } else {
            String::new()
        }
    ));
    Ok(())
}
