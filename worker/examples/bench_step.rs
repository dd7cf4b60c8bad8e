//! Seconds per training step on random pictures and given captions, as `tests/peers/step.py` measures OpenCLIP:
//! `bench_step --model NAME | --config FILE --batch N --precision fp32|bf16 --captions FILE --threads N --steps N`.
#![allow(clippy::print_stdout)] // a tool for the terminal

use anyhow::{Context, Result};
use argosy_common::config::Precision;
use argosy_shard_loader::Tokenizer;
use argosy_worker::clip::{ModelConfig, Preprocess};
use argosy_worker::engine::{ApplyHyper, Engine, GatheredLse, RowsIn, TorchEngine, TorchOptions};
use clap::Parser;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value = "ViT-B-32")]
    model: String,
    #[arg(long)]
    config: Option<PathBuf>,
    #[arg(long, default_value_t = 16)]
    batch: usize,
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// fp32 or bf16, the latter as autocast has it
    #[arg(long, default_value = "fp32")]
    precision: String,
    #[arg(long)]
    captions: PathBuf,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let config = match &args.config {
        Some(file) => ModelConfig::from_json(&std::fs::read_to_string(file)?)?.0,
        None => ModelConfig::by_name(&args.model)?,
    };
    let precision = match args.precision.as_str() {
        "fp32" => Precision::Fp32,
        "bf16" => Precision::AmpBf16,
        other => anyhow::bail!("--precision {other}: fp32 or bf16 expected"),
    };
    let options = TorchOptions {
        threads: args.threads,
        precision,
        ..TorchOptions::default()
    };
    let mut engine = TorchEngine::new(&config, &Preprocess::default(), options)?;
    let size = engine.image_size();
    let pixels: Vec<u8> = (0..args.batch * size * size * 3)
        .map(|k| ((k * 2_654_435_761) >> 13) as u8)
        .collect();
    let (tokens, lengths) = captions(&args, engine.context_length())?;
    let rows = RowsIn {
        rows: args.batch,
        pixels: &pixels,
        tokens: &tokens,
        lengths: &lengths,
    };
    let mut times: Vec<[f64; 4]> = Vec::new();
    for _ in 0..=args.steps {
        times.push(step(&mut engine, &rows)?);
    }
    times.remove(0);
    times.sort_by(|a, b| a[3].total_cmp(&b[3]));
    let [encode, lse, backward, total] = times[times.len() / 2];
    let out = serde_json::json!({
        "model": args.model, "batch": args.batch, "precision": args.precision, "threads": args.threads,
        "seconds": total, "samples_per_second": args.batch as f64 / total,
        "encode": encode, "lse": lse - encode, "backward": backward - lse, "apply": total - backward,
        "tokens": lengths.iter().map(|l| u64::from(*l)).sum::<u64>(),
    });
    println!("{out}");
    Ok(())
}

/// Ids and lengths of as many captions as there are rows; the file begins anew when it ends, as in `step.py`.
fn captions(args: &Args, context: usize) -> Result<(Vec<i32>, Vec<u16>)> {
    let text = std::fs::read_to_string(&args.captions).with_context(|| args.captions.display().to_string())?;
    let lines: Vec<&str> = text.lines().collect();
    anyhow::ensure!(!lines.is_empty(), "{} is empty", args.captions.display());
    let tokenizer = Tokenizer::new(context);
    let (mut tokens, mut lengths) = (Vec::new(), Vec::new());
    for row in 0..args.batch {
        let mut ids = vec![0; context];
        lengths.push(tokenizer.row(lines[row % lines.len()], &mut ids));
        tokens.extend(ids);
    }
    Ok((tokens, lengths))
}

/// One step; seconds since its start at the end of encode, log-sum-exps, backward and update.
fn step(engine: &mut TorchEngine, rows: &RowsIn<'_>) -> Result<[f64; 4]> {
    let own: Vec<u32> = (0..rows.rows as u32).collect();
    let hyper = ApplyHyper {
        lr: 5e-4,
        beta1: 0.9,
        beta2: 0.98,
        eps: 1e-6,
        weight_decay: 0.2,
        clip_norm: None,
        ema_decay: None,
    };
    let mut marks = [0.0; 4];
    let start = Instant::now();
    let out = engine.encode(rows, usize::MAX)?;
    marks[0] = start.elapsed().as_secs_f64();
    let lse = engine.own_lse(&own, rows.rows, &out.f, &out.g)?;
    marks[1] = start.elapsed().as_secs_f64();
    engine.loss_backward(&GatheredLse {
        r: &lse.r,
        c: &lse.c,
        diag: &lse.diag,
    })?;
    marks[2] = start.elapsed().as_secs_f64();
    engine.apply(&hyper)?;
    marks[3] = start.elapsed().as_secs_f64();
    Ok(marks)
}
