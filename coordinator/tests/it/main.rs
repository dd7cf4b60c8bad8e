//! Whole runs of the real coordinator with workers that are tasks: real sessions, real followers, trainers that only count.

// Clippy knows test functions, not their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod failover;
mod stores;
mod story;
mod worker;

use argosy_common::events::{FromWorker, Manifest, Outcome, Record, RunEvent, StampedEvent};
use argosy_common::exit::Exit;
use argosy_common::ids::{Generation, StateName, WorkerId};
use argosy_coordinator::store::{RedbStore, read_records};
use argosy_coordinator::{CoordinatorError, EVENTS_FILE, META_FILE};
use story::{Story, in_time, options};

const TOTAL: u64 = 20;

fn steps(events: &[StampedEvent]) -> Vec<u64> {
    let step = |e: &StampedEvent| match &e.event {
        RunEvent::StepDone { report, .. } => Some(report.name.step),
        _ => None,
    };
    events.iter().filter_map(step).collect()
}

fn generations(events: &[StampedEvent]) -> Vec<(Generation, StateName, Vec<WorkerId>)> {
    let formed = |e: &StampedEvent| match &e.event {
        RunEvent::GenerationFormed {
            generation,
            base,
            members,
            ..
        } => Some((*generation, *base, members.clone())),
        _ => None,
    };
    events.iter().filter_map(formed).collect()
}

fn succeeded(outcome: &Outcome) -> StateName {
    match outcome {
        Outcome::Succeeded { name, manifest } => {
            assert!(manifest.is_some());
            assert_eq!(name.step, TOTAL);
            *name
        }
        other => panic!("the run did not succeed: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undisturbed_run_trains_every_step_once_and_commits() {
    let dir = tempfile::tempdir().unwrap();
    let mut story = Story::begin(options(dir.path(), 2, 8));
    story.world.open_gate(u64::MAX);
    let name = succeeded(&story.outcome().await.unwrap());
    assert_eq!(steps(&story.seen), (1..=TOTAL).collect::<Vec<_>>());
    assert_eq!(
        generations(&story.seen).len(),
        1,
        "the first generation waits for all workers"
    );
    story.world.assert_clean();

    let lines = std::fs::read_to_string(dir.path().join(EVENTS_FILE)).unwrap();
    let written: Vec<StampedEvent> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(written, story.seen);
    assert!(matches!(
        written[0].event,
        RunEvent::RunStarted { total_steps: TOTAL, .. }
    ));
    let exits = written
        .iter()
        .filter(|e| matches!(e.event, RunEvent::WorkerExited { code: Some(0), .. }));
    assert_eq!(
        exits.count(),
        2,
        "workers are told to finish and their exits are awaited"
    );

    let records = read_records(&dir.path().join(META_FILE)).unwrap();
    assert_eq!(records.last(), Some(&Record::RunFinished { name }));
    let committed: Vec<_> = records
        .iter()
        .filter_map(|r| match r {
            Record::CheckpointCommitted { key, name, .. } => Some((key.clone(), name.step)),
            _ => None,
        })
        .collect();
    // The order for the second comes when the first is durable, so it may be some steps late.
    let at: Vec<u64> = committed.iter().map(|c| c.1).collect();
    assert!(matches!(at[..], [8, 16..TOTAL, TOTAL]), "{at:?}");
    let stored = std::fs::read(dir.path().join("checkpoints").join(&committed[2].0)).unwrap();
    let manifest: Manifest = serde_json::from_slice(&stored).unwrap();
    assert_eq!(manifest.positions_seen, TOTAL * 8 - 3, "the last step is partial");
    assert_eq!(manifest.parent.as_ref(), Some(&committed[1].0));
    assert_eq!(manifest.parts.len(), 3);

    let mut again = Story::begin(options(dir.path(), 2, 8));
    assert_eq!(succeeded(&again.outcome().await.unwrap()), name);
    assert_eq!(again.world.spawned(), 0, "a run that has succeeded is not begun again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_that_loses_a_worker_goes_on_in_a_new_generation_from_the_same_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut story = Story::begin(options(dir.path(), 2, 0));
    story.world.open_gate(6);
    story.until_step(6).await;
    story.world.kill(WorkerId(1));
    story
        .until(|e| matches!(e, RunEvent::WorkerReady { worker } if worker.0 > 2))
        .await;
    // Steps take no time here: without a gate the run would be over before the newcomer is in.
    let joined =
        |e: &RunEvent| matches!(e, RunEvent::GenerationFormed { members, .. } if members.contains(&WorkerId(3)));
    story.world.open_gate(10);
    let closing = |e: &RunEvent| matches!(e, RunEvent::GenerationClosing { reason, .. } if reason.contains("joins"));
    story.until(|e| joined(e) || closing(e)).await;
    story.world.open_gate(14);
    if !story.seen.iter().any(|e| joined(&e.event)) {
        story.until(joined).await;
    }
    story.world.open_gate(u64::MAX);
    succeeded(&story.outcome().await.unwrap());
    story.world.assert_clean();
    assert_eq!(
        steps(&story.seen),
        (1..=TOTAL).collect::<Vec<_>>(),
        "the survivor's state is the truth"
    );
    let generations = generations(&story.seen);
    assert_eq!(generations[1].1.step, 6);
    assert!(
        generations[1..]
            .iter()
            .all(|(_, _, members)| !members.contains(&WorkerId(1)))
    );
    let last = generations.last().unwrap();
    assert_eq!(last.2, [WorkerId(2), WorkerId(3)], "a new worker has joined");
    let ids: Vec<u64> = generations.iter().map(|g| g.0.0).collect();
    assert_eq!(ids, (1..=ids.len() as u64).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_that_loses_all_workers_resumes_from_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut story = Story::begin(options(dir.path(), 2, 4));
    story.world.open_gate(6);
    story.until_step(6).await;
    story.until(|e| matches!(e, RunEvent::CheckpointCommitted { .. })).await;
    story.world.kill(WorkerId(1));
    story.world.kill(WorkerId(2));
    story.world.open_gate(u64::MAX);
    succeeded(&story.outcome().await.unwrap());
    story.world.assert_clean();
    let resumed = story.seen.iter().find_map(|e| match &e.event {
        RunEvent::Resumed { name, manifest } => Some((name.step, manifest.is_some())),
        _ => None,
    });
    assert_eq!(resumed, Some((4, true)));
    let mut expected: Vec<u64> = (1..=6).collect();
    expected.extend(5..=TOTAL);
    assert_eq!(steps(&story.seen), expected, "steps 5 and 6 are done again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_run_commits_first_and_goes_on_when_started_again() {
    let dir = tempfile::tempdir().unwrap();
    // Trainers hold at step 8 until a checkpoint is ordered, and only the stop orders one.
    let mut story = Story::begin(options(dir.path(), 2, 0));
    story.world.hold_at(8);
    story.world.open_gate(u64::MAX);
    story.until_step(8).await;
    story.handle.stop();
    let outcome = story.outcome().await.unwrap();
    let Outcome::Interrupted { name } = outcome else {
        panic!("not interrupted: {outcome:?}");
    };
    assert!(name.step >= 8 && name.step < TOTAL, "{name}");
    story.world.assert_clean();

    // A crash while a line was written leaves it without its end.
    let events = dir.path().join(EVENTS_FILE);
    let mut text = std::fs::read_to_string(&events).unwrap();
    text.push_str("{\"at_ms\":1");
    std::fs::write(&events, &text).unwrap();

    let mut again = Story::begin(options(dir.path(), 2, 0));
    again.world.open_gate(u64::MAX);
    succeeded(&again.outcome().await.unwrap());
    assert_eq!(steps(&again.seen), (name.step + 1..=TOTAL).collect::<Vec<_>>());
    let (generation, base, members) = generations(&again.seen)[0].clone();
    assert_eq!((generation, base), (Generation(2), name));
    assert!(members.iter().all(|w| w.0 > 2), "ids are never used again: {members:?}");
    let text = std::fs::read_to_string(&events).unwrap();
    let torn = text
        .lines()
        .filter(|l| serde_json::from_str::<StampedEvent>(l).is_err());
    assert_eq!(torn.count(), 1, "only the torn line is unreadable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_folder_of_another_run_is_a_conflict() {
    let dir = tempfile::tempdir().unwrap();
    let mut story = Story::begin(options(dir.path(), 1, 0));
    story.world.open_gate(u64::MAX);
    succeeded(&story.outcome().await.unwrap());
    let mut other_config = options(dir.path(), 1, 0);
    other_config.job.train.lr *= 2.0;
    let mut other_index = options(dir.path(), 1, 0);
    other_index.index_hash += 1;
    for (options, what) in [(other_config, "training configuration"), (other_index, "index")] {
        let error = Story::begin(options).outcome().await.unwrap_err();
        assert!(matches!(error, CoordinatorError::OtherRun { .. }), "{error}");
        assert_eq!(error.exit(), Exit::Conflict);
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempt_of_a_coordinator_that_died_is_abandoned_and_its_files_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), 1, 0);
    let store = RedbStore::open(&dir.path().join(META_FILE)).unwrap();
    let created = Record::RunCreated {
        run: options.run.clone(),
        config_hash: options.job.config_hash(),
        index_hash: options.index_hash,
    };
    store.append(0, &created).unwrap();
    let opened = Record::CheckpointOpened { attempt: 1, at_step: 2 };
    store.append(1, &opened).unwrap();
    drop(store);
    let orphan = dir.path().join("checkpoints/1/part-00000");
    std::fs::create_dir_all(orphan.parent().unwrap()).unwrap();
    std::fs::write(&orphan, b"half").unwrap();
    options.job.checkpoint.keep_last = 1;
    let mut story = Story::begin(options);
    story.world.open_gate(u64::MAX);
    succeeded(&story.outcome().await.unwrap());
    let records = read_records(&dir.path().join(META_FILE)).unwrap();
    assert!(
        matches!(&records[2], Record::CheckpointAbandoned { attempt: 1, .. }),
        "{:?}",
        records[2]
    );
    assert!(!orphan.exists());
    assert!(
        dir.path().join("checkpoints/2/manifest.json").exists(),
        "the next attempt has a number of its own"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_worker_ends_the_run_with_its_own_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let mut story = Story::begin(options(dir.path(), 2, 0));
    story.world.fail_at(
        3,
        FromWorker::Failed {
            exit: Exit::BadConfig.code(),
            message: "no such tower".into(),
        },
    );
    story.world.open_gate(u64::MAX);
    match story.outcome().await.unwrap() {
        Outcome::Failed { exit, message } => {
            assert_eq!(exit, Exit::BadConfig.code());
            assert!(message.contains("no such tower"), "{message}");
        }
        other => panic!("did not fail: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_cannot_be_started_end_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), 1, 0);
    options.job.failure.worker_errors_max = 1;
    let mut story = Story::begin(options);
    story.world.refuse_spawns();
    let outcome = story.outcome().await.unwrap();
    assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actor_that_fails_ends_the_run_with_its_name_and_the_next_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let events = dir.path().join(EVENTS_FILE);
    std::os::unix::fs::symlink("/dev/full", &events).unwrap();
    let mut story = Story::begin(options(dir.path(), 1, 0));
    story.world.open_gate(u64::MAX);
    let error = story.outcome().await.unwrap_err();
    assert!(
        matches!(error, CoordinatorError::ActorFailed { actor: "journal", .. }),
        "{error}"
    );
    assert!(error.to_string().contains("No space left"), "{error}");

    std::fs::remove_file(&events).unwrap();
    let mut again = Story::begin(options(dir.path(), 1, 0));
    again.world.open_gate(u64::MAX);
    succeeded(&again.outcome().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_that_is_not_expected_or_comes_twice_is_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut story = Story::begin(options(dir.path(), 1, 0));
    story.world.open_gate(2);
    story.until_step(2).await;
    let endpoint = story.world.endpoint();
    for (worker, sentence) in [(99, "not expected"), (1, "used before")] {
        let refused = worker::join(&endpoint, WorkerId(worker)).await.unwrap_err();
        assert!(refused.to_string().contains(sentence), "{refused}");
    }
    story.world.open_gate(u64::MAX);
    succeeded(&story.outcome().await.unwrap());
    assert_eq!(generations(&story.seen).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_that_is_dropped_half_way_gives_its_store_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut story = Story::begin(options(dir.path(), 1, 0));
    story.world.open_gate(3);
    story.until_step(3).await;
    story.abandon().await;
    let store = story::in_time(async {
        loop {
            // Actors end a moment after the drop.
            match RedbStore::open(&dir.path().join(META_FILE)) {
                Ok(store) => break store,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    });
    assert_eq!(store.await.term().0, 2);
}
