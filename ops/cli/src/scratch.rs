//! A folder for the length of a command.

use crate::fail::{Failure, Outcome};
use std::path::{Path, PathBuf};

/// A folder that is gone when this is.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn create(what: &str) -> Outcome<Self> {
        let path = std::env::temp_dir().join(format!("argosy-{what}-{}", std::process::id()));
        // Not `create_dir_all`: a folder that is there already is somebody else's.
        std::fs::create_dir(&path).map_err(|e| Failure::io("create", &path, &e))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left lies in the system's own temporary folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
