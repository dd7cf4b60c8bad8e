//! `argosy clean`: removes what we wrote. What is not ours is never removed, and nothing is without `--yes`.

use crate::args::OutputArgs;
use crate::fail::{Failure, Outcome};
use crate::out::{self, Table};
use crate::run::folder;
use crate::{doctor, job, listing};
use argosy_common::exit::Exit;
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct CleanArgs {
    /// `downloads` (shared by all clones; set-up fetches them again), `demo`, or folders of runs
    #[arg(value_name = "downloads|demo|RUN", required = true)]
    pub(crate) what: Vec<String>,
    /// Remove it; without this it is only listed
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// What lies in a run's folder.
const OF_A_RUN: [&str; 24] = [
    "checkpoints",
    "crash",
    "emergency",
    "events.jsonl",
    "failpoints",
    "index.argosy",
    "index.argosy.partial",
    "job.toml",
    "job.toml.new",
    "loader",
    "logs",
    "meta.redb",
    "model.json",
    "open_clip_model.safetensors",
    "package.json",
    "report.html",
    "results.jsonl",
    "run.json",
    "run.json.shared",
    "run.json.tmp",
    "run.lock",
    "steps",
    "tensorboard",
    "token",
];

/// One folder that goes.
#[derive(Debug, serde::Serialize)]
struct Doomed {
    what: String,
    path: PathBuf,
    bytes: u64,
    /// Of a run whose checkpoints lie elsewhere: where, for they stay.
    stays: Option<String>,
    #[serde(skip)]
    _lock: Option<nix::fcntl::Flock<std::fs::File>>,
}

pub(crate) fn run(args: &CleanArgs) -> Outcome<Exit> {
    // All are looked at before the first goes.
    let doomed = args.what.iter().map(|what| look(what)).collect::<Outcome<Vec<_>>>()?;
    let value = serde_json::json!({"version": 1, "removed": args.yes, "folders": doomed});
    if args.yes {
        for folder in &doomed {
            std::fs::remove_dir_all(&folder.path).map_err(|e| Failure::io("remove", &folder.path, &e))?;
        }
    }
    listing::print(args.output.output, &value, Some("folders"), |_| {
        let mut table = Table::new(&["what", "bytes", "path"]);
        for folder in &doomed {
            table.row(&[
                folder.what.clone(),
                out::bytes(folder.bytes),
                folder.path.display().to_string(),
            ]);
        }
        table.render()
    })?;
    for place in doomed.iter().filter_map(|folder| folder.stays.as_ref()) {
        out::say(&format!(
            "{} checkpoints in {place} stay",
            out::style("note:", out::YELLOW)
        ));
    }
    let all = out::bytes(doomed.iter().map(|folder| folder.bytes).sum());
    out::say(&if args.yes {
        format!("removed {all}")
    } else {
        format!("{all} would be removed: say --yes")
    });
    Ok(Exit::Ok)
}

fn look(what: &str) -> Outcome<Doomed> {
    let path = match what {
        "downloads" => doctor::cache(),
        "demo" => doctor::demo(),
        run => return look_at_run(Path::new(run)),
    };
    let missing = || Failure::new(Exit::NotFound, format!("there are no {what} here"));
    let path = path.filter(|path| is_folder(path)).ok_or_else(missing)?;
    Ok(Doomed {
        what: what.to_owned(),
        bytes: doctor::size_of(&path).unwrap_or(0),
        path,
        stays: None,
        _lock: None,
    })
}

/// A folder itself, not a link to one: what a link names may be anything.
fn is_folder(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_dir())
}

fn look_at_run(path: &Path) -> Outcome<Doomed> {
    let facts = folder::read(path)?;
    if !is_folder(path) {
        let message = format!("{} is a link; name the folder itself", path.display());
        return Err(Failure::new(Exit::Conflict, message));
    }
    let entries = std::fs::read_dir(path).map_err(|e| Failure::io("read", path, &e))?;
    for entry in entries {
        let name = entry.map_err(|e| Failure::io("read", path, &e))?.file_name();
        let name = name.to_string_lossy();
        if !OF_A_RUN.contains(&name.as_ref()) && !name.starts_with("argosy-crash-") {
            let message = format!("{} holds {name}, which is not of a run", path.display());
            return Err(Failure::new(Exit::Conflict, message).help("move it away first"));
        }
    }
    let lock = folder::lock(path)?;
    let kept = job::load_kept(&path.join(folder::JOB_FILE));
    Ok(Doomed {
        what: facts.run.clone(),
        bytes: doctor::size_of(path).unwrap_or(0),
        path: path.to_owned(),
        stays: kept.ok().and_then(|kept| {
            let place = kept.job.checkpoint.location("", &facts.run);
            kept.job.checkpoint.url.map(|_| place)
        }),
        _lock: Some(lock),
    })
}
