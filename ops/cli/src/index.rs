//! `argosy index`: makes or shows an index.

use crate::args::{Format, IndexArgs};
use crate::fail::{Failure, Outcome};
use crate::listing;
use crate::out::{self, Table};
use crate::progress::ShardProgress;
use argosy_common::config::{FilterConfig, Source};
use argosy_common::exit::Exit;
use argosy_shard_loader::{BuildConfig, BuildReport, Filter, Index, RetryPolicy, Store, index};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Shards that are listed one by one; beyond that only the damaged are.
const LISTED_MAX: usize = 40;

pub(crate) fn run(args: &IndexArgs) -> Outcome<Exit> {
    if let Some(path) = &args.show {
        show(&Index::open(path)?, path, args.output.output)?;
        out::hint(&format!("next: name {} in a job with data.index", path.display()));
        return Ok(Exit::Ok);
    }
    let sources = [Source {
        name: "source-0".into(),
        shards: args.shards.join("::"),
    }];
    let filter = FilterConfig {
        ids: args.filter.ids.clone(),
        id_field: args.filter.id_field.clone(),
        caption_chars: args.filter.caption_chars.as_ref().map(|c| [c[0], c[1]]),
        conditions: args.filter.conditions.clone(),
    };
    let config = BuildConfig {
        filter: Filter::of(&filter, Path::new("."))?,
        adopt: args.adopt,
        known: known(&args.out),
        journal: Some(journal_beside(&args.out)),
        ..BuildConfig::new(&args.keys.image_key, &args.keys.text_key)
    };
    let store = Store::new(RetryPolicy::default())?;
    let progress = ShardProgress::new("indexing");
    let built = index::build(&store, &sources, Path::new("."), &config, &|p| {
        progress.tell(p.shards, p.shards_total, Some(p.rows));
    });
    drop(progress);
    let (index, report) = built?;
    write(&index, &args.out)?;
    show(&index, &args.out, args.output.output)?;
    tell(&report);
    for line in repeated(&index).iter().take(LISTED_MAX) {
        note(line);
    }
    out::say(&format!(
        "next: name {} in a job with data.index, or let `argosy run` make its own",
        args.out.display()
    ));
    Ok(Exit::Ok)
}

/// The index that is there already, to take from it what has not changed; one that cannot be read is made anew.
fn known(path: &Path) -> Option<Arc<Index>> {
    Index::open(path).ok().map(Arc::new)
}

/// Where an index that is being made notes what it has read.
pub(crate) fn journal_beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Writes an index; what was noted of it on the way is not needed any more then.
pub(crate) fn write(index: &Index, path: &Path) -> Outcome<()> {
    index.write(path)?;
    index::remove_journal(&journal_beside(path));
    Ok(())
}

fn note(line: &str) {
    out::say(&format!("{} {line}", out::style("note:", out::YELLOW)));
}

/// What a person should know of the making of an index.
pub(crate) fn tell(report: &BuildReport) {
    if report.known > 0 {
        out::say(&format!(
            "{} of {} shards were known already",
            report.known, report.shards
        ));
    }
    if report.adopted > 0 {
        note(&format!(
            "the rows of {} shards are what others claim; they are counted when a run reads them",
            report.adopted
        ));
    }
    for claim in report.wrong_claims.iter().take(LISTED_MAX) {
        note(claim);
    }
    let unlisted = report.wrong_claims.len().saturating_sub(LISTED_MAX);
    if unlisted > 0 {
        note(&format!("{unlisted} more shards do not hold what is claimed of them"));
    }
    if !report.damaged.is_empty() {
        note(&format!(
            "{} shards are damaged; the rows before the damage are kept",
            report.damaged.len()
        ));
    }
}

/// Shards that are named more than once, in a person's words.
pub(crate) fn repeated(index: &Index) -> Vec<String> {
    let mut named: BTreeMap<&str, u32> = BTreeMap::new();
    for shard in index.shards() {
        *named.entry(shard.location).or_default() += 1;
    }
    let often = named.into_iter().filter(|(_, times)| *times > 1);
    often
        .map(|(location, times)| format!("{location} is named {times} times: its rows are trained that often a pass"))
        .collect()
}

/// What the index leaves out, in a person's words; empty when nothing is.
pub(crate) fn left_out(index: &Index) -> Vec<String> {
    let missing: u64 = index.shards().map(|s| u64::from(s.missing)).sum();
    let mut lines = Vec::new();
    if missing > 0 {
        lines.push(format!(
            "{} samples without picture or caption (missing)",
            out::count(missing)
        ));
    }
    let filtered: u64 = index.shards().map(|s| u64::from(s.filtered)).sum();
    if filtered > 0 {
        lines.push(format!(
            "{} samples by the filter ({})",
            out::count(filtered),
            index.filter()
        ));
    }
    for shard in index.shards() {
        if let Some(why) = shard.damage {
            lines.push(format!("{} after row {}: {why}", shard.location, shard.rows));
        }
    }
    lines
}

fn show(index: &Index, path: &Path, format: Format) -> Outcome<()> {
    let (rows, bytes) = index
        .shards()
        .fold((0, 0), |(r, b), s| (r + u64::from(s.rows), b + s.bytes));
    if let Format::Table | Format::Wide = format {
        return out::data(&table(index, rows, bytes, format == Format::Wide));
    }
    let shards: Vec<_> = index
        .shards()
        .map(|s| {
            serde_json::json!({
                "source": s.source, "location": s.location, "rows": s.rows, "bytes": s.bytes,
                "samples": s.samples, "missing": s.missing, "filtered": s.filtered, "etag": s.etag,
                "verified": s.verified, "damage": s.damage,
            })
        })
        .collect();
    let value = serde_json::json!({
        "version": 1,
        "file": path.display().to_string(),
        "hash": format!("{:016x}", index.index_hash()),
        "rows": rows,
        "bytes": bytes,
        "filter": index.filter(),
        "filtered": index.shards().map(|s| u64::from(s.filtered)).sum::<u64>(),
        "missing": index.shards().map(|s| u64::from(s.missing)).sum::<u64>(),
        "damaged": index.shards().filter(|s| s.damage.is_some()).count(),
        "mean_sample_bytes": index.mean_sample_bytes(),
        "shards": shards,
    });
    listing::machines(format, value, Some("shards"))
}

fn table(index: &Index, rows: u64, bytes: u64, wide: bool) -> String {
    let total = index.shards().count();
    let mut table =
        Table::new(&["shard", "rows", "bytes", "missing", "damage"]).wide(&["samples", "filtered", "verified"]);
    for shard in index.shards().filter(|s| total <= LISTED_MAX || s.damage.is_some()) {
        table.row(&[
            shard.location.to_owned(),
            out::count(u64::from(shard.rows)),
            out::bytes(shard.bytes),
            out::count(u64::from(shard.missing)),
            shard.damage.unwrap_or("-").to_owned(),
            out::count(u64::from(shard.samples)),
            out::count(u64::from(shard.filtered)),
            shard.verified.to_string(),
        ]);
    }
    let all: u64 = index.shards().map(|s| u64::from(s.missing)).sum();
    table.row(&[
        format!("{total} shards"),
        out::count(rows),
        out::bytes(bytes),
        out::count(all),
        String::new(),
    ]);
    table.render_as(wide)
}

/// Opens the index of a run's folder.
pub(crate) fn open_in(run_dir: &Path, named: Option<&Path>) -> Outcome<Index> {
    let path = named.map_or_else(|| run_dir.join("index.argosy"), Path::to_owned);
    Index::open(&path).map_err(|e| Failure::from(e).help(format!("{} is the folder of a run?", run_dir.display())))
}
