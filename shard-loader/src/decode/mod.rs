//! Pictures to RGB, bit-equal to Pillow's `Image.open(..).convert("RGB")` where the format allows.
//!
//! The header is read and held against the limit before anything is allocated for pixels. Formats are JPEG, PNG and WebP;
//! other bytes, GIF and BMP among them, are masked `format` whatever their suffix says.

#[cfg(target_arch = "x86_64")]
mod baseline;
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
    decode_reduced(bytes, pixels_max, out, |_| Reduction::None).map(|_| ())
}

/// A part of its size at which a JPEG picture can be decoded, by computing fewer of each block's pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// All of it; the only one that is bit-equal to Pillow.
    #[default]
    None,
    /// One half.
    Half,
    /// One quarter.
    Quarter,
    /// One eighth.
    Eighth,
}

impl Reduction {
    /// The strongest one that leaves at least one and a half pixels for each that is wanted, for a rectangle `from` that
    /// becomes `to`; none below three: what the inverse transform leaves out there shows.
    #[must_use]
    pub fn suited(from: (usize, usize), to: (usize, usize)) -> Self {
        let leaves = |part: usize| from.0 >= 3 * to.0 * part / 2 && from.1 >= 3 * to.1 * part / 2;
        [(8, Self::Eighth), (4, Self::Quarter), (2, Self::Half)]
            .into_iter()
            .find(|(part, _)| leaves(*part))
            .map_or(Self::None, |(_, reduction)| reduction)
    }
}

/// As [`decode`], but a JPEG picture in light (not ink) comes in the part that `choose` names for its (width, height). Gives
/// the whole size.
///
/// # Errors
/// As [`decode`]; the limit is on the whole size.
pub fn decode_reduced(
    bytes: &[u8],
    pixels_max: u64,
    out: &mut Rgb,
    choose: impl Fn((usize, usize)) -> Reduction,
) -> Result<(usize, usize), MaskReason> {
    match bytes {
        [0xff, 0xd8, 0xff, ..] => return jpeg::decode(bytes, pixels_max, out, choose),
        [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..] => png::decode(bytes, pixels_max, out)?,
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => webp::decode(bytes, pixels_max, out)?,
        _ => return Err(MaskReason::Format),
    }
    Ok((out.width, out.height))
}

/// Holds a header against the limit.
fn check_size(width: usize, height: usize, pixels_max: u64) -> Result<(), MaskReason> {
    if width == 0 || height == 0 {
        return Err(MaskReason::Format);
    }
    if (width as u64).saturating_mul(height as u64) > pixels_max {
        return Err(MaskReason::Pixels);
    }
    Ok(())
}

/// Holds a header against the limit and makes room for its pixels, reusing what `out` has.
fn make_room(out: &mut Rgb, width: usize, height: usize, pixels_max: u64) -> Result<(), MaskReason> {
    check_size(width, height, pixels_max)?;
    out.width = width;
    out.height = height;
    // Every pixel is written by a decode that succeeds, so old content may stay.
    out.pixels.resize(width * height * 3, 0);
    Ok(())
}
