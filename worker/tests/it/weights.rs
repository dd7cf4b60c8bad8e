//! Weight files that PyTorch and OpenCLIP wrote (`tests/goldens/weights`), read without either.

use crate::determinism::Case;
use argosy_common::config::Loss;
use argosy_common::rng::{Draws, Purpose};
use argosy_worker::clip::{ModelConfig, Params, Preprocess};
use argosy_worker::engine::{TorchEngine, TorchOptions};
use argosy_worker::weights::fit::{Part, fit};
use argosy_worker::weights::{Container, WeightFile};
use std::path::{Path, PathBuf};
use std::process::Command;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/goldens/weights")
        .join(name)
}

fn config(name: &str) -> ModelConfig {
    let text = std::fs::read_to_string(golden(&format!("{name}.json"))).unwrap();
    ModelConfig::from_json(&text).unwrap().0
}

/// What a file gives to a model of `name`, in the model's flat order.
fn values(file: &Path, name: &str) -> Result<Vec<f32>, String> {
    let (config, file) = (config(name), WeightFile::open(file).map_err(|e| e.to_string())?);
    let params = Params::new(&config, 1).unwrap();
    let mut out = params.values.as_slice().to_vec();
    fit(&file, &config, &params, Part::Whole, &mut out).map_err(|e| e.to_string())?;
    Ok(out)
}

#[test]
fn weights_of_every_kind_of_file_are_the_same_numbers() {
    let want = values(&golden("bare.safetensors"), "tiny").unwrap();
    assert!(want.iter().any(|v| *v != 0.0));
    for (name, container) in [
        ("bf16.safetensors", Container::Safetensors),
        ("epoch_1.pt", Container::Torch),
        ("bare.pt", Container::Torch),
        ("openai.pt", Container::Torch),
        ("fp64.pt", Container::Torch),
        ("views.pt", Container::Torch),
        ("old.pt", Container::TorchOld),
        ("script.pt", Container::TorchScript),
    ] {
        assert_eq!(WeightFile::open(&golden(name)).unwrap().container, container, "{name}");
        assert!(
            values(&golden(name), "tiny").unwrap() == want,
            "{name} has other numbers"
        );
    }
}

#[test]
fn weights_for_other_sizes_are_what_open_clip_makes_of_them() {
    for name in ["larger", "smaller", "custom"] {
        let want = values(&golden(&format!("{name}.safetensors")), name).unwrap();
        let got = values(&golden("epoch_1.pt"), name).unwrap();
        let worst = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-6, "{name}: {worst}");
    }
}

#[test]
fn weights_that_want_to_run_something_are_refused_by_its_name_and_nothing_runs() {
    for (name, global) in [("runs.pt", "posix.system"), ("namespace.pt", "argparse.Namespace")] {
        let error = WeightFile::open(&golden(name)).unwrap_err().to_string();
        assert!(
            error.contains(&format!("`{global}`")) && error.contains(name),
            "{error}"
        );
    }
    assert!(!Path::new("it-ran").exists());
}

#[test]
fn weights_of_another_model_are_listed_with_both_shapes() {
    let error = values(&golden("epoch_1.pt"), "../parity/resnet").unwrap_err();
    for part in [
        "missing: ",
        "visual.bn1.bias",
        "and ",
        "more",
        "(the model has [",
        "nothing was loaded",
    ] {
        assert!(error.contains(part), "{error} lacks {part}");
    }
}

#[test]
fn weights_of_one_tower_leave_the_other_as_it_was() {
    let config = config("tiny");
    let params = Params::new(&config, 1).unwrap();
    let file = WeightFile::open(&golden("epoch_1.pt")).unwrap();
    let (before, mut after) = (params.values.as_slice(), params.values.as_slice().to_vec());
    fit(&file, &config, &params, Part::Image, &mut after).unwrap();
    let want = values(&golden("bare.safetensors"), "tiny").unwrap();
    for spec in params.table() {
        let range = spec.offset..spec.offset + spec.len;
        let from = if spec.name.starts_with("visual.") {
            &want
        } else {
            before
        };
        assert_eq!(after[range.clone()], from[range], "{}", spec.name);
    }
    fit(&file, &config, &params, Part::Text, &mut after).unwrap();
    let scale = params.spec("logit_scale").unwrap().offset;
    assert_eq!(after[scale], before[scale]);
    after[scale] = want[scale];
    assert!(after == want);
}

/// Bytes changed at random: an error or a file, never a panic, and never more than a file's worth of memory.
#[test]
fn weights_with_bytes_changed_at_random_are_read_or_refused() {
    let seed = std::env::var("ARGOSY_FUZZ_SEED").map_or(7, |text| text.parse().unwrap());
    let rounds = std::env::var("ARGOSY_FUZZ_ROUNDS").map_or(150, |text| text.parse().unwrap());
    println!("SEED weights {seed}");
    let config = config("tiny");
    let params = Params::new(&config, 1).unwrap();
    let mut refused = 0;
    for (number, name) in ["bare.pt", "views.pt", "old.pt", "script.pt", "bf16.safetensors"]
        .iter()
        .enumerate()
    {
        let good = std::fs::read(golden(name)).unwrap();
        // Most of a file is numbers; what says what they are is where it hurts.
        let table = find(&good, b"\x80\x02").unwrap_or(0);
        for round in 0..rounds {
            let mut draws = Draws::new(seed, Purpose::Jitter, number as u32, round);
            let mut bad = good.clone();
            for _ in 0..=draws.below(4) {
                let near = draws.below(4) > 0;
                let span = if near { 4096.min(bad.len() - table) } else { bad.len() };
                let at = (if near { table } else { 0 }) + draws.next_u32() as usize % span;
                match draws.below(4) {
                    0 => bad[at] ^= 1 << draws.below(8),
                    1 => bad[at] = draws.next_u32() as u8,
                    2 => bad.truncate(at.max(1)),
                    _ => bad.insert(at, draws.next_u32() as u8),
                }
                if bad.len() <= table + 1 {
                    break;
                }
            }
            match WeightFile::of_bytes(bad) {
                Err(_) => refused += 1,
                Ok(file) => {
                    let mut out = params.values.as_slice().to_vec();
                    let _ = fit(&file, &config, &params, Part::Whole, &mut out);
                }
            }
        }
    }
    assert!(refused > rounds, "{refused} files of {} were refused", 5 * rounds);
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}

#[test]
#[ignore = "runs Python's open_clip: a minute, and needs PEERS_VENV"]
fn weights_exported_load_in_open_clip_with_nothing_missing_and_give_the_same_features() {
    let Some(venv) = std::env::var_os("PEERS_VENV") else {
        println!("SKIP PEERS_VENV names no venv made by tests/peers/setup.sh");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests");
    let mut hubs: Vec<PathBuf> = std::fs::read_dir(root.join("goldens/parity"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    hubs.retain(|path| path.join("open_clip_config.json").is_file());
    hubs.sort();
    assert!(hubs.len() >= 14, "{hubs:?}");
    let mut out = Vec::new();
    for (number, hub) in hubs.iter().enumerate() {
        let hub = &complete(hub, &folder.path().join(format!("from-{number}")));
        let exported = folder.path().join(format!("hub-{number}"));
        export(hub, &exported);
        let weights = "open_clip_model.safetensors";
        let bits = |dir: &Path| {
            let file = WeightFile::open(&dir.join(weights)).unwrap();
            let values = |(name, entry): (&String, _)| {
                let mut out = Vec::new();
                file.append(name, entry, &mut out).unwrap();
                (name.clone(), out)
            };
            file.entries().iter().map(values).collect::<Vec<_>>()
        };
        assert!(bits(hub) == bits(&exported), "{}", hub.display());
        out.push(exported);
    }
    load_in_open_clip(&venv, &out);
}

#[test]
#[ignore = "runs Python's open_clip: half a minute, and needs PEERS_VENV"]
fn weights_that_two_workers_trained_load_in_open_clip_and_give_the_same_features() {
    let Some(venv) = std::env::var_os("PEERS_VENV") else {
        println!("SKIP PEERS_VENV names no venv made by tests/peers/setup.sh");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut siglip = Case::new(4, None, serde_json::json!({}));
    (siglip.options.loss, siglip.rig.train.loss) = (Loss::Siglip, Loss::Siglip);
    let mut out = Vec::new();
    for (name, mut case) in [("siglip", siglip), ("resnet", Case::resnet(4))] {
        case.rig.train.deterministic = false;
        case.rig.bare_step = None;
        let run = folder.path().join(format!("run-{name}"));
        std::fs::create_dir(&run).unwrap();
        let (key, state) = case.checkpointed(&run, 3);
        assert_eq!(state.step, 3);
        let exported = folder.path().join(name);
        export(&run.join("checkpoints").join(key), &exported);
        // What was trained, not what it began with; of a ResNet its statistics, too.
        let (config, _) = case.model();
        let first = Params::new(&config, case.options.seed).unwrap();
        let file = WeightFile::open(&exported.join("open_clip_model.safetensors")).unwrap();
        for spec in first.table() {
            let mut now = Vec::new();
            file.append(&spec.name, &file.entries()[&spec.name], &mut now).unwrap();
            let before = &first.values.as_slice()[spec.offset..spec.offset + spec.len];
            assert!(now != before, "{name}: {} was not trained", spec.name);
        }
        out.push(exported);
    }
    load_in_open_clip(&venv, &out);
}

/// `argosy-worker export`.
fn export(from: &Path, to: &Path) {
    let said = Command::new(env!("CARGO_BIN_EXE_argosy-worker"))
        .args([Path::new("export"), from, Path::new("-o"), to])
        .output()
        .unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
}

/// Loads exported folders in Python, where nothing may be missing or unknown, and compares the features of the same inputs.
fn load_in_open_clip(venv: &std::ffi::OsStr, hubs: &[PathBuf]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/peers/weights.py");
    let said = Command::new(Path::new(venv).join("bin/python"))
        .arg(script)
        .arg("check")
        .args(hubs)
        .output()
        .unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let lines = String::from_utf8(said.stdout).unwrap();
    assert_eq!(lines.lines().count(), hubs.len());
    for (line, hub) in lines.lines().zip(hubs) {
        let told: serde_json::Value = serde_json::from_str(line).unwrap();
        let none = serde_json::json!([]);
        assert!(told["missing"] == none && told["unexpected"] == none, "{told}");
        assert!(told["names"] == true && told["bits"] == true, "{told}");
        same_features(hub);
    }
}

/// A copy of a golden's hub folder whose configuration says that the weights have a bias, as `dump.py --siglip` does not.
fn complete(hub: &Path, into: &Path) -> PathBuf {
    let (config, weights) = ("open_clip_config.json", "open_clip_model.safetensors");
    std::fs::create_dir(into).unwrap();
    std::fs::copy(hub.join(weights), into.join(weights)).unwrap();
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(hub.join(config)).unwrap()).unwrap();
    if WeightFile::open(&hub.join(weights))
        .unwrap()
        .entries()
        .contains_key("logit_bias")
    {
        value["model_cfg"]["init_logit_bias"] = (-10.0).into();
    }
    std::fs::write(into.join(config), value.to_string()).unwrap();
    into.to_owned()
}

/// Compares our features of the tensors that OpenCLIP embedded.
fn same_features(hub: &Path) {
    let out = hub.join("ours.safetensors");
    let said = Command::new(env!("CARGO_BIN_EXE_argosy-worker"))
        .args([
            Path::new("embed"),
            Path::new("--checkpoint"),
            hub,
            Path::new("--threads"),
            Path::new("1"),
        ])
        .args([
            Path::new("--tensors"),
            &hub.join("check.safetensors"),
            Path::new("-o"),
            &out,
        ])
        .output()
        .unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let read = |path: &Path, name: &str| {
        let file = WeightFile::open(path).unwrap();
        let mut values = Vec::new();
        file.append(name, &file.entries()[name], &mut values).unwrap();
        values
    };
    for name in ["image_features", "text_features"] {
        let (ours, theirs) = (read(&out, name), read(&hub.join("check.safetensors"), name));
        let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(
            ours.len() == theirs.len() && worst <= 1e-5,
            "{} {name}: {worst}",
            hub.display()
        );
    }
}

#[test]
fn weights_that_do_not_fit_leave_an_engine_as_it_was() {
    let (config, preprocess) = (config("tiny"), Preprocess::default());
    let mut engine = TorchEngine::new(&config, &preprocess, TorchOptions::default()).unwrap();
    let before = engine.params().values.as_slice().to_vec();
    let file = WeightFile::open(&golden("custom.safetensors")).unwrap();
    let error = engine.load(&file, Part::Whole).unwrap_err().to_string();
    assert!(error.contains("not in the model: logit_bias, text."), "{error}");
    assert!(engine.params().values.as_slice() == before);
    engine
        .load(&WeightFile::open(&golden("epoch_1.pt")).unwrap(), Part::Whole)
        .unwrap();
    assert!(engine.params().values.as_slice() == values(&golden("bare.safetensors"), "tiny").unwrap());
}
