//! Where the towers run, chosen when the process runs: libtorch's CUDA library is loaded only where there is a GPU to use it with.

use argosy_torch_ext::load_cuda;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tch::Device;

const CUDA_LIBRARY: &str = "libtorch_cuda.so";
/// In place of a GPU's name.
const NONE: &str = "none";
/// A folder to look in first.
const CUDA_VARIABLE: &str = "ARGOSY_LIBTORCH_CUDA";

/// What there is to compute with on GPUs, and what is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cuda {
    /// The library, if it was found.
    pub library: Option<PathBuf>,
    /// Devices that libtorch sees.
    pub devices: i64,
    /// The first GPU in its driver's words, whether libtorch can use it or not; `none` where there is none.
    pub gpu: String,
    /// What stands in the way of using them, in one sentence.
    pub missing: Option<String>,
}

/// Finds CUDA and loads it where a driver and a GPU are here too, once for the process. libtorch remembers the first answer to
/// a question about CUDA, so nothing may ask before.
pub fn cuda() -> &'static Cuda {
    static CUDA: OnceLock<Cuda> = OnceLock::new();
    CUDA.get_or_init(|| {
        let library = find();
        let gpu = argosy_torch_ext::gpu(0).ok();
        let (devices, missing) = match (&library, &gpu) {
            (_, None) => (0, Some("no NVIDIA device or driver is here".to_owned())),
            (None, Some(_)) => {
                let why = format!(
                    "{CUDA_LIBRARY} is not beside libtorch_cpu.so; unpack the whole wheel of torch 2.11.0 and name its \
                     torch/lib in {CUDA_VARIABLE}"
                );
                (0, Some(why))
            }
            (Some(library), Some(_)) => load(library),
        };
        let word = |gpu: argosy_torch_ext::Gpu| {
            let (major, minor) = gpu.capability;
            format!("sm_{major}{minor} {} CUDA {}", gpu.name, gpu.driver)
        };
        Cuda {
            library,
            devices,
            gpu: gpu.map_or_else(|| NONE.to_owned(), word),
            missing,
        }
    })
}

/// Devices that libtorch sees with its CUDA library, or what stands in the way.
fn load(library: &Path) -> (i64, Option<String>) {
    if let Err(error) = load_cuda(library) {
        let why = format!(
            "{} does not load: {}; install the NVIDIA libraries that torch 2.11.0 names and put them on LD_LIBRARY_PATH",
            library.display(),
            error.message
        );
        return (0, Some(why));
    }
    match tch::Cuda::device_count() {
        0 => (0, Some("libtorch sees no device, though the driver does".to_owned())),
        devices => (devices, None),
    }
}

/// Architecture, name and driver of the first GPU, if libtorch can use it; else `none`. Takes no memory of the GPU.
#[must_use]
pub fn gpu_word() -> String {
    let cuda = cuda();
    match cuda.missing {
        None => cuda.gpu.clone(),
        Some(_) => NONE.to_owned(),
    }
}

/// The library in the folder that was named, or where libtorch itself was loaded from.
fn find() -> Option<PathBuf> {
    let named = std::env::var_os(CUDA_VARIABLE).map(PathBuf::from);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let loaded = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])))
        .find(|path| path.file_name().is_some_and(|name| name == "libtorch_cpu.so"));
    let beside = loaded.and_then(|path| path.parent().map(PathBuf::from));
    named
        .into_iter()
        .chain(beside)
        .map(|folder| folder.join(CUDA_LIBRARY))
        .find(|path| path.exists())
}

/// Where towers run, and what people should hear of it when they begin.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    pub device: Device,
    pub notice: Option<String>,
}

impl Choice {
    fn silent(device: Device) -> Self {
        Self { device, notice: None }
    }
}

/// The device that a job's `train.device` means.
///
/// # Errors
/// When a GPU is asked for that is not there; says what is missing.
pub fn choose(wanted: &str) -> Result<Choice, String> {
    match wanted {
        "cpu" => return Ok(Choice::silent(Device::Cpu)),
        "auto" => return Ok(auto(cuda())),
        _ => {}
    }
    let number: usize = wanted
        .strip_prefix("cuda:")
        .and_then(|n| n.parse().ok())
        .ok_or_else(|| format!("train.device is {wanted:?}, expected \"auto\", \"cpu\" or \"cuda:N\""))?;
    let cuda = cuda();
    if let Some(missing) = &cuda.missing {
        return Err(format!("train.device = {wanted:?}: {missing}"));
    }
    if number as i64 >= cuda.devices {
        return Err(format!(
            "train.device = {wanted:?}: this machine has {} devices, numbered from 0",
            cuda.devices
        ));
    }
    Ok(Choice::silent(Device::Cuda(number)))
}

/// The first GPU where libtorch can use one, else the CPU. Only a machine without any GPU is no news.
fn auto(cuda: &Cuda) -> Choice {
    let gpu = &cuda.gpu;
    match &cuda.missing {
        None => Choice {
            device: Device::Cuda(0),
            notice: Some(format!(
                "train.device = \"auto\" takes cuda:0 ({gpu}); what has run on a GPU before is in ops/reports/gpu.md, and \
                 train.device = \"cpu\" leaves it alone"
            )),
        },
        Some(_) if gpu == NONE => Choice::silent(Device::Cpu),
        Some(missing) => Choice {
            device: Device::Cpu,
            notice: Some(format!(
                "train.device = \"auto\" takes the CPU, although this machine has a GPU ({gpu}): {missing}"
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_asked_for_and_missing_is_an_error_that_says_what_is_missing() {
        assert_eq!(choose("cpu"), Ok(Choice::silent(Device::Cpu)));
        assert!(choose("tpu").is_err_and(|e| e.contains("cuda:N")));
        let error = choose("cuda:99").unwrap_err();
        let cuda = cuda();
        match &cuda.missing {
            Some(missing) => assert!(error.contains(missing) && error.contains("cuda:99"), "{error}"),
            None => assert!(error.contains(&cuda.devices.to_string()), "{error}"),
        }
    }

    #[test]
    fn device_auto_is_the_gpu_that_works_and_says_so_where_one_is_here() {
        let here = |gpu: &str, missing: Option<&str>| Cuda {
            library: None,
            devices: i64::from(missing.is_none()),
            gpu: gpu.into(),
            missing: missing.map(str::to_owned),
        };
        let works = auto(&here("sm_90 H100 CUDA 13.0", None));
        assert_eq!(works.device, Device::Cuda(0));
        assert!(
            works
                .notice
                .is_some_and(|n| n.contains("H100") && n.contains("\"cpu\""))
        );
        let broken = auto(&here("sm_90 H100 CUDA 13.0", Some("libtorch_cuda.so does not load")));
        assert_eq!(broken.device, Device::Cpu);
        assert!(
            broken
                .notice
                .is_some_and(|n| n.contains("H100") && n.contains("does not load"))
        );
        assert_eq!(auto(&here(NONE, Some("no driver"))), Choice::silent(Device::Cpu));
        // Whatever this machine has, the word in the hello and the choice agree (rule N2).
        let chosen = choose("auto").unwrap();
        assert_eq!(chosen.device == Device::Cpu, gpu_word() == NONE);
    }
}
