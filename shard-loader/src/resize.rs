//! Bicubic resizing, bit-equal to Pillow 13.0.0.
//!
//! The rule: an antialiased bicubic filter (a = -0.5) in f64, weights of one output pixel normalised to 1 and rounded
//! half away from zero to 22-bit fractions; sums in i32 start at one half, are shifted back and clamped to a byte after
//! each of the two passes. Which pass is first changes the bytes; Pillow 13 takes the vertical one first for pictures
//! that shrink more in height.

use crate::decode::Rgb;
use std::ops::Range;

/// Fractional bits of a weight: 32 less 8 for a byte, less 2 for the filter's overshoot.
const FRACTION_BITS: u32 = 22;
/// Rows (or columns) that one horizontal step works on together.
const LANES: usize = 16;

/// A rectangle of whole pixels of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Crop {
    /// The whole picture.
    #[must_use]
    pub fn whole(picture: &Rgb) -> Self {
        Self {
            left: 0,
            top: 0,
            width: picture.width,
            height: picture.height,
        }
    }

    /// Its columns in a picture of `width`.
    fn columns(&self, width: usize) -> Range<usize> {
        let first = self.left.min(width);
        first..first + self.width.min(width - first)
    }

    /// Its rows in a picture of `height`.
    fn rows(&self, height: usize) -> Range<usize> {
        let first = self.top.min(height);
        first..first + self.height.min(height - first)
    }
}

/// Weights of every output pixel along one axis.
#[derive(Debug, Default)]
struct Weights {
    /// (first input pixel, number of input pixels) per output pixel, relative to the first that any of them needs.
    spans: Vec<(usize, usize)>,
    /// `taps` weights per output pixel, zero beyond its span.
    values: Vec<i32>,
    taps: usize,
}

/// Buffers that are used again from picture to picture. One per thread.
#[derive(Debug, Default)]
pub struct Resizer {
    horizontal: Weights,
    vertical: Weights,
    between: Vec<u8>,
    block: Vec<u8>,
}

impl Resizer {
    /// Resizes `crop` of `source` to `width` by `height` into `out`, as Pillow's `crop(..).resize(.., BICUBIC)`.
    ///
    /// A crop reaching beyond the picture is cut to it; an empty crop or target gives an empty picture.
    pub fn resize(&mut self, source: &Rgb, crop: Crop, width: usize, height: usize, out: &mut Rgb) {
        let part = Crop {
            left: 0,
            top: 0,
            width,
            height,
        };
        self.resize_part(source, crop, (width, height), part, out);
    }

    /// The rectangle `part` of what [`resize`](Self::resize) to `target` (width, height) gives, byte for byte, at the cost
    /// of that rectangle: a thin picture grows to gigabytes when its short side is enlarged.
    pub fn resize_part(&mut self, source: &Rgb, crop: Crop, target: (usize, usize), part: Crop, out: &mut Rgb) {
        let (from_columns, from_rows) = (crop.columns(source.width), crop.rows(source.height));
        let (left, from_width) = (from_columns.start, from_columns.len());
        let (top, from_height) = (from_rows.start, from_rows.len());
        let (columns, rows) = (part.columns(target.0), part.rows(target.1));
        let (width, height) = (columns.len(), rows.len());
        out.width = width;
        out.height = height;
        out.pixels.clear();
        if from_width == 0 || from_height == 0 || width == 0 || height == 0 {
            (out.width, out.height) = (0, 0);
            return;
        }
        out.pixels.resize(width * height * 3, 0);
        let need_horizontal = target.0 != from_width;
        let need_vertical = target.1 != from_height;
        let vertical_first = vertical_first((from_width, from_height), target);
        // Only the input that weighs in the part is looked at from here on.
        let columns = match need_horizontal {
            true => self.horizontal.prepare(from_width, target.0, columns),
            false => columns,
        };
        let rows = match need_vertical {
            true => self.vertical.prepare(from_height, target.1, rows),
            false => rows,
        };
        let (from_width, from_height) = (columns.len(), rows.len());
        let stride = source.width * 3;
        let view = View {
            bytes: &source.pixels[(top + rows.start) * stride + (left + columns.start) * 3..],
            stride,
            width: from_width,
            height: from_height,
        };
        match (need_horizontal, need_vertical) {
            (false, false) => view.copy_to(&mut out.pixels),
            (true, false) => horizontal(&view, &self.horizontal, &mut self.block, &mut out.pixels),
            (false, true) => vertical(&view, &self.vertical, &mut out.pixels),
            (true, true) if vertical_first => {
                self.between.resize(from_width * height * 3, 0);
                vertical(&view, &self.vertical, &mut self.between);
                let half = View {
                    bytes: &self.between,
                    stride: from_width * 3,
                    width: from_width,
                    height,
                };
                horizontal(&half, &self.horizontal, &mut self.block, &mut out.pixels);
            }
            (true, true) => {
                self.between.resize(width * from_height * 3, 0);
                horizontal(&view, &self.horizontal, &mut self.block, &mut self.between);
                let half = View {
                    bytes: &self.between,
                    stride: width * 3,
                    width,
                    height: from_height,
                };
                vertical(&half, &self.vertical, &mut out.pixels);
            }
        }
    }
}

/// Pillow 13's rule: rows first when the height shrinks by more than twice what the width does.
fn vertical_first(from: (usize, usize), to: (usize, usize)) -> bool {
    let shrinks_by = |from: usize, to: usize| from as i64 - to as i64;
    let (rows, columns) = (shrinks_by(from.1, to.1), shrinks_by(from.0, to.0));
    rows > 0 && rows > 2 * columns
}

/// A rectangle of RGB rows inside a larger picture.
struct View<'a> {
    bytes: &'a [u8],
    stride: usize,
    width: usize,
    height: usize,
}

impl View<'_> {
    fn row(&self, y: usize) -> &[u8] {
        &self.bytes[y * self.stride..y * self.stride + self.width * 3]
    }

    fn copy_to(&self, out: &mut [u8]) {
        for (y, row) in out.chunks_exact_mut(self.width * 3).enumerate() {
            row.copy_from_slice(self.row(y));
        }
    }
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

impl Weights {
    /// Weights of the output pixels `part` of an axis of `from` pixels that becomes `to`; gives the input pixels that they
    /// need, to whose first one the spans are relative.
    fn prepare(&mut self, from: usize, to: usize, part: Range<usize>) -> Range<usize> {
        let scale = from as f64 / to as f64;
        // Enlarging interpolates between neighbours; shrinking widens the filter so that every input pixel counts.
        let stretch = scale.max(1.0);
        let support = 2.0 * stretch;
        self.taps = support.ceil() as usize * 2 + 1;
        self.spans.clear();
        self.values.clear();
        self.values.resize(self.taps * part.len(), 0);
        let mut exact = vec![0.0f64; self.taps];
        for (i, values) in part.zip(self.values.chunks_exact_mut(self.taps)) {
            let center = (i as f64 + 0.5) * scale;
            // Truncation towards zero, then clamping: the order matters at the left edge.
            let first = ((center - support + 0.5) as i64).max(0) as usize;
            let last = ((center + support + 0.5) as i64).min(from as i64) as usize;
            let span = last - first;
            let mut sum = 0.0;
            for (k, weight) in exact[..span].iter_mut().enumerate() {
                *weight = bicubic(((k + first) as f64 - center + 0.5) * (1.0 / stretch));
                sum += *weight;
            }
            for (value, weight) in values.iter_mut().zip(&exact[..span]) {
                let share = if sum == 0.0 { *weight } else { *weight / sum };
                let scaled = share * f64::from(1u32 << FRACTION_BITS);
                *value = if share < 0.0 {
                    (scaled - 0.5) as i32
                } else {
                    (scaled + 0.5) as i32
                };
            }
            self.spans.push((first, span));
        }
        // Spans move to the right only, at both ends.
        let start = self.spans.first().map_or(0, |(first, _)| *first);
        let end = self.spans.last().map_or(start, |(first, span)| first + span);
        for (first, _) in &mut self.spans {
            *first -= start;
        }
        start..end
    }
}

/// Back from fixed point to a byte.
#[inline(always)]
fn to_byte(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

const ONE_HALF: i32 = 1 << (FRACTION_BITS - 1);

/// Calls the plain form compiled for AVX2 where the machine has it: 32-bit products need it to be fast.
macro_rules! for_this_machine {
    ($name:ident, $plain:ident, $avx2:ident, ($($arg:ident: $type:ty),*)) => {
        fn $name($($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn $avx2($($arg: $type),*) {
                    $plain($($arg),*);
                }
                if std::is_x86_feature_detected!("avx2") {
                    // SAFETY: the machine has just been asked for AVX2; the code is the safe plain form.
                    #[allow(unsafe_code, reason = "calling a function compiled for a detected feature")]
                    unsafe {
                        return $avx2($($arg),*);
                    }
                }
            }
            $plain($($arg),*);
        }
    };
}

for_this_machine!(vertical, vertical_plain, vertical_avx2, (view: &View<'_>, weights: &Weights, out: &mut [u8]));
for_this_machine!(
    horizontal,
    horizontal_plain,
    horizontal_avx2,
    (view: &View<'_>, weights: &Weights, block: &mut Vec<u8>, out: &mut [u8])
);

/// Adds `weight` times `LANES` bytes to their sums. By value, so that the sums stay in registers; wrapping, because the
/// overflow checks of a debug build forbid vectors (weights sum to 1.0 and leave two bits of headroom, so none happens).
#[inline(always)]
fn add(mut sums: [i32; LANES], bytes: &[u8; LANES], weight: i32) -> [i32; LANES] {
    for (sum, byte) in sums.iter_mut().zip(bytes) {
        *sum = sum.wrapping_add(i32::from(*byte).wrapping_mul(weight));
    }
    sums
}

/// Every output row is a weighted sum of input rows; neighbours in memory are independent.
#[inline(always)]
fn vertical_plain(view: &View<'_>, weights: &Weights, out: &mut [u8]) {
    let row_bytes = view.width * 3;
    let rows = out
        .chunks_exact_mut(row_bytes)
        .zip(weights.values.chunks_exact(weights.taps))
        .zip(&weights.spans);
    for ((row, values), (first, span)) in rows {
        let values = &values[..*span];
        let (chunks, rest) = row.as_chunks_mut::<{ 2 * LANES }>();
        let rest_at = chunks.len() * 2 * LANES;
        for (c, chunk) in chunks.iter_mut().enumerate() {
            let mut sums = [[ONE_HALF; LANES]; 2];
            let mut at = first * view.stride + c * 2 * LANES;
            for weight in values {
                let ([left, right], _) = view.bytes[at..at + 2 * LANES].as_chunks::<LANES>() else {
                    break;
                };
                sums = [add(sums[0], left, *weight), add(sums[1], right, *weight)];
                at += view.stride;
            }
            for (byte, sum) in chunk.iter_mut().zip(sums.as_flattened()) {
                *byte = to_byte(*sum);
            }
        }
        for (i, byte) in rest.iter_mut().enumerate() {
            let column = view.bytes[first * view.stride + rest_at + i..]
                .iter()
                .step_by(view.stride);
            let sum: i32 = column.zip(values).map(|(b, weight)| i32::from(*b) * weight).sum();
            *byte = to_byte(ONE_HALF + sum);
        }
    }
}

/// Every output column is a weighted sum of input columns. Blocks of rows are transposed first, so that the sum runs over
/// `LANES` independent rows and not over three interleaved channels.
#[inline(always)]
fn horizontal_plain(view: &View<'_>, weights: &Weights, block: &mut Vec<u8>, out: &mut [u8]) {
    let in_bytes = view.width * 3 * LANES;
    let out_row = weights.spans.len() * 3;
    block.clear();
    block.resize(in_bytes + out_row * LANES, 0);
    let (inputs, outputs) = block.split_at_mut(in_bytes);
    for y in (0..view.height).step_by(LANES) {
        let rows = LANES.min(view.height - y);
        for lane in 0..rows {
            for (column, byte) in inputs.as_chunks_mut::<LANES>().0.iter_mut().zip(view.row(y + lane)) {
                column[lane] = *byte;
            }
        }
        let (pixels, _) = inputs.as_chunks::<{ 3 * LANES }>();
        let results = outputs.as_chunks_mut::<{ 3 * LANES }>().0.iter_mut();
        let weighted = weights.values.chunks_exact(weights.taps).zip(&weights.spans);
        for (result, (values, (first, span))) in results.zip(weighted) {
            let (mut r, mut g, mut b) = ([ONE_HALF; LANES], [ONE_HALF; LANES], [ONE_HALF; LANES]);
            for (pixel, weight) in pixels[*first..first + span].iter().zip(values) {
                let ([reds, greens, blues], _) = pixel.as_chunks::<LANES>() else {
                    break;
                };
                r = add(r, reds, *weight);
                g = add(g, greens, *weight);
                b = add(b, blues, *weight);
            }
            for (bytes, sums) in result.as_chunks_mut::<LANES>().0.iter_mut().zip([r, g, b]) {
                for (byte, sum) in bytes.iter_mut().zip(sums) {
                    *byte = to_byte(sum);
                }
            }
        }
        for lane in 0..rows {
            let row = &mut out[(y + lane) * out_row..(y + lane + 1) * out_row];
            for (byte, column) in row.iter_mut().zip(outputs.as_chunks::<LANES>().0) {
                *byte = column[lane];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize) -> Rgb {
        let pixels = (0..width * height * 3).map(|i| (i * 37 % 251) as u8).collect();
        Rgb { width, height, pixels }
    }

    #[test]
    fn resize_constant_picture_stays_constant() {
        let source = Rgb {
            width: 13,
            height: 40,
            pixels: vec![77; 13 * 40 * 3],
        };
        let mut out = Rgb::default();
        for (w, h) in [(5, 5), (40, 13), (13, 7), (1, 1)] {
            Resizer::default().resize(&source, Crop::whole(&source), w, h, &mut out);
            assert_eq!((out.width, out.height, out.pixels.len()), (w, h, w * h * 3));
            assert!(out.pixels.iter().all(|p| *p == 77));
        }
    }

    #[test]
    fn resize_to_the_same_size_copies_the_crop() {
        let source = picture(9, 8);
        let crop = Crop {
            left: 2,
            top: 3,
            width: 4,
            height: 5,
        };
        let mut out = Rgb::default();
        Resizer::default().resize(&source, crop, 4, 5, &mut out);
        let expected: Vec<u8> = (3..8)
            .flat_map(|y| source.pixels[(y * 9 + 2) * 3..(y * 9 + 6) * 3].to_vec())
            .collect();
        assert_eq!(out.pixels, expected);
    }

    #[test]
    fn resize_empty_or_outside_crop_gives_nothing_or_what_is_inside() {
        let source = picture(4, 4);
        let mut out = Rgb::default();
        Resizer::default().resize(
            &source,
            Crop {
                left: 9,
                top: 0,
                width: 3,
                height: 3,
            },
            2,
            2,
            &mut out,
        );
        assert!(out.pixels.is_empty());
        Resizer::default().resize(
            &source,
            Crop {
                left: 2,
                top: 2,
                width: 9,
                height: 9,
            },
            2,
            2,
            &mut out,
        );
        assert_eq!(out.pixels[..3], source.pixels[(2 * 4 + 2) * 3..(2 * 4 + 2) * 3 + 3]);
    }
}
