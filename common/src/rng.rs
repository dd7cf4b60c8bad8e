//! Counter-based random numbers: every choice is a function of its key, so no generator belongs to a rank.
//!
//! Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

/// What a random choice is for; part of its key, so that two choices about one sample never share numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Order of the shards of a pass; keyed by (seed, source, pass).
    ShardOrder = 1,
    /// Order of the rows of a window; keyed by (seed, lane, window).
    WindowOrder = 2,
    /// Box of a random resized crop; keyed by (seed, lane, position).
    Crop = 3,
    /// Which of several captions; keyed by (seed, lane, position).
    Caption = 4,
    /// Colour changes; keyed by (seed, lane, position).
    Color = 5,
    /// Initial weights; keyed by (seed, tensor).
    Init = 6,
    /// Jitter of retries and the like, which never reaches a trained number.
    Jitter = 7,
    /// Which patches are dropped; keyed by (seed, lane, position).
    PatchDropout = 8,
    /// Which tokens of a caption that is too long stay; keyed by (seed, lane, position).
    TokenMask = 9,
}

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds of Philox 4x32.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The stream of numbers of one key. Cheap to make; two equal keys give equal streams on every machine.
#[derive(Clone, Debug)]
pub struct Draws {
    key: [u32; 2],
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
}

impl Draws {
    /// The draws for `purpose` keyed by (`seed`, `major`, `minor`): major is a lane, source or tensor, minor a position,
    /// pass or window.
    #[must_use]
    pub fn new(seed: u64, purpose: Purpose, major: u32, minor: u64) -> Self {
        // The purpose sits in the counter's last word beside the major key's low bits' mix; the first word counts blocks.
        let mixed = crate::hash::mix64(seed ^ (u64::from(purpose as u32) << 56) ^ u64::from(major));
        Self {
            key: [mixed as u32, (mixed >> 32) as u32],
            counter: [0, minor as u32, (minor >> 32) as u32, major ^ ((purpose as u32) << 24)],
            block: [0; 4],
            used: 4,
        }
    }

    /// Next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.block = philox(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        let value = self.block[self.used];
        self.used += 1;
        value
    }

    /// Next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) << 32 | u64::from(self.next_u32())
    }

    /// Uniform in `[0, 1)` with 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `[low, high)`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in `0..bound`, without bias (Lemire's multiply and reject); 0 when `bound` is 0 or 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound <= 1 {
            return 0;
        }
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            if (product as u64) >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// A seeded permutation of `0..n` (Fisher and Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i as u64 + 1) as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_known_inputs_give_the_published_words() {
        // Known-answer vectors of the Random123 distribution.
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn draws_of_different_keys_differ_and_of_equal_keys_agree() {
        let first = |seed, purpose, major, minor| Draws::new(seed, purpose, major, minor).next_u64();
        let base = first(1, Purpose::Crop, 2, 3);
        assert_eq!(base, first(1, Purpose::Crop, 2, 3));
        for other in [
            first(2, Purpose::Crop, 2, 3),
            first(1, Purpose::Caption, 2, 3),
            first(1, Purpose::Crop, 3, 3),
            first(1, Purpose::Crop, 2, 4),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn permutation_of_any_length_holds_every_index_once() {
        for n in [0usize, 1, 2, 7, 1000] {
            let mut order = Draws::new(9, Purpose::ShardOrder, 0, n as u64).permutation(n);
            order.sort_unstable();
            assert!(order.iter().enumerate().all(|(i, v)| i as u32 == *v));
        }
    }

    #[test]
    fn below_small_bound_is_close_to_uniform() {
        let mut draws = Draws::new(5, Purpose::Color, 0, 0);
        let mut counts = [0u32; 6];
        for _ in 0..60_000 {
            counts[draws.below(6) as usize] += 1;
        }
        assert!(counts.iter().all(|c| (9_500..10_500).contains(c)), "{counts:?}");
    }
}
