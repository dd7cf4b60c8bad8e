//! The two passes with the vector instructions of x86-64.
//!
//! A weight has 23 bits and a sign, too many for the fast 16-bit multiplications. Cut in two it fits: with
//! `weight = (high << 12) + low`, one `pmaddwd` gives `a * high_a + b * high_b` of two input pixels, another the same of
//! the low parts, and `(sum_high << 12) + sum_low` is the exact 32-bit sum.
//!
//! The horizontal pass works on blocks of rows, transposed, so that lanes are rows and not three interleaved channels.
#![allow(
    unsafe_code,
    reason = "bytes as vectors, and calls of functions compiled for a detected feature"
)]

use super::kernel::{View, vertical_row_from};
use super::weights::{FRACTION_BITS, LOW_BITS, ONE_HALF, Weights};
use std::arch::x86_64::*;

const FRACTION: i32 = FRACTION_BITS as i32;
const LOW: i32 = LOW_BITS as i32;

/// What differs between the vector widths. `N` bytes fill one vector; in it, `unpack` and `pack` work on groups of 16.
macro_rules! passes {
    (
        $feature:tt, $module:ident, $n:tt, $vector:ty,
        $vertical:ident, $horizontal:ident, $zero:ident, $splat:ident,
        $lo8:ident, $hi8:ident, $madd:ident, $add:ident, $shl:ident, $shr:ident, $pack32:ident, $pack16:ident
    ) => {
        mod $module {
            use super::*;

            const N: usize = $n;

            // By value and not through the load and store intrinsics, whose checks a debug build keeps in the inner loop.
            #[inline]
            #[target_feature(enable = $feature)]
            fn load(bytes: &[u8; N]) -> $vector {
                // SAFETY: both sides are N plain bytes.
                unsafe { std::mem::transmute::<[u8; N], $vector>(*bytes) }
            }

            #[inline]
            #[target_feature(enable = $feature)]
            fn store(bytes: &mut [u8; N], vector: $vector) {
                // SAFETY: both sides are N plain bytes.
                *bytes = unsafe { std::mem::transmute::<$vector, [u8; N]>(vector) };
            }

            #[inline]
            fn at(bytes: &[u8], start: usize) -> &[u8; N] {
                match bytes[start..].first_chunk() {
                    Some(chunk) => chunk,
                    None => unreachable!("callers leave whole vectors"),
                }
            }

            /// Sums of the `N` bytes at `start` over `span` pixels that lie `step` bytes apart, as bytes.
            #[inline]
            #[target_feature(enable = $feature)]
            fn weigh(bytes: &[u8], start: usize, step: usize, span: usize, pairs: &[[i32; 2]]) -> $vector {
                let (zero, half) = ($zero(), $splat(ONE_HALF));
                // By name and not in arrays: these live in registers.
                let (mut h0, mut h1, mut h2, mut h3) = (zero, zero, zero, zero);
                let (mut l0, mut l1, mut l2, mut l3) = (half, half, half, half);
                let mut from = start;
                let mut left = span;
                for [high, low] in pairs {
                    let a = load(at(bytes, from));
                    // The second one of an odd last pair weighs nothing; it need not exist.
                    let b = if left > 1 { load(at(bytes, from + step)) } else { a };
                    let (high, low) = ($splat(*high), $splat(*low));
                    let (lower, upper) = ($lo8(a, b), $hi8(a, b));
                    let (p0, p1) = ($lo8(lower, zero), $hi8(lower, zero));
                    let (p2, p3) = ($lo8(upper, zero), $hi8(upper, zero));
                    h0 = $add(h0, $madd(p0, high));
                    l0 = $add(l0, $madd(p0, low));
                    h1 = $add(h1, $madd(p1, high));
                    l1 = $add(l1, $madd(p1, low));
                    h2 = $add(h2, $madd(p2, high));
                    l2 = $add(l2, $madd(p2, low));
                    h3 = $add(h3, $madd(p3, high));
                    l3 = $add(l3, $madd(p3, low));
                    from = from.wrapping_add(2 * step);
                    left = left.wrapping_sub(2);
                }
                let s0 = $shr::<FRACTION>($add($shl::<LOW>(h0), l0));
                let s1 = $shr::<FRACTION>($add($shl::<LOW>(h1), l1));
                let s2 = $shr::<FRACTION>($add($shl::<LOW>(h2), l2));
                let s3 = $shr::<FRACTION>($add($shl::<LOW>(h3), l3));
                // Packing saturates, first to 16 bits with a sign, then to a byte: the clamp between the passes.
                $pack16($pack32(s0, s1), $pack32(s2, s3))
            }

            #[target_feature(enable = $feature)]
            fn vertical(view: &View<'_>, weights: &Weights, out: &mut [u8]) {
                for (y, row) in out.chunks_exact_mut(view.width * 3).enumerate() {
                    let (first, span, pairs) = weights.pairs_of(y);
                    let start = first * view.stride;
                    let (chunks, rest) = row.as_chunks_mut::<N>();
                    let done = chunks.len() * N;
                    for (i, chunk) in chunks.iter_mut().enumerate() {
                        store(chunk, weigh(view.bytes, start + i * N, view.stride, span, pairs));
                    }
                    if !rest.is_empty() {
                        vertical_row_from(done, y, view, weights, row);
                    }
                }
            }

            /// Transposes 16 by 16 bytes in every group of 16. Each round interleaves halves; four of them move every byte's
            /// row number into its column number.
            #[inline]
            #[target_feature(enable = $feature)]
            fn transpose(v: [$vector; 16]) -> [$vector; 16] {
                interleave(interleave(interleave(interleave(v))))
            }

            #[inline]
            #[target_feature(enable = $feature)]
            fn interleave(v: [$vector; 16]) -> [$vector; 16] {
                let [a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7] = v;
                [
                    $lo8(a0, b0),
                    $hi8(a0, b0),
                    $lo8(a1, b1),
                    $hi8(a1, b1),
                    $lo8(a2, b2),
                    $hi8(a2, b2),
                    $lo8(a3, b3),
                    $hi8(a3, b3),
                    $lo8(a4, b4),
                    $hi8(a4, b4),
                    $lo8(a5, b5),
                    $hi8(a5, b5),
                    $lo8(a6, b6),
                    $hi8(a6, b6),
                    $lo8(a7, b7),
                    $hi8(a7, b7),
                ]
            }

            #[target_feature(enable = $feature)]
            fn horizontal(view: &View<'_>, weights: &Weights, block: &mut Vec<u8>, out: &mut [u8]) {
                let (from_bytes, to_bytes) = (view.width * 3, weights.len() * 3);
                let (from_room, to_room) = (from_bytes.next_multiple_of(16), to_bytes.next_multiple_of(16));
                // Old content may stay: what is read of it goes into bytes that nobody reads.
                block.resize((from_room + to_room) * N, 0);
                let (inputs, outputs) = block.split_at_mut(from_room * N);
                for y in (0..view.height).step_by(N) {
                    let rows = N.min(view.height - y);
                    for x in (0..from_bytes).step_by(16) {
                        let columns = transpose(gather(view, y, rows, x));
                        let columns_out = inputs[x * N..].as_chunks_mut::<N>().0;
                        for (column, vector) in columns_out.iter_mut().zip(columns) {
                            store(column, vector);
                        }
                    }
                    for x in 0..weights.len() {
                        let (first, span, pairs) = weights.pairs_of(x);
                        let start = first * 3 * N;
                        let channels = outputs[x * 3 * N..].as_chunks_mut::<N>().0;
                        for (c, channel) in channels.iter_mut().take(3).enumerate() {
                            store(channel, weigh(inputs, start + c * N, 3 * N, span, pairs));
                        }
                    }
                    for x in (0..to_bytes).step_by(16) {
                        let mut columns = [$zero(); 16];
                        for (i, column) in columns.iter_mut().enumerate() {
                            *column = load(at(outputs, (x + i) * N));
                        }
                        scatter(transpose(columns), out, y, rows, x, to_bytes);
                    }
                }
            }

            /// 16 bytes from `x` on of `N` rows from `y` on: vector `i` has rows `i`, `i + 16`, ... in its groups.
            #[inline]
            #[target_feature(enable = $feature)]
            fn gather(view: &View<'_>, y: usize, rows: usize, x: usize) -> [$vector; 16] {
                let mut vectors = [$zero(); 16];
                for (i, vector) in vectors.iter_mut().enumerate() {
                    let mut bytes = [0u8; N];
                    for (group, to) in bytes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                        // A block's rows that do not exist repeat the last one.
                        let row = view.row(y + (i + 16 * group).min(rows - 1));
                        match row[x..].first_chunk::<16>() {
                            Some(from) => *to = *from,
                            None => to[..row.len() - x].copy_from_slice(&row[x..]),
                        }
                    }
                    *vector = load(&bytes);
                }
                vectors
            }

            /// The way back: writes the rows that exist, up to their end.
            #[inline]
            #[target_feature(enable = $feature)]
            fn scatter(vectors: [$vector; 16], out: &mut [u8], y: usize, rows: usize, x: usize, row_bytes: usize) {
                let n = 16.min(row_bytes - x);
                for (i, vector) in vectors.into_iter().enumerate() {
                    let mut bytes = [0u8; N];
                    store(&mut bytes, vector);
                    for (group, from) in bytes.as_chunks::<16>().0.iter().enumerate() {
                        let row = i + 16 * group;
                        if row < rows {
                            let to = &mut out[(y + row) * row_bytes + x..][..n];
                            match to.first_chunk_mut::<16>() {
                                Some(to) => *to = *from,
                                None => to.copy_from_slice(&from[..n]),
                            }
                        }
                    }
                }
            }

            pub(in super::super) fn $vertical(view: &View<'_>, weights: &Weights, out: &mut [u8]) {
                assert!(
                    std::is_x86_feature_detected!($feature),
                    "this machine lacks {}",
                    $feature
                );
                // SAFETY: the feature is there.
                unsafe { vertical(view, weights, out) }
            }

            pub(in super::super) fn $horizontal(
                view: &View<'_>,
                weights: &Weights,
                block: &mut Vec<u8>,
                out: &mut [u8],
            ) {
                assert!(
                    std::is_x86_feature_detected!($feature),
                    "this machine lacks {}",
                    $feature
                );
                // SAFETY: the feature is there.
                unsafe { horizontal(view, weights, block, out) }
            }
        }
        pub(super) use $module::{$horizontal, $vertical};
    };
}

passes!(
    "sse4.1",
    sse41,
    16,
    __m128i,
    vertical_sse41,
    horizontal_sse41,
    _mm_setzero_si128,
    _mm_set1_epi32,
    _mm_unpacklo_epi8,
    _mm_unpackhi_epi8,
    _mm_madd_epi16,
    _mm_add_epi32,
    _mm_slli_epi32,
    _mm_srai_epi32,
    _mm_packs_epi32,
    _mm_packus_epi16
);
passes!(
    "avx2",
    avx2,
    32,
    __m256i,
    vertical_avx2,
    horizontal_avx2,
    _mm256_setzero_si256,
    _mm256_set1_epi32,
    _mm256_unpacklo_epi8,
    _mm256_unpackhi_epi8,
    _mm256_madd_epi16,
    _mm256_add_epi32,
    _mm256_slli_epi32,
    _mm256_srai_epi32,
    _mm256_packs_epi32,
    _mm256_packus_epi16
);
