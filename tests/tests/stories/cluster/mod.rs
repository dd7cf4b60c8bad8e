//! Runs on a cluster, with the programs that ship: etcd, coordinators that elect a leader, workers that are told nothing but
//! addresses, a token and a folder of certificates, and a bucket.

mod machines;
mod namespaces;
mod outage;

use crate::harness::{argosy_to_end, argosy_to_end_in, audit_in, my_turn, program, text};
use crate::leave::{EXACT, undisturbed, weights_in};
use crate::{ROWS, SHARDS, Stage, stage};
use argosy_common::events::RunEvent;
use argosy_common::exit::Exit;
use argosy_test_stores::{Faults, S3Double};
use machines::{Machine, Started, free_port, until};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};

const EPOCHS: u32 = 60;
const CADENCE: &str = "every_samples = 2400\n";

/// `argosy` must do it; what it wrote to stdout.
fn must(args: &[&str]) -> String {
    let (code, out, said) = argosy_to_end(args);
    assert_eq!(code, Some(0), "{args:?}: {said}");
    out.trim().to_owned()
}

/// Everything but the processes.
struct Cluster {
    stage: Stage,
    double: S3Double,
    etcd_port: u16,
    heads: [u16; 2],
    /// Where the run lies.
    url: String,
    /// What all machines have in their environment besides the bucket.
    environment: Vec<(&'static str, String)>,
}

impl Cluster {
    fn prepare() -> Self {
        Self::prepare_for(EPOCHS, CADENCE)
    }

    /// `cadence`: the job's lines on checkpoints.
    fn prepare_for(epochs: u32, cadence: &str) -> Self {
        let more = format!("[workers]\nmin = 2\ntarget = 2\n[checkpoint]\nurl = \"s3://runs/here\"\n{cadence}");
        let stage = stage(epochs, &more);
        let double = S3Double::start(Faults::default()).expect("a server");
        for entry in std::fs::read_dir(stage.path("shards")).expect("shards") {
            let path = entry.expect("a shard").path();
            let key = format!("squares/{}", path.file_name().expect("a name").to_string_lossy());
            double.insert("data", &key, std::fs::read(&path).expect("a shard"));
        }
        let job = std::fs::read_to_string(&stage.job).expect("a job");
        let bucket = stage.path("bucket.toml");
        std::fs::write(&bucket, job.replace("\"shards\"", "\"s3://data/squares/\"")).expect("a job");
        // The undisturbed run is one machine's: its checkpoints lie in its folder.
        std::fs::write(&stage.job, job.replace("url = \"s3://runs/here\"\n", "")).expect("a job");
        let pki = stage.path("pki");
        must(&["pki", "init", text(&pki)]);
        let nodes = [
            ("localhost", "etcd"),
            ("head-1", "coordinator"),
            ("head-2", "coordinator"),
            ("gpu-1", "worker"),
            ("gpu-2", "worker"),
            ("gpu-3", "worker"),
            ("gpu-9", "worker"),
        ];
        for (node, role) in nodes {
            must(&["pki", "issue", text(&pki), node, "--role", role]);
        }
        let run = stage.path("prepared");
        let mut args = vec!["prepare", text(&bucket), "--run", text(&run)];
        args.extend(EXACT);
        let (code, out, said) = argosy_to_end_in(&double.environment(), &args);
        assert_eq!(code, Some(0), "{said}");
        let url = out.trim().to_owned();
        assert!(url.starts_with("s3://runs/here/story-"), "{out}");
        Self {
            stage,
            double,
            etcd_port: free_port(),
            heads: [free_port(), free_port()],
            url,
            environment: Vec::new(),
        }
    }

    fn pki(&self, name: &str) -> PathBuf {
        self.stage.path("pki").join(name)
    }

    fn machine(&self, name: &str) -> Machine {
        Machine {
            name: name.to_owned(),
            folder: self.stage.path("machines"),
            environment: [self.double.environment(), self.environment.clone()].concat(),
        }
    }

    fn etcd(&self) -> Started {
        let client = format!("https://localhost:{}", self.etcd_port);
        let peer = format!("http://localhost:{}", free_port());
        let tls = self.pki("localhost");
        let file = |name: &str| tls.join(name).to_string_lossy().into_owned();
        let binary = std::env::var_os("ETCD").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/toolchain/etcd/bin/etcd"),
            PathBuf::from,
        );
        let data = self.stage.path("etcd");
        self.machine("etcd").start(
            &binary,
            &[
                "--data-dir",
                text(&data),
                "--log-level",
                "warn",
                "--unsafe-no-fsync",
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
                "--initial-cluster",
                &format!("default={peer}"),
                "--cert-file",
                &file("node.pem"),
                "--key-file",
                &file("node.key"),
                "--trusted-ca-file",
                &file("ca.pem"),
                "--client-cert-auth",
                "--client-cert-allowed-hostname",
                "coordinator.argosy",
            ],
        )
    }

    fn head(&self, number: usize) -> Started {
        let (name, listen) = (
            format!("head-{number}"),
            format!("127.0.0.1:{}", self.heads[number - 1]),
        );
        let dir = self.stage.path(&name);
        self.machine(&name).start(
            &program("argosy-coordinator"),
            &[
                &self.url,
                "--etcd",
                &format!("https://localhost:{}", self.etcd_port),
                "--listen",
                &listen,
                "--tls",
                text(&self.pki(&name)),
                "--token-file",
                text(&self.pki("token")),
                "--dir",
                text(&dir),
                "--lease-s",
                "2",
            ],
        )
    }

    fn join(&self) -> String {
        let [a, b] = self.heads;
        format!("https://localhost:{a},https://localhost:{b}")
    }

    /// A worker on a machine of that name, with the certificates of that node.
    fn worker_with(&self, name: &str, tls: &str, token: &Path, more: &[&str]) -> Started {
        let (join, dir, tls) = (self.join(), self.stage.path(name), self.pki(tls));
        let mut args = vec![
            "--join",
            &join,
            "--token-file",
            text(token),
            "--tls",
            text(&tls),
            "--dir",
            text(&dir),
        ];
        args.extend(more);
        self.machine(name).start(&program("argosy-worker"), &args)
    }

    fn worker(&self, name: &str) -> Started {
        self.worker_with(name, name, &self.pki("token"), &[])
    }

    fn events(&self, head: usize) -> Vec<RunEvent> {
        machines::events(&self.stage.path(&format!("head-{head}")))
    }

    /// Waits until that coordinator leads and has heard of step `step`.
    fn until_step(&self, head: usize, step: u64, all: &mut [&mut Started]) {
        until(&format!("step {step} at head-{head}"), all, || {
            let stepped = |e: &RunEvent| matches!(e, RunEvent::StepDone { report, .. } if report.name.step >= step);
            self.events(head).iter().any(stepped)
        });
    }

    fn last_step(&self, head: usize) -> u64 {
        let steps = self.events(head).into_iter().filter_map(|e| match e {
            RunEvent::StepDone { report, .. } => Some(report.name.step),
            _ => None,
        });
        steps.max().unwrap_or(0)
    }

    /// Whatever may not get in: told so in words, with the exit code for "denied"; the cluster does not notice.
    fn turn_strangers_away(&self) {
        let token = self.pki("token");
        let other = self.stage.path("other-token");
        std::fs::write(&other, "f".repeat(64)).expect("a token");
        must(&["pki", "revoke", text(&self.stage.path("pki")), "gpu-9"]);
        let cases = [
            (self.worker_with("s-role", "head-1", &token, &[]), "not a worker's"),
            (self.worker_with("s-token", "gpu-3", &other, &[]), "wrong token"),
            (
                self.worker_with("s-name", "gpu-3", &token, &["--name", "gpu-1"]),
                "its certificate names gpu-3",
            ),
            (
                self.worker_with("s-revoked", "gpu-9", &token, &[]),
                "CertificateRevoked",
            ),
        ];
        for (mut stranger, word) in cases {
            assert_eq!(stranger.wait(), i32::from(Exit::Denied.code()), "{}", stranger.said());
            assert!(stranger.said().contains(word), "{word}: {}", stranger.said());
        }
    }

    /// No secret is in anything that any process said, wrote as an event, or put into the bucket.
    fn assert_no_secret_leaked(&self) {
        let token = std::fs::read_to_string(self.pki("token")).expect("a token");
        let mut secrets = vec![token.trim().to_owned()];
        for node in ["head-1", "head-2", "gpu-1", "gpu-2", "gpu-3", "localhost"] {
            let key = std::fs::read_to_string(self.pki(node).join("node.key")).expect("a key");
            secrets.extend(key.lines().filter(|line| line.len() > 40).map(str::to_owned));
        }
        let variables = self.double.environment();
        secrets.extend(
            variables
                .into_iter()
                .filter(|(name, _)| name.contains("SECRET"))
                .map(|(_, v)| v),
        );
        assert!(secrets.len() >= 8, "{}", secrets.len());
        let mut looked = 0;
        for folder in ["machines", "head-1", "head-2", "gpu-1", "gpu-2", "gpu-3"] {
            machines::each_file(&self.stage.path(folder), &mut |path| {
                looked += 1;
                let text = String::from_utf8_lossy(&std::fs::read(path).expect("a file")).into_owned();
                for secret in &secrets {
                    assert!(!text.contains(secret), "a secret is in {}", path.display());
                }
            });
        }
        assert!(looked > 12, "{looked} files");
    }
}

#[test]
fn story_cluster_whose_leader_is_killed_and_leaves_and_whose_worker_is_replaced_ends_with_the_undisturbed_bits() {
    let _turn = my_turn();
    let cluster = Cluster::prepare();
    let mut etcd = cluster.etcd();
    let mut first = cluster.head(1);
    until("head-1 leads", &mut [&mut etcd, &mut first], || {
        cluster
            .events(1)
            .iter()
            .any(|e| matches!(e, RunEvent::RunStarted { .. }))
    });
    let mut second = cluster.head(2);
    cluster.turn_strangers_away();
    let (mut one, mut two) = (cluster.worker("gpu-1"), cluster.worker("gpu-2"));
    cluster.until_step(1, 20, &mut [&mut etcd, &mut first, &mut second, &mut one, &mut two]);

    first.signal(Signal::SIGKILL);
    cluster.until_step(2, 21, &mut [&mut etcd, &mut second, &mut one, &mut two]);
    let mut first = cluster.head(1);
    until("head-1 stands by", &mut [&mut first], || {
        std::fs::read_to_string(cluster.machine("head-1").log()).is_ok_and(|log| log.contains("standing by"))
    });

    one.signal(Signal::SIGKILL);
    let mut three = cluster.worker("gpu-3");
    let at = cluster.last_step(2);
    cluster.until_step(
        2,
        at + 5,
        &mut [&mut etcd, &mut first, &mut second, &mut two, &mut three],
    );

    second.signal(Signal::SIGTERM);
    assert_eq!(second.wait(), 0, "it leaves the lead: {}", second.said());
    for ended in [&mut first, &mut two, &mut three] {
        assert_eq!(ended.wait(), 0, "{}", ended.said());
    }
    let environment = cluster.double.environment();
    let head = cluster.stage.path("head-1");
    let report = audit_in(&environment, &head);
    let positions = u64::from(EPOCHS) * (SHARDS * ROWS) as u64;
    assert_eq!(
        (&report["trained"], &report["finished"]),
        (&positions.into(), &true.into()),
        "{report:#}"
    );
    assert!(
        weights_in(&environment, &head) == undisturbed(&cluster.stage),
        "the bits differ"
    );
    cluster.assert_no_secret_leaked();
}
