//! Our numbers beside OpenCLIP's committed golden values.

use argosy_worker::parity::{Options, Report, Tamper, run_with};
use std::path::PathBuf;

const FOLDERS: [&str; 2] = ["vit-gelu", "vit-quickgelu"];

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/goldens")
        .join(name)
}

fn check(name: &str, options: Options) -> Report {
    run_with(&folder(name), &options).unwrap_or_else(|e| panic!("{name} {options:?}: {e}"))
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
            !report.holds && report.worst.gradient > 100.0,
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
    let report = run_with(dir.path(), &Options::default()).expect("a report");
    assert!(!report.holds && report.worst.features > 10.0, "{report:#?}");
}

#[test]
fn parity_more_workers_than_lanes_or_no_folder_is_a_clear_error() {
    let error = run_with(
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
    let error = run_with(&folder("no-such"), &Options::default())
        .expect_err("refused")
        .to_string();
    assert!(error.contains("golden.json") && error.contains("dump.py"), "{error}");
}
