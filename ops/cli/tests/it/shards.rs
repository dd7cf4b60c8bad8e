//! `argosy index` and `argosy data check` from outside.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails the test that called it")]

use crate::fixture::{Place, argosy, code, tar};
use serde_json::Value;
use std::path::Path;

/// Names and bytes of a shard's members.
type Members = Vec<(String, Vec<u8>)>;

fn picture(name: &str) -> Vec<u8> {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shard-loader/tests/goldens/pictures");
    std::fs::read(goldens.join(name)).unwrap()
}

fn sample(key: &str, image: &str) -> Members {
    vec![
        (format!("{key}.jpg"), picture(image)),
        (format!("{key}.txt"), format!("a caption of {key}").into_bytes()),
    ]
}

/// A folder `set` of one shard.
fn set(members: &[Members]) -> Place {
    let place = Place::new();
    std::fs::create_dir(place.path("set")).unwrap();
    std::fs::write(place.path("set/0.tar"), tar(&members.concat())).unwrap();
    place
}

/// What `argosy data check` answers for machines and for people, and its exit code.
fn checked(place: &Place, args: &[&str]) -> (Value, String, i32) {
    let output = argosy(place, &[&["data", "check", "-o", "json"], args].concat())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    (serde_json::from_slice(&output.stdout).unwrap(), said, code(&output))
}

#[test]
fn data_check_of_good_shards_exits_0() {
    let place = set(&[sample("1", "420.jpg"), sample("2", "gray.jpg")]);
    let (report, said, exit) = checked(&place, &["set"]);
    assert_eq!(exit, 0, "{said}");
    assert_eq!(
        (&report["version"], &report["samples"], &report["good"]),
        (&1.into(), &2.into(), &2.into())
    );
    assert!(
        report["problems"].as_array().unwrap().is_empty() && said.contains("nothing is wrong"),
        "{said}"
    );
}

#[test]
fn data_check_of_bad_samples_names_each_and_exits_1() {
    let alone = vec![("4.txt".to_owned(), b"no picture".to_vec())];
    let place = set(&[
        sample("1", "420.jpg"),
        sample("2", "cut.jpg"),
        sample("3", "empty.jpg"),
        alone,
    ]);
    let (report, said, exit) = checked(&place, &["set"]);
    assert_eq!(exit, 1, "{said}");
    assert_eq!((&report["samples"], &report["good"]), (&4.into(), &1.into()));
    assert_eq!(report["reasons"], serde_json::json!({"format": 2, "missing": 1}));
    let named: Vec<(&str, &str)> = report["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| (p["key"].as_str().unwrap(), p["reason"].as_str().unwrap()))
        .collect();
    assert_eq!(named, [("2", "format"), ("3", "format"), ("4", "missing")]);
    // No more than asked for are listed; all are counted.
    let (report, said, exit) = checked(&place, &["set", "--list", "1"]);
    assert_eq!(report["problems"].as_array().unwrap().len(), 1);
    assert_eq!(report["reasons"]["format"], 2);
    assert!(exit == 1 && said.contains("2 not listed, see --list"), "{said}");
    let table = argosy(&place, &["data", "check", "set"]).output().unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.starts_with("SHARD") && table.contains("no picture"), "{table}");
    place.fails(&["data", "check", "nowhere"], 3);
}

#[test]
fn data_check_of_what_is_there_twice_says_that_it_is_trained_and_exits_0() {
    let place = set(&[sample("1", "420.jpg"), sample("1", "420.jpg")]);
    let (report, said, exit) = checked(&place, &["set/0.tar", "set/0.tar"]);
    assert_eq!(exit, 0, "{said}");
    assert_eq!(
        report["reasons"],
        serde_json::json!({"repeated_key": 2, "repeated_shard": 1})
    );
    assert!(said.contains("3 of these would be trained"), "{said}");
    assert!(!said.contains("mask"), "{said}");
}

#[test]
fn index_of_a_shard_named_twice_and_of_wrong_claims_says_so() {
    let place = set(&[sample("1", "420.jpg")]);
    std::fs::write(place.path("set/sizes.json"), "{\"0.tar\": 5}").unwrap();
    let output = argosy(&place, &["index", "set/0.tar", "set/0.tar", "--out", "i.argosy"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(code(&output), 0, "{said}");
    assert!(said.contains("set/0.tar is named 2 times"), "{said}");
    assert!(said.contains("is said to hold 5 samples, it holds 1"), "{said}");
    assert!(
        !place.path("i.argosy.partial").exists(),
        "it is written, and what was noted of it is gone"
    );
}

#[test]
fn run_says_what_is_odd_about_its_shards() {
    let place = set(&[sample("1", "420.jpg")]);
    std::fs::write(place.path("set/sizes.json"), "{\"0.tar\": 5}").unwrap();
    let job = place.job("[failure]\nworker_errors_max = 1\n");
    place.worker(
        "case $1 in describe-model) echo '{\"parameters\":5,\"state_bytes\":60,\"parts_total\":1,\"model\":{}}';; \
         *) exit 9;; esac",
    );
    let set = "data.sources=[{shards = \"set/0.tar::set/0.tar\"}]";
    let output = argosy(&place, &["run", &job, "--workers", "1", "--set", set])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("set/0.tar is named 2 times"), "{said}");
    assert!(said.contains("is said to hold 5 samples, it holds 1"), "{said}");
}

#[test]
fn index_whose_journal_would_lie_on_a_file_of_somebody_else_is_refused() {
    let place = set(&[sample("1", "420.jpg")]);
    std::fs::write(place.path("i.argosy.partial"), "precious").unwrap();
    let failed = place.fails(&["index", "set", "--out", "i.argosy"], 1);
    assert!(
        failed.contains("i.argosy.partial") && failed.contains("move it away"),
        "{failed}"
    );
    assert_eq!(std::fs::read(place.path("i.argosy.partial")).unwrap(), b"precious");
}

#[test]
fn index_that_cannot_be_written_keeps_what_it_read() {
    let place = set(&[sample("1", "420.jpg")]);
    // A folder stands in its place.
    std::fs::create_dir_all(place.path("i.argosy/taken")).unwrap();
    place.fails(&["index", "set", "--out", "i.argosy"], 1);
    std::fs::remove_dir_all(place.path("i.argosy")).unwrap();
    let output = argosy(&place, &["index", "set", "--out", "i.argosy"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("1 of 1 shards were known already"), "{said}");
}
