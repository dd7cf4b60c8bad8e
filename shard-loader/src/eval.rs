//! Evaluation: every sample of some shards once, in order, through the evaluation transform.

use crate::decode::{Rgb, decode};
use crate::error::DataError;
use crate::expand;
use crate::index::ChunkedShard;
use crate::sample::{Group, Grouper, Keys};
use crate::store::{ReadRequest, RetryPolicy, Store};
use crate::tar::{ReadAt, Walker};
use crate::transform::{Resize, Transformer};
use argosy_common::steplog::MaskReason;
use bytes::Bytes;
use rayon::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

/// Samples with more bytes are left out (`bytes`), as a job's default has it.
const SAMPLE_BYTES_MAX: u64 = 64 << 20;
/// Samples that are read and decoded together, on all cores.
const AHEAD: usize = 32;

/// How evaluation pictures are prepared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalConfig {
    /// Side `S` of a picture.
    pub image_size: u32,
    /// How it comes to that size.
    pub resize: Resize,
    /// Picture suffixes, joined by `;`.
    pub image_key: String,
    /// Caption suffixes.
    pub text_key: String,
    /// Pictures with more pixels are left out (`pixels`).
    pub max_image_pixels: u64,
}

/// One sample that can be evaluated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalSample {
    /// Its base name in the shard.
    pub key: String,
    /// `[S, S, 3]` bytes after the evaluation transform.
    pub pixels: Vec<u8>,
    /// The number in its `.cls` member, if it has one.
    pub class: Option<u32>,
    /// Its caption, if it has one that is UTF-8; not cleaned.
    pub caption: Option<String>,
}

/// Reads samples in the order of the shards.
#[derive(Debug)]
pub struct EvalReader {
    store: Store,
    shards: VecDeque<String>,
    config: EvalConfig,
    keys: Keys,
    open: Option<OpenShard>,
    ready: VecDeque<Result<EvalSample, MaskReason>>,
    left_out: BTreeMap<MaskReason, u64>,
    damaged: Vec<String>,
}

/// A shard on its way: only the sample at hand is held.
#[derive(Debug)]
struct OpenShard {
    location: String,
    walker: Walker<ChunkedShard>,
    grouper: Grouper,
    done: bool,
}

/// A sample's bytes and where its members lie in them.
type Raw = (Bytes, Group);

impl EvalReader {
    /// Opens the shards that `shards` names (pattern, folder or file); relative paths start at `base`.
    ///
    /// # Errors
    /// When it names nothing.
    pub fn open(shards: &str, base: &Path, config: EvalConfig) -> Result<Self, DataError> {
        let store = Store::new(RetryPolicy::default())?;
        let named = expand::shards(shards, base, &store)?;
        Ok(Self {
            store,
            shards: named.into_iter().map(|s| s.location).collect(),
            keys: Keys::new(&config.image_key, &config.text_key),
            config,
            open: None,
            ready: VecDeque::new(),
            left_out: BTreeMap::new(),
            damaged: Vec::new(),
        })
    }

    /// The next sample; `None` at the end. Samples that cannot be used are counted and passed over.
    ///
    /// # Errors
    /// When a shard cannot be read.
    pub fn next_sample(&mut self) -> Result<Option<EvalSample>, DataError> {
        loop {
            if let Some(sample) = self.ready.pop_front() {
                match sample {
                    Ok(sample) => return Ok(Some(sample)),
                    Err(reason) => *self.left_out.entry(reason).or_default() += 1,
                }
                continue;
            }
            let mut raw = Vec::with_capacity(AHEAD);
            while raw.len() < AHEAD {
                match self.next_raw()? {
                    Some(next) => raw.push(next),
                    None => break,
                }
            }
            if raw.is_empty() {
                return Ok(None);
            }
            let (config, keys) = (&self.config, &self.keys);
            let decoded: Vec<_> = raw
                .into_par_iter()
                .map_init(
                    || (Transformer::default(), Rgb::default()),
                    |(transformer, picture), raw| sample(&raw?, config, keys, transformer, picture),
                )
                .collect();
            self.ready = decoded.into();
        }
    }

    /// Samples passed over so far, by reason.
    #[must_use]
    pub fn left_out(&self) -> &BTreeMap<MaskReason, u64> {
        &self.left_out
    }

    /// Shards that could not be read to their end, with where and why.
    #[must_use]
    pub fn damaged(&self) -> &[String] {
        &self.damaged
    }

    /// The next sample's bytes, or why it is left out unread.
    fn next_raw(&mut self) -> Result<Option<Result<Raw, MaskReason>>, DataError> {
        loop {
            if self.open.is_none() {
                let Some(location) = self.shards.pop_front() else {
                    return Ok(None);
                };
                self.open = self.open_shard(location)?;
            }
            let Some(open) = &mut self.open else { continue };
            let group = match open.walker.next() {
                Some(Ok(member)) => open.grouper.push(&member),
                Some(Err(error @ DataError::Tar { .. })) => {
                    self.damaged.push(format!("{}: {error}", open.location));
                    None
                }
                Some(Err(error)) => return Err(error),
                None => {
                    open.done = true;
                    std::mem::take(&mut open.grouper).finish()
                }
            };
            let mut found = None;
            if let Some(group) = group {
                let archive = open.walker.archive();
                let range = group.start..group.end.min(archive.size());
                found = Some(if range.end - range.start > SAMPLE_BYTES_MAX {
                    Err(MaskReason::Bytes)
                } else {
                    Ok((archive.read_at(range)?, group))
                });
            }
            if open.done {
                self.open = None;
            }
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    fn open_shard(&mut self, location: String) -> Result<Option<OpenShard>, DataError> {
        let facts = self.store.facts(&location)?;
        if facts.bytes == 0 {
            self.damaged.push(format!("{location}: the file is empty"));
            return Ok(None);
        }
        let request = ReadRequest {
            location: &location,
            range: 0..0,
            bytes: facts.bytes,
            etag: facts.etag.as_deref(),
        };
        let walker = Walker::new(ChunkedShard::open(&self.store, &request));
        Ok(Some(OpenShard {
            location,
            walker,
            grouper: Grouper::default(),
            done: false,
        }))
    }
}

/// Decodes one sample.
fn sample(
    (bytes, group): &Raw,
    config: &EvalConfig,
    keys: &Keys,
    transformer: &mut Transformer,
    picture: &mut Rgb,
) -> Result<EvalSample, MaskReason> {
    let slice =
        |range: std::ops::Range<u64>| &bytes[(range.start - group.start) as usize..(range.end - group.start) as usize];
    let image = group.image(keys).ok_or(MaskReason::Missing)?;
    let text = |range| std::str::from_utf8(slice(range)).map_err(|_| MaskReason::Caption);
    let class = group.get("cls").map(text).transpose()?;
    let class = class
        .map(|c| c.trim().parse().map_err(|_| MaskReason::Caption))
        .transpose()?;
    // Classification needs picture and class only: a caption nobody can read takes nothing from the sample.
    let caption = group.captions(keys, slice).into_iter().next().map(|c| c.text);
    decode(slice(image), config.max_image_pixels, picture)?;
    let side = config.image_size as usize;
    let mut pixels = vec![0; side * side * 3];
    transformer.evaluate(picture, side, config.resize, &mut pixels);
    Ok(EvalSample {
        key: group.key.clone(),
        pixels,
        class,
        caption,
    })
}
