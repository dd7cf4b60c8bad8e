//! Completions and man pages, from the same description that reads the command line.

use crate::args::Cli;
use crate::fail::{Failure, Outcome};
use crate::out;
use argosy_common::exit::Exit;
use clap::CommandFactory;
use std::path::Path;

pub(crate) fn completions(shell: clap_complete::Shell) -> Outcome<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "argosy", &mut script);
    out::data(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}

/// One page a command.
pub(crate) fn man(dir: &Path) -> Outcome<Exit> {
    clap_mangen::generate_to(Cli::command(), dir).map_err(|e| Failure::io("write", dir, &e))?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn man_pages_are_one_a_command_that_people_see() {
        let dir = tempfile::tempdir().unwrap();
        man(dir.path()).unwrap();
        let names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        for page in ["argosy.1", "argosy-run.1", "argosy-report.1"] {
            assert!(names.iter().any(|n| n == page), "{page} is not in {names:?}");
        }
        assert!(!names.iter().any(|n| n.contains("unpack")), "{names:?}");
    }
}
