//! Against what Pillow, torchvision and open_clip made of the same input; see goldens/make.py.

use crate::support::{goldens, picture};
use argosy_common::config::AugmentationConfig;
use argosy_common::steplog::MaskReason;
use argosy_shard_loader::Tokenizer;
use argosy_shard_loader::decode::{Reduction, Rgb, decode, decode_reduced};
use argosy_shard_loader::resize::{Crop, Filter, Resizer};
use argosy_shard_loader::tokenize::END;
use argosy_shard_loader::transform::{Resize, ResizeMode, RowKey, Transformer, normalize};
use serde_json::Value;

fn cases(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(goldens().join(file)).expect("goldens");
    serde_json::from_str(&text).expect("a list")
}

fn fnv(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}

fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap_or_default()
}

fn number(value: &Value) -> usize {
    value.as_u64().expect("a number") as usize
}

/// Pillow refuses a profile that unpacks to more than a megabyte; ours never unpacks one.
const TAKEN_ALTHOUGH_REFUSED: [&str; 1] = ["icc_bomb.png"];

#[test]
fn decode_every_golden_picture_equals_pillow() {
    let mut wrong = Vec::new();
    for case in cases("pictures.json") {
        let file = text(&case, "file");
        let mut rgb = Rgb::default();
        let result = decode(&picture(file), 25_000_000, &mut rgb);
        if !case["error"].is_null() {
            if result != Err(MaskReason::Format) && !TAKEN_ALTHOUGH_REFUSED.contains(&file) {
                wrong.push(format!("{file}: {result:?}, Pillow refuses it"));
            }
            continue;
        }
        if let Err(reason) = result {
            wrong.push(format!("{file}: {reason:?}"));
            continue;
        }
        assert_eq!(
            (rgb.width, rgb.height),
            (number(&case["width"]), number(&case["height"])),
            "{file}"
        );
        if fnv(&rgb.pixels) != text(&case, "decoded") {
            wrong.push(format!("{file}: other pixels"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn evaluation_transform_of_golden_pictures_equals_torchvision() {
    let mut compared = 0;
    for case in cases("pictures.json") {
        let file = text(&case, "file");
        let mut rgb = Rgb::default();
        if !case["error"].is_null() || decode(&picture(file), 25_000_000, &mut rgb).is_err() {
            continue;
        }
        for (golden, mode, filter) in [
            ("evaluated", ResizeMode::Shortest, Filter::Bicubic),
            ("squashed", ResizeMode::Squash, Filter::Bicubic),
            ("bilinear", ResizeMode::Shortest, Filter::Bilinear),
            ("bilinear_squashed", ResizeMode::Squash, Filter::Bilinear),
        ] {
            for (size, digest) in case[golden].as_object().expect("sizes") {
                let side: usize = size.parse().expect("a size");
                let mut out = vec![0; side * side * 3];
                Transformer::default().evaluate(&rgb, side, Resize { mode, filter }, &mut out);
                assert_eq!(fnv(&out), digest.as_str().expect("a digest"), "{file} {golden} {size}");
                compared += 1;
            }
        }
    }
    assert!(compared > 120, "{compared} compared");
}

#[test]
fn longest_side_and_fill_of_golden_pictures_equal_open_clip() {
    let mut compared = 0;
    for case in cases("pictures.json") {
        let file = text(&case, "file");
        let mut rgb = Rgb::default();
        if !case["error"].is_null() || decode(&picture(file), 25_000_000, &mut rgb).is_err() {
            continue;
        }
        for (key, digest) in case["longest"].as_object().expect("sizes and fills") {
            let (side, fill) = key.split_once(' ').expect("two numbers");
            let (side, fill): (usize, u8) = (side.parse().expect("a size"), fill.parse().expect("a fill"));
            let mut out = vec![1; side * side * 3];
            let mode = ResizeMode::Longest { fill };
            let filter = Filter::Bicubic;
            Transformer::default().evaluate(&rgb, side, Resize { mode, filter }, &mut out);
            assert_eq!(fnv(&out), digest.as_str().expect("a digest"), "{file} longest {key}");
            compared += 1;
        }
    }
    assert!(compared > 60, "{compared} compared");
}

#[test]
fn normalize_every_byte_has_the_bits_of_torchvision() {
    let pixels: Vec<u8> = (0..=255u8).flat_map(|value| [value; 3]).collect();
    for case in cases("normalized.json") {
        let three =
            |key: &str| -> [f32; 3] { std::array::from_fn(|i| case[key][i].as_f64().expect("a number") as f32) };
        let mut out = vec![0f32; 3 * 256];
        normalize(&pixels, three("mean"), three("std"), &mut out);
        let bytes: Vec<u8> = out.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(fnv(&bytes), text(&case, "digest"), "{case}");
    }
}

/// Mean and largest difference of the fast path from the exact one, over pictures and crops.
fn fast_path_cost(pictures: &[Vec<u8>], side: usize) -> (f64, f64, usize) {
    let augment = AugmentationConfig::default();
    let (mut transformer, mut means, mut reduced) = (Transformer::default(), Vec::new(), 0);
    for (i, bytes) in pictures.iter().enumerate() {
        let key = RowKey {
            seed: 1,
            lane: 0,
            position: i as u64,
        };
        let mut run = |choose: &dyn Fn((usize, usize)) -> Reduction| {
            let mut rgb = Rgb::default();
            let full = decode_reduced(bytes, 1 << 30, &mut rgb, choose).expect("decodes");
            let mut out = vec![0; side * side * 3];
            transformer.train(&rgb, full, side, &augment, key, &mut out);
            (out, full != (rgb.width, rgb.height))
        };
        let (exact, _) = run(&|_| Reduction::None);
        let (fast, was_reduced) = run(&|full| Transformer::reduction(full, side, &augment, key));
        if was_reduced {
            reduced += 1;
            let sum: u64 = exact.iter().zip(&fast).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            means.push(sum as f64 / exact.len() as f64);
        } else {
            assert_eq!(exact, fast, "below three times nothing changes");
        }
    }
    let mean = means.iter().sum::<f64>() / means.len().max(1) as f64;
    (mean, means.iter().copied().fold(0.0, f64::max), reduced)
}

fn bound(key: &str) -> f64 {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/bounds.toml");
    let bounds: toml::Table = std::fs::read_to_string(path).expect("bounds").parse().expect("toml");
    bounds["fast_decode"][key].as_float().expect("a number")
}

#[test]
fn fast_path_costs_pixels_no_more_than_its_bound() {
    let pictures = ["420.jpg", "422.jpg", "progressive.jpg", "gray.jpg", "restarts.jpg"].map(picture);
    // 131 x 97 pixels: five times 16 to 24, where a half remains, and twelve times 7, where an eighth would be left.
    let (mut mean, mut most, mut reduced) = (0.0f64, 0.0f64, 0);
    for side in [8, 16, 24] {
        let cost = fast_path_cost(&pictures, side);
        (mean, most, reduced) = (mean.max(cost.0), most.max(cost.1), reduced + cost.2);
    }
    println!("mean {mean:.3}, worst picture {most:.3}, {reduced} reduced");
    assert!(reduced >= 15, "{reduced} reduced");
    assert!(mean > 0.0, "the fast path was not taken");
    assert!(
        mean <= bound("drawn_mean") && most <= bound("drawn_worst"),
        "{mean} {most}"
    );
}

/// What the documents state; ARGOSY_PHOTOS is a shard of `tests/peers/photos.py OUT large`.
#[test]
#[ignore = "needs photographs, which are not part of the repository"]
fn fast_path_costs_photographs_no_more_than_its_bound() {
    let Ok(shard) = std::env::var("ARGOSY_PHOTOS") else {
        println!("SKIP no ARGOSY_PHOTOS: a shard of photographs, made by tests/peers/photos.py");
        return;
    };
    let bytes = bytes::Bytes::from(std::fs::read(&shard).expect("the shard"));
    let members = argosy_shard_loader::tar::Walker::new(bytes.clone()).map(|m| m.expect("a good shard"));
    let pictures: Vec<Vec<u8>> = members
        .filter(|m| m.name.ends_with(".jpg"))
        .map(|m| bytes[m.data.start as usize..m.data.end as usize].to_vec())
        .collect();
    let (mean, most, reduced) = fast_path_cost(&pictures, 224);
    println!(
        "mean {mean:.3}, worst picture {most:.3}, {reduced} of {} reduced",
        pictures.len()
    );
    assert!(
        reduced > 0 && mean <= bound("photo_mean") && most <= bound("photo_worst"),
        "{mean} {most}"
    );
}

/// The picture that make.py calls `noise`.
fn noise(width: usize, height: usize) -> Rgb {
    let mut x = 1u32;
    let pixels = (0..width * height * 3).map(|_| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    });
    Rgb {
        width,
        height,
        pixels: pixels.collect(),
    }
}

#[test]
fn resize_both_pass_orders_equal_pillow() {
    // One resizer for all: what it keeps from case to case must not leak.
    let mut resizer = Resizer::default();
    for case in cases("resize.json") {
        let source = noise(number(&case["width"]), number(&case["height"]));
        let crop = match case["box"].as_array() {
            Some(b) => Crop {
                left: number(&b[0]),
                top: number(&b[1]),
                width: number(&b[2]),
                height: number(&b[3]),
            },
            None => Crop::whole(&source),
        };
        let mut out = Rgb::default();
        for (golden, filter) in [("digest", Filter::Bicubic), ("bilinear", Filter::Bilinear)] {
            resizer.set_filter(filter);
            resizer.resize(&source, crop, number(&case["to"][0]), number(&case["to"][1]), &mut out);
            assert_eq!(fnv(&out.pixels), text(&case, golden), "{case}");
        }
    }
}

#[test]
fn tokens_of_tricky_captions_equal_open_clip() {
    let tokenizer = Tokenizer::new(77);
    let mut wrong = Vec::new();
    let cases = cases("tokens.json");
    for case in &cases {
        let caption = text(case, "text");
        let expected: Vec<i32> = case["ids"]
            .as_array()
            .expect("ids")
            .iter()
            .map(|v| number(v) as i32)
            .collect();
        let mut row = vec![0; 77];
        let length = usize::from(tokenizer.row(caption, &mut row));
        let (ids, padding) = row.split_at(expected.len());
        // Where OpenCLIP's argmax finds the end: the first of the largest ids.
        let pooled = expected.iter().position(|id| *id == END).expect("an end");
        if ids != expected || padding.iter().any(|id| *id != 0) || length != pooled + 1 {
            wrong.push(format!(
                "{caption:?}: {row:?}, length {length}, instead of {expected:?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), cases.len());
}
