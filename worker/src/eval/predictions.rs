//! What each sample was taken for, for those who compare with another program.

use super::Failure;
use argosy_common::exit::Exit;
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Classes that are written of each sample.
const FIRST: usize = 5;

/// The right class of a sample and the classes that came first, with their logits.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ranked {
    class: usize,
    first: Vec<(usize, f32)>,
}

#[derive(Serialize)]
struct Line<'a> {
    key: &'a str,
    class: usize,
    top5: Vec<usize>,
    logits: Vec<f32>,
}

impl Ranked {
    /// The first classes by logit; of equal ones the lower class goes first.
    pub(super) fn of(class: usize, logits: &[f32]) -> Self {
        let mut first: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
        let order = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let count = FIRST.min(first.len());
        if count < first.len() {
            first.select_nth_unstable_by(count, order);
            first.truncate(count);
        }
        first.sort_by(order);
        Self { class, first }
    }
}

/// The file.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Writer {
    pub(super) fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::create(path).map_err(|e| (Exit::NotFound, format!("cannot write {}: {e}", path.display())))?;
        Ok(Self {
            path: path.to_path_buf(),
            file: BufWriter::new(file),
        })
    }

    pub(super) fn write(&mut self, key: &str, ranked: &Ranked) -> Result<(), Failure> {
        let line = Line {
            key,
            class: ranked.class,
            top5: ranked.first.iter().map(|(class, _)| *class).collect(),
            logits: ranked.first.iter().map(|(_, logit)| *logit).collect(),
        };
        let written = serde_json::to_writer(&mut self.file, &line)
            .map_err(std::io::Error::from)
            .and_then(|()| self.file.write_all(b"\n"));
        written.map_err(|e| failure(&self.path, &e))
    }

    pub(super) fn finish(mut self) -> Result<(), Failure> {
        self.file.flush().map_err(|e| failure(&self.path, &e))
    }
}

fn failure(path: &Path, error: &std::io::Error) -> Failure {
    (Exit::JobFailed, format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranked_puts_the_lower_class_first_among_equals() {
        let ranked = Ranked::of(1, &[0.5, 2.0, 0.5, 7.0, -1.0, 0.5, 0.5]);
        let classes: Vec<usize> = ranked.first.iter().map(|(c, _)| *c).collect();
        assert_eq!(classes, [3, 1, 0, 2, 5]);
        assert_eq!(Ranked::of(0, &[1.0, 2.0]).first, [(1, 2.0), (0, 1.0)]);
    }
}
