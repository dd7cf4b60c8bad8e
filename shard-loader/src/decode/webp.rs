//! WebP; of an animation the first frame, alpha dropped.

use super::{Rgb, make_room};
use argosy_common::steplog::MaskReason;
use image_webp::WebPDecoder;
use std::io::Cursor;

pub(super) fn decode(bytes: &[u8], pixels_max: u64, out: &mut Rgb) -> Result<(), MaskReason> {
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(|_| MaskReason::Format)?;
    let (width, height) = decoder.dimensions();
    make_room(out, width as usize, height as usize, pixels_max)?;
    decoder.set_memory_limit(out.pixels.len().saturating_mul(2).saturating_add(64 << 20));
    if !decoder.has_alpha() {
        return decoder.read_image(&mut out.pixels).map_err(|_| MaskReason::Format);
    }
    let size = decoder.output_buffer_size().ok_or(MaskReason::Format)?;
    let mut rgba = vec![0u8; size];
    decoder.read_image(&mut rgba).map_err(|_| MaskReason::Format)?;
    for (from, to) in rgba.chunks_exact(4).zip(out.pixels.chunks_exact_mut(3)) {
        to.copy_from_slice(&from[..3]);
    }
    Ok(())
}
