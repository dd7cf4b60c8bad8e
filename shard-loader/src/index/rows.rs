//! The places of one shard's rows, packed: a length per row, an offset for every 64th, and what lies between rows.
//!
//! Layout, little endian: `u32` length per row; `u64` offset of rows 0, 64, 128, ...; `u32` number of gaps; per gap the
//! `u32` row it stands before and its `u64` bytes (no gap stands before a row that has an offset); a bitmap of the shard's
//! samples, one bit each, set for rows.

use std::ops::Range;

/// Rows from one known offset to the next.
const STRIDE: usize = 64;
const GAP_BYTES: usize = 12;

/// Packs rows that begin at `starts` (growing) and have `lengths`; `kept` says of every sample whether it is one.
pub(super) fn pack(starts: &[u64], lengths: &[u32], kept: &[bool]) -> Result<Vec<u8>, String> {
    if starts.len() != lengths.len() {
        return Err(format!("{} offsets and {} lengths", starts.len(), lengths.len()));
    }
    if kept.iter().filter(|k| **k).count() != starts.len() {
        return Err(format!("{} rows, another number of samples is kept", starts.len()));
    }
    let mut out = Vec::with_capacity(lengths.len() * 4 + kept.len() / 8 + 64);
    for length in lengths {
        out.extend_from_slice(&length.to_le_bytes());
    }
    for start in starts.iter().step_by(STRIDE) {
        out.extend_from_slice(&start.to_le_bytes());
    }
    let mut gaps = Vec::new();
    let mut end = 0;
    for (row, (start, length)) in starts.iter().zip(lengths).enumerate() {
        let gap = start
            .checked_sub(end)
            .ok_or_else(|| format!("row {row} begins before the one before it ends"))?;
        if gap > 0 && row % STRIDE != 0 {
            gaps.push((row as u32, gap));
        }
        end = start + u64::from(*length);
    }
    out.extend_from_slice(&(gaps.len() as u32).to_le_bytes());
    for (row, gap) in gaps {
        out.extend_from_slice(&row.to_le_bytes());
        out.extend_from_slice(&gap.to_le_bytes());
    }
    for eight in kept.chunks(8) {
        out.push(eight.iter().enumerate().map(|(i, k)| u8::from(*k) << i).sum());
    }
    Ok(out)
}

/// The packed places of one shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowTable<'a> {
    lengths: &'a [u8],
    offsets: &'a [u8],
    gaps: &'a [u8],
    bitmap: &'a [u8],
    samples: usize,
}

impl<'a> RowTable<'a> {
    /// Reads the layout; `None` when the parts do not add up.
    pub(super) fn of(bytes: &'a [u8], rows: u32, samples: u32) -> Option<Self> {
        let rows = rows as usize;
        let (lengths, rest) = bytes.split_at_checked(rows * 4)?;
        let (offsets, rest) = rest.split_at_checked(rows.div_ceil(STRIDE) * 8)?;
        let (count, rest) = rest.split_at_checked(4)?;
        let count = u32_at(count, 0) as usize;
        let (gaps, bitmap) = rest.split_at_checked(count.checked_mul(GAP_BYTES)?)?;
        (bitmap.len() == (samples as usize).div_ceil(8)).then_some(Self {
            lengths,
            offsets,
            gaps,
            bitmap,
            samples: samples as usize,
        })
    }

    fn rows(&self) -> usize {
        self.lengths.len() / 4
    }

    /// The bytes of a row.
    pub(super) fn range(&self, row: u32) -> Option<Range<u64>> {
        let row = row as usize;
        if row >= self.rows() {
            return None;
        }
        let anchor = row / STRIDE * STRIDE;
        let mut start = u64_at(self.offsets, row / STRIDE * 8);
        for before in anchor..row {
            start = start.checked_add(u64::from(u32_at(self.lengths, before * 4)))?;
        }
        // Gaps are sorted by row.
        let count = self.gaps.len() / GAP_BYTES;
        let gap_row = |i: usize| u32_at(self.gaps, i * GAP_BYTES) as usize;
        let mut i = first(count, |i| gap_row(i) > anchor);
        while i < count && gap_row(i) <= row {
            start = start.checked_add(u64_at(self.gaps, i * GAP_BYTES + 4))?;
            i += 1;
        }
        Some(start..start.checked_add(u64::from(u32_at(self.lengths, row * 4)))?)
    }

    /// Whether every row lies within `bytes` bytes, one behind the other.
    pub(super) fn lies_within(&self, bytes: u64) -> bool {
        let mut end = 0;
        for row in 0..self.rows() as u32 {
            match self.range(row) {
                Some(range) if range.start >= end && range.end <= bytes => end = range.end,
                _ => return false,
            }
        }
        true
    }

    /// Of every sample, whether it is a row.
    pub(super) fn kept(&self) -> Vec<bool> {
        (0..self.samples)
            .map(|i| self.bitmap[i / 8] >> (i % 8) & 1 == 1)
            .collect()
    }
}

/// The first index below `count` that fits, where all after it fit too; `count` when none does.
fn first(count: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if fits(middle) { high = middle } else { low = middle + 1 }
    }
    low
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_packed_come_back_where_they_lie(rows in proptest::collection::vec((0u64..3, 1u32..9), 0..300)) {
            let (mut starts, mut lengths, mut kept, mut at) = (Vec::new(), Vec::new(), Vec::new(), 0);
            for (gap, length) in &rows {
                kept.extend((0..*gap).map(|_| false));
                kept.push(true);
                at += gap * 512;
                starts.push(at);
                lengths.push(length * 512);
                at += u64::from(length * 512);
            }
            let packed = pack(&starts, &lengths, &kept).expect("packed");
            let table = RowTable::of(&packed, rows.len() as u32, kept.len() as u32).expect("adds up");
            for (row, (start, length)) in starts.iter().zip(&lengths).enumerate() {
                prop_assert_eq!(table.range(row as u32), Some(*start..*start + u64::from(*length)));
            }
            prop_assert_eq!(table.range(rows.len() as u32), None);
            prop_assert_eq!(table.kept(), kept.clone());
            prop_assert!(table.lies_within(at));
            prop_assert!(rows.is_empty() || !table.lies_within(at - 1));
            prop_assert!(RowTable::of(&packed, rows.len() as u32 + 1, kept.len() as u32).is_none_or(|t| !t.lies_within(at)));
        }
    }
}
