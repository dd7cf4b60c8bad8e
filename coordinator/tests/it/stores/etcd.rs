//! Real etcd servers, reached through a proxy of ours that can lose answers, be slow and be gone.

use super::{Place, record};
use argosy_coordinator::store::{Campaign, EtcdOptions, EtcdStore, MetaStore, Reign};
use etcd_client::{AlarmAction, AlarmType, Client, GetOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;
use tonic::async_trait;

/// The binary: `ETCD`, or what `cargo xtask setup` has laid down.
fn binary() -> PathBuf {
    let laid = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/toolchain/etcd/bin/etcd");
    let path = std::env::var_os("ETCD").map_or(laid, PathBuf::from);
    assert!(path.is_file(), "no etcd at {}: run `cargo xtask setup`", path.display());
    path
}

/// Members that know each other by sockets in one folder; each dies with its guard.
pub(crate) struct Servers {
    dir: tempfile::TempDir,
    members: Vec<Option<Child>>,
    extra: Vec<String>,
    scheme: &'static str,
}

impl Drop for Servers {
    fn drop(&mut self) {
        for member in self.members.iter_mut().flatten() {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

impl Servers {
    pub(crate) fn start(count: usize, extra: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), "unix", count, extra)
    }

    pub(crate) fn start_in(dir: tempfile::TempDir, scheme: &'static str, count: usize, extra: &[&str]) -> Self {
        let extra = extra.iter().map(|s| (*s).to_owned()).collect();
        let members = (0..count).map(|_| None).collect();
        let mut servers = Self {
            dir,
            members,
            extra,
            scheme,
        };
        (0..count).for_each(|i| servers.run(i));
        servers
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn run(&mut self, i: usize) {
        let peer = |i: usize| format!("m{i}=unix://p{i}:0");
        let cluster: Vec<String> = (0..self.members.len()).map(peer).collect();
        let log = std::fs::File::create(self.dir().join(format!("log{i}"))).unwrap();
        let child = Command::new(binary())
            .current_dir(self.dir())
            .args(["--name", &format!("m{i}"), "--data-dir", &format!("d{i}")])
            .args(["--listen-client-urls", &format!("{}://c{i}:0", self.scheme)])
            .args(["--advertise-client-urls", "http://127.0.0.1:1"])
            .args(["--listen-peer-urls", &format!("unix://p{i}:0")])
            .args(["--initial-advertise-peer-urls", &format!("unix://p{i}:0")])
            .args([
                "--initial-cluster",
                &cluster.join(","),
                "--log-level",
                "warn",
                "--unsafe-no-fsync",
            ])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(&self.extra)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.members[i] = Some(child);
    }

    /// As SIGKILL.
    pub(crate) fn kill(&mut self, i: usize) {
        let mut child = self.members[i].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A disk that does not answer lets the whole server wait.
    pub(crate) fn stand_still(&mut self, i: usize, still: bool) {
        let signal = if still { Signal::SIGSTOP } else { Signal::SIGCONT };
        let pid = self.members[i].as_ref().unwrap().id();
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }

    pub(crate) fn restart(&mut self, i: usize) {
        self.run(i);
    }

    fn socket(&self, i: usize) -> PathBuf {
        self.dir().join(format!("c{i}:0"))
    }

    pub(crate) async fn proxy(&self, i: usize) -> Proxy {
        Proxy::to(self.socket(i)).await
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Open,
    /// Requests pass, answers are thrown away.
    AnswersLost,
    /// Answers come so many milliseconds late.
    Slow(u64),
    /// Every connection is closed.
    Closed,
}

/// A door to one member.
pub(crate) struct Proxy {
    pub(crate) address: String,
    way: watch::Sender<Way>,
}

impl Proxy {
    async fn to(socket: PathBuf) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (way, heard) = watch::channel(Way::Open);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                client.set_nodelay(true).unwrap();
                tokio::spawn(carry(client, socket.clone(), heard.clone()));
            }
        });
        Self { address, way }
    }

    fn set(&self, way: Way) {
        self.way.send_replace(way);
    }

    pub(crate) fn close(&self) {
        self.set(Way::Closed);
    }

    pub(crate) fn open(&self) {
        self.set(Way::Open);
    }
}

/// One connection, until either side or the proxy closes it.
async fn carry(client: tokio::net::TcpStream, socket: PathBuf, mut way: watch::Receiver<Way>) -> io::Result<()> {
    if *way.borrow() == Way::Closed {
        return Ok(());
    }
    let (mut from_server, mut to_server) = UnixStream::connect(socket).await?.into_split();
    let (mut from_client, mut to_client) = client.into_split();
    let there = tokio::io::copy(&mut from_client, &mut to_server);
    let answers = way.clone();
    let back = async {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let bytes = from_server.read(&mut buffer).await?;
            if bytes == 0 {
                return Ok::<_, io::Error>(());
            }
            let how = *answers.borrow();
            match how {
                Way::AnswersLost => continue,
                Way::Slow(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                Way::Open | Way::Closed => {}
            }
            to_client.write_all(&buffer[..bytes]).await?;
        }
    };
    // A stream of which something was thrown away cannot go on: when answers come again, it is closed.
    let mut lossy = *way.borrow() == Way::AnswersLost;
    let closed = async {
        while way.changed().await.is_ok() {
            let now = *way.borrow();
            if now == Way::Closed || lossy && now == Way::Open {
                return;
            }
            lossy |= now == Way::AnswersLost;
        }
    };
    tokio::select! {
        _ = there => {}
        _ = back => {}
        () = closed => {}
    }
    Ok(())
}

/// One member or several, and the store that is judged.
pub(crate) struct EtcdPlace {
    pub(crate) servers: Servers,
    pub(crate) proxies: Vec<Proxy>,
    store: EtcdStore,
}

pub(crate) fn etcd_options(endpoints: Vec<String>) -> EtcdOptions {
    EtcdOptions {
        endpoints,
        run: "story-1".into(),
        lease: Duration::from_secs(2),
        patience: Duration::from_secs(30),
        user: None,
        tls: None,
    }
}

impl EtcdPlace {
    pub(crate) async fn new(count: usize) -> Self {
        Self::with_lease(count, Duration::from_secs(2)).await
    }

    pub(crate) async fn with_lease(count: usize, lease: Duration) -> Self {
        let servers = Servers::start(count, &["--quota-backend-bytes", "4194304"]);
        let mut proxies = Vec::new();
        for i in 0..count {
            proxies.push(servers.proxy(i).await);
        }
        let endpoints = proxies.iter().map(|p| format!("http://{}", p.address)).collect();
        let options = EtcdOptions {
            lease,
            ..etcd_options(endpoints)
        };
        let store = EtcdStore::connect(options).await.unwrap();
        let place = Self {
            servers,
            proxies,
            store,
        };
        place.up().await;
        place
    }

    pub(crate) fn etcd(&self) -> EtcdStore {
        self.store.clone()
    }

    pub(crate) async fn client(&self) -> Client {
        let endpoints: Vec<String> = self.proxies.iter().map(|p| p.address.clone()).collect();
        Client::connect(endpoints, None).await.unwrap()
    }

    /// Waits until all servers answer.
    async fn up(&self) {
        for proxy in &self.proxies {
            let mut member = Client::connect([proxy.address.as_str()], None).await.unwrap();
            while member.get("x", None).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await; // between two tries of a server that begins
            }
        }
    }

    fn all(&self, way: Way) {
        self.proxies.iter().for_each(|p| p.set(way));
    }
}

#[async_trait]
impl Place for EtcdPlace {
    fn store(&self) -> Arc<dyn MetaStore> {
        Arc::new(self.etcd())
    }

    /// Nobody renews it: the store deletes the key by itself.
    async fn outlive(&mut self, _reign: Arc<dyn Reign>) {
        let Campaign::Taken(seen) = self.store.campaign("nobody").await.unwrap() else {
            panic!("the reign was over before");
        };
        self.store.vacated(&seen).await.unwrap();
    }

    async fn forget_history(&mut self) {
        let mut client = self.client().await;
        let now = client.get("x", None).await.unwrap().header().unwrap().revision();
        client.compact(now, None).await.unwrap();
    }

    async fn append_unheard(&mut self, reign: &Arc<dyn Reign>, revision: u64) -> Result<u64, String> {
        // Seen on another way, the record is there; then the connection breaks without the answer having come.
        let beside = self.servers.proxy(0).await;
        let mut witness = Client::connect([beside.address.as_str()], None).await.unwrap();
        let prefix = GetOptions::new().with_prefix().with_count_only();
        self.all(Way::AnswersLost);
        let (writer, asked) = (Arc::clone(reign), record(revision));
        let appending = tokio::spawn(async move { writer.append(revision - 1, &asked).await });
        let key = "argosy/story-1/records/";
        while witness.get(key, Some(prefix.clone())).await.unwrap().count() < revision.cast_signed() {
            tokio::task::yield_now().await;
        }
        assert!(!appending.is_finished(), "no answer came");
        self.all(Way::Open);
        appending.await.unwrap().map_err(|e| e.to_string())
    }

    async fn fill(&mut self) {
        let mut client = self.client().await;
        let block = vec![b'x'; 1 << 20];
        while client.put("fill", block.clone(), None).await.is_ok() {}
    }

    async fn make_room(&mut self) {
        let mut client = self.client().await;
        let deleted = client.delete("fill", None).await.unwrap();
        let now = deleted.header().unwrap().revision();
        let physical = etcd_client::CompactionOptions::new().with_physical();
        client.compact(now, Some(physical)).await.unwrap();
        // Each has a file and an alarm of its own, and is so far in its own time: who takes a write has room.
        for proxy in self.proxies.iter().chain(&self.proxies) {
            let mut member = Client::connect([proxy.address.as_str()], None).await.unwrap();
            while member.put("room", "", None).await.is_err() {
                member.defragment().await.unwrap();
                let alarms = client.alarm(AlarmAction::Get, AlarmType::Nospace, None).await.unwrap();
                for alarm in alarms.alarms() {
                    let mut of = etcd_client::AlarmOptions::new();
                    of.with_member(alarm.member_id());
                    client
                        .alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(of))
                        .await
                        .unwrap();
                }
            }
        }
    }

    fn slow(&mut self, ms: u64) {
        self.all(Way::Slow(ms));
    }
}
