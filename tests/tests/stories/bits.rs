//! Deterministic mode with the real programs.

use crate::harness::{Run, kill_worker, my_turn};
use crate::{Stage, assert_all_trained, members, stage, wait_for_members, wait_for_step};
use argosy_common::events::RunEvent;

/// Passes that make a bit more than 200 steps of 24 rows out of 250.
const EPOCHS: u32 = 20;

/// Hashes of the state after the last step, as the first worker to finish it reported them.
fn last_hashes(run: &mut Run) -> (u64, Vec<u64>) {
    let events = run.events();
    let steps = events.into_iter().filter_map(|event| match event {
        RunEvent::StepDone { report, .. } => Some((report.name.step, report.state_hashes)),
        _ => None,
    });
    steps.max_by_key(|(step, _)| *step).expect("a step")
}

/// A deterministic run on `workers`, of which one is killed at each of the steps `kills`; its last hashes.
fn run_through(stage: &Stage, workers: u32, kills: &[u64]) -> (u64, Vec<u64>) {
    let dir = stage.path(&format!("run-{workers}-{}", kills.len()));
    let (min, max) = (format!("workers.min={workers}"), "workers.target=8");
    let mut run = Run::start(&stage.job, &dir, workers, &["--set", &min, "--set", max]);
    for step in kills {
        wait_for_members(&mut run, workers as usize);
        wait_for_step(&mut run, *step);
        kill_worker(*members(&mut run).last().expect("members"));
    }
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    assert_all_trained(&dir, u64::from(EPOCHS));
    last_hashes(&mut run)
}

#[test]
#[ignore = "200 steps with up to eight processes, undisturbed and with kills; minutes"]
fn story_deterministic_run_of_any_size_with_and_without_kills_ends_with_the_same_bits() {
    let _turn = my_turn();
    let more = "deterministic = true\nstate_hash_steps = 1\n";
    let stage = stage(EPOCHS, more);
    let job = std::fs::read_to_string(&stage.job).expect("the job");
    std::fs::write(&stage.job, job.replace("lanes = 6", "lanes = 12")).expect("the job");
    let one = run_through(&stage, 1, &[]);
    assert!(one.0 >= 200 && !one.1.is_empty(), "{one:?}");
    for workers in [2, 3, 5, 8] {
        assert_eq!(run_through(&stage, workers, &[]), one, "{workers} workers");
    }
    for workers in [2, 3, 5] {
        assert_eq!(
            run_through(&stage, workers, &[40, 120]),
            one,
            "{workers} workers, two killed"
        );
    }
}
