//! From a job file to everything a run needs: job, index, shape. Shared by `run` and `audit`.

use crate::fail::{Failure, Outcome};
use crate::progress::ShardProgress;
use argosy_common::config::{JOB_FILE_BYTES_MAX, Job};
use argosy_common::exit::Exit;
use argosy_common::shape::{self, RunShape};
use argosy_shard_loader::{BuildConfig, Filter, Index, RetryPolicy, Store, index};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A job file that was read and checked.
#[derive(Debug)]
pub(crate) struct LoadedJob {
    pub(crate) job: Job,
    /// Where its relative paths start.
    pub(crate) base: PathBuf,
}

/// Reads and checks a job file; `sets` are `KEY=VALUE` laid over it.
pub(crate) fn load(path: &Path, sets: &[String]) -> Outcome<LoadedJob> {
    let file = path.display().to_string();
    let missing = || {
        let failure = Failure::new(Exit::NotFound, format!("job file {file} does not exist"));
        failure.help("see ops/examples/ for job files to start from")
    };
    if path.is_dir() {
        return Err(Failure::new(
            Exit::BadConfig,
            format!("{file} is a folder, a job file is expected"),
        ));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        // One byte more than is accepted, so that the check below still sees that it is too large.
        .and_then(|f| f.take(JOB_FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => missing(),
            _ => Failure::io("read", path, &e),
        })?;
    let text = String::from_utf8(bytes)
        .map_err(|e| Failure::new(Exit::BadConfig, format!("{file} is not UTF-8: {}", e.utf8_error())))?;
    let mut job = Job::from_toml(&file, &text)?;
    if !sets.is_empty() {
        let text = lay_over(&file, &text, sets)?;
        job = Job::from_toml(&format!("{file} with --set"), &text)?;
    }
    let absolute = std::path::absolute(path).map_err(|e| Failure::io("find", path, &e))?;
    // Without links, so that `..` in the job's paths can be resolved by name.
    let base = std::fs::canonicalize(absolute.parent().unwrap_or(Path::new("/")))
        .map_err(|e| Failure::io("find", &absolute, &e))?;
    Ok(LoadedJob { job, base })
}

/// A path or URL as the job has it, from the folder `base`; `..` in front of it leaves `base`, which has no links.
pub(crate) fn below(base: &Path, path: &str) -> String {
    if path.contains("://") {
        return path.to_owned();
    }
    let (mut base, mut rest) = (base, path.strip_prefix("./").unwrap_or(path));
    while let (Some(less), Some(parent)) = (rest.strip_prefix("../"), base.parent()) {
        (rest, base) = (less, parent);
    }
    base.join(rest).to_string_lossy().into_owned()
}

/// The text of a job with `KEY=VALUE` laid over it; values are TOML, or strings where they are not.
fn lay_over(file: &str, text: &str, sets: &[String]) -> Outcome<String> {
    let usage = |why: String| Failure::new(Exit::Usage, why);
    let mut table: toml::Table = text.parse().map_err(|e| usage(format!("{file}: {e}")))?;
    for set in sets {
        let Some((key, value)) = set.split_once('=') else {
            return Err(usage(format!("--set {set}: expected KEY=VALUE, as in train.epochs=3")));
        };
        let value = format!("v = {value}")
            .parse::<toml::Table>()
            .ok()
            .and_then(|mut t| t.remove("v"))
            .unwrap_or_else(|| toml::Value::String(value.to_owned()));
        let mut keys: Vec<&str> = key.trim().split('.').collect();
        let last = keys.pop().unwrap_or_default();
        let mut place = &mut table;
        for section in keys {
            place = place
                .entry(section)
                .or_insert_with(|| toml::Value::Table(toml::Table::new()))
                .as_table_mut()
                .ok_or_else(|| usage(format!("--set {set}: `{section}` is not a section of the job")))?;
        }
        place.insert(last.to_owned(), value);
    }
    toml::to_string(&table).map_err(|e| usage(format!("--set: {e}")))
}

/// Builds the index of a job's sources with progress on stderr and writes it to `path`; says what is odd about them.
fn build_index(loaded: &LoadedJob, path: &Path) -> Outcome<Index> {
    let config = BuildConfig {
        journal: Some(crate::index::journal_beside(path)),
        ..BuildConfig::of(&loaded.job.data, &loaded.base)?
    };
    let store = Store::new(RetryPolicy::default())?;
    let progress = ShardProgress::new("indexing");
    let built = index::build(&store, &loaded.job.data.sources, &loaded.base, &config, &|p| {
        progress.tell(p.shards, p.shards_total, Some(p.rows));
    });
    drop(progress);
    let (index, report) = built?;
    crate::index::write(&index, path)?;
    crate::index::tell(&report);
    Ok(index)
}

/// The index of a run: the job's own file, else one kept in the run folder; made when it is not there yet.
/// Returns it and where it lies.
pub(crate) fn index_for(loaded: &LoadedJob, run_dir: &Path) -> Outcome<(Index, PathBuf)> {
    let own = loaded.job.data.index.as_ref().map(|file| loaded.base.join(file));
    let path = own.unwrap_or_else(|| run_dir.join("index.argosy"));
    if !path.exists() {
        return Ok((build_index(loaded, &path)?, path));
    }
    let index = Index::open(&path)?;
    check_index(&loaded.job, &loaded.base, &index, &path)?;
    Ok((index, path))
}

/// An index made for another job is refused.
fn check_index(job: &Job, base: &Path, index: &Index, path: &Path) -> Outcome<()> {
    let differs = |what: &str, has: String, wants: String| {
        let message = format!(
            "index {} was made for {what} {has}, the job says {wants}",
            path.display()
        );
        Err(Failure::new(Exit::Conflict, message).help("remove the index, or name another in data.index"))
    };
    let filter = Filter::of(&job.data.filter, base)?.words();
    if index.filter() != filter {
        return differs("the filter", format!("{:?}", index.filter()), format!("{filter:?}"));
    }
    let wanted = (job.data.image_key.as_str(), job.data.text_key.as_str());
    if index.keys() != wanted {
        return differs("the keys", format!("{:?}", index.keys()), format!("{wanted:?}"));
    }
    let has: Vec<String> = index.to_shape().into_iter().map(|s| s.name).collect();
    let wants: Vec<String> = job.data.sources.iter().map(|s| s.name.clone()).collect();
    if has != wants {
        return differs("the sources", format!("{has:?}"), format!("{wants:?}"));
    }
    Ok(())
}

/// Writes what the rules choose into the job: lanes (L5) and window factor (L7). They are frozen with the run, so that a
/// later start with other workers trains the same.
pub(crate) fn freeze(job: &mut Job, index: &Index) {
    let batch = job.train.global_batch;
    let lanes = job
        .train
        .lanes
        .unwrap_or_else(|| shape::default_lanes(batch, job.workers.max));
    job.train.lanes = Some(lanes);
    let (factor, mean) = (job.data.window_factor, index.mean_sample_bytes());
    job.data.window_factor = shape::fit_window_factor(factor, batch, mean, job.data.window_bytes_max);
}

/// The shape of a frozen job's run (rules L1, L2).
pub(crate) fn shape_of(job: &Job, index: &Index) -> Outcome<RunShape> {
    let sources = index.to_shape();
    let rows: u64 = sources.iter().map(shape::SourceShape::rows).sum();
    let epoch = job.data.train_num_samples.unwrap_or(rows);
    let total_positions = job
        .train
        .epochs
        .checked_mul(epoch)
        .filter(|t| *t <= i64::MAX as u64)
        .ok_or_else(|| {
            let message = format!(
                "train.epochs is {}, too many for epochs of {epoch} positions",
                job.train.epochs
            );
            Failure::new(Exit::BadConfig, message)
        })?;
    Ok(RunShape {
        seed: job.seed,
        sources,
        batch: job.train.global_batch,
        lanes: job.train.lanes.unwrap_or(1),
        window_factor: job.data.window_factor,
        total_positions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str =
        "version = 1\nname = \"a\"\n[model]\nname = \"ViT-B-32\"\n[data]\nsources = [{ shards = \"x\" }]\n";

    #[test]
    fn set_lays_values_of_every_kind_over_the_job() {
        let sets = ["train.epochs=3", "name=b", "train.lr=1e-3", "workers.max=2"].map(str::to_owned);
        let job = Job::from_toml("j", &lay_over("j", JOB, &sets).unwrap()).unwrap();
        assert_eq!((job.train.epochs, job.name.as_str(), job.workers.max), (3, "b", 2));
        assert!((job.train.lr - 1e-3).abs() < 1e-12);
    }

    #[test]
    fn set_without_value_or_through_a_scalar_is_a_usage_error() {
        for bad in ["train.epochs", "name.x=1"] {
            assert_eq!(
                lay_over("j", JOB, &[bad.to_owned()]).unwrap_err().exit,
                Exit::Usage,
                "{bad}"
            );
        }
    }

    #[test]
    fn jobs_that_we_ship_are_good() {
        let ops = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut seen = 0;
        for folder in ["demo", "examples"] {
            for entry in std::fs::read_dir(ops.join(folder)).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|e| e == "toml") {
                    let loaded = load(&path, &[]).unwrap_or_else(|failure| panic!("{}", failure.message));
                    let config = loaded.job.model.config.map(|file| loaded.base.join(file));
                    assert!(
                        config.is_none_or(|file| file.is_file()),
                        "{} names no model",
                        path.display()
                    );
                    seen += 1;
                }
            }
        }
        assert!(seen >= 4, "{seen} jobs were found");
    }
}
