//! One listener a worker: checks hellos, hands ring sockets to whoever builds the ring, serves the base state to those who
//! heal.

use super::heal::{self, Snapshot};
use super::hello::{ACCEPTED, Hello, Purpose, close_on_abort};
use super::stream::PeerStream;
use super::{PeerError, Result};
use crate::collective::AbortHandle;
use argosy_common::ids::Generation;
use argosy_common::plan::generation_secret;
use argosy_rpc::Tls;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// A caller has so long for each part of its hello.
const HELLO_MS: u64 = 5_000;
/// Callers at once; more are sent away before a thread is spent on them.
const CALLERS_MAX: usize = 1_024;

#[derive(Debug, Default)]
struct Board {
    /// Ring sockets that nobody has taken yet.
    rings: BTreeMap<(Generation, u32), PeerStream>,
    /// What is served to those who heal in the generation.
    snapshot: Option<(Generation, Arc<Snapshot>)>,
    /// Generations up to this one are over; their callers are sent away.
    over: Option<Generation>,
    closing: bool,
}

#[derive(Debug)]
struct Shared {
    board: Mutex<Board>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, board: MutexGuard<'a, Board>) -> MutexGuard<'a, Board> {
        self.changed.wait(board).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a worker is found by its peers, and what it shows them.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where it listens; port 0 takes a free one. Off loopback certificates are needed.
    pub listen: SocketAddr,
    /// The host that peers reach it at, where that is not the one it listens on.
    pub advertise: Option<String>,
    /// Certificates; with them nobody is spoken to in clear.
    pub tls: Option<Tls>,
}

impl Default for Place {
    /// A free port of loopback, in clear.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            tls: None,
        }
    }
}

/// The listener. Lives as long as the worker.
#[derive(Debug)]
pub struct PeerServer {
    addr: SocketAddr,
    place: Place,
    shared: Arc<Shared>,
}

impl PeerServer {
    /// Listens on a free loopback port. Callers must know secrets derived from `run_secret`.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(run_secret: Vec<u8>) -> std::io::Result<Self> {
        Self::start_at(Place::default(), run_secret)
    }

    /// The same at another place, where callers must also show a worker's certificate.
    ///
    /// # Errors
    /// When the port cannot be had, or when a place off loopback has no certificates.
    pub fn start_at(place: Place, run_secret: Vec<u8>) -> std::io::Result<Self> {
        if !place.listen.ip().is_loopback() && place.tls.is_none() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                format!(
                    "refusing to listen on {}: without certificates a worker is found on loopback only; see `argosy pki`",
                    place.listen
                ),
            ));
        }
        let listener = TcpListener::bind(place.listen)?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            board: Mutex::new(Board::default()),
            changed: Condvar::new(),
        });
        let theirs = shared.clone();
        let secret = Arc::new(run_secret);
        let tls = place.tls.clone();
        std::thread::Builder::new().name("peer-accept".into()).spawn(move || {
            for socket in listener.incoming() {
                if theirs.lock().closing {
                    return;
                }
                let Ok(socket) = socket else { continue };
                // One count is ours, one the accepting thread's, one each caller's.
                if Arc::strong_count(&theirs) > CALLERS_MAX + 2 {
                    tracing::warn!("too many callers at once; one was sent away");
                    continue;
                }
                let (shared, secret, tls) = (theirs.clone(), secret.clone(), tls.clone());
                // A thread for each caller: one that is silent or slow must not keep the others waiting.
                let spawned = std::thread::Builder::new()
                    .name("peer-call".into())
                    .spawn(move || answer(socket, tls.as_ref(), &shared, &secret));
                if let Err(error) = spawned {
                    tracing::warn!(%error, "no thread for a peer's call");
                }
            }
        })?;
        Ok(Self { addr, place, shared })
    }

    /// Where peers reach it.
    #[must_use]
    pub fn addr(&self) -> String {
        match &self.place.advertise {
            Some(host) if host.contains(':') => format!("[{host}]:{}", self.addr.port()),
            Some(host) => format!("{host}:{}", self.addr.port()),
            None => self.addr.to_string(),
        }
    }

    /// The certificates that it shows, and those who call for it.
    #[must_use]
    pub fn tls(&self) -> Option<&Tls> {
        self.place.tls.as_ref()
    }

    /// Waits for the ring connection of the rank before us.
    ///
    /// # Errors
    /// [`PeerError::Aborted`].
    pub fn take_ring(&self, generation: Generation, from_rank: u32, abort: &AbortHandle) -> Result<PeerStream> {
        let shared = self.shared.clone();
        abort.on_abort(move || {
            // Under the lock: the waiting thread is either before its check or already waiting.
            let _board = shared.lock();
            shared.changed.notify_all();
        });
        let mut board = self.shared.lock();
        loop {
            if abort.is_aborted() {
                return Err(PeerError::Aborted);
            }
            if let Some(socket) = board.rings.remove(&(generation, from_rank)) {
                drop(board);
                let lost = |e: std::io::Error| PeerError::Lost {
                    addr: format!("rank {from_rank}"),
                    why: e.to_string(),
                };
                close_on_abort(socket.socket(), abort).map_err(lost)?;
                return Ok(socket);
            }
            board = self.shared.wait(board);
        }
    }

    /// Serves `snapshot` to those who heal in `generation`.
    pub fn post(&self, generation: Generation, snapshot: Arc<Snapshot>) {
        self.shared.lock().snapshot = Some((generation, snapshot));
        self.shared.changed.notify_all();
    }

    /// Stops serving: everybody has the base state, and the own one changes now.
    pub fn withdraw(&self) {
        self.shared.lock().snapshot = None;
    }

    /// Sends away who still calls for `generation` or an older one.
    pub fn close(&self, generation: Generation) {
        let mut board = self.shared.lock();
        board.over = board.over.max(Some(generation));
        board.rings.retain(|(g, _), _| *g > generation);
        if board.snapshot.as_ref().is_some_and(|(g, _)| *g <= generation) {
            board.snapshot = None;
        }
        drop(board);
        self.shared.changed.notify_all();
    }
}

impl Drop for PeerServer {
    fn drop(&mut self) {
        let mut board = self.shared.lock();
        board.closing = true;
        board.over = Some(Generation(u64::MAX));
        board.rings.clear();
        drop(board);
        self.shared.changed.notify_all();
        // The accepting thread looks at `closing` when somebody calls; this is that call.
        let mut addr = self.addr;
        if addr.ip().is_unspecified() {
            addr.set_ip(match addr.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        let _ = TcpStream::connect_timeout(&addr, Duration::from_secs(1));
    }
}

/// One caller, from its hello to the end of what it came for.
fn answer(socket: TcpStream, tls: Option<&Tls>, shared: &Shared, run_secret: &[u8]) {
    let timeout = Some(Duration::from_millis(HELLO_MS));
    let peer = socket.peer_addr().map_or_else(|_| "somebody".into(), |a| a.to_string());
    let timed = socket
        .set_read_timeout(timeout)
        .and_then(|()| socket.set_write_timeout(timeout));
    let mut socket = match timed.and_then(|()| PeerStream::accept(socket, tls)) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::warn!(peer, %error, "a call without a worker's certificate was refused");
            return;
        }
    };
    let Some(hello) = Hello::receive(&mut socket, |g| generation_secret(run_secret, g)) else {
        tracing::warn!(peer, "a call without the generation's secret was refused");
        return;
    };
    let plain = socket.socket();
    let untimed = plain
        .set_read_timeout(None)
        .and_then(|()| plain.set_write_timeout(None));
    let ready = untimed.and_then(|()| plain.set_nodelay(true));
    if ready.is_err() || shared.lock().over >= Some(hello.generation) {
        return;
    }
    match hello.purpose {
        Purpose::Ring { from_rank } => {
            // The answer comes first: after it the socket carries frames only, and the ring may be waiting for it.
            let mut board = shared.lock();
            if board.over < Some(hello.generation) && socket.write_all(&[ACCEPTED]).is_ok() {
                board.rings.insert((hello.generation, from_rank), socket);
                shared.changed.notify_all();
            }
        }
        Purpose::Heal => {
            if let Some(snapshot) = wait_for_snapshot(shared, hello.generation)
                && socket.write_all(&[ACCEPTED]).is_ok()
                && let Err(error) = heal::serve(&mut socket, &snapshot)
            {
                tracing::warn!(%error, "a healing peer went away");
            }
        }
    }
}

/// Who heals may call before the own trainer has posted its state; `None` when the generation is over first.
fn wait_for_snapshot(shared: &Shared, generation: Generation) -> Option<Weak<Snapshot>> {
    let mut board = shared.lock();
    loop {
        match &board.snapshot {
            Some((g, snapshot)) if *g == generation => return Some(Arc::downgrade(snapshot)),
            _ if board.over >= Some(generation) => return None,
            _ => board = shared.wait(board),
        }
    }
}
