//! What goes round a ring and in which order.
//!
//! Every operation is a sequence of legs on either side. What is sent after the first bytes is always what came before, in
//! the same order; so a byte may leave as soon as as many have arrived as it is behind, and a chunk's second half still
//! travels towards this rank while its first half has left it.

use crate::collective::chunk_range;
use argosy_rpc::frame::FrameKind;
use std::ops::Range;

/// Bytes of a frame: small enough to be added while they are in the processor's cache.
pub(super) const FRAME_BYTES: usize = 256 << 10;

/// A part of the buffer that travels in one go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leg {
    /// [`FrameKind::Reduce`]: what comes is added; all others: it takes the place of what was there.
    pub(super) kind: FrameKind,
    /// Bytes of the buffer.
    pub(super) place: Range<usize>,
}

/// One operation of one rank.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) send: Vec<Leg>,
    pub(super) receive: Vec<Leg>,
    /// Bytes that may leave before anything has come.
    pub(super) head: usize,
}

impl Route {
    /// All blocks to all: `places[r]` is rank `r`'s.
    pub(super) fn gather(rank: usize, places: &[Range<usize>], kind: FrameKind) -> Self {
        let size = places.len();
        let leg = |turn: usize| Leg {
            kind,
            place: places[(rank + size - turn) % size].clone(),
        };
        Self {
            send: (0..size - 1).map(leg).collect(),
            receive: (1..size).map(leg).collect(),
            head: places[rank].len(),
        }
    }

    /// Collects sums: afterwards the chunk of the next rank's number is complete here.
    pub(super) fn reduce(rank: usize, size: usize, elements: usize) -> Self {
        Self::turns(rank, size, elements, 0..size - 1)
    }

    /// Shares complete chunks, each from where [`Route::reduce`] left it.
    pub(super) fn share(rank: usize, size: usize, elements: usize) -> Self {
        Self::turns(rank, size, elements, size - 1..2 * (size - 1))
    }

    /// Both, without a pause between them.
    pub(super) fn all_reduce(rank: usize, size: usize, elements: usize) -> Self {
        Self::turns(rank, size, elements, 0..2 * (size - 1))
    }

    fn turns(rank: usize, size: usize, elements: usize, turns: Range<usize>) -> Self {
        let leg = |turn: usize, behind: usize| {
            let chunk = (rank + 2 * size - turn - behind) % size;
            let place = chunk_range(chunk, size, elements);
            let kind = if turn + 1 < size {
                FrameKind::Reduce
            } else {
                FrameKind::Share
            };
            Leg {
                kind,
                place: place.start * 4..place.end * 4,
            }
        };
        let send: Vec<Leg> = turns.clone().map(|turn| leg(turn, 0)).collect();
        Self {
            head: send.first().map_or(0, |l| l.place.len()),
            send,
            receive: turns.map(|turn| leg(turn, 1)).collect(),
        }
    }

    /// The whole buffer from `root` to all.
    pub(super) fn broadcast(rank: usize, size: usize, root: usize, bytes: usize) -> Self {
        let all = || {
            vec![Leg {
                kind: FrameKind::Share,
                place: 0..bytes,
            }]
        };
        let last = (rank + 1) % size == root;
        Self {
            send: if last { Vec::new() } else { all() },
            receive: if rank == root { Vec::new() } else { all() },
            head: if rank == root { bytes } else { 0 },
        }
    }
}

/// Walks along legs frame by frame.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    legs: &'a [Leg],
    leg: usize,
    at: usize,
    /// Bytes of frames that are through.
    pub(super) done: usize,
}

impl<'a> Walk<'a> {
    pub(super) fn new(legs: &'a [Leg]) -> Self {
        Self {
            legs,
            leg: 0,
            at: 0,
            done: 0,
        }
    }

    /// The next frame; `None` at the end.
    pub(super) fn frame(&mut self) -> Option<Leg> {
        while let Some(leg) = self.legs.get(self.leg) {
            let start = leg.place.start + self.at;
            if start < leg.place.end {
                return Some(Leg {
                    kind: leg.kind,
                    place: start..leg.place.end.min(start + FRAME_BYTES),
                });
            }
            (self.leg, self.at) = (self.leg + 1, 0);
        }
        None
    }

    /// The frame is through.
    pub(super) fn pass(&mut self, frame: &Leg) {
        self.at += frame.place.len();
        self.done += frame.place.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn route_of_any_operation_sends_its_head_and_then_what_came() {
        let places: Vec<Range<usize>> = vec![0..7, 7..7, 7..30, 30..31];
        for rank in 0..4 {
            for route in [
                Route::gather(rank, &places, FrameKind::Gather),
                Route::reduce(rank, 4, 100_000),
                Route::share(rank, 4, 100_000),
                Route::all_reduce(rank, 4, 100_000),
            ] {
                assert_eq!(route.send.len(), route.receive.len());
                assert_eq!(route.send[0].place.len(), route.head);
                for (sent, came) in route.send[1..].iter().zip(&route.receive) {
                    assert_eq!(sent.place, came.place, "rank {rank}");
                }
            }
        }
    }

    #[test]
    fn walk_cuts_legs_into_frames_and_leaves_empty_ones_out() {
        let leg = |place: Range<usize>| Leg {
            kind: FrameKind::Share,
            place,
        };
        let legs = [leg(5..5), leg(10..10 + FRAME_BYTES + 3), leg(0..1)];
        let mut walk = Walk::new(&legs);
        let mut seen = Vec::new();
        while let Some(frame) = walk.frame() {
            seen.push(frame.place.clone());
            walk.pass(&frame);
        }
        assert_eq!(seen, [10..10 + FRAME_BYTES, 10 + FRAME_BYTES..13 + FRAME_BYTES, 0..1]);
        assert_eq!(walk.done, FRAME_BYTES + 4);
    }
}
