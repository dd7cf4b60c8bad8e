//! The quarantine ledger: rows that the coordinator gave up reading, each from a named step on (rules M2, M4).
//!
//! A worker never takes a row out for reasons of time, memory or network; it says [`crate::events::FromWorker::LaneBlocked`].
//! The conductor retries elsewhere and, after failures on two workers or too long a time, makes a revision of this ledger
//! durable. A revision holds from its step, so that a step done again after going back is the same step.

use crate::ids::SampleId;
use serde::{Deserialize, Serialize};

/// Whose fault it is that rows cannot be read, as far as a worker can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadFault {
    /// The shard's: others are read meanwhile. What is unreadable for long is given up.
    #[default]
    Shard,
    /// The way's: credentials, network, a damaged copy of the index, a store that is away. For that nothing is given up.
    Way,
}

/// Rows of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RowRange {
    /// Index of the source in the job.
    pub source: u16,
    /// Index of the shard in the source's index.
    pub shard: u32,
    /// First row.
    pub from: u32,
    /// Row after the last.
    pub until: u32,
}

impl RowRange {
    /// The rows that are in `other` as well; `None` where there are none.
    #[must_use]
    pub fn common(&self, other: Self) -> Option<Self> {
        let both = Self {
            from: self.from.max(other.from),
            until: self.until.min(other.until),
            ..*self
        };
        ((self.source, self.shard) == (other.source, other.shard) && both.from < both.until).then_some(both)
    }

    /// Whether `id` is one of them.
    #[must_use]
    pub fn contains(&self, id: SampleId) -> bool {
        (self.source, self.shard) == (id.source, id.shard) && (self.from..self.until).contains(&id.row)
    }
}

/// One revision of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Number of the revision, from 1 without gaps.
    pub revision: u64,
    /// Steps from this one on leave the rows out.
    pub holds_from: u64,
    /// The rows.
    pub rows: RowRange,
    /// The last error, for people.
    pub reason: String,
}

/// Why a revision is not the next of a ledger.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuarantineError {
    /// A revision is missing or came twice.
    #[error("quarantine revision {got} does not follow revision {last}")]
    NotNext {
        /// Revision that came.
        got: u64,
        /// Last one known.
        last: u64,
    },
    /// No row in it.
    #[error("quarantine revision {0} names no row")]
    Empty(u64),
}

/// The ledger: what the durable revisions say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuarantineLedger {
    revisions: Vec<Quarantined>,
}

impl QuarantineLedger {
    /// The revisions in order.
    #[must_use]
    pub fn revisions(&self) -> &[Quarantined] {
        &self.revisions
    }

    /// The last revision's number; 0 without any.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.revisions.last().map_or(0, |r| r.revision)
    }

    /// Takes the next revision.
    ///
    /// # Errors
    /// [`QuarantineError`] when it is not the next, or empty; the ledger is unchanged then.
    pub fn apply(&mut self, next: Quarantined) -> Result<(), QuarantineError> {
        let last = self.last();
        if next.revision != last + 1 {
            return Err(QuarantineError::NotNext {
                got: next.revision,
                last,
            });
        }
        if next.rows.from >= next.rows.until {
            return Err(QuarantineError::Empty(next.revision));
        }
        self.revisions.push(next);
        Ok(())
    }

    /// The next revision for `rows` from step `holds_from` on; `None` if all of them are left out by then already.
    #[must_use]
    pub fn propose(&self, rows: RowRange, holds_from: u64, reason: &str) -> Option<Quarantined> {
        let row = |row| SampleId {
            source: rows.source,
            shard: rows.shard,
            row,
        };
        let known = (rows.from..rows.until).all(|r| self.holds(row(r), holds_from).is_some());
        (!known).then(|| Quarantined {
            revision: self.last() + 1,
            holds_from,
            rows,
            reason: reason.into(),
        })
    }

    /// The first revision that leaves `id` out at `step`.
    #[must_use]
    pub fn holds(&self, id: SampleId, step: u64) -> Option<u64> {
        self.revisions
            .iter()
            .find(|r| r.holds_from <= step && r.rows.contains(id))
            .map(|r| r.revision)
    }

    /// What it holds in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let reasons: usize = self.revisions.iter().map(|r| r.reason.capacity()).sum();
        self.revisions.capacity() * size_of::<Quarantined>() + reasons
    }

    /// Rows named so far, for people; rows named twice count twice.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.revisions
            .iter()
            .map(|r| u64::from(r.rows.until - r.rows.from))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn id(shard: u32, row: u32) -> SampleId {
        SampleId { source: 0, shard, row }
    }

    #[test]
    fn revision_out_of_order_is_refused_and_changes_nothing() {
        let mut ledger = QuarantineLedger::default();
        let rows = RowRange {
            source: 0,
            shard: 1,
            from: 2,
            until: 5,
        };
        let first = ledger.propose(rows, 7, "503").expect("new");
        ledger.apply(first.clone()).expect("the first");
        let before = ledger.clone();
        assert_eq!(ledger.apply(first), Err(QuarantineError::NotNext { got: 1, last: 1 }));
        let empty = Quarantined {
            revision: 2,
            holds_from: 7,
            rows: RowRange { until: 2, ..rows },
            reason: String::new(),
        };
        assert_eq!(ledger.apply(empty), Err(QuarantineError::Empty(2)));
        assert_eq!(ledger, before);
        assert_eq!(
            (
                ledger.holds(id(1, 4), 7),
                ledger.holds(id(1, 4), 6),
                ledger.holds(id(1, 5), 9)
            ),
            (Some(1), None, None)
        );
        assert_eq!(ledger.propose(rows, 9, "again"), None, "nothing new");
    }

    proptest! {
        /// The plain reference: a map from row to the first step it is left out.
        #[test]
        fn quarantine_ledger_any_history_matches_the_plain_reference(
            history in proptest::collection::vec((0u32..3, 0u32..20, 1u32..6, 0u64..30), 0..20),
            asked in proptest::collection::vec((0u32..3, 0u32..26, 0u64..40), 0..40),
        ) {
            let mut ledger = QuarantineLedger::default();
            let mut reference: BTreeMap<(u32, u32), u64> = BTreeMap::new();
            for (shard, from, len, step) in history {
                let rows = RowRange { source: 0, shard, from, until: from + len };
                if let Some(next) = ledger.propose(rows, step, "unreadable") {
                    ledger.apply(next).expect("a proposal fits");
                }
                for row in from..from + len {
                    let first = reference.entry((shard, row)).or_insert(step);
                    *first = (*first).min(step);
                }
            }
            for (shard, row, step) in asked {
                let expected = reference.get(&(shard, row)).is_some_and(|from| *from <= step);
                prop_assert_eq!(ledger.holds(id(shard, row), step).is_some(), expected);
            }
        }
    }
}
