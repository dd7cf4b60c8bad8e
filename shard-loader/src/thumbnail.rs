//! Small JPEG pictures for reports.

use crate::decode::Rgb;
use crate::resize::{Crop, Resizer};

const QUALITY: i32 = 82;

/// `[side, side, 3]` pixels as a JPEG with edges of at most `edge_max` pixels.
///
/// # Errors
/// The encoder's words.
pub fn thumbnail(pixels: &[u8], side: usize, edge_max: usize) -> Result<Vec<u8>, String> {
    if pixels.len() != side * side * 3 || side == 0 {
        return Err(format!("{} bytes are no picture of {side} x {side}", pixels.len()));
    }
    let whole = Rgb {
        width: side,
        height: side,
        pixels: pixels.to_vec(),
    };
    let mut small = Rgb::default();
    let picture = if side > edge_max {
        let edge = edge_max.max(1);
        Resizer::default().resize(&whole, Crop::whole(&whole), edge, edge, &mut small);
        &small
    } else {
        &whole
    };
    let image = turbojpeg::Image {
        pixels: picture.pixels.as_slice(),
        width: picture.width,
        pitch: picture.width * 3,
        height: picture.height,
        format: turbojpeg::PixelFormat::RGB,
    };
    let jpeg = turbojpeg::compress(image, QUALITY, turbojpeg::Subsamp::Sub2x2).map_err(|e| e.to_string())?;
    Ok(jpeg.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode;

    #[test]
    fn thumbnail_of_a_large_picture_is_small_and_looks_like_it() {
        let pixels = [200u8, 40, 90].repeat(300 * 300);
        let jpeg = thumbnail(&pixels, 300, 96).unwrap();
        let mut back = Rgb::default();
        decode(&jpeg, 1 << 20, &mut back).unwrap();
        assert_eq!((back.width, back.height), (96, 96));
        assert!(back.pixels.iter().zip(&pixels).all(|(a, b)| a.abs_diff(*b) < 8));
        assert!(thumbnail(&pixels, 299, 96).is_err());
    }
}
