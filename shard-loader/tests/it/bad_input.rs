//! Bad input: each becomes its reason, good samples still come out, each exactly once.

use crate::support::{good_members, index, loader_config, picture, record, tar};
use argosy_common::steplog::{MaskReason, RowState};
use argosy_shard_loader::decode::{Rgb, decode};
use argosy_shard_loader::{EvalConfig, EvalReader, Index, Loader, LoaderError, RetryPolicy, Store};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);

/// A PNG header that claims 60,000 x 60,000 pixels.
fn huge_png() -> Vec<u8> {
    let mut png = picture("rgb.png");
    png[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    png[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    png
}

/// A JPEG whose frame header claims as much.
fn huge_jpeg() -> Vec<u8> {
    let mut jpeg = picture("420.jpg");
    let frame = jpeg
        .windows(2)
        .position(|w| w == [0xff, 0xc0])
        .expect("a baseline frame");
    jpeg[frame + 5..frame + 7].copy_from_slice(&60_000u16.to_be_bytes());
    jpeg[frame + 7..frame + 9].copy_from_slice(&60_000u16.to_be_bytes());
    jpeg
}

fn pair(row: usize, suffix: &str, image: Vec<u8>, caption: &[u8]) -> [(String, Vec<u8>); 2] {
    [
        (format!("bad{row}.{suffix}"), image),
        (format!("bad{row}.txt"), caption.to_vec()),
    ]
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(folder.join(name), bytes).expect("written");
}

/// What became of the rows of one pass: valid ones by id, masked ones by reason.
fn run_all(index: Index) -> (usize, BTreeMap<MaskReason, usize>) {
    let config = loader_config(index.to_shape(), 4, 2, 1);
    let (total, steps) = (config.shape.total_positions as usize, config.shape.total_steps());
    let loader = Loader::new(Arc::new(index), config).expect("a loader");
    loader.assign(&[0, 1], 0);
    let mut seen = BTreeMap::new();
    let mut reasons: BTreeMap<MaskReason, usize> = BTreeMap::new();
    let mut valid = 0;
    for _ in 0..steps {
        for batch in loader.next(WAIT).expect("loads").expect("in time") {
            for (sample, state) in batch.samples.iter().zip(&batch.states) {
                *seen.entry(*sample).or_insert(0) += 1;
                match state {
                    RowState::Valid => valid += 1,
                    RowState::Masked(reason) => *reasons.entry(*reason).or_default() += 1,
                    RowState::Absent => panic!("a sample cannot be absent"),
                }
            }
            let zeroed = batch
                .states
                .iter()
                .zip(batch.pixels.chunks_exact(16 * 16 * 3))
                .zip(&batch.lengths);
            for ((state, pixels), length) in zeroed {
                assert_eq!(*state == RowState::Valid, *length > 0, "{state:?}");
                assert!(*state == RowState::Valid || pixels.iter().all(|p| *p == 0));
            }
        }
    }
    assert_eq!(seen.len(), total);
    assert!(seen.values().all(|n| *n == 1), "each exactly once");
    assert!(matches!(loader.next(WAIT), Err(LoaderError::EndOfRun { .. })));
    let stats = loader.stats();
    assert_eq!(stats.images as usize, valid);
    assert_eq!(
        stats.masked.values().sum::<u64>() as usize,
        reasons.values().sum::<usize>()
    );
    (valid, reasons)
}

#[test]
fn bad_samples_each_become_their_reason_and_good_ones_train() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut members = good_members(0, 9);
    members.extend(pair(1, "jpg", huge_jpeg(), b"too large"));
    members.extend(pair(2, "png", huge_png(), b"too large"));
    members.extend(pair(3, "jpg", picture("cut.jpg"), b"cut"));
    members.extend(pair(4, "jpg", picture("text.jpg"), b"no picture"));
    members.extend(pair(5, "jpg", picture("420.jpg"), b" \n"));
    members.extend(pair(6, "jpg", picture("420.jpg"), &[0xff, 0xfe, b'a']));
    members.push(("only.txt".into(), b"a caption alone".to_vec()));
    members.push(("only2.jpg".into(), picture("420.jpg")));
    write(folder.path(), "a.tar", &tar(&members));
    write(folder.path(), "b.tar", &tar(&good_members(1, 5)));
    let (index, report) = index(folder.path());
    assert_eq!((report.rows, report.missing, report.damaged.len()), (20, 2, 0));
    let (valid, reasons) = run_all(index);
    assert_eq!(valid, 14);
    let expected = [
        (MaskReason::Format, 2),
        (MaskReason::Pixels, 2),
        (MaskReason::Caption, 2),
    ];
    assert_eq!(reasons, expected.into());
}

#[test]
fn damaged_shards_keep_their_good_rows_and_are_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = tar(&good_members(0, 8));
    write(folder.path(), "a.tar", &whole[..whole.len() - 1024 - 700]);
    write(folder.path(), "b.tar", b"");
    write(folder.path(), "c.tar", &tar(&good_members(2, 4)));
    write(
        folder.path(),
        "d.tar",
        b"this is no archive at all, only some text that goes on for a while",
    );
    let (index, report) = index(folder.path());
    assert_eq!(report.rows, 7 + 4, "the row that was cut is not kept");
    let damaged: Vec<(bool, u32)> = report
        .damaged
        .iter()
        .map(|d| (d.why.contains("cut") || d.why.contains("empty"), d.rows))
        .collect();
    assert_eq!(damaged, [(true, 7), (true, 0), (true, 0)], "{:?}", report.damaged);
    assert_eq!(index.to_shape()[0].shard_rows, [7, 0, 4, 0]);
    assert_eq!(run_all(index), (11, BTreeMap::new()));
}

#[test]
fn sample_beyond_the_byte_limit_is_masked_without_being_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut members = good_members(0, 3);
    members.extend(pair(1, "jpg", vec![0; 200_000], b"large"));
    write(folder.path(), "a.tar", &tar(&members));
    let (index, _) = index(folder.path());
    let mut config = loader_config(index.to_shape(), 4, 1, 1);
    config.data.max_sample_bytes = 100_000;
    let loader = Loader::new(Arc::new(index), config).expect("a loader");
    loader.assign(&[0], 0);
    let batches = loader.next(WAIT).expect("loads").expect("in time");
    let masked: Vec<MaskReason> = batches[0].masked().map(|(_, reason)| reason).collect();
    assert_eq!(masked, [MaskReason::Bytes]);
    assert!(loader.stats().bytes < 100_000);
}

#[test]
fn sources_without_a_usable_sample_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "a.tar", &tar(&[("1.json".into(), b"{}".to_vec())]));
    let source = argosy_common::config::Source {
        name: "x".into(),
        shards: ".".into(),
    };
    let config = argosy_shard_loader::BuildConfig::new("jpg;png;jpeg;webp", "txt");
    let store = Store::new(RetryPolicy::default()).expect("a store");
    let built = argosy_shard_loader::index::build(&store, &[source], folder.path(), &config, &|_| {});
    let error = built.expect_err("nothing");
    let text = error.to_string();
    assert!(
        text.contains("`x`") && text.contains("jpg;png;jpeg;webp") && text.contains("1 samples lack"),
        "{text}"
    );
}

#[test]
fn shard_that_changed_since_it_was_indexed_blocks_its_lane() {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "a.tar", &tar(&good_members(0, 6)));
    let (index, _) = index(folder.path());
    let index = Arc::new(index);
    let first_error = |index: &Arc<Index>| {
        let config = loader_config(index.to_shape(), 2, 1, 1);
        let loader = Loader::new(Arc::clone(index), config).expect("a loader");
        loader.assign(&[0], 0);
        loader.next(WAIT).expect_err("blocked").to_string()
    };
    write(folder.path(), "a.tar", &tar(&good_members(0, 7)));
    let text = first_error(&index);
    assert!(
        text.contains("a.tar") && text.contains("changed") && text.contains("argosy index"),
        "{text}"
    );
    std::fs::remove_file(folder.path().join("a.tar")).expect("removed");
    let text = first_error(&index);
    assert!(text.contains("a.tar") && text.contains("does not exist"), "{text}");
}

#[test]
fn row_whose_headers_broke_under_the_same_etag_is_masked_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.tar");
    write(folder.path(), "a.tar", &tar(&good_members(0, 5)));
    let (index, _) = index(folder.path());
    // Same size, inode and age, other bytes: nothing a store could notice.
    let age = std::fs::metadata(&path).and_then(|m| m.modified()).expect("an age");
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
    std::os::unix::fs::FileExt::write_at(&file, b"X", 3).expect("written");
    file.set_modified(age).expect("set");
    drop(file);
    let (valid, reasons) = run_all(index);
    assert_eq!((valid, reasons), (4, [(MaskReason::Missing, 1)].into()));
}

/// A JPEG without the segments of that marker.
fn without(jpeg: &[u8], marker: u8) -> Vec<u8> {
    let mut out = jpeg[..2].to_vec();
    let mut at = 2;
    while jpeg[at + 1] != 0xda {
        let end = at + 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
        if jpeg[at + 1] != marker {
            out.extend_from_slice(&jpeg[at..end]);
        }
        at = end;
    }
    out.extend_from_slice(&jpeg[at..]);
    out
}

#[test]
fn decode_after_a_broken_jpeg_still_takes_good_ones() {
    let good = picture("420.jpg");
    let mut clean = Rgb::default();
    decode(&good, 1 << 20, &mut clean).expect("a good picture");
    let mut used = Rgb::default();
    let frame = good.windows(2).position(|w| w == [0xff, 0xc0]).expect("a frame");
    for bad in [&[0xff, 0xd8, 0xff][..], &good[..20], &good[..frame + 4], &huge_jpeg()] {
        assert!(decode(bad, 1 << 20, &mut used).is_err());
        decode(&good, 1 << 20, &mut used).expect("the good picture again");
        assert_eq!(used, clean);
    }
}

#[test]
fn decode_jpeg_without_its_tables_is_format_whatever_came_before() {
    let good = picture("420.jpg");
    let mut out = Rgb::default();
    // Quantisation tables; libjpeg supplies standard Huffman tables itself, so those may be absent.
    let bare = without(&good, 0xdb);
    assert_eq!(decode(&bare, 1 << 20, &mut out), Err(MaskReason::Format));
    decode(&good, 1 << 20, &mut out).expect("a good picture");
    assert_eq!(decode(&bare, 1 << 20, &mut out), Err(MaskReason::Format));
}

#[test]
fn decode_damaged_pictures_are_a_function_of_their_bytes() {
    let (mut decoded, mut dirty) = (0, Rgb::default());
    for file in [
        "420.jpg",
        "progressive.jpg",
        "cmyk.jpg",
        "rgb.png",
        "lossy.webp",
        "lossless.webp",
    ] {
        let whole = picture(file);
        for at in (12..whole.len()).step_by(whole.len() / 40 + 1) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            let mut clean = Rgb::default();
            let alone = decode(&bytes, 1 << 20, &mut clean);
            dirty.pixels.fill(0xa5);
            assert_eq!(decode(&bytes, 1 << 20, &mut dirty), alone, "{file} at {at}");
            if alone.is_ok() {
                assert_eq!(dirty, clean, "{file} at {at}");
                decoded += 1;
            }
        }
    }
    assert!(decoded > 20, "only {decoded} decoded");
}

#[test]
fn eval_shard_larger_than_memory_is_streamed() {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "0.tar", &tar(&good_members(0, 4)));
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(folder.path().join("0.tar"))
        .expect("opened");
    file.set_len(1 << 40).expect("a file with a hole");
    let config = EvalConfig {
        image_size: 24,
        resize: argosy_shard_loader::transform::Resize::default(),
        image_key: "jpg".into(),
        text_key: "txt".into(),
        max_image_pixels: 1 << 20,
    };
    let mut reader = EvalReader::open(".", folder.path(), config).expect("opened");
    let mut keys = Vec::new();
    while let Some(sample) = reader.next_sample().expect("read") {
        keys.push(sample.key);
    }
    // The others are PNG and WebP.
    assert_eq!(keys, ["0000", "0001"]);
    assert_eq!(reader.left_out().values().sum::<u64>(), 2);
}

#[test]
fn eval_reader_gives_good_samples_in_order_and_counts_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let members = [
        ("1.jpg".to_owned(), picture("420.jpg")),
        ("1.cls".to_owned(), b"7\n".to_vec()),
        ("2.jpg".to_owned(), picture("cut.jpg")),
        ("2.cls".to_owned(), b"8".to_vec()),
        ("3.webp".to_owned(), picture("lossy.webp")),
        ("3.txt".to_owned(), b"a caption".to_vec()),
        ("4.cls".to_owned(), b"9".to_vec()),
        ("4b.jpg".to_owned(), picture("420.jpg")),
        ("4b.txt".to_owned(), vec![0xff, 0xfe, b'x']),
        ("4b.cls".to_owned(), b"3".to_vec()),
    ];
    let mut bytes: Vec<u8> = members.iter().flat_map(|(n, d)| record(n, d)).collect();
    bytes.extend_from_slice(&record("5.jpg", &[0; 3000])[..1000]);
    write(folder.path(), "0.tar", &bytes);
    let config = EvalConfig {
        image_size: 24,
        resize: argosy_shard_loader::transform::Resize::default(),
        image_key: "jpg;webp".into(),
        text_key: "txt".into(),
        max_image_pixels: 25_000_000,
    };
    let mut reader = EvalReader::open(".", folder.path(), config).expect("opened");
    let mut got = Vec::new();
    while let Some(sample) = reader.next_sample().expect("read") {
        assert_eq!(sample.pixels.len(), 24 * 24 * 3);
        got.push((sample.key, sample.class, sample.caption));
    }
    assert_eq!(
        got,
        [
            ("1".to_owned(), Some(7), None),
            ("3".to_owned(), None, Some("a caption".to_owned())),
            // Its caption is not UTF-8, which classification does not mind.
            ("4b".to_owned(), Some(3), None),
        ]
    );
    assert_eq!(
        *reader.left_out(),
        [(MaskReason::Format, 1), (MaskReason::Missing, 1)].into()
    );
    assert!(
        reader.damaged().len() == 1 && reader.damaged()[0].contains("cut"),
        "{:?}",
        reader.damaged()
    );
}
