//! Reading bytes of shards: everything goes through `object_store`, files first.
//!
//! Blocking on purpose: callers are plain threads, and a window is one request. The asynchronous half stays inside.

use crate::error::DataError;
use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::Runtime;

/// What a store says about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectFacts {
    /// Size in bytes.
    pub bytes: u64,
    /// The store's version of its content, if it has one.
    pub etag: Option<String>,
    /// Last change, in milliseconds since 1970.
    pub modified_ms: i64,
}

/// Where shards are read from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    objects: Arc<dyn ObjectStore>,
    runtime: Option<Runtime>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A runtime must not be waited for where the last owner happens to be an asynchronous task.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Store {
    /// A store over this machine's files. Locations are absolute paths.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn local() -> Result<Self, DataError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("argosy-io")
            .enable_all()
            .build()
            .map_err(|e| DataError::Config(format!("cannot start the reading threads: {e}")))?;
        Ok(Self {
            shared: Arc::new(Shared {
                objects: Arc::new(LocalFileSystem::new()),
                runtime: Some(runtime),
            }),
        })
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, DataError> {
        match &self.shared.runtime {
            Some(runtime) => Ok(runtime.block_on(work)),
            None => Err(DataError::Config("the reading threads have stopped".into())),
        }
    }

    /// Size, etag and age of an object. Not to be called from asynchronous code.
    ///
    /// # Errors
    /// [`DataError::NotFound`] or [`DataError::Io`].
    pub fn facts(&self, location: &str) -> Result<ObjectFacts, DataError> {
        let path = object_path(location)?;
        let meta = self
            .wait(self.shared.objects.head(&path))?
            .map_err(|e| explain(location, &e))?;
        Ok(ObjectFacts {
            bytes: meta.size,
            etag: meta.e_tag,
            modified_ms: meta.last_modified.timestamp_millis(),
        })
    }

    /// Bytes `range` of an object that must still be the one described by `bytes_expected` and `etag`.
    ///
    /// # Errors
    /// [`DataError::Changed`] when size or etag differ (rule M3), else [`DataError::NotFound`] or [`DataError::Io`].
    pub fn read(
        &self,
        location: &str,
        range: Range<u64>,
        bytes_expected: u64,
        etag: Option<&str>,
    ) -> Result<Bytes, DataError> {
        let path = object_path(location)?;
        let length = range.end.saturating_sub(range.start);
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            ..GetOptions::default()
        };
        let work = async {
            let got = self.shared.objects.get_opts(&path, options).await?;
            let meta = got.meta.clone();
            Ok::<_, object_store::Error>((meta, got.bytes().await?))
        };
        let (meta, bytes) = match self.wait(work)? {
            Ok(got) => got,
            // A shard that shrank below the range fails before its size can be compared; say which of the two it is.
            Err(error) => {
                let now = self.facts(location)?;
                check_unchanged(location, &now, bytes_expected, etag)?;
                return Err(explain(location, &error));
            }
        };
        let now = ObjectFacts {
            bytes: meta.size,
            etag: meta.e_tag,
            modified_ms: meta.last_modified.timestamp_millis(),
        };
        check_unchanged(location, &now, bytes_expected, etag)?;
        if bytes.len() as u64 != length {
            let error = format!("asked for {length} bytes, got {}", bytes.len());
            return Err(DataError::Io {
                file: location.into(),
                error,
            });
        }
        Ok(bytes)
    }
}

fn check_unchanged(location: &str, now: &ObjectFacts, bytes: u64, etag: Option<&str>) -> Result<(), DataError> {
    let changed = |change: String| {
        Err(DataError::Changed {
            file: location.into(),
            change,
        })
    };
    if now.bytes != bytes {
        return changed(format!("{bytes} bytes then, {} now", now.bytes));
    }
    match (etag, now.etag.as_deref()) {
        (Some(then), Some(now)) if then != now => changed(format!("etag {then} then, {now} now")),
        _ => Ok(()),
    }
}

fn object_path(location: &str) -> Result<ObjectPath, DataError> {
    if location.contains("://") {
        return Err(DataError::Config(format!(
            "{location}: only files can be read, give a path"
        )));
    }
    ObjectPath::from_absolute_path(Path::new(location)).map_err(|e| DataError::Io {
        file: location.into(),
        error: e.to_string(),
    })
}

fn explain(location: &str, error: &object_store::Error) -> DataError {
    match error {
        object_store::Error::NotFound { .. } => DataError::NotFound {
            what: format!("shard {location}"),
            hint: String::new(),
        },
        other => DataError::Io {
            file: location.into(),
            error: other.to_string(),
        },
    }
}
