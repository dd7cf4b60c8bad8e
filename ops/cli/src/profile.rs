//! `argosy profile`: settles the job as a run would, then lets `argosy-worker` take some steps of it apart.

use crate::args::ProfileArgs;
use crate::fail::{Failure, Outcome};
use crate::{job, run, worker};
use argosy_common::exit::Exit;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A folder that is gone when this is.
struct Scratch(PathBuf);

impl Scratch {
    fn create() -> Outcome<Self> {
        let path = std::env::temp_dir().join(format!("argosy-profile-{}", std::process::id()));
        // Not `create_dir_all`: a folder that is there already is somebody else's.
        std::fs::create_dir(&path).map_err(|e| Failure::io("create", &path, &e))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left lies in the system's own temporary folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn run(args: &ProfileArgs) -> Outcome<Exit> {
    let mut loaded = job::load(&args.job, &args.sets)?;
    // All lanes by one worker: what is measured is a worker's step.
    loaded.job.workers.target = 1;
    loaded.job.workers.min = 1;
    let scratch = Scratch::create()?;
    let (index, index_path) = job::index_for(&loaded, &scratch.0)?;
    job::freeze(&mut loaded.job, &index);
    let shape = job::shape_of(&loaded.job, &index)?;
    if shape.total_steps() <= args.steps {
        let message = format!(
            "the job has {} steps, too few for --steps {} after one to warm up",
            shape.total_steps(),
            args.steps
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    let frozen = scratch.0.join("job.toml");
    let text = toml::to_string(&loaded.job)
        .map_err(|e| Failure::new(Exit::BadConfig, format!("the job cannot be written as TOML: {e}")))?;
    std::fs::write(&frozen, text).map_err(|e| Failure::io("write", &frozen, &e))?;
    let flag = |name: &str, value: &Path| [OsString::from(name), value.into()];
    let number = |name: &str, value: u64| [OsString::from(name), value.to_string().into()];
    let list: Vec<OsString> = [
        flag("--job", &frozen),
        flag("--base", &loaded.base),
        flag("--index", &index_path),
        flag("--work", &scratch.0),
        flag("--trace", &args.trace),
        number("--total-positions", shape.total_positions),
        number("--threads", u64::from(run::calc_threads(&loaded.job))),
        number("--steps", args.steps),
        [OsString::from("-o"), args.output.output.name().into()],
    ]
    .into_iter()
    .flatten()
    .collect();
    worker::pass_on("profile", &list)
}
