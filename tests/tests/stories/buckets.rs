//! Runs whose shards and checkpoints lie in a bucket that fails now and then, fills up or may not be written to.

use crate::harness::{self, Environment, Run, audit_in, my_turn, text};
use crate::leave::{EXACT, undisturbed, weights_in};
use crate::{ROWS, SHARDS, Stage, members, stage, wait_for_step};
use argosy_common::events::{RunEvent, StampedEvent};
use argosy_common::exit::Exit;
use argosy_test_stores::{Fault, Faults, Moto, Op, Rule, S3Double, Storm};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::path::Path;

const EPOCHS: u32 = 12;
const CADENCE: &str = "[checkpoint]\nevery_samples = 240\nkeep_last = 2\nkeep_every_samples = 960\n";

/// A bucket with the shards of `stage`, where its runs are to put their checkpoints too; the `--set`s that say so.
pub(crate) fn bucket(stage: &Stage) -> (S3Double, Vec<&'static str>) {
    let double = S3Double::start(Faults::default()).expect("a server");
    for entry in std::fs::read_dir(stage.path("shards")).expect("shards") {
        let path = entry.expect("a shard").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        double.insert(
            "data",
            &format!("squares/{name}"),
            std::fs::read(&path).expect("a shard"),
        );
    }
    let job = std::fs::read_to_string(&stage.job).expect("a job");
    let job = job.replace("\"shards\"", "\"s3://data/squares/\"");
    std::fs::write(stage.path("bucket.toml"), job).expect("a job");
    let mut sets = EXACT.to_vec();
    sets.extend(["--set", "checkpoint.url=\"s3://runs/here\""]);
    (double, sets)
}

pub(crate) fn start(stage: &Stage, environment: &Environment, dir: &Path, workers: u32, more: &[&str]) -> Run {
    Run::start_in(environment, &stage.path("bucket.toml"), dir, workers, more)
}

fn count(run: &mut Run, is: impl Fn(&RunEvent) -> bool) -> usize {
    run.events().iter().filter(|event| is(event)).count()
}

#[test]
fn story_run_on_a_bucket_that_fails_now_and_then_is_left_and_ends_with_the_undisturbed_bits() {
    let _turn = my_turn();
    let stage = stage(EPOCHS, CADENCE);
    let (double, mut more) = bucket(&stage);
    let environment = double.environment();
    let seed = u64::from(std::process::id());
    println!("SEED buckets {seed}");
    let faults = double.faults();
    faults.add(Rule::new(Op::Get, Fault::Status(503)).key("squares").times(3));
    faults.add(Rule::new(Op::Get, Fault::CutAfter(700)).key("squares").times(3));
    faults.add(Rule::new(Op::Put, Fault::Status(503)).key("part-").times(2));
    faults.add(Rule::new(Op::Put, Fault::LostReply).key("manifest").times(1));
    faults.storm(Storm { seed, per_mille: 50 });

    let dir = stage.path("run");
    let mut run = start(&stage, &environment, &dir, 2, &more);
    wait_for_step(&mut run, 40);
    run.signal(Signal::SIGINT);
    assert_eq!(
        run.wait_for_end(),
        i32::from(Exit::Interrupted.code()),
        "{}",
        run.dump()
    );
    more.push("--resume");
    let mut run = start(&stage, &environment, &dir, 1, &more);
    let resumed = run.wait_for_event("the run resumes", |event| match event {
        RunEvent::Resumed { name, manifest } => manifest.is_some().then_some(name.step),
        _ => None,
    });
    assert!(resumed >= 40, "{}", run.dump());
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    let fired = faults.fired();
    for fault in ["status", "cut", "lost_reply"] {
        assert!(fired.contains_key(fault), "seed {seed}: no {fault} came: {fired:?}");
    }

    let report = audit_in(&environment, &dir);
    assert_eq!(
        report["trained"],
        u64::from(EPOCHS) * (SHARDS * ROWS) as u64,
        "{report:#}"
    );
    let listed = harness::argosy_to_end_in(&environment, &["checkpoints", text(&dir), "-o", "json"]);
    assert_eq!(listed.0, Some(0), "{listed:?}");
    let listed: serde_json::Value = serde_json::from_str(&listed.1).expect("JSON");
    let lines = listed["checkpoints"].as_array().expect("a list");
    let there = lines.iter().filter(|line| line["state"] != "expired");
    let kept: BTreeSet<u64> = there.filter_map(|line| line["step"].as_u64()).collect();
    assert_eq!(kept, to_keep(&committed(&dir)), "{listed:#}");
    let manifests = double.keys("runs").into_iter().filter(|k| k.ends_with("manifest.json"));
    assert_eq!(manifests.count(), kept.len(), "{:?}", double.keys("runs"));
    assert_eq!(double.open_uploads(), 0);
    assert!(
        weights_in(&environment, &dir) == undisturbed(&stage),
        "seed {seed}: the bits differ"
    );
}

#[test]
#[ignore = "needs moto: the long tier"]
fn story_run_on_motos_bucket_is_left_killed_and_resumed_and_ends_with_the_undisturbed_bits() {
    let Some(moto) = Moto::start(&["data", "runs"]).expect("a server") else {
        println!("SKIP {}", Moto::SKIP);
        return;
    };
    let _turn = my_turn();
    let stage = stage(EPOCHS, CADENCE);
    // For the job; the shards are moto's.
    let (_, mut more) = bucket(&stage);
    for entry in std::fs::read_dir(stage.path("shards")).expect("shards") {
        let path = entry.expect("a shard").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        moto.insert("data", &format!("squares/{name}"), &path).expect("stored");
    }
    let (environment, dir) = (moto.environment(), stage.path("run"));
    let mut run = start(&stage, &environment, &dir, 2, &more);
    wait_for_step(&mut run, 40);
    run.signal(Signal::SIGINT);
    assert_eq!(
        run.wait_for_end(),
        i32::from(Exit::Interrupted.code()),
        "{}",
        run.dump()
    );
    more.push("--resume");
    let mut run = start(&stage, &environment, &dir, 2, &more);
    wait_for_step(&mut run, 70);
    let pids = members(&mut run);
    run.signal(Signal::SIGKILL);
    run.wait_until_gone(&pids);
    let mut run = start(&stage, &environment, &dir, 1, &more);
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    let report = audit_in(&environment, &dir);
    assert_eq!(
        report["trained"],
        u64::from(EPOCHS) * (SHARDS * ROWS) as u64,
        "{report:#}"
    );
    assert!(weights_in(&environment, &dir) == undisturbed(&stage), "the bits differ");
}

/// Steps of all checkpoints that a run's processes announced.
fn committed(dir: &Path) -> BTreeSet<u64> {
    let text = std::fs::read_to_string(dir.join("events.jsonl")).expect("events");
    let events = text
        .lines()
        .map(|l| serde_json::from_str::<StampedEvent>(l).expect("an event"));
    let step = |e: StampedEvent| match e.event {
        RunEvent::CheckpointCommitted { name, .. } => Some(name.step),
        _ => None,
    };
    events.filter_map(step).collect()
}

/// Of these, by [`CADENCE`]: the last two, and the first at or behind each 960 rows, 24 of which are a step.
fn to_keep(committed: &BTreeSet<u64>) -> BTreeSet<u64> {
    let last_two = committed.iter().rev().take(2);
    let multiples = (1..).map(|n| n * 960 / 24).take_while(|step| *step <= 125);
    let first_behind = multiples.filter_map(|from| committed.range(from..).next());
    last_two.chain(first_behind).copied().collect()
}

/// A bucket that refuses every write with `status`, until the run has gone on without.
fn refuses(status: u16) {
    let stage = stage(EPOCHS, CADENCE);
    let (double, more) = bucket(&stage);
    let environment = double.environment();
    let dir = stage.path("run");
    double.faults().add(Rule::new(Op::Put, Fault::Status(status)).forever());
    let mut run = start(&stage, &environment, &dir, 2, &more);
    let reason = run.wait_for_event("an attempt is given up", |event| match event {
        RunEvent::CheckpointAbandoned { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert!(reason.contains(&status.to_string()), "{reason}");
    let at = run
        .events()
        .iter()
        .filter(|e| matches!(e, RunEvent::StepDone { .. }))
        .count() as u64;
    wait_for_step(&mut run, at + 10);
    assert_eq!(
        count(&mut run, |e| matches!(e, RunEvent::WorkerLost { .. })),
        0,
        "{}",
        run.dump()
    );
    // Room again: the end has its checkpoint.
    double.faults().clear();
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    assert!(
        count(&mut run, |e| matches!(e, RunEvent::CheckpointCommitted { .. })) > 0,
        "{}",
        run.dump()
    );
    assert!(
        run.dump().contains(&reason),
        "what the store said is shown\n{}",
        run.dump()
    );
    let report = audit_in(&environment, &dir);
    assert_eq!(report["finished"], true, "{report:#}");
}

#[test]
fn story_bucket_that_is_full_or_read_only_costs_checkpoints_and_never_the_training() {
    let _turn = my_turn();
    // Insufficient storage, and denied.
    for status in [507, 403] {
        refuses(status);
    }
}

/// Until the very end: what was trained is neither lost without a word nor called a success.
#[test]
fn story_bucket_that_never_takes_a_checkpoint_ends_the_run_failed_and_a_resume_finishes_it() {
    let _turn = my_turn();
    let stage = stage(2, "");
    let (double, mut more) = bucket(&stage);
    let environment = double.environment();
    let dir = stage.path("run");
    double.faults().add(Rule::new(Op::Put, Fault::Status(403)).forever());
    let mut run = start(&stage, &environment, &dir, 2, &more);
    let code = run.wait_for_end();
    let said = run.dump();
    assert!(code != 0 && code != i32::from(Exit::Panic.code()), "{said}");
    assert!(said.contains("403") && said.contains("--resume"), "{said}");
    double.faults().clear();
    more.push("--resume");
    let mut run = start(&stage, &environment, &dir, 2, &more);
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    assert_eq!(audit_in(&environment, &dir)["finished"], true);
}

#[test]
fn story_init_of_a_folder_and_of_a_bucket_writes_a_job_that_run_accepts_unchanged() {
    let _turn = my_turn();
    let stage = stage(EPOCHS, CADENCE);
    let (double, _) = bucket(&stage);
    let environment = double.environment();
    let folder = stage.path("shards");
    for (name, url) in [("folder", text(&folder)), ("bucket", "s3://data/squares/")] {
        let job = stage.path(&format!("{name}-job.toml"));
        let init = ["init", url, "--model", "demo-tiny", "--out", text(&job)];
        let (code, _, said) = harness::argosy_to_end_in(&environment, &init);
        assert_eq!(code, Some(0), "{said}");
        assert!(
            said.contains("next: ") && said.contains("250"),
            "what it found and what to do: {said}"
        );
        let written = std::fs::read_to_string(&job).expect("a job");
        assert!(written.lines().any(|line| line.starts_with('#')), "{written}");
        let mut run = Run::start_in(&environment, &job, &stage.path(name), 1, &[]);
        wait_for_step(&mut run, 1);
        run.signal(Signal::SIGINT);
        let code = run.wait_for_end();
        assert!(
            code == 0 || code == i32::from(Exit::Interrupted.code()),
            "{}",
            run.dump()
        );
    }
}

#[test]
fn story_run_over_a_bucket_that_was_read_once_trains_without_it() {
    let _turn = my_turn();
    let stage = stage(2, "");
    let (double, mut more) = bucket(&stage);
    let environment = double.environment();
    let index = format!("data.index={:?}", text(&stage.path("squares.argosy")));
    let folder = format!("cache.folder={:?}", text(&stage.path("kept")));
    more.extend(["--set", &index, "--set", &folder, "--set", "cache.bytes_max=100000000"]);
    let mut run = start(&stage, &environment, &stage.path("first"), 2, &more);
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());

    double
        .faults()
        .add(Rule::new(Op::Get, Fault::Status(404)).key("squares").forever());
    let reads = || {
        double
            .faults()
            .calls()
            .iter()
            .filter(|c| c.key.contains("squares"))
            .count()
    };
    let before = reads();
    let dir = stage.path("second");
    let mut run = start(&stage, &environment, &dir, 1, &more);
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    assert_eq!(reads(), before, "the second run asked for shards");
    assert_eq!(audit_in(&environment, &dir)["trained"], 2 * (SHARDS * ROWS) as u64);
    let report = std::fs::read_to_string(dir.join("loader/w0.json")).or_else(|_| {
        let mut reports = std::fs::read_dir(dir.join("loader")).expect("reports");
        std::fs::read_to_string(reports.next().expect("a report").expect("an entry").path())
    });
    let report: serde_json::Value = serde_json::from_str(&report.expect("a report")).expect("JSON");
    assert_eq!(report["bytes"], 0, "{report:#}");
    assert!(
        report["cache_rows"].as_u64() >= Some(2 * (SHARDS * ROWS) as u64),
        "{report:#}"
    );
    assert!(
        weights_in(&environment, &stage.path("first")) == weights_in(&environment, &dir),
        "other bits"
    );
}
