//! Shards of photographs with planted damage whose good keys are known: every good key is trained once, every bad one named
//! with its reason, from files and from a store that fails.
//!
//! ARGOSY_PHOTOS, a shard of `tests/peers/photos.py`, gives real photographs; without it they are drawn.

use crate::stores::{BUCKET, build, config, run, store};
use crate::support::{picture, tar};
use argosy_shard_loader::check::{self, CheckConfig};
use argosy_shard_loader::{RetryPolicy, Store, Tokenizer};
use argosy_test_stores::{Faults, S3Double, Storm};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

const SHARDS: usize = 3;

/// Photographs as JPEG.
fn photographs() -> Vec<Vec<u8>> {
    let Ok(shard) = std::env::var("ARGOSY_PHOTOS") else {
        return (0..90).map(drawn).collect();
    };
    let bytes = bytes::Bytes::from(std::fs::read(&shard).expect("the shard"));
    let members = argosy_shard_loader::tar::Walker::new(bytes.clone()).map(|m| m.expect("a good shard"));
    members
        .filter(|m| m.name.ends_with(".jpg"))
        .map(|m| bytes[m.data.start as usize..m.data.end as usize].to_vec())
        .collect()
}

/// A sky, a shore and grain, of a size of its own.
fn drawn(number: usize) -> Vec<u8> {
    let (width, height) = (96 + number * 7 % 130, 80 + number * 13 % 110);
    let mut x = number as u32 | 1;
    let pixels: Vec<u8> = (0..width * height * 3)
        .map(|i| {
            let (row, column) = (i / 3 / width, i / 3 % width);
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let shore = if row * 2 > height + column / 4 { 90 } else { 0 };
            (40 + row * 100 / height + shore * (i % 3) / 2) as u8 + (x >> 28) as u8
        })
        .collect();
    let image = turbojpeg::Image {
        pixels: pixels.as_slice(),
        width,
        pitch: width * 3,
        height,
        format: turbojpeg::PixelFormat::RGB,
    };
    let subsamp = [turbojpeg::Subsamp::Sub2x2, turbojpeg::Subsamp::None][number % 2];
    turbojpeg::compress(image, 92, subsamp).expect("encoded").to_vec()
}

/// What is planted in every seventh photograph, by turns: suffix and bytes of the picture, the caption where there is one, the
/// reason to be named.
fn plant(turn: usize, photograph: &[u8]) -> (&'static str, Vec<u8>, Option<Vec<u8>>, &'static str) {
    let caption = || Some(b"a caption".to_vec());
    let mut huge = picture("rgb.png");
    huge[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    match turn % 8 {
        0 => (
            "jpg",
            photograph[..photograph.len() * 3 / 5].to_vec(),
            caption(),
            "format",
        ),
        1 => ("jpg", b"<!DOCTYPE html><html>404</html>".to_vec(), caption(), "format"),
        2 => ("png", huge, caption(), "pixels"),
        3 => ("jpg", photograph.to_vec(), Some(b" \r\n".to_vec()), "caption"),
        4 => ("jpg", photograph.to_vec(), Some(vec![b'a', 0xff, 0xfe]), "caption"),
        5 => ("jpg", photograph.to_vec(), None, "missing"),
        6 => ("jpg", Vec::new(), caption(), "format"),
        // The frame's header says there is more than there is.
        _ => ("jpg", photograph[..photograph.len() / 20].to_vec(), caption(), "format"),
    }
}

struct Planted {
    shards: Vec<Vec<u8>>,
    /// Captions of the good keys.
    good: BTreeSet<String>,
    /// Keys and reasons.
    bad: BTreeSet<(String, String)>,
}

fn planted() -> Planted {
    let mut members = vec![Vec::new(); SHARDS];
    let (mut good, mut bad) = (BTreeSet::new(), BTreeSet::new());
    for (number, photograph) in photographs().into_iter().enumerate() {
        let key = format!("{:03}/{number:06}", number % 5);
        let shard = &mut members[number % SHARDS];
        if number % 7 == 3 {
            let (suffix, image, caption, reason) = plant(number / 7, &photograph);
            shard.push((format!("{key}.{suffix}"), image));
            shard.extend(caption.map(|caption| (format!("{key}.txt"), caption)));
            bad.insert((key, reason.to_owned()));
        } else {
            let caption = format!("photograph {number}");
            shard.push((format!("{key}.jpg"), photograph));
            shard.push((format!("{key}.txt"), caption.clone().into_bytes()));
            good.insert(caption);
        }
    }
    Planted {
        shards: members.iter().map(|m| tar(m)).collect(),
        good,
        bad,
    }
}

/// What must be trained: the tokens of every good caption, once.
fn expected(good: &BTreeSet<String>) -> BTreeMap<Vec<i32>, u32> {
    let tokenizer = Tokenizer::new(12);
    let tokens = |caption: &String| {
        let mut row = vec![0; 12];
        tokenizer.row(caption, &mut row);
        (row, 1)
    };
    good.iter().map(tokens).collect()
}

fn judge(store: &Store, shards: &str, base: &Path, planted: &Planted) {
    let (index, report) = build(store, shards, &config()).expect("indexed");
    let missing = planted.bad.iter().filter(|(_, reason)| reason == "missing").count();
    assert_eq!(
        (report.missing, report.damaged.len()),
        (missing as u64, 0),
        "{report:?}"
    );
    let (trained, masked) = run(&Arc::new(index), store);
    assert!(trained == expected(&planted.good), "every good key once, and no other");
    assert_eq!(masked as usize, planted.bad.len() - missing);
    let checked = CheckConfig {
        build: config(),
        max_image_pixels: 25_000_000,
        max_sample_bytes: 64 << 20,
        listed_max: 10_000,
    };
    let report = check::check(store, shards, base, &checked, &|_, _| {}).expect("checked");
    let named: BTreeSet<(String, String)> = report.problems.into_iter().map(|p| (p.key, p.reason)).collect();
    assert_eq!(named, planted.bad, "every bad key with its reason");
    assert_eq!(report.good as usize, planted.good.len());
}

#[test]
fn photographs_with_planted_damage_train_every_good_key_once_and_name_every_bad_one() {
    let planted = planted();
    assert!(planted.good.len() > 70 && planted.bad.len() > 10);
    let folder = tempfile::tempdir().expect("a folder");
    for (i, shard) in planted.shards.iter().enumerate() {
        std::fs::write(folder.path().join(format!("{i}.tar")), shard).expect("written");
    }
    let files = Store::new(RetryPolicy::default()).expect("a store");
    judge(&files, &folder.path().display().to_string(), folder.path(), &planted);

    println!("SEED photograph_storm 3");
    let double = S3Double::start(Faults::default()).expect("a port");
    for (i, shard) in planted.shards.iter().enumerate() {
        double.insert(BUCKET, &format!("set/{i}.tar"), shard.clone());
    }
    double.faults().storm(Storm {
        seed: 3,
        per_mille: 400,
    });
    judge(&store(&double), "s3://bucket/set/", Path::new("/"), &planted);
    assert!(
        double.faults().fired().values().sum::<u64>() > 10,
        "{:?}",
        double.faults().fired()
    );
}
