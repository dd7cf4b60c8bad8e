//! Between a loader and its disk cache: which rows may be kept, and in which form.

use crate::cache::{CacheStats, DiskCache, Kept, KeptRow, ShardKey};
use crate::decode::Rgb;
use crate::error::DataError;
use crate::index::Index;
use crate::sample::Caption;
use crate::store::is_url;
use argosy_common::config::DataConfig;
use argosy_common::ids::SampleId;
use std::sync::Arc;

/// A row as the cache gave it.
#[derive(Debug)]
pub(super) enum Stored {
    /// What stands in the shard.
    Bytes(KeptRow),
    /// Its picture, decoded and resized.
    Picture(Kept),
}

/// The cache as one loader sees it; does nothing where there is none.
#[derive(Clone, Debug)]
pub(super) struct RowCache {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    disk: DiskCache,
    index: Arc<Index>,
    pictures: bool,
    /// Names everything but the shard that what is kept depends on.
    form: String,
}

impl RowCache {
    /// # Errors
    /// [`DataError::Config`] when pictures would be kept smaller than they are trained.
    pub(super) fn new(
        disk: Option<DiskCache>,
        index: &Arc<Index>,
        data: &DataConfig,
        image_size: u32,
    ) -> Result<Self, DataError> {
        if let Some(side) = data.resized_side.filter(|side| *side < image_size) {
            let why =
                format!("data.resized_side is {side}, but the model takes pictures of {image_size} pixels a side");
            return Err(DataError::Config(why));
        }
        let (image_key, text_key) = index.keys();
        let form = match data.resized_side {
            None => "bytes".to_owned(),
            Some(side) => {
                let (pixels_max, fast) = (data.max_image_pixels, data.fast_decode);
                format!("picture\0{side}\0{image_key}\0{text_key}\0{pixels_max}\0{fast}")
            }
        };
        let inner = disk.map(|disk| {
            let inner = Inner {
                disk,
                index: Arc::clone(index),
                pictures: data.resized_side.is_some(),
                form,
            };
            let shards = index
                .shards()
                .filter_map(|s| inner.shard_key(s.location, s.bytes, s.etag));
            inner.disk.own(shards);
            Arc::new(inner)
        });
        Ok(Self { inner })
    }

    fn find(&self, sample: SampleId) -> Option<(&Inner, ShardKey)> {
        let inner = self.inner.as_deref()?;
        Some((inner, inner.key(sample)?))
    }

    /// Whether the row that begins at byte `start` of its shard was kept. It may be found broken when it is read.
    pub(super) fn has(&self, sample: SampleId, start: u64) -> bool {
        self.find(sample).is_some_and(|(inner, key)| inner.disk.has(key, start))
    }

    /// The row that begins at byte `start` of its shard.
    pub(super) fn get(&self, sample: SampleId, start: u64) -> Option<Stored> {
        let (inner, key) = self.find(sample)?;
        let row = inner.disk.get(key, start)?;
        match inner.pictures {
            true => Kept::read(&row.bytes).map(Stored::Picture),
            false => Some(Stored::Bytes(row)),
        }
    }

    /// Keeps the bytes of a row, where bytes are kept.
    pub(super) fn keep_bytes(&self, sample: SampleId, start: u64, bytes: &[u8], confirmed: bool) {
        if let Some((inner, key)) = self.find(sample).filter(|(inner, _)| !inner.pictures) {
            inner.disk.put(key, start, bytes, confirmed);
        }
    }

    /// Keeps the picture of a row, where pictures are kept.
    pub(super) fn keep_picture(
        &self,
        sample: SampleId,
        start: u64,
        full: (usize, usize),
        picture: &Rgb,
        captions: &[Caption],
    ) {
        if let Some((inner, key)) = self.find(sample).filter(|(inner, _)| inner.pictures) {
            inner.disk.put(key, start, &Kept::write(full, picture, captions), false);
        }
    }

    pub(super) fn stats(&self) -> CacheStats {
        self.inner.as_ref().map(|inner| inner.disk.stats()).unwrap_or_default()
    }
}

impl Inner {
    fn key(&self, sample: SampleId) -> Option<ShardKey> {
        let shard = self.index.whole_shard(sample.source, sample.shard)?;
        self.shard_key(shard.location, shard.shard_bytes, shard.etag)
    }

    /// None for what nobody could tell from another object of that name, and for bytes of files, which are on a disk already.
    fn shard_key(&self, location: &str, bytes: u64, etag: Option<&str>) -> Option<ShardKey> {
        let worth = self.pictures || is_url(location);
        etag.filter(|_| worth)
            .map(|etag| ShardKey::new(&self.form, location, bytes, etag))
    }
}
