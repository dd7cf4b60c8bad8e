//! Whole trainers with exact arithmetic: whatever happens to the members, the state at the end has the same bits.

use crate::fleet::{LANES, Worker, applied, finish, form, form_and_run, plan, shape, start, start_with, undisturbed};
use crate::saved::{checkpoint, uploaded, uploads, write_manifest};
use argosy_common::events::{FromWorker, PartFailure};
use argosy_common::follower::{Event, TrainerOrder};
use argosy_common::ids::{Generation, StateName, WorkerId};
use argosy_common::plan::StateSource;
use argosy_common::steplog::StepRecord;
use argosy_worker::engine::ToyEngine;
use argosy_worker::trainer::PHASES;
use std::sync::atomic::Ordering;

/// The member that owns every second lane first, so that rows of ranks interleave.
fn uneven(lane: u32) -> u32 {
    [0, 1, 0, 2, 0, 1][lane as usize]
}

#[test]
fn training_on_any_world_size_gives_the_same_bits() {
    let one = undisturbed(1, |_| 0);
    assert_eq!(undisturbed(2, |lane| lane % 2), one);
    assert_eq!(undisturbed(2, |lane| u32::from(lane == 3)), one);
    assert_eq!(undisturbed(3, uneven), one);
    // A spare without lanes takes part in everything all the same.
    assert_eq!(undisturbed(3, |lane| lane % 2), one);
}

#[test]
fn training_logs_and_reports_every_step_with_every_position() {
    let dir = tempfile::tempdir().unwrap();
    let mut workers = vec![start(1, dir.path()), start(2, dir.path())];
    let mut all: Vec<&mut Worker> = workers.iter_mut().collect();
    let plan = plan(1, StateName::INITIAL, StateSource::Seed, &all, |lane| lane % 2);
    form_and_run(&plan, &mut all);
    let total = shape().total_steps();
    workers[0].reach(total);
    let reports = workers[0].reports.clone();
    finish(workers, dir.path());
    let log = applied(dir.path(), WorkerId(1));
    assert_eq!((log.len() as u64, reports.len() as u64), (total, total));
    let mut positions = 0;
    for (record, report) in log.iter().zip(&reports) {
        let StepRecord::Applied {
            name,
            plan_hash,
            lanes,
            valid,
            masked,
            skipped,
            loss,
        } = record
        else {
            panic!()
        };
        assert_eq!((*name, *valid), (report.name, report.valid));
        // Read back from JSON, a number may differ in its last bit.
        assert!(
            loss.zip(report.loss)
                .is_some_and(|(a, b)| (a - b).abs() <= 1e-12 * b.abs()),
            "{loss:?}, {:?}",
            report.loss
        );
        assert_eq!((*plan_hash, lanes.len(), skipped), (plan.hash(), LANES as usize, &None));
        positions += u64::from(*valid) + masked.len() as u64;
        let mut phases = PHASES.to_vec();
        phases.sort_unstable();
        assert!(report.phase_ms.keys().eq(phases.iter()), "{:?}", report.phase_ms);
    }
    assert_eq!(
        positions,
        shape().total_positions,
        "absent rows of the last step are no positions"
    );
    let warm = reports[1].lr / reports[0].lr;
    assert!((warm - 2.0).abs() < 1e-9, "warm-up counts steps of the run");
}

#[test]
fn notice_of_an_engine_reaches_the_coordinator_once_before_the_step_that_it_is_about() {
    let dir = tempfile::tempdir().unwrap();
    let make = || Ok(ToyEngine::new(2, 3, 10, 3).with_notice("micro-batches are halved"));
    let mut worker = start_with(1, dir.path(), None, make);
    let plan = plan(1, StateName::INITIAL, StateSource::Seed, &[&mut worker], |_| 0);
    form_and_run(&plan, &mut [&mut worker]);
    let told = worker.event();
    let Event::Passed(FromWorker::Notice { message }) = &told else {
        panic!("{told:?}")
    };
    assert_eq!(message, "micro-batches are halved");
    worker.reach(2); // and hears of nothing but steps
    worker.quit();
}

#[test]
fn member_lost_in_mid_step_leaves_clean_survivors_that_go_on_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (mut a, mut b, mut c) = (start(1, dir.path()), start(2, dir.path()), start(3, dir.path()));
    c.stall_at.store(4, Ordering::SeqCst);
    let first = plan(
        1,
        StateName::INITIAL,
        StateSource::Seed,
        &[&mut a, &mut b, &mut c],
        uneven,
    );
    form_and_run(&first, &mut [&mut a, &mut b, &mut c]);
    [&mut a, &mut b, &mut c].into_iter().for_each(|w| w.reach(4));
    // It stands in LOAD of step 4 while the others wait for it in GATHER; then its sockets close, as at a SIGKILL.
    c.aborts.abort(Generation(1));
    let causes = [a.stopped(1), b.stopped(1)];
    assert!(
        causes
            .iter()
            .all(|c| c.as_ref().is_some_and(|why| why.contains("rank"))),
        "{causes:?}"
    );
    let base = StateName {
        step: 4,
        applied_gen: Generation(1),
    };
    assert_eq!((a.name, b.name), (base, base));
    let second = plan(2, base, StateSource::Peers, &[&mut a, &mut b], |lane| lane % 2);
    form_and_run(&second, &mut [&mut a, &mut b]);
    assert_eq!(finish(vec![a, b], dir.path()), undisturbed(1, |_| 0));
    assert_eq!(c.stopped(1), None, "it was asked to");
}

#[test]
fn abort_at_any_moment_leaves_names_from_which_the_highest_heals_the_others() {
    let expected = undisturbed(1, |_| 0);
    for after in 1..6 {
        let dir = tempfile::tempdir().unwrap();
        let mut workers: Vec<Worker> = (1..=3).map(|id| start(id, dir.path())).collect();
        let mut all: Vec<&mut Worker> = workers.iter_mut().collect();
        let first = plan(1, StateName::INITIAL, StateSource::Seed, &all, uneven);
        form_and_run(&first, &mut all);
        all[0].reach(after);
        all.iter().for_each(|w| w.aborts.abort(Generation(1)));
        all.iter().for_each(|w| {
            w.order(TrainerOrder::StopAfter {
                generation: Generation(1),
                step: 0,
            })
        });
        all.iter_mut().for_each(|w| drop(w.stopped(1)));
        let base = all.iter().map(|w| w.name).max().unwrap();
        assert!(
            all.iter().all(|w| w.name.step + 1 >= base.step),
            "at most one step is lost"
        );
        let second = plan(2, base, StateSource::Peers, &all, |lane| lane % 3);
        form_and_run(&second, &mut all);
        assert_eq!(finish(workers, dir.path()), expected, "aborted after {after}");
    }
}

#[test]
fn joiner_heals_from_a_peer_at_a_planned_boundary_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let mut a = start(1, dir.path());
    let first = plan(1, StateName::INITIAL, StateSource::Seed, &[&mut a], |_| 0);
    a.order(TrainerOrder::Form { plan: first });
    assert!(matches!(a.event(), Event::TrainerFormed { .. }));
    a.order(TrainerOrder::StopAfter {
        generation: Generation(1),
        step: 3,
    });
    a.order(TrainerOrder::Run {
        generation: Generation(1),
    });
    assert_eq!(a.stopped(1), None);
    assert_eq!(
        a.name,
        StateName {
            step: 3,
            applied_gen: Generation(1)
        }
    );
    let (mut b, mut c) = (start(2, dir.path()), start(3, dir.path()));
    let second = plan(2, a.name, StateSource::Peers, &[&mut b, &mut a, &mut c], uneven);
    assert!(second.members[0].heals && !second.members[1].heals);
    form_and_run(&second, &mut [&mut b, &mut a, &mut c]);
    assert_eq!(finish(vec![a, b, c], dir.path()), undisturbed(1, |_| 0));
    let log = std::fs::read_to_string(dir.path().join("steps/w2.jsonl")).unwrap();
    assert!(
        log.contains(r#""kind":"healed""#) && log.contains(r#""from":"w1""#),
        "{log}"
    );
}

#[test]
fn checkpoint_restores_at_another_world_size_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (mut a, mut b) = (start(1, dir.path()), start(2, dir.path()));
    let first = plan(1, StateName::INITIAL, StateSource::Seed, &[&mut a, &mut b], |lane| {
        lane % 2
    });
    // An order outside a generation cannot be carried out, and its attempt must not wait for the parts.
    a.order(checkpoint(9, 4, vec![0]));
    let refused = a.event();
    assert!(
        matches!(
            &refused,
            Event::Passed(FromWorker::PartFailed {
                attempt: 9,
                failure: PartFailure::Late,
                ..
            })
        ),
        "{refused:?}"
    );
    form(&first, &mut [&mut a, &mut b]);
    a.order(checkpoint(1, 5, vec![0, 1]));
    b.order(checkpoint(1, 5, vec![]));
    a.stall_at.store(7, Ordering::SeqCst);
    for worker in [&a, &b] {
        let generation = Generation(1);
        worker.order(TrainerOrder::Run { generation });
    }
    let (parts, base) = uploaded(&mut a);
    let part = parts[0].clone();
    assert_eq!(
        base,
        StateName {
            step: 5,
            applied_gen: Generation(1)
        }
    );
    let key = write_manifest(dir.path(), base, parts, serde_json::Value::Null);
    // Both are gone; three others that know nothing go on.
    a.aborts.abort(Generation(1));
    drop((a, b));
    let mut workers: Vec<Worker> = (3..=5).map(|id| start(id, dir.path())).collect();
    let mut all: Vec<&mut Worker> = workers.iter_mut().collect();
    let second = plan(2, base, StateSource::Manifest { key: key.clone() }, &all, uneven);
    form_and_run(&second, &mut all);
    assert_eq!(finish(workers, dir.path()), undisturbed(1, |_| 0));

    // The same with one flipped bit is refused, and says where.
    let path = dir.path().join("checkpoints").join(&part.key);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let mut late = start(6, dir.path());
    let third = plan(3, base, StateSource::Manifest { key }, &[&mut late], |_| 0);
    late.order(TrainerOrder::Form { plan: third });
    let Event::Passed(FromWorker::RestoreFailed { damaged, reason, .. }) = late.event() else {
        panic!("a damaged part was taken")
    };
    assert!(
        damaged && reason.contains(&part.key) && reason.contains("checksum"),
        "{reason}"
    );
    late.stopped(3);
}

#[test]
fn buddy_uploads_the_parts_of_a_lost_owner_and_hands_its_history_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut a, mut b) = (start(1, dir.path()), start(2, dir.path()));
    let first = plan(1, StateName::INITIAL, StateSource::Seed, &[&mut a, &mut b], |lane| {
        lane % 2
    });
    form(&first, &mut [&mut a, &mut b]);
    let order = |parts: Vec<u32>, spare: Vec<u32>| TrainerOrder::Checkpoint {
        attempt: 1,
        at_step: 5,
        parts,
        spare,
        parts_total: 2,
        since: 0,
    };
    // The owner of the state's part never comes so far as to upload it.
    a.order(order(vec![], vec![1]));
    b.order(order(vec![1], vec![0]));
    b.stall_at.store(7, Ordering::SeqCst);
    for worker in [&a, &b] {
        let generation = Generation(1);
        worker.order(TrainerOrder::Run { generation });
    }
    let log = uploads(&mut b, 1).remove(0);
    a.aborts.abort(Generation(1));
    b.aborts.abort(Generation(1));
    drop(a);
    b.stopped(1);
    b.order(TrainerOrder::UploadSpare {
        attempt: 1,
        parts: vec![0],
    });
    let (part, base) = uploads(&mut b, 1).remove(0);
    let key = write_manifest(dir.path(), base, vec![part, log.0], serde_json::Value::Null);
    // An attempt that it knows nothing of.
    b.order(TrainerOrder::UploadSpare {
        attempt: 9,
        parts: vec![0],
    });
    let Event::Passed(FromWorker::PartFailed {
        attempt: 9, failure, ..
    }) = b.event()
    else {
        panic!()
    };
    assert_eq!(failure, PartFailure::Store);
    let mut c = start(3, dir.path());
    let mut all = [&mut c];
    let second = plan(2, base, StateSource::Manifest { key }, &all, |_| 0);
    form_and_run(&second, &mut all);
    assert_eq!(finish(vec![c], dir.path()), undisturbed(1, |_| 0));
}

#[test]
fn worker_that_healed_from_a_peer_writes_the_whole_log_since_the_parent() {
    let dir = tempfile::tempdir().unwrap();
    let mut a = start(1, dir.path());
    let first = plan(1, StateName::INITIAL, StateSource::Seed, &[&mut a], |_| 0);
    form_and_run(&first, &mut [&mut a]);
    a.reach(4);
    a.order(TrainerOrder::StopAfter {
        generation: Generation(1),
        step: 0,
    });
    a.stopped(1);
    let base = a.name;
    let mut b = start(2, dir.path());
    let second = plan(2, base, StateSource::Peers, &[&mut a, &mut b], |lane| lane % 2);
    form(&second, &mut [&mut a, &mut b]);
    let at_step = shape().total_steps();
    a.order(checkpoint(1, at_step, vec![]));
    b.order(checkpoint(1, at_step, vec![0, 1]));
    for worker in [&a, &b] {
        let generation = Generation(2);
        worker.order(TrainerOrder::Run { generation });
    }
    let (parts, _) = uploaded(&mut b);
    let path = dir.path().join("checkpoints").join(&parts[1].key);
    let log = argosy_common::steplog::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
    let names: Vec<StateName> = log
        .iter()
        .map(|record| match record {
            StepRecord::Applied { name, .. } => *name,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(names.iter().map(|n| n.step).eq(1..=at_step), "{names:?}");
    assert_eq!(names[base.step as usize - 1], base);
}

#[test]
fn checkpoint_ordered_too_late_or_with_other_parts_is_answered_as_failed() {
    let dir = tempfile::tempdir().unwrap();
    let mut a = start(1, dir.path());
    let first = plan(1, StateName::INITIAL, StateSource::Seed, &[&mut a], |_| 0);
    form_and_run(&first, &mut [&mut a]);
    a.reach(shape().total_steps());
    for (order, why) in [
        (checkpoint(1, 2, vec![0]), "came at step"),
        (bad_parts(2), "has 2 parts, not 9"),
    ] {
        a.order(order);
        let Event::Passed(FromWorker::PartFailed { reason, .. }) = a.event() else {
            panic!()
        };
        assert!(reason.contains(why), "{reason}");
    }
    // At the end of the run it waits in its generation, and a checkpoint of the last state is still to be had.
    a.order(checkpoint(3, shape().total_steps(), vec![0, 1]));
    assert_eq!(uploaded(&mut a).1.step, shape().total_steps());
}

#[test]
fn run_that_goes_back_to_the_seed_gives_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let mut a = start(1, dir.path());
    let first = plan(1, StateName::INITIAL, StateSource::Seed, &[&mut a], |_| 0);
    form_and_run(&first, &mut [&mut a]);
    a.reach(3);
    a.order(TrainerOrder::StopAfter {
        generation: Generation(1),
        step: 0,
    });
    a.stopped(1);
    let second = plan(2, StateName::INITIAL, StateSource::Seed, &[&mut a], |_| 0);
    assert!(second.members[0].heals);
    form_and_run(&second, &mut [&mut a]);
    assert_eq!(finish(vec![a], dir.path()), undisturbed(1, |_| 0));
}

#[test]
fn step_with_one_valid_row_changes_the_name_only_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut workers: Vec<Worker> = (1..=2)
        .map(|id| start_with(id, dir.path(), Some(2), || Ok(ToyEngine::new(2, 3, 10, 3))))
        .collect();
    let mut all: Vec<&mut Worker> = workers.iter_mut().collect();
    let first = plan(1, StateName::INITIAL, StateSource::Seed, &all, |lane| lane % 2);
    form_and_run(&first, &mut all);
    workers[0].reach(4);
    assert_eq!((workers[0].reports[2].loss, workers[0].reports[2].name.step), (None, 3));
    finish(workers, dir.path());
    let log = applied(dir.path(), WorkerId(2));
    let StepRecord::Applied {
        skipped: Some(why),
        loss: None,
        ..
    } = &log[2]
    else {
        panic!("{:?}", log[2])
    };
    assert!(why.contains("valid rows"), "{why}");
    assert!(matches!(&log[3], StepRecord::Applied { skipped: None, .. }));
}

fn bad_parts(attempt: u64) -> TrainerOrder {
    TrainerOrder::Checkpoint {
        attempt,
        at_step: shape().total_steps(),
        parts: vec![0],
        spare: Vec::new(),
        parts_total: 9,
        since: 0,
    }
}
