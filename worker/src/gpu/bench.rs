//! How fast training steps are on a device, against its own peaks.

use super::cases::{Batch, Model};
use super::compare::HYPER;
use super::synchronize;
use crate::engine::{Engine, GatheredLse, Result, TorchEngine, TorchOptions};
use argosy_common::config::Precision;
use argosy_torch_ext::record::Recording;
use serde::Serialize;
use std::fmt;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Edge of the square product that stands for the device's peak.
const EDGE: i64 = 8192;
const STEPS: usize = 5;

/// Steps of one precision; seconds are medians.
#[derive(Debug, Clone, Serialize)]
pub struct Speed {
    pub model: &'static str,
    pub precision: &'static str,
    pub rows: usize,
    pub ids: usize,
    pub seconds: f64,
    pub samples_per_second: f64,
    pub encode: f64,
    pub loss: f64,
    /// With the gradient brought to main memory.
    pub backward: f64,
    /// With the weights brought back.
    pub apply: f64,
    /// 10^12 multiplications and additions of matrix products in a step.
    pub tflop: f64,
    /// Of the peak, over the whole step.
    pub of_peak: f64,
    /// Of the peak, over encode, loss and backward.
    pub of_peak_computing: f64,
    /// 10^12 multiplications and additions a second of a large square product in this precision.
    pub peak_tflops: f64,
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {} rows, {} ids: {:.1} ms a step ({:.0} samples/s): encode {:.1}, loss {:.1}, backward {:.1}, apply {:.1} ms; \
             {:.2} TFLOP, {:.0} % of {:.0} TFLOP/s while computing, {:.0} % over the step",
            self.model,
            self.precision,
            self.rows,
            self.ids,
            1e3 * self.seconds,
            self.samples_per_second,
            1e3 * self.encode,
            1e3 * self.loss,
            1e3 * self.backward,
            1e3 * self.apply,
            self.tflop,
            1e2 * self.of_peak_computing,
            self.peak_tflops,
            1e2 * self.of_peak
        )
    }
}

pub(super) fn all(device: Device, threads: usize, rows: usize, progress: &dyn Fn(&str)) -> Result<Vec<Speed>> {
    let mut out = Vec::new();
    for (precision, name, kind) in [
        (Precision::Fp32, "fp32", Kind::Float),
        (Precision::AmpBf16, "bf16 autocast", Kind::BFloat16),
        (Precision::PureBf16, "pure bf16", Kind::BFloat16),
    ] {
        let options = TorchOptions {
            threads,
            precision,
            device,
            ..TorchOptions::default()
        };
        let (config, preprocess) = Model::VitB32.config()?;
        let mut engine = TorchEngine::new(&config, &preprocess, options)?;
        let batch = Batch::new(&config, rows);
        let speed = measure(&mut engine, &batch, device, name, peak(device, kind)?)?;
        progress(&speed.to_string());
        out.push(speed);
    }
    Ok(out)
}

fn measure(
    engine: &mut TorchEngine,
    batch: &Batch,
    device: Device,
    precision: &'static str,
    peak_tflops: f64,
) -> Result<Speed> {
    // The first ones warm up; of the second the work is counted.
    step(engine, batch, device)?;
    let recording = Recording::start();
    step(engine, batch, device)?;
    let tflop = recording.spans().iter().map(|span| span.flops).sum::<f64>() / 1e12;
    drop(recording);
    let mut times = Vec::new();
    for _ in 0..STEPS {
        times.push(step(engine, batch, device)?);
    }
    let median = |k: usize| {
        let mut column: Vec<f64> = times.iter().map(|t| t[k]).collect();
        column.sort_by(f64::total_cmp);
        column[column.len() / 2]
    };
    let [encode, loss, backward, apply] = [0, 1, 2, 3].map(median);
    let seconds = encode + loss + backward + apply;
    let rows = batch.rows().rows;
    Ok(Speed {
        model: "ViT-B/32",
        precision,
        rows,
        ids: batch.ids(),
        seconds,
        samples_per_second: rows as f64 / seconds,
        encode,
        loss,
        backward,
        apply,
        tflop,
        of_peak: tflop / seconds / peak_tflops,
        of_peak_computing: tflop / (encode + loss + backward) / peak_tflops,
        peak_tflops,
    })
}

/// Seconds of encode, loss, backward and update.
fn step(engine: &mut TorchEngine, batch: &Batch, device: Device) -> Result<[f64; 4]> {
    let rows = batch.rows();
    let own: Vec<u32> = (0..rows.rows as u32).collect();
    let mut last = Instant::now();
    let mut lap = || {
        synchronize(device);
        let now = Instant::now();
        let seconds = (now - last).as_secs_f64();
        last = now;
        seconds
    };
    let out = engine.encode(&rows, usize::MAX)?;
    let encode = lap();
    let lse = engine.own_lse(&own, rows.rows, &out.f, &out.g)?;
    let loss = lap();
    engine.loss_backward(&GatheredLse {
        r: &lse.r,
        c: &lse.c,
        diag: &lse.diag,
    })?;
    let backward = lap();
    engine.apply(&HYPER)?;
    Ok([encode, loss, backward, lap()])
}

/// 10^12 multiplications and additions a second of a square product.
fn peak(device: Device, kind: Kind) -> Result<f64> {
    let edge = if device == Device::Cpu { 1024 } else { EDGE };
    // Random digits: a product of equal ones draws less power and runs faster.
    let a = Tensor::f_randn([edge, edge], (Kind::Float, device))?.f_to_kind(kind)?;
    let mut best = f64::INFINITY;
    for _ in 0..6 {
        synchronize(device);
        let began = Instant::now();
        let _product = a.f_mm(&a)?;
        synchronize(device);
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok(2.0 * (edge as f64).powi(3) / best / 1e12)
}
