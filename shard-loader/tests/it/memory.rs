//! What a loader holds does not grow from pass to pass.

use crate::support::{index, loader_config, tar};
use argosy_shard_loader::{DiskCache, Loader};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Set for the process that measures itself: `shards`, then `plain` or `cached`.
const CHILD: &str = "ARGOSY_TEST_RSS";
const ROWS: usize = 1500;
const PICTURES: usize = 150;

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
fn measure(shards: &Path, cached: bool) -> (u64, u64) {
    let (index, _) = index(shards);
    let index = Arc::new(index);
    let mut config = loader_config(index.to_shape(), 60, 6, 2);
    config.image_size = 224;
    let kept = tempfile::tempdir().expect("a folder");
    if cached {
        config.data.resized_side = Some(256);
        config.cache = Some(DiskCache::open(kept.path(), 1 << 40, 0).expect("opened"));
    }
    let per_pass = config.shape.total_steps() / 2;
    let loader = Loader::new(index, config).expect("a loader");
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
        let (shards, how) = child.rsplit_once(':').expect("shards and how");
        let (one, two) = measure(Path::new(shards), how == "cached");
        println!("RSS {one} {two}");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let pictures: Vec<Vec<u8>> = (0..PICTURES as u32).map(|seed| noisy(seed, 400)).collect();
    for shard in 0..3 {
        let members: Vec<(String, Vec<u8>)> = (0..ROWS / 3)
            .flat_map(|row| {
                let caption = format!("shard {shard} row {row}").into_bytes();
                let picture = pictures[row % PICTURES].clone();
                [(format!("{row:04}.jpg"), picture), (format!("{row:04}.txt"), caption)]
            })
            .collect();
        std::fs::write(folder.path().join(format!("{shard}.tar")), tar(&members)).expect("written");
    }
    for how in ["plain", "cached"] {
        // A process of its own: other tests share this one's memory.
        let name = "memory::memory_after_two_passes_is_within_a_twentieth_of_that_after_one";
        let out = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", name, "--ignored", "--nocapture"])
            .env(CHILD, format!("{}:{how}", folder.path().display()))
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
    }
}
