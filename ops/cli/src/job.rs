//! From a job file to everything a run needs: job, index, shape. Shared by `run` and `audit`.

use crate::args::JobArgs;
use crate::fail::{Failure, Outcome};
use crate::progress::ShardProgress;
use argosy_common::config::{JOB_FILE_BYTES_MAX, JOB_VARIABLES, Job, Layers, Node, Setting};
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
    /// What was said of it, with places; the rest is defaults.
    pub(crate) said: Node,
}

/// Reads and checks a job file with the environment and `--set` laid over it.
pub(crate) fn load(args: &JobArgs) -> Outcome<LoadedJob> {
    let layers = Layers {
        environment: environment()?,
        flags: args.sets.iter().map(|set| setting(set)).collect::<Outcome<_>>()?,
    };
    read(&args.job, &layers)
}

/// Reads a job file as it is: the one that a run keeps has been settled.
pub(crate) fn load_kept(path: &Path) -> Outcome<LoadedJob> {
    read(path, &Layers::default())
}

fn read(path: &Path, layers: &Layers) -> Outcome<LoadedJob> {
    let file = path.display().to_string();
    let text = read_text(path)?;
    let settled = Job::read(&file, &text, layers)?;
    let absolute = std::path::absolute(path).map_err(|e| Failure::io("find", path, &e))?;
    // Without links, so that `..` in the job's paths can be resolved by name.
    let base = std::fs::canonicalize(absolute.parent().unwrap_or(Path::new("/")))
        .map_err(|e| Failure::io("find", &absolute, &e))?;
    Ok(LoadedJob {
        job: settled.job,
        base,
        said: settled.said,
    })
}

/// The text of a job file, not much more of it than may be a job.
fn read_text(path: &Path) -> Outcome<String> {
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
        // One byte more than is accepted, so that the check of its size still sees that it is too large.
        .and_then(|f| f.take(JOB_FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => missing(),
            _ => Failure::io("read", path, &e),
        })?;
    if bytes.len() > JOB_FILE_BYTES_MAX {
        // The cut may lie inside a character: what it says is no matter.
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    String::from_utf8(bytes)
        .map_err(|e| Failure::new(Exit::BadConfig, format!("{file} is not UTF-8: {}", e.utf8_error())))
}

/// What the environment says of jobs.
fn environment() -> Outcome<Vec<(String, String)>> {
    let mut said = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with(JOB_VARIABLES)) else {
            continue;
        };
        let value = value
            .into_string()
            .map_err(|_| Failure::new(Exit::BadConfig, format!("environment variable {name} is not UTF-8")))?;
        said.push((name.to_owned(), value));
    }
    // The system has no order of its own, and of two that say one thing the same must win each time.
    said.sort();
    Ok(said)
}

fn setting(set: &str) -> Outcome<Setting> {
    let Some((key, value)) = set.split_once('=') else {
        let message = format!("--set {set}: expected KEY=VALUE, as in train.epochs=3");
        return Err(Failure::new(Exit::Usage, message));
    };
    Ok(Setting {
        key: key.trim().to_owned(),
        value: value.to_owned(),
        flag: format!("--set {set}"),
    })
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

/// Builds the index of a job's sources with progress on stderr and writes it to `path`; says what is odd about them.
pub(crate) fn build_index(loaded: &LoadedJob, path: &Path) -> Outcome<Index> {
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
pub(crate) fn check_index(job: &Job, base: &Path, index: &Index, path: &Path) -> Outcome<()> {
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
    settle_lanes(job);
    let batch = job.train.global_batch;
    let (factor, mean) = (job.data.window_factor, index.mean_sample_bytes());
    job.data.window_factor = shape::fit_window_factor(factor, batch, mean, job.data.window_bytes_max);
}

/// Writes the number of lanes that the rules choose into the job.
pub(crate) fn settle_lanes(job: &mut Job) {
    let chosen = || shape::default_lanes(job.train.global_batch, job.workers.max);
    job.train.lanes = Some(job.train.lanes.unwrap_or_else(chosen));
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

    #[test]
    fn set_without_a_value_is_a_usage_error() {
        assert_eq!(setting("train.epochs").unwrap_err().exit, Exit::Usage);
        let set = setting("name=a=b").unwrap();
        assert_eq!(
            (set.key.as_str(), set.value.as_str(), set.flag.as_str()),
            ("name", "a=b", "--set name=a=b")
        );
    }

    #[test]
    fn jobs_that_we_ship_are_good() {
        let ops = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut seen = 0;
        for folder in ["demo", "examples"] {
            for entry in std::fs::read_dir(ops.join(folder)).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|e| e == "toml" || e == "yaml") {
                    let loaded = load_kept(&path).unwrap_or_else(|failure| panic!("{}", failure.message));
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
