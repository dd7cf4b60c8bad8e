//! Shards whose rows the index does not know: walked when they are first needed, and remembered.

use crate::error::DataError;
use crate::index::{Filter, Index, RowPlace, ShardRecord, rows_of};
use crate::sample::Keys;
use crate::store::{ReadRequest, Store, is_url};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Shards that are remembered at least; some megabytes when each holds ten thousand rows.
const REMEMBERED_MIN: usize = 64;
/// Shards that a lane may stand in: one at a time, two where its range goes on in the next.
const SHARDS_PER_LANE: usize = 2;

/// A source's number and a shard's.
type ShardId = (u16, u32);

/// Where the rows of walked shards lie.
#[derive(Debug, Default)]
pub(super) struct Walked {
    shards: BTreeMap<ShardId, Remembered>,
    /// Counts uses, for forgetting the shard that was not used for longest.
    uses: u64,
    /// Shards whose count was compared with what was claimed; each is told of once, however often it is walked.
    compared: BTreeSet<ShardId>,
}

#[derive(Debug)]
struct Remembered {
    /// Of each row, its first byte and its length.
    rows: Vec<(u64, u32)>,
    used: u64,
}

impl Walked {
    /// Where `row` of a shard lies; none when the shard does not have it. The shard is walked when it is not remembered, for a
    /// worker with so many `lanes`; `beyond` hears how many rows it has more than were claimed, once.
    ///
    /// # Errors
    /// When it cannot be read, or is not the one that was indexed.
    pub(super) fn place(
        &mut self,
        store: &Store,
        index: &Index,
        (shard, row): (ShardId, u32),
        lanes: usize,
        beyond: impl FnOnce(u64),
    ) -> Result<Option<Range<u64>>, DataError> {
        let Some(whole) = index.whole_shard(shard.0, shard.1) else {
            return Ok(None);
        };
        if !self.shards.contains_key(&shard) {
            let record = walk(store, index, &whole)?;
            if self.compared.insert(shard) {
                beyond(compare(&record, index.shard_rows(shard.0, shard.1), whole.location));
            }
            let rows = record.starts.into_iter().zip(record.lengths).collect();
            self.remember(shard, rows, REMEMBERED_MIN.max(lanes * SHARDS_PER_LANE));
        }
        let rows = self.rows(shard);
        Ok(rows.and_then(|rows| {
            let (start, length) = *rows.get(row as usize)?;
            Some(start..start + u64::from(length))
        }))
    }

    fn rows(&mut self, shard: ShardId) -> Option<&[(u64, u32)]> {
        self.uses += 1;
        let found = self.shards.get_mut(&shard)?;
        found.used = self.uses;
        Some(&found.rows)
    }

    /// Takes a shard in; with `most` of them, the one that was not used for longest goes.
    fn remember(&mut self, shard: ShardId, rows: Vec<(u64, u32)>, most: usize) {
        while self.shards.len() >= most.max(1) {
            let least = self.shards.iter().min_by_key(|(_, found)| found.used);
            let Some(least) = least.map(|(shard, _)| *shard) else {
                break;
            };
            self.shards.remove(&least);
        }
        self.uses += 1;
        let used = self.uses;
        self.shards.insert(shard, Remembered { rows, used });
    }
}

/// Walks a shard that must be the one that was indexed, before the walk and behind it: its rows that are not there are masked
/// for good, and those of another shard may not decide that (rule M3).
fn walk(store: &Store, index: &Index, whole: &RowPlace<'_>) -> Result<ShardRecord, DataError> {
    let request: ReadRequest<'_> = whole.read(whole.range.clone());
    let (image_key, text_key) = index.keys();
    let keys = Keys::new(image_key, text_key);
    let walked = || rows_of(store, &request, &keys, &Filter::default());
    // Every read from a store is pinned; the chunks of a file are not.
    if is_url(whole.location) {
        return walked();
    }
    store.same_still(&request)?;
    let record = walked()?;
    store.same_still(&request)?;
    Ok(record)
}

/// Rows that a shard has beyond what is claimed of it; says so when the two differ.
fn compare(record: &ShardRecord, claimed: u32, location: &str) -> u64 {
    let found = record.starts.len() as u64;
    if found != u64::from(claimed) {
        tracing::warn!(
            shard = location,
            claimed,
            found,
            "a shard does not hold the rows that were claimed"
        );
    }
    found.saturating_sub(u64::from(claimed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_that_was_not_used_for_longest_is_forgotten_first() {
        let mut walked = Walked::default();
        for shard in 0..3 {
            walked.remember((0, shard), vec![(u64::from(shard), 1)], 3);
        }
        assert_eq!(walked.rows((0, 0)), Some(&[(0, 1)][..]));
        walked.remember((0, 3), Vec::new(), 3);
        let there: Vec<bool> = (0..4).map(|shard| walked.rows((0, shard)).is_some()).collect();
        assert_eq!(there, [true, false, true, true]);
    }
}
