//! A folder with two small shards and a stand-in for the worker program.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper of tests fails the test that called it"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Rows of each of the two shards.
const ROWS: usize = 50;

pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(place.path("shards")).unwrap();
        for shard in 0..2 {
            std::fs::write(place.path(&format!("shards/{shard:05}.tar")), shard_bytes(shard)).unwrap();
        }
        place.worker("exit 1");
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a job over the shards and returns its path; `more` comes behind the text.
    pub(crate) fn job(&self, more: &str) -> String {
        let text = "version = 1\nname = \"tiny\"\n[model]\nname = \"demo-tiny\"\n[data]\nsources = [{ shards = \"shards\" }]\n";
        let train = if more.contains("[train]") { "" } else { "[train]\n" };
        let path = self.path("job.toml");
        std::fs::write(&path, format!("{text}{train}{more}")).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Puts a shell script in the worker program's place.
    pub(crate) fn worker(&self, script: &str) {
        let path = self.path("worker.sh");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs a command that must end well; what it said on stdout.
    pub(crate) fn tells(&self, args: &[&str]) -> String {
        let output = argosy(self, args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(code(&output), 0, "{args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Makes a stand-in worker that describes a small model.
    pub(crate) fn describing_worker(&self) {
        self.worker(
            "case $1 in describe-model) echo '{\"parameters\":5,\"state_bytes\":60,\"parts_total\":1,\"model\":{}}';; \
             *) echo broken glass >&2; exit 9;; esac",
        );
    }

    /// Runs a command that must fail with `exit`; what it said.
    pub(crate) fn fails(&self, args: &[&str], exit: i32) -> String {
        let output = argosy(self, args).output().unwrap();
        let said = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(code(&output), exit, "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "{args:?} wrote to stdout");
        said
    }
}

/// The program, in the place's folder, with its stand-in worker.
pub(crate) fn argosy(place: &Place, args: &[&str]) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_argosy")));
    command
        .args(args)
        .current_dir(place.dir.path())
        .env("ARGOSY_WORKER", place.path("worker.sh"))
        .env("TMPDIR", place.dir.path());
    command
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().expect("ended by itself")
}

/// A tar archive of `ROWS` samples; pictures are never decoded here.
fn shard_bytes(shard: usize) -> Vec<u8> {
    let names: Vec<String> = (0..ROWS).map(|row| format!("{shard}-{row:03}")).collect();
    let members = names.iter().flat_map(|name| {
        let member = |suffix, data: &str| (format!("{name}.{suffix}"), data.as_bytes().to_vec());
        [member("png", "a picture"), member("txt", "a caption")]
    });
    tar(&members.collect::<Vec<_>>())
}

/// A tar archive of `members`, names and bytes.
pub(crate) fn tar(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, data) in members {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&header);
        tar.extend_from_slice(data);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}
