//! `cargo xtask parity`: OpenCLIP trains small models for a few steps (`tests/peers/dump.py`, in single and in double
//! precision), and `argosy-worker parity` does the same with several numbers of workers. All that was measured goes to
//! `target/bench/parity.json`; of a whole run, the page `ops/parity.md` is written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

mod cases;
mod page;

use crate::paths::Paths;
use cases::Case;

pub(crate) const USAGE: &str = "[CASE...] [--peers VENV] [--seed N] [--list] [--keep]";

/// Workers that share a batch, and rows that each encodes at once.
const RUNS: [(usize, Option<u32>); 5] = [(1, None), (2, None), (3, None), (5, None), (2, Some(2))];

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wish {
    names: Vec<String>,
    peers: Option<PathBuf>,
    /// Of OpenCLIP's weights and batches.
    seed: u64,
    list: bool,
    /// Leave golden folders where they are, and use those that are there.
    keep: bool,
}

/// One number beside what it may be.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    case: String,
    workers: usize,
    micro_batch: Option<u32>,
    measure: String,
    value: f64,
    bound: f64,
    holds: bool,
    at: String,
}

impl Entry {
    fn to_json(&self) -> Value {
        let micro = self.micro_batch.map(|rows| format!(", micro-batches of {rows}"));
        let case = format!("{}, W = {}{}", self.case, self.workers, micro.unwrap_or_default());
        json!({"case": case, "measure": self.measure, "value": self.value, "bound": self.bound, "holds": self.holds, "at": self.at})
    }
}

pub(crate) fn run(paths: &Paths, args: &[String]) -> Result<ExitCode> {
    let wish = Wish::parse(args, std::env::var_os("PEERS_VENV").map(PathBuf::from))?;
    let models =
        fs::read_to_string(paths.root.join("worker/src/clip/models.json")).context("worker/src/clip/models.json")?;
    let mut all = cases::switches();
    all.extend(cases::twins(&serde_json::from_str(&models)?)?);
    if wish.list {
        for case in &all {
            println!("{:<28} {}", case.name, case.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = wish.choose(&all)?;
    let tools = Tools {
        python: crate::peers::python(wish.peers.as_deref())?,
        worker: crate::cargo::build(paths, "argosy-worker", ["--bin", "argosy-worker"])?,
        root: paths.root.clone(),
        seed: wish.seed,
        keep: wish.keep,
    };
    let (mut entries, mut versions) = (Vec::new(), json!({}));
    for (at, case) in chosen.iter().enumerate() {
        let (found, golden) = tools.compare(case).with_context(|| format!("case {}", case.name))?;
        let failed = found.iter().filter(|entry| !entry.holds).count();
        let verdict = if failed == 0 {
            "all hold".into()
        } else {
            format!("{failed} of {} FAIL", found.len())
        };
        eprintln!("{}/{} {}: {verdict}", at + 1, chosen.len(), case.name);
        entries.extend(found);
        versions = golden;
    }
    let list: Vec<Value> = entries.iter().map(Entry::to_json).collect();
    write(
        &paths.root.join("target/bench/parity.json"),
        &(serde_json::to_string_pretty(&list)? + "\n"),
    )?;
    if wish.names.is_empty() {
        let page = page::render(&chosen, &entries, &versions, wish.seed);
        write(&paths.root.join("ops/parity.md"), &page)?;
    }
    let holds = entries.iter().all(|entry| entry.holds);
    println!(
        "{} measures of {} cases: {}",
        entries.len(),
        chosen.len(),
        if holds { "all hold" } else { "NOT all hold" }
    );
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}

impl Wish {
    fn parse(args: &[String], peers: Option<PathBuf>) -> Result<Self> {
        let mut wish = Self {
            peers,
            ..Self::default()
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("`{arg}` wants a value"));
            match arg.as_str() {
                "--peers" => wish.peers = Some(value()?.into()),
                "--seed" => {
                    let text = value()?;
                    wish.seed = text
                        .parse()
                        .with_context(|| format!("`--seed {text}` is no whole number"))?;
                }
                "--list" => wish.list = true,
                "--keep" => wish.keep = true,
                flag if flag.starts_with('-') => bail!("`cargo xtask parity` does not know `{flag}`; it takes {USAGE}"),
                name => wish.names.push(name.to_owned()),
            }
        }
        Ok(wish)
    }

    fn choose(&self, all: &[Case]) -> Result<Vec<Case>> {
        if self.names.is_empty() {
            return Ok(all.to_vec());
        }
        let find = |name: &String| {
            let found = all.iter().find(|case| case.name == *name).cloned();
            found.with_context(|| {
                format!("there is no case `{name}`; `cargo xtask parity --list` tells which there are")
            })
        };
        self.names.iter().map(find).collect()
    }
}

/// What a comparison needs.
struct Tools {
    python: PathBuf,
    worker: PathBuf,
    root: PathBuf,
    seed: u64,
    keep: bool,
}

impl Tools {
    /// Everything measured of one case, and the versions of what it was measured against.
    fn compare(&self, case: &Case) -> Result<(Vec<Entry>, Value)> {
        let folder = self.root.join("target/parity");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let (config, golden) = (folder.join(format!("{}.json", case.name)), folder.join(&case.name));
        fs::write(&config, case.config.to_string()).with_context(|| format!("cannot write {}", config.display()))?;
        self.dump(case, &config, &golden)?;
        let (mut entries, mut versions) = (Vec::new(), Value::Null);
        for (workers, micro_batch) in RUNS.into_iter().filter(|(workers, _)| *workers <= case.lanes) {
            let report = self.report(&golden, workers, micro_batch)?;
            versions = report["golden"].clone();
            for found in report["measures"].as_array().into_iter().flatten() {
                entries.push(entry(case, workers, micro_batch, found)?);
            }
        }
        if !self.keep {
            fs::remove_dir_all(&golden).with_context(|| format!("cannot remove {}", golden.display()))?;
        }
        ensure!(!entries.is_empty(), "nothing was measured");
        Ok((entries, versions))
    }

    /// Has OpenCLIP train. A folder that was kept and was made of the same is as good.
    fn dump(&self, case: &Case, config: &Path, golden: &Path) -> Result<()> {
        let made_of = golden.join("made-of.json");
        let script = self.root.join("tests/peers/dump.py");
        let source = fs::read_to_string(&script).with_context(|| format!("cannot read {}", script.display()))?;
        let of = json!({"config": case.config, "args": case.args, "seed": self.seed, "script": source});
        let kept = fs::read(&made_of)
            .ok()
            .and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        if self.keep && kept.as_ref() == Some(&of) {
            return Ok(());
        }
        let mut dump = Command::new(&self.python);
        dump.arg(script)
            .args([config, golden])
            .args(["--seed", &self.seed.to_string()])
            .args(&case.args)
            .stderr(Stdio::null());
        crate::peers::json(&mut dump)?;
        fs::write(&made_of, of.to_string()).with_context(|| format!("cannot write {}", made_of.display()))
    }

    fn report(&self, golden: &Path, workers: usize, micro_batch: Option<u32>) -> Result<Value> {
        let mut command = Command::new(&self.worker);
        command
            .arg("parity")
            .arg(golden)
            .args(["--workers", &workers.to_string(), "-o", "json"]);
        if let Some(rows) = micro_batch {
            command.args(["--micro-batch", &rows.to_string()]);
        }
        let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
        // A bound that is missed ends it with a failure too; then it has still said what it found.
        serde_json::from_slice(&output.stdout).with_context(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("{command:?} ended with {}: {said}", output.status)
        })
    }
}

fn entry(case: &Case, workers: usize, micro_batch: Option<u32>, found: &Value) -> Result<Entry> {
    let number = |key: &str| found[key].as_f64().with_context(|| format!("no {key} in {found}"));
    let word = |key: &str| {
        Ok::<_, anyhow::Error>(
            found[key]
                .as_str()
                .with_context(|| format!("no {key} in {found}"))?
                .to_owned(),
        )
    };
    Ok(Entry {
        case: case.name.clone(),
        workers,
        micro_batch,
        measure: word("measure")?,
        value: number("value")?,
        bound: number("bound")?,
        holds: found["holds"]
            .as_bool()
            .with_context(|| format!("no verdict in {found}"))?,
        at: word("at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wish_names_cases_and_refuses_what_it_does_not_know() {
        let parse = |args: &[&str]| Wish::parse(&args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>(), None);
        let wish = parse(&["vit", "--seed", "7"]).unwrap();
        assert_eq!((wish.names.as_slice(), wish.seed), (&["vit".to_owned()][..], 7));
        assert!(parse(&["--sead", "7"]).unwrap_err().to_string().contains("--seed N"));
        let all = cases::switches();
        assert_eq!(wish.choose(&all).unwrap().len(), 1);
        assert_eq!(parse(&[]).unwrap().choose(&all).unwrap().len(), all.len());
        let error = parse(&["vitt"]).unwrap().choose(&all).unwrap_err().to_string();
        assert!(error.contains("vitt") && error.contains("--list"), "{error}");
    }

    #[test]
    fn entry_without_a_verdict_is_an_error_and_one_with_it_keeps_its_number() {
        let case = cases::switches().remove(0);
        let mut found = json!({"measure": "loss", "value": 1e-7, "bound": 4e-6, "holds": true, "at": "step0.loss"});
        let read = entry(&case, 2, Some(2), &found).unwrap().to_json();
        assert_eq!(
            (&read["case"], &read["value"]),
            (&json!("vit, W = 2, micro-batches of 2"), &json!(1e-7))
        );
        found["holds"] = Value::Null;
        assert!(entry(&case, 2, None, &found).is_err());
    }
}
