//! The contrastive loss on random features of one owner, tile by tile and in its plain form:
//! `bench_loss memory ROWS WIDTH softmax|sigmoid` and `bench_loss time ROWS WIDTH ROUNDS` print one JSON object.
#![allow(clippy::print_stdout, reason = "its output is its result")]

use anyhow::{Context, Result, bail};
use argosy_worker::engine::TorchOptions;
use argosy_worker::loss::{OwnRows, sigmoid};
use std::time::Instant;
use tch::{Kind, Tensor};

/// Where training ends up: the clamp of the scale is where its exponentials are the steepest.
const SCALE: f64 = 100.0;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| args.get(at).and_then(|a| a.parse::<i64>().ok()).filter(|n| *n > 0);
    let (rows, width) = number(1).zip(number(2)).context("memory|time ROWS WIDTH ...")?;
    tch::manual_seed(7);
    let features =
        || Tensor::f_randn([rows, width], (Kind::Float, tch::Device::Cpu))?.f_divide_scalar((width as f64).sqrt());
    let (f, g) = (features()?, features()?);
    let own: Vec<u32> = (0..rows as u32).collect();
    match (args[0].as_str(), args.get(3).map(String::as_str)) {
        ("memory", Some(form)) => memory(&f, &g, &own, form),
        ("time", _) => time(&f, &g, &own, number(3).context("ROUNDS from 1")?),
        _ => bail!("memory ROWS WIDTH softmax|sigmoid, or time ROWS WIDTH ROUNDS"),
    }
}

/// Most memory beyond the features that the loss and the gradients of all features hold at once, those gradients included.
fn memory(f: &Tensor, g: &Tensor, own: &[u32], form: &str) -> Result<()> {
    // The threads and buffers of the first product are not the loss's.
    let _warm = f
        .f_narrow(0, 0, 256)?
        .f_matmul(&g.f_narrow(0, 0, 256)?.f_transpose(0, 1)?)?;
    let before = forget_peak()?;
    let value = match form {
        "softmax" => softmax(f, g, own)?,
        "sigmoid" => {
            let found = sigmoid(f, g, own, SCALE, -10.0, TorchOptions::default().tile)?;
            found.rows.f_sum(Kind::Double)?.f_double_value(&[])? / own.len() as f64
        }
        other => bail!("{other}: softmax or sigmoid expected"),
    };
    let extra = status_bytes("VmHWM:")?.saturating_sub(before);
    let matrix = 4 * own.len() * own.len();
    println!(
        "{}",
        serde_json::json!({"extra_mb": extra as f64 / 1e6, "matrix_mb": matrix as f64 / 1e6, "loss": value})
    );
    Ok(())
}

/// Seconds of both forms, round by round.
fn time(f: &Tensor, g: &Tensor, own: &[u32], rounds: i64) -> Result<()> {
    let (mut tiles, mut full) = (Vec::new(), Vec::new());
    let (mut in_tiles, mut in_full) = (0.0, 0.0);
    for _ in 0..rounds {
        let start = Instant::now();
        in_tiles = softmax(f, g, own)?;
        tiles.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        in_full = plain(f, g)?;
        full.push(start.elapsed().as_secs_f64());
    }
    println!(
        "{}",
        serde_json::json!({"tiles": median(tiles), "plain": median(full), "loss": in_tiles, "loss_plain": in_full})
    );
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Both phases with all rows our own.
fn softmax(f: &Tensor, g: &Tensor, own: &[u32]) -> Result<f64> {
    let (mut rows, lse) = OwnRows::begin(f, g, own, SCALE, TorchOptions::default().tile)?;
    let grads = rows.finish(&lse.r, &lse.c, &lse.diag)?;
    anyhow::ensure!(grads.d_log_scale.is_finite(), "the gradient is not finite");
    let sum = lse.r.f_sum(Kind::Double)?.f_double_value(&[])? + lse.c.f_sum(Kind::Double)?.f_double_value(&[])?;
    Ok(sum / (2.0 * own.len() as f64))
}

/// As OpenCLIP's `ClipLoss` has it: the whole matrix, cross entropy along both sides, autograd.
fn plain(f: &Tensor, g: &Tensor) -> Result<f64> {
    let leaf = |x: &Tensor| x.f_detach()?.f_set_requires_grad(true);
    let (f, g) = (leaf(f)?, leaf(g)?);
    let labels = Tensor::f_arange(f.size()[0], (Kind::Int64, tch::Device::Cpu))?;
    let of_images = f.f_mul_scalar(SCALE)?.f_matmul(&g.f_transpose(0, 1)?)?;
    let of_texts = g.f_mul_scalar(SCALE)?.f_matmul(&f.f_transpose(0, 1)?)?;
    let loss = (of_images.cross_entropy_for_logits(&labels) + of_texts.cross_entropy_for_logits(&labels))
        .f_divide_scalar(2.0)?;
    loss.f_backward()?;
    Ok(loss.f_double_value(&[])?)
}

/// Lets the kernel begin its peak anew; resident bytes now.
fn forget_peak() -> Result<u64> {
    std::fs::write("/proc/self/clear_refs", "5").context("the peak cannot be reset")?;
    status_bytes("VmRSS:")
}

fn status_bytes(key: &str) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .with_context(|| format!("no {key}"))?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kilobytes * 1024)
}
