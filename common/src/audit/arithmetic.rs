//! Numbers of the audit's own: what trained ids follow from, written down a second time. Nothing here calls the code that is
//! audited; both were written after the same sentences, and a mistake in one shows as a difference.
//!
//! - A stream of random words is Philox 4x32-10 (Salmon et al., SC 2011). Its key is the SplitMix64 of
//!   `seed ^ purpose << 56 ^ major`, low word first; its counter is `[block, minor low, minor high, major ^ purpose << 24]`.
//! - A 64-bit number is two words, the first one high. A number below `n` is the high half of `number * n`; numbers whose low
//!   half is below `2^64 mod n` are passed over, so that all are equally likely (Lemire 2019).
//! - A permutation exchanges each place, from the last to the second, with one drawn from those up to it.

use crate::ids::SampleId;
use crate::shape::RunShape;

/// The order of the shards of a pass: major 0, minor the pass.
pub(super) const SHARDS: u32 = 1;
/// The order of a window: major the lane, minor its first position.
pub(super) const WINDOW: u32 = 2;

/// Random words of one key.
struct Words {
    key: [u32; 2],
    counter: [u32; 4],
    /// Words of the last block that were not taken, the next one last.
    left: Vec<u32>,
}

impl Words {
    fn new(seed: u64, purpose: u32, major: u32, minor: u64) -> Self {
        let key = split_mix(seed ^ u64::from(purpose) << 56 ^ u64::from(major));
        Self {
            key: halves(key),
            counter: [0, halves(minor)[0], halves(minor)[1], major ^ purpose << 24],
            left: Vec::new(),
        }
    }

    fn next(&mut self) -> u64 {
        if self.left.is_empty() {
            self.left = philox(self.counter, self.key).into_iter().rev().collect();
            self.counter[0] = self.counter[0].wrapping_add(1);
        }
        u64::from(self.left.pop().unwrap_or_default())
    }

    fn below(&mut self, bound: u64) -> u64 {
        let passed_over = ((1u128 << 64) % u128::from(bound)) as u64;
        loop {
            let high = self.next();
            let number = u128::from(high << 32 | self.next()) * u128::from(bound);
            if number as u64 >= passed_over {
                return (number >> 64) as u64;
            }
        }
    }
}

/// Low and high word.
fn halves(number: u64) -> [u32; 2] {
    [number as u32, (number >> 32) as u32]
}

fn split_mix(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    for (shift, factor) in [(30, 0xbf58_476d_1ce4_e5b9), (27, 0x94d0_49bb_1331_11eb)] {
        mixed = (mixed ^ mixed >> shift).wrapping_mul(factor);
    }
    mixed ^ mixed >> 31
}

fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut words = counter;
    for round in 0..10u32 {
        let keys = [
            key[0].wrapping_add(0x9e37_79b9u32.wrapping_mul(round)),
            key[1].wrapping_add(0xbb67_ae85u32.wrapping_mul(round)),
        ];
        let [first, second, third, fourth] = words;
        let [low_a, high_a] = halves(0xd251_1f53 * u64::from(first));
        let [low_b, high_b] = halves(0xcd9e_8d57 * u64::from(third));
        words = [high_b ^ second ^ keys[0], low_b, high_a ^ fourth ^ keys[1], low_a];
    }
    words
}

/// A seeded permutation of `0..n`.
pub(super) fn permutation(seed: u64, purpose: u32, major: u32, minor: u64, n: usize) -> Vec<usize> {
    let mut words = Words::new(seed, purpose, major, minor);
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        let other = words.below(last as u64 + 1) as usize;
        order.swap(last, other);
    }
    order
}

/// Digest of one lane's ids, written out byte by byte: lane u32, then source u16, shard u32, row u32, little endian; xxh3.
pub(super) fn digest(lane: u32, ids: &[SampleId]) -> u64 {
    let mut bytes: Vec<u8> = lane.to_le_bytes().to_vec();
    for id in ids {
        bytes.extend(id.source.to_le_bytes());
        bytes.extend(id.shard.to_le_bytes());
        bytes.extend(id.row.to_le_bytes());
    }
    xxhash_rust::xxh3::xxh3_64(&bytes)
}

/// Rows of a lane in a whole step.
pub(super) fn rows_of_a_step(shape: &RunShape) -> u64 {
    u64::from(shape.batch) / u64::from(shape.lanes.max(1))
}

/// Positions of one lane in the whole run: one of every so many, dealt out from lane 0 on (rule L2).
pub(super) fn share(shape: &RunShape, lane: u32) -> u64 {
    let lanes = u64::from(shape.lanes.max(1));
    (shape.total_positions + lanes - 1 - u64::from(lane)) / lanes
}

/// Steps of the run: until lane 0, which has most, is through.
pub(super) fn total_steps(shape: &RunShape) -> u64 {
    share(shape, 0).div_ceil(rows_of_a_step(shape).max(1))
}

/// Positions of all lanes in the first `steps` steps.
pub(super) fn positions(shape: &RunShape, steps: u64) -> u64 {
    let until = steps.saturating_mul(rows_of_a_step(shape));
    (0..shape.lanes).map(|lane| share(shape, lane).min(until)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_numbers() {
        // kat_vectors of the Random123 library.
        let published: [([u32; 4], [u32; 2], [u32; 4]); 3] = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            (
                [u32::MAX; 4],
                [u32::MAX; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in published {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn split_mix_gives_the_published_numbers() {
        // The first outputs of splitmix64.c with the state 1234567.
        let state = |n: u64| 1_234_567u64.wrapping_add(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(n));
        assert_eq!(split_mix(state(0)), 6_457_827_717_110_365_317);
        assert_eq!(split_mix(state(1)), 3_203_168_211_198_807_973);
    }

    #[test]
    fn positions_of_a_run_that_does_not_divide_add_up() {
        let shape = RunShape {
            seed: 0,
            sources: Vec::new(),
            batch: 8,
            lanes: 4,
            window_factor: 1,
            total_positions: 58,
        };
        assert_eq!(total_steps(&shape), 8);
        assert_eq!(
            (0..4).map(|lane| share(&shape, lane)).collect::<Vec<_>>(),
            [15, 15, 14, 14]
        );
        assert_eq!(
            [0, 1, 7, 8, 99].map(|steps| positions(&shape, steps)),
            [0, 8, 56, 58, 58]
        );
    }
}
