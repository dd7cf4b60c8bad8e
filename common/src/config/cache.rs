//! The `[cache]` section: what a worker keeps of the data on its own disk.

use super::check::ConfigError;
use super::{DataConfig, Job};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where rows that were read from a store are kept, and how much of them. It never changes what is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// A folder that all workers of a machine share; relative paths start at the job file's folder. Without it nothing is kept.
    pub folder: Option<String>,
    /// Most bytes that the folder holds.
    pub bytes_max: u64,
    /// Bytes of its disk that stay free.
    pub free_bytes_min: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            folder: None,
            bytes_max: 0,
            free_bytes_min: 4 << 30,
        }
    }
}

/// Largest `data.resized_side`.
const RESIZED_SIDE_MAX: u32 = 4096;

pub(super) fn check(file: &str, job: &Job) -> Result<(), ConfigError> {
    let (cache, DataConfig { resized_side, .. }) = (&job.cache, &job.data);
    let refuse = super::check::refuser(file);
    match &cache.folder {
        Some(folder) if folder.is_empty() || folder.contains("://") => {
            return refuse("cache.folder", format!("{folder:?}"), "a folder of this machine");
        }
        Some(_) if cache.bytes_max == 0 => {
            return refuse("cache.bytes_max", "0".into(), "the bytes that cache.folder may hold");
        }
        None if cache.bytes_max > 0 => {
            return refuse(
                "cache.folder",
                "missing".into(),
                "a folder, as there is cache.bytes_max",
            );
        }
        _ => {}
    }
    if let Some(side) = resized_side {
        if !(16..=RESIZED_SIDE_MAX).contains(side) {
            return refuse("data.resized_side", side.to_string(), "16 to 4096 pixels");
        }
        if cache.folder.is_none() {
            let expected = "cache.folder as well: without it every picture would be resized twice each time";
            return refuse("data.resized_side", side.to_string(), expected);
        }
    }
    Ok(())
}
