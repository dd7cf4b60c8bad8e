//! Makes shards.

use argosy_common::config::{DataConfig, Job, Source};
use argosy_common::shape::{RunShape, SourceShape};
use argosy_shard_loader::index::{self, BuildConfig, BuildReport, Index};
use argosy_shard_loader::loader::LoaderConfig;
use argosy_shard_loader::{RetryPolicy, Store, Tokenizer};
use std::path::Path;
use std::sync::Arc;

/// The folder of the goldens.
pub(crate) fn goldens() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

/// A golden picture's bytes.
pub(crate) fn picture(name: &str) -> Vec<u8> {
    std::fs::read(goldens().join("pictures").join(name)).expect("a golden picture")
}

/// One tar record: header and padded data.
pub(crate) fn record(name: &str, data: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    header[156] = b'0';
    header[257..263].copy_from_slice(b"ustar\0");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut out = header.to_vec();
    out.extend_from_slice(data);
    out.resize(out.len().div_ceil(512) * 512, 0);
    out
}

/// A tar archive of `members` with its two closing blocks.
pub(crate) fn tar(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out: Vec<u8> = members.iter().flat_map(|(name, data)| record(name, data)).collect();
    out.resize(out.len() + 1024, 0);
    out
}

/// `rows` good samples; captions name shard and row, so that every token row differs.
pub(crate) fn good_members(shard: usize, rows: usize) -> Vec<(String, Vec<u8>)> {
    let pictures = ["turned.jpg", "thin.jpg", "rgb.png", "lossy.webp"];
    (0..rows)
        .flat_map(|row| {
            let file = pictures[row % pictures.len()];
            let suffix = file.rsplit('.').next().unwrap_or_default();
            let caption = format!("shard {shard} row {row}");
            [
                (format!("{row:04}.{suffix}"), picture(file)),
                (format!("{row:04}.txt"), caption.into_bytes()),
            ]
        })
        .collect()
}

/// A data section as a job file without one gives it.
pub(crate) fn data_config() -> DataConfig {
    let text =
        "version = 1\nname = \"t\"\n[model]\nname = \"ViT-B-32\"\n[data]\nsources = [{ shards = \".\" }]\n[train]\n";
    Job::from_toml("test.toml", text).expect("a good job").data
}

/// Indexes the folder.
pub(crate) fn index(folder: &Path) -> (Index, BuildReport) {
    let source = Source {
        name: "all".into(),
        shards: ".".into(),
    };
    let config = BuildConfig::of(&data_config(), folder).expect("no filter");
    let store = Store::new(RetryPolicy::default()).expect("a store");
    index::build(&store, &[source], folder, &config, &|_| {}).expect("indexed")
}

/// A loader's configuration over `sources`.
pub(crate) fn loader_config(sources: Vec<SourceShape>, batch: u32, lanes: u32, passes: u64) -> LoaderConfig {
    let rows: u64 = sources.iter().map(SourceShape::rows).sum();
    let shape = RunShape {
        seed: 11,
        sources,
        batch,
        lanes,
        window_factor: 3,
        total_positions: rows * passes,
    };
    let data = data_config();
    LoaderConfig {
        shape,
        image_size: 16,
        tokenizer: Arc::new(Tokenizer::new(12)),
        data,
        decode_threads: 2,
        prefetch_steps: 2,
        cache: None,
    }
}
