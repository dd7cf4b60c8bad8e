//! Evaluation: every sample of some shards once, in order, through the evaluation transform.

use crate::decode::{Rgb, decode};
use crate::error::DataError;
use crate::expand;
use crate::sample::{Group, Grouper, Keys};
use crate::store::{ObjectFacts, ReadRequest, RetryPolicy, Store};
use crate::tar::Walker;
use crate::transform::{ResizeMode, Transformer};
use argosy_common::steplog::MaskReason;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

/// Largest shard of an evaluation, in bytes: far above what shards are, and below what would get the process killed.
const SHARD_BYTES_MAX: u64 = 8 << 30;

/// How evaluation pictures are prepared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalConfig {
    /// Side `S` of a picture.
    pub image_size: u32,
    /// How it comes to that size.
    pub resize_mode: ResizeMode,
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
    transformer: Transformer,
    picture: Rgb,
    left_out: BTreeMap<MaskReason, u64>,
    damaged: Vec<String>,
}

#[derive(Debug)]
struct OpenShard {
    bytes: Bytes,
    groups: VecDeque<Group>,
}

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
            transformer: Transformer::default(),
            picture: Rgb::default(),
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
            let Some((bytes, group)) = self.next_group()? else {
                return Ok(None);
            };
            match self.sample(&bytes, &group) {
                Ok(sample) => return Ok(Some(sample)),
                Err(reason) => *self.left_out.entry(reason).or_default() += 1,
            }
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

    fn next_group(&mut self) -> Result<Option<(Bytes, Group)>, DataError> {
        loop {
            if let Some(open) = &mut self.open
                && let Some(group) = open.groups.pop_front()
            {
                return Ok(Some((open.bytes.clone(), group)));
            }
            let Some(location) = self.shards.pop_front() else {
                return Ok(None);
            };
            self.open = Some(self.read_shard(&location)?);
        }
    }

    fn read_shard(&mut self, location: &str) -> Result<OpenShard, DataError> {
        let ObjectFacts { bytes: size, etag, .. } = self.store.facts(location)?;
        if size == 0 {
            self.damaged.push(format!("{location}: the file is empty"));
            return Ok(OpenShard {
                bytes: Bytes::new(),
                groups: VecDeque::new(),
            });
        }
        if size > SHARD_BYTES_MAX {
            return Err(DataError::Io {
                file: location.to_owned(),
                error: format!(
                    "{size} bytes; evaluation holds a whole shard in memory and takes at most {SHARD_BYTES_MAX}, split it"
                ),
            });
        }
        let bytes = self.store.read(&ReadRequest {
            location,
            range: 0..size,
            bytes: size,
            etag: etag.as_deref(),
        })?;
        let mut grouper = Grouper::default();
        let mut groups = VecDeque::new();
        for member in Walker::new(bytes.clone()) {
            match member {
                Ok(member) => groups.extend(grouper.push(&member)),
                Err(error) => self.damaged.push(format!("{location}: {error}")),
            }
        }
        groups.extend(grouper.finish());
        Ok(OpenShard { bytes, groups })
    }

    fn sample(&mut self, bytes: &Bytes, group: &Group) -> Result<EvalSample, MaskReason> {
        let slice = |range: std::ops::Range<u64>| &bytes[range.start as usize..range.end as usize];
        let image = group.image(&self.keys).ok_or(MaskReason::Missing)?;
        let text = |range| std::str::from_utf8(slice(range)).map_err(|_| MaskReason::Caption);
        let class = group.get("cls").map(text).transpose()?;
        let class = class
            .map(|c| c.trim().parse().map_err(|_| MaskReason::Caption))
            .transpose()?;
        // Classification needs picture and class only: a caption nobody can read takes nothing from the sample.
        let caption = group.captions(&self.keys, slice).into_iter().next().map(|c| c.text);
        decode(slice(image), self.config.max_image_pixels, &mut self.picture)?;
        let side = self.config.image_size as usize;
        let mut pixels = vec![0; side * side * 3];
        self.transformer
            .evaluate(&self.picture, side, self.config.resize_mode, &mut pixels);
        Ok(EvalSample {
            key: group.key.clone(),
            pixels,
            class,
            caption,
        })
    }
}
