//! The ring between three processes on loopback against libtorch's Gloo, and how soon an abort ends it.

use std::process::Command;

use anyhow::{Context, Result};

use super::{Bench, Better, Bound, Measure, Session};

pub(crate) const BENCH: Bench = Bench {
    name: "ring",
    about: "All-reduce of 100 MB over three processes on loopback",
    run,
};

/// 100 MB of f32.
const ELEMENTS: &str = "25000000";
const RANKS: &str = "3";
/// Sums in one round of the bench; its figure is their median.
const SUMS: &str = "5";

fn run(session: &mut Session<'_>) -> Result<()> {
    let ours = session.build("argosy-worker", ["--example", "bench_ring"])?;
    // Asked before the first round: a missing environment is told at once.
    session.peers_python()?;
    let call = || {
        let mut command = Command::new(&ours);
        command.args([ELEMENTS, RANKS, SUMS]);
        command
    };
    let sums = Measure {
        label: "sums of 100 MB".into(),
        unit: "1/s",
        better: Better::Higher,
        bound: Some(Bound::AtLeast(0.8)),
    };
    session.race(
        sums,
        "gloo",
        |session| Ok(1.0 / number(&session.json(&mut call())?, "seconds")?),
        |session| {
            let mut peer = session.peer("ring.py")?;
            peer.args(["--elements", ELEMENTS, "--ranks", RANKS, "--rounds", SUMS]);
            Ok(1.0 / number(&session.json(&mut peer)?, "seconds")?)
        },
    )?;
    let abort = Measure {
        label: "abort in mid transfer, slowest rank".into(),
        unit: "ms",
        better: Better::Lower,
        bound: Some(Bound::AtMost(10.0)),
    };
    session.alone(abort, |session| number(&session.json(&mut call())?, "abort_ms"))?;
    session.note(
        "A round is the median of five sums in one start of three processes; a sum's time is its slowest rank's.",
    );
    Ok(())
}

fn number(value: &serde_json::Value, key: &str) -> Result<f64> {
    value[key].as_f64().with_context(|| format!("no {key} in the result"))
}
