//! PNG, with Pillow's ways of coming to 8-bit RGB: alpha is dropped, not blended.

use super::{Rgb, make_room};
use argosy_common::steplog::MaskReason;
use png::{BitDepth, ColorType, Limits, Transformations};
use std::io::Cursor;

pub(super) fn decode(bytes: &[u8], pixels_max: u64, out: &mut Rgb) -> Result<(), MaskReason> {
    let (width, height) = header_size(bytes).ok_or(MaskReason::Format)?;
    if u64::from(width) * u64::from(height) > pixels_max {
        return Err(MaskReason::Pixels);
    }
    // Four 16-bit channels, one picture and its rows under way.
    let room = (u64::from(width) * u64::from(height))
        .saturating_mul(8)
        .saturating_add(64 << 20);
    let limits = Limits {
        bytes: usize::try_from(room).unwrap_or(usize::MAX),
    };
    if !sums_hold(bytes) {
        return Err(MaskReason::Format);
    }
    let mut options = png::DecodeOptions::default();
    options.set_ignore_crc(true);
    // The one sum over the pixels that Pillow does look at.
    options.set_ignore_adler32(false);
    options.set_ignore_text_chunk(true);
    options.set_ignore_iccp_chunk(true);
    let mut decoder = png::Decoder::new_with_options(Cursor::new(bytes), options);
    decoder.set_limits(limits);
    decoder.set_transformations(Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(|_| MaskReason::Format)?;
    let size = reader.output_buffer_size().ok_or(MaskReason::Format)?;
    let mut raw = vec![0u8; size];
    let info = reader.next_frame(&mut raw).map_err(|_| MaskReason::Format)?;
    make_room(out, info.width as usize, info.height as usize, pixels_max)?;
    let raw = &raw[..info.buffer_size()];
    to_rgb(raw, info.color_type, info.bit_depth, &mut out.pixels)
}

/// Width and height from the first chunk, which must be the header.
fn header_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    (bytes.get(12..16)? == b"IHDR").then_some(())?;
    Some((word(16)?, word(20)?))
}

/// Whether the checksums of the chunks before the pixels hold. Pillow refuses a picture where one does not, but never looks
/// at those of the pixels, which have one of their own inside.
fn sums_hold(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        if after.starts_with(b"IDAT") {
            return true;
        }
        let Some((chunk, tail)) = length.checked_add(4).and_then(|n| after.split_at_checked(n)) else {
            return false;
        };
        let Some((sum, next)) = tail.split_first_chunk::<4>() else {
            return false;
        };
        if crc32fast::hash(chunk) != u32::from_be_bytes(*sum) {
            return false;
        }
        rest = next;
    }
    false
}

fn to_rgb(raw: &[u8], color: ColorType, depth: BitDepth, rgb: &mut [u8]) -> Result<(), MaskReason> {
    let channels = color.samples();
    match (depth, color) {
        (BitDepth::Eight, ColorType::Rgb) => rgb.copy_from_slice(raw),
        (BitDepth::Eight, ColorType::Rgba) => each(raw, 4, rgb, |p| [p[0], p[1], p[2]]),
        (BitDepth::Eight, ColorType::Grayscale | ColorType::GrayscaleAlpha) => each(raw, channels, rgb, |p| [p[0]; 3]),
        (BitDepth::Sixteen, ColorType::Rgb | ColorType::Rgba) => each(raw, channels * 2, rgb, |p| [p[0], p[2], p[4]]),
        (BitDepth::Sixteen, ColorType::GrayscaleAlpha) => each(raw, 4, rgb, |p| [p[0]; 3]),
        // Pillow cuts these to a byte instead of scaling them; odd, but OpenCLIP trains on what it gives.
        (BitDepth::Sixteen, ColorType::Grayscale) => each(raw, 2, rgb, |p| [if p[0] > 0 { 255 } else { p[1] }; 3]),
        // EXPAND leaves no palette and no depth below eight bits.
        _ => return Err(MaskReason::Format),
    }
    Ok(())
}

fn each(raw: &[u8], stride: usize, rgb: &mut [u8], pick: impl Fn(&[u8]) -> [u8; 3]) {
    for (from, to) in raw.chunks_exact(stride).zip(rgb.chunks_exact_mut(3)) {
        to.copy_from_slice(&pick(from));
    }
}
