//! `argosy profile`: settles the job as a run would, then lets `argosy-worker` take some steps of it apart.

use crate::args::ProfileArgs;
use crate::fail::{Failure, Outcome};
use crate::scratch::Scratch;
use crate::{job, run, worker};
use argosy_common::exit::Exit;
use std::ffi::OsString;
use std::path::Path;

pub(crate) fn run(args: &ProfileArgs) -> Outcome<Exit> {
    let mut loaded = job::load(&args.job)?;
    // All lanes by one worker: what is measured is a worker's step.
    loaded.job.workers.target = 1;
    loaded.job.workers.min = 1;
    let scratch = Scratch::create("profile")?;
    let (index, index_path) = job::index_for(&loaded, scratch.path())?;
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
    let frozen = scratch.path().join("job.toml");
    let text = toml::to_string(&loaded.job)
        .map_err(|e| Failure::new(Exit::BadConfig, format!("the job cannot be written as TOML: {e}")))?;
    std::fs::write(&frozen, text).map_err(|e| Failure::io("write", &frozen, &e))?;
    let flag = |name: &str, value: &Path| [OsString::from(name), value.into()];
    let number = |name: &str, value: u64| [OsString::from(name), value.to_string().into()];
    let list: Vec<OsString> = [
        flag("--job", &frozen),
        flag("--base", &loaded.base),
        flag("--index", &index_path),
        flag("--work", scratch.path()),
        flag("--trace", &args.trace),
        number("--total-positions", shape.total_positions),
        number("--threads", u64::from(run::calc_threads(&loaded.job))),
        number("--steps", args.steps),
    ]
    .into_iter()
    .flatten()
    .collect();
    worker::pass_on_as("profile", &list, args.output.output, None)
}
