//! `argosy init`: looks at some shards and writes a job file for them, with sensible choices and how long they will take.

mod choose;
mod look;

use crate::args::InitArgs;
use crate::fail::{Failure, Outcome};
use crate::{out, worker};
use argosy_common::config::Job;
use argosy_common::exit::Exit;
use argosy_shard_loader::expand;
use choose::{Choice, Speed};
use std::io::Write;
use std::path::Path;

pub(crate) fn run(args: &InitArgs) -> Outcome<Exit> {
    if args.out.exists() {
        let message = format!("{} exists already", args.out.display());
        return Err(Failure::new(Exit::Conflict, message).help("choose another file with --out FILE"));
    }
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let workers = args.workers.unwrap_or_else(|| cores.clamp(1, 2));
    let look = look::look(&args.shards)?;
    let model = args.model.clone().unwrap_or_else(|| look.model().to_owned());
    let speed = speed(&model, workers, cores)?;
    let shards = absolute(&args.shards)?;
    let name = args
        .out
        .file_stem()
        .map_or("job".into(), |s| s.to_string_lossy().into_owned());
    let choice = Choice::new(&look, model, workers, speed);
    let text = choice.job(&name, &shards, &look);
    // What we write must be what we read.
    Job::from_toml(&args.out.display().to_string(), &text)?;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    options
        .open(&args.out)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|e| Failure::io("write", &args.out, &e))?;
    for line in look.lines().into_iter().chain(choice.lines(&look)) {
        out::say(&line);
    }
    out::data(&format!("{}\n", args.out.display()))?;
    out::say(&format!(
        "next: read and change it, then argosy run {} --workers {workers}",
        args.out.display()
    ));
    Ok(Exit::Ok)
}

/// Measured here, if the worker program is here.
fn speed(model: &str, workers: u32, cores: u32) -> Outcome<Speed> {
    let program = match worker::find() {
        Ok(program) => program,
        Err(failure) => {
            out::say(&format!(
                "{} no speed is measured: {}",
                out::style("note:", out::YELLOW),
                failure.message
            ));
            return Ok(Speed::Unknown);
        }
    };
    let threads = (cores / workers.max(1)).max(1);
    out::say(&format!("measuring {model} on this machine, some seconds"));
    let answer = worker::ask(
        &program,
        &["measure", "--model", model, "--threads", &threads.to_string()],
    )?;
    let measured: choose::Measured = serde_json::from_slice(&answer).map_err(|e| {
        let message = format!("{} measures in words unknown here: {e}", program.display());
        Failure::new(Exit::Conflict, message).help("use argosy and argosy-worker of one build")
    })?;
    // More processes than cores share them.
    let at_once = workers.min(cores.max(1));
    Ok(Speed::Measured {
        images_per_second: measured.images_per_second * f64::from(at_once),
        parameters: measured.parameters,
        image_size: measured.image_size,
    })
}

/// The shards' name so that it holds wherever the job file is moved.
fn absolute(shards: &str) -> Outcome<String> {
    let one = |part: &str| {
        if part.contains("://") {
            return Ok(part.to_owned());
        }
        let path = std::path::absolute(Path::new(part)).map_err(|e| Failure::io("find", Path::new(part), &e))?;
        Ok(path.to_string_lossy().into_owned())
    };
    Ok(expand::parts(shards)
        .into_iter()
        .map(|p| one(p.trim()))
        .collect::<Outcome<Vec<_>>>()?
        .join("::"))
}
