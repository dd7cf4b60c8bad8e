//! What some long tests compare with and the repository does not hold: OpenCLIP's Python and photographs.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{peers, photographs};

/// Variables with which the tests find it. A test whose variable is missing skips itself and says so.
pub(crate) type Environment = Vec<(&'static str, PathBuf)>;

/// All that `venv`, an environment made by `tests/peers/setup.sh`, gives.
pub(crate) fn environment(root: &Path, venv: Option<&Path>) -> Result<Environment> {
    let Some(venv) = venv else {
        return Ok(Environment::new());
    };
    let python = peers::python(Some(venv))?;
    let mut found = vec![
        ("PEERS_VENV", std::path::absolute(venv)?),
        ("ARGOSY_PEERS_PYTHON", std::path::absolute(&python)?),
    ];
    if photographs::are_there(root, "large") {
        let shards = photographs::shards(root, &python, "large")?;
        found.push(("ARGOSY_PHOTOS", shards.join("00000.tar")));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_of_a_venv_names_its_python_and_the_photographs_that_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        let venv = dir.path().join("venv");
        let error = environment(dir.path(), Some(&venv)).unwrap_err().to_string();
        assert!(error.contains("setup.sh"), "{error}");
        std::fs::create_dir_all(venv.join("bin")).unwrap();
        std::fs::write(venv.join("bin/python"), "").unwrap();
        let photos = dir.path().join("target/bench/photos/large");
        std::fs::create_dir_all(&photos).unwrap();
        std::fs::write(photos.join("done"), "").unwrap();
        let found = environment(dir.path(), Some(&venv)).unwrap();
        let expected = [
            ("PEERS_VENV", venv.clone()),
            ("ARGOSY_PEERS_PYTHON", venv.join("bin/python")),
            ("ARGOSY_PHOTOS", photos.join("shards/00000.tar")),
        ];
        assert_eq!(found, expected);
        assert!(environment(dir.path(), None).unwrap().is_empty());
    }
}
