//! Runs that are left and gone on with, by Ctrl-C and by kill -9, on other numbers of workers: at the end stands what the
//! undisturbed run gives, bit for bit. Twin in the simulator: worlds whose coordinators fall.

use crate::harness::{self, Environment, Run, audit, my_turn, text};
use crate::{Stage, stage, wait_for_step};
use argosy_common::events::RunEvent;
use argosy_common::exit::Exit;
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};

const EPOCHS: u32 = 12;
/// 250 rows an epoch, 24 a step.
const STEPS: u64 = 125;
pub(crate) const EXACT: [&str; 2] = ["--set", "train.deterministic=true"];

/// The weights of a run's last checkpoint, as `argosy export` writes them.
fn weights(run: &Path) -> Vec<u8> {
    weights_in(&[], run)
}

pub(crate) fn weights_in(environment: &Environment, run: &Path) -> Vec<u8> {
    let out = PathBuf::from(format!("{}-exported", text(run)));
    let (code, _, said) = harness::argosy_to_end_in(environment, &["export", text(run), "-o", text(&out)]);
    assert_eq!(code, Some(0), "{said}");
    std::fs::read(out.join("open_clip_model.safetensors")).expect("weights")
}

pub(crate) fn undisturbed(stage: &Stage) -> Vec<u8> {
    let dir = stage.path("undisturbed");
    let mut run = Run::start(&stage.job, &dir, 1, &EXACT);
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    weights(&dir)
}

fn start(stage: &Stage, dir: &Path, workers: u32) -> Run {
    let mut more = EXACT.to_vec();
    if dir.join("run.json").exists() {
        more.push("--resume");
    }
    Run::start(&stage.job, dir, workers, &more)
}

/// Steps in the last checkpoint of the run in `dir`.
fn head(dir: &Path) -> u64 {
    let (code, out, said) = harness::argosy_to_end(&["checkpoints", text(dir), "-o", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let listed: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let lines = listed["checkpoints"].as_array().expect("a list");
    let head = lines.iter().find(|line| line["state"] == "head");
    head.and_then(|line| line["step"].as_u64()).unwrap_or(0)
}

/// Leaves the run at its next step from `step` on, politely or not; nothing may be left behind.
fn leave(run: &mut Run, dir: &Path, step: u64, politely: bool) {
    wait_for_step(run, step);
    if politely {
        run.signal(Signal::SIGINT);
        let code = run.wait_for_end();
        let interrupted = i32::from(Exit::Interrupted.code());
        assert!(code == interrupted || code == 0, "exit {code}\n{}", run.dump());
        assert!(
            code == 0 || run.dump().contains("--resume"),
            "how to go on is not said\n{}",
            run.dump()
        );
        assert!(head(dir) >= step, "Ctrl-C takes a checkpoint first\n{}", run.dump());
        return;
    }
    let pids: Vec<u32> = run
        .events()
        .iter()
        .filter_map(harness::spawned)
        .map(|(_, pid)| pid)
        .collect();
    run.signal(Signal::SIGKILL);
    run.wait_until_gone(&pids);
}

fn finish(stage: &Stage, dir: &Path, workers: u32) -> serde_json::Value {
    let mut run = start(stage, dir, workers);
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    let report = audit(dir);
    assert_eq!(report["finished"], true, "{report:#}");
    assert_eq!(report["trained"], 250 * u64::from(EPOCHS), "{report:#}");
    report
}

#[test]
fn story_run_left_politely_and_outright_on_three_one_and_two_workers_ends_with_the_undisturbed_bits() {
    let _turn = my_turn();
    let stage = stage(EPOCHS, "[checkpoint]\nevery_samples = 240\n");
    let dir = stage.path("run");
    let mut run = start(&stage, &dir, 3);
    leave(&mut run, &dir, 12, true);
    let first = head(&dir);
    let mut run = start(&stage, &dir, 1);
    // Steps may outrun a slow disk: what the kill has to find is a committed checkpoint, not a number of steps.
    let second = run.wait_for_event("a checkpoint is committed on the way", |event| match event {
        RunEvent::CheckpointCommitted { name, .. } if name.step > first => Some(name.step),
        _ => None,
    });
    leave(&mut run, &dir, second + 1, false);
    assert!(head(&dir) >= second, "what was committed stays");
    let report = finish(&stage, &dir, 2);
    assert!(report["resumed"].as_u64() >= Some(2), "{report:#}");
    assert!(weights(&dir) == undisturbed(&stage), "the bits differ");

    // Whoever holds the checkpoints holds the history: without the workers' own logs the audit says the same.
    std::fs::rename(dir.join("steps"), stage.path("steps")).expect("step logs");
    let elsewhere = audit(&dir);
    assert_eq!(
        (&elsewhere["trained"], &elsewhere["holds"]),
        (&report["trained"], &serde_json::json!(true))
    );
}

/// Workers that stand still cannot drain: the first Ctrl-C waits for them, the second does not.
#[test]
fn story_second_ctrl_c_leaves_at_once_and_the_run_goes_on_to_the_undisturbed_bits() {
    let _turn = my_turn();
    let stage = stage(EPOCHS, "[checkpoint]\nevery_samples = 240\n");
    let dir = stage.path("run");
    let mut run = start(&stage, &dir, 2);
    wait_for_step(&mut run, 30);
    let pids = crate::members(&mut run);
    for pid in &pids {
        harness::stop_worker(*pid);
    }
    run.signal(Signal::SIGINT);
    run.wait_for_words("again to leave at once");
    run.signal(Signal::SIGINT);
    assert_eq!(
        run.wait_for_end(),
        i32::from(Exit::Interrupted.code()),
        "{}",
        run.dump()
    );
    assert!(
        run.dump().contains("--resume"),
        "how to go on is not said\n{}",
        run.dump()
    );
    let report = finish(&stage, &dir, 3);
    assert!(report["resumed"].as_u64() >= Some(1), "{report:#}");
    assert!(weights(&dir) == undisturbed(&stage), "the bits differ");
}

#[test]
fn story_checkpoints_by_the_clock_come_without_any_by_position() {
    let _turn = my_turn();
    let stage = stage(100_000, "[checkpoint]\nevery_s = 1\n");
    let dir = stage.path("run");
    let mut run = Run::start(&stage.job, &dir, 2, &[]);
    let committed = |event: &RunEvent| match event {
        RunEvent::CheckpointCommitted { name, .. } => Some(name.step),
        _ => None,
    };
    let first = run.wait_for_event("a checkpoint", committed);
    let second = run.wait_for_event("a second one", |e| committed(e).filter(|step| *step > first));
    let plan = run.dump();
    assert!(plan.contains("checkpoint every 1 s and at the end"), "{plan}");
    leave(&mut run, &dir, second, true);
}

/// Twin in the simulator: `object-torn`.
#[test]
fn story_damaged_checkpoints_of_every_kind_are_passed_over_and_told_and_the_older_one_gives_the_same_bits() {
    let _turn = my_turn();
    let stage = stage(EPOCHS, "[checkpoint]\nevery_samples = 240\nkeep_last = 10\n");
    let dir = stage.path("run");
    let mut run = start(&stage, &dir, 2);
    leave(&mut run, &dir, 60, true);
    let keys = committed(&dir); // newest first
    assert!(keys.len() >= 5, "{keys:?}");
    let part = |key: &str| {
        let name = key.replace("manifest.json", "part-00000.safetensors");
        dir.join("checkpoints").join(name)
    };
    let mut flipped = std::fs::read(part(&keys[0])).expect("a part");
    *flipped.last_mut().expect("bytes") ^= 1;
    std::fs::write(part(&keys[0]), &flipped).expect("a part");
    std::fs::copy(part(&keys[4]), part(&keys[1])).expect("a part of another state");
    let whole = std::fs::read(part(&keys[2])).expect("a part");
    std::fs::write(part(&keys[2]), &whole[..whole.len() / 2]).expect("half a part");
    std::fs::remove_file(part(&keys[3])).expect("a part");

    let mut run = start(&stage, &dir, 1);
    for (key, why) in keys
        .iter()
        .zip(["checksum", "checksum", "bytes, the manifest says", "part-00000"])
    {
        let reason = run.wait_for_event("the checkpoint is rejected", |event| match event {
            RunEvent::CheckpointRejected { key: of, reason } if of == key => Some(reason.clone()),
            _ => None,
        });
        assert!(reason.contains(why), "{key}: {reason}");
    }
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    let events = run.events();
    let rejected = events
        .iter()
        .filter(|e| matches!(e, RunEvent::CheckpointRejected { .. }));
    assert_eq!(rejected.count(), 4, "{}", run.dump());
    audit(&dir);
    assert!(weights(&dir) == undisturbed(&stage), "the bits differ");
}

/// Keys of the manifests of a run, newest first.
fn committed(dir: &Path) -> Vec<String> {
    let (_, out, _) = harness::argosy_to_end(&["checkpoints", text(dir), "-o", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let lines = listed["checkpoints"].as_array().expect("a list");
    let mut keys: Vec<(u64, String)> = lines
        .iter()
        .map(|line| {
            let key = line["key"].as_str().expect("a key").to_owned();
            (line["step"].as_u64().expect("a step"), key)
        })
        .collect();
    keys.sort();
    keys.into_iter().rev().map(|(_, key)| key).collect()
}

#[test]
fn story_changed_job_is_refused_with_old_and_new_value_and_another_cadence_is_not() {
    let _turn = my_turn();
    let stage = stage(2, "");
    let dir = stage.path("run");
    let mut run = Run::start(&stage.job, &dir, 1, &[]);
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    let again =
        |set: &str| harness::argosy_to_end(&["run", text(&stage.job), "--run", text(&dir), "--resume", "--set", set]);
    let (code, _, said) = again("train.lr=0.5");
    assert_eq!(code, Some(i32::from(Exit::Conflict.code())), "{said}");
    assert!(said.contains("train.lr: 0.001 -> 0.5"), "{said}");
    let (code, _, said) = again("checkpoint.every_s=5");
    assert_eq!(code, Some(0), "{said}");
}

#[test]
#[ignore = "thirty runs: some minutes"]
fn story_runs_left_at_thirty_random_moments_end_with_the_undisturbed_bits() {
    let _turn = my_turn();
    let stage = stage(EPOCHS, "[checkpoint]\nevery_samples = 240\n");
    let expected = undisturbed(&stage);
    let seed = u64::from(std::process::id());
    println!("SEED leave {seed}");
    let draw = |moment: u64, what: u64| argosy_common::hash::digest64(format!("{seed} {moment} {what}").as_bytes());
    let mut moment = 0;
    for round in 0.. {
        let dir = stage.path(&format!("run-{round}"));
        for workers in [3, 1, 2].into_iter().cycle() {
            if moment >= 30 || head_or_none(&dir) + 20 >= STEPS {
                break;
            }
            let mut run = start(&stage, &dir, workers);
            let at = head_or_none(&dir) + 1 + draw(moment, 0) % 30;
            leave(&mut run, &dir, at.min(STEPS - 10), draw(moment, 1) % 2 == 0);
            moment += 1;
        }
        finish(&stage, &dir, 2);
        assert!(weights(&dir) == expected, "round {round}: the bits differ");
        if moment >= 30 {
            return;
        }
    }
}

fn head_or_none(dir: &Path) -> u64 {
    if dir.join("run.json").exists() { head(dir) } else { 0 }
}
