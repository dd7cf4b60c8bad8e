//! Rows as bytes to rows of a batch, on a pool of threads.

use super::LoaderConfig;
use super::blocked::blocked;
use super::fetch::{RawBytes, RawLane, RawRow};
use super::rows::{RowCache, Stored};
use super::stats::{Counters, Stage};
use crate::batch::LaneBatch;
use crate::cache::Kept;
use crate::decode::{Reduction, Rgb, decode_reduced};
use crate::error::{DataError, LoaderError};
use crate::index::Index;
use crate::sample::{self, Caption, Grouper, Keys};
use crate::store::Store;
use crate::tar::Walker;
use crate::tokenize::Tokenizer;
use crate::transform::{RowKey, Transformer};
use argosy_common::config::DataConfig;
use argosy_common::ids::SampleId;
use argosy_common::quarantine::RowRange;
use argosy_common::rng::{Draws, Purpose};
use argosy_common::sampling::lane_digest;
use argosy_common::steplog::{MaskReason, RowState};
use bytes::Bytes;
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// What one thread keeps from picture to picture.
#[derive(Debug, Default)]
struct Bench {
    transformer: Transformer,
    picture: Rgb,
    resized: Rgb,
}

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::default();
}

/// Decodes, transforms and tokenises the rows of steps.
#[derive(Debug)]
pub(super) struct Preparer {
    index: Arc<Index>,
    store: Store,
    cache: RowCache,
    pool: rayon::ThreadPool,
    tokenizer: Arc<Tokenizer>,
    keys: Keys,
    data: DataConfig,
    seed: u64,
    rows: usize,
    side: usize,
    counters: Arc<Counters>,
}

impl Preparer {
    pub(super) fn new(
        index: Arc<Index>,
        store: Store,
        cache: RowCache,
        config: &LoaderConfig,
        counters: Arc<Counters>,
    ) -> Result<Self, DataError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.decode_threads.max(1))
            .thread_name(|i| format!("argosy-decode-{i}"))
            .build()
            .map_err(|e| DataError::Config(format!("cannot start the decoding threads: {e}")))?;
        // The index decided by its own keys which rows are kept; the job's may have changed since.
        let (image_key, text_key) = index.keys();
        let keys = Keys::new(image_key, text_key);
        Ok(Self {
            store,
            cache,
            pool,
            tokenizer: Arc::clone(&config.tokenizer),
            keys,
            data: config.data.clone(),
            seed: config.shape.seed,
            rows: config.shape.lane_rows() as usize,
            side: config.image_size as usize,
            counters,
            index,
        })
    }

    /// The batches of `lanes` at `step`.
    pub(super) fn step(&self, step: u64, lanes: Vec<RawLane>) -> Result<Vec<LaneBatch>, LoaderError> {
        self.pool
            .install(|| lanes.into_par_iter().map(|raw| self.lane(step, &raw)).collect())
    }

    fn lane(&self, step: u64, raw: &RawLane) -> Result<LaneBatch, LoaderError> {
        let (b, context) = (self.rows, self.tokenizer.context_length());
        let picture_bytes = self.side * self.side * 3;
        let mut pixels = vec![0u8; b * picture_bytes];
        let mut tokens = vec![0i32; b * context];
        let mut lengths = vec![0u16; b];
        let mut states = vec![RowState::Absent; b];
        let slots = pixels
            .par_chunks_exact_mut(picture_bytes)
            .zip(tokens.par_chunks_exact_mut(context));
        let slots = slots.zip(lengths.par_iter_mut().zip(states.par_iter_mut()));
        slots
            .zip(raw.rows.par_iter())
            .try_for_each(|(((pixels, tokens), (length, state)), row)| {
                match self.row(raw.lane, row, pixels, tokens)? {
                    Ok(tokens) => (*length, *state) = (tokens, RowState::Valid),
                    Err(reason) => {
                        pixels.fill(0);
                        tokens.fill(0);
                        *state = RowState::Masked(reason);
                    }
                }
                Ok(())
            })?;
        let samples: Vec<SampleId> = raw.rows.iter().map(|r| r.sample).collect();
        let digest = lane_digest(raw.lane, &samples);
        Ok(LaneBatch {
            step,
            lane: raw.lane,
            rows: b as u32,
            samples,
            states,
            pixels,
            tokens,
            lengths,
            digest,
        })
    }

    /// Fills one row; the inner error is a mask (rule M1), the outer one a failed read (rule M2).
    fn row(
        &self,
        lane: u32,
        row: &RawRow,
        pixels: &mut [u8],
        tokens: &mut [i32],
    ) -> Result<Result<u16, MaskReason>, LoaderError> {
        let key = RowKey {
            seed: self.seed,
            lane,
            position: row.position,
        };
        let (start, bytes, confirmed) = match &row.bytes {
            RawBytes::Masked(reason) => return Ok(Err(*reason)),
            RawBytes::Found { start, bytes } => (*start, bytes.clone(), false),
            RawBytes::OnDisk(range) => match self.cache.get(row.sample, range.start) {
                Some(Stored::Picture(kept)) => return Ok(self.fill_kept(&kept, key, pixels, tokens)),
                Some(Stored::Bytes(kept)) => (range.start, kept.bytes, kept.confirmed),
                None => {
                    let bytes = self.fetch(lane, row.sample, range.clone())?;
                    self.cache.keep_bytes(row.sample, range.start, &bytes, false);
                    (range.start, bytes, false)
                }
            },
        };
        let at = (row.sample, start);
        let first = self.fill(at, &bytes, key, pixels, tokens);
        // A picture that does not decode or headers that are not whole. (A caption that is empty or a picture that is too large
        // is so in whole bytes too, and far too often to be asked for twice.)
        if !matches!(first, Err(MaskReason::Format | MaskReason::Missing)) || confirmed {
            return Ok(first);
        }
        // Bytes may break on their way; only what comes twice is the sample's own fault (rule M1).
        let again = self.fetch(lane, row.sample, start..start + bytes.len() as u64)?;
        self.cache.keep_bytes(row.sample, start, &again, again == bytes);
        if again == bytes {
            return Ok(first);
        }
        Ok(self.fill(at, &again, key, pixels, tokens))
    }

    /// Bytes `range` of the sample's shard, from the store.
    fn fetch(&self, lane: u32, sample: SampleId, range: Range<u64>) -> Result<Bytes, LoaderError> {
        let Some(shard) = self.index.whole_shard(sample.source, sample.shard) else {
            return Ok(Bytes::new());
        };
        let read = self.store.read(&shard.read(range.clone()));
        self.counters.read(read.as_ref().map_or(0, |bytes| bytes.len() as u64));
        let rows = RowRange {
            source: sample.source,
            shard: sample.shard,
            from: sample.row,
            until: sample.row.saturating_add(1),
        };
        read.map_err(|e| blocked((&self.index, &self.store), lane, rows, &shard.read(range), &e))
    }

    /// The tokens of the caption that is drawn; gives their number.
    fn caption(&self, captions: &[Caption], key: RowKey, tokens: &mut [i32]) -> Result<u16, MaskReason> {
        let started = Instant::now();
        let mut draws = Draws::new(key.seed, Purpose::Caption, key.lane, key.position);
        let caption = sample::choose(captions, &self.data, &mut draws).ok_or(MaskReason::Caption)?;
        let mask = || Draws::new(key.seed, Purpose::TokenMask, key.lane, key.position);
        let length = self.tokenizer.row_drawn(caption, mask, tokens);
        self.counters.spent(Stage::Tokenize, started.elapsed());
        // (A tokenizer from a file may have no id for what it does not know.)
        if length == 0 {
            Err(MaskReason::Caption)
        } else {
            Ok(length)
        }
    }

    /// One row from its bytes, which begin at byte `at.1` of the shard of sample `at.0`.
    fn fill(
        &self,
        at: (SampleId, u64),
        bytes: &Bytes,
        key: RowKey,
        pixels: &mut [u8],
        tokens: &mut [i32],
    ) -> Result<u16, MaskReason> {
        let (image, captions) = members(bytes, &self.keys).ok_or(MaskReason::Missing)?;
        let length = self.caption(&captions, key, tokens)?;
        let started = Instant::now();
        BENCH.with_borrow_mut(|bench| {
            let augment = &self.data.aug_cfg;
            let choose = |full| match (self.data.fast_decode, self.data.resized_side) {
                (true, Some(side)) => Reduction::suited(full, (side as usize, side as usize)),
                (true, None) => Transformer::reduction(full, self.side, augment, key),
                (false, _) => Reduction::None,
            };
            let decoded = decode_reduced(&image, self.data.max_image_pixels, &mut bench.picture, choose);
            let ended = Instant::now();
            self.counters.spent(Stage::Decode, ended - started);
            let full = decoded?;
            let transformer = &mut bench.transformer;
            let mut picture = &bench.picture;
            if let Some(side) = self.data.resized_side {
                transformer.shrink(picture, side as usize, &mut bench.resized);
                picture = &bench.resized;
                self.cache.keep_picture(at.0, at.1, full, picture, &captions);
            }
            transformer.train(picture, full, self.side, augment, key, pixels);
            self.counters.spent(Stage::Transform, ended.elapsed());
            Ok(length)
        })
    }

    /// One row from its kept picture: what [`fill`](Self::fill) makes when pictures are resized first.
    fn fill_kept(&self, kept: &Kept, key: RowKey, pixels: &mut [u8], tokens: &mut [i32]) -> Result<u16, MaskReason> {
        let length = self.caption(&kept.captions, key, tokens)?;
        let started = Instant::now();
        let augment = &self.data.aug_cfg;
        BENCH.with_borrow_mut(|bench| {
            let (picture, full) = (&kept.picture, kept.full);
            bench.transformer.train(picture, full, self.side, augment, key, pixels);
        });
        self.counters.spent(Stage::Transform, started.elapsed());
        Ok(length)
    }
}

/// Picture and captions of the one sample in `bytes`; `None` when its headers are not whole or one of them is gone.
fn members(bytes: &Bytes, keys: &Keys) -> Option<(Bytes, Vec<Caption>)> {
    let mut grouper = Grouper::default();
    for member in Walker::new(bytes.clone()) {
        if grouper.push(&member.ok()?).is_some() {
            // A second sample where the index has one: these are other bytes.
            return None;
        }
    }
    let group = grouper.finish()?;
    let image = group.image(keys)?;
    if !group.has_text(keys) {
        return None;
    }
    let captions = group.captions(keys, |range| &bytes[range.start as usize..range.end as usize]);
    Some((bytes.slice(image.start as usize..image.end as usize), captions))
}
