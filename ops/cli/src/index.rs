//! `argosy index`: makes or shows an index.

use crate::args::{Format, IndexArgs};
use crate::fail::{Failure, Outcome};
use crate::job::index_bar;
use crate::out::{self, Table};
use argosy_common::config::Source;
use argosy_common::exit::Exit;
use argosy_shard_loader::{BuildConfig, Index, index};
use std::path::Path;

/// Shards that are listed one by one; beyond that only the damaged are.
const LISTED_MAX: usize = 40;

pub(crate) fn run(args: &IndexArgs) -> Outcome<Exit> {
    if let Some(path) = &args.show {
        show(&Index::open(path)?, path, args.output.output)?;
        return Ok(Exit::Ok);
    }
    let sources = [Source {
        name: "source-0".into(),
        shards: args.shards.join("::"),
    }];
    let config = BuildConfig {
        image_key: args.image_key.clone(),
        text_key: args.text_key.clone(),
        threads: std::thread::available_parallelism().map_or(2, usize::from),
    };
    let bar = index_bar();
    let built = index::build(&sources, Path::new("."), &config, &|p| {
        bar.set_length(p.shards_total as u64);
        bar.set_position(p.shards as u64);
        bar.set_message(format!("{} rows", out::count(p.rows)));
    });
    bar.finish_and_clear();
    let (index, report) = built?;
    index.write(&args.out)?;
    show(&index, &args.out, args.output.output)?;
    if !report.damaged.is_empty() {
        let line = format!(
            "{} shards are damaged; the rows before the damage are kept",
            report.damaged.len()
        );
        out::say(&format!("{} {line}", out::style("note:", out::YELLOW)));
    }
    out::say(&format!(
        "wrote {}: name it in a job with data.index, or let `argosy run` make its own",
        args.out.display()
    ));
    Ok(Exit::Ok)
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
    if format == Format::Json {
        let shards: Vec<_> = index
            .shards()
            .map(|s| {
                serde_json::json!({
                    "source": s.source, "location": s.location, "rows": s.rows, "bytes": s.bytes,
                    "missing": s.missing, "damage": s.damage,
                })
            })
            .collect();
        return out::json(&serde_json::json!({
            "version": 1,
            "file": path.display().to_string(),
            "hash": format!("{:016x}", index.index_hash()),
            "rows": rows,
            "bytes": bytes,
            "missing": index.shards().map(|s| u64::from(s.missing)).sum::<u64>(),
            "damaged": index.shards().filter(|s| s.damage.is_some()).count(),
            "mean_sample_bytes": index.mean_sample_bytes(),
            "shards": shards,
        }));
    }
    let total = index.shards().count();
    let mut table = Table::new(&["shard", "rows", "bytes", "missing", "damage"]);
    for shard in index.shards().filter(|s| total <= LISTED_MAX || s.damage.is_some()) {
        table.row(&[
            shard.location.to_owned(),
            out::count(u64::from(shard.rows)),
            out::bytes(shard.bytes),
            out::count(u64::from(shard.missing)),
            shard.damage.unwrap_or("-").to_owned(),
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
    out::data(&table.render())
}

/// Opens the index of a run's folder.
pub(crate) fn open_in(run_dir: &Path, named: Option<&Path>) -> Outcome<Index> {
    let path = named.map_or_else(|| run_dir.join("index.argosy"), Path::to_owned);
    Index::open(&path).map_err(|e| Failure::from(e).help(format!("{} is the folder of a run?", run_dir.display())))
}
