//! The index: against reading the same headers and doing nothing with them, and how soon a large one is open.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Bench, Better, Bound, Measure, Session};

pub(crate) const BENCH: Bench = Bench {
    name: "index",
    about: "Indexing 1,000 local shards against reading their headers; opening the index of 200,000",
    run,
};

const SHARDS: u64 = 1_000;
const ROWS: u64 = 200;
const MANY: u64 = 200_000;

fn run(session: &mut Session<'_>) -> Result<()> {
    let example = session.build("argosy-shard-loader", ["--example", "headers"])?;
    let some = folder(session, &example, SHARDS, ROWS)?;
    let many = folder(session, &example, MANY, 1)?;
    // Makes the index that is opened, and warms the page cache for both sides of the other.
    measured(session, &example, "open", &many, MANY)?;
    measured(session, &example, "read", &some, SHARDS * ROWS)?;
    let race = Measure {
        label: "shards of 200 samples, page cache, one core".into(),
        unit: "shards/s",
        better: Better::Higher,
        bound: Some(Bound::AtLeast(0.8)),
    };
    let rate =
        |session: &Session<'_>, what| Ok(SHARDS as f64 / measured(session, &example, what, &some, SHARDS * ROWS)?);
    session.race(race, "reading the headers", |s| rate(s, "index"), |s| rate(s, "read"))?;
    let open = Measure {
        label: "opening the index of 200,000 shards".into(),
        unit: "ms",
        better: Better::Lower,
        bound: Some(Bound::AtMost(100.0)),
    };
    session.alone(open, |s| Ok(measured(s, &example, "open", &many, MANY)? * 1e3))?;
    session.note("Pictures are holes in the files, so that only headers are ever read; the peer reads each of them by itself and keeps nothing.");
    Ok(())
}

/// Seconds of one run, which must find what is there.
fn measured(session: &Session<'_>, example: &Path, what: &str, folder: &Path, expected: u64) -> Result<f64> {
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(example).arg(what).arg(folder);
    let said = session.json(&mut command)?;
    ensure!(
        said["found"] == expected,
        "{what} found {} of {expected}",
        said["found"]
    );
    said["seconds"].as_f64().context("no seconds in the result")
}

/// The folder of shards, made on first use.
fn folder(session: &Session<'_>, example: &Path, shards: u64, rows: u64) -> Result<PathBuf> {
    let base = session.root().join("target/bench/index");
    let (folder, done) = (base.join(shards.to_string()), base.join(format!("{shards}.done")));
    if !done.is_file() {
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        let mut make = Command::new(example);
        make.arg("make")
            .arg(&folder)
            .args([shards.to_string(), rows.to_string()]);
        session.json(&mut make)?;
        std::fs::write(&done, "")?;
    }
    Ok(folder)
}
