//! Pieces of the flat gradient in the order in which a backward pass completes them, for reducing one while the next is made.

use super::TensorSpec;
use crate::collective::BLOCK_ELEMENTS;
use std::ops::Range;

/// Elements of a bucket (4 MiB): large enough for a sum to run at full speed, small enough that the last one is short.
pub const BUCKET_ELEMENTS: usize = 64 * BLOCK_ELEMENTS;

/// The flat order from `start` (a block's edge, rule N1) to its end in ranges of `elements` (whole blocks), in an order that is
/// the same on every worker: by when the last tensor of each is expected to be done.
#[must_use]
pub fn buckets(table: &[TensorSpec], start: usize, elements: usize) -> Vec<Range<usize>> {
    let end = table.last().map_or(0, |t| t.offset + t.len);
    let ranges = (start..end)
        .step_by(elements.max(1))
        .map(|at| at..end.min(at + elements.max(1)));
    let mut out: Vec<Range<usize>> = ranges.collect();
    out.sort_by_key(|range| {
        let from = table.partition_point(|t| t.offset + t.len <= range.start);
        let to = table.partition_point(|t| t.offset < range.end);
        (table[from..to].iter().map(|t| turn(&t.name)).max(), range.start)
    });
    out
}

/// When a tensor's gradient is told of: the image tower goes back first, each tower from its last block, and what belongs to no
/// block is known at the end only.
fn turn(name: &str) -> (u8, u32) {
    let block = name
        .split_once("resblocks.")
        .and_then(|(_, rest)| rest.split('.').next())
        .and_then(|number| number.parse::<u32>().ok());
    match block {
        Some(number) => (u8::from(!name.starts_with("visual.")), u32::MAX - number),
        None => (2, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_the_rest_once_and_come_last_block_first() {
        let len = BUCKET_ELEMENTS;
        let names = [
            "logit_scale",
            "transformer.resblocks.0.w",
            "transformer.resblocks.1.w",
            "visual.resblocks.0.w",
        ];
        let table: Vec<TensorSpec> = (0..)
            .zip(names)
            .map(|(i, name)| TensorSpec {
                name: name.into(),
                shape: vec![len as i64],
                offset: i * len,
                len,
            })
            .collect();
        let at = |i: usize| i * len..(i + 1) * len;
        assert_eq!(buckets(&table, 0, len), [at(3), at(2), at(1), at(0)]);
        let mut rest = buckets(&table, BLOCK_ELEMENTS, len);
        rest.sort_by_key(|r| r.start);
        assert!(rest.windows(2).all(|w| w[0].end == w[1].start));
        assert_eq!((rest[0].start, rest[rest.len() - 1].end), (BLOCK_ELEMENTS, 4 * len));
    }
}
