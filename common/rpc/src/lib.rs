//! What travels between Argosy's processes: the session between coordinator and worker (gRPC, one bidirectional stream per
//! worker) and the frames between workers.
//!
//! The types that travel are those of [`argosy_common::events`]; this crate turns them into messages and back, and trusts
//! nothing that arrives: [`wire`] checks every list, text and number against limits and names the field that is wrong.

pub mod client;
pub mod clock;
pub mod frame;
pub mod server;
pub mod tls;
pub mod wire;

pub use client::{Hello, NO_ID, Returning, RpcError, Session, Welcome, chain, connect, connect_with};
pub use tls::{Pem, Tls, TlsError};

/// Generated from `proto/argosy/v1/session.proto`.
#[allow(clippy::all, clippy::pedantic, unreachable_pub, missing_debug_implementations)]
pub mod proto {
    tonic::include_proto!("argosy.v1");
}

/// Version of the protocol in [`Hello`] and [`Welcome`]; both sides must have the same.
pub const PROTOCOL_VERSION: u32 = 1;

/// Largest message in bytes, either way. A plan of 65,536 lanes and 4,096 members stays well below.
pub const MESSAGE_BYTES_MAX: usize = 2 << 20;

/// Metadata key of the token.
pub(crate) const AUTHORIZATION: &str = "authorization";
