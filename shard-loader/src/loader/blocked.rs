//! Rows that cannot be read, and rows that nobody reads any more (rule M2).

use crate::error::{BlockCause, DataError, LoaderError};
use crate::index::{Index, RowPlace};
use crate::store::{ReadRequest, Store};
use argosy_common::ids::SampleId;
use argosy_common::quarantine::{Quarantined, ReadFault, RowRange};
use std::sync::Arc;

/// So many bytes of another shard tell whether the store can be read at all.
const PROBE_BYTES: u64 = 512;
/// Shards that are asked for them, as long as they are gone as well.
const PROBES_MAX: usize = 3;

/// The quarantine ledger as a loader heeds it. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct LeftOut(Arc<[Quarantined]>);

impl Default for LeftOut {
    fn default() -> Self {
        Self(Arc::new([]))
    }
}

impl LeftOut {
    pub(super) fn new(revisions: &[Quarantined]) -> Self {
        Self(revisions.into())
    }

    pub(super) fn is(&self, revisions: &[Quarantined]) -> bool {
        *self.0 == *revisions
    }

    /// Whether this is the very ledger that `other` is a clone of.
    pub(super) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether `sample` takes no part in `step`.
    pub(super) fn holds(&self, sample: SampleId, step: u64) -> bool {
        self.0.iter().any(|r| r.holds_from <= step && r.rows.contains(sample))
    }

    /// What of a shard is to be given up with `rows`: all of it when some of it was before. One range after the other would
    /// cost two workers their patience each time.
    pub(super) fn widened(&self, rows: RowRange, shard_rows: u32) -> RowRange {
        let before = |r: &Quarantined| (r.rows.source, r.rows.shard) == (rows.source, rows.shard);
        match self.0.iter().any(before) {
            true => whole(rows, shard_rows),
            false => rows,
        }
    }
}

fn whole(rows: RowRange, shard_rows: u32) -> RowRange {
    RowRange {
        from: 0,
        until: shard_rows.max(rows.until),
        ..rows
    }
}

/// The error for `rows` of `lane`, which `request` did not bring. Other shards are asked first, so that a store or a folder
/// that is away is not taken for a shard that is gone.
pub(super) fn blocked(
    (index, store): (&Index, &Store),
    lane: u32,
    rows: RowRange,
    request: &ReadRequest<'_>,
    error: &DataError,
) -> LoaderError {
    let cause = BlockCause::of(error);
    let fault = match cause {
        BlockCause::Denied | BlockCause::Changed | BlockCause::Index => ReadFault::Way,
        BlockCause::Missing | BlockCause::Unreadable => tell_apart(index, store, rows),
    };
    let rows = match cause {
        BlockCause::Missing => whole(rows, index.shard_rows(rows.source, rows.shard)),
        _ => rows,
    };
    LoaderError::LaneBlocked {
        lane,
        rows,
        shard: request.location.to_owned(),
        range: request.range.clone(),
        cause,
        fault,
        error: error.to_string(),
    }
}

/// Whether other shards can be read now. With a single shard nobody can tell, and nothing is given up.
fn tell_apart(index: &Index, store: &Store, rows: RowRange) -> ReadFault {
    let others: Vec<RowPlace<'_>> = index
        .places_of_shards()
        .filter(|((source, shard), place)| (*source, *shard) != (rows.source, rows.shard) && place.shard_bytes > 0)
        .map(|(_, place)| place)
        .collect();
    let probes = PROBES_MAX.min(others.len());
    for probe in 0..probes {
        let other = &others[probe * others.len() / probes];
        match store.read(&other.read(0..PROBE_BYTES.min(other.shard_bytes))) {
            Ok(_) => return ReadFault::Shard,
            Err(DataError::NotFound { .. }) => {}
            Err(_) => return ReadFault::Way,
        }
    }
    ReadFault::Way
}
