//! `argosy-worker check-device`: the same steps on a device and on the CPU, side by side, and how fast the device is.
//!
//! What it goes through is [`PATHS`], one line each in `ops/reports/gpu.md`, where a path that no device ever ran says so.

mod bench;
mod cases;
mod compare;

pub use bench::Speed;
pub use compare::{Tamper, Told};

use crate::device;
use argosy_common::exit::Exit;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use tch::Device;

/// Everything that is compared or timed, by name.
pub const PATHS: [&str; 18] = [
    "ViT-B/32 fp32",
    "ViT-B/32 bf16 autocast",
    "ViT-B/32 bf16",
    "ViT-B/32 pure bf16",
    "ViT with averaged patches, layer scale, patch dropout; text without a causal mask; fp32",
    "the same in bf16 autocast",
    "micro-batches and gradient checkpointing, fp32",
    "sigmoid loss, fp32",
    "sigmoid loss, bf16 autocast",
    "ResNet, BatchNorm by lane, fp32",
    "ResNet, BatchNorm by lane, bf16 autocast",
    "the loss in tiles of several owners",
    "repeated step, deterministic: the same bits",
    "out of memory: micro-batches are halved",
    "job with one worker: audit, losses as on the CPU",
    "job with two workers on one GPU, ring: audit, losses as on the CPU",
    "the same, one worker killed: audit, losses as on the CPU",
    "the same in bf16 autocast",
];

/// Arguments of `argosy-worker check-device`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// cuda:N, or cpu to try the check itself
    #[arg(long, value_name = "DEVICE", default_value = "cuda:0")]
    pub device: String,
    /// Where the JSON goes, besides the table on stdout
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Times training steps of ViT-B/32 with so many rows, too; 0 for none
    #[arg(long, value_name = "ROWS", default_value_t = 0)]
    pub rows: usize,
    /// Threads of tensor operations on the CPU; all cores by default
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// What the check found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `cuda:0`.
    pub device: String,
    /// Name, compute capability and driver, where it is a GPU.
    pub gpu: Option<String>,
    pub libtorch: String,
    /// All that was compared holds.
    pub holds: bool,
    pub paths: Vec<PathReport>,
    pub speed: Vec<Speed>,
}

/// One of [`PATHS`].
#[derive(Debug, Clone, Serialize)]
pub struct PathReport {
    pub path: &'static str,
    pub holds: bool,
    /// Largest allowed difference.
    pub bound: f64,
    /// Measured differences by name.
    #[serde(flatten)]
    pub told: Told,
    pub seconds: f64,
}

impl Report {
    /// A line a path, a line a speed.
    #[must_use]
    pub fn table(&self) -> String {
        let gpu = self.gpu.as_deref().unwrap_or("no GPU");
        let mut out = format!("{} ({gpu}), libtorch {}\n", self.device, self.libtorch);
        for path in &self.paths {
            let word = if path.holds { "holds" } else { "FAILS" };
            out += &format!(
                "{word}  {}: {} (bound {:e}, {:.1} s)\n",
                path.path, path.told, path.bound, path.seconds
            );
        }
        for speed in &self.speed {
            out += &format!("{speed}\n");
        }
        out
    }
}

/// Compares the device with the CPU; `progress` hears of every path.
///
/// # Errors
/// When the device is not there; a path that fails is no error but part of the report.
pub fn run(args: &CheckArgs, progress: &dyn Fn(&str)) -> std::result::Result<Report, (Exit, String)> {
    let chosen = device::choose(&args.device).map_err(|message| (Exit::Unavailable, message))?;
    let device = chosen.device;
    let threads = args
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let failed = |e: crate::engine::EngineError| (Exit::JobFailed, e.to_string());
    let mut report = Report {
        device: args.device.clone(),
        gpu: gpu(device),
        libtorch: argosy_torch_ext::build().version,
        holds: true,
        paths: compare::all(device, threads, None, progress),
        speed: Vec::new(),
    };
    report.holds = report.paths.iter().all(|path| path.holds);
    if args.rows > 0 {
        report.speed = bench::all(device, threads, args.rows, progress).map_err(failed)?;
    }
    if let Some(file) = &args.report {
        let text = serde_json::to_string_pretty(&report).map_err(|e| (Exit::Panic, e.to_string()))?;
        std::fs::write(file, text + "\n").map_err(|e| (Exit::JobFailed, format!("{}: {e}", file.display())))?;
    }
    Ok(report)
}

/// What the driver says of the GPU.
fn gpu(device: Device) -> Option<String> {
    let Device::Cuda(number) = device else { return None };
    let gpu = argosy_torch_ext::gpu(number).ok()?;
    let (major, minor) = gpu.capability;
    Some(format!(
        "{}, sm_{major}{minor}, driver for CUDA {}",
        gpu.name, gpu.driver
    ))
}

/// Waits until the device has done all it was given.
fn synchronize(device: Device) {
    if let Device::Cuda(number) = device {
        tch::Cuda::synchronize(number as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::compare::small;

    /// The CPU beside itself: what is looked at is the check.
    #[test]
    fn check_of_a_device_that_computes_the_same_holds_and_a_planted_error_is_caught() {
        let same = small(Device::Cpu, None);
        assert!(
            same.iter().all(|path| path.holds && path.told.error.is_none()),
            "{same:#?}"
        );
        let wrong: Tamper = |grads| grads.iter_mut().for_each(|g| *g *= 1.001);
        for path in small(Device::Cpu, Some(wrong)) {
            assert!(path.bound > 1e-3 || !path.holds, "{path:#?}");
        }
    }

    #[test]
    fn step_on_a_gpu_if_one_is_here_is_that_of_the_cpu() {
        let cuda = device::cuda();
        if cuda.devices == 0 {
            println!("SKIP no GPU that libtorch can use");
            return;
        }
        let paths = compare::all(Device::Cuda(0), 2, None, &|_| {});
        assert!(paths.iter().all(|path| path.holds), "{paths:#?}");
    }

    #[test]
    fn paths_stand_in_the_committed_table_as_run_or_never_run() {
        let table = include_str!("../../ops/reports/gpu.md");
        for path in PATHS {
            let line = table.lines().find(|line| line.starts_with(&format!("| {path} |")));
            let line = line.unwrap_or_else(|| panic!("ops/reports/gpu.md has no line for {path}"));
            assert!(line.contains("ran on ") || line.contains("never run"), "{line}");
        }
    }
}
