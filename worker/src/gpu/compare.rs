//! The same step twice.

use super::cases::{Batch, CASES, Case};
use super::{PATHS, PathReport, synchronize};
use crate::clip::to_vec;
use crate::engine::{ApplyHyper, Encoded, Engine, EngineError, GatheredLse, OwnLse, Result, TorchEngine, TorchOptions};
use crate::loss::OwnRows;
use serde::Serialize;
use std::fmt;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// A planted error in the device's gradient, for tests of this check.
pub type Tamper = fn(&mut [f32]);

pub(super) const HYPER: ApplyHyper = ApplyHyper {
    lr: 1e-3,
    beta1: 0.9,
    beta2: 0.98,
    eps: 1e-6,
    weight_decay: 0.2,
    clip_norm: Some(1.0),
    ema_decay: None,
};

/// Tensors with less than this share of the whole gradient are measured against that share (rule P2).
const FLOOR: f64 = 1e-2;

/// Differences between the device and the CPU; what a path does not measure is 0.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Told {
    /// Largest, between features of length one.
    pub features: f64,
    /// Relative to the loss, or to 1 where that is less.
    pub loss: f64,
    /// Of all gradients together, relative to their norm.
    pub gradient: f64,
    /// Of the worst tensor, relative to its norm and a hundredth of the whole.
    pub tensor: f64,
    pub tensor_name: String,
    /// Largest between parameters after one update from the same gradient.
    pub optimiser: f64,
    /// Loss of the step after that, as `loss`.
    pub next_loss: f64,
    /// Besides: what happened, in words.
    pub note: Option<String>,
    pub error: Option<String>,
}

impl Told {
    fn worst(&self) -> f64 {
        let all = [self.features, self.loss, self.gradient, self.tensor, self.next_loss];
        all.into_iter()
            .fold(0.0, |a, b| if b.is_nan() { f64::INFINITY } else { a.max(b) })
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(error) = &self.error {
            return write!(f, "{error}");
        }
        write!(
            f,
            "features {:.1e}, loss {:.1e}, gradient {:.1e}, worst tensor {:.1e} {}, optimiser {:.1e}, next loss {:.1e}",
            self.features, self.loss, self.gradient, self.tensor, self.tensor_name, self.optimiser, self.next_loss
        )?;
        self.note.iter().try_for_each(|note| write!(f, "; {note}"))
    }
}

/// All paths that need no other process.
pub(super) fn all(device: Device, threads: usize, tamper: Option<Tamper>, progress: &dyn Fn(&str)) -> Vec<PathReport> {
    let mut out = Vec::new();
    let mut add = |path: usize, bound: f64, work: &dyn Fn() -> Result<Told>| {
        out.push(judged(path, bound, work));
        if let Some(last) = out.last() {
            progress(&format!("{}: {}", last.path, last.told));
        }
    };
    for case in CASES {
        add(case.path, case.bound(), &|| one(&case, device, threads, tamper));
    }
    add(11, 1e-4, &|| tiles(device));
    add(12, 0.0, &|| repeated(device, threads));
    add(13, 1e-4, &|| short_of_memory(device, threads));
    out
}

/// Those that take no time, for tests.
#[cfg(test)]
pub(super) fn small(device: Device, tamper: Option<Tamper>) -> Vec<PathReport> {
    let few = CASES.iter().filter(|case| case.model != super::cases::Model::VitB32);
    few.map(|case| judged(case.path, case.bound(), &|| one(case, device, 1, tamper)))
        .collect()
}

fn judged(path: usize, bound: f64, work: &dyn Fn() -> Result<Told>) -> PathReport {
    let began = Instant::now();
    let told = work().unwrap_or_else(|error| Told {
        error: Some(error.to_string()),
        ..Told::default()
    });
    PathReport {
        path: PATHS[path],
        // The update itself is the same code on the same numbers (rule P1).
        holds: told.error.is_none() && told.worst() <= bound && told.optimiser <= 1e-6,
        bound,
        told,
        seconds: began.elapsed().as_secs_f64(),
    }
}

/// Features, loss and gradient of a batch on one engine.
pub(super) fn forward_backward(engine: &mut TorchEngine, batch: &Batch, micro_rows: usize) -> Result<(Encoded, f64)> {
    let rows = batch.rows();
    let own: Vec<u32> = (0..rows.rows as u32).collect();
    let draws: Vec<u64> = (0..rows.rows as u64)
        .map(|row| row.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .collect();
    // Lanes of eight rows, for BatchNorm.
    let lanes = vec![8; rows.rows / 8];
    engine.begin_lanes(&lanes, &draws);
    let out = engine.encode(&rows, micro_rows)?;
    let OwnLse { r, c, diag } = engine.own_lse(&own, rows.rows, &out.f, &out.g)?;
    let loss = engine.loss_backward(&GatheredLse {
        r: &r,
        c: &c,
        diag: &diag,
    })?;
    Ok((out, loss.loss))
}

fn one(case: &Case, device: Device, threads: usize, tamper: Option<Tamper>) -> Result<Told> {
    let (mut cpu, mut other) = (case.engine(Device::Cpu, threads)?, case.engine(device, threads)?);
    let batch = Batch::new(cpu.config(), case.rows);
    let (want, loss) = forward_backward(&mut cpu, &batch, case.micro_rows)?;
    let (got, other_loss) = forward_backward(&mut other, &batch, case.micro_rows)?;
    if let Some(tamper) = tamper {
        tamper(other.grads_flat()?);
    }
    let mut told = Told {
        features: largest(&want.f, &got.f).max(largest(&want.g, &got.g)),
        loss: (loss - other_loss).abs() / loss.abs().max(1.0),
        ..Told::default()
    };
    let want = cpu.grads_flat()?.to_vec();
    gradients(&mut told, &want, other.grads_flat()?, &cpu);
    // From the same gradient, so that what is compared is the update and what it brings to the device.
    other.grads_flat()?.copy_from_slice(&want);
    cpu.apply(&HYPER)?;
    other.apply(&HYPER)?;
    told.optimiser = largest(cpu.params().values.as_slice(), other.params().values.as_slice());
    let (_, loss) = forward_backward(&mut cpu, &batch, case.micro_rows)?;
    let (_, other_loss) = forward_backward(&mut other, &batch, case.micro_rows)?;
    told.next_loss = (loss - other_loss).abs() / loss.abs().max(1.0);
    Ok(told)
}

fn gradients(told: &mut Told, want: &[f32], got: &[f32], engine: &TorchEngine) {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let apart = |a: &[f32], b: &[f32]| norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let length = |a: &[f32]| norm(&mut a.iter().map(|v| f64::from(*v)));
    let whole = length(want);
    told.gradient = apart(want, got) / whole;
    for spec in engine.params().trained() {
        let place = spec.offset..spec.offset + spec.len;
        let (want, got) = (&want[place.clone()], &got[place]);
        let ratio = apart(want, got) / (length(want) + FLOOR * whole);
        if ratio > told.tensor || ratio.is_nan() {
            (told.tensor, told.tensor_name) = (ratio, spec.name.clone());
        }
    }
}

fn largest(a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs()));
    pairs.fold(0.0, |worst, d| if d.is_nan() { f64::INFINITY } else { worst.max(d) })
}

/// Log-sum-exps and gradients where half of the rows are another's, with ragged tiles.
fn tiles(device: Device) -> Result<Told> {
    let (rows, width) = (1003i64, 96i64);
    let features = |seed: i64| -> Result<Tensor> {
        let values: Vec<f32> = (0..rows * width)
            .map(|k| ((k * 7919 + seed * 104_729) % 1013) as f32 / 1013.0 - 0.5)
            .collect();
        let x = Tensor::f_from_slice(&values)?.f_view([rows, width])?;
        Ok(x.f_div(&x.f_norm_scalaropt_dim(2.0, [-1i64].as_slice(), true)?)?)
    };
    let (f, g) = (features(1)?, features(2)?);
    let own: Vec<u32> = (0..rows as u32).filter(|row| row % 3 != 1).collect();
    let everyone: Vec<u32> = (0..rows as u32).collect();
    let run = |device: Device| -> Result<[Vec<f32>; 4]> {
        let (f, g) = (f.f_to_device(device)?, g.f_to_device(device)?);
        let (_, all) = OwnRows::begin(&f, &g, &everyone, 50.0, 1024)?;
        let (mut own, lse) = OwnRows::begin(&f, &g, &own, 50.0, 200)?;
        let grads = own.finish(&all.r, &all.c, &all.diag)?;
        Ok([
            to_vec(&lse.r)?,
            to_vec(&lse.c)?,
            to_vec(&grads.d_f)?,
            to_vec(&grads.d_g)?,
        ])
    };
    let (want, got) = (run(Device::Cpu)?, run(device)?);
    let size = want[2].iter().chain(&want[3]).fold(0.0f32, |a, b| a.max(b.abs()));
    Ok(Told {
        loss: largest(&want[0], &got[0]).max(largest(&want[1], &got[1])),
        gradient: largest(&want[2], &got[2]).max(largest(&want[3], &got[3])) / f64::from(size),
        ..Told::default()
    })
}

/// Twice the same step in deterministic mode; its gradients must have the same bits.
fn repeated(device: Device, threads: usize) -> Result<Told> {
    let (config, preprocess) = super::cases::Model::VitB32.config()?;
    let options = TorchOptions {
        threads,
        device,
        fixed_shapes: true,
        ..TorchOptions::default()
    };
    let mut engine = TorchEngine::new(&config, &preprocess, options)?;
    let batch = Batch::new(&config, 64);
    forward_backward(&mut engine, &batch, usize::MAX)?;
    let first = engine.grads_flat()?.to_vec();
    let mut differ = 0;
    for _ in 0..3 {
        forward_backward(&mut engine, &batch, usize::MAX)?;
        differ += first
            .iter()
            .zip(engine.grads_flat()?)
            .filter(|(a, b)| a.to_bits() != b.to_bits())
            .count();
    }
    Ok(Told {
        gradient: differ as f64,
        note: Some(format!(
            "{differ} of {} values in three repetitions have other bits",
            3 * first.len()
        )),
        ..Told::default()
    })
}

/// Takes most of a GPU's memory away and trains all the same.
fn short_of_memory(device: Device, threads: usize) -> Result<Told> {
    if device == Device::Cpu {
        return Ok(Told {
            note: Some("nothing to do on a CPU; its own test limits the pool".into()),
            ..Told::default()
        });
    }
    let (config, preprocess) = super::cases::Model::VitB32.config()?;
    let options = TorchOptions {
        threads,
        device,
        ..TorchOptions::default()
    };
    let mut engine = TorchEngine::new(&config, &preprocess, options)?;
    let batch = Batch::new(&config, 512);
    // The first pass also brings cuBLAS's own memory.
    let (want, loss) = forward_backward(&mut engine, &batch, 32)?;
    let whole = engine.grads_flat()?.to_vec();
    synchronize(device);
    let taken = take_memory(device)?;
    let outcome = forward_backward(&mut engine, &batch, usize::MAX);
    let blocks = taken.len();
    drop(taken);
    let (got, again) = outcome?;
    let notices = engine.take_notices();
    if notices.is_empty() {
        return Err(EngineError::Protocol("memory was not short enough to notice".into()));
    }
    let mut told = Told {
        features: largest(&want.f, &got.f).max(largest(&want.g, &got.g)),
        loss: (loss - again).abs() / loss.max(1.0),
        note: Some(format!("{blocks} blocks taken; said: {}", notices.join(" / "))),
        ..Told::default()
    };
    let got = engine.grads_flat()?.to_vec();
    gradients(&mut told, &whole, &got, &engine);
    Ok(told)
}

/// Memory of the device in blocks until none is left, and then three GiB given back.
fn take_memory(device: Device) -> Result<Vec<Tensor>> {
    const BLOCK: i64 = 1 << 30;
    let mut taken = Vec::new();
    while let Ok(block) = Tensor::f_empty([BLOCK], (Kind::Uint8, device)) {
        taken.push(block);
        if taken.len() > 1024 {
            return Err(EngineError::Protocol("the device has no end of memory".into()));
        }
    }
    taken.truncate(taken.len().saturating_sub(3));
    Ok(taken)
}
