//! The two passes with the dot products of AVX-512: four taps of sixteen bytes at once.
//!
//! A weight of 23 bits and a sign is three signed bytes, `(a << 16) + (b << 8) + c`; the machine multiplies bytes by signed
//! bytes, adds four neighbours and a 32-bit sum exactly. In the horizontal pass lanes are the channels of up to five output
//! pixels of one row; which four taps each lane takes from the 64 bytes at hand is one shuffle, the same for every row.
#![allow(
    unsafe_code,
    reason = "calls of functions compiled for detected features, and loads that a mask keeps inside their row"
)]

use super::kernel::View;
use super::weights::{FRACTION_BITS, ONE_HALF, Weights};
use std::arch::x86_64::*;

/// Most output pixels of one vector of sixteen lanes; the last lane is idle.
const PIXELS_MAX: usize = 5;
/// Fewer are not worth it: too many lanes would be idle.
const PIXELS_MIN: usize = 3;
/// Rows that go through one set of weights together.
const ROWS: usize = 4;
/// Bytes of a row that one shuffle can reach.
const REACH: usize = 64;

/// One product: which bytes of the row go into it, and what they weigh.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct Taps {
    /// Byte of the 64 for each of a lane's four taps.
    from: [u8; 64],
    /// High, middle and low part of the weights.
    parts: [[i8; 64]; 3],
    /// First byte of the row that is loaded.
    at: usize,
}

/// The products of all output pixels, a few at a time.
#[derive(Debug, Default)]
pub(super) struct Plan {
    taps: Vec<Taps>,
    /// End of each few's products in `taps`.
    ends: Vec<usize>,
    /// How many output pixels a few are.
    pixels: usize,
}

impl Plan {
    /// Makes the plan of `weights`; false where neighbours are too far apart for one shuffle, as when a picture shrinks to less
    /// than an eighth.
    pub(super) fn prepare(&mut self, weights: &Weights) -> bool {
        (PIXELS_MIN..=PIXELS_MAX)
            .rev()
            .any(|pixels| self.prepare_by(pixels, weights))
    }

    fn prepare_by(&mut self, few: usize, weights: &Weights) -> bool {
        self.pixels = few;
        self.taps.clear();
        self.ends.clear();
        for first in (0..weights.len()).step_by(few) {
            let pixels = first..(first + few).min(weights.len());
            let span_max = pixels.clone().map(|x| weights.of(x).1.len()).max().unwrap_or(0);
            for tap in (0..span_max).step_by(4) {
                let at = 3 * (weights.of(first).0 + tap);
                let mut taps = Taps {
                    from: [0; 64],
                    parts: [[0; 64]; 3],
                    at,
                };
                for (lane, (x, channel)) in pixels.clone().flat_map(|x| [(x, 0), (x, 1), (x, 2)]).enumerate() {
                    let (start, values) = weights.of(x);
                    for (k, weight) in values.iter().skip(tap).take(4).enumerate() {
                        let byte = 3 * (start + tap + k) + channel - at;
                        if byte >= REACH {
                            return false;
                        }
                        taps.from[lane * 4 + k] = byte as u8;
                        for (part, value) in taps.parts.iter_mut().zip(split(*weight)) {
                            part[lane * 4 + k] = value;
                        }
                    }
                }
                self.taps.push(taps);
            }
            self.ends.push(self.taps.len());
        }
        true
    }
}

/// A weight's three signed bytes.
fn split(weight: i32) -> [i8; 3] {
    let low = weight as i8;
    let rest = (weight - i32::from(low)) >> 8;
    let middle = rest as i8;
    let high = (rest - i32::from(middle)) >> 8;
    debug_assert!(i8::try_from(high).is_ok());
    [high as i8, middle, low]
}

/// Whether this machine has what the pass needs.
pub(super) fn available() -> bool {
    std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512vbmi")
        && std::is_x86_feature_detected!("avx512vnni")
}

/// The horizontal pass over `view` into `out`, rows of `weights.len()` pixels; false, with nothing written, where `plan` cannot
/// hold the weights.
pub(super) fn horizontal(view: &View<'_>, weights: &Weights, plan: &mut Plan, out: &mut [u8]) -> bool {
    assert!(available(), "this machine lacks avx512vnni or avx512vbmi");
    if !plan.prepare(weights) {
        return false;
    }
    let row_bytes = weights.len() * 3;
    for (y, rows) in (0..view.height).step_by(ROWS).zip(out.chunks_mut(ROWS * row_bytes)) {
        // A block's rows that do not exist repeat its first one, into room that nobody reads.
        let from: [&[u8]; ROWS] = std::array::from_fn(|i| view.row(if y + i < view.height { y + i } else { y }));
        // SAFETY: the features are there.
        unsafe { block(&from, plan, row_bytes, rows) };
    }
    true
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn block(from: &[&[u8]; ROWS], plan: &Plan, row_bytes: usize, out: &mut [u8]) {
    let mut first = 0;
    for (few, end) in plan.ends.iter().enumerate() {
        let (zero, half) = (_mm512_setzero_si512(), _mm512_set1_epi32(ONE_HALF));
        let mut high = [zero; ROWS];
        let mut middle = [zero; ROWS];
        let mut low = [half; ROWS];
        for taps in &plan.taps[first..*end] {
            let shuffle = vector(&taps.from);
            let weights = [weigh(&taps.parts[0]), weigh(&taps.parts[1]), weigh(&taps.parts[2])];
            for (i, row) in from.iter().enumerate() {
                let bytes = _mm512_permutexvar_epi8(shuffle, load(row, taps.at));
                high[i] = _mm512_dpbusd_epi32(high[i], bytes, weights[0]);
                middle[i] = _mm512_dpbusd_epi32(middle[i], bytes, weights[1]);
                low[i] = _mm512_dpbusd_epi32(low[i], bytes, weights[2]);
            }
        }
        first = *end;
        let at = few * plan.pixels * 3;
        for (i, row) in out.chunks_exact_mut(row_bytes).enumerate() {
            let upper = _mm512_add_epi32(_mm512_slli_epi32::<8>(high[i]), middle[i]);
            let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(upper), low[i]);
            let whole = _mm512_srai_epi32::<{ FRACTION_BITS }>(sum);
            // Narrowing saturates as if without a sign, so what is below zero goes first.
            let narrow = _mm512_cvtusepi32_epi8(_mm512_max_epi32(whole, zero));
            // SAFETY: both sides are sixteen plain bytes.
            let bytes = unsafe { std::mem::transmute::<__m128i, [u8; 16]>(narrow) };
            // What idle lanes leave is written over by the next few.
            match row[at..].first_chunk_mut::<16>() {
                Some(to) => *to = bytes,
                None => store_part(&bytes, &mut row[at..]),
            }
        }
    }
}

/// The vertical pass over `view` into `out`, rows of the view's width.
pub(super) fn vertical(view: &View<'_>, weights: &Weights, out: &mut [u8]) {
    assert!(available(), "this machine lacks avx512vnni or avx512vbmi");
    let mut parts = Vec::with_capacity(weights.taps.div_ceil(4));
    for (y, row) in out.chunks_exact_mut(view.width * 3).enumerate() {
        let (first, values) = weights.of(y);
        parts.clear();
        parts.extend(values.chunks(4).map(four_parts));
        let source = &view.bytes[first * view.stride..];
        for (i, chunk) in row.chunks_mut(64).enumerate() {
            // SAFETY: the features are there.
            let bytes = unsafe { vertical_chunk(source, view.stride, i * 64, values.len(), &parts) };
            match chunk.first_chunk_mut::<64>() {
                Some(to) => *to = bytes,
                None => chunk.copy_from_slice(&bytes[..chunk.len()]),
            }
        }
    }
}

/// 64 bytes of an output row: sums over `taps` rows of `source` from byte `at` on. Beyond a row's end stands nothing of use.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn vertical_chunk(source: &[u8], stride: usize, at: usize, taps: usize, parts: &[[i32; 3]]) -> [u8; 64] {
    let (zero, half) = (_mm512_setzero_si512(), _mm512_set1_epi32(ONE_HALF));
    let (mut high, mut middle, mut low) = ([zero; 4], [zero; 4], [half; 4]);
    for (k, parts) in parts.iter().enumerate() {
        // A tap that does not exist weighs nothing; any row will do for it.
        let row = |j: usize| &source[(4 * k + j).min(taps - 1) * stride..];
        let (a, b, c, d) = (load(row(0), at), load(row(1), at), load(row(2), at), load(row(3), at));
        let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
        let (ab_up, cd_up) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
        let bytes = [
            _mm512_unpacklo_epi16(ab, cd),
            _mm512_unpackhi_epi16(ab, cd),
            _mm512_unpacklo_epi16(ab_up, cd_up),
            _mm512_unpackhi_epi16(ab_up, cd_up),
        ];
        let weights = parts.map(|part| _mm512_set1_epi32(part));
        for (j, bytes) in bytes.into_iter().enumerate() {
            high[j] = _mm512_dpbusd_epi32(high[j], bytes, weights[0]);
            middle[j] = _mm512_dpbusd_epi32(middle[j], bytes, weights[1]);
            low[j] = _mm512_dpbusd_epi32(low[j], bytes, weights[2]);
        }
    }
    // A loop and no closure, which would be called four times and spill all sums on the way.
    let mut whole = [zero; 4];
    for (j, whole) in whole.iter_mut().enumerate() {
        let upper = _mm512_add_epi32(_mm512_slli_epi32::<8>(high[j]), middle[j]);
        let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(upper), low[j]);
        *whole = _mm512_srai_epi32::<{ FRACTION_BITS }>(sum);
    }
    // Packing undoes the interleaving and saturates, first to 16 bits with a sign, then to a byte.
    let lower = _mm512_packs_epi32(whole[0], whole[1]);
    let upper = _mm512_packs_epi32(whole[2], whole[3]);
    // SAFETY: both sides are 64 plain bytes.
    unsafe { std::mem::transmute::<__m512i, [u8; 64]>(_mm512_packus_epi16(lower, upper)) }
}

/// Up to four weights as three words of four signed bytes, high parts first.
fn four_parts(four: &[i32]) -> [i32; 3] {
    let mut parts = [[0u8; 4]; 3];
    for (k, weight) in four.iter().enumerate() {
        for (part, value) in parts.iter_mut().zip(split(*weight)) {
            part[k] = value as u8;
        }
    }
    parts.map(i32::from_le_bytes)
}

/// The first bytes, as many as there is room for: two stores of a fixed size where a call would cost more than the row's end.
#[inline]
fn store_part(bytes: &[u8; 16], to: &mut [u8]) {
    let n = to.len();
    if n >= 8 {
        to[..8].copy_from_slice(&bytes[..8]);
        to[n - 8..].copy_from_slice(&bytes[n - 8..n]);
    } else {
        to.copy_from_slice(&bytes[..n]);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn vector(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: both sides are 64 plain bytes.
    unsafe { std::mem::transmute::<[u8; 64], __m512i>(*bytes) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn weigh(bytes: &[i8; 64]) -> __m512i {
    // SAFETY: both sides are 64 plain bytes.
    unsafe { std::mem::transmute::<[i8; 64], __m512i>(*bytes) }
}

/// 64 bytes of the row from `at` on, zero beyond its end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(row: &[u8], at: usize) -> __m512i {
    match row[at..].first_chunk::<64>() {
        Some(bytes) => vector(bytes),
        None => {
            let mask = (1u64 << (row.len() - at)) - 1;
            // SAFETY: the mask leaves out what lies beyond the row.
            unsafe { _mm512_maskz_loadu_epi8(mask, row[at..].as_ptr().cast()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resize::weights::Filter;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn split_any_weight_is_put_together_again(weight in -(1i32 << 23)..(1 << 23) - (1 << 16)) {
            let [high, middle, low] = split(weight).map(i32::from);
            prop_assert_eq!((((high << 8) + middle) << 8) + low, weight);
        }
    }

    #[test]
    fn plan_of_pixels_too_far_apart_takes_fewer_or_is_refused() {
        let (mut weights, mut plan) = (Weights::default(), Plan::default());
        for (from, pixels) in [(100, 5), (400, 5), (500, 4), (800, 3)] {
            weights.prepare(Filter::Bicubic, from, 100, 0..100);
            assert!(plan.prepare(&weights) && plan.pixels == pixels, "{from}");
        }
        weights.prepare(Filter::Bicubic, 900, 100, 0..100);
        assert!(!plan.prepare(&weights));
    }
}
