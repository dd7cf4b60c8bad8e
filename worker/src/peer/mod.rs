//! Connections between workers: the hello that opens them, the listener that takes them, and what is served there.

mod heal;
#[cfg(test)]
mod heal_tests;
mod hello;
mod server;
#[cfg(test)]
mod strangers;
mod stream;
#[cfg(test)]
pub(crate) mod testing;

pub use heal::{Fetched, Snapshot, Wanted, fetch};
pub use hello::{Hello, Purpose, connect};
pub use server::{PeerServer, Place};
pub use stream::PeerStream;

use argosy_rpc::frame::FrameError;

/// Why a peer could not be reached or used.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The generation was aborted meanwhile.
    #[error("the generation was aborted")]
    Aborted,
    /// No connection, or it broke.
    #[error("{addr}: {why}")]
    Lost {
        /// Where the peer should be.
        addr: String,
        /// What the socket said.
        why: String,
    },
    /// The peer refused the hello: another secret, or a generation that it has left.
    #[error("{addr} refused the connection: wrong secret, or it has left the generation")]
    Refused {
        /// The peer.
        addr: String,
    },
    /// Either side does not believe the other's certificate.
    #[error("{addr}: {why}")]
    Untrusted {
        /// The peer.
        addr: String,
        /// Whose certificate, and what is wrong with it.
        why: String,
    },
    /// The peer sent something that must not be used.
    #[error("{addr}: {error}")]
    Frame {
        /// The peer.
        addr: String,
        /// What is wrong with it.
        error: FrameError,
    },
    /// The peer's state is not the one that was asked for.
    #[error("{addr}: {why}")]
    State {
        /// The peer.
        addr: String,
        /// What differs.
        why: String,
    },
}

/// Result of a connection.
pub type Result<T> = std::result::Result<T, PeerError>;
