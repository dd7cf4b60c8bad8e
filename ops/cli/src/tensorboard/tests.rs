use super::*;
use argosy_common::ids::{Generation, StateName, WorkerId};
use std::collections::BTreeMap;

fn name(step: u64) -> StateName {
    StateName {
        step,
        applied_gen: Generation(1),
    }
}

fn done(at_ms: u64, step: u64, loss: f64) -> StampedEvent {
    let report = StepReport {
        name: name(step),
        loss: Some(loss),
        lr: 1e-3,
        logit_scale: 14.5,
        valid: 64,
        phase_ms: BTreeMap::from([("load".to_owned(), 250.0), ("encode".to_owned(), 750.0)]),
        ..StepReport::default()
    };
    let worker = WorkerId(1);
    StampedEvent {
        at_ms,
        event: RunEvent::StepDone { report, worker },
    }
}

fn at(at_ms: u64, event: RunEvent) -> StampedEvent {
    StampedEvent { at_ms, event }
}

fn started() -> StampedEvent {
    let started = RunEvent::RunStarted {
        run: "r".into(),
        lanes: 8,
        batch: 64,
        total_steps: 4,
        total_positions: 256,
        unix_ms: 1_700_000_000_000,
    };
    at(0, started)
}

/// A run of two processes: the second goes on from step 1 and makes step 2 again.
fn write(folder: &Path) {
    let mut first = Writer::create(folder, 1_700_000_000).unwrap();
    for event in [started(), done(1000, 1, 4.0), done(3000, 2, 9.0)] {
        first.take(&event).unwrap();
    }
    let mut second = Writer::create(folder, 1_700_000_100).unwrap();
    let resumed = RunEvent::Resumed {
        name: name(1),
        manifest: None,
    };
    let evaluated = RunEvent::EvaluationDone {
        set: "pets".into(),
        key: "1/manifest.json".into(),
        name: name(2),
        top1: 0.25,
        top5: 0.5,
        mean_per_class: 0.2,
        chance: 0.1,
        samples: 12,
        seconds: 1.0,
    };
    for event in [started(), at(10, resumed), done(2000, 2, 3.0), at(2500, evaluated)] {
        second.take(&event).unwrap();
    }
}

/// What open_clip_train 3.3.0 writes for this run, by tag.
fn wanted() -> BTreeMap<&'static str, Vec<(u64, f64)>> {
    BTreeMap::from([
        ("train/batch_time", vec![(1, 1.0), (2, 1.0)]),
        ("train/contrastive_loss", vec![(1, 4.0), (2, 3.0)]),
        ("train/data_time", vec![(1, 0.25), (2, 0.25)]),
        ("train/loss", vec![(1, 4.0), (2, 3.0)]),
        ("train/lr", vec![(1, 1e-3), (2, 1e-3)]),
        ("train/samples_per_second", vec![(1, 64.0), (2, 64.0)]),
        ("train/samples_per_second_per_gpu", vec![(1, 64.0), (2, 64.0)]),
        ("train/scale", vec![(1, 14.5), (2, 14.5)]),
        ("val/pets-zeroshot-val-top1", vec![(2, 0.25)]),
        ("val/pets-zeroshot-val-top5", vec![(2, 0.5)]),
    ])
}

#[test]
fn writer_makes_a_file_a_process_and_more_steps_than_it_holds_are_spaced() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    // Two of the same second are two files.
    Writer::create(folder.path(), 1_700_000_000).unwrap();
    let files: Vec<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(files.len(), 3, "{files:?}");
    assert!(files.iter().all(|f| f.starts_with("events.out.tfevents.")), "{files:?}");
    let size = |steps: u64| {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(folder.path(), 0).unwrap();
        let mut start = started();
        if let RunEvent::RunStarted { total_steps, .. } = &mut start.event {
            *total_steps = steps;
        }
        writer.take(&start).unwrap();
        for step in 1..=100 {
            writer.take(&done(step, step, 1.0)).unwrap();
        }
        writer.file.metadata().unwrap().len()
    };
    assert!(size(100 * STEPS_MAX) * 20 < size(STEPS_MAX));
}

#[test]
#[ignore = "runs TensorBoard's own reader: needs PEERS_VENV"]
#[allow(clippy::print_stdout, reason = "how a test says that it could not run")]
fn events_are_read_back_by_tensorboards_own_reader() {
    let Some(venv) = std::env::var_os("PEERS_VENV") else {
        println!("SKIP PEERS_VENV names no venv made by tests/peers/setup.sh");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers/scalars.py");
    let output = std::process::Command::new(Path::new(&venv).join("bin/python"))
        .arg(script)
        .arg("read")
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: BTreeMap<String, Vec<(u64, f64)>> = serde_json::from_slice(&output.stdout).unwrap();
    let wanted = wanted();
    assert_eq!(
        read.keys().map(String::as_str).collect::<Vec<_>>(),
        wanted.keys().copied().collect::<Vec<_>>()
    );
    for (tag, points) in &wanted {
        for ((step, value), (read_step, read_value)) in points.iter().zip(&read[*tag]) {
            assert_eq!(step, read_step, "{tag}");
            assert!((value - read_value).abs() < 1e-6, "{tag}: {read_value}");
        }
        assert_eq!(points.len(), read[*tag].len(), "{tag}: {:?}", read[*tag]);
    }
}
