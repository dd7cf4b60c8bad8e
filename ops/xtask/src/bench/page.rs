//! `ops/benchmarks.md`, written from the committed JSON files and from nothing else.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::paths::Paths;

const HEAD: &str = "# Benchmarks\n\nWritten by `cargo xtask bench --page` from `ops/reports/bench/*.json`, which hold every round. A ratio is the median over \
rounds of that\nround's ratio; above 1 ours is better. Absolute figures depend on the machine, ratios less.\n";

/// Writes the page; where it lies.
pub(crate) fn write(paths: &Paths) -> Result<PathBuf> {
    let folder = paths.root.join("ops/reports/bench");
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| format!("cannot read {}: no bench has been run yet", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "json"))
        .collect();
    files.sort();
    let mut text = HEAD.to_owned();
    for file in files {
        let report = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let report: Value = serde_json::from_str(&report).with_context(|| format!("{} is no JSON", file.display()))?;
        text += &section(&report);
    }
    let path = paths.root.join("ops/benchmarks.md");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// One bench as Markdown.
pub(crate) fn section(report: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let mut text = format!(
        "\n## {}\n\n{}. {} cores of {}, {}, commit {}.\n\n| measure | ours | peer | ratio | asked | kept |\n|---|---|---|---|---|---|\n",
        word(&report["name"]),
        word(&report["about"]),
        report["machine"]["cores"],
        word(&report["machine"]["cpu"]),
        word(&report["date"]),
        word(&report["commit"]).chars().take(10).collect::<String>(),
    );
    for figure in report["figures"].as_array().into_iter().flatten() {
        let peer = figure["peer_median"].as_f64().map_or("-".to_owned(), |peer| {
            format!("{} ({})", short(peer), word(&figure["peer_name"]))
        });
        text += &format!(
            "| {} | {} {} | {peer} | {} | {} | {} |\n",
            word(&figure["measure"]),
            figure["ours_median"].as_f64().map_or("-".to_owned(), short),
            word(&figure["unit"]),
            figure["ratio"].as_f64().map_or("-".to_owned(), short),
            figure["bound"].as_str().unwrap_or("-"),
            if figure["bound"].is_null() {
                "-"
            } else if figure["met"] == true {
                "yes"
            } else {
                "**no**"
            },
        );
    }
    for note in report["notes"].as_array().into_iter().flatten() {
        text += &format!("\n{}\n", word(note));
    }
    text
}

/// Three digits that mean something.
fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn page_shows_each_figure_of_each_report_and_marks_what_is_missed() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            root: dir.path().to_owned(),
            cache: dir.path().to_owned(),
        };
        let folder = dir.path().join("ops/reports/bench");
        fs::create_dir_all(&folder).unwrap();
        let report = json!({
            "name": "ring", "about": "all-reduce", "commit": "0123456789abcdef", "date": "2026-11-23",
            "machine": { "cores": 2, "cpu": "a CPU" }, "notes": ["loopback only"],
            "figures": [{ "measure": "100 MB", "unit": "s", "ours_median": 0.25, "peer_median": 0.2, "peer_name": "gloo",
                          "ratio": 0.79, "bound": ">= 0.8", "met": false }],
        });
        fs::write(folder.join("ring.json"), report.to_string()).unwrap();
        let text = fs::read_to_string(write(&paths).unwrap()).unwrap();
        assert!(
            text.contains("| 100 MB | 0.2500 s | 0.2000 (gloo) | 0.7900 | >= 0.8 | **no** |"),
            "{text}"
        );
        assert!(
            text.contains("loopback only") && text.contains("commit 0123456789."),
            "{text}"
        );
    }
}
