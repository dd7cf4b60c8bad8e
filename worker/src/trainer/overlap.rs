//! REDUCE beside BACKWARD: pieces of the gradient that are done are summed on a thread of their own while the rest is made.
//!
//! A worker's values are looked at before they leave it, so whose gradient was not finite is known whatever the sums became
//! (rule G11); and nothing is applied before the sentinel. A generation that is aborted, or a sum that fails, is noticed at the
//! next block of the towers and not at their end.

use super::gather::AllLse;
use super::{BatchSource, Halt, InGeneration, Trainer};
use crate::collective::{AbortHandle, BLOCK_ELEMENTS, Collective, CollectiveError};
use crate::engine::buckets::BUCKET_ELEMENTS;
use crate::engine::{self, Engine, EngineError, GatheredLse, all_finite, buckets};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

/// A bucket's values on their way.
type Piece = (Range<usize>, Vec<f32>);

/// Hands buckets on, in their order, as soon as all of their values are final.
struct Hand<'a> {
    buckets: &'a [Range<usize>],
    /// Values of buckets that were told of in part, and how many.
    parts: Vec<(Vec<f32>, usize)>,
    next: usize,
    finite: bool,
    out: Sender<Piece>,
    spare: &'a mut Vec<Vec<f32>>,
}

impl Hand<'_> {
    /// Takes final values from `start` on.
    fn take(&mut self, start: usize, values: &[f32]) {
        let end = start + values.len();
        for (bucket, (part, known)) in self.buckets.iter().zip(&mut self.parts).skip(self.next) {
            let (from, to) = (start.max(bucket.start), end.min(bucket.end));
            if from < to {
                if part.is_empty() {
                    *part = self.spare.pop().unwrap_or_default();
                    part.resize(bucket.len(), 0.0);
                }
                part[from - bucket.start..to - bucket.start].copy_from_slice(&values[from - start..to - start]);
                *known += to - from;
            }
        }
        while let Some(bucket) = self
            .buckets
            .get(self.next)
            .filter(|b| self.parts[self.next].1 == b.len())
        {
            let (part, _) = std::mem::take(&mut self.parts[self.next]);
            self.send(bucket.clone(), part);
        }
    }

    /// The rest, whose values were not told of.
    fn take_rest(&mut self, grads: &[f32]) {
        while let Some(bucket) = self.buckets.get(self.next) {
            let (mut part, _) = std::mem::take(&mut self.parts[self.next]);
            if part.is_empty() {
                // As many are given back each step as were taken: without this every step would leave some more.
                part = self.spare.pop().unwrap_or_default();
            }
            part.clear();
            part.extend_from_slice(&grads[bucket.clone()]);
            self.send(bucket.clone(), part);
        }
    }

    fn send(&mut self, bucket: Range<usize>, values: Vec<f32>) {
        // Before it is mixed with others'.
        self.finite &= all_finite(&values);
        // Nobody takes it once the collective has failed, which is told at the end.
        let _ = self.out.send((bucket, values));
        self.next += 1;
    }
}

/// Sums pieces as they come and gives them back; ends with the first error, having told `failed` of it.
fn sum_pieces(
    collective: &mut dyn Collective,
    pieces: &Receiver<Piece>,
    summed: &Sender<Piece>,
    failed: &AtomicBool,
) -> Result<(), CollectiveError> {
    for (range, mut values) in pieces {
        if let Err(error) = collective.all_reduce_sum(&mut values) {
            failed.store(true, Ordering::SeqCst);
            return Err(error);
        }
        if summed.send((range, values)).is_err() {
            break; // the backward pass failed, and says so
        }
    }
    Ok(())
}

/// Whether what is being made is wanted by nobody any more.
fn gives_up(sum_failed: &AtomicBool, abort: &AbortHandle) -> bool {
    sum_failed.load(Ordering::SeqCst) || abort.is_aborted()
}

/// What a backward pass without sums hears: whether to go on.
pub(super) fn unless_aborted(abort: &AbortHandle) -> impl FnMut(usize, &[f32]) -> engine::Result<()> + '_ {
    |_, _| match abort.is_aborted() {
        true => Err(EngineError::GivenUp),
        false => Ok(()),
    }
}

impl<E: Engine, S: BatchSource> Trainer<E, S> {
    /// As the function of this name.
    pub(super) fn backward_and_reduce(
        &mut self,
        inside: &mut InGeneration,
        all: &AllLse,
    ) -> Result<(f64, bool, usize), Halt> {
        backward_and_reduce(
            &mut self.engine,
            (inside.collective.as_mut(), &inside.abort),
            &all.view(),
            BUCKET_ELEMENTS,
            &mut self.buffers.pieces,
        )
    }

    /// As the function of this name.
    pub(super) fn reduce_rest(&mut self, inside: &mut InGeneration, union: &[u32], late: usize) -> Result<(), Halt> {
        let (engine, rows) = (&mut self.engine, &mut self.buffers.rows);
        reduce_rest(engine, inside.collective.as_mut(), union, late, rows)
    }
}

/// BACKWARD with most of REDUCE beside it, in buckets of `bucket_elements` (whole blocks, rule N1), whose memory is kept in
/// `spare` from step to step. Gives the loss, whether the own gradient is finite, and where in the flat order the part begins
/// that is summed; what lies before is left to [`reduce_rest`].
fn backward_and_reduce<E: Engine>(
    engine: &mut E,
    (collective, abort): (&mut dyn Collective, &AbortHandle),
    all: &GatheredLse<'_>,
    bucket_elements: usize,
    spare: &mut Vec<Vec<f32>>,
) -> Result<(f64, bool, usize), Halt> {
    // The sparse table is final only at the end, and travels in a form of its own; with it all that lies before.
    let late = engine.sparse_table().map_or(0, |t| t.offset + t.rows * t.width);
    let late = late.next_multiple_of(BLOCK_ELEMENTS).min(engine.state_elements());
    let buckets = buckets(&engine.tensor_table(), late, bucket_elements);
    let (pieces, taken) = channel();
    let (summed, sums) = channel();
    let failed = AtomicBool::new(false);
    let mut hand = Hand {
        buckets: &buckets,
        parts: vec![(Vec::new(), 0); buckets.len()],
        next: 0,
        finite: true,
        out: pieces,
        spare,
    };
    let (made, sent) = std::thread::scope(|scope| {
        let adding = scope.spawn(|| {
            // Both are gone when this thread ends: then nothing is taken or given any more.
            let (taken, summed) = (taken, summed);
            sum_pieces(collective, &taken, &summed, &failed)
        });
        let made = engine
            .loss_backward_overlapped(all, &mut |start, values| {
                if gives_up(&failed, abort) {
                    return Err(EngineError::GivenUp);
                }
                hand.take(start, values);
                Ok(())
            })
            .and_then(|out| {
                hand.take_rest(engine.grads_flat()?);
                Ok((out.loss, hand.finite))
            });
        drop(hand); // no more pieces: the other thread ends when it has summed what it has
        (made, adding.join())
    });
    match sent {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => return Err(EngineError::Protocol("the thread that sums gradients panicked".into()).into()),
    }
    let (loss, mut finite) = made?;
    let grads = engine.grads_flat()?;
    finite &= all_finite(&grads[..late]);
    for (range, values) in sums {
        grads[range].copy_from_slice(&values);
        spare.push(values);
    }
    Ok((loss, finite, late))
}

/// Sums what [`backward_and_reduce`] left: the flat gradient up to `late`, of the sparse table only the rows in `union`.
fn reduce_rest<E: Engine>(
    engine: &mut E,
    collective: &mut dyn Collective,
    union: &[u32],
    late: usize,
    rows: &mut Vec<f32>,
) -> Result<(), Halt> {
    let Some(table) = engine.sparse_table() else {
        return Ok(());
    };
    let grads = engine.grads_flat()?;
    let end = table.offset + table.rows * table.width;
    let row = |row: &u32| table.offset + *row as usize * table.width;
    if let Some(beyond) = union.iter().find(|r| **r as usize >= table.rows) {
        return Err(EngineError::Protocol(format!("row {beyond} lies beyond the table's {}", table.rows)).into());
    }
    rows.clear();
    rows.extend_from_slice(&grads[..table.offset]);
    for at in union.iter().map(row) {
        rows.extend_from_slice(&grads[at..at + table.width]);
    }
    rows.extend_from_slice(&grads[end..late]);
    collective.all_reduce_sum(rows)?;
    let (head, rest) = rows.split_at(table.offset);
    let (middle, tail) = rest.split_at(union.len() * table.width);
    grads[..table.offset].copy_from_slice(head);
    for (at, values) in union.iter().map(row).zip(middle.chunks(table.width)) {
        grads[at..at + table.width].copy_from_slice(values);
    }
    grads[end..late].copy_from_slice(tail);
    Ok(())
}

#[cfg(test)]
mod tests;
