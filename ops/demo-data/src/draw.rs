//! From an icon to a small picture: placed, tinted and laid on a background.

use std::io::Cursor;

use anyhow::{Context, Result};
use resvg::tiny_skia::{FilterQuality, IntSize, Pixmap, PixmapPaint, Transform};
use resvg::usvg;

use crate::seed::Draws;

/// Side of every picture in px.
pub(crate) const SIDE_PX: u32 = 64;

/// A drawing that can be rendered at any size.
pub(crate) enum Drawing {
    Vector(Box<usvg::Tree>),
    Raster(Pixmap),
}

impl std::fmt::Debug for Drawing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, width, height) = match self {
            Self::Vector(tree) => ("Vector", tree.size().width(), tree.size().height()),
            Self::Raster(pixmap) => ("Raster", pixmap.width() as f32, pixmap.height() as f32),
        };
        write!(f, "{kind}({width} x {height})")
    }
}

/// What is done to a drawing on its way to a picture.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Look {
    /// The drawing's longer side as a share of the picture's.
    scale: f32,
    /// Offset of its centre in px.
    offset: (f32, f32),
    rotation_degrees: f32,
    /// Factor for each colour channel.
    gains: [f32; 3],
    gray: bool,
    /// Colours of the top left and the bottom right corner.
    background: [[u8; 3]; 2],
}

impl Look {
    /// A varied look for training, so that a model cannot lean on place, pose, tint or ground. Nothing is mirrored or turned
    /// far (arrows mean what they point at), and what is named by its colour never turns gray.
    pub(crate) fn varied(draws: &mut Draws, colour_matters: bool) -> Self {
        let scale = draws.between(0.72, 1.0);
        let slack = (1.0 - scale) * SIDE_PX as f32 / 2.0 + 1.0;
        let offset = (draws.between(-slack, slack), draws.between(-slack, slack));
        let spread = if colour_matters { 0.06 } else { 0.18 };
        let gains = [(); 3].map(|()| draws.between(1.0 - spread, 1.0 + spread));
        Self {
            scale,
            offset,
            rotation_degrees: draws.between(-14.0, 14.0),
            gains,
            gray: draws.below(8) == 0 && !colour_matters,
            background: ground(draws),
        }
    }

    /// An upright, centred look on one of a few quiet grounds, for testing.
    pub(crate) fn plain(draws: &mut Draws) -> Self {
        const GROUNDS: [[u8; 3]; 6] = [
            [250, 250, 250],
            [238, 242, 247],
            [247, 241, 230],
            [226, 236, 226],
            [214, 220, 232],
            [240, 228, 234],
        ];
        let colour = GROUNDS[draws.below(GROUNDS.len())];
        Self {
            scale: 0.9,
            offset: (0.0, 0.0),
            rotation_degrees: 0.0,
            gains: [1.0; 3],
            gray: false,
            background: [colour; 2],
        }
    }
}

/// White, pastel, dark, strong, or running from one colour into another.
fn ground(draws: &mut Draws) -> [[u8; 3]; 2] {
    let mut colour = |low: f32, high: f32| [(); 3].map(|()| draws.between(low, high) as u8);
    let (pastel, dark, strong, other) = (
        colour(190.0, 256.0),
        colour(0.0, 80.0),
        colour(0.0, 256.0),
        colour(90.0, 256.0),
    );
    match draws.below(10) {
        0 | 1 => [[255; 3]; 2],
        2..=4 => [pastel; 2],
        5 => [dark; 2],
        6 | 7 => [strong; 2],
        _ => [pastel, other],
    }
}

impl Drawing {
    pub(crate) fn from_svg(svg: &str) -> Result<Self> {
        let tree = usvg::Tree::from_str(svg, &usvg::Options::default()).context("cannot read the SVG")?;
        Ok(Self::Vector(Box::new(tree)))
    }

    pub(crate) fn from_webp(bytes: &[u8]) -> Result<Self> {
        let mut decoder = image_webp::WebPDecoder::new(Cursor::new(bytes)).context("cannot read the WebP header")?;
        let (width, height) = decoder.dimensions();
        let len = decoder.output_buffer_size().context("the WebP picture is too large")?;
        let mut pixels = vec![0; len];
        decoder
            .read_image(&mut pixels)
            .context("cannot decode the WebP picture")?;
        if !decoder.has_alpha() {
            pixels = pixels
                .chunks_exact(3)
                .flat_map(|rgb| [rgb[0], rgb[1], rgb[2], 255])
                .collect();
        }
        for pixel in pixels.chunks_exact_mut(4) {
            let alpha = u16::from(pixel[3]);
            for channel in &mut pixel[..3] {
                *channel = ((u16::from(*channel) * alpha + 127) / 255) as u8;
            }
        }
        let size = IntSize::from_wh(width, height).context("the WebP picture has no area")?;
        let mut pixmap = Pixmap::from_vec(pixels, size).context("the WebP picture has the wrong length")?;
        // tiny-skia samples four pixels at most, so a large picture is first halved down to twice the final side.
        while pixmap.width() >= 4 * SIDE_PX && pixmap.height() >= 4 * SIDE_PX {
            pixmap = halved(&pixmap).context("the WebP picture is too small")?;
        }
        Ok(Self::Raster(pixmap))
    }

    /// RGB bytes, `SIDE_PX` x `SIDE_PX` x 3.
    pub(crate) fn render(&self, look: &Look) -> Result<Vec<u8>> {
        let canvas = match self {
            Self::Vector(tree) => {
                let mut canvas = Pixmap::new(SIDE_PX, SIDE_PX).context("no canvas")?;
                let (width, height) = (tree.size().width(), tree.size().height());
                resvg::render(tree, placed(look, width, height, SIDE_PX), &mut canvas.as_mut());
                canvas
            }
            Self::Raster(picture) => {
                let mut canvas = Pixmap::new(2 * SIDE_PX, 2 * SIDE_PX).context("no canvas")?;
                let paint = PixmapPaint {
                    quality: FilterQuality::Bilinear,
                    ..PixmapPaint::default()
                };
                let transform = placed(look, picture.width() as f32, picture.height() as f32, 2 * SIDE_PX);
                canvas.draw_pixmap(0, 0, picture.as_ref(), &paint, transform, None);
                halved(&canvas).context("no canvas")?
            }
        };
        Ok(flatten(&canvas, look))
    }
}

/// Where a drawing of `width` x `height` lands on a canvas of `side` px.
fn placed(look: &Look, width: f32, height: f32, side: u32) -> Transform {
    let side = side as f32;
    let zoom = look.scale * side / width.max(height);
    let per_px = side / SIDE_PX as f32;
    Transform::from_translate(-width / 2.0, -height / 2.0)
        .post_concat(Transform::from_scale(zoom, zoom))
        .post_concat(Transform::from_rotate(look.rotation_degrees))
        .post_concat(Transform::from_translate(
            side / 2.0 + look.offset.0 * per_px,
            side / 2.0 + look.offset.1 * per_px,
        ))
}

/// The mean of each 2 x 2 block.
fn halved(pixmap: &Pixmap) -> Option<Pixmap> {
    let (width, height) = (pixmap.width() / 2, pixmap.height() / 2);
    let mut small = Pixmap::new(width, height)?;
    let row = pixmap.width() as usize * 4;
    let from = pixmap.data();
    for (index, byte) in small.data_mut().iter_mut().enumerate() {
        let (x, y, channel) = (index / 4 % width as usize, index / 4 / width as usize, index % 4);
        let at = 2 * y * row + 8 * x + channel;
        let sum: u16 = [at, at + 4, at + row, at + row + 4]
            .iter()
            .map(|&near| u16::from(from[near]))
            .sum();
        *byte = ((sum + 2) / 4) as u8;
    }
    Some(small)
}

/// Tints a premultiplied drawing and lays it on its background.
fn flatten(canvas: &Pixmap, look: &Look) -> Vec<u8> {
    let [from, to] = look.background;
    let mut rgb = Vec::with_capacity(canvas.data().len() / 4 * 3);
    for (index, pixel) in canvas.data().chunks_exact(4).enumerate() {
        let (x, y) = (index as u32 % SIDE_PX, index as u32 / SIDE_PX);
        let (alpha, along, end) = (u32::from(pixel[3]), x + y, 2 * (SIDE_PX - 1));
        // Rec. 601 weights; a premultiplied gray stays premultiplied.
        let gray = (299 * u32::from(pixel[0]) + 587 * u32::from(pixel[1]) + 114 * u32::from(pixel[2])) / 1000;
        for channel in 0..3 {
            let ink = if look.gray { gray } else { u32::from(pixel[channel]) };
            let ink = ((ink as f32 * look.gains[channel]) as u32).min(alpha);
            let ground = (u32::from(from[channel]) * (end - along) + u32::from(to[channel]) * along) / end;
            rgb.push((ink + (ground * (255 - alpha) + 127) / 255).min(255) as u8);
        }
    }
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;

    const SQUARE: &str = r##"<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><rect width="8" height="8" fill="#c80000"/></svg>"##;

    fn look() -> Look {
        Look {
            scale: 0.5,
            offset: (0.0, 0.0),
            rotation_degrees: 0.0,
            gains: [1.0; 3],
            gray: false,
            background: [[0, 0, 255]; 2],
        }
    }

    fn pixel(rgb: &[u8], x: usize, y: usize) -> [u8; 3] {
        let at = (y * SIDE_PX as usize + x) * 3;
        [rgb[at], rgb[at + 1], rgb[at + 2]]
    }

    #[test]
    fn render_half_scale_square_leaves_the_ground_round_it() {
        let rgb = Drawing::from_svg(SQUARE).unwrap().render(&look()).unwrap();
        assert_eq!(rgb.len(), 64 * 64 * 3);
        assert_eq!((pixel(&rgb, 2, 2), pixel(&rgb, 32, 32)), ([0, 0, 255], [200, 0, 0]));
        assert_eq!((pixel(&rgb, 15, 32), pixel(&rgb, 16, 32)), ([0, 0, 255], [200, 0, 0]));
    }

    #[test]
    fn render_webp_looks_as_its_vector() {
        let rgba: Vec<u8> = [200, 0, 0, 255].repeat(256 * 256);
        let mut webp = Vec::new();
        image_webp::WebPEncoder::new(&mut webp)
            .encode(&rgba, 256, 256, image_webp::ColorType::Rgba8)
            .unwrap();
        let raster = Drawing::from_webp(&webp).unwrap().render(&look()).unwrap();
        assert_eq!(
            (pixel(&raster, 2, 2), pixel(&raster, 32, 32)),
            ([0, 0, 255], [200, 0, 0])
        );
    }

    #[test]
    fn render_gray_and_offset_are_applied() {
        let look = Look {
            gray: true,
            offset: (10.0, 0.0),
            ..look()
        };
        let rgb = Drawing::from_svg(SQUARE).unwrap().render(&look).unwrap();
        assert_eq!((pixel(&rgb, 20, 32), pixel(&rgb, 40, 32)), ([0, 0, 255], [59; 3]));
    }

    #[test]
    fn varied_looks_of_a_colour_name_never_turn_gray() {
        let grays = |matters| {
            (0..200)
                .filter(|n| Look::varied(&mut Draws::for_key(&n.to_string()), matters).gray)
                .count()
        };
        assert_eq!(grays(true), 0);
        assert!((10..50).contains(&grays(false)));
    }
}
