//! What `ops/deploy` holds: units that systemd reads, a manifest that kubectl reads, scripts that run, and in all of them only
//! flags that the programs have.

use crate::harness::{program, text};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/deploy").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(deploy(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Output of a tool that a machine may lack; `None` if it does.
fn tool(name: &str, args: &[&str]) -> Option<Output> {
    Command::new(name).args(args).output().ok()
}

#[test]
fn deploy_units_are_ones_that_systemd_reads() {
    let dir = tempfile::tempdir().expect("a folder");
    let programs = program("argosy-worker");
    let programs = text(programs.parent().expect("its folder")).to_owned();
    for unit in ["argosy-coordinator.service", "argosy-worker.service"] {
        // It looks whether the program is there.
        let unit_text = read(&format!("systemd/{unit}")).replace("/usr/local/bin", &programs);
        let path = dir.path().join(unit);
        std::fs::write(&path, unit_text).expect("a unit");
        let Some(output) = tool("systemd-analyze", &["verify", "--man=no", text(&path)]) else {
            println!("SKIP no systemd-analyze on this machine");
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        let ours: Vec<&str> = said.lines().filter(|line| line.contains("argosy-")).collect();
        assert!(output.status.success() && ours.is_empty(), "{unit}: {said}");
    }
}

#[test]
fn deploy_manifest_is_one_that_kubectl_reads() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::copy(deploy("kubernetes/argosy.yaml"), dir.path().join("argosy.yaml")).expect("a copy");
    std::fs::write(dir.path().join("kustomization.yaml"), "resources:\n  - argosy.yaml\n").expect("a list");
    let Some(output) = tool("kubectl", &["kustomize", text(dir.path())]) else {
        println!("SKIP no kubectl on this machine");
        return;
    };
    let (out, said) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{said}");
    for kind in ["ConfigMap", "Service", "StatefulSet", "Deployment"] {
        assert!(out.contains(&format!("kind: {kind}\n")), "{kind} is not in\n{out}");
    }
}

#[test]
fn deploy_files_name_only_flags_that_the_programs_have() {
    let files = [
        "systemd/argosy-coordinator.service",
        "systemd/argosy-worker.service",
        "slurm/argosy-workers.sbatch",
        "kubernetes/argosy.yaml",
    ];
    for name in ["argosy-coordinator", "argosy-worker"] {
        let help = Command::new(program(name)).arg("--help").output().expect("it starts");
        let help = String::from_utf8(help.stdout).expect("UTF-8");
        let mut seen = 0;
        for file in files {
            // Comments speak of other programs, too.
            let text = read(file);
            let lines: Vec<&str> = text
                .lines()
                .filter(|line| !line.trim_start().starts_with('#'))
                .collect();
            let whole = lines.join("\n").replace("\\\n", " ");
            // Up to the next program or empty line: a call, or the list of its arguments.
            for call in whole.split(name).skip(1) {
                let call = call.split("\n\n").next().unwrap_or_default();
                let call = call.split("argosy-").next().unwrap_or_default();
                for word in call
                    .split(['\n', ' ', '=', '"'])
                    .filter(|word| word.starts_with("--") && word.len() > 2)
                {
                    let word = word.trim_end_matches([',', ')', '.', '`', ';']);
                    assert!(help.contains(word), "{file}: {name} has no {word}");
                    seen += 1;
                }
            }
        }
        assert!(seen >= 6, "{name}: {seen} flags were found");
    }
}

/// A folder of stand-ins for programs, in front of the others.
fn stand_ins(dir: &Path, scripts: &[(&str, &str)]) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    for (name, script) in scripts {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    }
    format!("{}:{}", text(dir), std::env::var("PATH").unwrap_or_default())
}

#[test]
fn slurm_script_starts_a_worker_in_each_task_with_a_folder_of_its_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let tasks = "while [ \"${1#--}\" != \"$1\" ]; do shift; done\nfor task in 0 1; do SLURM_PROCID=$task \"$@\"; done";
    let path = stand_ins(dir.path(), &[("srun", tasks), ("argosy-worker", "echo \"$@\"")]);
    let run = |join: Option<&str>| {
        let mut command = Command::new("bash");
        command.arg(deploy("slurm/argosy-workers.sbatch"));
        command
            .env("PATH", &path)
            .env("SLURM_JOB_ID", "42")
            .env("TMPDIR", "/scratch")
            .env("HOME", "/home/me");
        command
            .env_remove("ARGOSY_TLS")
            .env_remove("ARGOSY_TOKEN_FILE")
            .env_remove("ARGOSY_JOIN");
        join.map(|join| command.env("ARGOSY_JOIN", join));
        command.output().expect("bash starts")
    };
    let output = run(Some("https://head-1:7070"));
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = |task: u32| {
        format!(
            "--join https://head-1:7070 --token-file /home/me/.argosy/token --tls /home/me/.argosy/tls --dir /scratch/argosy-42-{task}\n"
        )
    };
    assert_eq!(out, line(0) + &line(1), "{}", String::from_utf8_lossy(&output.stderr));
    let refused = run(None);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("ARGOSY_JOIN"));
}

#[test]
fn slurm_scale_asks_for_what_is_missing_and_does_not_wait_in_the_queue_already() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = stand_ins(dir.path(), &[("squeue", "echo 1; echo 2"), ("sbatch", "echo \"$1\"")]);
    for (wanted, asks) in [("5", "--nodes=2\n"), ("3", ""), ("1", "")] {
        let output = Command::new("bash")
            .arg(deploy("slurm/scale.sh"))
            .env("PATH", &path)
            .env("ARGOSY_WORKERS_WANTED", wanted)
            .output()
            .expect("bash starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout), asks, "{wanted} wanted");
    }
}
