//! A state's way from the members that hold it to one that does not (rule G7): in slices from all of them at once, into a
//! second buffer, checked whole against the one hash that they all announced.
//!
//! ```text
//!   healer ── hello ──▶ holder          holder ── promise: bytes and hash of the state, bytes of the log ──▶ healer
//!   healer ── from, bytes ──▶ holder    holder ── those bytes, in frames ──▶ healer        (again and again)
//! ```
//!
//! A holder reads each piece from its state when it is asked for; nothing is copied whole.

use super::hello::{Hello, Purpose, connect};
use super::stream::PeerStream;
use super::{PeerError, Result};
use crate::collective::AbortHandle;
use crate::engine::StateRead;
use argosy_common::ids::{Generation, StateName};
use argosy_rpc::Tls;
use argosy_rpc::frame::{Fence, FrameHeader, FrameKind, HEADER_BYTES, PAYLOAD_BYTES_MAX};
use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

/// Bytes before the first frame: length and hash of the state, length of the log.
const PROMISE_BYTES: usize = 24;
/// Bytes of a request: where it begins in the state, or [`THE_LOG`], and how many.
const REQUEST_BYTES: usize = 16;
/// Stands for the log in a request.
const THE_LOG: u64 = u64::MAX;
/// A holder is asked for so much at a time: little enough that a slow one holds nobody up for long.
const SLICE_BYTES: usize = 8 << 20;
/// Holders that are asked at once.
const HOLDERS_MAX: usize = 8;
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
    /// Its bytes as [`crate::engine::Engine::export_state`] gives them; read piece by piece.
    pub state: Mutex<Box<dyn StateRead>>,
    /// How many.
    pub bytes: usize,
    /// [`crate::engine::hash_state_bytes`] of them.
    pub hash: u64,
    /// Lines of the step log since the last committed checkpoint: who takes the state takes its history (rule AU1).
    pub log: Vec<u8>,
}

impl Snapshot {
    fn read(&self, at: usize, out: &mut [u8]) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).read(at, out);
    }
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
    /// Holders that gave some of it, as indexes into those that were asked.
    pub from: Vec<usize>,
}

/// Answers requests until the caller has enough or the snapshot is withdrawn: from then on the state changes.
pub(super) fn serve(socket: &mut PeerStream, snapshot: &Weak<Snapshot>) -> std::io::Result<()> {
    let withdrawn = || std::io::Error::other("the state is not handed out any more");
    let held = snapshot.upgrade().ok_or_else(withdrawn)?;
    let (fence, state_bytes, log_bytes) = (held.fence, held.bytes, held.log.len());
    let mut promise = Vec::with_capacity(PROMISE_BYTES);
    for word in [state_bytes as u64, held.hash, log_bytes as u64] {
        promise.extend_from_slice(&word.to_le_bytes());
    }
    drop(held);
    socket.write_all(&promise)?;
    let (mut request, mut piece) = ([0; REQUEST_BYTES], Vec::new());
    let mut op = 0;
    while read_request(socket, &mut request)? {
        let (from, bytes) = (word(&request, 0), word(&request, 8));
        let whole = if from == THE_LOG { log_bytes } else { state_bytes };
        let start = if from == THE_LOG { 0 } else { from };
        let end = start.checked_add(bytes).filter(|end| *end <= whole as u64);
        let Some(end) = end else {
            return Err(std::io::Error::other("a peer asked for more than there is"));
        };
        // Within the state's length, which is a usize.
        let (mut at, end) = (start as usize, end as usize);
        while at < end {
            let next = (at + PAYLOAD_BYTES_MAX).min(end);
            piece.resize(HEADER_BYTES + next - at, 0);
            let held = snapshot.upgrade().ok_or_else(withdrawn)?;
            match from {
                THE_LOG => piece[HEADER_BYTES..].copy_from_slice(&held.log[at..next]),
                _ => held.read(at, &mut piece[HEADER_BYTES..]),
            }
            drop(held); // before the network, which may take long: an APPLY waits for who reads
            let mut header = Vec::with_capacity(HEADER_BYTES);
            FrameHeader::new(fence, FrameKind::Heal, 0, op, next - at)
                .encode(&mut header)
                .map_err(std::io::Error::other)?;
            piece[..HEADER_BYTES].copy_from_slice(&header);
            socket.write_all(&piece)?;
            op = op.wrapping_add(1);
            at = next;
        }
    }
    Ok(())
}

/// False at the end of the caller's wishes.
fn read_request(socket: &mut PeerStream, request: &mut [u8; REQUEST_BYTES]) -> std::io::Result<bool> {
    match socket.read_exact(request) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].as_array().map_or(0, |b| u64::from_le_bytes(*b))
}

/// What is asked of whom.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Addresses of the holders, first those to ask first.
    pub holders: &'a [String],
    /// Fence of the generation that forms.
    pub fence: Fence,
    /// Its secret.
    pub secret: [u8; 32],
    /// What this worker shows them; `None` on loopback.
    pub tls: Option<&'a Tls>,
    /// Length of a state of this model.
    pub bytes: usize,
}

/// Part of the second buffer, with its place.
type Slice<'a> = (usize, &'a mut [u8]);

/// What the threads of one heal share.
struct Shared<'a> {
    wanted: Wanted<'a>,
    /// Slices that nobody is fetching.
    slices: Mutex<Vec<Slice<'a>>>,
    /// The log, once one of them has brought it.
    log: Mutex<Option<Vec<u8>>>,
    /// Hash that the first holder announced.
    hash: Mutex<Option<u64>>,
    /// Those who gave anything.
    from: Mutex<Vec<usize>>,
    /// Slices, and the log, that have not come.
    missing: AtomicUsize,
    /// Everything has come, or the generation is over: nobody waits for a holder any more.
    over: AbortHandle,
}

impl Shared<'_> {
    fn one_came(&self) {
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.over.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Values are pushed, popped or replaced: a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fetches the base state of the generation and its history from all holders at once. One that goes away or is slow leaves
/// its part to the others; two that announce different states end it.
///
/// # Errors
/// [`PeerError`], the last one if all failed; nothing of the own state has been touched.
pub fn fetch(wanted: Wanted<'_>, abort: &AbortHandle) -> Result<Fetched> {
    let mut bytes = vec![0; wanted.bytes];
    let mut left: Vec<Slice<'_>> = bytes
        .chunks_mut(SLICE_BYTES)
        .enumerate()
        .map(|(i, s)| (i * SLICE_BYTES, s))
        .collect();
    left.reverse(); // they are taken from the end
    let mut shared = Shared {
        wanted,
        missing: AtomicUsize::new(left.len() + 1),
        slices: Mutex::new(left),
        log: Mutex::default(),
        hash: Mutex::default(),
        from: Mutex::default(),
        over: AbortHandle::new(),
    };
    let mut asked: Vec<usize> = (0..wanted.holders.len()).collect();
    // A round ends when all have come to an end; what a failed holder left behind is asked of the others in the next.
    loop {
        let over = shared.over.clone();
        abort.on_abort(move || over.abort());
        let ends = round(&shared, &asked);
        if abort.is_aborted() {
            return Err(PeerError::Aborted);
        }
        let (mut good, mut last) = (Vec::new(), None);
        for (holder, end) in ends {
            match end {
                Err(error @ PeerError::State { .. }) => return Err(error),
                Err(error) => last = Some(error),
                Ok(()) => good.push(holder),
            }
        }
        if shared.missing.load(Ordering::Acquire) == 0 {
            break;
        }
        asked = good;
        if asked.is_empty() {
            return Err(last.unwrap_or(PeerError::Lost {
                addr: "the plan".into(),
                why: "nobody holds the state".into(),
            }));
        }
        shared.over = AbortHandle::new();
    }
    let (log, hash) = (lock(&shared.log).take().unwrap_or_default(), *lock(&shared.hash));
    let mut from = std::mem::take(&mut *lock(&shared.from));
    from.sort_unstable();
    from.dedup();
    drop(shared);
    let hash = hash.unwrap_or_default();
    if crate::engine::hash_state_bytes(&bytes) != hash {
        let addr = from
            .iter()
            .filter_map(|i| wanted.holders.get(*i))
            .cloned()
            .collect::<Vec<_>>();
        let why = "the state's hash differs from the one announced".into();
        return Err(PeerError::State {
            addr: addr.join(", "),
            why,
        });
    }
    Ok(Fetched { bytes, hash, log, from })
}

/// Asks the holders `asked`, each on a thread of its own, until nothing is left or they have failed.
fn round(shared: &Shared<'_>, asked: &[usize]) -> Vec<(usize, Result<()>)> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = asked
            .iter()
            .take(HOLDERS_MAX)
            .map(|holder| (*holder, scope.spawn(move || from_holder(shared, *holder))))
            .collect();
        let ended = threads.into_iter().map(|(holder, thread)| {
            let lost = |_| {
                Err(PeerError::Lost {
                    addr: shared.wanted.holders[holder].clone(),
                    why: "the thread that fetched from it panicked".into(),
                })
            };
            (holder, thread.join().unwrap_or_else(lost))
        });
        ended.collect()
    })
}

/// Fetches slices from one holder for as long as there are any.
fn from_holder(shared: &Shared<'_>, holder: usize) -> Result<()> {
    let addr = &shared.wanted.holders[holder];
    let hello = Hello {
        generation: Generation(shared.wanted.fence.generation),
        secret: shared.wanted.secret,
        purpose: Purpose::Heal,
    };
    let mut call = match connect(addr, &hello, shared.wanted.tls, &shared.over) {
        // The others had brought everything before this one answered.
        Err(PeerError::Aborted) => return Ok(()),
        socket => Call {
            socket: socket?,
            addr,
            fence: shared.wanted.fence,
            over: &shared.over,
            op: 0,
        },
    };
    let log_bytes = call.promise(shared)?;
    loop {
        let Some((at, slice)) = lock(&shared.slices).pop() else {
            break;
        };
        if let Err(error) = call.get(at as u64, slice) {
            lock(&shared.slices).push((at, slice));
            return Err(error);
        }
        lock(&shared.from).push(holder);
        shared.one_came();
    }
    if lock(&shared.log).is_none() {
        let mut log = vec![0; log_bytes];
        call.get(THE_LOG, &mut log)?;
        if lock(&shared.log).replace(log).is_none() {
            shared.one_came();
        }
    }
    Ok(())
}

/// A connection to one holder.
struct Call<'a> {
    socket: PeerStream,
    addr: &'a str,
    fence: Fence,
    over: &'a AbortHandle,
    /// Frames that came.
    op: u32,
}

impl Call<'_> {
    fn lost(&self, error: &std::io::Error) -> PeerError {
        match self.over.is_aborted() {
            true => PeerError::Aborted,
            false => PeerError::Lost {
                addr: self.addr.into(),
                why: error.to_string(),
            },
        }
    }

    /// Reads what the holder announces, which must be what the others did; gives the length of its log.
    fn promise(&mut self, shared: &Shared<'_>) -> Result<usize> {
        let mut promise = [0; PROMISE_BYTES];
        self.socket.read_exact(&mut promise).map_err(|e| self.lost(&e))?;
        let (length, hash, log_length) = (word(&promise, 0), word(&promise, 8), word(&promise, 16));
        let wrong = |why: String| PeerError::State {
            addr: self.addr.into(),
            why,
        };
        if length != shared.wanted.bytes as u64 || length > STATE_BYTES_MAX {
            let wanted = shared.wanted.bytes;
            return Err(wrong(format!(
                "its state has {length} bytes, this model's has {wanted}"
            )));
        }
        if log_length > LOG_BYTES_MAX {
            return Err(wrong(format!(
                "its log has {log_length} bytes, at most {LOG_BYTES_MAX} are taken"
            )));
        }
        let first = *lock(&shared.hash).get_or_insert(hash);
        if first != hash {
            return Err(wrong(format!(
                "its state has hash {hash:016x}, another holder's {first:016x}, and both have one name"
            )));
        }
        Ok(log_length as usize)
    }

    /// Asks for the bytes of `into`, `from` on.
    fn get(&mut self, from: u64, into: &mut [u8]) -> Result<()> {
        let mut request = [0; REQUEST_BYTES];
        request[..8].copy_from_slice(&from.to_le_bytes());
        request[8..].copy_from_slice(&(into.len() as u64).to_le_bytes());
        self.socket.write_all(&request).map_err(|e| self.lost(&e))?;
        let mut head = [0; HEADER_BYTES];
        for piece in into.chunks_mut(PAYLOAD_BYTES_MAX) {
            self.socket.read_exact(&mut head).map_err(|e| self.lost(&e))?;
            FrameHeader::decode(&head)
                .and_then(|h| h.expect(self.fence, FrameKind::Heal, 0, self.op, piece.len()))
                .map_err(|error| PeerError::Frame {
                    addr: self.addr.into(),
                    error,
                })?;
            self.op = self.op.wrapping_add(1);
            self.socket.read_exact(piece).map_err(|e| self.lost(&e))?;
        }
        Ok(())
    }
}
