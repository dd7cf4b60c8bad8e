//! `argosy doctor`: what is here, what is missing, and which paths we write.

use crate::args::OutputArgs;
use crate::fail::Outcome;
use crate::listing;
use crate::out::{self, Table};
use crate::worker;
use argosy_common::exit::Exit;
use std::path::{Path, PathBuf};

/// One line of the answer.
#[derive(Debug, serde::Serialize)]
struct Check {
    name: &'static str,
    holds: bool,
    detail: String,
}

pub(crate) fn run(args: &OutputArgs) -> Outcome<Exit> {
    let checks = checks();
    let paths: Vec<(&str, PathBuf)> = [
        ("runs", Some(PathBuf::from("runs"))),
        ("downloads", cache()),
        ("demo", demo()),
    ]
    .into_iter()
    .filter_map(|(name, path)| path.map(|p| (name, p)))
    .collect();
    let sizes: Vec<_> = paths.iter().map(|(name, path)| (*name, path, size_of(path))).collect();
    let listed: Vec<_> = sizes
        .iter()
        .map(|(name, path, bytes)| serde_json::json!({"name": name, "path": path, "bytes": bytes}))
        .collect();
    let value = serde_json::json!({
        "version": 1, "argosy": env!("CARGO_PKG_VERSION"), "checks": checks, "paths": listed,
    });
    listing::print(args.output, &value, Some("checks"), |_| {
        let mut table = Table::new(&["check", "", "detail"]);
        for check in &checks {
            let word = if check.holds { "ok" } else { "MISSING" };
            table.row(&[check.name.into(), word.into(), check.detail.clone()]);
        }
        let text = table.render() + "\n";
        let mut table = Table::new(&["paths we write", "bytes", "path"]);
        for (name, path, bytes) in &sizes {
            let bytes = bytes.map_or_else(|| "none yet".to_owned(), out::bytes);
            table.row(&[(*name).into(), bytes, path.display().to_string()]);
        }
        text + &table.render()
    })?;
    if checks.iter().all(|c| c.holds) {
        out::say("all is here: start with `argosy run JOB.toml`");
        return Ok(Exit::Ok);
    }
    out::say("something is missing: `cargo xtask setup` and `cargo build --workspace` bring it");
    Ok(Exit::Unavailable)
}

fn checks() -> Vec<Check> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut checks = vec![Check {
        name: "argosy",
        holds: true,
        detail: format!("{} on {} cores", env!("CARGO_PKG_VERSION"), cores),
    }];
    let worker = worker::find();
    checks.push(match &worker {
        Ok(path) => Check {
            name: "argosy-worker",
            holds: true,
            detail: path.display().to_string(),
        },
        Err(failure) => Check {
            name: "argosy-worker",
            holds: false,
            detail: failure.message.clone(),
        },
    });
    // The loader of the system is the judge: a worker that can say its version has found every library.
    if let Ok(path) = worker {
        let (holds, detail) = match worker::ask(&path, &["--version"]) {
            Ok(text) => (true, String::from_utf8_lossy(&text).trim().to_owned() + " starts"),
            Err(failure) => (false, failure.message),
        };
        checks.push(Check {
            name: "libtorch",
            holds,
            detail,
        });
        if holds {
            checks.push(gpu(&path));
        }
    }
    checks
}

/// Whether jobs run on a GPU here. A machine without one lacks nothing.
fn gpu(worker: &Path) -> Check {
    let told = worker::ask(worker, &["devices"]).ok();
    let told: serde_json::Value = told
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let devices = told["devices"].as_i64().unwrap_or(0);
    let detail = match told["missing"].as_str() {
        None if devices > 0 => {
            let first = told["gpu"].as_str().unwrap_or("unknown");
            format!("{devices}, the first {first}; jobs run on it unless they say device = \"cpu\"")
        }
        missing => format!(
            "none, jobs run on the CPU: {}",
            missing.unwrap_or("argosy-worker does not say why")
        ),
    };
    Check {
        name: "GPUs",
        holds: true,
        detail,
    }
}

pub(crate) fn cache() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("argosy"))
}

/// `target/demo` of the clone that this program was built in.
pub(crate) fn demo() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let target = own.ancestors().find(|p| p.file_name().is_some_and(|n| n == "target"))?;
    Some(target.join("demo"))
}

/// Bytes of all files below `path`; `None` when it does not exist.
pub(crate) fn size_of(path: &Path) -> Option<u64> {
    let meta = path.symlink_metadata().ok()?;
    if !meta.is_dir() {
        return Some(meta.len());
    }
    let entries = std::fs::read_dir(path).ok()?.flatten();
    Some(entries.filter_map(|e| size_of(&e.path())).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_of_a_folder_counts_all_files_below() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(size_of(&dir.path().join("none")), None);
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/x"), [0; 10]).unwrap();
        std::fs::write(dir.path().join("y"), [0; 5]).unwrap();
        assert_eq!(size_of(dir.path()), Some(15));
    }
}
