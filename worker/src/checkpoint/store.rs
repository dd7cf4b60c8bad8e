//! The objects of a run's checkpoints, wherever they lie.

use super::CheckpointError;
use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::runtime::{Handle, Runtime};

/// Part of a folder's free space that is left to others.
const SPARE_BYTES: u64 = 64 << 20;

/// Threads that requests run on. Parts are few and large.
const THREADS: usize = 2;

#[derive(Debug)]
struct Io(Option<Runtime>);

impl Drop for Io {
    fn drop(&mut self) {
        // A runtime must not be waited for where its last owner happens to be one of its tasks.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Keys and bytes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PartStore {
    objects: Arc<dyn ObjectStore>,
    io: Arc<Io>,
    handle: Handle,
    /// The folder, where it is one.
    folder: Option<PathBuf>,
}

impl PartStore {
    /// Over any store; `folder` where its objects are this machine's files.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn new(objects: Arc<dyn ObjectStore>, folder: Option<PathBuf>) -> Result<Self, CheckpointError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("argosy-parts")
            .enable_all()
            .build()
            .map_err(|e| CheckpointError::Store {
                object: "threads for checkpoints".into(),
                why: e.to_string(),
                missing: false,
            })?;
        let handle = runtime.handle().clone();
        let io = Arc::new(Io(Some(runtime)));
        Ok(Self {
            objects,
            io,
            handle,
            folder,
        })
    }

    /// The threads its requests run on.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits for `work`. Not to be called from asynchronous code.
    pub(super) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        debug_assert!(self.io.0.is_some(), "the threads live as long as the store");
        self.handle.block_on(work)
    }

    /// The store at `location`, a folder or a URL.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(location: &str) -> Result<Self, CheckpointError> {
        let opened = argosy_shard_loader::objects::open(location).map_err(|e| CheckpointError::Store {
            object: location.into(),
            why: e.to_string(),
            missing: false,
        })?;
        Self::new(opened.objects, opened.folder)
    }

    /// Refuses to begin what the folder has no room for.
    ///
    /// # Errors
    /// Free and wanted bytes.
    pub fn check_space(&self, bytes: u64) -> Result<(), String> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let Ok(stat) = nix::sys::statvfs::statvfs(folder) else {
            return Ok(()); // the write itself will tell
        };
        let free = stat.blocks_available() * stat.fragment_size();
        if free < bytes.saturating_add(SPARE_BYTES) {
            let folder = folder.display();
            return Err(format!(
                "{folder} has {free} bytes free, {bytes} and {SPARE_BYTES} to spare are needed; make room or set \
                 checkpoint.url"
            ));
        }
        Ok(())
    }

    /// Creates an object where none is. One that is there already must be the same: whatever went wrong with the put, it is
    /// read back and compared (rule K3), for a put that timed out may have happened.
    ///
    /// # Errors
    /// The store's, or that another object is there.
    pub async fn create(&self, key: &str, payload: Vec<Bytes>) -> Result<(), CheckpointError> {
        let options = PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        let path = Key::from(key);
        let pieces: PutPayload = payload.iter().cloned().collect();
        let Err(error) = self.objects.put_opts(&path, pieces, options).await else {
            return Ok(());
        };
        let failed = |why: String| CheckpointError::Store {
            object: key.into(),
            why,
            missing: false,
        };
        let wanted: usize = payload.iter().map(Bytes::len).sum();
        let Ok(there) = self.read(key, wanted as u64).await else {
            return Err(failed(format!("it could not be written: {error}")));
        };
        let same = there.len() == wanted && {
            let mut rest = &there[..];
            payload.iter().all(|piece| {
                let (head, tail) = rest.split_at(piece.len());
                rest = tail;
                head == piece
            })
        };
        match same {
            true => Ok(()),
            false => Err(failed(format!("an object with other content is there: {error}"))),
        }
    }

    /// As [`Self::create`], where no asynchronous code is near.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn create_now(&self, key: &str, payload: Bytes) -> Result<(), CheckpointError> {
        self.block_on(self.create(key, vec![payload]))
    }

    /// All bytes of an object of at most `bytes_max`.
    ///
    /// # Errors
    /// The store's, or that it is larger.
    pub async fn read(&self, key: &str, bytes_max: u64) -> Result<Bytes, CheckpointError> {
        let failed = |e: object_store::Error| CheckpointError::Store {
            object: key.into(),
            missing: matches!(e, object_store::Error::NotFound { .. }),
            why: e.to_string(),
        };
        let got = self.objects.get(&Key::from(key)).await.map_err(failed)?;
        let size = got.meta.size;
        if size > bytes_max {
            return Err(CheckpointError::Store {
                object: key.into(),
                why: format!("it has {size} bytes, at most {bytes_max} are expected"),
                missing: true,
            });
        }
        got.bytes().await.map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn object_that_exists_is_kept_and_must_be_the_same() {
        let store = PartStore::new(Arc::new(InMemory::new()), None).unwrap();
        let payload = |text: &[&'static str]| text.iter().map(|t| Bytes::from_static(t.as_bytes())).collect();
        store.create("3/part", payload(&["o", "ne"])).await.unwrap();
        store.create("3/part", payload(&["one"])).await.unwrap();
        let other = store.create("3/part", payload(&["two"])).await.unwrap_err().to_string();
        assert!(other.contains("other content"), "{other}");
        assert!(store.create("3/part", payload(&["on"])).await.is_err());
        assert_eq!(&store.read("3/part", 3).await.unwrap()[..], b"one");
        assert!(store.read("3/part", 2).await.unwrap_err().is_damage());
        assert!(store.read("none", 2).await.unwrap_err().is_damage());
    }

    #[test]
    fn folder_without_room_is_refused_with_what_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        let store = PartStore::open(dir.path().to_str().unwrap()).unwrap();
        store.check_space(1).unwrap();
        let refused = store.check_space(u64::MAX / 2).unwrap_err();
        assert!(refused.contains("bytes free"), "{refused}");
    }
}
