//! The process as its coordinators see it, with tests in their place: sessions, leases, leaving, and being left alone.

use crate::commands::{png, tar};
use argosy_common::config::Job;
use argosy_common::events::{FromWorker, ToWorker};
use argosy_common::ids::{Generation, StateName, Term, WorkerId};
use argosy_common::plan::{Member, Plan, StateSource};
use argosy_rpc::server::{Admission, Doorman, Limits, serve};
use argosy_rpc::{Hello, Welcome};
use argosy_shard_loader::{BuildConfig, RetryPolicy, Store, index};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tonic::Status;

const TOKEN: &str = "s3cret";
const PATIENCE: Duration = Duration::from_secs(120);
const LONG_MS: u64 = 600_000;
const GENERATION: Generation = Generation(1);
const LANES: u32 = 2;

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(PATIENCE, future).await;
    ended.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

/// A run folder with an index of one small shard.
struct Stage {
    dir: tempfile::TempDir,
    welcome: Welcome,
}

fn stage(orphan_max_ms: u64) -> Stage {
    let dir = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for i in 0..8u8 {
        files.push((format!("{i}.png"), png(32, [i * 30, 255 - i, 90])));
        files.push((format!("{i}.txt"), format!("a picture of colour {i}").into_bytes()));
    }
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, data)| (&**name, &**data)).collect();
    tar(&dir.path().join("00.tar"), &files);
    let text = "version = 1\nname = \"alone\"\n[model]\nname = \"demo-tiny\"\n\
                [data]\nsources = [{ name = \"s\", shards = \"00.tar\" }]\n[train]\nglobal_batch = 4\nlanes = 2\n\
                epochs = 100000\nlr = 1e-4\nthreads = 1\n";
    let job = Job::from_toml("job.toml", text).unwrap();
    let config = BuildConfig::of(&job.data, dir.path()).unwrap();
    let (index, _) = index::build(
        &Store::new(RetryPolicy::default()).unwrap(),
        &job.data.sources,
        dir.path(),
        &config,
        &|_| {},
    )
    .unwrap();
    let index_path = dir.path().join("index.argosy");
    index.write(&index_path).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let welcome = Welcome {
        worker: WorkerId(1),
        files_url: None,
        run: "alone-1".into(),
        job_dir: path(dir.path()),
        index_path: path(&index_path),
        index_hash: index.index_hash(),
        lanes: LANES,
        window_factor: job.data.window_factor,
        total_positions: 8 * job.train.epochs,
        run_dir: path(dir.path()),
        heartbeat_ms: 50,
        run_secret: vec![7; 32],
        decode_threads: 1,
        torch_threads: 1,
        term: Term(1),
        leases: true,
        orphan_max_ms,
        job,
    };
    Stage { dir, welcome }
}

/// Who came, and the far ends of its session.
struct Guest {
    hello: Hello,
    to_worker: mpsc::Sender<ToWorker>,
    words: mpsc::Receiver<FromWorker>,
}

struct Porch {
    welcome: Welcome,
    /// Says this to everybody instead of letting them in.
    refusal: Option<String>,
    guests: mpsc::Sender<Guest>,
}

#[tonic::async_trait]
impl Doorman for Porch {
    async fn admit(&self, hello: Hello) -> Result<Admission, Status> {
        if let Some(why) = &self.refusal {
            return Err(Status::failed_precondition(why));
        }
        let worker = hello.worker;
        let (to_worker, outgoing) = mpsc::channel(64);
        let (incoming, words) = mpsc::channel(64);
        let guest = Guest {
            hello,
            to_worker,
            words,
        };
        self.guests.send(guest).await.map_err(|_| Status::unavailable("over"))?;
        Ok(Admission {
            welcome: Welcome {
                worker,
                ..self.welcome.clone()
            },
            outgoing,
            incoming,
        })
    }
}

/// A coordinator that does what the test says.
struct Coordinator {
    guests: mpsc::Receiver<Guest>,
    server: tokio::task::JoinHandle<()>,
}

/// An address that was free a moment ago.
fn free() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

impl Coordinator {
    async fn start(addr: SocketAddr, welcome: Welcome) -> Self {
        Self::start_with(addr, welcome, None).await
    }

    async fn start_with(addr: SocketAddr, welcome: Welcome, refusal: Option<String>) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let (porch, guests) = mpsc::channel(8);
        let doorman = Porch {
            welcome,
            refusal,
            guests: porch,
        };
        let limits = Limits {
            connections_max: 16,
            hello_within: PATIENCE,
            keep_alive: PATIENCE,
        };
        let server = tokio::spawn(async move {
            let _ = serve(listener, TOKEN, limits, None, Arc::new(doorman), std::future::pending()).await;
        });
        Self { guests, server }
    }

    async fn guest(&mut self) -> Guest {
        in_time("a worker", self.guests.recv()).await.unwrap()
    }

    /// Nobody answers at its address any more; sessions end with their guests.
    async fn leave(self) {
        self.server.abort();
        let _ = self.server.await;
    }
}

impl Guest {
    /// The next word for which `found` says something; heartbeats and others are passed over.
    async fn until<T>(&mut self, what: &str, mut found: impl FnMut(FromWorker) -> Option<T>) -> T {
        let search = async {
            loop {
                let word = self
                    .words
                    .recv()
                    .await
                    .unwrap_or_else(|| panic!("it hung up before {what}"));
                if let Some(value) = found(word) {
                    return value;
                }
            }
        };
        in_time(what, search).await
    }

    async fn say(&self, message: ToWorker) {
        self.to_worker.send(message).await.unwrap();
    }

    async fn step(&mut self, step: u64) -> StateName {
        self.until(&format!("step {step}"), |word| match word {
            FromWorker::StepDone { report } if report.name.step >= step => Some(report.name),
            _ => None,
        })
        .await
    }

    /// A lease in answer to its next wish.
    async fn lease(&mut self, lasts_ms: u64) {
        let asked_at = self
            .until("a wish for a lease", |word| match word {
                FromWorker::LeaseWanted { generation, at } if generation == GENERATION => Some(at),
                _ => None,
            })
            .await;
        self.say(ToWorker::Lease {
            generation: GENERATION,
            asked_at,
            lasts_ms,
        })
        .await;
    }

    /// Lets it form a generation of its own and activates that.
    async fn form(&mut self) {
        let addr = self
            .until("ready", |word| match word {
                FromWorker::Ready { addr, .. } => Some(addr),
                _ => None,
            })
            .await;
        let plan = Plan {
            run: "alone-1".into(),
            generation: GENERATION,
            term: Term(1),
            base: StateName::INITIAL,
            source: StateSource::Seed,
            members: vec![Member {
                worker: WorkerId(1),
                addr,
                heals: false,
            }]
            .into(),
            lanes: vec![0; LANES as usize].into(),
            skip: None,
            quarantine: Vec::new(),
        };
        self.say(ToWorker::Form { plan }).await;
        self.until("formed", |word| matches!(word, FromWorker::Formed { .. }).then_some(()))
            .await;
        self.say(ToWorker::Activate { generation: GENERATION }).await;
    }

    async fn closed(&mut self) -> StateName {
        self.until("the end of the generation", |word| match word {
            FromWorker::Closed { name, .. } => Some(name),
            _ => None,
        })
        .await
    }
}

struct Worker {
    child: Child,
    log: PathBuf,
}

fn worker(stage: &Stage, addresses: &[SocketAddr], more: &[&str]) -> Worker {
    let token = stage.dir.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let log = stage.dir.path().join("worker.log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_argosy-worker"));
    command
        .arg("join")
        .arg("--token-file")
        .arg(token)
        .args(["--worker", "1"])
        .args(more);
    for address in addresses {
        command.arg("--endpoint").arg(format!("http://{address}"));
    }
    let child = command
        .env("OMP_NUM_THREADS", "1")
        .stderr(std::fs::File::create(&log).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    Worker { child, log }
}

impl Worker {
    async fn ends(&mut self) -> i32 {
        let status = in_time("the worker's end", self.child.wait()).await.unwrap();
        status.code().unwrap_or_else(|| panic!("{status}\n{}", self.said()))
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = self.child.id().unwrap().cast_signed();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }
}

/// Steps in the worker's own log.
fn logged(stage: &Stage) -> usize {
    let log = std::fs::read_to_string(stage.dir.path().join("steps/w1.jsonl")).unwrap();
    log.lines().filter(|line| line.contains(r#""kind":"applied""#)).count()
}

async fn until_logged(stage: &Stage, steps: usize) {
    in_time("steps in the log", async {
        while logged(stage) < steps {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn worker_that_is_refused_says_why_and_one_with_other_data_refuses_by_itself() {
    let stage = stage(0);
    let address = free();
    let why = "worker w1 computes other bits than this run: threads 1, this run has 2";
    let coordinator = Coordinator::start_with(address, stage.welcome.clone(), Some(why.into())).await;
    let mut refused = worker(&stage, &[free(), address], &[]);
    assert_eq!(refused.ends().await, 4, "{}", refused.said());
    assert!(
        refused.said().contains(why),
        "a refusal tells more than silence: {}",
        refused.said()
    );
    coordinator.leave().await;

    let address = free();
    let other = Welcome {
        index_hash: stage.welcome.index_hash ^ 1,
        ..stage.welcome.clone()
    };
    let mut coordinator = Coordinator::start(address, other).await;
    let mut worker = worker(&stage, &[address], &[]);
    let mut guest = coordinator.guest().await;
    let (exit, message) = guest
        .until("its refusal", |word| match word {
            FromWorker::Failed { exit, message } => Some((exit, message)),
            _ => None,
        })
        .await;
    assert!(
        exit == 4 && message.contains("is not the one this run began with"),
        "{exit} {message}"
    );
    assert_eq!(worker.ends().await, 4, "{}", worker.said());
}

/// Twin in the simulator: `coordinator-crash`.
#[tokio::test]
async fn worker_whose_coordinator_goes_trains_on_and_tells_the_next_one_of_its_run_where_it_stands() {
    let stage = stage(LONG_MS);
    let addresses = [free(), free(), free()];
    let mut first = Coordinator::start(addresses[0], stage.welcome.clone()).await;
    let mut worker = worker(&stage, &addresses, &[]);
    let mut guest = first.guest().await;
    assert_eq!(guest.hello.returning, None);
    guest.form().await;
    guest.lease(LONG_MS).await;
    let before = guest.step(3).await;
    first.leave().await;
    drop(guest);
    until_logged(&stage, before.step as usize + 30).await;

    // Another run at the second address: it hears nothing of this one's state.
    let mut theirs = stage.welcome.clone();
    theirs.job.train.lr = 0.5;
    let mut other = Coordinator::start(addresses[1], theirs).await;
    let mut stranger = other.guest().await;
    let returning = stranger.hello.returning.unwrap();
    assert_eq!(returning.config_hash, stage.welcome.job.config_hash());
    assert_eq!(returning.index_hash, stage.welcome.index_hash);
    assert_eq!(in_time("it hangs up", stranger.words.recv()).await, None);
    other.leave().await;

    let next = Welcome {
        term: Term(2),
        ..stage.welcome.clone()
    };
    let mut second = Coordinator::start(addresses[2], next).await;
    let mut guest = second.guest().await;
    let word = in_time("its first word", guest.words.recv()).await.unwrap();
    let FromWorker::Rejoined { name, inside, .. } = word else {
        panic!("{word:?}")
    };
    assert_eq!(inside, Some(GENERATION));
    assert!(name.step >= before.step + 30, "{name}");
    // What it had to keep comes in order; of more than it can keep, the newest.
    let mut kept = 0;
    let live = guest
        .until("live steps", |word| match word {
            FromWorker::StepDone { report } => {
                kept += u64::from(report.name <= name);
                (report.name > name).then_some(report.name)
            }
            _ => None,
        })
        .await;
    assert!(
        kept >= 1 && live.step == name.step + 1,
        "{kept} kept, then {live} behind {name}"
    );
    guest
        .say(ToWorker::Close {
            generation: GENERATION,
            after_step: Some(live.step + 5),
        })
        .await;
    assert!(guest.closed().await.step >= live.step + 5);
    guest.say(ToWorker::Finish).await;
    assert_eq!(worker.ends().await, 0, "{}", worker.said());
}

#[tokio::test]
async fn orphan_that_finds_nobody_leaves_a_copy_that_can_be_exported_and_exits_75() {
    let stage = stage(500);
    let address = free();
    let mut coordinator = Coordinator::start(address, stage.welcome.clone()).await;
    let mut worker = worker(&stage, &[address], &[]);
    let mut guest = coordinator.guest().await;
    guest.form().await;
    guest.lease(LONG_MS).await;
    guest.step(2).await;
    coordinator.leave().await;
    drop(guest);
    assert_eq!(worker.ends().await, 75, "{}", worker.said());
    let steps = logged(&stage);
    let copies = stage.dir.path().join("emergency/w1");
    let manifest = copies.join(steps.to_string()).join("manifest.json");
    assert!(manifest.is_file(), "no {}\n{}", manifest.display(), worker.said());
    let out = stage.dir.path().join("exported");
    let exported = Command::new(env!("CARGO_BIN_EXE_argosy-worker"))
        .args(["export", "--format", "json", "-o"])
        .arg(&out)
        .arg(&manifest)
        .output()
        .await
        .unwrap();
    assert!(
        exported.status.success(),
        "{}",
        String::from_utf8_lossy(&exported.stderr)
    );
    let said: serde_json::Value = serde_json::from_slice(&exported.stdout).unwrap();
    assert_eq!(said["step"], steps as u64, "{said}");
}

/// Twin in the simulator: `store-down` under INV12.
#[tokio::test]
async fn worker_applies_nothing_without_a_lease_and_leaves_clean_when_it_is_told_to() {
    let stage = stage(LONG_MS);
    let address = free();
    let mut coordinator = Coordinator::start(address, stage.welcome.clone()).await;
    let mut worker = worker(&stage, &[address], &[]);
    let mut guest = coordinator.guest().await;
    guest.form().await;
    // Wishes that nobody answers: it waits in place, however often it asks.
    let mut wishes = 0;
    guest
        .until("wishes", |word| match word {
            FromWorker::LeaseWanted { .. } => {
                wishes += 1;
                (wishes >= 20).then_some(())
            }
            FromWorker::StepDone { report } => panic!("it applied {} without a lease", report.name),
            _ => None,
        })
        .await;
    assert_eq!(logged(&stage), 0);
    guest.lease(LONG_MS).await;
    let name = guest.step(3).await;
    guest
        .say(ToWorker::Close {
            generation: GENERATION,
            after_step: None,
        })
        .await;
    assert!(guest.closed().await >= name);
    guest.say(ToWorker::Finish).await;
    assert_eq!(worker.ends().await, 0, "{}", worker.said());
}

/// Twin in the simulator: `member-drain`.
#[tokio::test]
async fn sigterm_drains_until_the_coordinator_lets_go_and_the_second_one_does_not_wait() {
    use nix::sys::signal::Signal::{SIGINT, SIGTERM};
    for second in [false, true] {
        let stage = stage(LONG_MS);
        let address = free();
        let mut coordinator = Coordinator::start(address, stage.welcome.clone()).await;
        let mut worker = worker(&stage, &[address], &["--grace-s", "100"]);
        let mut guest = coordinator.guest().await;
        guest.form().await;
        guest.lease(LONG_MS).await;
        guest.step(2).await;
        worker.signal(SIGTERM);
        let grace = guest
            .until("the wish to leave", |word| match word {
                FromWorker::Draining { grace_ms } => Some(grace_ms),
                _ => None,
            })
            .await;
        assert_eq!(grace, 100_000);
        let name = guest.step(1).await;
        if second {
            worker.signal(SIGINT);
        } else {
            guest
                .say(ToWorker::Close {
                    generation: GENERATION,
                    after_step: Some(name.step + 2),
                })
                .await;
            assert!(guest.closed().await.step >= name.step + 2);
            guest.say(ToWorker::Finish).await;
        }
        assert_eq!(worker.ends().await, 0, "{}", worker.said());
    }
}

#[tokio::test]
async fn notice_of_the_machines_end_drains_with_the_providers_grace() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let announced = Arc::new(AtomicBool::new(false));
    let now = announced.clone();
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let mut head = [0; 4096];
            let n = socket.read(&mut head).unwrap_or(0);
            let token = String::from_utf8_lossy(&head[..n]).starts_with("PUT /latest/api/token");
            let (status, body) = match (token, now.load(Ordering::SeqCst)) {
                (true, _) => ("200 OK", "token"),
                (false, false) => ("404 Not Found", ""),
                (false, true) => ("200 OK", r#"{"action": "terminate", "time": "2026-09-18T08:22:00Z"}"#),
            };
            let length = body.len();
            let _ = write!(
                socket,
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
        }
    });
    let stage = stage(LONG_MS);
    let address = free();
    let mut coordinator = Coordinator::start(address, stage.welcome.clone()).await;
    let mut worker = worker(&stage, &[address], &["--notices", "aws", "--notices-url", &url]);
    let mut guest = coordinator.guest().await;
    guest.form().await;
    guest.lease(LONG_MS).await;
    guest.step(2).await;
    announced.store(true, Ordering::SeqCst);
    let grace = guest
        .until("the wish to leave", |word| match word {
            FromWorker::Draining { grace_ms } => Some(grace_ms),
            _ => None,
        })
        .await;
    assert_eq!(grace, 110_000);
    assert!(worker.said().contains("EC2 will terminate"), "{}", worker.said());
    guest.say(ToWorker::Finish).await;
    assert_eq!(worker.ends().await, 0, "{}", worker.said());
}
