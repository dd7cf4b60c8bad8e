//! Numbers that are not finite, workers that are asked to leave, and one that is lost with its uploads (rules G11, G13, K1).

use crate::harness::{Run, ask_to_leave, audit, kill_worker, my_turn, spawned};
use crate::{
    assert_all_trained, assert_same_curve, losses, members, stage, undisturbed, wait_for_members, wait_for_step,
};
use argosy_common::events::{Outcome, RunEvent};
use argosy_common::exit::Exit;
use std::path::Path;

const EPOCHS: u32 = 12;

fn spoilt(job: &Path, dir: &Path, failpoint: &str) -> Run {
    // Together from the first step on, so that the failpoint's worker is a member when its step comes.
    let more = ["--set", "workers.min=2", "--set", "workers.target=2"];
    Run::start_in(&[("ARGOSY_FAILPOINT", failpoint.into())], job, dir, 2, &more)
}

/// Who was blamed, if anybody, and why.
fn blamed(run: &mut Run) -> Vec<(Option<u32>, String)> {
    let events = run.events().into_iter();
    let blamed = events.filter_map(|event| match event {
        RunEvent::Blamed { worker, reason } => Some((worker.map(|w| w.0), reason)),
        _ => None,
    });
    blamed.collect()
}

/// Exit code and signal of worker `id`.
fn wait_for_exit(run: &mut Run, id: u32) -> (Option<i32>, Option<i32>) {
    run.wait_for_event(&format!("worker {id} is reaped"), |event| match event {
        RunEvent::WorkerExited {
            worker, code, signal, ..
        } if worker.0 == id => Some((*code, *signal)),
        _ => None,
    })
}

/// Twin in the simulator: `nan-member`.
#[test]
fn story_step_that_is_not_finite_on_one_worker_is_done_again_elsewhere_and_that_worker_is_cordoned() {
    let _turn = my_turn();
    let stage = stage(EPOCHS, "");
    let dir = stage.path("run");
    let mut run = spoilt(&stage.job, &dir, "nan:12:2");
    assert_eq!(wait_for_exit(&mut run, 2), (Some(0), None), "{}", run.dump());
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    let blamed = blamed(&mut run);
    assert!(
        blamed.len() == 2 && blamed[0].1.contains("once again elsewhere") && blamed[1].0 == Some(2),
        "{blamed:?}"
    );
    let report = assert_all_trained(&dir, u64::from(EPOCHS));
    assert_eq!(report["skipped"], serde_json::json!({}), "{report:#}");
    assert_same_curve("one worker's NaN", &undisturbed(&stage), &losses(&mut run));
}

/// Twin in the simulator: `nan-data`.
#[test]
fn story_lane_that_is_not_finite_wherever_it_is_computed_is_passed_over_and_the_audit_counts_it() {
    let _turn = my_turn();
    let stage = stage(EPOCHS, "");
    let dir = stage.path("run");
    let mut run = spoilt(&stage.job, &dir, "nan-lane:12:3");
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    let blamed = blamed(&mut run);
    assert!(
        blamed.iter().all(|(worker, _)| worker.is_none()) && blamed.iter().any(|(_, why)| why.contains("passed over")),
        "{blamed:?}"
    );
    let report = audit(&dir);
    let skipped: u64 = report["skipped"]
        .as_object()
        .expect("reasons")
        .values()
        .filter_map(serde_json::Value::as_u64)
        .sum();
    assert_eq!(skipped, 24, "{report:#}");
    assert_eq!(report["trained"], u64::from(EPOCHS) * 250 - 24, "{report:#}");
    let curve = losses(&mut run);
    assert!(
        !curve.contains_key(&13) && curve.contains_key(&14),
        "{:?}",
        curve.keys()
    );
}

#[test]
fn story_run_whose_numbers_stay_bad_fails_after_nonfinite_max_steps_and_says_so() {
    let _turn = my_turn();
    let stage = stage(EPOCHS, "");
    let dir = stage.path("run");
    let mut run = spoilt(&stage.job, &dir, "nan-lane:12+:3");
    assert_eq!(run.wait_for_end(), i32::from(Exit::JobFailed.code()), "{}", run.dump());
    let message = run.wait_for_event("the end", |event| match event {
        RunEvent::RunFinished {
            outcome: Outcome::Failed { message, .. },
        } => Some(message.clone()),
        _ => None,
    });
    assert!(
        message.contains("3 steps in a row") && message.contains("lower the learning rate"),
        "{message}"
    );
    let report = audit(&dir);
    assert_eq!(report["finished"], false, "{report:#}");
}

/// Twin in the simulator: `member-drain`.
#[test]
fn story_worker_that_is_asked_to_leave_leaves_at_a_boundary_with_exit_0_and_no_step_is_lost() {
    let _turn = my_turn();
    let stage = stage(EPOCHS, "");
    let dir = stage.path("run");
    let mut run = Run::start(&stage.job, &dir, 2, &[]);
    wait_for_members(&mut run, 2);
    let at = losses(&mut run).len() as u64 + 5;
    wait_for_step(&mut run, at);
    let leaves = *members(&mut run).last().expect("two members");
    let id = run
        .events()
        .iter()
        .filter_map(spawned)
        .find(|(_, pid)| *pid == leaves)
        .expect("it was spawned")
        .0;
    ask_to_leave(leaves);
    assert_eq!(wait_for_exit(&mut run, id), (Some(0), None), "{}", run.dump());
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    let events = run.events();
    let count = |found: fn(&RunEvent) -> bool| events.iter().filter(|e| found(e)).count();
    assert_eq!(count(|e| matches!(e, RunEvent::WorkerLost { .. })), 0, "{}", run.dump());
    assert_eq!(
        count(|e| matches!(e, RunEvent::WorkerDraining { .. })),
        1,
        "{}",
        run.dump()
    );
    // No step was begun twice: each was announced once, and every base is the newest state.
    let steps: Vec<u64> = events.iter().filter_map(step).collect();
    assert!(steps.is_sorted_by(|a, b| a < b), "{steps:?}");
    assert_all_trained(&dir, u64::from(EPOCHS));
    assert_same_curve("one drained", &undisturbed(&stage), &losses(&mut run));
}

/// Twin in the simulator: `member-crash` with a checkpoint under way.
#[test]
fn story_worker_killed_while_its_parts_go_up_leaves_them_to_its_buddy_and_that_checkpoint_is_committed() {
    let _turn = my_turn();
    let stage = stage(EPOCHS, "[checkpoint]\nevery_samples = 240\n");
    let dir = stage.path("run");
    let mut run = spoilt(&stage.job, &dir, "upload:20+:2");
    // Its copy is made and nothing is written; it trains on meanwhile.
    run.wait_for_file("failpoints/w2-upload-20");
    let held = run.events().into_iter().filter(|e| ends_attempt(e).is_some()).count();
    let pid = run
        .events()
        .iter()
        .filter_map(spawned)
        .find(|(id, _)| *id == 2)
        .expect("w2")
        .1;
    kill_worker(pid);
    run.wait_for_event("it is lost", |event| match event {
        RunEvent::WorkerLost { worker, .. } if worker.0 == 2 => Some(()),
        _ => None,
    });
    // The attempt that it was held in is the next one to end, and ends well.
    let seen = std::cell::Cell::new(0);
    let end = run.wait_for_event("the attempt ends", |event| {
        let end = ends_attempt(event)?;
        seen.set(seen.get() + 1);
        (seen.get() > held).then_some(end)
    });
    assert!(end.is_some_and(|step| step >= 20), "{end:?}\n{}", run.dump());
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    assert_all_trained(&dir, u64::from(EPOCHS));
}

/// The end of an attempt at a checkpoint: the step it was committed at, or nothing.
fn ends_attempt(event: &RunEvent) -> Option<Option<u64>> {
    match event {
        RunEvent::CheckpointCommitted { name, .. } => Some(Some(name.step)),
        RunEvent::CheckpointAbandoned { .. } => Some(None),
        _ => None,
    }
}

fn step(event: &RunEvent) -> Option<u64> {
    match event {
        RunEvent::StepDone { report, .. } => Some(report.name.step),
        _ => None,
    }
}
