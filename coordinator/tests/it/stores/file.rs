//! A redb file, on a disk that can be full or fail.

use super::{Place, record};
use argosy_common::events::Record;
use argosy_coordinator::store::{Campaign, MetaStore, RedbStore, Reign, Sighting, StoreError};
use redb::StorageBackend;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tonic::async_trait;

#[derive(Debug, Default)]
struct Disk {
    bytes: Vec<u8>,
    full: bool,
    slow: Duration,
    /// The next flush is carried out and reported as failed.
    fails_unheard: bool,
}

/// The disk as redb sees it; the bytes outlive it.
#[derive(Clone, Debug, Default)]
struct Handle(Arc<Mutex<Disk>>);

impl StorageBackend for Handle {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.0.lock().unwrap().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let disk = self.0.lock().unwrap();
        out.copy_from_slice(&disk.bytes[offset as usize..offset as usize + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.lock().unwrap().bytes.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let (slow, fails) = {
            let mut disk = self.0.lock().unwrap();
            (disk.slow, std::mem::take(&mut disk.fails_unheard))
        };
        std::thread::sleep(slow);
        match fails {
            true => Err(io::Error::other("the disk does not answer")),
            false => Ok(()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut disk = self.0.lock().unwrap();
        if disk.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.bytes[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// Opens the disk while nobody else has it open, as the lock of a file would.
#[derive(Clone, Debug, Default)]
struct Store {
    disk: Handle,
    open: Arc<Mutex<Weak<RedbStore>>>,
}

#[async_trait]
impl MetaStore for Store {
    async fn campaign(&self, _: &str) -> Result<Campaign, StoreError> {
        let mut open = self.open.lock().unwrap();
        if open.strong_count() > 0 {
            return Ok(Campaign::Taken(Sighting::default()));
        }
        let reign = Arc::new(RedbStore::on(Path::new("disk"), self.disk.clone())?);
        *open = Arc::downgrade(&reign);
        Ok(Campaign::Elected(reign))
    }

    async fn vacated(&self, _: &Sighting) -> Result<(), StoreError> {
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn records(&self) -> Result<Vec<Record>, StoreError> {
        let open = self.open.lock().unwrap().upgrade();
        open.map_or_else(
            || RedbStore::on(Path::new("disk"), self.disk.clone())?.records(),
            |reign| reign.records(),
        )
    }
}

#[derive(Default)]
pub(crate) struct FilePlace(Store);

#[async_trait]
impl Place for FilePlace {
    fn store(&self) -> Arc<dyn MetaStore> {
        Arc::new(self.0.clone())
    }

    /// A reign over a file lasts as long as its process, so that is what ends.
    async fn outlive(&mut self, reign: Arc<dyn Reign>) {
        drop(reign);
    }

    /// A file forgets nothing and nobody watches it.
    async fn forget_history(&mut self) {}

    async fn append_unheard(&mut self, reign: &Arc<dyn Reign>, revision: u64) -> Result<u64, String> {
        self.0.disk.0.lock().unwrap().fails_unheard = true;
        let done = reign.append(revision - 1, &record(revision)).await;
        done.map_err(|e| e.to_string())
    }

    async fn fill(&mut self) {
        self.0.disk.0.lock().unwrap().full = true;
    }

    async fn make_room(&mut self) {
        self.0.disk.0.lock().unwrap().full = false;
    }

    fn slow(&mut self, ms: u64) {
        self.0.disk.0.lock().unwrap().slow = Duration::from_millis(ms);
    }
}
