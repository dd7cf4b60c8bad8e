//! Seconds of one training step by phase: `cargo run -p argosy-worker --example bench_step -- MODEL BATCH STEPS THREADS`.
#![allow(clippy::print_stdout)] // a tool for the terminal

use argosy_worker::clip::{ModelConfig, Preprocess};
use argosy_worker::engine::{ApplyHyper, Engine, GatheredLse, Result, RowsIn, TorchEngine, TorchOptions};
use std::time::Instant;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| args.get(at).and_then(|a| a.parse().ok()).unwrap_or(default);
    let name = args.first().map_or("demo-64", String::as_str);
    let (rows, steps, threads) = (number(1, 256), number(2, 10), number(3, 1));
    let config = ModelConfig::by_name(name)?;
    let options = TorchOptions {
        threads,
        ..TorchOptions::default()
    };
    let mut engine = TorchEngine::new(&config, &Preprocess::default(), options)?;
    let (size, context) = (engine.image_size(), engine.context_length());
    let pixels: Vec<u8> = (0..rows * size * size * 3)
        .map(|k| ((k * 2_654_435_761) >> 13) as u8)
        .collect();
    let (mut tokens, mut lengths) = (vec![0i32; rows * context], vec![0u16; rows]);
    for row in 0..rows {
        let len = (5 + row * 7 % 9).min(context);
        for k in 0..len {
            tokens[row * context + k] = 1 + ((row * 131 + k * 977) % 49_000) as i32;
        }
        tokens[row * context] = 49_406;
        tokens[row * context + len - 1] = 49_407;
        lengths[row] = len as u16;
    }
    let rows_in = RowsIn {
        rows,
        pixels: &pixels,
        tokens: &tokens,
        lengths: &lengths,
    };
    let own: Vec<u32> = (0..rows as u32).collect();
    let hyper = ApplyHyper {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.98,
        eps: 1e-6,
        weight_decay: 0.2,
        clip_norm: Some(1.0),
    };
    let mut times: Vec<[f64; 4]> = Vec::new();
    for _ in 0..=steps {
        let mut marks = [0.0; 4];
        let start = Instant::now();
        let out = engine.encode(&rows_in, rows)?;
        marks[0] = start.elapsed().as_secs_f64();
        let lse = engine.own_lse(&own, rows, &out.f, &out.g)?;
        marks[1] = start.elapsed().as_secs_f64();
        engine.loss_backward(&GatheredLse {
            r: &lse.r,
            c: &lse.c,
            diag: &lse.diag,
        })?;
        marks[2] = start.elapsed().as_secs_f64();
        engine.apply(&hyper)?;
        marks[3] = start.elapsed().as_secs_f64();
        times.push(marks);
    }
    times.remove(0);
    times.sort_by(|a, b| a[3].total_cmp(&b[3]));
    let [encode, lse, backward, total] = times[times.len() / 2];
    println!(
        "{{\"model\": {name:?}, \"batch\": {rows}, \"threads\": {threads}, \"seconds\": {total:.4}, \"samples_per_second\": {:.1}, \
         \"encode\": {encode:.4}, \"lse\": {:.4}, \"backward\": {:.4}, \"apply\": {:.4}}}",
        rows as f64 / total,
        lse - encode,
        backward - lse,
        total - backward
    );
    Ok(())
}
