//! What a fleet of ten thousand costs to simulate, and what its conductor needs for a decision.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Bench, Better, Bound, Measure, Session};

pub(crate) const PASS: Bench = Bench {
    name: "sim-2b",
    about: "One pass of 2 billion images by 10,000 workers under spot faults, simulated; and 200 small worlds with faults",
    run: pass,
};

pub(crate) const DECISIONS: Bench = Bench {
    name: "decisions",
    about: "What the conductor of 10,000 workers needs for a decision, on the way through that pass",
    run: decisions,
};

const FLEET: [&str; 10] = [
    "sim",
    "--workers",
    "10000",
    "--shards",
    "200000",
    "--samples",
    "2000000000",
    "--no-rates",
    "-o",
    "json",
];
/// How often the memory of what is measured is looked at.
const LOOK: Duration = Duration::from_millis(20);

fn at_most(label: &str, unit: &'static str, bound: Option<f64>) -> Measure {
    Measure {
        label: label.into(),
        unit,
        better: Better::Lower,
        bound: bound.map(Bound::AtMost),
    }
}

fn pass(session: &mut Session<'_>) -> Result<()> {
    let argosy = session.build("argosy", ["--bin", "argosy"])?;
    let measures = vec![
        at_most("the pass", "s", Some(60.0)),
        at_most("peak memory", "MB", Some(1_073.7)),
        at_most("ledgers at their fullest", "MB", Some(1.0)),
        at_most(
            "workers lost on the way, of 10,000 that live 48 h on average",
            "losses",
            None,
        ),
    ];
    session.alone_many(measures, |_| {
        let ran = watched(Command::new(&argosy).args(FLEET))?;
        ensure!(ran.json["complete"] == true, "the pass was not made: {}", ran.json);
        let ledgers = number(&ran.json, "ledger_bytes")? / 1e6;
        Ok(vec![ran.seconds, ran.memory_mb, ledgers, number(&ran.json, "losses")?])
    })?;
    let worlds = vec![
        at_most("200 worlds", "s", Some(60.0)),
        at_most("worlds in which a rule broke", "worlds", Some(0.0)),
        Measure {
            label: "faults in them that changed something".into(),
            unit: "faults",
            better: Better::Higher,
            bound: Some(Bound::AtLeast(200.0)),
        },
    ];
    session.alone_many(worlds, |_| {
        let ran = watched(Command::new(&argosy).args(["sim", "--worlds", "200", "-o", "json"]))?;
        let broken = number(&ran.json, "broken")?;
        Ok(vec![ran.seconds, broken, number(&ran.json, "effective_faults")?])
    })?;
    session.note("One core works; brains and followers are those of production, with their assertions switched on.");
    Ok(())
}

fn decisions(session: &mut Session<'_>) -> Result<()> {
    let argosy = session.build("argosy", ["--bin", "argosy"])?;
    let measures = vec![
        at_most("all decisions, p99", "us", Some(1_000.0)),
        at_most("all decisions, p50", "us", None),
        at_most("those that note what happened to one worker, slowest", "us", None),
        at_most("those that tell all members something, p99", "us", None),
        at_most("those that share all lanes out, p99", "us", None),
        at_most("all decisions, slowest", "us", None),
    ];
    session.alone_many(measures, |_| {
        let sizing = watched(Command::new(&argosy).args(FLEET))?.json;
        let kind = |at: usize, key| number(&sizing["decisions_by_kind"][at], key);
        Ok(vec![
            number(&sizing, "decision_p99_us")?,
            number(&sizing, "decision_p50_us")?,
            kind(0, "max_us")?,
            kind(1, "p99_us")?,
            kind(2, "p99_us")?,
            number(&sizing, "decision_max_us")?,
        ])
    })?;
    session.note(
        "Thirteen million decisions a pass, of which about twelve hundred tell all members something and six hundred share \
         64,000 lanes out among 10,000 members: those take what it takes to look at every one, twice a loss. The slowest of \
         all is one of them, or whatever else the machine did at that moment.",
    );
    Ok(())
}

/// What came of a program that was watched.
struct Ran {
    json: Value,
    seconds: f64,
    memory_mb: f64,
}

/// Runs a program that prints one JSON object, and watches how much memory it takes at most.
fn watched(command: &mut Command) -> Result<Ran> {
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let status = Path::new("/proc").join(child.id().to_string()).join("status");
    let (mut memory_kb, mut seconds) = (0, None);
    let mut output = child.stdout.take().context("its output is piped")?;
    let reader = std::thread::spawn(move || std::io::read_to_string(&mut output));
    while seconds.is_none() {
        // The kernel keeps the highest; the process may be gone by now.
        let peak = fs::read_to_string(&status).ok().and_then(|text| peak_kb(&text));
        memory_kb = memory_kb.max(peak.unwrap_or(0));
        match child.try_wait()? {
            Some(ended) => {
                ensure!(ended.success(), "{command:?} ended with {ended}");
                seconds = Some(began.elapsed().as_secs_f64());
            }
            None => std::thread::sleep(LOOK),
        }
    }
    let text = reader.join().ok().context("its output could not be read")??;
    let json = serde_json::from_str(&text).with_context(|| format!("{command:?} printed no JSON: {text}"))?;
    Ok(Ran {
        json,
        seconds: seconds.unwrap_or_default(),
        memory_mb: memory_kb as f64 * 1_024.0 / 1e6,
    })
}

/// The highest resident size in `/proc/PID/status`.
fn peak_kb(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

fn number(value: &Value, key: &str) -> Result<f64> {
    value[key].as_f64().with_context(|| format!("no {key} in the result"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_that_is_watched_tells_what_it_printed_and_one_that_fails_does_not() {
        let ran = watched(Command::new("sh").args(["-c", "echo '{\"n\": 3}'"])).unwrap();
        assert_eq!(number(&ran.json, "n").unwrap(), 3.0);
        assert!(watched(Command::new("sh").args(["-c", "exit 3"])).is_err());
        let mine = fs::read_to_string("/proc/self/status").unwrap();
        assert!(peak_kb(&mine).is_some_and(|kb| kb > 100), "{mine}");
        assert_eq!(peak_kb("Name:\tx\nVmHWM:\t   26516 kB\nVmRSS:\t 1 kB\n"), Some(26_516));
    }
}
