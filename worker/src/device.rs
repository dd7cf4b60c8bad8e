//! Where the towers run, chosen when the process runs: libtorch's CUDA library is loaded only if somebody asks for a GPU.

use argosy_torch_ext::load_cuda;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::OnceLock;
use tch::Device;

const CUDA_LIBRARY: &str = "libtorch_cuda.so";
/// A folder to look in first.
const CUDA_VARIABLE: &str = "ARGOSY_LIBTORCH_CUDA";

/// What there is to compute with on GPUs, and what is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cuda {
    /// The library, if it was found.
    pub library: Option<PathBuf>,
    /// Devices that libtorch sees.
    pub devices: i64,
    /// The first of them, in its driver's words.
    pub gpu: String,
    /// What stands in the way of using them, in one sentence.
    pub missing: Option<String>,
}

/// Finds and loads CUDA, once for the process. libtorch remembers the first answer to a question about CUDA, so nothing may
/// ask before.
pub fn cuda() -> &'static Cuda {
    static CUDA: OnceLock<Cuda> = OnceLock::new();
    CUDA.get_or_init(|| {
        let Some(library) = find() else {
            let missing = format!(
                "{CUDA_LIBRARY} is not beside libtorch_cpu.so; unpack the whole wheel of torch 2.11.0 and name its torch/lib \
                 in {CUDA_VARIABLE}"
            );
            return Cuda {
                library: None,
                devices: 0,
                gpu: gpu_word(),
                missing: Some(missing),
            };
        };
        let (devices, missing) = match load_cuda(&library) {
            Err(error) => {
                let why = format!(
                    "{} does not load: {}; install the NVIDIA libraries that torch 2.11.0 names and put them on \
                     LD_LIBRARY_PATH",
                    library.display(),
                    error.message
                );
                (0, Some(why))
            }
            Ok(()) => match tch::Cuda::device_count() {
                0 => (0, Some("no NVIDIA device or driver is here".to_owned())),
                devices => (devices, None),
            },
        };
        Cuda {
            library: Some(library),
            devices,
            gpu: gpu_word(),
            missing,
        }
    })
}

/// Architecture, name and driver of the first GPU in one word, where there is one that libtorch could use; else `none`. Neither
/// loads libtorch's CUDA library nor takes memory of the GPU.
#[must_use]
pub fn gpu_word() -> String {
    let gpu = find().and_then(|_| argosy_torch_ext::gpu(0).ok());
    gpu.map_or_else(
        || "none".to_owned(),
        |gpu| {
            let (major, minor) = gpu.capability;
            format!("sm_{major}{minor} {} CUDA {}", gpu.name, gpu.driver)
        },
    )
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

/// The device that a job's `train.device` means.
///
/// # Errors
/// When a GPU is asked for that is not there; says what is missing.
pub fn choose(wanted: &str) -> Result<Device, String> {
    // No machine with a GPU has run this path yet, so it is taken only when it is asked for by name.
    if wanted == "auto" || wanted == "cpu" {
        return Ok(Device::Cpu);
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
    Ok(Device::Cuda(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_asked_for_and_missing_is_an_error_that_says_what_is_missing() {
        assert_eq!(choose("auto"), Ok(Device::Cpu));
        assert_eq!(choose("cpu"), Ok(Device::Cpu));
        assert!(choose("tpu").is_err_and(|e| e.contains("cuda:N")));
        let error = choose("cuda:99").unwrap_err();
        let cuda = cuda();
        match &cuda.missing {
            Some(missing) => assert!(error.contains(missing) && error.contains("cuda:99"), "{error}"),
            None => assert!(error.contains(&cuda.devices.to_string()), "{error}"),
        }
    }
}
