//! The collective between processes: a ring of TCP connections, each rank sends to the next and receives from the one before.
//!
//! Sums go round twice, first collecting (each chunk ends complete at one rank), then sharing the completed chunks, so that
//! every rank has the owner's bits. One thread both sends and receives without blocking on either: two ranks with full socket
//! buffers never wait for each other. Bytes go from the caller's buffer to the socket and back without a copy between; only
//! what is added rests in a frame of its own first.

mod route;

use super::{
    AbortHandle, Collective, CollectiveError, Progress, Result, Sentinel, block_places, check_root, chunk_range,
    owned_chunk, read_sentinel, sentinel_word,
};
use crate::peer::PeerStream;
use argosy_rpc::frame::{Fence, FrameHeader, FrameKind, HEADER_BYTES};
use argosy_torch_ext::bytes_of_mut;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use route::{FRAME_BYTES, Leg, Route, Walk};
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::AsFd;

/// This rank's two connections; without them it is alone.
#[derive(Debug)]
struct Links {
    next: PeerStream,
    prev: PeerStream,
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
    /// Collectives entered in this step, and bytes received in it.
    entered: u32,
    step_bytes: u64,
    out: Outgoing,
    inbox: Incoming,
}

/// A frame on its way out.
#[derive(Debug, Default)]
struct Outgoing {
    header: Vec<u8>,
    frame: Option<Leg>,
    /// Bytes of header and payload that the socket has taken.
    done: usize,
}

/// A frame on its way in.
#[derive(Debug)]
struct Incoming {
    header: [u8; HEADER_BYTES],
    /// Bytes of header and payload that have come.
    done: usize,
    /// Where a payload rests that is to be added.
    scratch: Vec<u8>,
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
        next: PeerStream,
        prev: PeerStream,
        abort: AbortHandle,
    ) -> std::io::Result<Self> {
        for socket in [next.socket(), prev.socket()] {
            socket.set_nodelay(true)?;
            socket.set_nonblocking(true)?;
        }
        Ok(Self::with_links(rank, size, fence, Some(Links { next, prev }), abort))
    }

    fn with_links(rank: usize, size: usize, fence: Fence, links: Option<Links>, abort: AbortHandle) -> Self {
        let inbox = Incoming {
            header: [0; HEADER_BYTES],
            done: 0,
            scratch: vec![0; if links.is_some() { FRAME_BYTES } else { 0 }],
        };
        Self {
            rank,
            size,
            fence,
            links,
            abort,
            sent: 0,
            received: 0,
            entered: 0,
            step_bytes: 0,
            out: Outgoing::default(),
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

    /// Goes the whole route over `buffer`.
    fn travel(&mut self, buffer: &mut [u8], route: &Route) -> Result<()> {
        self.entered = self.entered.saturating_add(1);
        let Some(mut links) = self.links.take() else {
            return Err(CollectiveError::Mismatch("a way round the ring without a peer".into()));
        };
        let result = self.pump(&mut links, buffer, route);
        self.links = Some(links);
        result
    }

    fn pump(&mut self, links: &mut Links, buffer: &mut [u8], route: &Route) -> Result<()> {
        let (mut sending, mut receiving) = (Walk::new(&route.send), Walk::new(&route.receive));
        loop {
            if self.abort.is_aborted() {
                return Err(CollectiveError::Aborted);
            }
            let sent = self.send_some(&mut links.next, buffer, &mut sending, route.head + receiving.done)?;
            let received = self.receive_some(&mut links.prev, buffer, &mut receiving)?;
            // With TLS a link may have taken more than its socket.
            let pushed = links.next.push().map_err(|e| self.lost(self.next_rank(), e))?;
            links.prev.push().map_err(|e| self.lost(self.prev_rank(), e))?;
            let (to_send, to_receive) = (sending.frame(), receiving.frame());
            if to_send.is_none() && to_receive.is_none() && !links.next.is_pending() {
                return Ok(());
            }
            if !sent && !received && !pushed {
                let may_send = self.out.frame.is_some() || links.next.is_pending();
                self.wait(links, may_send, to_receive.is_some())?;
            }
        }
    }

    /// Sends until the socket is full or what may leave has left; false if that is nothing.
    fn send_some(
        &mut self,
        socket: &mut PeerStream,
        buffer: &[u8],
        walk: &mut Walk<'_>,
        may_leave: usize,
    ) -> Result<bool> {
        let mut progress = false;
        while let Some(frame) = walk.frame() {
            if self.out.frame.is_none() {
                if walk.done + frame.place.len() > may_leave {
                    break;
                }
                self.start_frame(&frame)?;
            }
            let taken = {
                let header = &self.out.header[self.out.done.min(HEADER_BYTES)..];
                let payload = &buffer[frame.place.clone()][self.out.done.saturating_sub(HEADER_BYTES)..];
                socket.write_vectored(&[IoSlice::new(header), IoSlice::new(payload)])
            };
            match taken {
                Ok(0) => return Err(self.lost(self.next_rank(), "it takes nothing more")),
                Ok(n) => {
                    self.out.done += n;
                    progress = true;
                }
                Err(e) if not_now(&e) => break,
                Err(e) => return Err(self.lost(self.next_rank(), e)),
            }
            if self.out.done == HEADER_BYTES + frame.place.len() {
                self.out.frame = None;
                walk.pass(&frame);
            }
        }
        Ok(progress)
    }

    fn start_frame(&mut self, frame: &Leg) -> Result<()> {
        self.out.header.clear();
        self.out.done = 0;
        let header = FrameHeader::new(self.fence, frame.kind, self.rank, self.sent, frame.place.len());
        self.sent = self.sent.wrapping_add(1);
        let rank = self.rank;
        header
            .encode(&mut self.out.header)
            .map_err(|error| CollectiveError::Frame { rank, error })?;
        self.out.frame = Some(frame.clone());
        Ok(())
    }

    /// Receives what is there, up to the end of one frame; false if that is nothing. The header is judged before any payload
    /// is read.
    fn receive_some(&mut self, socket: &mut PeerStream, buffer: &mut [u8], walk: &mut Walk<'_>) -> Result<bool> {
        let Some(frame) = walk.frame() else { return Ok(false) };
        let whole = HEADER_BYTES + frame.place.len();
        let adds = frame.kind == FrameKind::Reduce;
        let mut progress = false;
        while self.inbox.done < whole {
            let at = self.inbox.done.saturating_sub(HEADER_BYTES);
            let into = match self.inbox.done {
                done if done < HEADER_BYTES => &mut self.inbox.header[done..],
                _ if adds => &mut self.inbox.scratch[at..frame.place.len()],
                _ => &mut buffer[frame.place.clone()][at..],
            };
            match socket.read(into) {
                Ok(0) => return Err(self.lost(self.prev_rank(), "it closed the connection")),
                Ok(n) => {
                    self.inbox.done += n;
                    self.step_bytes += n as u64;
                }
                Err(e) if not_now(&e) => return Ok(progress),
                Err(e) => return Err(self.lost(self.prev_rank(), e)),
            }
            progress = true;
            if at == 0 && self.inbox.done == HEADER_BYTES {
                self.judge_header(&frame)?;
            }
        }
        if adds {
            let len = frame.place.len();
            add(&mut buffer[frame.place.clone()], &self.inbox.scratch[..len]);
        }
        self.inbox.done = 0;
        walk.pass(&frame);
        Ok(true)
    }

    fn judge_header(&mut self, frame: &Leg) -> Result<()> {
        let rank = self.prev_rank();
        let refused = |error| CollectiveError::Frame { rank, error };
        let header = FrameHeader::decode(&self.inbox.header).map_err(refused)?;
        header
            .expect(self.fence, frame.kind, rank, self.received, frame.place.len())
            .map_err(refused)?;
        self.received = self.received.wrapping_add(1);
        Ok(())
    }

    /// Sleeps until a socket is ready; an abort shuts both, which wakes this too.
    fn wait(&self, links: &Links, sending: bool, receiving: bool) -> Result<()> {
        let mut polled = Vec::with_capacity(2);
        if sending {
            polled.push(PollFd::new(links.next.socket().as_fd(), PollFlags::POLLOUT));
        }
        if receiving {
            polled.push(PollFd::new(links.prev.socket().as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(e) => Err(self.lost(self.prev_rank(), e)),
        }
    }

    fn gather(&mut self, kind: FrameKind, mine: &[u8], lens: &[usize], out: &mut [u8]) -> Result<()> {
        let places = block_places(self.rank, mine, lens, self.size, out)?;
        out[places[self.rank].clone()].copy_from_slice(mine);
        if self.size == 1 {
            return Ok(());
        }
        self.travel(out, &Route::gather(self.rank, &places, kind))
    }
}

/// Adds little-endian floats, element by element.
fn add(sums: &mut [u8], come: &[u8]) {
    for (sum, come) in sums.as_chunks_mut::<4>().0.iter_mut().zip(come.as_chunks::<4>().0) {
        *sum = (f32::from_le_bytes(*come) + f32::from_le_bytes(*sum)).to_le_bytes();
    }
}

fn not_now(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
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
        self.entered = 0;
        self.step_bytes = 0;
    }

    fn progress(&self) -> Progress {
        let prev = self.links.as_ref().map(|_| (self.prev_rank(), self.step_bytes));
        Progress {
            entered: self.entered,
            received: prev.into_iter().collect(),
        }
    }

    fn all_gather(&mut self, mine: &[u8], lens: &[usize], out: &mut [u8]) -> Result<()> {
        self.gather(FrameKind::Gather, mine, lens, out)
    }

    fn all_reduce_sum(&mut self, values: &mut [f32]) -> Result<()> {
        if self.size == 1 {
            return Ok(());
        }
        let route = Route::all_reduce(self.rank, self.size, values.len());
        self.travel(bytes_of_mut(values), &route)
    }

    fn reduce_scatter_sum(&mut self, values: &mut [f32]) -> Result<Range<usize>> {
        if self.size > 1 {
            let route = Route::reduce(self.rank, self.size, values.len());
            self.travel(bytes_of_mut(values), &route)?;
        }
        Ok(chunk_range(owned_chunk(self.rank, self.size), self.size, values.len()))
    }

    fn all_gather_chunks(&mut self, values: &mut [f32]) -> Result<()> {
        if self.size == 1 {
            return Ok(());
        }
        let route = Route::share(self.rank, self.size, values.len());
        self.travel(bytes_of_mut(values), &route)
    }

    fn broadcast(&mut self, root: usize, bytes: &mut [u8]) -> Result<()> {
        check_root(root, self.size)?;
        if self.size == 1 {
            return Ok(());
        }
        let route = Route::broadcast(self.rank, self.size, root, bytes.len());
        self.travel(bytes, &route)
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
            let _ = links.next.socket().shutdown(Shutdown::Both);
            let _ = links.prev.socket().shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::{Hello, PeerServer, Purpose, connect};
    use argosy_common::ids::Generation;
    use argosy_common::plan::generation_secret;
    use std::sync::mpsc;
    use std::time::Duration;

    const GENERATION: Generation = Generation(2);
    const FENCE: Fence = Fence {
        run: 1,
        generation: 2,
        plan: 3,
        step: 0,
    };

    /// Two ranks, connected as a trainer connects them.
    fn pair() -> [(RingCollective, AbortHandle); 2] {
        let servers = [(); 2].map(|()| PeerServer::start(b"run".to_vec()).unwrap());
        let secret = generation_secret(b"run", GENERATION);
        let handles = [(); 2].map(|()| AbortHandle::new());
        let call = |rank: usize| {
            let hello = Hello {
                generation: GENERATION,
                secret,
                purpose: Purpose::Ring { from_rank: rank as u32 },
            };
            connect(&servers[1 - rank].addr(), &hello, None, &handles[rank]).unwrap()
        };
        let calls = [call(0), call(1)];
        let mut rank = 0;
        calls.map(|next| {
            let (own, abort) = (rank, handles[rank].clone());
            rank += 1;
            let prev = servers[own].take_ring(GENERATION, 1 - own as u32, &abort).unwrap();
            (
                RingCollective::new(own, 2, FENCE, next, prev, abort.clone()).unwrap(),
                abort,
            )
        })
    }

    #[test]
    fn rank_that_waits_for_a_silent_peer_is_woken_by_its_own_sockets_alone() {
        let [(mut ring, abort), (silent, _)] = pair();
        let links = ring.links.take().unwrap();
        let (told, heard) = mpsc::channel();
        // Its peer neither sends nor leaves, and the wait has no end of its own: without the shut sockets this hangs.
        std::thread::spawn(move || {
            let waited = [(false, true), (true, false), (true, true)];
            let waited = waited.map(|(sending, receiving)| ring.wait(&links, sending, receiving).is_ok());
            ring.links = Some(links);
            told.send((waited, ring)).unwrap();
        });
        assert!(heard.try_recv().is_err(), "there is nothing to read, and it waits");
        abort.abort();
        let (waited, mut ring) = heard.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(waited, [true; 3]);
        let ended = ring.sentinel(true);
        assert!(matches!(ended, Err(CollectiveError::Aborted)), "{ended:?}");
        drop(silent);
    }
}
