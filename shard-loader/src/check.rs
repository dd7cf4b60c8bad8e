//! What is wrong with a data set, before a run trains on it: every sample is read and decoded once, every one that a run
//! would leave out or mask is named with its reason, and so is what stands there twice.

use crate::decode::{Rgb, decode};
use crate::error::DataError;
use crate::expand::{self, NamedShard};
use crate::index::{BuildConfig, ChunkedShard, Fate, walk_shard};
use crate::sample::{Group, Keys};
use crate::store::{ReadRequest, Store, is_url};
use crate::tar::ReadAt;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How a check is made.
#[derive(Clone, Debug)]
pub struct CheckConfig {
    /// Keys, filter and threads.
    pub build: BuildConfig,
    /// Pictures with more pixels are named (`pixels`).
    pub max_image_pixels: u64,
    /// Samples with more bytes are named (`bytes`).
    pub max_sample_bytes: u64,
    /// Problems that are listed; beyond that they are only counted.
    pub listed_max: usize,
}

/// One sample or shard that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The shard.
    pub shard: String,
    /// The sample's key; empty for the shard as a whole.
    pub key: String,
    /// The ledger's word for it (`missing`, `format`, `pixels`, `bytes`, `caption`), or `damage`, `unreadable`,
    /// `repeated_key`, `repeated_shard`.
    pub reason: String,
    /// More, for people; may be empty.
    pub detail: String,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Shards looked at.
    pub shards: usize,
    /// Samples in them.
    pub samples: u64,
    /// Samples that a run would train.
    pub good: u64,
    /// Samples that the filter leaves out; no problem.
    pub filtered: u64,
    /// How many problems of each reason there are.
    pub reasons: BTreeMap<String, u64>,
    /// The problems, by shard and key, as far as they are listed.
    pub problems: Vec<Problem>,
}

/// Checks `shards`; `progress` hears of shards done and of all.
///
/// # Errors
/// When the shards cannot be found; one that cannot be read is a problem in the report.
pub fn check(
    store: &Store,
    shards: &str,
    base: &Path,
    config: &CheckConfig,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<CheckReport, DataError> {
    let named = expand::shards(shards, base, store)?;
    let keys = Keys::new(&config.build.image_key, &config.build.text_key);
    let next = AtomicUsize::new(0);
    let all = Mutex::new(CheckReport::default());
    let remote = named.iter().any(|s| is_url(&s.location));
    let threads = config.build.threads.max(if remote { 8 } else { 1 });
    std::thread::scope(|scope| {
        for _ in 0..threads.min(named.len().max(1)) {
            scope.spawn(|| {
                let mut picture = Rgb::default();
                while let Some(shard) = named.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut found = Found::new(shard, config);
                    if let Err(error) = found.shard(store, &keys, &mut picture) {
                        found.problem("", "unreadable", error.to_string());
                    }
                    let Ok(mut report) = all.lock() else { return };
                    report.add(found.report, config.listed_max);
                    progress(report.shards, named.len());
                }
            });
        }
    });
    let mut report = all
        .into_inner()
        .map_err(|_| DataError::Config("a thread of the check panicked".into()))?;
    let mut seen = BTreeSet::new();
    for shard in named.iter().filter(|s| !seen.insert(&s.location)) {
        let mut found = Found::new(shard, config);
        let detail = "it is named more than once; a run would train its rows that often a pass";
        found.problem("", "repeated_shard", detail.into());
        found.report.shards = 0;
        report.add(found.report, config.listed_max);
    }
    report.problems.sort();
    Ok(report)
}

/// Problems for which nothing is left out: what they name is trained, once for each time it is there.
const TRAINED: [&str; 2] = ["repeated_key", "repeated_shard"];

impl CheckReport {
    /// Problems for which a run would leave something out or mask it; the others are only odd.
    #[must_use]
    pub fn untrained(&self) -> u64 {
        let untrained = self
            .reasons
            .iter()
            .filter(|(reason, _)| !TRAINED.contains(&reason.as_str()));
        untrained.map(|(_, times)| times).sum()
    }

    fn add(&mut self, other: Self, listed_max: usize) {
        self.shards += other.shards;
        self.samples += other.samples;
        self.good += other.good;
        self.filtered += other.filtered;
        for (reason, n) in other.reasons {
            *self.reasons.entry(reason).or_default() += n;
        }
        self.problems.extend(other.problems);
        // By shard and key, so that which ones are listed does not depend on which thread was first.
        self.problems.sort();
        self.problems.truncate(listed_max);
    }
}

/// What one shard comes to.
struct Found<'a> {
    named: &'a NamedShard,
    config: &'a CheckConfig,
    report: CheckReport,
    seen: BTreeSet<String>,
}

impl<'a> Found<'a> {
    fn new(named: &'a NamedShard, config: &'a CheckConfig) -> Self {
        let report = CheckReport {
            shards: 1,
            ..CheckReport::default()
        };
        Self {
            named,
            config,
            report,
            seen: BTreeSet::new(),
        }
    }

    fn problem(&mut self, key: &str, reason: &str, detail: String) {
        *self.report.reasons.entry(reason.to_owned()).or_default() += 1;
        if self.report.problems.len() < self.config.listed_max {
            self.report.problems.push(Problem {
                shard: self.named.location.clone(),
                key: key.to_owned(),
                reason: reason.to_owned(),
                detail,
            });
        }
    }

    fn shard(&mut self, store: &Store, keys: &Keys, picture: &mut Rgb) -> Result<(), DataError> {
        let location = &self.named.location;
        let facts = match &self.named.facts {
            Some(facts) => facts.clone(),
            None => store.facts(location)?,
        };
        let request = ReadRequest {
            location,
            range: 0..0,
            bytes: facts.bytes,
            etag: facts.etag.as_deref(),
        };
        let archive = ChunkedShard::open(store, &request);
        let filter = &self.config.build.filter;
        let walked = walk_shard(archive, keys, filter, |group, fate, archive| {
            self.sample(group, fate, archive, keys, picture)
        })?;
        if let Some(why) = walked.damage {
            self.problem("", "damage", why);
        }
        Ok(())
    }

    fn sample(
        &mut self,
        group: &Group,
        fate: Fate,
        archive: &mut ChunkedShard,
        keys: &Keys,
        picture: &mut Rgb,
    ) -> Result<(), DataError> {
        self.report.samples += 1;
        let key = group.key.as_str();
        if !self.seen.insert(key.to_owned()) {
            let detail = "the same key stands in this shard more than once; each is a row of its own".to_owned();
            self.problem(key, "repeated_key", detail);
        }
        match fate {
            Fate::Filtered => self.report.filtered += 1,
            Fate::Missing => {
                let has = |there: bool, what: &str| if there { String::new() } else { format!("no {what}") };
                let lacks = [
                    has(group.image(keys).is_some(), "picture"),
                    has(group.has_text(keys), "caption"),
                ];
                let lacks: Vec<String> = lacks.into_iter().filter(|l| !l.is_empty()).collect();
                self.problem(key, "missing", lacks.join(", "));
            }
            Fate::Kept => {
                let bytes = group.end.min(archive.size()) - group.start;
                if bytes > self.config.max_sample_bytes {
                    self.problem(key, "bytes", format!("{bytes} bytes"));
                    return Ok(());
                }
                let bytes = archive.read_at(group.start..group.start + bytes)?;
                let slice = |range: std::ops::Range<u64>| {
                    &bytes[(range.start - group.start) as usize..(range.end - group.start) as usize]
                };
                if group.captions(keys, slice).is_empty() {
                    self.problem(key, "caption", "empty, not UTF-8 or without the field".to_owned());
                    return Ok(());
                }
                let Some(image) = group.image(keys) else { return Ok(()) };
                match decode(slice(image), self.config.max_image_pixels, picture) {
                    Ok(()) => self.report.good += 1,
                    Err(reason) => self.problem(key, &reason.to_string(), String::new()),
                }
            }
        }
        Ok(())
    }
}
