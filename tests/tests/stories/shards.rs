//! Small shards made in the test: pictures that differ, captions that say how, and every kind of damage.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper of tests fails the test that called it"
)]

use std::fmt::Write as _;
use std::path::Path;

/// A ustar archive in the making.
#[derive(Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    pub(crate) fn add(&mut self, name: &str, data: &[u8]) {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

const COLOURS: [(&str, [u8; 3]); 6] = [
    ("red", [220, 30, 30]),
    ("green", [30, 200, 60]),
    ("blue", [40, 60, 220]),
    ("yellow", [230, 220, 40]),
    ("white", [245, 245, 245]),
    ("black", [15, 15, 15]),
];

/// A picture of 40 x 40 pixels: a ground with a square of another colour, and what it shows.
pub(crate) fn picture(number: usize) -> (Vec<u8>, String) {
    let (ground, square) = (COLOURS[number % 6], COLOURS[(number / 6 + number % 6 + 1) % 6]);
    let at = (number / 36 * 7) % 20;
    let pixels: Vec<u8> = (0..40 * 40)
        .flat_map(|i| {
            let (x, y) = (i % 40, i / 40);
            let inside = (at..at + 18).contains(&x) && (at..at + 18).contains(&y);
            if inside { square.1 } else { ground.1 }
        })
        .collect();
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, 40, 40);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().expect("a header");
    writer.write_image_data(&pixels).expect("pixels");
    writer.finish().expect("an end");
    (
        png,
        format!("a {} square on {} ground, number {number}", square.0, ground.0),
    )
}

/// Writes `shards` shards of `rows` good samples each: `00000.tar`, ...
pub(crate) fn write_good(dir: &Path, shards: usize, rows: usize) {
    for shard in 0..shards {
        let mut tar = Tar::default();
        for row in 0..rows {
            let number = shard * rows + row;
            let (png, caption) = picture(number);
            tar.add(&format!("{number:06}.png"), &png);
            tar.add(&format!("{number:06}.txt"), caption.as_bytes());
        }
        std::fs::write(dir.join(format!("{shard:05}.tar")), tar.finish()).expect("a shard");
    }
}

/// What [`write_damaged`] spoils, by the reason that its rows are masked for.
pub(crate) const SPOILED: [(&str, u64); 3] = [("format", 2), ("caption", 2), ("pixels", 1)];

/// A shard whose rows are spoiled in every way that is masked, one with a sample that lacks its caption, one that is cut
/// in its last sample, and one that is empty. Good rows stand between the bad ones.
pub(crate) fn write_damaged(dir: &Path) {
    let (good, caption) = picture(1);
    let mut tar = Tar::default();
    let mut add = |key: &str, png: &[u8], text: &[u8]| {
        tar.add(&format!("{key}.png"), png);
        tar.add(&format!("{key}.txt"), text);
    };
    add("a0", &good, caption.as_bytes());
    add("a1", b"this is no picture", caption.as_bytes());
    add("a2", &good[..good.len() / 2], caption.as_bytes());
    add("a3", &good, b"");
    add("a4", &good, b"\xff\xfe\xff");
    add("a5", &huge_header(), caption.as_bytes());
    add("a6", &good, caption.as_bytes());
    std::fs::write(dir.join("90000.tar"), tar.finish()).expect("a shard");

    let mut tar = Tar::default();
    tar.add("b0.png", &good);
    tar.add("b1.png", &good);
    tar.add("b1.txt", caption.as_bytes());
    std::fs::write(dir.join("90001.tar"), tar.finish()).expect("a shard");

    let mut tar = Tar::default();
    for key in ["c0", "c1"] {
        tar.add(&format!("{key}.png"), &good);
        tar.add(&format!("{key}.txt"), caption.as_bytes());
    }
    let bytes = tar.finish();
    std::fs::write(dir.join("90002.tar"), &bytes[..bytes.len() / 2 + 600]).expect("a shard");
    std::fs::write(dir.join("90003.tar"), b"").expect("a shard");
}

/// A PNG that claims 60,000 x 60,000 pixels and has next to nothing behind it.
fn huge_header() -> Vec<u8> {
    let (png, _) = picture(0);
    let mut out = png[..16].to_vec();
    out.extend_from_slice(&60_000u32.to_be_bytes());
    out.extend_from_slice(&60_000u32.to_be_bytes());
    out.extend_from_slice(&png[24..29]);
    out.extend_from_slice(&crc32(&out[12..29]).to_be_bytes());
    out.extend_from_slice(&png[33..]);
    out
}

/// The checksum of PNG chunks, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| {
            if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 }
        })
    })
}

/// A job over `dir/shards` for the smallest built-in model.
pub(crate) fn write_job(dir: &Path, epochs: u32, more: &str) -> std::path::PathBuf {
    let mut text = String::new();
    let _ = write!(
        text,
        "version = 1\nname = \"story\"\nseed = 7\n\
         [model]\nname = \"demo-tiny\"\n\
         [data]\nsources = [{{ name = \"squares\", shards = \"shards\" }}]\n\
         [train]\nglobal_batch = 24\nlanes = 6\nepochs = {epochs}\nlr = 1e-3\nwarmup = 10\nthreads = 1\n\
         {more}"
    );
    let job = dir.join("job.toml");
    std::fs::write(&job, text).expect("a job");
    job
}
