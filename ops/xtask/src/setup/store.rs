//! Parts in the cache: made in a temporary folder, moved into place by one rename, linked from the clone.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::parts::Part;

const MARKER: &str = "READY";
const UNFINISHED: &str = ".unfinished-";

/// A part's folder, whether or not it is there.
pub(crate) fn folder(store: &Path, part: &Part) -> PathBuf {
    store.join(part.folder())
}

/// Ready means: finished by a set-up with the same pins, and still whole.
pub(crate) fn is_ready(store: &Path, part: &Part) -> bool {
    let folder = folder(store, part);
    fs::read_to_string(folder.join(MARKER)).is_ok_and(|text| text == part.receipt())
        && part.files.iter().all(|file| folder.join(file).is_file())
}

/// Held while anything in the store changes, so that two set-ups at once do the work once.
pub(crate) fn lock(store: &Path) -> Result<File> {
    fs::create_dir_all(store).with_context(|| format!("cannot create {}", store.display()))?;
    let path = store.join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => eprintln!("waiting for another set-up to finish"),
        Err(TryLockError::Error(error)) => return Err(error).context(format!("cannot lock {}", path.display())),
    }
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// A folder to work in; its remains are removed with it, unless it was published.
#[derive(Debug)]
pub(crate) struct Workshop {
    pub(crate) dir: PathBuf,
}

impl Workshop {
    pub(crate) fn open(store: &Path, part: &Part) -> Result<Self> {
        let dir = store.join(format!("{UNFINISHED}{}-{}", part.name, std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Where the part itself is put together; downloads lie beside it and never reach the store.
    pub(crate) fn result(&self) -> PathBuf {
        self.dir.join("result")
    }

    /// The rename is the only step others can see: a folder in the store is always a whole one.
    pub(crate) fn publish(self, store: &Path, part: &Part) -> Result<PathBuf> {
        let (result, place) = (self.result(), folder(store, part));
        fs::write(result.join(MARKER), part.receipt()).context("cannot write the marker")?;
        if place.exists() {
            fs::rename(&place, self.dir.join("broken"))
                .with_context(|| format!("cannot move {} away", place.display()))?;
        }
        fs::rename(&result, &place).with_context(|| format!("cannot move the part to {}", place.display()))?;
        Ok(place)
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next set-up.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Removes what killed set-ups left. Only under the lock: nobody else is at work then.
pub(crate) fn sweep(store: &Path) -> Result<()> {
    for entry in fs::read_dir(store).with_context(|| format!("cannot list {}", store.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_dir_all(entry.path()).with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Is `link` a symbolic link to `goal`?
pub(crate) fn is_linked(link: &Path, goal: &Path) -> bool {
    fs::read_link(link).is_ok_and(|now| now == goal)
}

/// Makes `link` point to `goal`, replacing a link or a folder. There is no moment at which a link is missing.
pub(crate) fn link(link: &Path, goal: &Path) -> Result<()> {
    if is_linked(link, goal) {
        return Ok(());
    }
    let parent = link.parent().context("a link needs a folder")?;
    let name = link.file_name().context("a link needs a name")?.to_string_lossy();
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let fresh = parent.join(format!(".{name}-new-{}", std::process::id()));
    let old = parent.join(format!(".{name}-old-{}", std::process::id()));
    std::os::unix::fs::symlink(goal, &fresh).with_context(|| format!("cannot link {}", link.display()))?;
    // rename() replaces a link but not a folder, so a folder steps aside first.
    let was_folder = fs::symlink_metadata(link).is_ok_and(|meta| meta.is_dir());
    if was_folder {
        fs::rename(link, &old).with_context(|| format!("cannot move {} away", link.display()))?;
    }
    fs::rename(&fresh, link).with_context(|| format!("cannot link {}", link.display()))?;
    if was_folder {
        fs::remove_dir_all(&old).with_context(|| format!("cannot remove {}", old.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::parts::{PARTS, Part};
    use super::*;

    fn lay(store: &Path, part: &Part) -> PathBuf {
        let shop = Workshop::open(store, part).unwrap();
        for file in part.files {
            let path = shop.result().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        shop.publish(store, part).unwrap()
    }

    #[test]
    fn part_is_ready_only_after_publishing_and_only_while_whole() {
        let store = tempfile::tempdir().unwrap();
        let part = &PARTS[0];
        assert!(!is_ready(store.path(), part));
        let place = lay(store.path(), part);
        assert!(is_ready(store.path(), part));
        fs::remove_file(place.join(part.files[0])).unwrap();
        assert!(!is_ready(store.path(), part));
        lay(store.path(), part);
        assert!(is_ready(store.path(), part), "a broken folder is replaced");
    }

    #[test]
    fn part_with_a_foreign_marker_is_not_ready() {
        let store = tempfile::tempdir().unwrap();
        let place = lay(store.path(), &PARTS[0]);
        fs::write(place.join(MARKER), "layout 0\n").unwrap();
        assert!(!is_ready(store.path(), &PARTS[0]));
    }

    #[test]
    fn workshop_dropped_early_leaves_nothing() {
        let store = tempfile::tempdir().unwrap();
        drop(Workshop::open(store.path(), &PARTS[0]).unwrap());
        assert_eq!(fs::read_dir(store.path()).unwrap().count(), 0);
    }

    #[test]
    fn sweep_removes_remains_and_keeps_parts() {
        let store = tempfile::tempdir().unwrap();
        let place = lay(store.path(), &PARTS[0]);
        let remains = store.path().join(format!("{UNFINISHED}libtorch-1"));
        fs::create_dir(&remains).unwrap();
        sweep(store.path()).unwrap();
        assert!(place.exists() && !remains.exists());
    }

    #[test]
    fn link_replaces_a_folder_and_an_older_link() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("toolchain/libtorch");
        fs::create_dir_all(place.join("lib")).unwrap();
        for goal in ["a", "b", "b"] {
            link(&place, &dir.path().join(goal)).unwrap();
            assert!(is_linked(&place, &dir.path().join(goal)));
        }
        assert_eq!(
            fs::read_dir(dir.path().join("toolchain")).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn lock_held_by_another_is_seen() {
        let store = tempfile::tempdir().unwrap();
        let held = lock(store.path()).unwrap();
        let second = File::open(store.path().join(".lock")).unwrap();
        assert!(matches!(second.try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        assert!(second.try_lock().is_ok());
    }
}
