//! Shards of real photographs, for benches and for the long tests.
//!
//! The photographs are not part of the repository: `ARGOSY_PHOTOGRAPHS` names folders of them, joined by `:`, from which
//! `tests/peers/photos.py` cuts the shards once, with a fixed seed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

const FOLDERS: &str = "ARGOSY_PHOTOGRAPHS";
const NO_PHOTOGRAPHS: &str = "ARGOSY_PHOTOGRAPHS is not set: name folders of large photographs, joined by `:`. \
     Debian has some: `apt-get download mate-backgrounds && dpkg -x mate-backgrounds_*.deb photographs`, \
     then ARGOSY_PHOTOGRAPHS=$PWD/photographs";

/// Where the shards of that kind (`small` or `large`) lie, once they are cut.
fn folder(root: &Path, kind: &str) -> PathBuf {
    root.join("target/bench/photos").join(kind)
}

/// Whether [`shards`] can give any: they are cut, or there is something to cut them from.
pub(crate) fn are_there(root: &Path, kind: &str) -> bool {
    folder(root, kind).join("done").is_file() || std::env::var_os(FOLDERS).is_some()
}

/// The folder of shards of that kind, made on first use with the peers' Python.
pub(crate) fn shards(root: &Path, python: &Path, kind: &str) -> Result<PathBuf> {
    let out = folder(root, kind);
    let (shards, done) = (out.join("shards"), out.join("done"));
    if done.is_file() {
        return Ok(shards);
    }
    let folders = std::env::var(FOLDERS).context(NO_PHOTOGRAPHS)?;
    println!("cutting the {kind} pictures out of the photographs in {folders} (once)");
    let status = Command::new(python)
        .arg(root.join("tests/peers/photos.py"))
        .arg(&shards)
        .arg(kind)
        .args(folders.split(':'))
        .status()
        .with_context(|| format!("cannot start {}", python.display()))?;
    ensure!(status.success(), "tests/peers/photos.py failed");
    std::fs::write(&done, "").with_context(|| format!("cannot write {}", done.display()))?;
    Ok(shards)
}
