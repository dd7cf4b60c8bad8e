//! What a loader holds does not grow from pass to pass.

use crate::stores::{BUCKET, PREFIX, build, config};
use crate::support::{loader_config, tar};
use argosy_shard_loader::{DiskCache, Loader, RetryPolicy, Store};
use argosy_test_stores::{Faults, S3Double};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Set for the process that measures itself: `plain`, `cached` or `store`, and behind a colon where the shards are.
const CHILD: &str = "ARGOSY_TEST_RSS";
const ROWS: usize = 1500;
const PICTURES: usize = 150;
/// What may be on its way from a store at once: sixteen requests of 8 MiB.
const ON_THEIR_WAY_KIB: u64 = (16 * 8) << 10;

/// A JPEG picture of `side` pixels whose detail no encoder removes.
fn noisy(seed: u32, side: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(2_654_435_761) | 1;
    let pixels: Vec<u8> = (0..side * side * 3)
        .map(|i| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (i / 900 % 200) as u8 + (x >> 27) as u8
        })
        .collect();
    let image = turbojpeg::Image {
        pixels: pixels.as_slice(),
        width: side,
        pitch: side * 3,
        height: side,
        format: turbojpeg::PixelFormat::RGB,
    };
    turbojpeg::compress(image, 90, turbojpeg::Subsamp::Sub2x2)
        .expect("encoded")
        .to_vec()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("a line");
    let number = line.split_whitespace().nth(1).and_then(|n| n.parse().ok());
    number.expect("a number")
}

/// Two passes; resident memory at the end of each.
fn measure(shards: &str, cached: bool) -> (u64, u64) {
    let store = Store::new(RetryPolicy::default()).expect("a store");
    let (index, _) = build(&store, shards, &config()).expect("indexed");
    let index = Arc::new(index);
    let mut config = loader_config(index.to_shape(), 60, 6, 2);
    config.image_size = 224;
    let kept = tempfile::tempdir().expect("a folder");
    if cached {
        config.data.resized_side = Some(256);
        config.cache = Some(DiskCache::open(kept.path(), 1 << 40, 0).expect("opened"));
    }
    let per_pass = config.shape.total_steps() / 2;
    let loader = Loader::over(index, config, store).expect("a loader");
    loader.assign(&[0, 1, 2, 3, 4, 5], 0);
    let pass = || {
        for _ in 0..per_pass {
            let batches = loader.next(Duration::from_secs(60)).expect("loads").expect("in time");
            assert_eq!(batches.iter().map(|b| b.valid_rows()).sum::<u32>(), 60);
        }
        resident_kib()
    };
    (pass(), pass())
}

#[test]
#[ignore = "writes and decodes 100 MB of pictures four times"]
fn memory_after_two_passes_is_within_a_twentieth_of_that_after_one() {
    if let Ok(child) = std::env::var(CHILD) {
        let (how, shards) = child.split_once(':').expect("how, and shards");
        let (one, two) = measure(shards, how == "cached");
        println!("RSS {one} {two}");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    // In this process, so that the other one holds what a loader holds and nothing else.
    let double = S3Double::start(Faults::default()).expect("a port");
    let pictures: Vec<Vec<u8>> = (0..PICTURES as u32).map(|seed| noisy(seed, 400)).collect();
    for shard in 0..3 {
        let members: Vec<(String, Vec<u8>)> = (0..ROWS / 3)
            .flat_map(|row| {
                let caption = format!("shard {shard} row {row}").into_bytes();
                let picture = pictures[row % PICTURES].clone();
                [(format!("{row:04}.jpg"), picture), (format!("{row:04}.txt"), caption)]
            })
            .collect();
        let bytes = tar(&members);
        std::fs::write(folder.path().join(format!("{shard}.tar")), &bytes).expect("written");
        double.insert(BUCKET, &format!("set/{shard}.tar"), bytes);
    }
    let files = folder.path().display().to_string();
    let mut from_files = None;
    for (how, shards) in [("plain", files.as_str()), ("cached", files.as_str()), ("store", PREFIX)] {
        // A process of its own: other tests share this one's memory.
        let name = "memory::memory_after_two_passes_is_within_a_twentieth_of_that_after_one";
        let out = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", name, "--ignored", "--nocapture"])
            .envs(double.environment())
            .env(CHILD, format!("{how}:{shards}"))
            .output()
            .expect("started");
        let text = String::from_utf8_lossy(&out.stdout);
        let numbers: Vec<u64> = text
            .lines()
            .filter_map(|l| l.split("RSS ").nth(1))
            .flat_map(|l| l.split_whitespace().filter_map(|n| n.parse().ok()))
            .collect();
        let [one, two] = numbers[..] else {
            panic!("{how}: no figures in {text}{}", String::from_utf8_lossy(&out.stderr));
        };
        println!("{how}: {one} KiB after one pass, {two} KiB after two");
        assert!(two * 100 <= one * 105, "{how}: {one} KiB, then {two} KiB");
        let plain = *from_files.get_or_insert(two);
        assert!(two <= plain + ON_THEIR_WAY_KIB || how == "cached", "{how}: {two} KiB");
    }
}
