//! Bodies that come whole, in pieces, cut, held or bent.

use crate::faults::{Fault, Faults, Met};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use std::time::Duration;

/// The connection broke.
#[derive(Debug)]
pub(crate) struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("connection broke (a planned fault)")
    }
}

impl std::error::Error for Broken {}

/// Bytes of one piece of a body without a fault: small enough that a cut lies between pieces now and then.
const PIECE_BYTES: usize = 64 << 10;

/// `bytes` as a stream that the fault of its request spoils.
pub(crate) fn stream(bytes: Bytes, met: &Met, faults: &Faults) -> BoxStream<'static, Result<Bytes, Broken>> {
    let whole = bytes.len();
    let kept = |at: u64| usize::try_from(at).unwrap_or(whole).min(whole);
    match &met.fault {
        Some(Fault::CutAfter(at)) => pieces(bytes.slice(..kept(*at)), PIECE_BYTES)
            .chain(stream::once(async { Err(Broken) }))
            .boxed(),
        Some(Fault::StallAfter(at)) => {
            let (first, rest) = (bytes.slice(..kept(*at)), bytes.slice(kept(*at)..));
            let (faults, since) = (faults.clone(), met.since);
            let held = stream::once(async move { faults.held(since).await }).filter_map(|()| async { None });
            pieces(first, PIECE_BYTES)
                .chain(held)
                .chain(pieces(rest, PIECE_BYTES))
                .boxed()
        }
        Some(Fault::Slow { piece_bytes, gap_ms }) => {
            let gap = Duration::from_millis(*gap_ms);
            pieces(bytes, *piece_bytes)
                .then(move |piece| async move {
                    tokio::time::sleep(gap).await;
                    piece
                })
                .boxed()
        }
        Some(Fault::Flipped(at)) if whole > 0 => {
            let mut bent = bytes.to_vec();
            bent[kept(*at).min(whole - 1)] ^= 1;
            pieces(bent.into(), PIECE_BYTES).boxed()
        }
        _ => pieces(bytes, PIECE_BYTES).boxed(),
    }
}

fn pieces(bytes: Bytes, size: usize) -> BoxStream<'static, Result<Bytes, Broken>> {
    let size = size.max(1);
    let count = bytes.len().div_ceil(size);
    stream::iter((0..count).map(move |i| Ok(bytes.slice(i * size..((i + 1) * size).min(bytes.len()))))).boxed()
}
