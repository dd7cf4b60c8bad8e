//! A small cluster on this machine: etcd, two coordinators, two workers, a folder as its bucket. What does it cost the training
//! when the leader is killed, and when etcd is away for a minute?

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use super::{Bench, Better, Bound, Measure, Session};

pub(crate) const BENCH: Bench = Bench {
    name: "failover",
    about: "A killed leader, and a minute without etcd: who leads when, and whether steps wait",
    run: measure,
};

/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(2);
/// So long etcd is away.
const AWAY: Duration = Duration::from_secs(60);
/// As long as a coordinator's lease is by default.
const LEASE_S: &str = "5";

fn measure(session: &mut Session<'_>) -> Result<()> {
    let figure = |label: &str, unit, better, bound| Measure {
        label: label.into(),
        unit,
        better,
        bound,
    };
    let killed = vec![
        figure(
            "leader killed: the standby leads after",
            "s",
            Better::Lower,
            Some(Bound::AtMost(5.0)),
        ),
        figure(
            "steps that members applied meanwhile",
            "steps",
            Better::Higher,
            Some(Bound::AtLeast(1.0)),
        ),
        figure("longest pause between two steps meanwhile", "ms", Better::Lower, None),
    ];
    let away = vec![
        figure(
            "etcd away for 60 s: longest pause between two steps",
            "ms",
            Better::Lower,
            None,
        ),
        figure(
            "that pause, in times of the longest in the 60 s before",
            "times",
            Better::Lower,
            Some(Bound::AtMost(2.0)),
        ),
    ];
    let mut cluster: Option<Cluster> = None;
    session.alone_many(killed, |session| started(session, &mut cluster)?.fail_over())?;
    session.alone_many(away, |session| started(session, &mut cluster)?.without_etcd())?;
    let steps = cluster.as_ref().map_or(0, |c| c.steps_made);
    session.note(format!(
        "{steps} steps were made in all. Steps are those that the members' own logs have, which are written whether anybody \
         coordinates or not. A leader's lease is {LEASE_S} s, so that a killed one is missed for at most as long; the time is \
         that from SIGKILL to the next leader's first event."
    ));
    Ok(())
}

fn started<'a>(session: &Session<'_>, cluster: &'a mut Option<Cluster>) -> Result<&'a mut Cluster> {
    // Begun in the first round: the machine has to be quiet before.
    Ok(match cluster {
        Some(cluster) => cluster,
        none => none.insert(Cluster::start(session)?),
    })
}

/// A process that is ended with its guard, and all that it started.
struct Part(Child);

impl Part {
    fn start(mut command: Command, log: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        command.env("OMP_NUM_THREADS", "1").env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let what = format!("cannot start {:?}", command.get_program());
        command.spawn().context(what).map(Self)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// Counts the steps in a worker's log as it grows.
#[derive(Default)]
struct StepLog {
    offset: u64,
    steps: u64,
}

impl StepLog {
    fn read_more(&mut self, path: &Path) -> Result<u64> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(self.steps),
            file => file?,
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let mut more = Vec::new();
        file.read_to_end(&mut more)?;
        self.offset += more.len() as u64;
        self.steps += more.iter().filter(|byte| **byte == b'\n').count() as u64;
        Ok(self.steps)
    }
}

struct Cluster {
    place: PathBuf,
    argosy_coordinator: PathBuf,
    etcd_binary: PathBuf,
    etcd: Option<Part>,
    etcd_ports: [u16; 2],
    heads: [Option<Part>; 2],
    head_ports: [u16; 2],
    leader: usize,
    workers: Vec<Part>,
    url: String,
    logs: BTreeMap<PathBuf, StepLog>,
    steps_made: u64,
}

fn free_port() -> Result<u16> {
    // Whoever is told it binds it later.
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

impl Cluster {
    fn start(session: &Session<'_>) -> Result<Self> {
        let argosy = session.build("argosy", ["--bin", "argosy"])?;
        let worker = session.build("argosy-worker", ["--bin", "argosy-worker"])?;
        let argosy_coordinator = session.build("argosy-coordinator-cli", ["--bin", "argosy-coordinator"])?;
        let place = session.workspace()?;
        for old in ["machines", "runs", "prepared"] {
            match std::fs::remove_dir_all(place.join(old)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context("the last cluster"),
                _ => {}
            }
        }
        std::fs::create_dir_all(place.join("machines"))?;
        let url = prepare(session, &argosy, &place)?;
        let mut cluster = Self {
            argosy_coordinator,
            etcd_binary: session.root().join("target/toolchain/etcd/bin/etcd"),
            etcd: None,
            etcd_ports: [free_port()?, free_port()?],
            heads: [None, None],
            head_ports: [free_port()?, free_port()?],
            leader: 0,
            workers: Vec::new(),
            url,
            logs: BTreeMap::new(),
            steps_made: 0,
            place,
        };
        cluster.start_etcd()?;
        cluster.start_head(0)?;
        cluster.until("a leader", |c| Ok(c.leads(0)?.then_some(())))?;
        cluster.start_head(1)?;
        let join = cluster
            .head_ports
            .map(|port| format!("http://127.0.0.1:{port}"))
            .join(",");
        for name in ["gpu-1", "gpu-2"] {
            let mut command = Command::new(&worker);
            command
                .args(["--join", &join, "--token-file"])
                .arg(cluster.place.join("token"));
            command.arg("--dir").arg(cluster.place.join("machines").join(name));
            cluster.workers.push(Part::start(command, &cluster.log(name))?);
        }
        cluster.until("a hundred steps", |c| Ok((c.steps()? >= 100).then_some(())))?;
        Ok(cluster)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.place.join("machines").join(format!("{name}.log"))
    }

    fn start_etcd(&mut self) -> Result<()> {
        let [client, peer] = self.etcd_ports.map(|port| format!("http://127.0.0.1:{port}"));
        let mut command = Command::new(&self.etcd_binary);
        command.arg("--data-dir").arg(self.place.join("machines/etcd"));
        command.args([
            "--log-level",
            "warn",
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        self.etcd = Some(Part::start(command, &self.log("etcd"))?);
        Ok(())
    }

    fn start_head(&mut self, head: usize) -> Result<()> {
        let mut command = Command::new(&self.argosy_coordinator);
        command
            .arg(&self.url)
            .args(["--etcd", &format!("http://127.0.0.1:{}", self.etcd_ports[0])]);
        command.args([
            "--listen",
            &format!("127.0.0.1:{}", self.head_ports[head]),
            "--lease-s",
            LEASE_S,
        ]);
        command.arg("--token-file").arg(self.place.join("token"));
        command.arg("--dir").arg(self.head_dir(head));
        self.heads[head] = Some(Part::start(command, &self.log(&format!("head-{head}")))?);
        Ok(())
    }

    fn head_dir(&self, head: usize) -> PathBuf {
        self.place.join("machines").join(format!("head-{head}"))
    }

    /// Reigns that a coordinator has begun.
    fn reigns(&self, head: usize) -> Result<usize> {
        let events = match std::fs::read_to_string(self.head_dir(head).join("events.jsonl")) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            events => events?,
        };
        let began = |line: &&str| {
            let event = serde_json::from_str::<Value>(line).unwrap_or_default();
            event["event"] == "run_started"
        };
        Ok(events
            .lines()
            .filter(|line| line.contains("run_started"))
            .filter(began)
            .count())
    }

    fn leads(&self, head: usize) -> Result<bool> {
        Ok(self.reigns(head)? > 0)
    }

    /// Steps in the log that has most of them.
    fn steps(&mut self) -> Result<u64> {
        let run = Path::new(&self.url)
            .file_name()
            .context("the run has a name")?
            .to_owned();
        for name in ["gpu-1", "gpu-2"] {
            let folder = self.place.join("machines").join(name).join(&run).join("steps");
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                self.logs.entry(entry?.path()).or_default();
            }
        }
        for (path, log) in &mut self.logs {
            self.steps_made = self.steps_made.max(log.read_more(path)?);
        }
        Ok(self.steps_made)
    }

    /// Looks again and again until `found` says something, or a part that should live has ended.
    fn until<T>(&mut self, what: &str, mut found: impl FnMut(&mut Self) -> Result<Option<T>>) -> Result<T> {
        let began = Instant::now();
        loop {
            if let Some(value) = found(self)? {
                return Ok(value);
            }
            let heads = self.heads.iter_mut().flatten();
            for part in heads.chain(&mut self.workers).chain(&mut self.etcd) {
                if let Some(status) = part.0.try_wait()? {
                    let logs = self.place.join("machines");
                    bail!(
                        "a process ended with {status} before {what}; see the logs in {}",
                        logs.display()
                    );
                }
            }
            ensure!(began.elapsed() < PATIENCE, "waited too long for {what}");
            std::thread::park_timeout(LOOK);
        }
    }

    /// Follows the steps until `over`; how many were made, and the longest pause between two in milliseconds.
    fn watch(&mut self, what: &str, mut over: impl FnMut(&mut Self) -> Result<bool>) -> Result<(u64, f64)> {
        let first = self.steps()?;
        let (mut last, mut at, mut longest) = (first, Instant::now(), Duration::ZERO);
        self.until(what, |c| {
            let steps = c.steps()?;
            if steps > last {
                longest = longest.max(at.elapsed());
                (last, at) = (steps, Instant::now());
            }
            Ok(over(c)?.then_some(()))
        })?;
        longest = longest.max(at.elapsed());
        Ok((last - first, longest.as_secs_f64() * 1e3))
    }

    /// Kills the leader: seconds until the other one leads, steps that were made meanwhile, the longest pause among them.
    fn fail_over(&mut self) -> Result<Vec<f64>> {
        let (old, next) = (self.leader, 1 - self.leader);
        let before = self.reigns(next)?;
        self.heads[old] = None; // SIGKILL, and reaped
        let killed = Instant::now();
        let (steps, longest) = self.watch("the standby leads", |c| Ok(c.reigns(next)? > before))?;
        let took = killed.elapsed();
        self.leader = next;
        // The next round begins with a standby, and with members that have come back.
        self.start_head(old)?;
        let at = self.steps()?;
        self.until(
            "steps of the next reign",
            |c| Ok((c.steps()? >= at + 100).then_some(())),
        )?;
        Ok(vec![took.as_secs_f64(), steps as f64, longest])
    }

    /// A minute with etcd, and one without: the longest pause between two steps in the second, and what it is to the first.
    fn without_etcd(&mut self) -> Result<Vec<f64>> {
        let with = Instant::now();
        let (_, usual) = self.watch("a minute with etcd", |_| Ok(with.elapsed() >= AWAY))?;
        self.etcd = None;
        let without = Instant::now();
        let (steps, longest) = self.watch("a minute without etcd", |_| Ok(without.elapsed() >= AWAY))?;
        ensure!(steps > 0, "no step was made without etcd");
        self.start_etcd()?;
        let at = self.steps()?;
        self.until("steps behind it", |c| Ok((c.steps()? >= at + 100).then_some(())))?;
        Ok(vec![longest, longest / usual])
    }
}

/// Puts a run that never ends into a folder; the run's place.
fn prepare(session: &Session<'_>, argosy: &Path, place: &Path) -> Result<String> {
    let archive = session.root().join("ops/demo/noto.tar.zst");
    let status = Command::new(argosy).arg("unpack").arg(&archive).arg(place).status()?;
    ensure!(status.success(), "cannot unpack {}", archive.display());
    std::fs::write(place.join("token"), "f".repeat(64))?;
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(place.join("token"), permissions)?;
    let job = place.join("job.toml");
    let text = format!(
        "version = 1\nname = \"failover\"\n[model]\nname = \"demo-tiny\"\n\
         [data]\nsources = [{{ name = \"noto\", shards = \"{}/noto/train-00000.tar\" }}]\n\
         [train]\nglobal_batch = 16\nlanes = 4\nepochs = 100000\nthreads = 1\n\
         [workers]\nmin = 2\ntarget = 2\n[checkpoint]\nurl = \"{}/runs\"\n",
        place.display(),
        place.display()
    );
    std::fs::write(&job, text).with_context(|| format!("cannot write {}", job.display()))?;
    let output = Command::new(argosy)
        .args([
            "prepare".as_ref(),
            job.as_os_str(),
            "--run".as_ref(),
            place.join("prepared").as_os_str(),
        ])
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "cannot prepare {}", job.display());
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
