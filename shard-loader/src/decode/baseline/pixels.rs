//! Coefficients to pixels with AVX2: the inverse transform, the colours between their samples, and RGB. Every sum and every
//! rounding is libjpeg's, so that the bytes are its bytes.
#![allow(unsafe_code, reason = "bytes as vectors")]

use std::arch::x86_64::*;

/// Coefficients of two blocks side by side: eight rows of sixteen, and room for any byte as the place of one of the second.
pub(super) const ROOM_OF_PAIR: usize = 8 + 256;

/// The transform's constants, times 2^13.
const F_0_298: i32 = 2446;
const F_0_390: i32 = 3196;
const F_0_541: i32 = 4433;
const F_0_765: i32 = 6270;
const F_0_899: i32 = 7373;
const F_1_175: i32 = 9633;
const F_1_501: i32 = 12_299;
const F_1_847: i32 = 15_137;
const F_1_961: i32 = 16_069;
const F_2_053: i32 = 16_819;
const F_2_562: i32 = 20_995;
const F_3_072: i32 = 25_172;
/// Their fraction, that which the first pass leaves in, and the transform's own factor of eight.
const CONST_BITS: i32 = 13;
const PASS_BITS: i32 = 2;
const FIRST: i32 = CONST_BITS - PASS_BITS;
const SECOND: i32 = CONST_BITS + PASS_BITS + 3;

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: both sides are 32 plain bytes.
    unsafe { std::mem::transmute::<[u8; 32], __m256i>(*bytes) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_words(words: &[i16; 16]) -> __m256i {
    // SAFETY: both sides are 32 plain bytes.
    unsafe { std::mem::transmute::<[i16; 16], __m256i>(*words) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn bytes_of(vector: __m256i) -> [u8; 32] {
    // SAFETY: both sides are 32 plain bytes.
    unsafe { std::mem::transmute::<__m256i, [u8; 32]>(vector) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn words_of(vector: __m256i) -> [i16; 16] {
    // SAFETY: both sides are 32 plain bytes.
    unsafe { std::mem::transmute::<__m256i, [i16; 16]>(vector) }
}

/// Two factors for neighbouring words.
#[inline]
#[target_feature(enable = "avx2")]
fn two(a: i32, b: i32) -> __m256i {
    _mm256_set1_epi32((a & 0xffff) | (b << 16))
}

/// The lower or upper four words of each half of `a` and `b`, in turns.
#[inline]
#[target_feature(enable = "avx2")]
fn turns(upper: bool, a: __m256i, b: __m256i) -> __m256i {
    if upper {
        _mm256_unpackhi_epi16(a, b)
    } else {
        _mm256_unpacklo_epi16(a, b)
    }
}

/// One pass for four of eight columns in 32 bits: the eight outputs, descaled.
#[inline]
#[target_feature(enable = "avx2")]
fn half<const SHIFT: i32>(upper: bool, r: &[__m256i; 8]) -> [__m256i; 8] {
    let round = _mm256_set1_epi32(1 << (SHIFT - 1));
    let zero = _mm256_setzero_si256();
    let r26 = turns(upper, r[2], r[6]);
    let t2 = _mm256_madd_epi16(r26, two(F_0_541, F_0_541 - F_1_847));
    let t3 = _mm256_madd_epi16(r26, two(F_0_541 + F_0_765, F_0_541));
    // Above a word of nothing, a word is times 2^16.
    let scaled = |sum: __m256i| _mm256_srai_epi32::<{ 16 - CONST_BITS }>(turns(upper, zero, sum));
    let t0 = _mm256_add_epi32(scaled(_mm256_add_epi16(r[0], r[4])), round);
    let t1 = _mm256_add_epi32(scaled(_mm256_sub_epi16(r[0], r[4])), round);
    let (e0, e3) = (_mm256_add_epi32(t0, t3), _mm256_sub_epi32(t0, t3));
    let (e1, e2) = (_mm256_add_epi32(t1, t2), _mm256_sub_epi32(t1, t2));

    let z34 = turns(upper, _mm256_add_epi16(r[7], r[3]), _mm256_add_epi16(r[5], r[1]));
    let z3 = _mm256_madd_epi16(z34, two(F_1_175 - F_1_961, F_1_175));
    let z4 = _mm256_madd_epi16(z34, two(F_1_175, F_1_175 - F_0_390));
    let (r71, r53) = (turns(upper, r[7], r[1]), turns(upper, r[5], r[3]));
    let odd = |words: __m256i, a: i32, b: i32, z: __m256i| _mm256_add_epi32(_mm256_madd_epi16(words, two(a, b)), z);
    let o0 = odd(r71, F_0_298 - F_0_899, -F_0_899, z3);
    let o1 = odd(r53, F_2_053 - F_2_562, -F_2_562, z4);
    let o2 = odd(r53, -F_2_562, F_3_072 - F_2_562, z3);
    let o3 = odd(r71, -F_0_899, F_1_501 - F_0_899, z4);
    [
        _mm256_srai_epi32::<SHIFT>(_mm256_add_epi32(e0, o3)),
        _mm256_srai_epi32::<SHIFT>(_mm256_add_epi32(e1, o2)),
        _mm256_srai_epi32::<SHIFT>(_mm256_add_epi32(e2, o1)),
        _mm256_srai_epi32::<SHIFT>(_mm256_add_epi32(e3, o0)),
        _mm256_srai_epi32::<SHIFT>(_mm256_sub_epi32(e3, o0)),
        _mm256_srai_epi32::<SHIFT>(_mm256_sub_epi32(e2, o1)),
        _mm256_srai_epi32::<SHIFT>(_mm256_sub_epi32(e1, o2)),
        _mm256_srai_epi32::<SHIFT>(_mm256_sub_epi32(e0, o3)),
    ]
}

/// One pass over the columns of both blocks.
#[inline]
#[target_feature(enable = "avx2")]
fn pass<const SHIFT: i32>(rows: &[__m256i; 8]) -> [__m256i; 8] {
    let (lower, upper) = (half::<SHIFT>(false, rows), half::<SHIFT>(true, rows));
    let mut out = [_mm256_setzero_si256(); 8];
    for ((out, a), b) in out.iter_mut().zip(lower).zip(upper) {
        *out = _mm256_packs_epi32(a, b);
    }
    out
}

/// Rows become columns, in both blocks.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(r: [__m256i; 8]) -> [__m256i; 8] {
    // Three rounds of taking turns with the row four further.
    let round = |r: [__m256i; 8]| {
        let [a, b, c, d, e, f, g, h] = r;
        [
            turns(false, a, e),
            turns(true, a, e),
            turns(false, b, f),
            turns(true, b, f),
            turns(false, c, g),
            turns(true, c, g),
            turns(false, d, h),
            turns(true, d, h),
        ]
    };
    round(round(round(r)))
}

/// The inverse transform of two blocks, which are zero afterwards, to eight rows of eight pixels of each.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn inverse(pair: &mut [i16; ROOM_OF_PAIR], out: &mut [[u8; 16]; 8]) {
    let zero = _mm256_setzero_si256();
    let mut rows = [zero; 8];
    for (row, words) in rows.iter_mut().zip(pair.as_chunks_mut::<16>().0) {
        *row = load_words(words);
        *words = [0; 16];
    }
    let rows = transpose(pass::<SECOND>(&transpose(pass::<FIRST>(&rows))));
    let center = _mm256_set1_epi8(-128);
    for (out, rows) in out.as_chunks_mut::<2>().0.iter_mut().zip(rows.as_chunks::<2>().0) {
        // Row and next row of the first block, then of the second.
        let both = _mm256_xor_si256(_mm256_packs_epi16(rows[0], rows[1]), center);
        let sorted = bytes_of(_mm256_permute4x64_epi64::<0b11_01_10_00>(both));
        out[0].copy_from_slice(&sorted[..16]);
        out[1].copy_from_slice(&sorted[16..]);
    }
}

/// Room beyond a row's end that vectors may read and write.
pub(super) const SLACK: usize = 64;

/// Colours of a row at every second pixel to every pixel, as libjpeg's "fancy upsampling" has it: three parts of what is
/// near, one of what is far, down and across. `near` and `far` are the colour rows by distance, of `width` samples and
/// [`SLACK`]; `out` gets twice as many. `sums` is room.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn interpolate(near: &[u8], far: &[u8], width: usize, sums: &mut [i16], out: &mut [u8]) {
    let zero = _mm256_setzero_si256();
    let three = _mm256_set1_epi16(3);
    let chunks = near.as_chunks::<32>().0.iter().zip(far.as_chunks::<32>().0);
    // One sum is before the first, so that it has a neighbour.
    for ((near, far), sums) in chunks.zip(sums[1..].as_chunks_mut::<32>().0).take(width.div_ceil(32)) {
        let near = _mm256_permute4x64_epi64::<0b11_01_10_00>(load(near));
        let far = _mm256_permute4x64_epi64::<0b11_01_10_00>(load(far));
        let sum = |near: __m256i, far: __m256i| words_of(_mm256_add_epi16(_mm256_mullo_epi16(near, three), far));
        let lower = sum(_mm256_unpacklo_epi8(near, zero), _mm256_unpacklo_epi8(far, zero));
        let upper = sum(_mm256_unpackhi_epi8(near, zero), _mm256_unpackhi_epi8(far, zero));
        sums[..16].copy_from_slice(&lower);
        sums[16..].copy_from_slice(&upper);
    }
    sums[0] = sums[1];
    sums[width + 1] = sums[width];
    let (seven, eight) = (_mm256_set1_epi16(7), _mm256_set1_epi16(8));
    let neighbours = sums.as_chunks::<16>().0.iter().zip(sums[1..].as_chunks::<16>().0);
    let neighbours = neighbours.zip(sums[2..].as_chunks::<16>().0);
    for (out, ((left, here), right)) in out
        .as_chunks_mut::<32>()
        .0
        .iter_mut()
        .zip(neighbours)
        .take(width.div_ceil(16))
    {
        let here = _mm256_mullo_epi16(load_words(here), three);
        let even = _mm256_add_epi16(_mm256_add_epi16(here, load_words(left)), eight);
        let odd = _mm256_add_epi16(_mm256_add_epi16(here, load_words(right)), seven);
        // Even pixels in the low bytes, odd ones in the high.
        let high = _mm256_andnot_si256(_mm256_set1_epi16(255), _mm256_slli_epi16::<4>(odd));
        *out = bytes_of(_mm256_or_si256(_mm256_srli_epi16::<4>(even), high));
    }
}

/// A row of brightness and two colours to RGB, as many pixels as `out` has room for; the others have [`SLACK`].
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn row_to_rgb(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    let planes = y
        .as_chunks::<32>()
        .0
        .iter()
        .zip(cb.as_chunks::<32>().0)
        .zip(cr.as_chunks::<32>().0);
    for (((y, cb), cr), out) in planes.zip(out.chunks_mut(96)) {
        let rgb = to_rgb(load(y), load(cb), load(cr));
        match out.first_chunk_mut::<96>() {
            Some(out) => *out = interleave(rgb),
            None => out.copy_from_slice(&interleave(rgb)[..out.len()]),
        }
    }
}

/// 32 pixels of each colour.
#[inline]
#[target_feature(enable = "avx2")]
fn to_rgb(y: __m256i, cb: __m256i, cr: __m256i) -> [__m256i; 3] {
    let zero = _mm256_setzero_si256();
    let lower = to_rgb_words(
        _mm256_unpacklo_epi8(y, zero),
        _mm256_unpacklo_epi8(cb, zero),
        _mm256_unpacklo_epi8(cr, zero),
    );
    let upper = to_rgb_words(
        _mm256_unpackhi_epi8(y, zero),
        _mm256_unpackhi_epi8(cb, zero),
        _mm256_unpackhi_epi8(cr, zero),
    );
    [
        _mm256_packus_epi16(lower[0], upper[0]),
        _mm256_packus_epi16(lower[1], upper[1]),
        _mm256_packus_epi16(lower[2], upper[2]),
    ]
}

/// `R = Y + 1.402 Cr`, `G = Y - 0.344 Cb - 0.714 Cr`, `B = Y + 1.772 Cb` with 16-bit fractions, rounded; whole multiples are
/// taken out so that what is left fits 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn to_rgb_words(y: __m256i, cb: __m256i, cr: __m256i) -> [__m256i; 3] {
    let center = _mm256_set1_epi16(128);
    let (cb, cr) = (_mm256_sub_epi16(cb, center), _mm256_sub_epi16(cr, center));
    let one = _mm256_set1_epi16(1);
    // Twice the number by the factor, the high word, and half of that with one added: the product rounded to whole numbers.
    let times = |twice: __m256i, factor: i16| {
        let high = _mm256_mulhi_epi16(twice, _mm256_set1_epi16(factor));
        _mm256_srai_epi16::<1>(_mm256_add_epi16(high, one))
    };
    let (cb2, cr2) = (_mm256_add_epi16(cb, cb), _mm256_add_epi16(cr, cr));
    let r = _mm256_add_epi16(_mm256_add_epi16(y, cr), times(cr2, (91_881 - 65_536) as i16));
    let b = _mm256_add_epi16(_mm256_add_epi16(y, cb2), times(cb2, (116_130 - 131_072) as i16));
    let (factors, round) = (two(-22_554, 65_536 - 46_802), _mm256_set1_epi32(1 << 15));
    let green = |upper: bool| {
        let sum = _mm256_madd_epi16(turns(upper, cb, cr), factors);
        _mm256_srai_epi32::<16>(_mm256_add_epi32(sum, round))
    };
    let g = _mm256_packs_epi32(green(false), green(true));
    let g = _mm256_add_epi16(_mm256_sub_epi16(y, cr), g);
    [r, g, b]
}

/// Where in 16 interleaved bytes those of a colour stand: for each third of 48 bytes and each colour, which pixel, or none.
const fn shuffles() -> [[[u8; 32]; 3]; 3] {
    let mut all = [[[0x80; 32]; 3]; 3];
    let mut byte = 0;
    while byte < 48 {
        let (third, colour, pixel) = (byte / 16, byte % 3, (byte / 3) as u8);
        all[third][colour][byte % 16] = pixel;
        all[third][colour][byte % 16 + 16] = pixel;
        byte += 1;
    }
    all
}

const SHUFFLES: [[[u8; 32]; 3]; 3] = shuffles();

#[inline]
#[target_feature(enable = "avx2")]
fn interleave([r, g, b]: [__m256i; 3]) -> [u8; 96] {
    let third = |i: usize| {
        let of = |colour: __m256i, at: &[u8; 32]| _mm256_shuffle_epi8(colour, load(at));
        let [sr, sg, sb] = &SHUFFLES[i];
        _mm256_or_si256(_mm256_or_si256(of(r, sr), of(g, sg)), of(b, sb))
    };
    // Each has its third of the first 16 pixels, then of the last 16.
    let (a, b, c) = (third(0), third(1), third(2));
    let mut out = [0; 96];
    let (chunks, _) = out.as_chunks_mut::<32>();
    chunks[0] = bytes_of(_mm256_permute2x128_si256::<0x20>(a, b));
    chunks[1] = bytes_of(_mm256_permute2x128_si256::<0x30>(c, a));
    chunks[2] = bytes_of(_mm256_permute2x128_si256::<0x31>(b, c));
    out
}
