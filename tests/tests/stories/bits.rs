//! Deterministic mode and profiles with the real programs.

use crate::harness::{Run, argosy_to_end, kill_worker, my_turn, text};
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
        assert_eq!(
            run_through(&stage, workers, &[40, 120]),
            one,
            "{workers} workers, two killed"
        );
    }
}

#[test]
fn story_profile_of_a_job_adds_up_names_a_limit_and_writes_a_trace() {
    let _turn = my_turn();
    let stage = stage(1, "");
    let trace = stage.path("trace.json");
    let args = [
        "profile",
        text(&stage.job),
        "--steps",
        "3",
        "--trace",
        text(&trace),
        "-o",
        "json",
    ];
    let (code, out, err) = argosy_to_end(&args);
    assert_eq!(code, Some(0), "{out}\n{err}");
    let profile: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let sum = |list: &str| -> f64 {
        let rows = profile[list].as_array().expect("a list");
        rows.iter().map(|row| row["ms"].as_f64().expect("ms")).sum()
    };
    let step = profile["step_ms"].as_f64().expect("ms");
    assert!(step > 0.0 && (sum("phases") - step).abs() < 0.02 * step, "{profile:#}");
    assert!((sum("classes") - step).abs() < 0.05 * step, "{profile:#}");
    let matmul = &profile["classes"][0];
    assert_eq!(matmul["class"], "matmul");
    let (gflop, of_peak) = (matmul["gflop"].as_f64(), matmul["of_gemm_peak"].as_f64());
    assert!(
        gflop.is_some_and(|g| g > 0.0) && of_peak.is_some_and(|p| p > 0.0 && p < 1.5),
        "{matmul}"
    );
    assert!(
        profile["verdict"]
            .as_str()
            .is_some_and(|v| v.starts_with("limited by ")),
        "{profile:#}"
    );
    let trace: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&trace).expect("the trace")).expect("a trace in JSON");
    let events = trace["traceEvents"].as_array().expect("events");
    for name in ["step 3", "backward", "aten::mm"] {
        assert!(
            events
                .iter()
                .any(|e| e["name"] == name && e["dur"].as_f64() > Some(0.0)),
            "no {name}"
        );
    }
    assert!(!stage.path("runs").exists(), "a profile is no run");
}
