//! Seeded draws. Every sample draws from its own stream, so its bytes depend on its key alone, never on order or threads.

/// SplitMix64 (Steele, Lea, Flood 2014): small, well mixed, and the same on every machine.
#[derive(Debug, Clone)]
pub(crate) struct Draws(u64);

impl Draws {
    /// A stream for one key; FNV-1a spreads the key's bytes before the first draw.
    pub(crate) fn for_key(key: &str) -> Self {
        let start = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self(start)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..count`; the bias of the remainder is below 2^-40 for the counts used here. 0 when `count` is 0.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        let draw = self.next();
        if count == 0 { 0 } else { (draw % count as u64) as usize }
    }

    /// Uniform in `low..high`.
    pub(crate) fn between(&mut self, low: f32, high: f32) -> f32 {
        let unit = (self.next() >> 40) as f32 / (1_u64 << 24) as f32;
        low + (high - low) * unit
    }

    /// Fisher-Yates.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_same_key_same_stream() {
        let (mut a, mut b, mut c) = (
            Draws::for_key("noto"),
            Draws::for_key("noto"),
            Draws::for_key("noto-v1"),
        );
        let first: Vec<u64> = (0..4).map(|_| a.next()).collect();
        assert_eq!(first, (0..4).map(|_| b.next()).collect::<Vec<_>>());
        assert_ne!(first, (0..4).map(|_| c.next()).collect::<Vec<_>>());
    }

    #[test]
    fn shuffle_any_seed_keeps_the_items() {
        let mut items: Vec<usize> = (0..50).collect();
        Draws::for_key("x").shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
