//! `argosy run`: a coordinator in this process, workers as child processes.

mod children;
pub(crate) mod diff;
pub(crate) mod folder;
mod live;
pub(crate) mod plan;
mod progress;

use crate::args::RunArgs;
use crate::crash;
use crate::evaluate;
use crate::fail::{Failure, Outcome};
use crate::job::{self, LoadedJob};
use crate::listing;
use crate::out;
use crate::worker;
use argosy_common::config::Job;
use argosy_common::exit::Exit;
use argosy_common::shape::RunShape;
use argosy_shard_loader::objects::{self, Objects};
use argosy_shard_loader::{Index, expand};
use folder::{Model, RunFile};
use progress::Summary;
use std::path::{Path, PathBuf};
use std::time::Instant;

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
    /// Where checkpoints lie.
    pub(crate) checkpoints: Objects,
    /// Threads of one worker.
    pub(crate) threads: u32,
    /// When this process began with it.
    pub(crate) started: Instant,
    /// The command that goes on with this run.
    pub(crate) resume: String,
    /// Nobody else works in the folder.
    _lock: nix::fcntl::Flock<std::fs::File>,
}

pub(crate) fn run(args: &RunArgs) -> Outcome<Exit> {
    let prepared = prepare(args, Instant::now())?;
    crash::set_folder(&prepared.dir);
    plan::print(&prepared);
    let summary = live::train(&prepared)?;
    tell(&prepared, args, &summary)?;
    Ok(Exit::from_code(i32::from(summary.exit)))
}

/// Reads, indexes and describes whatever a run needs, into its folder.
pub(crate) fn prepare(args: &RunArgs, started: Instant) -> Outcome<Prepared> {
    let mut loaded = job::load(&args.job)?;
    if let Some(folder) = &args.pretrained {
        let folder = std::path::absolute(folder).map_err(|e| Failure::io("find", folder, &e))?;
        loaded.job.model.pretrained = Some(folder.to_string_lossy().into_owned());
    }
    if let Some(url) = loaded.job.checkpoint.url.take() {
        // Workers are told the place, not where to look for it from.
        loaded.job.checkpoint.url = Some(job::below(&loaded.base, &url));
    }
    if let Some(workers) = args.workers {
        set_workers(&mut loaded.job, workers);
    }
    evaluate::check(&loaded)?;
    let dir = args
        .run
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(&loaded.job.name));
    let worker = worker::find()?;
    let before = if args.resume {
        Some(folder::read(&dir)?)
    } else {
        folder::create(&dir, &args.job.job)?;
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
    let (new, kept) = (dir.join(folder::NEW_JOB_FILE), dir.join(folder::JOB_FILE));
    let model = match &before {
        // What was asked once need not be asked again: a resume is quick.
        Some(facts) => {
            loaded.job.model.pretrained_digest = facts.model.pretrained_digest.clone();
            same_job(&loaded, &dir)?;
            facts.model.clone()
        }
        None => describe_model(&loaded, &dir, &worker)?,
    };
    loaded.job.model.pretrained_digest = model.pretrained_digest.clone();
    write_job(&loaded, &new)?;
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
        model: model.clone(),
    };
    check_space(&loaded.job, &model, &dir)?;
    let location = loaded.job.checkpoint.location(&dir.to_string_lossy(), &facts.run);
    let checkpoints = objects::open(&location)?;
    match &before {
        Some(before) => same_run(before, &facts, &dir).inspect_err(|_| drop(std::fs::remove_file(&new)))?,
        None => folder::write(&dir, &facts)?,
    }
    std::fs::rename(&new, &kept).map_err(|e| Failure::io("write", &kept, &e))?;
    Ok(Prepared {
        threads: calc_threads(&loaded.job),
        started,
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
        checkpoints,
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

/// The job with paths that hold wherever it lies: the run's copy lies elsewhere than the job file.
pub(crate) fn absolute(loaded: &LoadedJob) -> Job {
    let mut job = loaded.job.clone();
    let whole = |path: &str| job::below(&loaded.base, path);
    let paths = [
        &mut job.model.config,
        &mut job.model.pretrained,
        &mut job.model.pretrained_image_path,
        &mut job.model.pretrained_text_path,
        &mut job.model.tokenizer,
        &mut job.checkpoint.url,
    ];
    for path in paths.into_iter().flatten() {
        *path = whole(path);
    }
    for source in &mut job.data.sources {
        let parts: Vec<String> = expand::parts(&source.shards).into_iter().map(whole).collect();
        source.shards = parts.join("::");
    }
    for set in &mut job.evaluation.sets {
        for file in [&mut set.data, &mut set.classes, &mut set.templates] {
            *file = whole(file);
        }
    }
    job
}

/// Writes the job as it is trained. The copy gets its name when it is known to be the job of the run that the folder holds.
pub(crate) fn write_job(loaded: &LoadedJob, path: &Path) -> Outcome<()> {
    let text = toml::to_string(&absolute(loaded)).map_err(|e| {
        let message = format!("the job cannot be written to {}: {e}", path.display());
        Failure::new(Exit::BadConfig, message)
    })?;
    std::fs::write(path, text).map_err(|e| Failure::io("write", path, &e))
}

/// Lets the worker read the job: what it cannot build ends here.
pub(crate) fn describe_model(loaded: &LoadedJob, dir: &Path, worker: &Path) -> Outcome<Model> {
    let path = dir.join(folder::NEW_JOB_FILE);
    write_job(loaded, &path)?;
    let answer = worker::ask(worker, &["describe-model".as_ref(), "--job".as_ref(), path.as_os_str()])?;
    serde_json::from_slice(&answer).map_err(|e| {
        let message = format!("{} describes the model in words unknown here: {e}", worker.display());
        Failure::new(Exit::Conflict, message).help("use argosy and argosy-worker of one build")
    })
}

/// Refuses a resume whose job differs in what decides the training, and says where.
fn same_job(loaded: &LoadedJob, dir: &Path) -> Outcome<()> {
    let path = dir.join(folder::JOB_FILE);
    let text = std::fs::read_to_string(&path).map_err(|e| Failure::io("read", &path, &e))?;
    let kept = Job::from_toml(&path.to_string_lossy(), &text)?;
    match diff::forbidden(&kept, &absolute(loaded)) {
        changes if changes.is_empty() => Ok(()),
        changes => Err(diff::refuse(&changes, dir)),
    }
}

/// A disk that cannot hold one checkpoint is no place to begin; one that cannot hold those that are kept is worth a word.
fn check_space(job: &Job, model: &Model, dir: &Path) -> Outcome<()> {
    if let Some(note) = judge_place(job, model, dir)? {
        out::say(&format!("{} {note}", out::style("note:", out::YELLOW)));
    }
    Ok(())
}

/// What the disk of the checkpoints means for them; nothing where they lie in a store.
pub(crate) fn judge_place(job: &Job, model: &Model, dir: &Path) -> Outcome<Option<String>> {
    let place = match &job.checkpoint.url {
        Some(url) if url.contains("://") => return Ok(None),
        Some(folder) => nearest(Path::new(folder)),
        None => nearest(dir),
    };
    let Ok(stat) = nix::sys::statvfs::statvfs(place) else {
        return Ok(None);
    };
    let free = stat.blocks_available() * stat.fragment_size();
    judge_space(free, model.state_bytes, job.checkpoint.keep_last, place)
}

/// The folder, or the first above it that exists.
pub(crate) fn nearest(folder: &Path) -> &Path {
    folder.ancestors().find(|f| f.exists()).unwrap_or(folder)
}

/// What `free` bytes mean for checkpoints of `state` bytes: an error, a note or nothing.
fn judge_space(free: u64, state: u64, keep_last: u32, place: &Path) -> Outcome<Option<String>> {
    let (needs, has) = (out::bytes(state), out::bytes(free));
    if free < state {
        let message = format!("a checkpoint takes {needs}, {} has {has} free", place.display());
        return Err(Failure::new(Exit::NoCapacity, message).help("make room, or set checkpoint.url to another place"));
    }
    // One more than is kept: the oldest goes when the newest is committed.
    let kept = state.saturating_mul(u64::from(keep_last) + 1);
    Ok((free < kept).then(|| format!("{has} are free, checkpoints of {needs} are kept {keep_last} times")))
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
pub(crate) fn calc_threads(job: &Job) -> u32 {
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
    let mut words = vec!["argosy".into(), "run".into(), args.job.job.display().to_string()];
    if let Some(workers) = args.workers {
        words.extend(["--workers".into(), workers.to_string()]);
    }
    for set in &args.job.sets {
        words.extend(["--set".into(), set.clone()]);
    }
    words.extend(["--run".into(), dir.display().to_string(), "--resume".into()]);
    words.into_iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// What the workers' loaders say of themselves, by worker; those that were killed say nothing.
fn loader_verdicts(dir: &Path) -> Vec<String> {
    let Ok(files) = std::fs::read_dir(dir.join("loader")) else {
        return Vec::new();
    };
    let mut lines: Vec<String> = files
        .flatten()
        .filter_map(|file| {
            let text = std::fs::read_to_string(file.path()).ok()?;
            let report: serde_json::Value = serde_json::from_str(&text).ok()?;
            let name = file.path().file_stem()?.to_string_lossy().into_owned();
            Some(format!("loader of {name}: {}", report["verdict"].as_str()?))
        })
        .collect();
    lines.sort();
    lines
}

/// The end: numbers on stdout, what to do next on stderr.
fn tell(prepared: &Prepared, args: &RunArgs, summary: &Summary) -> Outcome<()> {
    listing::print(args.output.output, summary, None, |_| summary.text())?;
    for line in loader_verdicts(&prepared.dir) {
        out::say(&line);
    }
    let dir = prepared.dir.display();
    match (summary.outcome.as_str(), &summary.message) {
        ("succeeded", _) => {
            out::say(&format!("next: argosy report {dir}"));
            out::say(&format!("      argosy audit {dir}"));
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
    fn disk_too_small_for_one_checkpoint_is_refused_and_for_those_kept_is_a_note() {
        let judge = |free| judge_space(free, 100, 2, Path::new("/d"));
        let refused = judge(99).unwrap_err();
        assert!(
            refused.exit == Exit::NoCapacity && refused.message.contains("/d"),
            "{refused:?}"
        );
        assert!(judge(299).unwrap().is_some_and(|note| note.contains("kept 2 times")));
        assert!(judge(300).unwrap().is_none());
        assert_eq!(nearest(Path::new("/no/such/folder")), Path::new("/"));
    }

    #[test]
    fn threads_of_the_job_win() {
        assert_eq!(calc_threads(&job("threads = 7\n")), 7);
        assert!(calc_threads(&job("[workers]\ntarget = 1000\nmax = 1000\n")) >= 1);
    }
}
