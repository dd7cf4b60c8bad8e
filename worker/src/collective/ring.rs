//! The collective between processes: a ring of TCP connections, each rank sends to the next and receives from the one before.
//!
//! Sums go round twice, first collecting (each chunk ends complete at one rank), then sharing the completed chunks, so that
//! every rank has the owner's bits. A thread both sends and receives without blocking on either: two ranks with full socket
//! buffers never wait for each other.

use super::{
    AbortHandle, Collective, CollectiveError, Result, Sentinel, block_places, chunk_range, read_sentinel, sentinel_word,
};
use argosy_rpc::frame::{Fence, FrameHeader, FrameKind, HEADER_BYTES, PAYLOAD_BYTES_MAX};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;

/// Appends a piece of what is sent: its place, its length, the buffer.
type Fill<'a> = dyn Fn(usize, usize, &mut Vec<u8>) + 'a;
/// Gets a piece of what came: its place and its bytes.
type Take<'a> = dyn FnMut(usize, &[u8]) + 'a;

/// This rank's two connections; without them it is alone.
#[derive(Debug)]
struct Links {
    next: TcpStream,
    prev: TcpStream,
}

/// One rank's place in the ring.
#[derive(Debug)]
pub struct RingCollective {
    rank: usize,
    size: usize,
    fence: Fence,
    links: Option<Links>,
    abort: AbortHandle,
    sent: u32,
    received: u32,
    out: Outgoing,
    inbox: Incoming,
}

/// A frame on its way out.
#[derive(Debug, Default)]
struct Outgoing {
    bytes: Vec<u8>,
    done: usize,
}

/// A frame on its way in: header first, then as much as it says.
#[derive(Debug, Default)]
struct Incoming {
    bytes: Vec<u8>,
    done: usize,
    header_seen: bool,
}

impl RingCollective {
    /// A ring of one: nothing travels.
    #[must_use]
    pub fn alone(fence: Fence, abort: AbortHandle) -> Self {
        Self::with_links(0, 1, fence, None, abort)
    }

    /// A ring over connections whose hello has been answered. `next` goes to rank `rank + 1`, `prev` comes from `rank - 1`.
    ///
    /// # Errors
    /// When the sockets cannot be made non-blocking.
    pub fn new(
        rank: usize,
        size: usize,
        fence: Fence,
        next: TcpStream,
        prev: TcpStream,
        abort: AbortHandle,
    ) -> std::io::Result<Self> {
        for socket in [&next, &prev] {
            socket.set_nodelay(true)?;
            socket.set_nonblocking(true)?;
        }
        Ok(Self::with_links(rank, size, fence, Some(Links { next, prev }), abort))
    }

    fn with_links(rank: usize, size: usize, fence: Fence, links: Option<Links>, abort: AbortHandle) -> Self {
        let (out, inbox) = Default::default();
        Self {
            rank,
            size,
            fence,
            links,
            abort,
            sent: 0,
            received: 0,
            out,
            inbox,
        }
    }

    fn next_rank(&self) -> usize {
        (self.rank + 1) % self.size
    }

    fn prev_rank(&self) -> usize {
        (self.rank + self.size - 1) % self.size
    }

    fn lost(&self, rank: usize, why: impl ToString) -> CollectiveError {
        if self.abort.is_aborted() {
            return CollectiveError::Aborted;
        }
        CollectiveError::PeerLost {
            rank,
            why: why.to_string(),
        }
    }

    /// Sends `to_send` bytes and receives `to_receive` bytes at once. `fill(at, len, out)` appends bytes `at..at + len` of
    /// what is sent; `take(at, bytes)` gets what comes, piece by piece.
    fn exchange(
        &mut self,
        kind: FrameKind,
        to_send: usize,
        fill: impl Fn(usize, usize, &mut Vec<u8>),
        to_receive: usize,
        mut take: impl FnMut(usize, &[u8]),
    ) -> Result<()> {
        let Some(links) = self.links.take() else {
            return Err(CollectiveError::Mismatch("an exchange without a peer".into()));
        };
        let result = self.pump(&links, kind, (to_send, &fill), (to_receive, &mut take));
        self.links = Some(links);
        result
    }

    fn pump(
        &mut self,
        links: &Links,
        kind: FrameKind,
        (to_send, fill): (usize, &Fill<'_>),
        (to_receive, take): (usize, &mut Take<'_>),
    ) -> Result<()> {
        let (mut sent, mut received) = (0, 0);
        loop {
            if self.abort.is_aborted() {
                return Err(CollectiveError::Aborted);
            }
            if self.out.done == self.out.bytes.len() && sent < to_send {
                let len = (to_send - sent).min(PAYLOAD_BYTES_MAX);
                self.start_frame(kind, len)?;
                fill(sent, len, &mut self.out.bytes);
                sent += len;
            }
            let mut progress = self.write_some(&links.next)?;
            if received < to_receive && self.read_some(&links.prev, kind, to_receive - received)? {
                progress = true;
                if let Some(payload) = self.inbox.complete() {
                    take(received, payload);
                    received += payload.len();
                    self.inbox.clear();
                }
            }
            let flushed = sent == to_send && self.out.done == self.out.bytes.len();
            if flushed && received == to_receive {
                return Ok(());
            }
            if !progress {
                self.wait(links, !flushed, received < to_receive)?;
            }
        }
    }

    fn start_frame(&mut self, kind: FrameKind, len: usize) -> Result<()> {
        self.out.bytes.clear();
        self.out.done = 0;
        let header = FrameHeader::new(self.fence, kind, self.rank, self.sent, len);
        self.sent = self.sent.wrapping_add(1);
        let rank = self.rank;
        header
            .encode(&mut self.out.bytes)
            .map_err(|error| CollectiveError::Frame { rank, error })
    }

    /// Writes what the socket takes now; false if that is nothing.
    fn write_some(&mut self, mut socket: &TcpStream) -> Result<bool> {
        let rest = &self.out.bytes[self.out.done..];
        if rest.is_empty() {
            return Ok(false);
        }
        match socket.write(rest) {
            Ok(0) => Err(self.lost(self.next_rank(), "it takes nothing more")),
            Ok(n) => {
                self.out.done += n;
                Ok(true)
            }
            Err(e) if not_now(&e) => Ok(false),
            Err(e) => Err(self.lost(self.next_rank(), e)),
        }
    }

    /// Reads what is there of the current frame; false if that is nothing. The header is judged before any payload is read.
    fn read_some(&mut self, mut socket: &TcpStream, kind: FrameKind, left: usize) -> Result<bool> {
        if self.inbox.bytes.is_empty() {
            self.inbox.bytes.resize(HEADER_BYTES, 0);
        }
        match socket.read(&mut self.inbox.bytes[self.inbox.done..]) {
            Ok(0) => return Err(self.lost(self.prev_rank(), "it closed the connection")),
            Ok(n) => self.inbox.done += n,
            Err(e) if not_now(&e) => return Ok(false),
            Err(e) => return Err(self.lost(self.prev_rank(), e)),
        }
        if !self.inbox.header_seen && self.inbox.done == HEADER_BYTES {
            let rank = self.prev_rank();
            let frame = |error| CollectiveError::Frame { rank, error };
            let head: [u8; HEADER_BYTES] = *self
                .inbox
                .bytes
                .as_array()
                .ok_or_else(|| CollectiveError::Mismatch("a header of another size".into()))?;
            let header = FrameHeader::decode(&head).map_err(frame)?;
            header
                .expect(self.fence, kind, rank, self.received, left)
                .map_err(frame)?;
            self.received = self.received.wrapping_add(1);
            self.inbox.header_seen = true;
            self.inbox.bytes.resize(HEADER_BYTES + header.bytes as usize, 0);
        }
        Ok(true)
    }

    /// Sleeps until a socket is ready; an abort shuts both, which wakes this too.
    fn wait(&self, links: &Links, sending: bool, receiving: bool) -> Result<()> {
        let mut polled = Vec::with_capacity(2);
        if sending {
            polled.push(PollFd::new(links.next.as_fd(), PollFlags::POLLOUT));
        }
        if receiving {
            polled.push(PollFd::new(links.prev.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(e) => Err(self.lost(self.prev_rank(), e)),
        }
    }

    fn gather(&mut self, kind: FrameKind, mine: &[u8], lens: &[usize], out: &mut [u8]) -> Result<()> {
        let places = block_places(self.rank, mine, lens, self.size, out)?;
        out[places[self.rank].clone()].copy_from_slice(mine);
        for round in 0..self.size - 1 {
            let sending = places[(self.rank + self.size - round) % self.size].clone();
            let receiving = places[(self.rank + 2 * self.size - round - 1) % self.size].clone();
            let (from, into) = two(out, sending, receiving)?;
            let (to_send, to_receive) = (from.len(), into.len());
            self.exchange(
                kind,
                to_send,
                |at, len, buffer| buffer.extend_from_slice(&from[at..at + len]),
                to_receive,
                |at, bytes| into[at..at + bytes.len()].copy_from_slice(bytes),
            )?;
        }
        Ok(())
    }

    /// One round of a sum: sends a chunk, and adds what comes to another one, or replaces it.
    fn round(&mut self, kind: FrameKind, values: &mut [f32], send: usize, receive: usize) -> Result<()> {
        let (size, len) = (self.size, values.len());
        let (from, into) = two(values, chunk_range(send, size, len), chunk_range(receive, size, len))?;
        let (to_send, to_receive) = (from.len() * 4, into.len() * 4);
        self.exchange(
            kind,
            to_send,
            |at, len, buffer| {
                for value in &from[at / 4..(at + len) / 4] {
                    buffer.extend_from_slice(&value.to_le_bytes());
                }
            },
            to_receive,
            |at, bytes| {
                for (value, bytes) in into[at / 4..].iter_mut().zip(bytes.as_chunks().0) {
                    let come = f32::from_le_bytes(*bytes);
                    *value = if kind == FrameKind::Reduce { come + *value } else { come };
                }
            },
        )
    }
}

impl Incoming {
    /// The payload, once it is whole.
    fn complete(&self) -> Option<&[u8]> {
        (self.header_seen && self.done == self.bytes.len()).then(|| &self.bytes[HEADER_BYTES..])
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.done = 0;
        self.header_seen = false;
    }
}

fn not_now(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Two ranges of one buffer that do not overlap, the second to be written.
fn two<T>(buffer: &mut [T], read: std::ops::Range<usize>, write: std::ops::Range<usize>) -> Result<(&[T], &mut [T])> {
    match buffer.get_disjoint_mut([read, write]) {
        Ok([read, write]) => Ok((read, write)),
        Err(e) => Err(CollectiveError::Mismatch(format!("blocks of two ranks: {e}"))),
    }
}

impl Collective for RingCollective {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn begin_step(&mut self, step: u64) {
        self.fence.step = step;
    }

    fn all_gather(&mut self, mine: &[u8], lens: &[usize], out: &mut [u8]) -> Result<()> {
        self.gather(FrameKind::Gather, mine, lens, out)
    }

    fn all_reduce_sum(&mut self, values: &mut [f32]) -> Result<()> {
        let (rank, size) = (self.rank, self.size);
        for round in 0..size - 1 {
            self.round(
                FrameKind::Reduce,
                values,
                (rank + size - round) % size,
                (rank + 2 * size - round - 1) % size,
            )?;
        }
        for round in 0..size - 1 {
            self.round(
                FrameKind::Share,
                values,
                (rank + size + 1 - round) % size,
                (rank + size - round) % size,
            )?;
        }
        Ok(())
    }

    fn sentinel(&mut self, finite: bool) -> Result<Sentinel> {
        let mut words = vec![0; self.size];
        self.gather(
            FrameKind::Sentinel,
            &[sentinel_word(finite)],
            &vec![1; self.size],
            &mut words,
        )?;
        Ok(read_sentinel(&words))
    }
}

impl Drop for RingCollective {
    fn drop(&mut self) {
        // The abort handle may keep twins of the sockets; peers shall see the end now.
        if let Some(links) = &self.links {
            let _ = links.next.shutdown(Shutdown::Both);
            let _ = links.prev.shutdown(Shutdown::Both);
        }
    }
}
