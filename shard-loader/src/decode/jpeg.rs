//! JPEG through libjpeg-turbo, whose pixels equal Pillow's.

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
    choose: impl FnOnce((usize, usize)) -> Reduction,
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
