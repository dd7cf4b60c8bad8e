//! Secrets of the environment, of addresses and of a run are in nothing that is said or written.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails the test that called it")]

use crate::fixture::{Place, argosy};
use std::path::Path;

const CANARIES: [(&str, &str); 4] = [
    ("AWS_SECRET_ACCESS_KEY", "canary-aws-7f3a9c51"),
    ("AWS_SESSION_TOKEN", "canary-session-0b8e2d"),
    ("AZURE_STORAGE_ACCOUNT_KEY", "canary-azure-c4419e"),
    ("GOOGLE_SERVICE_ACCOUNT_KEY", "canary-google-5d2f70"),
];

/// All files below a folder whose name is not one of `but`.
fn files(folder: &Path, but: &[&str], found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            files(&path, but, found);
        } else if !but.contains(&name.as_str()) {
            found.push(path);
        }
    }
}

#[test]
fn secrets_are_in_nothing_that_a_failing_run_says_or_writes() {
    let place = Place::new();
    // A worker that says all it knows, among it what it should not, and ends badly; the run then fails in every way it can.
    place.describing_worker();
    let job = place.job("[failure]\nworker_errors_max = 1\n");
    let mut said = Vec::new();
    for args in [
        &["run", &job, "-vvv"][..],
        &["run", &job, "--resume", "-vvv"],
        &["audit", "runs/tiny"],
        &["checkpoints", "runs/tiny", "-o", "yaml"],
        &["doctor", "-o", "json"],
        &["index", "https://me:canary-user-1@localhost:1/{0..2}.tar"],
        &["index", "https://localhost:1/a.tar?X-Amz-Signature=canary-sig-2"],
        &[
            "validate",
            &job,
            "--set",
            "checkpoint.url=s3://me:canary-user-3@bucket/x",
        ],
    ] {
        let output = argosy(&place, args)
            .envs(CANARIES)
            .env("ARGOSY_LOG", "trace")
            .output()
            .unwrap();
        assert!(output.status.code().is_some_and(|c| c != 101), "{args:?}");
        said.extend([output.stdout, output.stderr].concat());
    }
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("localhost"), "the addresses were looked at: {said}");
    let token = std::fs::read_to_string(place.path("runs/tiny/token")).unwrap();
    assert!(token.len() >= 32);
    let mut secrets: Vec<&str> = CANARIES.iter().map(|(_, value)| *value).collect();
    secrets.extend(["canary-user-1", "canary-sig-2", "canary-user-3", token.trim()]);
    let mut written = Vec::new();
    files(&place.path("runs"), &["token"], &mut written);
    assert!(written.len() > 3, "{written:?}");
    for secret in secrets {
        assert!(!said.contains(secret), "{secret} was said:\n{said}");
        for path in &written {
            let bytes = std::fs::read(path).unwrap();
            assert!(
                !String::from_utf8_lossy(&bytes).contains(secret),
                "{secret} is in {}",
                path.display()
            );
        }
    }
}
