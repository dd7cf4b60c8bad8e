use super::*;
use argosy_common::config::EvaluationSet;
use argosy_common::ids::Generation;
use argosy_common::shape::SourceShape;
use std::path::Path;

/// Positions 8 a step, 80 in all.
fn setup(dir: &Path, every_samples: u64, script: &str) -> Setup {
    let worker = dir.join("worker");
    // Written by another process: a handle of ours might be open in a child of another test, and a file that somebody
    // may write to is not executed.
    let made = std::process::Command::new("sh")
        .args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\""])
        .arg(&worker)
        .arg(script)
        .status();
    assert!(made.unwrap().success());
    Setup {
        worker,
        run_dir: dir.to_path_buf(),
        checkpoints: dir.join("checkpoints").display().to_string(),
        base: dir.to_path_buf(),
        config: EvaluationConfig {
            every_samples,
            sets: vec![EvaluationSet {
                name: "pets".into(),
                data: "d".into(),
                classes: "c".into(),
                templates: "t".into(),
            }],
            ..EvaluationConfig::default()
        },
        keep_last: 0,
        shape: RunShape {
            seed: 0,
            sources: vec![SourceShape {
                name: "s".into(),
                shard_rows: vec![40],
            }],
            batch: 8,
            lanes: 4,
            window_factor: 1,
            total_positions: 80,
        },
        epoch_positions: 40,
    }
}

fn at(at_ms: u64, event: RunEvent) -> StampedEvent {
    StampedEvent { at_ms, event }
}

fn name(step: u64) -> StateName {
    StateName {
        step,
        applied_gen: Generation(1),
    }
}

fn committed(step: u64) -> StampedEvent {
    at(
        step,
        RunEvent::CheckpointCommitted {
            key: format!("{step}/manifest.json"),
            name: name(step),
        },
    )
}

fn finished(step: u64) -> StampedEvent {
    let outcome = RunOutcome::Succeeded {
        name: name(step),
        manifest: Some(format!("{step}/manifest.json")),
    };
    at(step, RunEvent::RunFinished { outcome })
}

/// All events that an evaluator tells of when it hears these.
fn told(setup: Setup, heard: &[StampedEvent]) -> Vec<RunEvent> {
    let mut evaluator = Evaluator::start(setup).unwrap().unwrap();
    heard.iter().for_each(|event| evaluator.take(event));
    evaluator.close();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut told = Vec::new();
    while let Some(stamped) = runtime.block_on(evaluator.next()) {
        told.push(stamped.event);
    }
    assert_eq!(evaluator.left(), 0);
    told
}

const SCORES: &str =
    r#"echo '{"top1": 0.25, "top5": 0.5, "mean_per_class": 0.2, "chance": 0.1, "samples": 12, "more": 1}'"#;

#[test]
fn evaluator_takes_the_first_checkpoint_behind_each_multiple_and_the_last() {
    let dir = tempfile::tempdir().unwrap();
    // Multiples of 32 positions are steps 4 and 8.
    let heard: Vec<StampedEvent> = (1..=9)
        .step_by(2)
        .map(committed)
        .chain([committed(10), finished(10)])
        .collect();
    let told = told(setup(dir.path(), 32, SCORES), &heard);
    let steps = |events: &[RunEvent]| -> Vec<u64> {
        let step = |event: &RunEvent| match event {
            RunEvent::EvaluationDone { name, set, top1, .. } if set == "pets" && *top1 == 0.25 => name.step,
            other => panic!("{other:?}"),
        };
        events.iter().map(step).collect()
    };
    assert_eq!(steps(&told), [5, 9, 10]);
    let text = std::fs::read_to_string(dir.path().join("results.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let wanted = serde_json::json!({
        "pets-zeroshot-val-top1": 0.25, "pets-zeroshot-val-top5": 0.5, "epoch": 1, "step": 5, "samples_seen": 40
    });
    assert_eq!(first, wanted);
    let events = std::fs::read_to_string(dir.path().join("events.jsonl")).unwrap();
    let parsed: Vec<StampedEvent> = events.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(parsed.into_iter().map(|s| s.event).collect::<Vec<_>>(), told);
}

#[test]
fn evaluator_that_falls_behind_passes_over_what_will_have_expired() {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = setup(dir.path(), 8, SCORES);
    setup.keep_last = 2;
    let queue = Shared::default();
    for step in 1..=5 {
        queue.0.lock().unwrap().waiting.push_back(Due {
            key: format!("{step}/manifest.json"),
            name: name(step),
        });
    }
    queue.0.lock().unwrap().closed = true;
    let (sender, mut told) = mpsc::unbounded_channel();
    let clock = Clock {
        at_ms: 0,
        read: Instant::now(),
    };
    let results = Results::open(dir.path(), 40).unwrap();
    work(&setup, results, &queue, &sender, &clock);
    let (mut done, mut passed_over) = (Vec::new(), Vec::new());
    while let Ok(stamped) = told.try_recv() {
        match stamped.event {
            RunEvent::EvaluationDone { name, .. } => done.push(name.step),
            RunEvent::EvaluationFailed { name, reason, .. } if reason.contains("slower") => passed_over.push(name.step),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((done, passed_over), (vec![4, 5], vec![1, 2, 3]));
}

#[test]
fn evaluator_after_a_restart_leaves_out_what_is_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let resumed = |step: u64| {
        let manifest = Some(format!("{step}/manifest.json"));
        at(
            0,
            RunEvent::Resumed {
                name: name(step),
                manifest,
            },
        )
    };
    assert_eq!(
        told(setup(dir.path(), 0, SCORES), &[committed(2), committed(4)]).len(),
        2
    );
    // Step 4 was evaluated; step 6 was committed, and its evaluation cut short.
    assert_eq!(told(setup(dir.path(), 0, SCORES), &[resumed(4)]).len(), 0);
    assert_eq!(told(setup(dir.path(), 0, SCORES), &[resumed(6), committed(8)]).len(), 2);
}

#[test]
fn evaluator_after_a_restart_takes_up_what_waited_and_is_still_there() {
    let dir = tempfile::tempdir().unwrap();
    let line = |step: u64| serde_json::to_string(&committed(step)).unwrap() + "\n";
    std::fs::write(dir.path().join("events.jsonl"), line(2) + &line(4)).unwrap();
    std::fs::create_dir_all(dir.path().join("checkpoints/4")).unwrap();
    std::fs::write(dir.path().join("checkpoints/4/manifest.json"), "").unwrap();
    let told = told(setup(dir.path(), 0, SCORES), &[committed(6)]);
    let steps: Vec<u64> = told
        .iter()
        .map(|event| match event {
            RunEvent::EvaluationDone { name, .. } => name.step,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(steps, [4, 6]);
}

#[test]
fn evaluation_that_fails_is_told_with_the_last_words_and_writes_no_result() {
    let dir = tempfile::tempdir().unwrap();
    let script = "echo 'error: part 3 is damaged' >&2; exit 1";
    match &told(setup(dir.path(), 0, script), &[committed(2)])[..] {
        [RunEvent::EvaluationFailed { reason, set, .. }] => {
            assert_eq!((reason.as_str(), set.as_str()), ("part 3 is damaged", "pets"));
        }
        other => panic!("{other:?}"),
    }
    assert!(!dir.path().join("results.jsonl").exists());
}

#[test]
fn evaluation_runs_at_the_lowest_priority() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("nice > {}/nice\n{SCORES}", dir.path().display());
    let told = told(setup(dir.path(), 0, &script), &[committed(2)]);
    assert!(matches!(told[..], [RunEvent::EvaluationDone { .. }]), "{told:?}");
    let nice = std::fs::read_to_string(dir.path().join("nice")).unwrap();
    assert_eq!(nice.trim(), "19");
}
