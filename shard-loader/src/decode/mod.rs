//! Pictures to RGB, bit-equal to Pillow's `Image.open(..).convert("RGB")` where the format allows.
//!
//! The header is read and held against the limit before anything is allocated for pixels. Formats are JPEG, PNG and WebP;
//! other bytes, GIF and BMP among them, are masked `format` whatever their suffix says.

mod jpeg;
mod png;
mod webp;

use argosy_common::steplog::MaskReason;

/// An RGB picture, rows without padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rgb {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`.
    pub pixels: Vec<u8>,
}

/// Decodes a picture of any known format, told by its first bytes as Pillow does, into `out`, whose buffer is used again.
///
/// Result and pixels are a function of `bytes` alone (rule M1): nothing is kept from picture to picture.
///
/// # Errors
/// [`MaskReason::Pixels`] when the header says more than `pixels_max` pixels, [`MaskReason::Format`] for anything that
/// is not a whole picture of a known format.
pub fn decode(bytes: &[u8], pixels_max: u64, out: &mut Rgb) -> Result<(), MaskReason> {
    match bytes {
        [0xff, 0xd8, 0xff, ..] => jpeg::decode(bytes, pixels_max, out),
        [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..] => png::decode(bytes, pixels_max, out),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => webp::decode(bytes, pixels_max, out),
        _ => Err(MaskReason::Format),
    }
}

/// Holds a header against the limit and makes room for its pixels, reusing what `out` has.
fn make_room(out: &mut Rgb, width: usize, height: usize, pixels_max: u64) -> Result<(), MaskReason> {
    if width == 0 || height == 0 {
        return Err(MaskReason::Format);
    }
    if (width as u64).saturating_mul(height as u64) > pixels_max {
        return Err(MaskReason::Pixels);
    }
    out.width = width;
    out.height = height;
    // Every pixel is written by a decode that succeeds, so old content may stay.
    out.pixels.resize(width * height * 3, 0);
    Ok(())
}
