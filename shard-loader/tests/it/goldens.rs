//! Against what Pillow, torchvision and open_clip made of the same input; see goldens/make.py.

use crate::support::{goldens, picture};
use argosy_common::steplog::MaskReason;
use argosy_shard_loader::Tokenizer;
use argosy_shard_loader::decode::{Rgb, decode};
use argosy_shard_loader::resize::{Crop, Resizer};
use argosy_shard_loader::tokenize::END;
use argosy_shard_loader::transform::{ResizeMode, Transformer};
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

#[test]
fn decode_every_golden_picture_equals_pillow() {
    let mut wrong = Vec::new();
    for case in cases("pictures.json") {
        let file = text(&case, "file");
        let mut rgb = Rgb::default();
        let result = decode(&picture(file), 25_000_000, &mut rgb);
        if !case["error"].is_null() {
            if result != Err(MaskReason::Format) {
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
        if decode(&picture(file), 25_000_000, &mut rgb).is_err() {
            continue;
        }
        for (golden, mode) in [("evaluated", ResizeMode::Shortest), ("squashed", ResizeMode::Squash)] {
            for (size, digest) in case[golden].as_object().expect("sizes") {
                let side: usize = size.parse().expect("a size");
                let mut out = vec![0; side * side * 3];
                Transformer::default().evaluate(&rgb, side, mode, &mut out);
                assert_eq!(fnv(&out), digest.as_str().expect("a digest"), "{file} {golden} {size}");
                compared += 1;
            }
        }
    }
    assert!(compared > 60, "{compared} compared");
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
        resizer.resize(&source, crop, number(&case["to"][0]), number(&case["to"][1]), &mut out);
        assert_eq!(fnv(&out.pixels), text(&case, "digest"), "{case}");
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
