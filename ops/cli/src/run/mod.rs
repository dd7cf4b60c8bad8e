//! `argosy run`: a coordinator in this process, workers as child processes.

mod children;
pub(crate) mod folder;
mod live;
mod plan;
mod progress;

use crate::args::{Format, RunArgs};
use crate::crash;
use crate::fail::{Failure, Outcome};
use crate::job::{self, LoadedJob};
use crate::out;
use crate::worker;
use argosy_common::config::Job;
use argosy_common::exit::Exit;
use argosy_common::shape::RunShape;
use argosy_shard_loader::Index;
use folder::RunFile;
use progress::Summary;
use std::path::{Path, PathBuf};

/// What `argosy-worker describe-model` says.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct Model {
    /// Trained numbers.
    pub(crate) parameters: u64,
    /// Bytes of weights and moments.
    pub(crate) state_bytes: u64,
    /// Parts of a checkpoint.
    pub(crate) parts_total: u32,
    /// The config in open_clip's JSON form.
    pub(crate) model: serde_json::Value,
}

/// Everything that is decided before the first process starts.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) loaded: LoadedJob,
    pub(crate) dir: PathBuf,
    pub(crate) worker: PathBuf,
    pub(crate) model: Model,
    pub(crate) index: Index,
    pub(crate) index_path: PathBuf,
    pub(crate) shape: RunShape,
    pub(crate) facts: RunFile,
    /// Threads of one worker.
    pub(crate) threads: u32,
    /// The command that goes on with this run.
    pub(crate) resume: String,
    /// Nobody else works in the folder.
    _lock: nix::fcntl::Flock<std::fs::File>,
}

pub(crate) fn run(args: &RunArgs) -> Outcome<Exit> {
    let prepared = prepare(args)?;
    crash::set_folder(&prepared.dir);
    plan::print(&prepared);
    let summary = live::train(&prepared)?;
    tell(&prepared, args, &summary)?;
    Ok(Exit::from_code(i32::from(summary.exit)))
}

fn prepare(args: &RunArgs) -> Outcome<Prepared> {
    let mut loaded = job::load(&args.job, &args.sets)?;
    if let Some(workers) = args.workers {
        set_workers(&mut loaded.job, workers);
    }
    let dir = args
        .run
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(&loaded.job.name));
    let worker = worker::find()?;
    let before = if args.resume {
        Some(folder::read(&dir)?)
    } else {
        folder::create(&dir, &args.job)?;
        None
    };
    let lock = folder::lock(&dir)?;
    // Workers get paths from here and start in folders of their own.
    let dir = std::fs::canonicalize(&dir).map_err(|e| Failure::io("find", &dir, &e))?;
    let (index, index_path) = match &before {
        Some(facts) => (crate::index::open_in(&dir, Some(&facts.index))?, facts.index.clone()),
        None => new_index(&loaded, &dir)?,
    };
    if let Some(facts) = &before {
        // Lanes by default depend on `workers.max`, which may change between two starts of one run (rule L3).
        loaded.job.train.lanes.get_or_insert(facts.lanes);
    }
    job::freeze(&mut loaded.job, &index);
    let model = describe_model(&loaded, &dir, &worker)?;
    let shape = job::shape_of(&loaded.job, &index)?;
    let facts = RunFile {
        version: folder::RUN_FILE_VERSION,
        run: match &before {
            Some(facts) => facts.run.clone(),
            None => format!("{}-{}", loaded.job.name, folder::hex(&folder::random::<4>()?)),
        },
        config_hash: loaded.job.config_hash(),
        index_hash: index.index_hash(),
        index: index_path.clone(),
        lanes: shape.lanes,
        window_factor: shape.window_factor,
        batch: shape.batch,
        seed: shape.seed,
        total_positions: shape.total_positions,
        model: model.model.clone(),
    };
    let (new, kept) = (dir.join(folder::NEW_JOB_FILE), dir.join(folder::JOB_FILE));
    match &before {
        Some(before) => same_run(before, &facts, &dir).inspect_err(|_| drop(std::fs::remove_file(&new)))?,
        None => folder::write(&dir, &facts)?,
    }
    std::fs::rename(&new, &kept).map_err(|e| Failure::io("write", &kept, &e))?;
    Ok(Prepared {
        threads: calc_threads(&loaded.job),
        resume: resume_command(args, &dir),
        _lock: lock,
        loaded,
        dir,
        worker,
        model,
        index,
        index_path,
        shape,
        facts,
    })
}

/// `--workers N` is the target; the limits give way to it.
fn set_workers(job: &mut Job, workers: u32) {
    let limits = &mut job.workers;
    limits.target = workers;
    limits.min = limits.min.min(workers);
    limits.max = limits.max.max(workers);
}

/// The index of a run that begins. One that an earlier start left behind may be of other shards and is made anew.
fn new_index(loaded: &LoadedJob, dir: &Path) -> Outcome<(Index, PathBuf)> {
    let stale = dir.join("index.argosy");
    match std::fs::remove_file(&stale) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Failure::io("remove", &stale, &e)),
        _ => job::index_for(loaded, dir),
    }
}

/// Writes the job as it is trained into the run folder and lets the worker read it: what it cannot build ends here. The
/// copy gets its name when it is known to be the job of the run that the folder holds.
fn describe_model(loaded: &LoadedJob, dir: &Path, worker: &Path) -> Outcome<Model> {
    let mut job = loaded.job.clone();
    // The copy lies elsewhere than the job file that its paths are relative to.
    job.model.config = job
        .model
        .config
        .map(|file| loaded.base.join(file).to_string_lossy().into_owned());
    for source in &mut job.data.sources {
        let parts = source
            .shards
            .split("::")
            .map(|part| loaded.base.join(part).to_string_lossy().into_owned());
        source.shards = parts.collect::<Vec<_>>().join("::");
    }
    let path = dir.join(folder::NEW_JOB_FILE);
    let text = toml::to_string(&job).map_err(|e| {
        Failure::new(
            Exit::BadConfig,
            format!("the job cannot be written to {}: {e}", path.display()),
        )
    })?;
    std::fs::write(&path, text).map_err(|e| Failure::io("write", &path, &e))?;
    let answer = worker::ask(worker, &["describe-model".as_ref(), "--job".as_ref(), path.as_os_str()])?;
    serde_json::from_slice(&answer).map_err(|e| {
        let message = format!("{} describes the model in words unknown here: {e}", worker.display());
        Failure::new(Exit::Conflict, message).help("use argosy and argosy-worker of one build")
    })
}

/// A resumed run trains what it began with (rule L3).
fn same_run(before: &RunFile, now: &RunFile, dir: &Path) -> Outcome<()> {
    let differs = if before.index_hash != now.index_hash {
        "index"
    } else if before.model != now.model {
        "model"
    } else if before != now {
        "training configuration"
    } else {
        return Ok(());
    };
    let message = format!("the run in {} has another {differs} than this job", dir.display());
    let help = format!(
        "resume with the job it began with (see {}/job.toml), or start a new run with --run DIR",
        dir.display()
    );
    Err(Failure::new(Exit::Conflict, message).help(help))
}

/// Threads of one worker: the job's, the environment's, else the cores shared out. In deterministic mode neither the
/// machine nor the number of workers has a say (rule N4).
fn calc_threads(job: &Job) -> u32 {
    if job.train.deterministic {
        return job.train.threads.unwrap_or(1);
    }
    let environment = std::env::var("OMP_NUM_THREADS")
        .ok()
        .and_then(|v| v.parse().ok())
        .filter(|n| *n > 0);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    job.train
        .threads
        .or(environment)
        .unwrap_or((cores / job.workers.target.max(1)).max(1))
}

fn resume_command(args: &RunArgs, dir: &Path) -> String {
    let quote = |text: String| {
        let plain = text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "/._-=,:@%+".contains(c));
        if plain {
            text
        } else {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
    };
    let mut words = vec!["argosy".into(), "run".into(), args.job.display().to_string()];
    if let Some(workers) = args.workers {
        words.extend(["--workers".into(), workers.to_string()]);
    }
    for set in &args.sets {
        words.extend(["--set".into(), set.clone()]);
    }
    words.extend(["--run".into(), dir.display().to_string(), "--resume".into()]);
    words.into_iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// The end: numbers on stdout, what to do next on stderr.
fn tell(prepared: &Prepared, args: &RunArgs, summary: &Summary) -> Outcome<()> {
    match args.output.output {
        Format::Json => out::json(summary)?,
        Format::Table => out::data(&summary.text())?,
    }
    let dir = prepared.dir.display();
    match (summary.outcome.as_str(), &summary.message) {
        ("succeeded", _) => {
            out::say(&format!("next: argosy audit {dir}"));
            out::say(&format!(
                "      argosy eval zero-shot --checkpoint {dir} --data SHARDS --classes FILE --templates FILE"
            ));
        }
        ("interrupted", _) => out::say(&format!("to go on: {}", prepared.resume)),
        (_, message) => {
            let message = message.clone().unwrap_or_else(|| "the run failed".into());
            let failure = Failure::new(Exit::JobFailed, message);
            let help = format!(
                "see {dir}/logs/; when the cause is gone, go on with: {}",
                prepared.resume
            );
            failure.help(help).print();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(more: &str) -> Job {
        let text =
            "version = 1\nname = \"a\"\n[model]\nname = \"m\"\n[data]\nsources = [{ shards = \"x\" }]\n[train]\n";
        Job::from_toml("j", &format!("{text}{more}")).unwrap()
    }

    #[test]
    fn workers_flag_moves_the_limits_that_stand_in_its_way() {
        let mut job = job("[workers]\nmin = 3\ntarget = 3\nmax = 4\n");
        set_workers(&mut job, 2);
        assert_eq!((job.workers.min, job.workers.target, job.workers.max), (2, 2, 4));
        set_workers(&mut job, 9);
        assert_eq!((job.workers.min, job.workers.target, job.workers.max), (2, 9, 9));
    }

    #[test]
    fn threads_of_the_job_win() {
        assert_eq!(calc_threads(&job("threads = 7\n")), 7);
        assert!(calc_threads(&job("[workers]\ntarget = 1000\nmax = 1000\n")) >= 1);
    }
}
