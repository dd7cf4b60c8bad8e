//! The first bytes of every connection between workers. Fixed size; nothing behind the secret is acted on before the secret
//! has been found right.

use super::{PeerError, Result};
use crate::collective::AbortHandle;
use argosy_common::ids::Generation;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

const MAGIC: [u8; 8] = *b"ARGOSYP1";
/// Bytes of a hello: magic, generation, secret, purpose, rank.
pub(super) const HELLO_BYTES: usize = 8 + 8 + 32 + 1 + 4;
/// The listener's word that the hello was good.
pub(super) const ACCEPTED: u8 = 1;
/// Pause between two tries to connect to a peer that does not listen yet.
const RETRY_MS: u64 = 20;

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

impl Hello {
    fn encode(&self) -> [u8; HELLO_BYTES] {
        let (kind, rank) = match self.purpose {
            Purpose::Ring { from_rank } => (1u8, from_rank),
            Purpose::Heal => (2, 0),
        };
        let mut out = [0; HELLO_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..16].copy_from_slice(&self.generation.0.to_le_bytes());
        out[16..48].copy_from_slice(&self.secret);
        out[48] = kind;
        out[49..].copy_from_slice(&rank.to_le_bytes());
        out
    }

    /// Reads a hello if its secret is that of the generation it names; `secret_of` derives it.
    pub(super) fn decode(bytes: &[u8; HELLO_BYTES], secret_of: impl Fn(Generation) -> [u8; 32]) -> Option<Self> {
        let generation = Generation(u64::from_le_bytes(*bytes[8..16].as_array()?));
        let secret: [u8; 32] = *bytes[16..48].as_array()?;
        // The generation is all that is looked at before the secret, because the secret is the generation's.
        if bytes[..8] != MAGIC || !same_secret(&secret, &secret_of(generation)) {
            return None;
        }
        let from_rank = u32::from_le_bytes(*bytes[49..].as_array()?);
        let purpose = match bytes[48] {
            1 => Purpose::Ring { from_rank },
            2 => Purpose::Heal,
            _ => return None,
        };
        Some(Self {
            generation,
            secret,
            purpose,
        })
    }
}

/// Compares in a time that does not depend on where the first difference is.
fn same_secret(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |different, (x, y)| different | (x ^ y)) == 0
}

/// Connects to a peer and shows it `hello`; tries again while nobody listens, until `abort` is used.
///
/// # Errors
/// [`PeerError::Aborted`], [`PeerError::Refused`], or [`PeerError::Lost`] for an address that cannot be one.
pub fn connect(addr: &str, hello: &Hello, abort: &AbortHandle) -> Result<TcpStream> {
    let lost = |why: String| PeerError::Lost { addr: addr.into(), why };
    let target: SocketAddr = addr
        .to_socket_addrs()
        .map_err(|e| lost(e.to_string()))?
        .next()
        .ok_or_else(|| lost("the address resolves to nothing".into()))?;
    let waker = Waker::of(abort);
    let mut socket = loop {
        if abort.is_aborted() {
            return Err(PeerError::Aborted);
        }
        match TcpStream::connect_timeout(&target, Duration::from_secs(1)) {
            Ok(socket) => break socket,
            Err(_) => waker.wait(Duration::from_millis(RETRY_MS)),
        }
    };
    close_on_abort(&socket, abort).map_err(|e| lost(e.to_string()))?;
    let mut answer = [0];
    let shown = socket
        .set_nodelay(true)
        .and_then(|()| socket.write_all(&hello.encode()))
        .and_then(|()| socket.read_exact(&mut answer));
    match shown {
        _ if abort.is_aborted() => Err(PeerError::Aborted),
        Ok(()) if answer[0] == ACCEPTED => Ok(socket),
        _ => Err(PeerError::Refused { addr: addr.into() }),
    }
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

/// A pause that an abort cuts short.
struct Waker(Arc<(Mutex<()>, Condvar)>);

impl Waker {
    fn of(abort: &AbortHandle) -> Self {
        let pair = Arc::new((Mutex::new(()), Condvar::new()));
        let theirs = pair.clone();
        abort.on_abort(move || theirs.1.notify_all());
        Self(pair)
    }

    fn wait(&self, most: Duration) {
        let guard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Woken or not, the caller looks at the abort handle next.
        let _ = self
            .0
            .1
            .wait_timeout(guard, most)
            .unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_with_another_secret_magic_or_purpose_is_not_read() {
        let secret_of = |g: Generation| [g.0 as u8; 32];
        let hello = Hello {
            generation: Generation(3),
            secret: [3; 32],
            purpose: Purpose::Ring { from_rank: 4 },
        };
        assert_eq!(Hello::decode(&hello.encode(), secret_of), Some(hello));
        for at in [0, 8, 16, 47, 48] {
            let mut bytes = hello.encode();
            bytes[at] ^= 0x40;
            assert_eq!(Hello::decode(&bytes, secret_of), None, "byte {at}");
        }
        assert!(!format!("{hello:?}").contains("secret"), "secrets stay out of logs");
    }
}
