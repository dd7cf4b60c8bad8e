//! Makes an index: walks every shard's headers, in parallel. What is known already — from the index that is replaced, or
//! from one that was interrupted — is not read again.

use super::body::{Body, ShardRecord, SourceRecord};
use super::filter::Filter;
use super::hints::Hints;
use super::journal::{Journal, Noted};
use super::walk::rows_of;
use super::{INDEX_VERSION, Index};
use crate::error::DataError;
use crate::expand::{self, NamedShard};
use crate::sample::Keys;
use crate::store::{ObjectFacts, ReadRequest, Store, is_url};
use argosy_common::config::{DataConfig, Source};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// How an index is made.
#[derive(Clone, Debug)]
pub struct BuildConfig {
    /// Picture suffixes, joined by `;`.
    pub image_key: String,
    /// Caption suffixes and fields.
    pub text_key: String,
    /// Shards read at once.
    pub threads: usize,
    /// Which samples are kept.
    pub filter: Filter,
    /// Takes the counts that others claim instead of reading the shards (rule L6).
    pub adopt: bool,
    /// An index made before; its shards that have not changed are not read again.
    pub known: Option<Arc<Index>>,
    /// Where it is noted what was read, so that an interrupted index goes on. Whoever writes the index removes the file
    /// afterwards ([`super::remove_journal`]).
    pub journal: Option<PathBuf>,
}

/// Shards read at once from a store, where each waits most of its time.
const THREADS_STORE: usize = 16;

impl BuildConfig {
    /// Keys by name, as many threads as the machine has cores, and nothing else.
    #[must_use]
    pub fn new(image_key: &str, text_key: &str) -> Self {
        Self {
            image_key: image_key.to_owned(),
            text_key: text_key.to_owned(),
            threads: std::thread::available_parallelism().map_or(2, usize::from),
            filter: Filter::default(),
            adopt: false,
            known: None,
            journal: None,
        }
    }

    /// The keys and the filter of a job, whose relative paths start at `base`.
    ///
    /// # Errors
    /// As [`Filter::of`].
    pub fn of(data: &DataConfig, base: &Path) -> Result<Self, DataError> {
        Ok(Self {
            filter: Filter::of(&data.filter, base)?,
            ..Self::new(&data.image_key, &data.text_key)
        })
    }

    /// What decides which rows are kept; only shards read with the same are known.
    fn settings(&self) -> String {
        format!(
            "{INDEX_VERSION}\0{}\0{}\0{}",
            self.image_key,
            self.text_key,
            self.filter.words()
        )
    }
}

/// How far a build is. Given after every shard, from several threads, never two at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Shards done.
    pub shards: usize,
    /// Shards in all.
    pub shards_total: usize,
    /// Bytes of the shards done.
    pub bytes: u64,
    /// Kept rows so far.
    pub rows: u64,
}

/// A shard that could not be read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedShard {
    /// Its location.
    pub location: String,
    /// Where and why.
    pub why: String,
    /// Rows before the damage, which are kept.
    pub rows: u32,
}

/// What a build found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildReport {
    /// Shards.
    pub shards: usize,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Kept rows.
    pub rows: u64,
    /// Samples without picture or caption.
    pub missing: u64,
    /// Samples that the filter left out.
    pub filtered: u64,
    /// Shards that were known and not read again.
    pub known: usize,
    /// Shards whose count was taken from others.
    pub adopted: usize,
    /// Claims that the shards do not bear out.
    pub wrong_claims: Vec<String>,
    /// Shards that are cut, empty or no tar archives.
    pub damaged: Vec<DamagedShard>,
}

/// Indexes `sources`; relative paths start at `base`.
///
/// A damaged shard keeps the rows before the damage and is reported; it does not fail the build.
///
/// # Errors
/// Sources that name nothing, shards that cannot be read, or no usable row at all.
pub fn build(
    store: &Store,
    sources: &[Source],
    base: &Path,
    config: &BuildConfig,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<(Index, BuildReport), DataError> {
    if config.adopt && !config.filter.is_empty() {
        let why = "counts that others claim cannot be filtered; leave the filter out, or read the shards";
        return Err(DataError::Config(why.into()));
    }
    let listed: Vec<Vec<NamedShard>> = sources
        .iter()
        .map(|s| expand::shards(&s.shards, base, store))
        .collect::<Result<_, _>>()?;
    let flat: Vec<&NamedShard> = listed.iter().flatten().collect();
    let mut known = from_index(config);
    let journal = match &config.journal {
        Some(path) => {
            let (journal, noted) = Journal::open(path, &config.settings())?;
            known.extend(noted.into_iter().map(|noted| (noted.shard.location.clone(), noted)));
            Some(journal)
        }
        None => None,
    };
    let keys = Keys::new(&config.image_key, &config.text_key);
    let work = Work {
        store,
        keys,
        config,
        known,
        hints: Hints::new(store),
    };
    let (shards, mut report) = work.read_all(&flat, journal, progress)?;
    let mut shards = shards.into_iter();
    let body = Body {
        image_key: config.image_key.clone(),
        text_key: config.text_key.clone(),
        filter: config.filter.words(),
        sources: sources
            .iter()
            .zip(&listed)
            .map(|(s, named)| SourceRecord {
                name: s.name.clone(),
                shards: shards.by_ref().take(named.len()).collect(),
            })
            .collect(),
    };
    count(&body, &mut report);
    for source in &body.sources {
        if source.shards.iter().all(|s| s.rows() == 0) {
            return Err(nothing_usable(source, config));
        }
    }
    Ok((Index::from_body(&body)?, report))
}

/// The shards of the index made before, if it was made alike. The format before knew of some shards only how many of their
/// samples are no rows, not which; those are read again, so that an index never depends on the one it replaces.
pub(super) fn from_index(config: &BuildConfig) -> BTreeMap<String, Noted> {
    let alike = |index: &&Arc<Index>| {
        index.keys() == (config.image_key.as_str(), config.text_key.as_str()) && index.filter() == config.filter.words()
    };
    let records = config.known.as_ref().filter(alike).map(|index| index.records());
    let whole = |shard: &ShardRecord| {
        let samples = u64::from(shard.rows()) + u64::from(shard.missing) + u64::from(shard.filtered);
        shard.claimed.is_some() || shard.kept.len() as u64 == samples
    };
    let noted = |shard: ShardRecord| {
        let wrong_claim = None;
        (shard.location.clone(), Noted { shard, wrong_claim })
    };
    records.into_iter().flatten().filter(whole).map(noted).collect()
}

fn nothing_usable(source: &SourceRecord, config: &BuildConfig) -> DataError {
    let sum = |of: fn(&ShardRecord) -> u32| source.shards.iter().map(|s| u64::from(of(s))).sum::<u64>();
    let damage = source
        .shards
        .iter()
        .find_map(|s| s.damage.as_ref().map(|d| format!("; {}: {d}", s.location)));
    let why = format!(
        "{} shards hold no sample with a picture ({}) and a caption ({}); {} samples lack one of them, the filter leaves out {}{}",
        source.shards.len(),
        config.image_key,
        config.text_key,
        sum(|s| s.missing),
        sum(|s| s.filtered),
        damage.unwrap_or_default()
    );
    DataError::Empty {
        what: format!("source `{}`", source.name),
        why,
    }
}

fn count(body: &Body, report: &mut BuildReport) {
    for shard in body.sources.iter().flat_map(|s| &s.shards) {
        report.shards += 1;
        report.bytes += shard.bytes;
        report.rows += u64::from(shard.rows());
        report.missing += u64::from(shard.missing);
        report.filtered += u64::from(shard.filtered);
        report.adopted += usize::from(shard.claimed.is_some());
        if let Some(why) = &shard.damage {
            report.damaged.push(DamagedShard {
                location: shard.location.clone(),
                why: why.clone(),
                rows: shard.rows(),
            });
        }
    }
}

/// What the threads share while they read.
struct Work<'a> {
    store: &'a Store,
    keys: Keys,
    config: &'a BuildConfig,
    known: BTreeMap<String, Noted>,
    hints: Hints<'a>,
}

/// What they fill.
struct Done {
    progress: Progress,
    shards: Vec<(usize, ShardRecord)>,
    report: BuildReport,
    journal: Option<Journal>,
    failed: Option<DataError>,
}

/// A shard and how its record came about.
enum Read {
    Known(Noted),
    Walked(Noted),
}

impl Work<'_> {
    /// Reads every shard; the result is in the order of `shards` whatever thread was first.
    fn read_all(
        &self,
        shards: &[&NamedShard],
        journal: Option<Journal>,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<(Vec<ShardRecord>, BuildReport), DataError> {
        let next = AtomicUsize::new(0);
        let state = Mutex::new(Done {
            progress: Progress {
                shards_total: shards.len(),
                ..Progress::default()
            },
            shards: Vec::new(),
            report: BuildReport::default(),
            journal,
            failed: None,
        });
        let remote = shards.iter().any(|s| is_url(&s.location));
        let threads = self.config.threads.max(if remote { THREADS_STORE } else { 1 });
        // Threads of our own: `Store` blocks, and a caller may be asynchronous.
        std::thread::scope(|scope| {
            for _ in 0..threads.min(shards.len().max(1)) {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(shard) = shards.get(i) else { return };
                        let read = self.read_shard(shard);
                        let Ok(mut done) = state.lock() else { return };
                        done.take(i, read, progress);
                        if done.failed.is_some() {
                            return;
                        }
                    }
                });
            }
        });
        let mut done = state
            .into_inner()
            .map_err(|_| DataError::Config("a thread of the index panicked while it reported its progress".into()))?;
        if let Some(error) = done.failed {
            return Err(error);
        }
        done.shards.sort_by_key(|(i, _)| *i);
        // In an order that does not depend on which thread was first.
        done.report.wrong_claims.sort();
        done.report.wrong_claims.dedup();
        let shards = done.shards.into_iter().map(|(_, shard)| shard).collect();
        Ok((shards, done.report))
    }

    fn read_shard(&self, named: &NamedShard) -> Result<Read, DataError> {
        let facts = match &named.facts {
            Some(facts) => facts.clone(),
            None => self.store.facts(&named.location)?,
        };
        if let Some(known) = self
            .known
            .get(&named.location)
            .filter(|known| same(&known.shard, &facts))
            && (self.config.adopt || known.shard.claimed.is_none())
        {
            return Ok(Read::Known(known.clone()));
        }
        let base = ShardRecord {
            location: named.location.clone(),
            bytes: facts.bytes,
            etag: facts.etag,
            modified_ms: facts.modified_ms,
            ..ShardRecord::default()
        };
        let claimed = self.hints.claimed(named);
        if self.config.adopt && claimed.is_some() {
            let shard = ShardRecord { claimed, ..base };
            let wrong_claim = None;
            return Ok(Read::Walked(Noted { shard, wrong_claim }));
        }
        let request = ReadRequest {
            location: &base.location,
            range: 0..0,
            bytes: base.bytes,
            etag: base.etag.as_deref(),
        };
        let walked = rows_of(self.store, &request, &self.keys, &self.config.filter)?;
        let samples = walked.kept.len() as u32;
        let wrong_claim = claimed
            .filter(|claim| *claim != samples)
            .map(|claim| format!("{} is said to hold {claim} samples, it holds {samples}", base.location));
        let shard = ShardRecord {
            location: base.location,
            etag: base.etag,
            modified_ms: base.modified_ms,
            ..walked
        };
        Ok(Read::Walked(Noted { shard, wrong_claim }))
    }
}

impl Done {
    fn take(&mut self, i: usize, read: Result<Read, DataError>, progress: &(dyn Fn(Progress) + Sync)) {
        let Noted { shard, wrong_claim } = match read {
            Ok(Read::Known(known)) => {
                self.report.known += 1;
                known
            }
            Ok(Read::Walked(walked)) => {
                let written = self.journal.as_mut().map(|journal| journal.append(&walked));
                if let Some(Err(error)) = written {
                    self.failed.get_or_insert(error);
                    return;
                }
                walked
            }
            Err(error) => {
                self.failed.get_or_insert(error);
                return;
            }
        };
        self.report.wrong_claims.extend(wrong_claim);
        self.progress.shards += 1;
        self.progress.bytes += shard.bytes;
        self.progress.rows += u64::from(shard.rows());
        self.shards.push((i, shard));
        progress(self.progress);
    }
}

/// Whether a shard is still the one that was read. Stores without etags tell by age.
fn same(known: &ShardRecord, now: &ObjectFacts) -> bool {
    known.bytes == now.bytes
        && match (&known.etag, &now.etag) {
            (Some(then), Some(now)) => then == now,
            _ => known.modified_ms == now.modified_ms,
        }
}
