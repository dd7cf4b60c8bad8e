//! Our numbers beside OpenCLIP's committed golden values.

use argosy_worker::parity::{Options, Report, Tamper, What, run};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};

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

fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for entry in std::fs::read_dir(folder(name)).expect("the golden folder") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, dir.path().join(path.file_name().expect("a name"))).expect("a copy");
    }
    dir
}

/// A copy whose golden numbers `change` has changed, where a key begins with `prefix`.
fn doctored(name: &str, prefix: &str, change: impl Fn(&mut f32)) -> tempfile::TempDir {
    let dir = copy(name);
    let path = dir.path().join("golden.safetensors");
    let bytes = std::fs::read(&path).expect("golden.safetensors");
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut changed = 0;
    for (key, view) in SafeTensors::deserialize(&bytes).expect("safetensors").tensors() {
        let mut data = view.data().to_vec();
        if key.starts_with(prefix) && view.dtype() == Dtype::F32 {
            for slot in data.as_chunks_mut::<4>().0 {
                let mut value = f32::from_le_bytes(*slot);
                change(&mut value);
                *slot = value.to_le_bytes();
            }
            changed += 1;
        }
        tensors.push((key, view.dtype(), view.shape().to_vec(), data));
    }
    assert!(changed > 0, "{name} has no {prefix}");
    let views = tensors.iter().map(|(key, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.clone(), data).expect("a tensor");
        (key.clone(), view)
    });
    std::fs::write(&path, safetensors::serialize(views, None).expect("bytes")).expect("a new golden file");
    dir
}

fn check_in(dir: &Path, options: Options) -> Report {
    run(dir, &options).unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
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
    let dir = copy("vit-quickgelu");
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

/// OpenCLIP's single precision may be further from the truth than ours; its double precision tells.
#[test]
fn parity_value_far_from_open_clips_holds_only_where_its_doubles_are_nearer_to_ours() {
    for (prefix, what) in [
        ("step1.loss", What::Loss),
        ("step2.grad.visual.conv1.weight", What::Gradient),
        ("step2.param.transformer", What::FreeRun),
    ] {
        let dir = doctored("parity/double", prefix, |v| *v = *v * 1.001 + 1e-4);
        let ratio = |options| check_in(dir.path(), options).ratio(what);
        let two = Options {
            workers: 2,
            ..Options::default()
        };
        for options in [Options::default(), two] {
            let with = ratio(options);
            assert!(with <= 1.0, "{prefix}: {with}");
        }
        std::fs::remove_file(dir.path().join("golden64.safetensors")).expect("doubles");
        let without = ratio(two);
        assert!(without > 2.0, "{prefix}: {without}");
    }
}

#[test]
fn parity_planted_errors_are_caught_beside_doubles_too() {
    let slightly: Tamper = |_, _, grads| grads.iter_mut().for_each(|g| *g *= 1.0 + 5e-4);
    let lost_worker: Tamper = |own, all, grads| {
        if 3 * own < all {
            grads.fill(0.0);
        }
    };
    for (what, tamper, measures) in [
        ("slightly longer", slightly, &[What::Gradient][..]),
        ("lost worker", lost_worker, &[What::Gradient, What::FreeRun]),
    ] {
        let options = Options {
            workers: 3,
            tamper: Some(tamper),
            ..Options::default()
        };
        let report = check("parity/double", options);
        for measure in measures {
            assert!(
                report.ratio(*measure) > 1.0,
                "{what} went unseen in {measure:?}: {report:#?}"
            );
        }
    }
    // Doubles of another run are no excuse either.
    let dir = copy("parity/double");
    let bytes = std::fs::read(dir.path().join("golden64.safetensors")).expect("doubles");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let zeros: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .tensors()
        .into_iter()
        .map(|(key, view)| (key, view.shape().to_vec(), vec![0; view.data().len()]))
        .collect();
    let views = zeros.iter().map(|(key, shape, data)| {
        let view = TensorView::new(Dtype::F64, shape.clone(), data).expect("a tensor");
        (key.clone(), view)
    });
    let path = dir.path().join("golden64.safetensors");
    std::fs::write(&path, safetensors::serialize(views, None).expect("bytes")).expect("other doubles");
    let options = Options {
        workers: 3,
        tamper: Some(|_, _, grads| grads.iter_mut().for_each(|g| *g *= 5.0)),
        ..Options::default()
    };
    assert!(check_in(dir.path(), options).ratio(What::Gradient) > 1.0);
    assert!(
        check_in(dir.path(), Options::default()).holds,
        "what holds the first way needs no doubles"
    );
}

#[test]
fn parity_model_that_drops_patches_without_their_names_is_a_clear_error() {
    let (from, dir) = (folder("parity/patch-dropout"), copy("parity/avg"));
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
