//! What machines that share no folder need of a run, and how it is named in the run's store. `argosy prepare` puts it there;
//! coordinators and workers fetch it.

use crate::shape::RunShape;
use serde::{Deserialize, Serialize};

/// Where these files lie, below the run's place.
pub const FOLDER: &str = "run";
/// The [`Package`]; written last, so that it is never there without the others.
pub const PACKAGE_FILE: &str = "package.json";
/// What a run folder says of its run.
pub const RUN_FILE: &str = "run.json";
/// The job as it is trained.
pub const JOB_FILE: &str = "job.toml";
/// The index.
pub const INDEX_FILE: &str = "index.argosy";
/// The model's description, where the job names a file of its own.
pub const MODEL_FILE: &str = "model.json";
/// The weights it starts from, where the job names some.
pub const WEIGHTS_FILE: &str = "open_clip_model.safetensors";
/// How those weights were trained, where their folder says it.
pub const WEIGHTS_CONFIG_FILE: &str = "open_clip_config.json";
/// Version of [`Package`].
pub const PACKAGE_VERSION: u32 = 1;

/// What a coordinator has to know of a run that was prepared elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Package {
    /// [`PACKAGE_VERSION`].
    pub version: u32,
    /// The run's id.
    pub run: String,
    /// Digest of the training configuration.
    pub config_hash: u64,
    /// Digest of the index.
    pub index_hash: u64,
    /// Lanes, fitted window factor, length, rows of every shard.
    pub shape: RunShape,
    /// Parts of a checkpoint.
    pub parts_total: u32,
    /// The model's config in open_clip's JSON form, for manifests.
    pub model: serde_json::Value,
}

impl Package {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence's words.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let value: serde_json::Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        match value["version"].as_u64() {
            Some(v) if v == u64::from(PACKAGE_VERSION) => serde_json::from_value(value).map_err(|e| e.to_string()),
            Some(v) => Err(format!(
                "it has format version {v}, this Argosy reads {PACKAGE_VERSION}; use the argosy that prepared the run"
            )),
            None => Err("it has no version".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_of_another_version_is_refused_with_both() {
        let newer = br#"{"version": 2, "run": "r"}"#;
        let why = Package::parse(newer).unwrap_err();
        assert!(why.contains("version 2") && why.contains("reads 1"), "{why}");
        assert!(Package::parse(b"{}").unwrap_err().contains("no version"));
        assert!(Package::parse(b"<html>").is_err());
    }
}
