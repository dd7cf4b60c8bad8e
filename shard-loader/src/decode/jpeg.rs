//! JPEG to pixels that equal Pillow's: plain pictures by our own decoder where the machine has what it needs, the others through
//! libjpeg-turbo.

use super::{Reduction, Rgb, check_size, make_room};
use argosy_common::steplog::MaskReason;
use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat, ScalingFactor};

/// Scans of a progressive picture. Encoders write about ten; each one walks over the whole picture again, so that thousands
/// of empty ones in a small file would take minutes.
const SCANS_MAX: u32 = 200;

pub(super) fn decode(
    bytes: &[u8],
    pixels_max: u64,
    out: &mut Rgb,
    choose: impl Fn((usize, usize)) -> Reduction,
) -> Result<(usize, usize), MaskReason> {
    #[cfg(target_arch = "x86_64")]
    if let Some(plain) = super::baseline::Plain::of(bytes) {
        let (width, height) = plain.size();
        check_size(width, height, pixels_max)?;
        if choose((width, height)) == Reduction::None {
            make_room(out, width, height, pixels_max)?;
            if plain.decode(out).is_some() {
                return Ok((width, height));
            }
        }
    }
    by_libjpeg(bytes, pixels_max, out, choose)
}

fn by_libjpeg(
    bytes: &[u8],
    pixels_max: u64,
    out: &mut Rgb,
    choose: impl Fn((usize, usize)) -> Reduction,
) -> Result<(usize, usize), MaskReason> {
    // Never used for a second picture: libjpeg keeps quantisation and Huffman tables for pictures that bring none, and one
    // that broke in its header leaves the decompressor unable to read any other.
    let decompressor = &mut Decompressor::new().map_err(|_| MaskReason::Format)?;
    let header = decompressor.read_header(bytes).map_err(|_| MaskReason::Format)?;
    let (width, height) = (header.width, header.height);
    check_size(width, height, pixels_max)?;
    if header.is_progressive {
        let limited = decompressor.set_scan_limit(SCANS_MAX);
        limited.map_err(|_| MaskReason::Format)?;
    }
    if matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK) {
        make_room(out, width, height, pixels_max)?;
        let mut inks = vec![0u8; width * height * 4];
        run(decompressor, bytes, &mut inks, (width, height), PixelFormat::CMYK)?;
        inks_to_rgb(&inks, &mut out.pixels);
        return Ok((width, height));
    }
    let factor = match choose((width, height)) {
        Reduction::None => ScalingFactor::ONE,
        Reduction::Half => ScalingFactor::ONE_HALF,
        Reduction::Quarter => ScalingFactor::ONE_QUARTER,
        Reduction::Eighth => ScalingFactor::ONE_EIGHTH,
    };
    let reduced = (factor.scale(width), factor.scale(height));
    if factor != ScalingFactor::ONE {
        decompressor
            .set_scaling_factor(factor)
            .map_err(|_| MaskReason::Format)?;
    }
    make_room(out, reduced.0, reduced.1, pixels_max)?;
    run(decompressor, bytes, &mut out.pixels, reduced, PixelFormat::RGB)?;
    Ok((width, height))
}

fn run(
    decompressor: &mut Decompressor,
    bytes: &[u8],
    pixels: &mut [u8],
    (width, height): (usize, usize),
    format: PixelFormat,
) -> Result<(), MaskReason> {
    let image = Image {
        pixels,
        width,
        pitch: width * format.size(),
        height,
        format,
    };
    match decompressor.decompress(bytes, image) {
        Ok(()) => Ok(()),
        // libjpeg went on to the end with a warning. Pillow takes such a picture unless data is lacking.
        Err(error) if only_warned(&error.to_string()) && has_end(bytes) => Ok(()),
        Err(_) => Err(MaskReason::Format),
    }
}

/// Whether libjpeg's last message is a warning; then every pixel was written.
fn only_warned(message: &str) -> bool {
    [
        "Corrupt JPEG data",
        "Inconsistent progression sequence",
        "Invalid SOS parameters",
        "Unknown Adobe color transform",
    ]
    .iter()
    .any(|warning| message.contains(warning))
}

/// Whether the end-of-image marker is there.
fn has_end(bytes: &[u8]) -> bool {
    bytes.windows(2).rev().any(|pair| pair == [0xff, 0xd9])
}

/// Inks as Adobe stores them, inverted, to light: `rgb = ink * key / 255`, in Pillow's rounding.
fn inks_to_rgb(inks: &[u8], rgb: &mut [u8]) {
    for (ink, pixel) in inks.chunks_exact(4).zip(rgb.chunks_exact_mut(3)) {
        let key = u32::from(ink[3]);
        for (value, stored) in pixel.iter_mut().zip(ink) {
            // Pillow computes `key - round((255 - stored) * key / 255)` with this exact division by 255.
            let product = (255 - u32::from(*stored)) * key + 128;
            let scaled = ((product >> 8) + product) >> 8;
            *value = key.saturating_sub(scaled) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use turbojpeg::Subsamp;

    fn encoded(pixels: &[u8], width: usize, quality: i32, subsamp: Subsamp) -> Vec<u8> {
        let image = Image {
            pixels,
            width,
            pitch: width * 3,
            height: pixels.len() / width / 3,
            format: PixelFormat::RGB,
        };
        turbojpeg::compress(image, quality, subsamp).unwrap().to_vec()
    }

    /// Noise, a drawing, black and white only (whose sums overshoot most), and something between.
    fn drawn(kind: usize, bytes: usize, seed: u32) -> Vec<u8> {
        let mut x = seed;
        let noise = |i: usize| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match kind {
                0 => (x >> 24) as u8,
                1 => (i / 7) as u8,
                2 => (x >> 31) as u8 * 255,
                _ => (i * i / 977) as u8 ^ (x >> 29) as u8,
            }
        };
        (0..bytes).map(noise).collect()
    }

    type Outcome = (Result<(usize, usize), MaskReason>, Vec<u8>);

    fn outcome(bytes: &[u8], how: impl Fn(&mut Rgb) -> Result<(usize, usize), MaskReason>) -> Outcome {
        // What lay there before must not show.
        let mut out = Rgb {
            pixels: vec![bytes.len() as u8; 100],
            ..Rgb::default()
        };
        let done = how(&mut out);
        let pixels = if done.is_ok() { out.pixels } else { Vec::new() };
        (done, pixels)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        #[test]
        fn decode_any_jpeg_whole_or_damaged_gives_the_bytes_of_libjpeg(
            (width, height) in (1usize..90, 1usize..90), kind in 0usize..4, seed in any::<u32>(),
            quality in prop::sample::select(vec![1, 5, 30, 75, 85, 95, 100]),
            subsamp in prop::sample::select(vec![Subsamp::None, Subsamp::Sub2x2, Subsamp::Sub2x1, Subsamp::Gray]),
            damage in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 0..3),
        ) {
            let mut bytes = encoded(&drawn(kind, width * height * 3, seed), width, quality, subsamp);
            for (at, bit) in &damage {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            let ours = outcome(&bytes, |out| decode(&bytes, 1 << 20, out, |_| Reduction::None));
            let theirs = outcome(&bytes, |out| by_libjpeg(&bytes, 1 << 20, out, |_| Reduction::None));
            prop_assert!(ours == theirs, "{:?} and {:?}", ours.0, theirs.0);
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn plain_pictures_are_decoded_without_libjpeg() {
        for subsamp in [Subsamp::None, Subsamp::Sub2x2, Subsamp::Gray] {
            for (width, height) in [(5, 1), (16, 16), (33, 50), (640, 31)] {
                let bytes = encoded(&drawn(3, width * height * 3, 1), width, 95, subsamp);
                let mut out = Rgb::default();
                make_room(&mut out, width, height, 1 << 20).unwrap();
                let plain = super::super::baseline::Plain::of(&bytes);
                let decoded = plain.and_then(|plain| plain.decode(&mut out)).is_some();
                // Machines without it have none of this.
                assert_eq!(
                    decoded,
                    std::is_x86_feature_detected!("avx2"),
                    "{subsamp:?} {width}x{height}"
                );
            }
        }
    }
}
