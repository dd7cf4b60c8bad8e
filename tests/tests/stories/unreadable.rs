//! A shard that nobody can read any more in the middle of a run, and a bucket that is away (rule M2). What only one worker
//! cannot read is the worker's own test.

use crate::buckets::{bucket, start};
use crate::harness::{Run, audit_in, my_turn};
use crate::leave::{undisturbed, weights_in};
use crate::{ROWS, SHARDS, Stage, stage, wait_for_step};
use argosy_common::events::RunEvent;
use argosy_test_stores::{Fault, Op, Rule, S3Double};
use std::path::PathBuf;

const EPOCHS: u32 = 12;
const ALL: u64 = EPOCHS as u64 * (SHARDS * ROWS) as u64;

struct Scene {
    stage: Stage,
    double: S3Double,
    environment: Vec<(&'static str, String)>,
    dir: PathBuf,
    run: Run,
}

/// Two workers that read from a bucket, some steps into their run.
fn two_at_work() -> Scene {
    let stage = stage(EPOCHS, "");
    let (double, mut more) = bucket(&stage);
    more.extend(["--set", "workers.min=2", "--set", "workers.target=2"]);
    let environment: Vec<(&'static str, String)> = double.environment();
    let dir = stage.path("run");
    let mut run = start(&stage, &environment, &dir, 2, &more);
    wait_for_step(&mut run, 5);
    Scene {
        stage,
        double,
        environment,
        dir,
        run,
    }
}

fn count(run: &mut Run, is: impl Fn(&RunEvent) -> bool) -> usize {
    run.events().iter().filter(|event| is(event)).count()
}

/// Twin in the simulator: `lane-unreadable` of all.
#[test]
fn story_shard_that_no_worker_can_read_is_given_up_and_the_audit_counts_its_rows() {
    let _turn = my_turn();
    let mut scene = two_at_work();
    let gone = Rule::new(Op::Get, Fault::Status(404)).key("squares/00003");
    scene.double.faults().add(gone.forever());
    let run = &mut scene.run;
    let entry = run.wait_for_event("it is given up", |event| match event {
        RunEvent::Quarantined { entry } => Some(entry.clone()),
        _ => None,
    });
    assert_eq!(
        (entry.rows.shard, entry.rows.from, entry.rows.until),
        (3, 0, ROWS as u32)
    );
    assert!(entry.reason.contains("does not exist"), "{}", entry.reason);
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    assert_eq!(
        count(run, |e| matches!(e, RunEvent::Quarantined { .. })),
        1,
        "{}",
        run.dump()
    );
    assert_eq!(
        count(run, |e| matches!(e, RunEvent::WorkerLost { .. })),
        0,
        "{}",
        run.dump()
    );
    let report = audit_in(&scene.environment, &scene.dir);
    let reasons = report["quarantined"].as_object().expect("reasons");
    let lost: u64 = reasons.values().filter_map(serde_json::Value::as_u64).sum();
    // Some passes of the shard were trained before, and not one row of it after.
    assert!(lost > 0 && lost <= u64::from(EPOCHS) * ROWS as u64, "{report:#}");
    assert_eq!(report["trained"], ALL - lost, "{report:#}");
    assert_eq!(report["finished"], true, "{report:#}");
}

#[test]
fn story_bucket_that_refuses_all_reads_is_waited_for_and_nothing_is_given_up() {
    let _turn = my_turn();
    let mut scene = two_at_work();
    let refused = Rule::new(Op::Get, Fault::Status(403)).key("squares");
    scene.double.faults().add(refused.forever());
    let run = &mut scene.run;
    for worker in [1, 2] {
        let words = run.wait_for_event(&format!("w{worker} says so"), |event| match event {
            RunEvent::WorkerNotice { worker: who, message } if who.0 == worker => Some(message.clone()),
            _ => None,
        });
        assert!(words.contains("denied") && words.contains("AWS_*"), "{words}");
    }
    scene.double.faults().clear();
    assert_eq!(run.wait_for_end(), 0, "{}", run.dump());
    let given_up = |e: &RunEvent| matches!(e, RunEvent::Quarantined { .. } | RunEvent::WorkerLost { .. });
    assert_eq!(count(run, given_up), 0, "{}", run.dump());
    let report = audit_in(&scene.environment, &scene.dir);
    assert_eq!(report["trained"], ALL, "{report:#}");
    assert!(
        weights_in(&scene.environment, &scene.dir) == undisturbed(&scene.stage),
        "other bits"
    );
}
