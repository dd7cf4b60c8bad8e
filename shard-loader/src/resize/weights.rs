//! What every input pixel of an axis weighs in every output pixel, in Pillow's fixed point.

use std::ops::Range;

/// Fractional bits of a weight: 32 less 8 for a byte, less 2 for the filter's overshoot.
pub(super) const FRACTION_BITS: u32 = 22;
/// What every sum starts from, so that the shift back rounds.
pub(super) const ONE_HALF: i32 = 1 << (FRACTION_BITS - 1);
/// Bits of the lower one of the two parts that a weight is cut into: both then fit 16 bits with their signs, which is what
/// the machine multiplies and adds in pairs. `weight = (high << LOW_BITS) + low`, exactly.
pub(super) const LOW_BITS: u32 = 12;

/// What a resized pixel is made of; both are antialiased when a picture shrinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filter {
    /// Four neighbours along each axis: Keys' cubic with a = -0.5.
    #[default]
    Bicubic,
    /// Two neighbours along each axis.
    Bilinear,
}

impl Filter {
    /// Beyond this it is zero, in input pixels when enlarging.
    fn support(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Bilinear => 1.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Bicubic => bicubic(x),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
        }
    }
}

/// Weights of every output pixel along one axis.
#[derive(Debug, Default)]
pub(super) struct Weights {
    /// (first input pixel, number of input pixels) per output pixel, relative to the first that any of them needs.
    pub(super) spans: Vec<(usize, usize)>,
    /// `taps` weights per output pixel, zero beyond its span.
    pub(super) values: Vec<i32>,
    pub(super) taps: usize,
    /// The same weights two by two, as (two high parts, two low parts); `pairs_per_pixel` of them per output pixel.
    pairs: Vec<[i32; 2]>,
    pairs_per_pixel: usize,
    exact: Vec<f64>,
}

impl Weights {
    /// Weights of the output pixels `part` of an axis of `from` pixels that becomes `to`; gives the input pixels that they
    /// need, to whose first one the spans are relative.
    pub(super) fn prepare(&mut self, filter: Filter, from: usize, to: usize, part: Range<usize>) -> Range<usize> {
        let scale = from as f64 / to as f64;
        // Enlarging interpolates between neighbours; shrinking widens the filter so that every input pixel counts.
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        self.taps = support.ceil() as usize * 2 + 1;
        self.spans.clear();
        self.values.clear();
        self.values.resize(self.taps * part.len(), 0);
        self.exact.resize(self.taps, 0.0);
        for (i, values) in part.zip(self.values.chunks_exact_mut(self.taps)) {
            let center = (i as f64 + 0.5) * scale;
            // Truncation towards zero, then clamping: the order matters at the left edge.
            let first = ((center - support + 0.5) as i64).max(0) as usize;
            let last = ((center + support + 0.5) as i64).min(from as i64) as usize;
            let span = last - first;
            let exact = &mut self.exact[..span];
            for (k, weight) in exact.iter_mut().enumerate() {
                *weight = filter.weight(((k + first) as f64 - center + 0.5) * (1.0 / stretch));
            }
            let sum: f64 = exact.iter().fold(0.0, |sum, weight| sum + weight);
            for (value, weight) in values.iter_mut().zip(exact) {
                let share = if sum == 0.0 { *weight } else { *weight / sum };
                // Half away from zero.
                let half = if share < 0.0 { -0.5 } else { 0.5 };
                *value = (share * f64::from(1u32 << FRACTION_BITS) + half) as i32;
            }
            self.spans.push((first, span));
        }
        self.pair_up();
        // Spans move to the right only, at both ends.
        let start = self.spans.first().map_or(0, |(first, _)| *first);
        let end = self.spans.last().map_or(start, |(first, span)| first + span);
        for (first, _) in &mut self.spans {
            *first -= start;
        }
        start..end
    }

    fn pair_up(&mut self) {
        self.pairs_per_pixel = self.taps.div_ceil(2);
        self.pairs.clear();
        for values in self.values.chunks_exact(self.taps) {
            self.pairs.extend(values.chunks(2).map(|two| {
                let (a, b) = (split(two[0]), split(two.get(1).copied().unwrap_or(0)));
                [both(a.0, b.0), both(a.1, b.1)]
            }));
        }
    }

    /// Output pixels.
    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }

    /// First input pixel and weights of output pixel `i`.
    pub(super) fn of(&self, i: usize) -> (usize, &[i32]) {
        let (first, span) = self.spans[i];
        (first, &self.values[i * self.taps..][..span])
    }

    /// First input pixel, number of input pixels and weights in pairs of output pixel `i`. Of an odd number the last pair's
    /// second weight is zero.
    pub(super) fn pairs_of(&self, i: usize) -> (usize, usize, &[[i32; 2]]) {
        let (first, span) = self.spans[i];
        (first, span, &self.pairs[i * self.pairs_per_pixel..][..span.div_ceil(2)])
    }
}

/// A weight's parts, the high one and the low one in -2048..=2047.
fn split(weight: i32) -> (i16, i16) {
    let high = (weight + (1 << (LOW_BITS - 1))) >> LOW_BITS;
    let low = weight - (high << LOW_BITS);
    debug_assert!(i16::try_from(high).is_ok() && i16::try_from(low).is_ok());
    (high as i16, low as i16)
}

/// Two 16-bit numbers as they lie in one 32-bit lane.
fn both(a: i16, b: i16) -> i32 {
    i32::from(a as u16) | (i32::from(b) << 16)
}

/// The bicubic filter with a = -0.5 (Keys 1981), zero beyond 2.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn split_any_weight_is_put_together_again(weight in -(1i32 << 24)..(1 << 24)) {
            let (high, low) = split(weight);
            prop_assert_eq!((i32::from(high) << LOW_BITS) + i32::from(low), weight);
        }

        #[test]
        fn weights_of_any_axis_stay_inside_it_and_sum_to_one(
            from in 1usize..3000, to in 1usize..400, bilinear in any::<bool>(),
        ) {
            let mut weights = Weights::default();
            let filter = if bilinear { Filter::Bilinear } else { Filter::Bicubic };
            let needed = weights.prepare(filter, from, to, 0..to);
            prop_assert!(needed.end <= from && needed.start == 0);
            for i in 0..to {
                let (first, values) = weights.of(i);
                prop_assert!(first + values.len() <= needed.len());
                let sum: i64 = values.iter().map(|v| i64::from(*v)).sum();
                // Each weight is rounded by at most one half.
                prop_assert!((sum - (1 << FRACTION_BITS)).abs() <= values.len() as i64, "{sum}");
            }
        }
    }
}
