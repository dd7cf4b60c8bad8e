//! OpenCLIP's two transforms, up to the tensor: what comes out is `[S, S, 3]` bytes.

mod color;

use crate::decode::{Reduction, Rgb};
use crate::resize::{Crop, Filter, Resizer};
use argosy_common::config::AugmentationConfig;
use argosy_common::rng::{Draws, Purpose};

/// The key of every random choice about one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowKey {
    /// Seed of the run.
    pub seed: u64,
    /// The lane.
    pub lane: u32,
    /// The position in the lane's stream; it never repeats, so it implies the pass.
    pub position: u64,
}

impl RowKey {
    fn draws(&self, purpose: Purpose) -> Draws {
        Draws::new(self.seed, purpose, self.lane, self.position)
    }
}

/// How an evaluation picture comes to its size; OpenCLIP's `resize_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResizeMode {
    /// The shorter side becomes `S`, the middle is cut out. OpenCLIP's default.
    #[default]
    Shortest,
    /// The longer side becomes `S`, the rest is filled.
    Longest {
        /// OpenCLIP's `fill_color`, for all three channels.
        fill: u8,
    },
    /// Both sides become `S`, whatever the ratio.
    Squash,
}

/// How an evaluation picture is resized. Training crops are resized with the bicubic filter whatever stands here, as in
/// OpenCLIP (`transform.py`, `image_transform`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resize {
    /// To which size.
    pub mode: ResizeMode,
    /// With which filter; OpenCLIP's `interpolation`.
    pub filter: Filter,
}

/// Applies transforms; keeps its buffers. One per thread.
#[derive(Debug, Default)]
pub struct Transformer {
    resizer: Resizer,
    padded: Vec<u8>,
}

impl Transformer {
    /// At which part of its size a picture of `full` (width, height) can be decoded for [`train`](Self::train) on the fast
    /// path.
    #[must_use]
    pub fn reduction(full: (usize, usize), side: usize, augment: &AugmentationConfig, key: RowKey) -> Reduction {
        let crop = training_crop(full, augment, key);
        Reduction::suited((crop.width, crop.height), (side, side))
    }

    /// The training transform: a random crop resized to `side`, then colour changes where they are configured.
    ///
    /// `full` is the picture's whole (width, height), which decides about the crop; `picture` may be a reduced one.
    /// Writes `[side, side, 3]` into `out`.
    pub fn train(
        &mut self,
        picture: &Rgb,
        full: (usize, usize),
        side: usize,
        augment: &AugmentationConfig,
        key: RowKey,
        out: &mut [u8],
    ) {
        let crop = reduced_crop(training_crop(full, augment, key), full, picture);
        let all = Crop {
            left: 0,
            top: 0,
            width: side,
            height: side,
        };
        self.resizer.set_filter(Filter::Bicubic);
        self.resizer.resize_part(picture, crop, (side, side), all, out);
        color::augment(out, augment, &mut key.draws(Purpose::Color));
    }

    /// The picture with no side longer than `side`, each side by itself: what `data.resized_side` keeps. Crops are drawn in the
    /// whole picture's sizes, so the ratio of the sides may change here.
    pub fn shrink(&mut self, picture: &Rgb, side: usize, out: &mut Rgb) {
        let (width, height) = (picture.width.min(side), picture.height.min(side));
        self.resizer.set_filter(Filter::Bicubic);
        self.resizer.resize(picture, Crop::whole(picture), width, height, out);
    }

    /// The evaluation transform, bit-equal to OpenCLIP's with Pillow 13.0.0. Writes `[side, side, 3]` into `out`.
    pub fn evaluate(&mut self, picture: &Rgb, side: usize, resize: Resize, out: &mut [u8]) {
        self.resizer.set_filter(resize.filter);
        let (width, height) = match resize.mode {
            ResizeMode::Squash => (side, side),
            ResizeMode::Shortest => shortest(picture.width, picture.height, side),
            ResizeMode::Longest { fill } => return self.longest(picture, side, fill, out),
        };
        let middle = |long: usize| ((long - side) as f64 / 2.0).round_ties_even() as usize;
        let part = Crop {
            left: middle(width),
            top: middle(height),
            width: side,
            height: side,
        };
        self.resizer
            .resize_part(picture, Crop::whole(picture), (width, height), part, out);
    }
}

impl Transformer {
    /// OpenCLIP's `ResizeKeepRatio(longest=1)` and `CenterCropOrPad`: the rest on the left and above is the smaller half.
    fn longest(&mut self, picture: &Rgb, side: usize, fill: u8, out: &mut [u8]) {
        let (from_width, from_height) = (picture.width as f64, picture.height as f64);
        let ratio = (from_height / side as f64).max(from_width / side as f64);
        // A side that would vanish keeps one pixel; OpenCLIP stops with an error there.
        let scaled = |from: f64| ((from / ratio).round_ties_even() as usize).clamp(1, side);
        let (width, height) = (scaled(from_width), scaled(from_height));
        self.padded.resize(width * height * 3, 0);
        let all = Crop {
            left: 0,
            top: 0,
            width,
            height,
        };
        self.resizer
            .resize_part(picture, Crop::whole(picture), (width, height), all, &mut self.padded);
        out.fill(fill);
        let (left, top) = ((side - width) / 2, (side - height) / 2);
        let rows = out.chunks_exact_mut(side * 3).skip(top);
        for (to, from) in rows.zip(self.padded.chunks_exact(width * 3)) {
            to[left * 3..(left + width) * 3].copy_from_slice(from);
        }
    }
}

/// `(x / 255 - mean) / std` per channel, as torchvision's `ToTensor` and `Normalize` round it: `[S, S, 3]` bytes to
/// `[3, S, S]` numbers. Training normalises on the device; this is for those who want what OpenCLIP's loader gives.
pub fn normalize(pixels: &[u8], mean: [f32; 3], std: [f32; 3], out: &mut [f32]) {
    let table = |channel: usize| -> [f32; 256] {
        std::array::from_fn(|value| (value as f32 / 255.0 - mean[channel]) / std[channel])
    };
    let tables = [table(0), table(1), table(2)];
    let plane = pixels.len() / 3;
    let (red, rest) = out.split_at_mut(plane.min(out.len()));
    let (green, blue) = rest.split_at_mut(plane.min(rest.len()));
    let planes = red.iter_mut().zip(green).zip(blue);
    for (pixel, ((r, g), b)) in pixels.as_chunks::<3>().0.iter().zip(planes) {
        *r = tables[0][usize::from(pixel[0])];
        *g = tables[1][usize::from(pixel[1])];
        *b = tables[2][usize::from(pixel[2])];
    }
}

/// The crop of a row, in the whole picture.
fn training_crop(full: (usize, usize), augment: &AugmentationConfig, key: RowKey) -> Crop {
    random_crop(full, augment.scale, augment.ratio, &mut key.draws(Purpose::Crop))
}

/// The same rectangle in a reduced picture, to whole pixels.
fn reduced_crop(crop: Crop, full: (usize, usize), picture: &Rgb) -> Crop {
    if full == (picture.width, picture.height) {
        return crop;
    }
    let scaled = |at: usize, from: usize, to: usize| (at * to + from / 2) / from.max(1);
    let left = scaled(crop.left, full.0, picture.width).min(picture.width.saturating_sub(1));
    let top = scaled(crop.top, full.1, picture.height).min(picture.height.saturating_sub(1));
    let right = scaled(crop.left + crop.width, full.0, picture.width).max(left + 1);
    let bottom = scaled(crop.top + crop.height, full.1, picture.height).max(top + 1);
    Crop {
        left,
        top,
        width: right - left,
        height: bottom - top,
    }
}

/// Size after the shorter side became `side`: the longer one is cut off, as torchvision's `Resize` does.
fn shortest(width: usize, height: usize, side: usize) -> (usize, usize) {
    let long_side = |long: usize, short: usize| (side * long).checked_div(short).unwrap_or(side).max(side);
    if width <= height {
        (side, long_side(height, width))
    } else {
        (long_side(width, height), side)
    }
}

/// The box of torchvision's `RandomResizedCrop` (`get_params`): up to ten tries at an area in `scale` and a log-uniform
/// ratio in `ratio`, then the largest middle box of an allowed ratio.
fn random_crop((width, height): (usize, usize), scale: [f64; 2], ratio: [f64; 2], draws: &mut Draws) -> Crop {
    let area = width as f64 * height as f64;
    let log_ratio = ratio.map(f64::ln);
    for _ in 0..10 {
        let target = area * draws.uniform(scale[0], scale[1]);
        let aspect = draws.uniform(log_ratio[0], log_ratio[1]).exp();
        let w = (target * aspect).sqrt().round_ties_even() as usize;
        let h = (target / aspect).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let top = draws.below((height - h + 1) as u64) as usize;
            let left = draws.below((width - w + 1) as u64) as usize;
            return Crop {
                left,
                top,
                width: w,
                height: h,
            };
        }
    }
    let own = width as f64 / height as f64;
    let (w, h) = if own < ratio[0] {
        (width, (width as f64 / ratio[0]).round_ties_even() as usize)
    } else if own > ratio[1] {
        ((height as f64 * ratio[1]).round_ties_even() as usize, height)
    } else {
        (width, height)
    };
    // Rounding may give zero for a picture one pixel thin.
    let (w, h) = (w.clamp(1, width), h.clamp(1, height));
    Crop {
        left: (width - w) / 2,
        top: (height - h) / 2,
        width: w,
        height: h,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: RowKey = RowKey {
        seed: 3,
        lane: 1,
        position: 9,
    };

    proptest! {
        #[test]
        fn random_crop_any_picture_lies_inside_it(
            width in 1usize..2000, height in 1usize..2000, low in 0.01f64..1.0, position in 0u64..1000,
        ) {
            let mut draws = RowKey { position, ..KEY }.draws(Purpose::Crop);
            let crop = random_crop((width, height), [low, 1.0], [0.75, 4.0 / 3.0], &mut draws);
            prop_assert!(crop.width >= 1 && crop.height >= 1);
            prop_assert!(crop.left + crop.width <= width && crop.top + crop.height <= height);
        }
    }

    /// Pillow's way: all of it is resized, then the middle is cut out.
    fn whole_then_middle(picture: &Rgb, side: usize) -> Vec<u8> {
        let (width, height) = shortest(picture.width, picture.height, side);
        let mut whole = Rgb::default();
        Resizer::default().resize(picture, Crop::whole(picture), width, height, &mut whole);
        let middle = |long: usize| ((long - side) as f64 / 2.0).round_ties_even() as usize;
        (middle(height)..middle(height) + side)
            .flat_map(|y| whole.pixels[(y * width + middle(width)) * 3..][..side * 3].to_vec())
            .collect()
    }

    fn noise(width: usize, height: usize) -> Rgb {
        let pixels = (0..width * height * 3).map(|i| (i * i * 31 % 253) as u8).collect();
        Rgb { width, height, pixels }
    }

    proptest! {
        #[test]
        fn evaluate_any_picture_equals_the_middle_of_the_whole(width in 1usize..90, height in 1usize..90, side in 1usize..40) {
            let picture = noise(width, height);
            let mut out = vec![0; side * side * 3];
            Transformer::default().evaluate(&picture, side, Resize::default(), &mut out);
            prop_assert_eq!(out, whole_then_middle(&picture, side));
        }
    }

    #[test]
    fn evaluate_thinnest_picture_takes_no_more_than_its_middle() {
        // Resized whole, these are 224 x 4.5 billion pixels.
        for (width, height) in [(20_000_000, 1), (1, 20_000_000)] {
            let picture = Rgb {
                width,
                height,
                pixels: vec![9; 60_000_000],
            };
            let mut transformer = Transformer::default();
            let mut out = vec![0; 224 * 224 * 3];
            transformer.evaluate(&picture, 224, Resize::default(), &mut out);
            assert!(out.iter().all(|p| *p == 9));
        }
    }

    #[test]
    fn random_crop_covers_the_asked_share_of_the_area() {
        let shares: Vec<f64> = (0..500)
            .map(|position| {
                let mut draws = RowKey { position, ..KEY }.draws(Purpose::Crop);
                let crop = random_crop((400, 300), [0.3, 0.6], [0.75, 4.0 / 3.0], &mut draws);
                (crop.width * crop.height) as f64 / 120_000.0
            })
            .collect();
        assert!(shares.iter().all(|s| (0.29..0.61).contains(s)));
        let mean = shares.iter().sum::<f64>() / 500.0;
        assert!((mean - 0.45).abs() < 0.02, "{mean}");
    }

    #[test]
    fn random_crop_impossible_ratio_falls_back_to_the_middle() {
        let mut draws = KEY.draws(Purpose::Crop);
        let crop = random_crop((1000, 10), [1.0, 1.0], [0.75, 4.0 / 3.0], &mut draws);
        assert_eq!(
            crop,
            Crop {
                left: 493,
                top: 0,
                width: 13,
                height: 10
            }
        );
    }

    #[test]
    fn train_equal_keys_give_equal_pixels_and_other_positions_do_not() {
        let pixels = (0..60 * 50 * 3).map(|i| (i * 31 % 255) as u8).collect();
        let picture = Rgb {
            width: 60,
            height: 50,
            pixels,
        };
        let augment = AugmentationConfig {
            scale: [0.2, 0.9],
            ..AugmentationConfig::default()
        };
        let run = |key| {
            let mut out = vec![0; 16 * 16 * 3];
            Transformer::default().train(&picture, (60, 50), 16, &augment, key, &mut out);
            out
        };
        assert_eq!(run(KEY), run(KEY));
        assert_ne!(run(KEY), run(RowKey { position: 10, ..KEY }));
        assert_ne!(run(KEY), run(RowKey { lane: 2, ..KEY }));
    }

    #[test]
    fn shortest_side_never_falls_below_the_target() {
        assert_eq!(shortest(500, 333, 224), (336, 224));
        assert_eq!(shortest(333, 500, 224), (224, 336));
        assert_eq!(shortest(7, 7, 224), (224, 224));
    }
}
