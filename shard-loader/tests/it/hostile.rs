//! Samples and archives that mean harm, by the numbers of the fault list (41 to 47): each has its outcome, none takes the
//! process, memory or time with it.

use crate::support::{good_members, index, loader_config, picture, record, tar};
use argosy_common::steplog::{MaskReason, RowState};
use argosy_shard_loader::decode::{Rgb, decode};
use argosy_shard_loader::tar::Walker;
use argosy_shard_loader::{Loader, Tokenizer};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PIXELS_MAX: u64 = 25_000_000;

fn outcome(bytes: &[u8]) -> Result<(usize, usize), MaskReason> {
    let mut out = Rgb::default();
    decode(bytes, PIXELS_MAX, &mut out).map(|()| (out.width, out.height))
}

/// Most memory that this process ever held, in bytes.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).expect("a peak");
    let kilobytes: u64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number");
    kilobytes << 10
}

/// Rows of one pass over `folder` by their state.
fn run(folder: &Path) -> (usize, BTreeMap<MaskReason, usize>) {
    let (index, _) = index(folder);
    let config = loader_config(index.to_shape(), 1, 1, 1);
    let steps = config.shape.total_steps();
    let loader = Loader::new(Arc::new(index), config).expect("a loader");
    loader.assign(&[0], 0);
    let (mut valid, mut masked) = (0, BTreeMap::new());
    for _ in 0..steps {
        for batch in loader.next(Duration::from_secs(60)).expect("loads").expect("in time") {
            valid += batch.states.iter().filter(|s| **s == RowState::Valid).count();
            for (_, reason) in batch.masked() {
                *masked.entry(reason).or_default() += 1;
            }
        }
    }
    (valid, masked)
}

// 41: cut and corrupt pictures. What Pillow still takes is in the goldens.
#[test]
fn picture_cut_anywhere_is_format_or_whole() {
    for file in ["420.jpg", "progressive.jpg", "rgb.png", "lossy.webp", "lossless.webp"] {
        let whole = picture(file);
        let size = outcome(&whole).expect("a good picture");
        for at in 0..40 {
            let cut = outcome(&whole[..whole.len() * at / 40]);
            assert!(
                cut == Err(MaskReason::Format) || cut == Ok(size),
                "{file} at {at}: {cut:?}"
            );
        }
    }
}

// 42: a header of 60,000 x 60,000 pixels, in every format, costs no memory.
#[test]
fn pixel_bomb_of_every_format_is_refused_by_its_header() {
    let mut png = picture("rgb.png");
    png[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    png[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let mut jpeg = picture("progressive.jpg");
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc2]).expect("a frame");
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xea, 0x60, 0xea, 0x60]);
    // 14 bits each for width and height less one, behind the signature of a lossless picture.
    let mut webp = picture("lossless.webp");
    let at = webp.windows(4).position(|w| w == *b"VP8L").expect("a lossless picture") + 9;
    webp[at..at + 4].copy_from_slice(&(16_382u32 | (16_382 << 14)).to_le_bytes());
    let before = peak_bytes();
    for (name, bytes) in [("png", png), ("jpeg", jpeg), ("webp", webp)] {
        assert_eq!(outcome(&bytes), Err(MaskReason::Pixels), "{name}");
    }
    assert!(peak_bytes() - before < 200 << 20, "memory for pixels nobody wants");
}

// 43: little that unpacks to much, and an archive inside one.
#[test]
fn zip_bombs_and_nested_archives_cost_no_memory() {
    let before = peak_bytes();
    // Both are whole pictures: what unpacks beyond the header's pixels, or into a colour profile, is not looked at.
    for file in ["zlib_bomb.png", "icc_bomb.png"] {
        assert_eq!(outcome(&picture(file)), Ok((41, 29)), "{file}");
    }
    assert!(peak_bytes() - before < 200 << 20);
    let folder = tempfile::tempdir().expect("a folder");
    let mut members = good_members(0, 3);
    let inner = tar(&good_members(1, 3));
    members.push(("nested.jpg".into(), inner.clone()));
    members.push(("nested.txt".into(), b"an archive".to_vec()));
    members.push(("inner.tar".into(), inner));
    std::fs::write(folder.path().join("a.tar"), tar(&members)).expect("written");
    assert_eq!(run(folder.path()), (3, [(MaskReason::Format, 1)].into()));
}

/// A progressive JPEG whose last scan comes `times` more.
fn scans(times: usize) -> Vec<u8> {
    let whole = picture("progressive_gray.jpg");
    let last = whole.windows(2).rposition(|w| w == [0xff, 0xda]).expect("a scan");
    let (scan, end) = (&whole[last..whole.len() - 2], &whole[whole.len() - 2..]);
    let mut out = whole[..whole.len() - 2].to_vec();
    (0..times).for_each(|_| out.extend_from_slice(scan));
    out.extend_from_slice(end);
    out
}

// 44: odd pictures. Those that Pillow reads are compared with it in the goldens.
#[test]
fn pictures_of_other_formats_and_sizes_are_format_whatever_they_are_called() {
    let gif = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";
    for (name, bytes) in [
        ("an animated GIF", &gif[..]),
        ("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'><rect/></svg>"),
        ("HTML", b"<!DOCTYPE html><html>404</html>"),
        (
            "BMP",
            b"BM\x1e\0\0\0\0\0\0\0\x1a\0\0\0\x0c\0\0\0\x01\0\x01\0\x01\0\x18\0\0\0\xff\0",
        ),
        ("nothing", b""),
        ("a signature", b"\xff\xd8\xff"),
        ("a signature", b"\x89PNG\r\n\x1a\n"),
        ("a signature", b"RIFF\x10\0\0\0WEBPVP8 "),
    ] {
        assert_eq!(outcome(bytes), Err(MaskReason::Format), "{name}");
    }
    let mut flat = picture("420.jpg");
    let frame = flat.windows(2).position(|w| w == [0xff, 0xc0]).expect("a frame");
    flat[frame + 5..frame + 7].fill(0);
    assert_eq!(outcome(&flat), Err(MaskReason::Format), "no height");
    assert_eq!(outcome(&picture("no_width.png")), Err(MaskReason::Format));
}

#[test]
fn progressive_picture_of_thousands_of_scans_is_refused_in_time() {
    assert!(outcome(&scans(0)).is_ok());
    let started = Instant::now();
    assert_eq!(outcome(&scans(5000)), Err(MaskReason::Format));
    // Without a limit it takes as many times as long as one scan; generous for a loaded machine.
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

// 45: captions.
#[test]
fn hostile_captions_train_or_are_masked_and_end_in_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = picture("420.jpg");
    let captions: [(&str, Vec<u8>, bool); 9] = [
        ("empty", Vec::new(), false),
        ("spaces", b" \t\r\n".to_vec(), false),
        ("large", b"a cat sat. ".repeat(950_000), true),
        ("broken", vec![0xff, 0xfe, b'a'], false),
        ("half", vec![b'a', 0xe2, 0x82], false),
        ("nul", b"a\0cat\0".to_vec(), true),
        ("rtl", "\u{202e}قطة חתול\u{202c} 👩‍👩‍👧".into(), true),
        ("bom", "\u{feff}a cat".into(), true),
        ("word", "x".repeat(10 << 20).into_bytes(), true),
    ];
    let mut members = Vec::new();
    for (name, caption, _) in &captions {
        members.push((format!("{name}.jpg"), good.clone()));
        members.push((format!("{name}.txt"), caption.clone()));
    }
    std::fs::write(folder.path().join("a.tar"), tar(&members)).expect("written");
    let taken = captions.iter().filter(|c| c.2).count();
    let (valid, masked) = run(folder.path());
    assert_eq!(
        (valid, masked),
        (taken, [(MaskReason::Caption, captions.len() - taken)].into())
    );
    let row = |text: &str| {
        let mut out = [0; 77];
        (Tokenizer::new(77).row(text, &mut out), out)
    };
    assert_eq!(row("\u{feff}a cat"), row("a cat"));
    assert_eq!(row("a\0 cat\0"), row("a cat"));
}

// 46: pairs that lack, keys that come twice, suffixes in capitals.
#[test]
fn missing_pairs_are_counted_and_repeated_keys_and_capitals_train() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = picture("420.jpg");
    let mut members = Vec::new();
    for (name, bytes) in [
        ("a.JPG", &good[..]),
        ("a.TXT", b"capitals"),
        ("b.jpg", &good),
        ("b.txt", b"first"),
        ("b.jpg", &good),
        ("b.txt", b"second of the same key"),
        ("c.jpg", &good),
        ("d.txt", b"no picture"),
        ("e.Jpeg", &good),
        ("e.txt", b"another suffix"),
    ] {
        members.push((name.to_owned(), bytes.to_vec()));
    }
    std::fs::write(folder.path().join("a.tar"), tar(&members)).expect("written");
    let (_, report) = index(folder.path());
    assert_eq!((report.rows, report.missing), (4, 2));
    assert_eq!(run(folder.path()), (4, BTreeMap::new()));
}

// 47: archives. Names are never used as paths: nothing is unpacked.
#[test]
fn hostile_archives_leave_no_file_behind_and_keep_their_good_samples() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/tar");
    let good = record("1.jpg", &picture("420.jpg"));
    for (name, samples, names) in [
        ("climbing", 2, "../../etc/cron.d/x.jpg"),
        ("absolute", 2, "/etc/passwd.jpg"),
        ("links", 1, "1.jpg"),
        ("devices", 1, "1.jpg"),
        ("sparse-gnu", 1, "1.jpg"),
        ("long-name-loop", 0, "1.txt"),
        ("pax-path", 1, "deep/er/2.jpg"),
        ("repeated", 2, "1.jpg"),
    ] {
        let archive = Bytes::from(std::fs::read(corpus.join(name)).expect("a seed"));
        let members: Vec<_> = Walker::new(archive).map(|m| m.expect("a good archive")).collect();
        let pictures = members.iter().filter(|m| m.name.ends_with(".jpg")).count();
        assert_eq!(pictures, samples, "{name}: {members:?}");
        assert!(members.iter().any(|m| m.name == names), "{name}: {members:?}");
    }
    for (name, why) in [
        ("pax-size-huge", "is cut"),
        ("size-all-ones", "not a number"),
        ("size-binary-huge", "is cut"),
        ("size-no-number", "not a number"),
        ("bad-sum", "checksum"),
        ("long-name-huge", "at most 4096"),
        ("cut-data", "is cut"),
        ("cut-header", "is cut"),
        ("html", "checksum"),
        ("gzip", "checksum"),
    ] {
        let archive = Bytes::from(std::fs::read(corpus.join(name)).expect("a seed"));
        let error = Walker::new(archive).find_map(Result::err).map(|e| e.to_string());
        assert!(error.as_ref().is_some_and(|e| e.contains(why)), "{name}: {error:?}");
    }
    // The size that pax records say holds, not the header's.
    let archive = Bytes::from(std::fs::read(corpus.join("pax-size")).expect("a seed"));
    let first = Walker::new(archive).next().expect("a member").expect("good");
    assert_eq!(first.data.end - first.data.start, 5);

    let folder = tempfile::tempdir().expect("a folder");
    let mut climbing = std::fs::read(corpus.join("climbing")).expect("a seed");
    climbing.truncate(2048);
    climbing.extend(good);
    climbing.extend(record("1.txt", b"a caption"));
    std::fs::write(folder.path().join("a.tar"), climbing).expect("written");
    assert_eq!(run(folder.path()).0, 1);
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("the folder").collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(!Path::new("/etc/cron.d/x.jpg").exists() && !folder.path().join("../../etc/cron.d/x.jpg").exists());
}
