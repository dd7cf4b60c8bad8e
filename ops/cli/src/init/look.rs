//! What some shards hold, from the beginnings of a few of them.

use crate::fail::{Failure, Outcome};
use crate::out;
use argosy_common::exit::Exit;
use argosy_shard_loader::decode::{Rgb, decode};
use argosy_shard_loader::expand::{self, NamedShard};
use argosy_shard_loader::sample::{Group, Grouper, Keys};
use argosy_shard_loader::store::{ObjectFacts, ReadRequest, RetryPolicy, Store};
use argosy_shard_loader::tar::Walker;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;

/// Shards that are opened, spread over all.
const SHARDS_OPENED: usize = 8;
/// Bytes that are read of each.
const BYTES_READ: u64 = 4 << 20;
/// Shards whose size is asked for where a list does not tell it; the others are taken to be like them.
const SIZES_ASKED: usize = 64;
/// Pictures that are decoded, in all.
const PICTURES_DECODED: usize = 32;
const PIXELS_MAX: u64 = 100_000_000;
/// Suffixes of pictures that are trained on.
const PICTURES: [&str; 4] = ["jpg", "png", "jpeg", "webp"];

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Look {
    pub(super) shards: usize,
    pub(super) bytes: u64,
    /// Samples with picture and caption, in all.
    pub(super) rows: u64,
    /// Whether `rows` is counted or guessed from the part that was read.
    pub(super) counted: bool,
    /// Samples that were seen.
    pub(super) seen: u64,
    /// Of these, without picture or caption.
    pub(super) without: u64,
    /// Suffixes and in how many of the samples they were.
    pub(super) suffixes: BTreeMap<String, u64>,
    /// Shorter edges of the decoded pictures, sorted.
    pub(super) edges: Vec<usize>,
    /// Pictures that did not decode.
    pub(super) undecoded: u64,
    /// Letters of captions, in all.
    pub(super) caption_chars: u64,
    /// Distinct classes of `.cls` members among those seen.
    pub(super) classes: usize,
    pub(super) text_key: String,
}

pub(super) fn look(shards: &str) -> Outcome<Look> {
    let store = Store::new(RetryPolicy::default())?;
    let named = expand::shards(shards, Path::new("."), &store)?;
    let opened: Vec<&NamedShard> = spread(named.len(), SHARDS_OPENED).map(|i| &named[i]).collect();
    let mut parts = Vec::new();
    for shard in &opened {
        let facts = facts(shard, &store)?;
        let end = facts.bytes.min(BYTES_READ);
        let request = ReadRequest {
            location: &shard.location,
            range: 0..end,
            bytes: facts.bytes,
            etag: facts.etag.as_deref(),
        };
        parts.push((store.read(&request)?, end == facts.bytes));
    }
    let mut look = Look::of(&parts);
    look.shards = named.len();
    look.bytes = total_bytes(&named, &store)?;
    let kept = look.seen - look.without;
    if kept == 0 {
        let found: Vec<&str> = look.suffixes.keys().map(String::as_str).collect();
        let message = format!(
            "no sample of {shards} has a picture ({}) and a caption (txt); suffixes found: {}",
            PICTURES.join(", "),
            if found.is_empty() {
                "none".to_owned()
            } else {
                found.join(", ")
            }
        );
        let help = "shards are tar files with 000123.jpg beside 000123.txt, as img2dataset and WebDataset write them";
        return Err(Failure::new(Exit::JobFailed, message).help(help));
    }
    let claimed: Option<u64> = named.iter().map(|s| s.rows_claimed).sum();
    let read: u64 = parts.iter().map(|(bytes, _)| bytes.len() as u64).sum();
    look.counted = parts.iter().all(|(_, whole)| *whole) && opened.len() == named.len();
    look.rows = match (look.counted, claimed) {
        (true, _) => kept,
        (false, Some(rows)) => rows,
        (false, None) => (kept as f64 * look.bytes as f64 / read.max(1) as f64).round() as u64,
    };
    Ok(look)
}

impl Look {
    /// Counts in the beginnings of shards; `true` with a part that is a whole shard.
    fn of(parts: &[(Bytes, bool)]) -> Self {
        let mut look = Self {
            text_key: "txt".into(),
            ..Self::default()
        };
        let mut classes = std::collections::BTreeSet::new();
        let mut picture = Rgb::default();
        let per_shard = PICTURES_DECODED.div_ceil(parts.len().max(1));
        for (bytes, whole) in parts {
            let keys = Keys::new(&PICTURES.join(";"), &look.text_key);
            for (i, group) in groups(bytes, *whole).into_iter().enumerate() {
                let slice = |r: std::ops::Range<u64>| &bytes[r.start as usize..r.end as usize];
                look.seen += 1;
                for (suffix, _) in &group.members {
                    *look.suffixes.entry(suffix.clone()).or_default() += 1;
                }
                if let Some(class) = group.get("cls") {
                    classes.insert(slice(class).to_vec());
                }
                let plain = group.get("txt").map(|r| String::from_utf8_lossy(slice(r)).into_owned());
                // img2dataset writes the caption beside the picture's facts too.
                let from_json = || {
                    let facts: serde_json::Value = serde_json::from_slice(slice(group.get("json")?)).ok()?;
                    facts["caption"].as_str().map(str::to_owned)
                };
                let in_json = plain.is_none();
                let (Some(image), Some(caption)) = (group.image(&keys), plain.or_else(from_json)) else {
                    look.without += 1;
                    continue;
                };
                if in_json {
                    look.text_key = "txt;json:caption".into();
                }
                look.caption_chars += caption.trim().chars().count() as u64;
                if i < per_shard {
                    match decode(slice(image), PIXELS_MAX, &mut picture) {
                        Ok(()) => look.edges.push(picture.width.min(picture.height)),
                        Err(_) => look.undecoded += 1,
                    }
                }
            }
        }
        look.classes = classes.len();
        look.edges.sort_unstable();
        look
    }

    /// Shorter edge of the picture in the middle.
    pub(super) fn edge(&self) -> usize {
        self.edges.get(self.edges.len() / 2).copied().unwrap_or(0)
    }

    /// The model for so much data of that size, among those built in.
    pub(super) fn model(&self) -> &'static str {
        match (self.edge(), self.rows) {
            (1..=96, _) => "demo-64",
            (_, 0..=999_999) => "ViT-S-32",
            (_, 1_000_000..=49_999_999) => "ViT-B-32",
            _ => "ViT-B-16",
        }
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        let about = if self.counted { "" } else { "about " };
        let kept = (self.seen - self.without).max(1);
        let mut lines = vec![
            format!(
                "data   {about}{} samples in {} shards, {}",
                out::count(self.rows),
                out::count(self.shards as u64),
                out::bytes(self.bytes)
            ),
            format!(
                "       pictures with a shorter edge of {} px in the middle, captions of {} letters on average ({} samples seen)",
                self.edge(),
                self.caption_chars / kept,
                out::count(self.seen)
            ),
        ];
        if self.without > 0 {
            lines.push(format!(
                "       {} of {} seen have no picture or no caption: they are left out",
                self.without, self.seen
            ));
        }
        if self.undecoded > 0 {
            let all = self.edges.len() as u64 + self.undecoded;
            lines.push(format!(
                "       {} of {all} pictures do not decode: such rows are masked",
                self.undecoded
            ));
        }
        lines
    }
}

/// The whole samples of a part. One that was cut at the part's end counts for nothing.
fn groups(bytes: &Bytes, whole: bool) -> Vec<Group> {
    let mut grouper = Grouper::default();
    let mut groups: Vec<Group> = Vec::new();
    // A cut archive ends the walk, as a damaged one does.
    for member in Walker::new(bytes.clone()).map_while(Result::ok) {
        groups.extend(grouper.push(&member));
    }
    if whole {
        groups.extend(grouper.finish());
    }
    groups
}

fn facts(shard: &NamedShard, store: &Store) -> Outcome<ObjectFacts> {
    match &shard.facts {
        Some(facts) => Ok(facts.clone()),
        None => Ok(store.facts(&shard.location)?),
    }
}

fn total_bytes(named: &[NamedShard], store: &Store) -> Outcome<u64> {
    if named.iter().all(|s| s.facts.is_some()) {
        return Ok(named.iter().filter_map(|s| s.facts.as_ref()).map(|f| f.bytes).sum());
    }
    let mut sum = 0;
    let mut asked = 0;
    for i in spread(named.len(), SIZES_ASKED) {
        sum += facts(&named[i], store)?.bytes;
        asked += 1;
    }
    Ok((sum as f64 * named.len() as f64 / f64::from(asked.max(1))) as u64)
}

/// At most `count` places, evenly spread.
fn spread(all: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(all);
    (0..count).map(move |i| i * all / count.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_takes_all_of_few_and_some_of_many() {
        assert_eq!(spread(3, 8).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(spread(100, 4).collect::<Vec<_>>(), [0, 25, 50, 75]);
        assert_eq!(spread(0, 4).count(), 0);
    }
}
