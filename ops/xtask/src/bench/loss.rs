//! Memory and time of the contrastive loss, tile by tile against the whole matrix.

use std::process::Command;

use anyhow::{Context, Result};

use super::{Bench, Better, Bound, Measure, Session};

pub(crate) const BENCH: Bench = Bench {
    name: "loss-memory",
    about: "Memory of the loss at 32,768 rows and its time at 8,192 against the plain form",
    run,
};

const WIDTH: &str = "512";
const ROWS: &str = "32768";
const ROWS_TIMED: &str = "8192";
/// Rounds within one process; the figure is their median.
const ROUNDS: &str = "3";
/// Five hundredths of the full matrix, in MB.
const EXTRA_MAX_MB: f64 = 215.0;

fn run(session: &mut Session<'_>) -> Result<()> {
    let ours = session.build("argosy-worker", ["--example", "bench_loss"])?;
    let call = |args: &[&str]| {
        let mut command = Command::new(&ours);
        command.args(args);
        command
    };
    for form in ["softmax", "sigmoid"] {
        let extra = Measure {
            label: format!("{form}, most memory beyond the features"),
            unit: "MB",
            better: Better::Lower,
            bound: Some(Bound::AtMost(EXTRA_MAX_MB)),
        };
        session.alone(extra, |session| {
            number(&session.json(&mut call(&["memory", ROWS, WIDTH, form]))?, "extra_mb")
        })?;
    }
    let time = Measure {
        label: "softmax at 8,192 rows, time over that of the plain form".into(),
        unit: "times",
        better: Better::Lower,
        bound: Some(Bound::AtMost(1.15)),
    };
    session.alone(time, |session| {
        let took = session.json(&mut call(&["time", ROWS_TIMED, WIDTH, ROUNDS]))?;
        Ok(number(&took, "tiles")? / number(&took, "plain")?)
    })?;
    session.note(
        "Rows are 512 wide, all of one owner; the gradients of all features are within the memory. The plain form is the \
         whole matrix with autograd, in the same process and the same libtorch.",
    );
    Ok(())
}

fn number(value: &serde_json::Value, key: &str) -> Result<f64> {
    value[key].as_f64().with_context(|| format!("no {key} in the result"))
}
