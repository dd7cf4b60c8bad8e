//! Bicubic and bilinear resizing, bit-equal to Pillow 13.0.0.
//!
//! The rule: an antialiased filter in f64, weights of one output pixel normalised to 1 and rounded
//! half away from zero to 22-bit fractions; sums in i32 start at one half, are shifted back and clamped to a byte after
//! each of the two passes. Which pass is first changes the bytes; Pillow 13 takes the vertical one first for pictures
//! that shrink more in height.

mod kernel;
#[cfg(target_arch = "x86_64")]
mod vnni;
mod weights;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use kernel::Isa;
pub use weights::Filter;

use crate::decode::Rgb;
use kernel::{Room, View, horizontal, vertical};
use std::ops::Range;
use weights::Weights;

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

/// Buffers that are used again from picture to picture. One per thread.
#[derive(Debug)]
pub struct Resizer {
    isa: Isa,
    filter: Filter,
    horizontal: Weights,
    vertical: Weights,
    between: Vec<u8>,
    room: Room,
}

impl Default for Resizer {
    fn default() -> Self {
        Self::with(Isa::detect())
    }
}

impl Resizer {
    /// A resizer that uses `isa`, or what the machine has when it lacks that.
    #[must_use]
    pub fn with(isa: Isa) -> Self {
        Self {
            isa: isa.min(Isa::detect()),
            filter: Filter::default(),
            horizontal: Weights::default(),
            vertical: Weights::default(),
            between: Vec::new(),
            room: Room::default(),
        }
    }

    /// Resizes with `filter` from now on.
    pub fn set_filter(&mut self, filter: Filter) {
        self.filter = filter;
    }

    /// Resizes `crop` of `source` to `width` by `height` into `out`, as Pillow's `crop(..).resize(.., filter)`.
    ///
    /// A crop reaching beyond the picture is cut to it; an empty crop or target gives an empty picture.
    pub fn resize(&mut self, source: &Rgb, crop: Crop, width: usize, height: usize, out: &mut Rgb) {
        let part = Crop {
            left: 0,
            top: 0,
            width,
            height,
        };
        let inside = !crop.columns(source.width).is_empty() && !crop.rows(source.height).is_empty();
        (out.width, out.height) = if inside && width * height > 0 {
            (width, height)
        } else {
            (0, 0)
        };
        // All of it is written below.
        out.pixels.resize(out.width * out.height * 3, 0);
        if inside {
            self.resize_part(source, crop, (width, height), part, &mut out.pixels);
        }
    }

    /// The rectangle `part` of what [`resize`](Self::resize) to `target` (width, height) gives, byte for byte, at the cost
    /// of that rectangle: a thin picture grows to gigabytes when its short side is enlarged.
    ///
    /// `out` is `[part.height, part.width, 3]`; a part that reaches beyond the target or an `out` of another size is a bug
    /// of the caller, and nothing is written then.
    pub fn resize_part(&mut self, source: &Rgb, crop: Crop, target: (usize, usize), part: Crop, out: &mut [u8]) {
        let (from_columns, from_rows) = (crop.columns(source.width), crop.rows(source.height));
        let (left, from_width) = (from_columns.start, from_columns.len());
        let (top, from_height) = (from_rows.start, from_rows.len());
        let (columns, rows) = (part.columns(target.0), part.rows(target.1));
        let (width, height) = (columns.len(), rows.len());
        debug_assert_eq!(out.len(), width * height * 3);
        if from_width == 0 || from_height == 0 || out.is_empty() || out.len() != width * height * 3 {
            return;
        }
        let need_horizontal = target.0 != from_width;
        let need_vertical = target.1 != from_height;
        let vertical_first = vertical_first((from_width, from_height), target);
        // Only the input that weighs in the part is looked at from here on.
        let columns = match need_horizontal {
            true => self.horizontal.prepare(self.filter, from_width, target.0, columns),
            false => columns,
        };
        let rows = match need_vertical {
            true => self.vertical.prepare(self.filter, from_height, target.1, rows),
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
        let isa = self.isa;
        match (need_horizontal, need_vertical) {
            (false, false) => view.copy_to(out),
            (true, false) => horizontal(isa, &view, &self.horizontal, &mut self.room, out),
            (false, true) => vertical(isa, &view, &self.vertical, out),
            (true, true) if vertical_first => {
                let between = room(&mut self.between, from_width * height * 3);
                vertical(isa, &view, &self.vertical, between);
                let half = View::whole(between, from_width, height);
                horizontal(isa, &half, &self.horizontal, &mut self.room, out);
            }
            (true, true) => {
                let between = room(&mut self.between, width * from_height * 3);
                horizontal(isa, &view, &self.horizontal, &mut self.room, between);
                let half = View::whole(between, width, from_height);
                vertical(isa, &half, &self.vertical, out);
            }
        }
    }
}

/// The first `bytes` of a buffer that only grows: cutting it and zeroing it anew for each picture costs more than it seems.
fn room(buffer: &mut Vec<u8>, bytes: usize) -> &mut [u8] {
    if buffer.len() < bytes {
        buffer.resize(bytes, 0);
    }
    &mut buffer[..bytes]
}

/// Pillow 13's rule: rows first when the height shrinks by more than twice what the width does.
fn vertical_first(from: (usize, usize), to: (usize, usize)) -> bool {
    let shrinks_by = |from: usize, to: usize| from as i64 - to as i64;
    let (rows, columns) = (shrinks_by(from.1, to.1), shrinks_by(from.0, to.0));
    rows > 0 && rows > 2 * columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn resize_with_every_instruction_set_gives_the_same_bytes(
            (width, height) in (1usize..150, 1usize..150),
            (to_width, to_height) in (1usize..120, 1usize..120),
            (left, top, cut_right, cut_bottom) in (0usize..20, 0usize..20, 0usize..20, 0usize..20),
            seed in any::<u32>(), contrast in any::<bool>(), bilinear in any::<bool>(),
        ) {
            let mut x = seed;
            let pixels = (0..width * height * 3).map(|_| {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Only extremes make the filter overshoot far, which is where clamping shows.
                if contrast { if x >> 31 == 1 { 255 } else { 0 } } else { (x >> 24) as u8 }
            });
            let source = Rgb { width, height, pixels: pixels.collect() };
            let (left, top) = (left.min(width - 1), top.min(height - 1));
            let crop = Crop {
                left,
                top,
                width: (width - left).saturating_sub(cut_right).max(1),
                height: (height - top).saturating_sub(cut_bottom).max(1),
            };
            let run = |isa| {
                let mut out = Rgb::default();
                let mut resizer = Resizer::with(isa);
                resizer.set_filter(if bilinear { Filter::Bilinear } else { Filter::Bicubic });
                resizer.resize(&source, crop, to_width, to_height, &mut out);
                out
            };
            let reference = run(Isa::Scalar);
            prop_assert_eq!(reference.pixels.len(), to_width * to_height * 3);
            for isa in Isa::available() {
                prop_assert_eq!(&run(*isa), &reference, "{:?}", isa);
            }
        }
    }

    #[test]
    fn resize_of_a_very_long_row_is_the_same_with_every_instruction_set() {
        // Hundreds of thousands of taps: sums of the parts of weights come nearest to 32 bits here.
        let source = Rgb {
            width: 200_001,
            height: 2,
            pixels: (0..200_001 * 6).map(|i| if i % 1000 < 800 { 255 } else { 0 }).collect(),
        };
        for to in [1, 2, 3] {
            let all = Isa::available().iter().map(|isa| {
                let mut out = Rgb::default();
                Resizer::with(*isa).resize(&source, Crop::whole(&source), to, 2, &mut out);
                out
            });
            let all: Vec<Rgb> = all.collect();
            assert!(all.iter().all(|out| *out == all[0]), "{to}");
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
