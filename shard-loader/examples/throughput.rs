//! Samples per second of the training loader, as JSON like `tests/peers/loader.py` prints it.
//!
//! `cargo run -p argosy-shard-loader --example throughput -- SHARDS SIZE SECONDS [THREADS] [f32] [fast]`
//!
//! `f32` normalises every batch to float32 as OpenCLIP's loader does; `fast` takes the fast path of decoding.
#![allow(clippy::print_stdout, reason = "its output is the measurement")]

use argosy_common::config::{DataConfig, Source};
use argosy_common::shape::RunShape;
use argosy_shard_loader::transform::normalize;
use argosy_shard_loader::{BuildConfig, DataError, Loader, LoaderConfig, RetryPolicy, Store, Tokenizer, index};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let shards = args.next().ok_or("which shards?")?;
    let image_size: u32 = args.next().unwrap_or_else(|| "224".into()).parse()?;
    let seconds: f64 = args.next().unwrap_or_else(|| "10".into()).parse()?;
    let decode_threads: usize = args.next().unwrap_or_else(|| "1".into()).parse()?;
    let words: Vec<String> = args.collect();
    let has = |word: &str| words.iter().any(|w| w == word);
    let sources = serde_json::json!({
        "sources": [Source { name: "all".into(), shards }], "fast_decode": has("fast"),
    });
    let data: DataConfig = serde_json::from_value(sources)?;
    let base = Path::new(".");
    let store = Store::new(RetryPolicy::default())?;
    let started = Instant::now();
    let (index, report) = index::build(&store, &data.sources, base, &BuildConfig::of(&data, base)?, &|_| {})?;
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
        tokenizer: Arc::new(Tokenizer::new(77)),
        data,
        decode_threads,
        prefetch_steps: 4,
        cache: None,
    };
    let (samples, elapsed, loader) = measure(Loader::new(Arc::new(index), config)?, seconds, has("f32"))?;
    let stats = loader.stats();
    let per_sample = |total: f64| (total / samples as f64 * 1e6).round();
    println!(
        "{}",
        serde_json::json!({
            "f32": has("f32"), "fast": has("fast"), "size": image_size, "threads": decode_threads, "samples": samples, "seconds": elapsed,
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

/// OpenAI's constants.
const MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f32; 3] = [0.26862954, 0.261_302_6, 0.275_777_1];

fn measure(loader: Loader, seconds: f64, as_f32: bool) -> Result<(usize, f64, Loader), Box<dyn std::error::Error>> {
    loader.assign(&[0, 1, 2, 3, 4, 5, 6, 7], 0);
    let wait = Duration::from_secs(60);
    let late = || DataError::Config("no batch within a minute".into());
    // The first steps carry the start of threads and tables.
    for _ in 0..4 {
        loader.next(wait)?.ok_or_else(late)?;
    }
    let mut numbers = Vec::new();
    let (mut samples, started) = (0, Instant::now());
    while started.elapsed().as_secs_f64() < seconds {
        for batch in loader.next(wait)?.ok_or_else(late)? {
            samples += batch.samples.len();
            if as_f32 {
                numbers.resize(batch.pixels.len(), 0.0);
                let bytes = batch.pixels.len() / batch.states.len().max(1);
                for (pixels, out) in batch.pixels.chunks_exact(bytes).zip(numbers.chunks_exact_mut(bytes)) {
                    normalize(pixels, MEAN, STD, out);
                }
                std::hint::black_box(&numbers);
            }
        }
    }
    Ok((samples, started.elapsed().as_secs_f64(), loader))
}
