//! The first bytes of every connection between workers. Fixed sizes; both sides prove that they know the generation's secret,
//! and neither ever sends it (a code of a fresh challenge instead, RFC 2104). Nothing else is acted on before that.
//!
//! ```text
//!   caller ── hello: generation, purpose, a nonce ──▶ listener
//!          ◀── a nonce, code over both ──────────────
//!          ── code over both ────────────────────────▶
//!          ◀── accepted ─────────────────────────────
//! ```

use super::stream::{PeerStream, distrust};
use super::{PeerError, Result};
use crate::collective::AbortHandle;
use argosy_common::ids::Generation;
use argosy_rpc::Tls;
use hmac::{Hmac, Mac};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sha2::Sha256;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const MAGIC: [u8; 8] = *b"ARGOSYP2";
const NONCE_BYTES: usize = 32;
const CODE_BYTES: usize = 32;
/// Bytes of a call: magic, generation, purpose, rank, nonce.
const CALL_BYTES: usize = 8 + 8 + 1 + 4 + NONCE_BYTES;
/// The listener's word that the caller's code was good.
pub(super) const ACCEPTED: u8 = 1;
/// A try to connect takes at most this: a new one asks again sooner than the system would.
const CONNECT_MS: u16 = 1_000;
/// Pause between two tries to connect to a peer that does not listen yet.
const RETRY_MS: u64 = 20;

type Nonce = [u8; NONCE_BYTES];

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The ring; the caller is this rank and will send.
    Ring {
        /// Rank of the caller.
        from_rank: u32,
    },
    /// The caller wants the base state of the generation.
    Heal,
}

/// Who calls, and why.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The generation.
    pub generation: Generation,
    /// Its secret ([`argosy_common::plan::generation_secret`]).
    pub secret: [u8; 32],
    /// Why.
    pub purpose: Purpose,
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("Hello");
        out.field("generation", &self.generation)
            .field("purpose", &self.purpose)
            .finish_non_exhaustive()
    }
}

/// Who speaks in a code, so that one side's is never good as the other's.
#[derive(Clone, Copy)]
enum Side {
    Caller,
    Listener,
}

/// What both sides make codes over.
struct Meeting<'a> {
    secret: &'a [u8; 32],
    call: &'a [u8; CALL_BYTES],
    nonce: &'a Nonce,
}

impl Meeting<'_> {
    fn mac(&self, side: Side) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.secret).ok()?;
        mac.update(match side {
            Side::Caller => b"argosy peer caller v2",
            Side::Listener => b"argosy peer listen v2",
        });
        mac.update(self.call);
        mac.update(self.nonce);
        Some(mac)
    }

    fn code(&self, side: Side) -> Option<[u8; CODE_BYTES]> {
        Some(self.mac(side)?.finalize().into_bytes().into())
    }

    /// Compares in a time that does not depend on where the first difference is.
    fn is_good(&self, side: Side, code: &[u8; CODE_BYTES]) -> bool {
        self.mac(side).is_some_and(|mac| mac.verify_slice(code).is_ok())
    }
}

/// Bytes nobody has seen before, from the system.
fn nonce() -> std::io::Result<Nonce> {
    let mut bytes = [0; NONCE_BYTES];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Hello {
    fn encode(&self, nonce: &Nonce) -> [u8; CALL_BYTES] {
        let (kind, rank) = match self.purpose {
            Purpose::Ring { from_rank } => (1u8, from_rank),
            Purpose::Heal => (2, 0),
        };
        let mut out = [0; CALL_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..16].copy_from_slice(&self.generation.0.to_le_bytes());
        out[16] = kind;
        out[17..21].copy_from_slice(&rank.to_le_bytes());
        out[21..].copy_from_slice(nonce);
        out
    }

    fn decode(call: &[u8; CALL_BYTES], secret_of: impl Fn(Generation) -> [u8; 32]) -> Option<Self> {
        let generation = Generation(u64::from_le_bytes(*call[8..16].as_array()?));
        let from_rank = u32::from_le_bytes(*call[17..21].as_array()?);
        let purpose = match call[16] {
            1 => Purpose::Ring { from_rank },
            2 => Purpose::Heal,
            _ => return None,
        };
        (call[..8] == MAGIC).then(|| Self {
            generation,
            secret: secret_of(generation),
            purpose,
        })
    }

    /// The listener's side, up to the caller's proof. `None` if that does not come or is not good.
    pub(super) fn receive(
        socket: &mut (impl Read + Write),
        secret_of: impl Fn(Generation) -> [u8; 32],
    ) -> Option<Self> {
        let mut call = [0; CALL_BYTES];
        socket.read_exact(&mut call).ok()?;
        let hello = Self::decode(&call, secret_of)?;
        let nonce = nonce().ok()?;
        let meeting = Meeting {
            secret: &hello.secret,
            call: &call,
            nonce: &nonce,
        };
        let mut answer = [0; NONCE_BYTES + CODE_BYTES];
        answer[..NONCE_BYTES].copy_from_slice(&nonce);
        answer[NONCE_BYTES..].copy_from_slice(&meeting.code(Side::Listener)?);
        socket.write_all(&answer).ok()?;
        let mut code = [0; CODE_BYTES];
        socket.read_exact(&mut code).ok()?;
        meeting.is_good(Side::Caller, &code).then_some(hello)
    }

    /// The caller's side; true if the listener proved that it knows the secret and said that it accepts.
    fn present(&self, socket: &mut (impl Read + Write)) -> std::io::Result<bool> {
        let call = self.encode(&nonce()?);
        socket.write_all(&call)?;
        let mut answer = [0; NONCE_BYTES + CODE_BYTES];
        socket.read_exact(&mut answer)?;
        let (Some(nonce), Some(code)) = (answer[..NONCE_BYTES].as_array(), answer[NONCE_BYTES..].as_array()) else {
            return Ok(false);
        };
        let meeting = Meeting {
            secret: &self.secret,
            call: &call,
            nonce,
        };
        let Some(own) = meeting
            .code(Side::Caller)
            .filter(|_| meeting.is_good(Side::Listener, code))
        else {
            return Ok(false);
        };
        socket.write_all(&own)?;
        let mut word = [0];
        socket.read_exact(&mut word)?;
        Ok(word[0] == ACCEPTED)
    }
}

/// Connects to a peer and shows it `hello`; tries again while nobody listens, until `abort` is used.
///
/// # Errors
/// [`PeerError::Aborted`], [`PeerError::Refused`], [`PeerError::Untrusted`], or [`PeerError::Lost`] for an address that cannot
/// be one.
pub fn connect(addr: &str, hello: &Hello, tls: Option<&Tls>, abort: &AbortHandle) -> Result<PeerStream> {
    let lost = |why: String| PeerError::Lost { addr: addr.into(), why };
    let target: SocketAddr = addr
        .to_socket_addrs()
        .map_err(|e| lost(e.to_string()))?
        .next()
        .ok_or_else(|| lost("the address resolves to nothing".into()))?;
    let waker = Waker::of(abort);
    let socket = loop {
        let dialled = dial(target, CONNECT_MS.into(), &waker);
        if abort.is_aborted() {
            return Err(PeerError::Aborted);
        }
        match dialled {
            Ok(socket) => break socket,
            Err(_) => waker.wait(Duration::from_millis(RETRY_MS)),
        }
    };
    close_on_abort(&socket, abort).map_err(|e| lost(e.to_string()))?;
    socket.set_nodelay(true).map_err(|e| lost(e.to_string()))?;
    let aborted = |error| if abort.is_aborted() { PeerError::Aborted } else { error };
    let mut stream = PeerStream::call(socket, tls, addr).map_err(aborted)?;
    match hello.present(&mut stream) {
        _ if abort.is_aborted() => Err(PeerError::Aborted),
        Ok(true) => Ok(stream),
        Err(e) if distrust(&e).is_some() => Err(PeerError::Untrusted {
            addr: addr.into(),
            why: distrust(&e).unwrap_or_default(),
        }),
        _ => Err(PeerError::Refused { addr: addr.into() }),
    }
}

/// Connects in at most `most`; an abort ends the wait.
fn dial(target: SocketAddr, most: PollTimeout, waker: &Waker) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&target.into()) {
        Err(e) if e.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(e),
        _ => {}
    }
    let socket = TcpStream::from(socket);
    // From here on an abort shuts the socket, which ends a connection that is being made as well; one that came before is seen.
    let watched = waker.watch(&socket)?;
    if !waker.is_aborted() {
        poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], most)?;
    }
    drop(watched);
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    socket.peer_addr()?; // none yet: the time is over
    socket.set_nonblocking(false)?;
    Ok(socket)
}

/// Shuts the socket, for this and any other thread, when `abort` is used.
///
/// # Errors
/// When the system has no more handles.
pub(super) fn close_on_abort(socket: &TcpStream, abort: &AbortHandle) -> std::io::Result<()> {
    let twin = socket.try_clone()?;
    abort.on_abort(move || {
        // An error means that the peer has closed it before.
        let _ = twin.shutdown(Shutdown::Both);
    });
    Ok(())
}

/// Ends pauses and attempts to connect when there is an abort. One for all attempts: handles keep what was set on them.
struct Waker(Arc<Waiting>);

struct Waiting {
    abort: AbortHandle,
    /// What is being connected.
    dialling: Mutex<Option<TcpStream>>,
    woken: Condvar,
}

/// As long as it lives an abort shuts the socket.
struct Watched<'a>(&'a Waker);

impl Waker {
    fn of(abort: &AbortHandle) -> Self {
        let waiting = Arc::new(Waiting {
            abort: abort.clone(),
            dialling: Mutex::new(None),
            woken: Condvar::new(),
        });
        let theirs = Arc::downgrade(&waiting);
        abort.on_abort(move || {
            let Some(waiting) = theirs.upgrade() else { return };
            // Under the lock: whoever waits has looked before or looks after.
            if let Some(socket) = &*waiting.dialling.lock().unwrap_or_else(PoisonError::into_inner) {
                // An error means that it is over already.
                let _ = socket.shutdown(Shutdown::Both);
            }
            waiting.woken.notify_all();
        });
        Self(waiting)
    }

    fn lock(&self) -> MutexGuard<'_, Option<TcpStream>> {
        self.0.dialling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_aborted(&self) -> bool {
        self.0.abort.is_aborted()
    }

    fn watch(&self, socket: &TcpStream) -> std::io::Result<Watched<'_>> {
        *self.lock() = Some(socket.try_clone()?);
        Ok(Watched(self))
    }

    fn wait(&self, most: Duration) {
        let guard = self.lock();
        if !self.is_aborted() {
            // Woken or not, the caller looks at the abort handle next.
            drop(
                self.0
                    .woken
                    .wait_timeout(guard, most)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const HELLO: Hello = Hello {
        generation: Generation(3),
        secret: [3; 32],
        purpose: Purpose::Ring { from_rank: 4 },
    };

    /// What a listener with these secrets makes of `call`, and what travelled towards it.
    fn heard(call: impl FnOnce(TcpStream) + Send, secret: u8) -> Option<Hello> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| call(socket));
            let (mut socket, _) = listener.accept().unwrap();
            let hello = Hello::receive(&mut socket, |_| [secret; 32])?;
            socket.write_all(&[ACCEPTED]).unwrap();
            Some(hello)
        })
    }

    #[test]
    fn hello_with_the_generations_secret_is_taken_and_with_another_by_neither_side() {
        let good = heard(|mut s| assert!(HELLO.present(&mut s).unwrap()), 3);
        assert_eq!(good, Some(HELLO));
        // The caller notices that the listener cannot prove anything, and proves nothing to it.
        let bad = heard(|mut s| assert!(matches!(HELLO.present(&mut s), Ok(false))), 4);
        assert_eq!(bad, None);
    }

    #[test]
    fn connection_that_is_never_answered_ends_with_the_abort() {
        // A listener whose queue is full answers nobody: what calls waits for the system.
        let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        full.listen(0).unwrap();
        let addr = full.local_addr().unwrap().as_socket().unwrap();
        let ask = || TcpStream::connect_timeout(&addr, Duration::from_millis(200));
        let _queued: Vec<TcpStream> = std::iter::from_fn(|| ask().ok()).take(16).collect();
        let abort = AbortHandle::new();
        let waker = Arc::new(Waker::of(&abort));
        let (told, heard) = std::sync::mpsc::channel();
        let theirs = waker.clone();
        // Without a limit: nothing but the abort ends it.
        std::thread::spawn(move || told.send(dial(addr, PollTimeout::NONE, &theirs).is_err()));
        while waker.lock().is_none() {
            assert!(heard.try_recv().is_err(), "the call was answered");
            std::thread::yield_now();
        }
        abort.abort();
        assert_eq!(
            heard.recv_timeout(Duration::from_secs(30)),
            Ok(true),
            "the abort was not heard"
        );
        assert!(waker.lock().is_none(), "no handle is left behind");
    }

    #[test]
    fn hello_with_another_magic_or_purpose_or_a_stale_code_is_not_taken() {
        for at in [0, 16] {
            let call = |mut s: TcpStream| {
                let mut call = HELLO.encode(&[9; 32]);
                call[at] ^= 0x40;
                s.write_all(&call).unwrap();
            };
            assert_eq!(heard(call, 3), None, "byte {at}");
        }
        let replayed = |mut s: TcpStream| {
            let call = HELLO.encode(&[9; 32]);
            s.write_all(&call).unwrap();
            let mut answer = [0; NONCE_BYTES + CODE_BYTES];
            s.read_exact(&mut answer).unwrap();
            let old = Meeting {
                secret: &HELLO.secret,
                call: &call,
                nonce: &[1; 32],
            };
            s.write_all(&old.code(Side::Caller).unwrap()).unwrap();
        };
        assert_eq!(heard(replayed, 3), None, "a code of another nonce");
    }

    #[test]
    fn hello_never_carries_or_prints_the_secret() {
        let secret = *b"0123456789abcdef0123456789abcdef";
        let hello = Hello { secret, ..HELLO };
        assert!(
            !hello
                .encode(&[7; 32])
                .windows(8)
                .any(|w| secret.windows(8).any(|s| s == w))
        );
        assert!(!format!("{hello:?}").contains("secret"), "secrets stay out of logs");
    }
}
