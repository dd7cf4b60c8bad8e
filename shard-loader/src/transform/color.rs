//! Colour jitter and gray pictures, with the arithmetic of Pillow's enhancers that torchvision calls.

use argosy_common::config::AugmentationConfig;
use argosy_common::rng::Draws;

/// Changes the colours of `[n, 3]` bytes as OpenCLIP's training transform does: jitter with its probability, then gray.
pub(super) fn augment(pixels: &mut [u8], config: &AugmentationConfig, draws: &mut Draws) {
    if let Some(strengths) = config.color_jitter
        && draws.unit() < config.color_jitter_prob
    {
        jitter(pixels, strengths, draws);
    }
    if config.gray_scale_prob > 0.0 && draws.unit() < config.gray_scale_prob {
        for pixel in pixels.chunks_exact_mut(3) {
            pixel.fill(luma(pixel));
        }
    }
}

/// torchvision's `ColorJitter`: brightness, contrast, saturation and hue in random order, each by a random factor. A
/// strength of zero leaves its property alone.
fn jitter(pixels: &mut [u8], [brightness, contrast, saturation, hue]: [f64; 4], draws: &mut Draws) {
    let order = draws.permutation(4);
    let mut factor = |strength: f64| draws.uniform((1.0 - strength).max(0.0), 1.0 + strength) as f32;
    let factors = [factor(brightness), factor(contrast), factor(saturation)];
    let turn = draws.uniform(-hue, hue);
    for step in order {
        match step {
            0 if brightness > 0.0 => blend_all(pixels, factors[0], |_| [0; 3]),
            1 if contrast > 0.0 => {
                let mean = mean_luma(pixels);
                blend_all(pixels, factors[1], |_| [mean; 3]);
            }
            2 if saturation > 0.0 => blend_all(pixels, factors[2], |p| [luma(p); 3]),
            3 if hue > 0.0 => turn_hue(pixels, turn),
            _ => {}
        }
    }
}

/// ITU-R 601 luma in Pillow's 16-bit fixed point.
fn luma(pixel: &[u8]) -> u8 {
    let sum = u32::from(pixel[0]) * 19_595 + u32::from(pixel[1]) * 38_470 + u32::from(pixel[2]) * 7_471;
    ((sum + 0x8000) >> 16) as u8
}

/// Mean luma, rounded half up.
fn mean_luma(pixels: &[u8]) -> u8 {
    let sum: u64 = pixels.chunks_exact(3).map(|p| u64::from(luma(p))).sum();
    let count = (pixels.len() / 3).max(1) as f64;
    (sum as f64 / count + 0.5) as u8
}

/// `base + factor * (pixel - base)` cut to a byte, base by pixel.
fn blend_all(pixels: &mut [u8], factor: f32, base: impl Fn(&[u8]) -> [u8; 3]) {
    for pixel in pixels.chunks_exact_mut(3) {
        let base = base(pixel);
        for (value, base) in pixel.iter_mut().zip(base) {
            let mixed = f32::from(base) + factor * (f32::from(*value) - f32::from(base));
            *value = mixed.clamp(0.0, 255.0) as u8;
        }
    }
}

/// Turns the hue by `turn` (-0.5..=0.5 of the circle) through Pillow's 8-bit HSV, which loses a little on the way.
fn turn_hue(pixels: &mut [u8], turn: f64) {
    let shift = ((turn * 255.0) as i32) as u8;
    for pixel in pixels.chunks_exact_mut(3) {
        let [h, s, v] = to_hsv([pixel[0], pixel[1], pixel[2]]);
        pixel.copy_from_slice(&to_rgb([h.wrapping_add(shift), s, v]));
    }
}

fn to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let high = r.max(g).max(b);
    let low = r.min(g).min(b);
    if high == low {
        return [0, 0, high];
    }
    let range = f32::from(high - low);
    let saturation = range / f32::from(high);
    let away = |c: u8| f32::from(high - c) / range;
    let hue = if r == high {
        away(b) - away(g)
    } else if g == high {
        (2.0 + f64::from(away(r)) - f64::from(away(b))) as f32
    } else {
        (4.0 + f64::from(away(g)) - f64::from(away(r))) as f32
    };
    let hue = ((f64::from(hue) / 6.0 + 1.0) % 1.0) as f32;
    [
        (f64::from(hue) * 255.0) as u8,
        (f64::from(saturation) * 255.0) as u8,
        high,
    ]
}

fn to_rgb([h, s, v]: [u8; 3]) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let sixth = f64::from(h) * 6.0 / 255.0;
    let sector = sixth.floor();
    let part = f64::from((sixth - sector) as f32);
    let saturation = f64::from((f64::from(s) / 255.0) as f32);
    let level = |x: f64| (f64::from(v) * x).round().clamp(0.0, 255.0) as u8;
    let p = level(1.0 - saturation);
    let q = level(1.0 - saturation * part);
    let t = level(1.0 - saturation * (1.0 - part));
    match sector as u32 % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use argosy_common::rng::Purpose;

    fn draws() -> Draws {
        Draws::new(1, Purpose::Color, 0, 0)
    }

    #[test]
    fn augment_gray_probability_one_makes_all_channels_equal() {
        let mut pixels = vec![200, 10, 60, 1, 2, 3];
        let config = AugmentationConfig {
            gray_scale_prob: 1.0,
            ..AugmentationConfig::default()
        };
        augment(&mut pixels, &config, &mut draws());
        assert!(pixels.chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2]));
    }

    #[test]
    fn augment_probability_zero_changes_nothing() {
        let before: Vec<u8> = (0..60).collect();
        let mut pixels = before.clone();
        let config = AugmentationConfig {
            color_jitter: Some([0.5; 4]),
            ..AugmentationConfig::default()
        };
        augment(&mut pixels, &config, &mut draws());
        assert_eq!(pixels, before);
    }

    #[test]
    fn hue_of_a_gray_pixel_stays() {
        let mut pixels = vec![90, 90, 90];
        turn_hue(&mut pixels, 0.3);
        assert_eq!(pixels, [90, 90, 90]);
    }

    #[test]
    fn jitter_of_zero_strength_leaves_pixels_alone() {
        let before: Vec<u8> = (0..90).map(|i| (i * 7 % 256) as u8).collect();
        let mut pixels = before.clone();
        jitter(&mut pixels, [0.0; 4], &mut draws());
        assert_eq!(pixels, before);
    }

    /// The picture that goldens/make.py calls `noise(57, 43, 9)`.
    fn noise() -> Vec<u8> {
        let mut x = 9u32;
        let next = |_| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 24) as u8
        };
        (0..57 * 43 * 3).map(next).collect()
    }

    #[test]
    fn every_change_of_colour_equals_torchvision() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/colors.json");
        let text = std::fs::read_to_string(path).expect("goldens");
        let goldens: std::collections::BTreeMap<String, String> = serde_json::from_str(&text).expect("a map");
        assert!(goldens.len() > 20);
        for (case, digest) in goldens {
            let mut pixels = noise();
            let (name, factor) = case.split_once(' ').unwrap_or((&case, "0"));
            let factor: f64 = factor.parse().expect("a factor");
            match name {
                "brightness" => blend_all(&mut pixels, factor as f32, |_| [0; 3]),
                "contrast" => {
                    let mean = mean_luma(&pixels);
                    blend_all(&mut pixels, factor as f32, |_| [mean; 3]);
                }
                "saturation" => blend_all(&mut pixels, factor as f32, |p| [luma(p); 3]),
                "hue" => turn_hue(&mut pixels, factor),
                _ => pixels.chunks_exact_mut(3).for_each(|p| p.fill(luma(p))),
            }
            let hash = pixels.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
                (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)
            });
            assert_eq!(format!("{hash:016x}"), digest, "{case}");
        }
    }
}
