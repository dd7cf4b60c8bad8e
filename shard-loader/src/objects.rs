//! Where a run's checkpoints lie: a folder, or below a URL of an object store.

use crate::error::DataError;
use crate::store::open_at;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An opened place; keys are relative to it.
#[derive(Clone, Debug)]
pub struct Objects {
    /// The store.
    pub objects: Arc<dyn ObjectStore>,
    /// The folder, where it is one.
    pub folder: Option<PathBuf>,
}

/// Opens `location`: a folder by path or `file://` URL, made if it is missing, or what `s3://`, `gs://` and `az://` name, with
/// the credentials of the environment. What is written there is durable when a write returns.
///
/// # Errors
/// When it cannot be made, or when nobody knows how to open it.
pub fn open(location: &str) -> Result<Objects, DataError> {
    let path = location.strip_prefix("file://").unwrap_or(location);
    if path.contains("://") {
        let (store, prefix) = open_at(path)?;
        return Ok(Objects {
            objects: Arc::new(PrefixStore::new(store, prefix)),
            folder: None,
        });
    }
    let folder = Path::new(path);
    let failed = |error: std::io::Error| DataError::Io {
        file: location.into(),
        error: error.to_string(),
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let store = LocalFileSystem::new_with_prefix(folder).map_err(|e| failed(std::io::Error::other(e)))?;
    Ok(Objects {
        objects: Arc::new(store.with_automatic_cleanup(true).with_fsync(true)),
        folder: Some(folder.to_owned()),
    })
}
