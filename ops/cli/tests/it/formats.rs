//! What commands say in each format of `-o`, held against what they said before. `ARGOSY_BLESS=1` writes it anew.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails the test that called it")]

use crate::fixture::{Place, argosy, code};
use argosy_common::config::Job;
use argosy_common::events::{MANIFEST_VERSION, Manifest, PartInfo, PositionCounts};
use argosy_common::ids::{Generation, StateName};
use std::path::Path;

const FORMATS: [&str; 5] = ["table", "wide", "json", "jsonl", "yaml"];

/// What a command says in all formats, each of which is what it is called. `masks` are values that are others each time, with
/// what stands in their place.
fn speak(place: &Place, name: &str, args: &[&str], masks: &[(String, &str)]) -> String {
    let mut text = String::new();
    for format in FORMATS {
        let output = argosy(place, args).args(["-o", format]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(code(&output), 0, "{name} -o {format}: {said}");
        let data = String::from_utf8(output.stdout).unwrap();
        check(format, &data);
        text += &format!("$ -o {format}\n{}\n", masked(format, data, masks));
    }
    text
}

fn masked(format: &str, mut data: String, masks: &[(String, &str)]) -> String {
    let before = data.len();
    for (value, mask) in masks {
        data = data.replace(value, mask);
    }
    if data.len() != before && ["table", "wide"].contains(&format) {
        // The columns are as wide as what was masked.
        let squeeze = |line: &str| {
            line.split("  ")
                .filter(|cell| !cell.is_empty())
                .map(str::trim)
                .collect::<Vec<_>>()
                .join("  ")
        };
        data = data.lines().map(|line| squeeze(line) + "\n").collect();
    }
    data
}

/// Compares that with `snapshots/NAME.txt`.
fn hold(place: &Place, name: &str, args: &[&str], masks: &[(String, &str)]) {
    let text = speak(place, name, args, masks);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/snapshots/{name}.txt"));
    if std::env::var_os("ARGOSY_BLESS").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(kept == text, "{} is not what is said now:\n{text}", file.display());
}

/// A format is what it is called, and says its version.
fn check(format: &str, data: &str) {
    let versioned = |value: &serde_json::Value| assert_eq!(value["version"], 1, "{value}");
    match format {
        "json" => versioned(&serde_json::from_str(data).unwrap()),
        "jsonl" => {
            assert!(!data.is_empty());
            data.lines()
                .for_each(|line| versioned(&serde_json::from_str(line).unwrap()));
        }
        "yaml" => assert!(data.lines().any(|line| line == "version: 1"), "{data}"),
        _ => assert!(serde_json::from_str::<serde_json::Value>(data).is_err()),
    }
}

fn manifest(run: &str, step: u64) -> Manifest {
    Manifest {
        version: MANIFEST_VERSION,
        argosy: "0".into(),
        run: run.into(),
        attempt: 2,
        name: StateName {
            step,
            applied_gen: Generation(1),
        },
        positions_seen: step * 64,
        seed: 0,
        config_hash: 0,
        index_hash: 0,
        parent: None,
        parts: vec![PartInfo {
            index: 0,
            key: "2/part-0.safetensors".into(),
            bytes: 1_234_567,
            checksum: 1,
        }],
        history: Vec::new(),
        ledger: PositionCounts::default(),
        job: serde_json::Value::Null,
        model: serde_json::Value::Null,
    }
}

/// The folder of a run with a checkpoint that is there, one that is gone and one that was rejected.
fn run_folder(place: &Place) {
    let run = place.path("run");
    std::fs::create_dir_all(run.join("checkpoints/2")).unwrap();
    let facts = serde_json::json!({
        "version": 2, "run": "tiny-0a1b2c3d", "config_hash": 1, "index_hash": 2, "index": "index.argosy", "lanes": 8,
        "window_factor": 4, "batch": 64, "seed": 0, "total_positions": 6400, "parameters": 5, "state_bytes": 60,
        "parts_total": 1, "model": {},
    });
    std::fs::write(run.join("run.json"), facts.to_string()).unwrap();
    let manifest = serde_json::to_string(&manifest("tiny-0a1b2c3d", 20)).unwrap();
    std::fs::write(run.join("checkpoints/2/manifest.json"), manifest).unwrap();
    let committed = |key: &str, step: u64| {
        format!(
            "{{\"at_ms\":1,\"event\":\"checkpoint_committed\",\"key\":\"{key}/manifest.json\",\"name\":{{\"step\":{step},\
             \"applied_gen\":1}}}}\n"
        )
    };
    let rejected = "{\"at_ms\":2,\"event\":\"checkpoint_rejected\",\"key\":\"3/manifest.json\",\"reason\":\"part 0 is cut off\"}\n";
    let events = [&committed("1", 10), &committed("2", 20), &committed("3", 30), rejected].map(ToString::to_string);
    std::fs::write(run.join("events.jsonl"), events.concat()).unwrap();
}

#[test]
fn checkpoints_in_every_format_are_as_they_were() {
    let place = Place::new();
    run_folder(&place);
    hold(&place, "checkpoints", &["checkpoints", "run"], &[]);
}

#[test]
fn index_in_every_format_is_as_it_was() {
    let place = Place::new();
    place.tells(&["index", "shards", "--out", "i.argosy"]);
    // Etags are made of times and numbers of files, the hash of etags.
    let shown = place.tells(&["index", "--show", "i.argosy", "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let word = |value: &serde_json::Value| value.as_str().unwrap().trim_matches('"').to_owned();
    let mut masks = vec![(format!("{}/", place.path("").display()).replace("//", "/"), "PLACE/")];
    // YAML wants quotes where it begins with a digit.
    masks.push((format!("\"{}\"", word(&shown["hash"])), "HASH"));
    masks.push((word(&shown["hash"]), "HASH"));
    masks.extend(
        shown["shards"]
            .as_array()
            .unwrap()
            .iter()
            .map(|shard| (word(&shard["etag"]), "ETAG")),
    );
    hold(&place, "index", &["index", "--show", "i.argosy"], &masks);
}

#[test]
fn plan_in_every_format_is_as_it_was() {
    let place = Place::new();
    let job = place.job("global_batch = 64\nlanes = 8\nepochs = 3\nwarmup = 5\n[workers]\ntarget = 3\nmax = 16\n");
    let args = [
        "plan",
        &job,
        "--no-environment",
        "--samples",
        "1000",
        "--speed",
        "10",
        "--price",
        "2.5",
    ];
    hold(&place, "plan", &args, &[]);
}

#[test]
fn checks_and_origins_in_every_format_are_as_they_were() {
    let place = Place::new();
    let job = place.job("global_batch = 64\n[checkpoint]\nevery_s = 60\n");
    hold(&place, "validate", &["validate", &job, "--no-environment"], &[]);
    // All keys of a job: a new one must not change this test.
    let origins = ["config", "show", &job, "--origin", "--set", "seed=3"];
    assert!(speak(&place, "origins", &origins, &[]).contains("--set seed=3"));
    // The whole job, in the formats that are jobs again.
    for format in ["table", "json", "yaml"] {
        let text = place.tells(&["config", "show", &job, "-o", format]);
        let name = if format == "table" {
            "j.toml".into()
        } else {
            format!("j.{format}")
        };
        Job::read(&name, &text, &argosy_common::config::Layers::default()).unwrap_or_else(|e| panic!("{e}\n{text}"));
    }
}

#[test]
fn models_in_every_format_are_what_the_worker_says() {
    let place = Place::new();
    place.worker("case \"$*\" in *json) echo '{\"open_clip\":\"3\",\"models\":[{\"name\":\"a\"},{\"name\":\"b\"}]}';; *) echo A TABLE;; esac");
    hold(&place, "models", &["models", "vit"], &[]);
    // What the worker was asked is what was typed.
    place.worker("echo \"$@\"");
    assert_eq!(place.tells(&["models", "vit", "--all"]), "models vit --all -o table\n");
}
