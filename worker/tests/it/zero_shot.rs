//! Zero-shot classification against OpenCLIP's: the same predictions on the same weights and pictures.

use serde::Deserialize;
use std::fs::{self, File};
use std::io::{self, BufRead};
use std::path::{Path, PathBuf};
use std::process::Command;

const HERE: &str = env!("CARGO_MANIFEST_DIR");
/// Two orders of summation may exchange classes that lie closer than this; logits are 100 times a cosine.
const LOGIT_NEAR: f64 = 1e-2;

#[derive(Debug, Deserialize, PartialEq)]
struct Prediction {
    key: String,
    class: usize,
    top5: Vec<usize>,
    logits: Vec<f64>,
}

/// The demo's test shard of one style, unpacked.
fn shard(folder: &Path) -> PathBuf {
    let archive = File::open(Path::new(HERE).join("../ops/demo/twemoji.tar.zst")).unwrap();
    let mut tar = Vec::new();
    zstd::stream::copy_decode(archive, &mut tar).unwrap();
    // The archive's one member behind its folder is the shard.
    let bytes = bytes::Bytes::from(tar);
    let members: Vec<_> = argosy_shard_loader::tar::Walker::new(bytes.clone())
        .map(Result::unwrap)
        .collect();
    let member = members.iter().find(|m| m.name.ends_with("test-00000.tar")).unwrap();
    let path = folder.join("test-00000.tar");
    fs::write(&path, &bytes[member.data.start as usize..member.data.end as usize]).unwrap();
    path
}

/// The golden's model as a folder from a hub.
fn hub(folder: &Path) -> PathBuf {
    let golden = Path::new(HERE).join("tests/goldens/zero-shot/hub");
    let hub = folder.join("hub");
    fs::create_dir(&hub).unwrap();
    fs::copy(golden.join("open_clip_config.json"), hub.join("open_clip_config.json")).unwrap();
    let packed = File::open(golden.join("open_clip_model.safetensors.gz")).unwrap();
    let mut weights = File::create(hub.join("open_clip_model.safetensors")).unwrap();
    io::copy(&mut flate2::read::GzDecoder::new(packed), &mut weights).unwrap();
    hub
}

/// Our predictions, and what the report says.
fn ours(folder: &Path, hub: &Path, shard: &Path) -> (Vec<Prediction>, serde_json::Value) {
    let demo = Path::new(HERE).join("../ops/demo");
    let predictions = folder.join("ours.jsonl");
    let output = Command::new(env!("CARGO_BIN_EXE_argosy-worker"))
        .args(["eval-zero-shot", "-o", "json", "--threads", "1", "--checkpoint"])
        .arg(hub)
        .arg("--data")
        .arg(shard)
        .arg("--classes")
        .arg(demo.join("classes.txt"))
        .arg("--templates")
        .arg(demo.join("templates.txt"))
        .arg("--predictions")
        .arg(&predictions)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_slice(&output.stdout).unwrap();
    (read(File::open(predictions).unwrap()), report)
}

fn read(lines: impl io::Read) -> Vec<Prediction> {
    let lines = io::BufReader::new(lines).lines();
    lines
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect()
}

/// The same samples in the same order, the same logits, and the same classes wherever they are not all but equal.
fn compare(ours: &[Prediction], theirs: &[Prediction]) {
    assert_eq!(ours.len(), theirs.len());
    let mut clear = 0;
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!((&ours.key, ours.class), (&theirs.key, theirs.class));
        for (a, b) in ours.logits.iter().zip(&theirs.logits) {
            assert!((a - b).abs() < LOGIT_NEAR, "{ours:?} {theirs:?}");
        }
        if theirs.logits[0] - theirs.logits[1] > LOGIT_NEAR {
            clear += 1;
            assert_eq!(ours.top5[0], theirs.top5[0], "{}", ours.key);
        }
    }
    // A comparison that had left out much would show little.
    assert!(clear * 100 >= theirs.len() * 98, "{clear} of {}", theirs.len());
}

#[test]
fn zero_shot_predictions_are_those_of_open_clip() {
    let folder = tempfile::tempdir().unwrap();
    let shard = shard(folder.path());
    let (ours, report) = ours(folder.path(), &hub(folder.path()), &shard);
    let golden = File::open(Path::new(HERE).join("tests/goldens/zero-shot/predictions.jsonl")).unwrap();
    let theirs = read(golden);
    compare(&ours, &theirs);
    // The report counts what the predictions say.
    let share = |hit: fn(&Prediction) -> bool| ours.iter().filter(|p| hit(p)).count() as f64 / ours.len() as f64;
    assert_eq!(report["top1"], share(|p| p.top5[0] == p.class));
    assert_eq!(report["top5"], share(|p| p.top5.contains(&p.class)));
    let worst = &report["worst_classes"][0];
    assert_eq!(
        (worst["top1"].as_f64(), worst["samples"].as_u64()),
        (Some(0.0), Some(1))
    );
    assert_eq!(worst["taken_for"][0]["samples"], 1);
}

#[test]
#[ignore = "runs Python's open_clip: half a minute, and needs PEERS_VENV"]
#[allow(clippy::print_stdout, reason = "how a test says that it could not run")]
fn zero_shot_predictions_are_those_of_a_live_open_clip() {
    let Some(venv) = std::env::var_os("PEERS_VENV") else {
        println!("SKIP PEERS_VENV names no venv made by tests/peers/setup.sh");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (shard, hub) = (shard(folder.path()), hub(folder.path()));
    let root = Path::new(HERE).join("..");
    let output = Command::new(Path::new(&venv).join("bin/python"))
        .arg(root.join("tests/peers/zero_shot.py"))
        .arg("run")
        .arg(&hub)
        .arg(root.join("ops/demo/classes.txt"))
        .arg(root.join("ops/demo/templates.txt"))
        .arg(&shard)
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs = read(output.stdout.as_slice());
    compare(&ours(folder.path(), &hub, &shard).0, &theirs);
}
