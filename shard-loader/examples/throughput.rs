//! Samples per second of the training loader, as JSON like `tests/peers/loader.py` prints it.
//!
//! `cargo run -p argosy-shard-loader --example throughput -- SHARDS SIZE SECONDS [THREADS]`
#![allow(clippy::print_stdout, reason = "its output is the measurement")]

use argosy_common::config::{DataConfig, Source};
use argosy_common::shape::RunShape;
use argosy_shard_loader::{BuildConfig, DataError, Loader, LoaderConfig, index};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let shards = args.next().ok_or("which shards?")?;
    let image_size: u32 = args.next().unwrap_or_else(|| "224".into()).parse()?;
    let seconds: f64 = args.next().unwrap_or_else(|| "10".into()).parse()?;
    let decode_threads: usize = args.next().unwrap_or_else(|| "1".into()).parse()?;
    let sources = serde_json::json!({ "sources": [Source { name: "all".into(), shards }] });
    let data: DataConfig = serde_json::from_value(sources)?;
    let started = Instant::now();
    let (index, report) = index::build(&data.sources, Path::new("."), &BuildConfig::of(&data), &|_| {})?;
    let index_seconds = started.elapsed().as_secs_f64();
    let shape = RunShape {
        seed: 1,
        sources: index.to_shape(),
        batch: 64,
        lanes: 8,
        window_factor: 4,
        total_positions: report.rows * 1000,
    };
    let config = LoaderConfig {
        shape,
        image_size,
        context_length: 77,
        data,
        decode_threads,
        prefetch_steps: 4,
    };
    let (samples, elapsed, loader) = measure(Loader::new(Arc::new(index), config)?, seconds)?;
    let stats = loader.stats();
    let per_sample = |total: f64| (total / samples as f64 * 1e6).round();
    println!(
        "{}",
        serde_json::json!({
            "size": image_size, "threads": decode_threads, "samples": samples, "seconds": elapsed,
            "samples_per_second": (samples as f64 / elapsed).round(), "index_seconds": index_seconds,
            "microseconds_per_sample": {
                "fetch": per_sample(stats.fetch_seconds), "decode": per_sample(stats.decode_seconds),
                "transform": per_sample(stats.transform_seconds), "tokenize": per_sample(stats.tokenize_seconds),
            },
            "masked": stats.masked,
        })
    );
    Ok(())
}

fn measure(loader: Loader, seconds: f64) -> Result<(usize, f64, Loader), Box<dyn std::error::Error>> {
    loader.assign(&[0, 1, 2, 3, 4, 5, 6, 7], 0);
    let wait = Duration::from_secs(60);
    let late = || DataError::Config("no batch within a minute".into());
    // The first steps carry the start of threads and tables.
    for _ in 0..4 {
        loader.next(wait)?.ok_or_else(late)?;
    }
    let (mut samples, started) = (0, Instant::now());
    while started.elapsed().as_secs_f64() < seconds {
        samples += loader
            .next(wait)?
            .ok_or_else(late)?
            .iter()
            .map(|b| b.samples.len())
            .sum::<usize>();
    }
    Ok((samples, started.elapsed().as_secs_f64(), loader))
}
