//! The table at the end, and the report of a long run.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::runner::TestRun;
use super::{Stage, Wish};
use crate::paths::Paths;
use crate::record::{describe_commit, describe_machine, today};

/// Seconds and result of each stage.
pub(crate) fn table(stages: &[Stage]) -> String {
    let mut text = format!("{:<8} {:>9}  result\n", "stage", "seconds");
    for stage in stages {
        let result = if stage.passed { "ok" } else { "FAILED" };
        let note = if stage.note.is_empty() {
            String::new()
        } else {
            format!("  {}", stage.note)
        };
        text.push_str(&format!("{:<8} {:>9.1}  {result}{note}\n", stage.name, stage.seconds));
    }
    let total: f64 = stages.iter().map(|stage| stage.seconds).sum();
    text.push_str(&format!("{:<8} {total:>9.1}\n", "all"));
    text
}

/// Writes `ops/reports/SUITE.json`: what was run, on which commit and machine, and what it came to.
pub(crate) fn write_json(paths: &Paths, wish: Wish, stages: &[Stage], tests: Option<&TestRun>) -> Result<PathBuf> {
    let path = paths.root.join("ops/reports/SUITE.json");
    let stages: Vec<_> = stages
        .iter()
        .map(|stage| json!({ "name": stage.name, "seconds": calc_tenths(stage.seconds), "passed": stage.passed, "note": stage.note }))
        .collect();
    let tests = tests.map(|run| {
        json!({
            "runner": run.runner, "passed": run.counts.passed, "failed": run.counts.failed,
            "ignored": run.counts.skipped, "skips": run.skips, "seeds": run.seeds,
        })
    });
    let report = json!({
        "version": 1,
        "commit": describe_commit(paths),
        "date": today(),
        "strict": wish.strict,
        "machine": describe_machine(),
        "stages": stages,
        "tests": tests,
    });
    let text = serde_json::to_string_pretty(&report).context("cannot write the report")? + "\n";
    fs::create_dir_all(paths.root.join("ops/reports")).context("cannot create ops/reports")?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn calc_tenths(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_shows_each_stage_its_seconds_and_the_sum() {
        let stages = [
            Stage {
                name: "fmt",
                seconds: 1.25,
                passed: true,
                note: String::new(),
            },
            Stage {
                name: "clippy",
                seconds: 2.5,
                passed: false,
                note: "why".to_owned(),
            },
        ];
        let text = table(&stages);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[2].contains("clippy") && lines[2].contains("2.5") && lines[2].contains("FAILED  why"));
        assert!(lines[3].contains("3.8") || lines[3].contains("3.7"), "{text}");
    }

    #[test]
    fn report_holds_counts_skips_and_machine() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            root: dir.path().to_owned(),
            cache: dir.path().to_owned(),
        };
        let mut run = TestRun {
            runner: "nextest",
            passed: true,
            ..TestRun::default()
        };
        run.counts.passed = 7;
        run.skips.push("no GPU".to_owned());
        let path = write_json(
            &paths,
            Wish {
                long: true,
                strict: false,
            },
            &[],
            Some(&run),
        )
        .unwrap();
        let report: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(report["version"], 1);
        assert_eq!(report["tests"]["passed"], 7);
        assert_eq!(report["tests"]["skips"][0], "no GPU");
        assert!(report["machine"]["cores"].as_u64().unwrap() > 0);
        assert_eq!(
            report["commit"],
            serde_json::Value::Null,
            "a folder that is no clone has no commit"
        );
    }
}
