//! The run folder: readable by its owner only, frozen facts in `run.json`.

use crate::fail::{Failure, Outcome};
use argosy_common::exit::Exit;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Version of `run.json`.
pub(crate) const RUN_FILE_VERSION: u32 = 2;
const RUN_FILE: &str = "run.json";
const LOCK_FILE: &str = "run.lock";
/// The job as it is trained.
pub(crate) const JOB_FILE: &str = "job.toml";
/// The same before it is known to be that of the run in the folder.
pub(crate) const NEW_JOB_FILE: &str = "job.toml.new";
/// What a start that failed early may have left; a folder with nothing else is as good as empty.
const LEFTOVERS: [&str; 4] = ["index.argosy", JOB_FILE, NEW_JOB_FILE, LOCK_FILE];

/// What is frozen when a run begins (rules L3, L6).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunFile {
    pub(crate) version: u32,
    /// Id of the run.
    pub(crate) run: String,
    /// Digest of the training configuration.
    pub(crate) config_hash: u64,
    /// Digest of the index.
    pub(crate) index_hash: u64,
    /// Where the index lies; in the file relative to the folder, if it lies inside.
    pub(crate) index: PathBuf,
    /// Which sample stands at which position follows from this and the index.
    pub(crate) lanes: u32,
    pub(crate) window_factor: u32,
    pub(crate) batch: u32,
    pub(crate) seed: u64,
    pub(crate) total_positions: u64,
    /// The model, as the worker describes it.
    #[serde(flatten)]
    pub(crate) model: Model,
}

/// What `argosy-worker describe-model` says. Kept with the run, so that a resume need not ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Model {
    /// Trained numbers.
    pub(crate) parameters: u64,
    /// Bytes of weights and moments.
    pub(crate) state_bytes: u64,
    /// Parts of a checkpoint.
    pub(crate) parts_total: u32,
    /// The config in open_clip's JSON form.
    pub(crate) model: serde_json::Value,
    /// Digest of the weights it starts from.
    #[serde(default)]
    pub(crate) pretrained_digest: Option<String>,
}

/// Reads the frozen facts of the run in `dir`.
pub(crate) fn read(dir: &Path) -> Outcome<RunFile> {
    let path = dir.join(RUN_FILE);
    let text = std::fs::read_to_string(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            let message = format!("there is no run in {} ({RUN_FILE} is missing)", dir.display());
            Failure::new(Exit::NotFound, message).help("name the folder of a run; `argosy run` makes one below runs/")
        }
        _ => Failure::io("read", &path, &e),
    })?;
    let refuse = |why: String| Failure::new(Exit::BadConfig, format!("{}: {why}", path.display()));
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| refuse(e.to_string()))?;
    match value["version"].as_u64() {
        Some(v) if v == u64::from(RUN_FILE_VERSION) => {}
        v => {
            return Err(refuse(format!(
                "format version {v:?}, this Argosy reads {RUN_FILE_VERSION}"
            )));
        }
    }
    let mut facts: RunFile = serde_json::from_value(value).map_err(|e| refuse(e.to_string()))?;
    let whole = std::fs::canonicalize(dir).map_err(|e| Failure::io("find", dir, &e))?;
    facts.index = whole.join(facts.index);
    Ok(facts)
}

/// Writes the frozen facts; from now on the folder holds a run.
pub(crate) fn write(dir: &Path, facts: &RunFile) -> Outcome<()> {
    let path = dir.join(RUN_FILE);
    let mut facts = facts.clone();
    // An index of the folder's own is named from there, so that the folder can be moved.
    if let Ok(inside) = facts.index.strip_prefix(dir) {
        facts.index = inside.to_owned();
    }
    let text = serde_json::to_string_pretty(&facts)
        .map_err(|e| Failure::new(Exit::JobFailed, format!("cannot write {}: {e}", path.display())))?;
    let beside = dir.join("run.json.tmp");
    std::fs::write(&beside, text + "\n")
        .and_then(|()| std::fs::rename(&beside, &path))
        .map_err(|e| Failure::io("write", &path, &e))
}

/// A folder for a new run: made, or found empty. One that holds something is a conflict.
pub(crate) fn create(dir: &Path, job: &Path) -> Outcome<()> {
    make_private(dir)?;
    let entries = std::fs::read_dir(dir).map_err(|e| Failure::io("read", dir, &e))?;
    let other = entries
        .flatten()
        .find(|e| !LEFTOVERS.iter().any(|name| e.file_name() == *name));
    if let Some(other) = other {
        let is_run = dir.join(RUN_FILE).exists();
        let (what, help) = if is_run {
            let job = job.display();
            let go_on = format!("go on with it: argosy run {job} --run {} --resume; ", dir.display());
            (
                "already holds a run".to_owned(),
                go_on + "or choose another folder with --run DIR",
            )
        } else {
            let name = other.file_name().to_string_lossy().into_owned();
            (
                format!("is not empty (it holds {name})"),
                "choose another folder with --run DIR".to_owned(),
            )
        };
        return Err(Failure::new(Exit::Conflict, format!("folder {} {what}", dir.display())).help(help));
    }
    // It may have been there before, with whatever rights.
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).map_err(|e| Failure::io("protect", dir, &e))
}

/// Takes the folder for this process until the result is dropped: two starts at once would overwrite each other's files.
pub(crate) fn lock(dir: &Path) -> Outcome<Flock<File>> {
    let path = dir.join(LOCK_FILE);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&path).map_err(|e| Failure::io("write", &path, &e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => {
            let message = format!("folder {} is in use by another `argosy run`", dir.display());
            Failure::new(Exit::Conflict, message).help("wait for its end, or choose another folder with --run DIR")
        }
        errno => Failure::io("lock", &path, &errno.into()),
    })
}

/// Random bytes of the system.
pub(crate) fn random<const N: usize>() -> Outcome<[u8; N]> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; N];
    File::open(path)
        .and_then(|mut f| f.read_exact(&mut bytes))
        .map_err(|e| Failure::io("read", path, &e))?;
    Ok(bytes)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A folder that only its owner may look into, made if it is missing.
pub(crate) fn make_private(dir: &Path) -> Outcome<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(dir).map_err(|e| Failure::io("create", dir, &e))
}

/// Writes a file that only its owner may read, replacing an older one.
pub(crate) fn write_secret(path: &Path, text: &str) -> Outcome<()> {
    let failed = |e: std::io::Error| Failure::io("write", path, &e);
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options
        .open(path)
        .and_then(|mut f| f.write_all(text.as_bytes()))
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_with_leftovers_of_a_failed_start_is_taken_and_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("a/b");
        create(&run, Path::new("j.toml")).unwrap();
        std::fs::write(run.join("index.argosy"), "").unwrap();
        create(&run, Path::new("j.toml")).unwrap();
        assert_eq!(run.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::write(run.join("other"), "").unwrap();
        assert_eq!(create(&run, Path::new("j.toml")).unwrap_err().exit, Exit::Conflict);
        let held = lock(&run).unwrap();
        assert_eq!(lock(&run).unwrap_err().exit, Exit::Conflict);
        drop(held);
        lock(&run).unwrap();
    }

    #[test]
    fn secret_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        write_secret(&path, "a").unwrap();
        write_secret(&path, "b").unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "b");
        assert_ne!(random::<16>().unwrap(), random::<16>().unwrap());
    }
}
