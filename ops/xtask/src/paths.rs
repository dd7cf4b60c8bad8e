//! The two places this tool writes to: the clone's `target/` and the user's cache.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// Root of this clone.
    pub(crate) root: PathBuf,
    /// What all clones of one user share; survives `cargo clean`.
    pub(crate) cache: PathBuf,
}

impl Paths {
    pub(crate) fn find() -> Result<Self> {
        // `cargo run` sets it; the compiled-in value serves a binary that is started by hand.
        let manifest =
            std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = manifest
            .ancestors()
            .nth(2)
            .context("xtask lies outside its workspace")?
            .to_path_buf();
        let cache = calc_cache(
            std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from),
            std::env::var_os("HOME").map(PathBuf::from),
        )?;
        Ok(Self { root, cache })
    }

    /// Where builds look for a part of the toolchain; `.cargo/config.toml` names the same places.
    pub(crate) fn linked(&self, part: &str) -> PathBuf {
        self.root.join("target/toolchain").join(part)
    }

    /// Where the parts themselves lie.
    pub(crate) fn store(&self) -> PathBuf {
        self.cache.join("toolchain")
    }
}

/// By the XDG rules a relative `XDG_CACHE_HOME` counts as unset.
fn calc_cache(xdg: Option<PathBuf>, home: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(dir) = xdg.filter(|dir| dir.is_absolute()) {
        return Ok(dir.join("argosy"));
    }
    match home.filter(|dir| dir.is_absolute()) {
        Some(home) => Ok(home.join(".cache/argosy")),
        None => bail!("neither XDG_CACHE_HOME nor HOME names a folder for the downloads; set one of them"),
    }
}

/// First executable `name` on `path`, a value like that of `PATH`.
pub(crate) fn which(name: &str, path: &std::ffi::OsStr) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runs = |file: &Path| {
        file.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|file| runs(file));
    }
    std::env::split_paths(path)
        .map(|dir| dir.join(name))
        .find(|file| runs(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_prefers_an_absolute_xdg_folder_and_falls_back_to_home() {
        let home = Some(PathBuf::from("/home/a"));
        assert_eq!(
            calc_cache(Some("/x".into()), home.clone()).unwrap(),
            PathBuf::from("/x/argosy")
        );
        assert_eq!(
            calc_cache(Some("x".into()), home.clone()).unwrap(),
            PathBuf::from("/home/a/.cache/argosy")
        );
        assert_eq!(calc_cache(None, home).unwrap(), PathBuf::from("/home/a/.cache/argosy"));
        assert!(
            calc_cache(None, None)
                .unwrap_err()
                .to_string()
                .contains("XDG_CACHE_HOME")
        );
    }

    #[test]
    fn which_takes_only_executable_files() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tool");
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(which("tool", dir.path().as_os_str()), None);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(which("tool", dir.path().as_os_str()), Some(file));
    }
}
