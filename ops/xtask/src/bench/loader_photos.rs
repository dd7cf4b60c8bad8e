//! The training loader on JPEG photographs ([`crate::photographs`]), to the float32 that OpenCLIP's loader gives, one core each.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Bench, Better, Bound, Measure, Session};
use crate::photographs;

pub(crate) const SMALL: Bench = Bench {
    name: "loader-small",
    about: "Training samples per second from JPEG photographs of 256 to 512 px, one core each",
    run: small,
};

pub(crate) const LARGE: Bench = Bench {
    name: "loader-large",
    about: "The same from photographs of 640 to 1024 px, exact and by the fast path",
    run: large,
};

pub(crate) const CORES: Bench = Bench {
    name: "loader-cores",
    about: "What a second core brings the training loader",
    run: cores,
};

/// Seconds of one measurement; the first batches are outside the clock.
const SECONDS: &str = "8";

fn small(session: &mut Session<'_>) -> Result<()> {
    let shards = shards(session, "small")?;
    let ours = example(session)?;
    race(
        session,
        "256-512 px JPEG to 224, f32",
        4.0,
        &ours,
        &shards,
        &["1", "f32"],
    )?;
    session.note("Both sides are bound to one core and read from the page cache; start-up is outside both clocks.");
    Ok(())
}

fn large(session: &mut Session<'_>) -> Result<()> {
    let shards = shards(session, "large")?;
    let ours = example(session)?;
    race(
        session,
        "640-1024 px JPEG to 224, f32",
        3.3,
        &ours,
        &shards,
        &["1", "f32"],
    )?;
    race(
        session,
        "the same, fast path",
        4.0,
        &ours,
        &shards,
        &["1", "f32", "fast"],
    )?;
    session.note("The fast path (data.fast_decode) is off by default: its pixels are not OpenCLIP's.");
    Ok(())
}

fn cores(session: &mut Session<'_>) -> Result<()> {
    let shards = shards(session, "small")?;
    let ours = example(session)?;
    let measure = Measure {
        label: "two cores against one, 256-512 px".into(),
        unit: "samples/s",
        better: Better::Higher,
        bound: Some(Bound::AtLeast(1.9)),
    };
    session.race(
        measure,
        "argosy on one core",
        |session| {
            rate(
                session,
                bound_to("0,1", &ours).arg(&shards).args(["224", SECONDS, "2", "f32"]),
            )
        },
        |session| {
            rate(
                session,
                bound_to("0", &ours).arg(&shards).args(["224", SECONDS, "1", "f32"]),
            )
        },
    )
}

fn race(session: &mut Session<'_>, label: &str, bound: f64, ours: &Path, shards: &Path, how: &[&str]) -> Result<()> {
    session.peers_python()?;
    let measure = Measure {
        label: label.into(),
        unit: "samples/s",
        better: Better::Higher,
        bound: Some(Bound::AtLeast(bound)),
    };
    session.race(
        measure,
        "open_clip",
        |session| {
            rate(
                session,
                bound_to("0", ours).arg(shards).args(["224", SECONDS]).args(how),
            )
        },
        |session| {
            let script = session.root().join("tests/peers/loader.py");
            let mut files: Vec<PathBuf> = std::fs::read_dir(shards)?
                .map(|entry| Ok(entry?.path()))
                .collect::<Result<_>>()?;
            files.sort();
            let mut peer = bound_to("0", &session.peers_python()?);
            peer.arg(script)
                .args(files)
                .args(["--size", "224", "--seconds", SECONDS]);
            rate(session, &mut peer)
        },
    )
}

/// A command that runs on the named cores only, whatever threads it has.
fn bound_to(cores: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cores]).arg(program);
    command
}

fn example(session: &Session<'_>) -> Result<PathBuf> {
    session.build("argosy-shard-loader", ["--example", "throughput"])
}

fn shards(session: &Session<'_>, kind: &str) -> Result<PathBuf> {
    photographs::shards(session.root(), &session.peers_python()?, kind)
}

fn rate(session: &Session<'_>, command: &mut Command) -> Result<f64> {
    session.json(command)?["samples_per_second"]
        .as_f64()
        .context("no samples_per_second in the result")
}
