//! `cargo xtask gpu-page`: `ops/reports/gpu.md` from `ops/reports/gpu.json`, which `tests/gpu/run.sh` made on a machine with a
//! GPU. Paths are those that the page lists already; a test of the worker holds that list against what there is.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::paths::Paths;

pub(crate) const USAGE: &str = "";

pub(crate) fn run(paths: &Paths, args: &[String]) -> Result<ExitCode> {
    crate::parse_switches("gpu-page", &[], args)?;
    let folder = paths.root.join("ops/reports");
    let read = |name: &str| fs::read_to_string(folder.join(name)).with_context(|| format!("cannot read {name}"));
    let report: Value = serde_json::from_str(&read("gpu.json")?).context("gpu.json is no JSON")?;
    let page = folder.join("gpu.md");
    fs::write(&page, render(&read("gpu.md")?, &report)).context("cannot write gpu.md")?;
    println!("wrote {}", page.display());
    Ok(ExitCode::SUCCESS)
}

/// The page with what the report says of each of its paths, and the report's speeds behind them.
fn render(page: &str, report: &Value) -> String {
    let list = |name: &str| report[name].as_array().cloned().unwrap_or_default();
    let (paths, speeds) = (list("paths"), list("speed"));
    let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let short: String = word(&report["commit"]).chars().take(10).collect();
    let place = format!("{} at {short}", word(&report["gpu"]));
    let mut out = String::new();
    for line in page.lines().take_while(|line| *line != SPEED) {
        let found = paths
            .iter()
            .find(|path| line.starts_with(&format!("| {} |", word(&path["path"]))));
        match found {
            Some(path) => {
                let verb = if path["holds"] == true { "ran on" } else { "failed on" };
                out += &format!("| {} | {verb} {place} | {} |\n", word(&path["path"]), measured(path));
            }
            None => out += &format!("{line}\n"),
        }
    }
    if speeds.is_empty() {
        return out;
    }
    out = format!("{}\n\n{SPEED}\n\n{SPEED_HEAD}", out.trim_end());
    for speed in &speeds {
        let ms = |key: &str| format!("{:.1}", 1e3 * speed[key].as_f64().unwrap_or(f64::NAN));
        let percent = |key: &str| format!("{:.0} %", 1e2 * speed[key].as_f64().unwrap_or(f64::NAN));
        out += &format!(
            "| {} {}, {} rows | {} | {} | {} | {} | {} | {} |\n",
            word(&speed["model"]),
            word(&speed["precision"]),
            speed["rows"],
            speed["samples_per_second"].as_f64().unwrap_or(f64::NAN).round(),
            ms("encode"),
            ms("loss"),
            ms("backward"),
            ms("apply"),
            percent("of_peak_computing"),
        );
    }
    out
}

const SPEED: &str = "## Speed";
const SPEED_HEAD: &str = "| step | samples/s | encode ms | loss ms | backward ms | apply ms | of the peak product while computing |\n\
                          |---|---|---|---|---|---|---|\n";

/// Differences that were measured, in words.
fn measured(path: &Value) -> String {
    let mut parts = Vec::new();
    for key in ["features", "loss", "gradient", "tensor", "optimiser", "next_loss"] {
        if let Some(value) = path[key].as_f64().filter(|value| *value > 0.0) {
            parts.push(format!("{} {value:.1e}", key.replace('_', " ")));
        }
    }
    parts.extend(
        ["error", "note"]
            .iter()
            .filter_map(|key| path[*key].as_str())
            .map(str::to_owned),
    );
    parts.join(", ").replace('|', "/").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn page_says_where_a_path_ran_or_failed_and_leaves_the_others() {
        let page = "# t\n\n| path | where | measured |\n|---|---|---|\n| a | never run | |\n| b | never run | |\n| c | never run | |\n";
        let report = json!({"gpu": "G", "commit": "0123456789abc", "paths": [
            {"path": "a", "holds": true, "loss": 1e-6, "note": "n"}, {"path": "b", "holds": false, "error": "e"}]});
        let got = render(page, &report);
        assert!(
            got.contains("| a | ran on G at 0123456789 | loss 1.0e-6, n |\n"),
            "{got}"
        );
        assert!(got.contains("| b | failed on G at 0123456789 | e |\n"), "{got}");
        assert!(got.ends_with("| c | never run | |\n"), "{got}");
        // Written over itself, it stays as it is.
        assert_eq!(render(&got, &report), got);
    }
}
