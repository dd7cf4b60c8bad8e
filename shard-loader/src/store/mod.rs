//! Reading bytes of shards: everything goes through `object_store`, whatever kind of store it is.
//!
//! Blocking on purpose: callers are plain threads. The asynchronous half stays inside. Reads are ranged, pinned to the etag
//! that the index knows (rule M3), and get through what passes: see [`RetryPolicy`].

mod list;
mod place;
mod policy;
mod reader;
#[cfg(test)]
mod tests;

pub(crate) use place::{is_url, open_at};
pub use policy::RetryPolicy;

use crate::error::DataError;
use bytes::Bytes;
use futures_util::StreamExt;
use object_store::{ObjectMeta, ObjectStore};
use place::Place;
use policy::Latency;
use reader::{Pinned, ReadCounters, ReadError, Reader};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Runtime;
use tokio::sync::watch;

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

fn facts_of(meta: &ObjectMeta) -> ObjectFacts {
    ObjectFacts {
        bytes: meta.size,
        etag: meta.e_tag.clone(),
        modified_ms: meta.last_modified.timestamp_millis(),
    }
}

/// One ranged read of an object that must still be the one described.
#[derive(Clone, Debug)]
pub struct ReadRequest<'a> {
    /// Absolute path or address.
    pub location: &'a str,
    /// Bytes wanted.
    pub range: Range<u64>,
    /// Size of the whole object.
    pub bytes: u64,
    /// Its etag, where it has one.
    pub etag: Option<&'a str>,
}

/// What reading took so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Requests sent, second ones included.
    pub requests: u64,
    /// Requests after a failure.
    pub retries: u64,
    /// Second requests for a slow first one.
    pub hedges: u64,
    /// Requests given up for silence.
    pub stalls: u64,
}

/// Where shards are read from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
    /// Ends what this handle and its clones wait for.
    stop: Option<watch::Receiver<()>>,
}

/// Keeps the reads of one handle going; when it is dropped they end at once, whatever their budget.
#[derive(Debug)]
pub(crate) struct KeepReading {
    _sender: watch::Sender<()>,
}

#[derive(Debug)]
struct Shared {
    roots: Mutex<BTreeMap<String, Arc<Root>>>,
    policy: RetryPolicy,
    counters: ReadCounters,
    runtime: Option<Runtime>,
}

/// One client with what is known of its answers.
#[derive(Debug)]
struct Root {
    objects: Arc<dyn ObjectStore>,
    latency: Latency,
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
    /// A store over files and whatever addresses name. Clients are made when first needed.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn new(policy: RetryPolicy) -> Result<Self, DataError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("argosy-io")
            .enable_all()
            .build()
            .map_err(|e| DataError::Config(format!("cannot start the reading threads: {e}")))?;
        Ok(Self {
            shared: Arc::new(Shared {
                roots: Mutex::default(),
                policy,
                counters: ReadCounters::default(),
                runtime: Some(runtime),
            }),
            stop: None,
        })
    }

    /// Another handle to the same store, whose reads last no longer than what comes with it.
    pub(crate) fn stoppable(&self) -> (Self, KeepReading) {
        let (sender, receiver) = watch::channel(());
        let store = Self {
            shared: Arc::clone(&self.shared),
            stop: Some(receiver),
        };
        (store, KeepReading { _sender: sender })
    }

    /// Lets locations that begin with `root` (`s3://bucket`, or nothing for files) be read from `objects`.
    pub fn put_root(&self, root: &str, objects: Arc<dyn ObjectStore>) {
        let latency = Latency::default();
        let root_objects = Arc::new(Root { objects, latency });
        self.roots().insert(root.to_owned(), root_objects);
    }

    fn roots(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Root>>> {
        self.shared.roots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn root(&self, place: &Place) -> Result<Arc<Root>, DataError> {
        let mut roots = self.roots();
        if let Some(root) = roots.get(&place.root) {
            return Ok(Arc::clone(root));
        }
        let root = Arc::new(Root {
            objects: place::open(&place.root)?,
            latency: Latency::default(),
        });
        roots.insert(place.root.clone(), Arc::clone(&root));
        Ok(root)
    }

    fn reader<'a>(&'a self, root: &'a Root, place: &Place) -> Reader<'a> {
        Reader {
            objects: root.objects.as_ref(),
            policy: &self.shared.policy,
            latency: (!place.is_file()).then_some(&root.latency),
            counters: &self.shared.counters,
        }
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, DataError> {
        let stopped = || DataError::Config("the reading threads have stopped".into());
        let runtime = self.shared.runtime.as_ref().ok_or_else(stopped)?;
        let Some(mut stop) = self.stop.clone() else {
            return Ok(runtime.block_on(work));
        };
        runtime.block_on(async {
            tokio::select! {
                biased;
                done = work => Ok(done),
                // Nothing is ever sent: this ends with the sender.
                _ = stop.changed() => Err(stopped()),
            }
        })
    }

    /// Size, etag and age of an object. Not to be called from asynchronous code.
    ///
    /// # Errors
    /// [`DataError::NotFound`], [`DataError::Denied`] or [`DataError::Io`].
    pub fn facts(&self, location: &str) -> Result<ObjectFacts, DataError> {
        self.wait(self.facts_async(location))?
    }

    /// Whether the object that `request` names still is the one described (rule M3); its range does not matter. Not to be
    /// called from asynchronous code.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn same_still(&self, request: &ReadRequest<'_>) -> Result<(), DataError> {
        let location = request.location;
        let place = place::place(location)?;
        let root = self.root(&place)?;
        let pinned = Pinned {
            bytes: request.bytes,
            etag: request.etag,
        };
        let same = self.wait(self.reader(&root, &place).same_still(&place.key, pinned))?;
        same.map_err(|e| explain(location, e))
    }

    async fn facts_async(&self, location: &str) -> Result<ObjectFacts, DataError> {
        let place = place::place(location)?;
        let root = self.root(&place)?;
        let read = self.reader(&root, &place).facts(&place.key).await;
        read.map_err(|e| explain(location, e))
    }

    /// Bytes of one request. Not to be called from asynchronous code.
    ///
    /// # Errors
    /// [`DataError::Changed`] when size or etag differ (rule M3), else [`DataError::NotFound`], [`DataError::Denied`] or
    /// [`DataError::Io`].
    pub fn read(&self, request: &ReadRequest<'_>) -> Result<Bytes, DataError> {
        self.wait(self.read_async(request))?
    }

    /// Bytes of several requests in their order, `at_once` of them on their way at the same time. The first failure drops
    /// the others.
    ///
    /// # Errors
    /// The index of the request that failed, with its error.
    pub fn read_all(
        &self,
        requests: &[ReadRequest<'_>],
        at_once: usize,
        mut each: impl FnMut(usize, Bytes),
    ) -> Result<(), (usize, DataError)> {
        let work = async {
            let one = |(i, request)| async move { (i, self.read_async(request).await) };
            let mut coming =
                futures_util::stream::iter(requests.iter().enumerate().map(one)).buffer_unordered(at_once.max(1));
            while let Some((i, read)) = coming.next().await {
                each(i, read.map_err(|e| (i, e))?);
            }
            Ok(())
        };
        self.wait(work).map_err(|e| (0, e))?
    }

    async fn read_async(&self, request: &ReadRequest<'_>) -> Result<Bytes, DataError> {
        if request.range.is_empty() {
            return Ok(Bytes::new());
        }
        let location = request.location;
        let place = place::place(location)?;
        let root = self.root(&place)?;
        let pinned = Pinned {
            bytes: request.bytes,
            etag: request.etag,
        };
        let read = self
            .reader(&root, &place)
            .read(&place.key, request.range.clone(), pinned)
            .await;
        read.map_err(|e| explain(location, e))
    }

    /// What reading took since the store was made.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let counters = &self.shared.counters;
        StoreStats {
            requests: counters.requests.load(Ordering::Relaxed),
            retries: counters.retries.load(Ordering::Relaxed),
            hedges: counters.hedges.load(Ordering::Relaxed),
            stalls: counters.stalls.load(Ordering::Relaxed),
        }
    }
}

fn explain(location: &str, error: ReadError) -> DataError {
    let file = location.to_owned();
    match error {
        ReadError::Missing => DataError::NotFound {
            what: format!("shard {location}"),
            hint: String::new(),
        },
        ReadError::Changed(change) => DataError::Changed { file, change },
        ReadError::Denied(error) => DataError::Denied { file, error },
        ReadError::Unreadable(error) => DataError::Io { file, error },
    }
}
