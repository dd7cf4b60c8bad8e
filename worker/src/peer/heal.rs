//! A state's way from a member that holds it to one that does not (rule G7): in frames, into a second buffer, checked whole.

use super::hello::{Hello, Purpose, connect};
use super::{PeerError, Result};
use crate::collective::AbortHandle;
use argosy_common::ids::{Generation, StateName};
use argosy_rpc::frame::{Fence, FrameHeader, FrameKind, HEADER_BYTES, PAYLOAD_BYTES_MAX};
use std::io::{Read, Write};
use std::net::TcpStream;

/// Bytes before the first frame: length and hash of the state, length of the log.
const PROMISE_BYTES: usize = 24;
/// Longest log of steps since a checkpoint.
const LOG_BYTES_MAX: u64 = 4 << 30;
/// Largest state that is taken from a peer; far above any model that fits one device.
const STATE_BYTES_MAX: u64 = 1 << 40;

/// A state at rest, ready to be handed out.
#[derive(Debug)]
pub struct Snapshot {
    /// Fence of the generation that forms; its step is the state's.
    pub fence: Fence,
    /// The state.
    pub name: StateName,
    /// As [`crate::engine::Engine::export_state`] gives it.
    pub bytes: Vec<u8>,
    /// [`crate::engine::hash_state_bytes`] of them.
    pub hash: u64,
    /// Lines of the step log since the last committed checkpoint: who takes the state takes its history (rule AU1).
    pub log: Vec<u8>,
}

/// What [`fetch`] brings.
#[derive(Debug)]
pub struct Fetched {
    /// The state.
    pub bytes: Vec<u8>,
    /// Its hash, which has been checked.
    pub hash: u64,
    /// The log that goes with it.
    pub log: Vec<u8>,
}

/// Sends a snapshot.
pub(super) fn serve(socket: &mut TcpStream, snapshot: &Snapshot) -> std::io::Result<()> {
    let mut promise = Vec::with_capacity(PROMISE_BYTES);
    promise.extend_from_slice(&(snapshot.bytes.len() as u64).to_le_bytes());
    promise.extend_from_slice(&snapshot.hash.to_le_bytes());
    promise.extend_from_slice(&(snapshot.log.len() as u64).to_le_bytes());
    socket.write_all(&promise)?;
    let mut header = Vec::with_capacity(HEADER_BYTES);
    let pieces = snapshot.bytes.chunks(PAYLOAD_BYTES_MAX);
    for (op, piece) in pieces.chain(snapshot.log.chunks(PAYLOAD_BYTES_MAX)).enumerate() {
        header.clear();
        FrameHeader::new(snapshot.fence, FrameKind::Heal, 0, op as u32, piece.len())
            .encode(&mut header)
            .map_err(std::io::Error::other)?;
        socket.write_all(&header)?;
        socket.write_all(piece)?;
    }
    Ok(())
}

/// Fetches the base state of the generation, and its history, from the member at `addr`. `bytes_expected` is the length of a state of this model.
///
/// # Errors
/// [`PeerError`]; nothing of the own state has been touched.
pub fn fetch(
    addr: &str,
    fence: Fence,
    secret: [u8; 32],
    bytes_expected: usize,
    abort: &AbortHandle,
) -> Result<Fetched> {
    let hello = Hello {
        generation: Generation(fence.generation),
        secret,
        purpose: Purpose::Heal,
    };
    let mut socket = connect(addr, &hello, abort)?;
    let lost = |e: std::io::Error| match abort.is_aborted() {
        true => PeerError::Aborted,
        false => PeerError::Lost {
            addr: addr.into(),
            why: e.to_string(),
        },
    };
    let state = |why: String| PeerError::State { addr: addr.into(), why };
    let mut promise = [0; PROMISE_BYTES];
    socket.read_exact(&mut promise).map_err(lost)?;
    let word = |at: usize| promise[at..at + 8].as_array().map_or(0, |b| u64::from_le_bytes(*b));
    let (length, hash, log_length) = (word(0), word(8), word(16));
    if length != bytes_expected as u64 || length > STATE_BYTES_MAX {
        return Err(state(format!(
            "its state has {length} bytes, this model's has {bytes_expected}"
        )));
    }
    if log_length > LOG_BYTES_MAX {
        let why = format!("its log has {log_length} bytes, at most {LOG_BYTES_MAX} are taken");
        return Err(state(why));
    }
    let (mut bytes, mut log) = (vec![0; bytes_expected], vec![0; log_length as usize]);
    let mut head = [0; HEADER_BYTES];
    let pieces = bytes.chunks_mut(PAYLOAD_BYTES_MAX);
    for (op, piece) in pieces.chain(log.chunks_mut(PAYLOAD_BYTES_MAX)).enumerate() {
        socket.read_exact(&mut head).map_err(lost)?;
        FrameHeader::decode(&head)
            .and_then(|h| h.expect(fence, FrameKind::Heal, 0, op as u32, piece.len()))
            .map_err(|error| PeerError::Frame {
                addr: addr.into(),
                error,
            })?;
        socket.read_exact(piece).map_err(lost)?;
    }
    if crate::engine::hash_state_bytes(&bytes) != hash {
        return Err(state("the state's hash differs from the one announced".into()));
    }
    Ok(Fetched { bytes, hash, log })
}
