//! Picture formats. Most pictures are JPEG; a fixed share is PNG and WebP, so that the shards hold all three.

use anyhow::{Context, Result};

use crate::draw::SIDE_PX;

/// A format by its file ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Jpg,
    Png,
    Webp,
}

impl Format {
    pub(crate) fn ending(self) -> &'static str {
        match self {
            Self::Jpg => "jpg",
            Self::Png => "png",
            Self::Webp => "webp",
        }
    }

    /// One sample in 40 is PNG, one is WebP: lossless, they take three to four times a JPEG's room. `number` counts a
    /// shard's samples.
    pub(crate) fn of(number: usize) -> Self {
        match number % 40 {
            0 => Self::Png,
            20 => Self::Webp,
            _ => Self::Jpg,
        }
    }

    /// `rgb` is `SIDE_PX` x `SIDE_PX` x 3; `jpeg_quality` is 1 to 100 and counts for JPEG only.
    pub(crate) fn encode(self, rgb: &[u8], jpeg_quality: i32) -> Result<Vec<u8>> {
        match self {
            Self::Jpg => jpeg(rgb, jpeg_quality),
            Self::Png => png(rgb),
            Self::Webp => {
                let mut bytes = Vec::new();
                image_webp::WebPEncoder::new(&mut bytes)
                    .encode(rgb, SIDE_PX, SIDE_PX, image_webp::ColorType::Rgb8)
                    .context("cannot write a WebP picture")?;
                Ok(bytes)
            }
        }
    }
}

/// With the standard's own Huffman tables: the header is then the same in every file and costs nothing once compressed.
fn jpeg(rgb: &[u8], quality: i32) -> Result<Vec<u8>> {
    let side = SIDE_PX as usize;
    let mut compressor = turbojpeg::Compressor::new().context("cannot start the JPEG encoder")?;
    compressor.set_quality(quality).context("JPEG quality out of range")?;
    compressor
        .set_subsamp(turbojpeg::Subsamp::Sub2x2)
        .context("cannot set chroma subsampling")?;
    let image = turbojpeg::Image {
        pixels: rgb,
        width: side,
        pitch: 3 * side,
        height: side,
        format: turbojpeg::PixelFormat::RGB,
    };
    compressor.compress_to_vec(image).context("cannot write a JPEG picture")
}

fn png(rgb: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, SIDE_PX, SIDE_PX);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::High);
    let mut writer = encoder.write_header().context("cannot write a PNG header")?;
    writer.write_image_data(rgb).context("cannot write a PNG picture")?;
    writer.finish().context("cannot end a PNG picture")?;
    Ok(bytes)
}

/// Width and height of a picture that decodes without error.
#[cfg(test)]
pub(crate) fn decoded_size(ending: &str, bytes: &[u8]) -> Result<(usize, usize)> {
    use std::io::Cursor;
    match ending {
        "jpg" => turbojpeg::decompress(bytes, turbojpeg::PixelFormat::RGB)
            .map(|i| (i.width, i.height))
            .map_err(Into::into),
        "png" => {
            let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info()?;
            let mut pixels = vec![0; reader.output_buffer_size().context("too large")?];
            let info = reader.next_frame(&mut pixels)?;
            Ok((info.width as usize, info.height as usize))
        }
        _ => {
            let mut decoder = image_webp::WebPDecoder::new(Cursor::new(bytes))?;
            let mut pixels = vec![0; decoder.output_buffer_size().context("too large")?];
            decoder.read_image(&mut pixels)?;
            let (width, height) = decoder.dimensions();
            Ok((width as usize, height as usize))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encode_every_format_decodes_to_the_same_size() {
        let rgb: Vec<u8> = (0..64 * 64 * 3).map(|i| (i / 97 % 256) as u8).collect();
        for format in [Format::Jpg, Format::Png, Format::Webp] {
            let bytes = format.encode(&rgb, 75).unwrap();
            assert_eq!(decoded_size(format.ending(), &bytes).unwrap(), (64, 64));
            assert_eq!(bytes, format.encode(&rgb, 75).unwrap(), "the same bytes each time");
        }
    }

    #[test]
    fn format_hundred_samples_hold_all_three() {
        let count = |format| (0..100).filter(|&number| Format::of(number) == format).count();
        assert_eq!([Format::Jpg, Format::Png, Format::Webp].map(count), [95, 3, 2]);
    }
}
