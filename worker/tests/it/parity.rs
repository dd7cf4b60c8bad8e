//! Our numbers beside OpenCLIP's committed golden values.

use argosy_worker::parity::{Options, Report, Tamper, What, run};
use std::path::PathBuf;

/// Workers, and rows that each encodes at once.
const RUNS: [(usize, usize); 5] = [
    (1, usize::MAX),
    (2, usize::MAX),
    (3, usize::MAX),
    (5, usize::MAX),
    (2, 2),
];
const FOLDERS: [&str; 2] = ["vit-gelu", "vit-quickgelu"];

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/goldens")
        .join(name)
}

fn check(name: &str, options: Options) -> Report {
    run(&folder(name), &options).unwrap_or_else(|e| panic!("{name} {options:?}: {e}"))
}

#[test]
fn parity_one_two_three_workers_on_uneven_lanes_hold() {
    for name in FOLDERS {
        for workers in 1..=3 {
            let report = check(
                name,
                Options {
                    workers,
                    ..Options::default()
                },
            );
            assert!(report.holds, "{name}, {workers} workers: {report:#?}");
            assert_eq!((report.steps, report.rows_of_worker.len()), (3, workers));
            assert!(
                workers < 3 || report.rows_of_worker[0] != report.rows_of_worker[2],
                "lanes must be uneven"
            );
        }
    }
}

#[test]
fn parity_micro_batches_and_small_tiles_hold() {
    for name in FOLDERS {
        let report = check(
            name,
            Options {
                workers: 2,
                micro_rows: 2,
                tile: 3,
                ..Options::default()
            },
        );
        assert!(report.holds, "{name}: {report:#?}");
    }
}

#[test]
fn parity_planted_errors_are_caught() {
    let mean_of_means: Tamper = |own, all, grads| {
        let workers = 3.0;
        grads.iter_mut().for_each(|g| *g *= all as f32 / own as f32 / workers);
    };
    let missing_half: Tamper = |_, _, grads| grads.iter_mut().for_each(|g| *g *= 2.0);
    let lost_worker: Tamper = |own, _, grads| {
        if own == 2 {
            grads.fill(0.0);
        }
    };
    for (what, tamper) in [
        ("mean of means", mean_of_means),
        ("missing half", missing_half),
        ("lost worker", lost_worker),
    ] {
        let report = check(
            "vit-quickgelu",
            Options {
                workers: 3,
                tamper: Some(tamper),
                ..Options::default()
            },
        );
        assert!(
            !report.holds && report.ratio(What::Gradient) > 100.0,
            "{what} went unseen: {report:#?}"
        );
    }
}

#[test]
fn parity_wrong_activation_is_caught() {
    // The same weights under the other GELU: the mismatch that silently ruined published numbers.
    let dir = tempfile::tempdir().expect("a temporary folder");
    for entry in std::fs::read_dir(folder("vit-quickgelu")).expect("the golden folder") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, dir.path().join(path.file_name().expect("a name"))).expect("a copy");
    }
    let config = dir.path().join("open_clip_config.json");
    let text = std::fs::read_to_string(&config).expect("the config");
    std::fs::write(&config, text.replace("\"quick_gelu\": true", "\"quick_gelu\": false")).expect("a new config");
    let report = run(dir.path(), &Options::default()).expect("a report");
    assert!(!report.holds && report.ratio(What::Features) > 10.0, "{report:#?}");
}

/// Folders of small models, one for every switch; each with what `tests/goldens/README.md` says.
fn switches() -> Vec<String> {
    let parity = folder("parity");
    let mut names: Vec<String> = std::fs::read_dir(&parity)
        .expect("tests/goldens/parity")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .map(|path| format!("parity/{}", path.file_name().expect("a name").to_string_lossy()))
        .collect();
    names.sort();
    names
}

#[test]
fn parity_every_switch_of_open_clips_towers_holds_on_any_number_of_workers() {
    let names = switches();
    assert!(names.len() >= 14, "{names:?}");
    let mut measured = std::collections::BTreeSet::new();
    for name in &names {
        let mut lanes = usize::MAX;
        for (workers, micro_rows) in RUNS {
            // Two hundred steps are one case of many, not half of this test's time.
            if workers > lanes || (name.ends_with("long") && workers != 1 && workers != 3) {
                continue;
            }
            let report = check(
                name,
                Options {
                    workers,
                    micro_rows,
                    ..Options::default()
                },
            );
            assert!(
                report.holds,
                "{name}, {workers} workers, pieces of {micro_rows}: {report:#?}"
            );
            lanes = report.lanes;
            measured.extend(report.measures.iter().map(|m| m.measure));
        }
    }
    let all: std::collections::BTreeSet<What> = What::ALL.into_iter().collect();
    assert_eq!(measured, all, "a measure that no golden reaches");
}

#[test]
fn parity_statistics_joined_in_another_order_of_lanes_are_caught() {
    let reversed = Options {
        workers: 2,
        turn: |turn, of| of - 1 - turn,
        ..Options::default()
    };
    let report = check("parity/resnet-lanes", reversed);
    assert!(!report.holds && report.ratio(What::Buffers) > 10.0, "{report:#?}");
    let lanes = Options {
        lanes: Some(4),
        ..Options::default()
    };
    let report = check("parity/resnet-lanes", lanes);
    assert!(
        !report.holds && report.ratio(What::Features) > 10.0,
        "other lanes, same statistics: {report:#?}"
    );
}

#[test]
fn parity_model_that_drops_patches_without_their_names_is_a_clear_error() {
    let (from, dir) = (
        folder("parity/patch-dropout"),
        tempfile::tempdir().expect("a temporary folder"),
    );
    for entry in std::fs::read_dir(folder("parity/avg")).expect("the golden folder") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, dir.path().join(path.file_name().expect("a name"))).expect("a copy");
    }
    for name in ["open_clip_config.json", "open_clip_model.safetensors"] {
        std::fs::copy(from.join(name), dir.path().join(name)).expect("a copy");
    }
    let error = run(dir.path(), &Options::default()).expect_err("refused").to_string();
    assert!(error.contains("drops patches") && error.contains("dump.py"), "{error}");
}

#[test]
fn parity_more_workers_than_lanes_or_no_folder_is_a_clear_error() {
    let error = run(
        &folder("vit-gelu"),
        &Options {
            workers: 3,
            lanes: Some(2),
            ..Options::default()
        },
    );
    assert!(
        error
            .expect_err("refused")
            .to_string()
            .contains("2 lanes for 3 workers")
    );
    let error = run(&folder("no-such"), &Options::default())
        .expect_err("refused")
        .to_string();
    assert!(error.contains("golden.json") && error.contains("dump.py"), "{error}");
}
