//! What this machine can do: a matrix product that fits its caches, and a copy that does not.

use crate::engine::Result;
use serde::Serialize;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Edges of the square products; the fastest one counts.
const EDGES: [i64; 3] = [512, 1024, 2048];
/// Bytes that are copied, far more than any cache.
const COPY_BYTES: usize = 256 << 20;
const ROUNDS: usize = 5;

/// Measured peaks of one process with so many threads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Machine {
    pub threads: u32,
    /// 10^9 multiplications and additions a second, in the numbers of the job's matrix products.
    pub gemm_gflops: f64,
    /// 10^9 bytes a second, read and written.
    pub copy_gb_per_s: f64,
}

impl Machine {
    /// The better of two measurements: another program's load makes a machine look slower, never faster.
    pub(super) fn or_better(self, other: Self) -> Self {
        Self {
            threads: self.threads,
            gemm_gflops: self.gemm_gflops.max(other.gemm_gflops),
            copy_gb_per_s: self.copy_gb_per_s.max(other.copy_gb_per_s),
        }
    }
}

/// Peaks with matrix products of `kind`.
pub(super) fn measure(threads: u32, kind: Kind) -> Result<Machine> {
    let _guard = tch::no_grad_guard();
    let mut gemm_gflops = 0.0f64;
    for edge in EDGES {
        let a = Tensor::f_full([edge, edge], 0.5, (kind, Device::Cpu))?;
        let product = best(|| {
            let _ = a.f_mm(&a)?;
            Ok(())
        })?;
        gemm_gflops = gemm_gflops.max(2.0 * (edge as f64).powi(3) / product / 1e9);
    }
    let from = Tensor::f_full([COPY_BYTES as i64 / 4], 1.0, (Kind::Float, Device::Cpu))?;
    let mut to = from.f_zeros_like()?;
    let copy = best(|| {
        to.f_copy_(&from)?;
        Ok(())
    })?;
    Ok(Machine {
        threads,
        gemm_gflops,
        copy_gb_per_s: 2.0 * COPY_BYTES as f64 / copy / 1e9,
    })
}

/// Seconds of the fastest round, the first one left out.
fn best(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        work()?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(best)
}
