//! End to end with the real programs: whatever happens to workers, every position is trained once and the loss is the same.
#![allow(clippy::expect_used, reason = "a helper of tests fails the test that called it")]

mod bits;
mod buckets;
mod canary;
mod clocks;
mod cluster;
mod deploy;
mod harness;
mod leave;
mod shards;
mod trouble;
mod unreadable;

use argosy_common::events::RunEvent;
use argosy_common::exit::Exit;
use harness::{Run, audit, kill_worker, my_turn, spawned, text};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Rows of the good shards.
const SHARDS: usize = 5;
const ROWS: usize = 50;

struct Stage {
    dir: tempfile::TempDir,
    job: PathBuf,
}

/// A folder with shards and a job; `more` is laid behind the job's text.
fn stage(epochs: u32, more: &str) -> Stage {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(dir.path().join("shards")).expect("a folder");
    shards::write_good(&dir.path().join("shards"), SHARDS, ROWS);
    let job = shards::write_job(dir.path(), epochs, more);
    Stage { dir, job }
}

impl Stage {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Loss by step as first announced.
fn losses(run: &mut Run) -> BTreeMap<u64, f64> {
    let mut losses = BTreeMap::new();
    for event in run.events() {
        if let RunEvent::StepDone { report, .. } = event
            && let Some(loss) = report.loss
        {
            losses.insert(report.name.step, loss);
        }
    }
    losses
}

/// Rule N4 for fast mode: over the first 100 steps no loss differs by more than `1e-5*max(1, L)`.
fn assert_same_curve(what: &str, one: &BTreeMap<u64, f64>, other: &BTreeMap<u64, f64>) {
    assert_eq!(one.len(), other.len(), "{what}: another number of steps");
    for (step, loss) in one.range(..=100) {
        let difference = (loss - other[step]).abs();
        assert!(
            difference <= 1e-5 * loss.max(1.0),
            "{what}: the loss of step {step} is {loss} and {}, {difference} apart",
            other[step]
        );
    }
}

/// An undisturbed run on one worker: what every other history must equal.
fn undisturbed(stage: &Stage) -> BTreeMap<u64, f64> {
    let mut run = Run::start(&stage.job, &stage.path("undisturbed"), 1, &[]);
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    losses(&mut run)
}

/// The audit of a finished run over the good shards: all positions, none twice, none masked.
fn assert_all_trained(dir: &Path, epochs: u64) -> serde_json::Value {
    let report = audit(dir);
    let positions = epochs * (SHARDS * ROWS) as u64;
    assert_eq!(report["finished"], true, "{report:#}");
    assert_eq!(report["positions"], positions, "{report:#}");
    assert_eq!(report["trained"], positions, "{report:#}");
    report
}

/// Waits for applied step `step`.
fn wait_for_step(run: &mut Run, step: u64) {
    run.wait_for_event(&format!("step {step}"), |event| match event {
        RunEvent::StepDone { report, .. } if report.name.step >= step => Some(()),
        _ => None,
    });
}

/// Pids of the members of the last generation that was activated.
fn members(run: &mut Run) -> Vec<u32> {
    let (mut pids, mut formed) = (BTreeMap::new(), Vec::new());
    for event in run.events() {
        if let Some((worker, pid)) = spawned(&event) {
            pids.insert(worker, pid);
        }
        if let RunEvent::GenerationFormed { members, .. } = event {
            formed = members;
        }
    }
    formed.iter().map(|worker| pids[&worker.0]).collect()
}

/// Waits until a generation of `count` members trains.
fn wait_for_members(run: &mut Run, count: usize) {
    let generation = run.wait_for_event(&format!("a generation of {count}"), |event| match event {
        RunEvent::GenerationFormed {
            generation, members, ..
        } if members.len() == count => Some(*generation),
        _ => None,
    });
    run.wait_for_event("a step of it", |event| match event {
        RunEvent::StepDone { report, .. } if report.generation == generation => Some(()),
        _ => None,
    });
}

#[test]
fn story_run_with_one_two_or_three_workers_gives_the_same_losses() {
    let _turn = my_turn();
    let stage = stage(6, "");
    let one = undisturbed(&stage);
    assert_all_trained(&stage.path("undisturbed"), 6);
    let (first, last) = (one[&1], *one.values().next_back().expect("steps"));
    assert!(last < 0.9 * first, "the loss falls from {first} to {last} only");
    for workers in [2, 3] {
        let dir = stage.path(&format!("run-{workers}"));
        // All are waited for before the first step, so that no generation is smaller.
        let min = format!("workers.min={workers}");
        let mut run = Run::start(&stage.job, &dir, workers, &["--set", &min, "--set", "workers.target=3"]);
        assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
        assert_same_curve(&format!("{workers} workers"), &one, &losses(&mut run));
        assert_all_trained(&dir, 6);
        assert!(members(&mut run).len() == workers as usize, "{}", run.dump());
    }
}

#[test]
fn story_worker_killed_at_a_step_is_replaced_and_nothing_is_lost_or_doubled() {
    let _turn = my_turn();
    let stage = stage(40, "");
    let dir = stage.path("run");
    let mut run = Run::start(&stage.job, &dir, 2, &[]);
    wait_for_members(&mut run, 2);
    let at = losses(&mut run).len() as u64 + 10;
    wait_for_step(&mut run, at);
    let killed = *members(&mut run).last().expect("two members");
    kill_worker(killed);
    let signal = run.wait_for_event("the killed worker is reaped", |event| match event {
        RunEvent::WorkerExited { pid, signal, .. } if *pid == killed => Some(*signal),
        _ => None,
    });
    assert_eq!(signal, Some(9), "{}", run.dump());
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    let lost = run
        .events()
        .iter()
        .filter(|e| matches!(e, RunEvent::WorkerLost { .. }))
        .count();
    assert_eq!(lost, 1, "{}", run.dump());
    let report = assert_all_trained(&dir, 40);
    assert!(report["generations"].as_u64() >= Some(2), "{report:#}");
    assert_same_curve("one of two killed", &undisturbed(&stage), &losses(&mut run));
}

#[test]
fn story_all_workers_killed_goes_on_from_the_last_checkpoint() {
    let _turn = my_turn();
    let stage = stage(40, "[checkpoint]\nevery_samples = 480\n");
    let dir = stage.path("run");
    let mut run = Run::start(&stage.job, &dir, 2, &[]);
    wait_for_members(&mut run, 2);
    run.wait_for_event("a checkpoint", |event| {
        matches!(event, RunEvent::CheckpointCommitted { .. }).then_some(())
    });
    for pid in members(&mut run) {
        kill_worker(pid);
    }
    let (step, manifest) = run.wait_for_event("the run resumes", |event| match event {
        RunEvent::Resumed { name, manifest } => Some((name.step, manifest.clone())),
        _ => None,
    });
    assert!(step > 0 && manifest.is_some(), "{}", run.dump());
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    let report = assert_all_trained(&dir, 40);
    assert!(report["resumed"].as_u64() >= Some(1), "{report:#}");
    assert_same_curve("all killed", &undisturbed(&stage), &losses(&mut run));
}

#[test]
fn story_interrupted_run_ends_with_130_and_resume_finishes_it() {
    let _turn = my_turn();
    let stage = stage(40, "");
    let dir = stage.path("run");
    let mut run = Run::start(&stage.job, &dir, 2, &[]);
    wait_for_step(&mut run, 20);
    // Neither an audit nor a second start gets in its way.
    for args in [
        &["audit", text(&dir)][..],
        &["run", text(&stage.job), "--run", text(&dir), "--resume"],
    ] {
        let meanwhile = harness::argosy_to_end(args);
        assert_eq!(
            meanwhile.0,
            Some(i32::from(Exit::Conflict.code())),
            "{args:?}: {meanwhile:?}"
        );
    }
    run.signal(Signal::SIGINT);
    assert_eq!(
        run.wait_for_end(),
        i32::from(Exit::Interrupted.code()),
        "{}",
        run.dump()
    );
    let mut curve = losses(&mut run);
    let again = harness::argosy_to_end(&["run", text(&stage.job), "--run", text(&dir)]);
    assert_eq!(again.0, Some(i32::from(Exit::Conflict.code())), "{again:?}");
    assert!(again.2.contains("--resume"), "{}", again.2);

    // A resume with another job is refused and leaves the run's own copy of the job alone.
    let kept = std::fs::read_to_string(dir.join("job.toml")).expect("the run's job");
    let other = [
        "run",
        text(&stage.job),
        "--run",
        text(&dir),
        "--resume",
        "--set",
        "train.lr=0.5",
    ];
    let refused = harness::argosy_to_end(&other);
    assert_eq!(refused.0, Some(i32::from(Exit::Conflict.code())), "{refused:?}");
    assert_eq!(
        std::fs::read_to_string(dir.join("job.toml")).expect("still there"),
        kept
    );

    let mut run = Run::start(&stage.job, &dir, 1, &["--resume"]);
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    let later = losses(&mut run);
    assert!(later.keys().next() > Some(&1), "the run began anew: {}", run.dump());
    curve.extend(later);
    let moved = stage.path("moved");
    std::fs::rename(&dir, &moved).expect("a run folder can be moved");
    assert_all_trained(&moved, 40);
    assert_same_curve("interrupted", &undisturbed(&stage), &curve);
}

#[test]
fn story_bad_samples_are_trained_around_and_counted_by_reason() {
    let _turn = my_turn();
    let stage = stage(2, "");
    shards::write_damaged(&stage.path("shards"));
    let dir = stage.path("run");
    let mut run = Run::start(&stage.job, &dir, 2, &[]);
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    let report = audit(&dir);
    for (reason, rows) in shards::SPOILED {
        assert_eq!(report["masked"][reason], 2 * rows, "{reason}: {report:#}");
    }
    // Of the damaged shards 7 + 1 + 1 rows are kept: the rest lacks its caption or is cut off.
    let positions = 2 * (SHARDS * ROWS + 9) as u64;
    assert_eq!(report["positions"], positions, "{report:#}");
    assert_eq!(report["trained"], positions - 2 * 5, "{report:#}");
    let said = run.dump();
    assert!(
        said.contains("90002.tar") && said.contains("90003.tar"),
        "damaged shards are not named\n{said}"
    );
}

#[test]
fn story_run_killed_outright_leaves_no_worker_behind_and_resume_finishes_it() {
    let _turn = my_turn();
    let stage = stage(40, "[checkpoint]\nevery_samples = 480\n");
    let dir = stage.path("run");
    let mut run = Run::start(&stage.job, &dir, 2, &[]);
    wait_for_members(&mut run, 2);
    run.wait_for_event("a checkpoint", |event| {
        matches!(event, RunEvent::CheckpointCommitted { .. }).then_some(())
    });
    let pids = members(&mut run);
    run.signal(Signal::SIGKILL);
    run.wait_until_gone(&pids);
    // The store was not closed: the audit repairs it, and judges what there is.
    let report = audit(&dir);
    assert_eq!(report["finished"], false, "{report:#}");

    let mut run = Run::start(&stage.job, &dir, 2, &["--resume"]);
    let step = run.wait_for_event("the run resumes", |event| match event {
        RunEvent::Resumed { name, .. } => Some(name.step),
        _ => None,
    });
    assert!(step > 0, "{}", run.dump());
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    assert_all_trained(&dir, 40);
}
