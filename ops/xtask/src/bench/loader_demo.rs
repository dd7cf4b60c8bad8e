//! The training loader on the demo's own pictures (64 px and small), against OpenCLIP's loader on the same shards.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Bench, Better, Bound, Measure, Session};

pub(crate) const BENCH: Bench = Bench {
    name: "loader-demo",
    about: "Training samples per second from the demo's small pictures, one thread each",
    run,
};

fn run(session: &mut Session<'_>) -> Result<()> {
    let argosy = session.build("argosy", ["--bin", "argosy"])?;
    let ours = session.build("argosy-shard-loader", ["--example", "throughput"])?;
    let data = session.workspace()?;
    let archive = session.root().join("ops/demo/noto.tar.zst");
    let status = Command::new(argosy).arg("unpack").arg(&archive).arg(&data).status()?;
    ensure!(status.success(), "cannot unpack {}", archive.display());
    let shard = data.join("noto/train-00000.tar");
    ensure!(shard.is_file(), "{} is missing from the archive", shard.display());

    // Asked before the first round: a missing environment is told at once.
    session.peers_python()?;
    let measure = Measure {
        label: "48 px from small drawings".into(),
        unit: "samples/s",
        better: Better::Higher,
        bound: Some(Bound::AtLeast(4.0)),
    };
    session.race(
        measure,
        "open_clip",
        |session| rate(session, Command::new(&ours).arg(&shard).args(["48", "5", "1"])),
        |session| {
            rate(
                session,
                session
                    .peer("loader.py")?
                    .arg(&shard)
                    .args(["--size", "48", "--seconds", "5"]),
            )
        },
    )?;
    let index = Measure {
        label: "indexing that shard".into(),
        unit: "s",
        better: Better::Lower,
        bound: Some(Bound::AtMost(1.0)),
    };
    session.alone(index, |session| {
        session.json(Command::new(&ours).arg(&shard).args(["48", "1", "1"]))?["index_seconds"]
            .as_f64()
            .context("no index_seconds in the result")
    })?;
    session.note("Both sides read from the page cache; start-up is outside both clocks.");
    Ok(())
}

fn rate(session: &Session<'_>, command: &mut Command) -> Result<f64> {
    session.json(command)?["samples_per_second"]
        .as_f64()
        .context("no samples_per_second in the result")
}
