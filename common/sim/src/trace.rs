//! What happened, as a rolling hash that two runs must share, and as lines to read when somebody asks for them.

use crate::queue::Ms;
use argosy_common::hash::{digest64, mix64};

/// The trace of one world.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
}

/// Lines kept at most.
const LINES_MAX: usize = 20_000;

impl Trace {
    pub(crate) fn new(keep_lines: bool) -> Self {
        Self {
            hash: 0,
            lines: keep_lines.then(Vec::new),
        }
    }

    /// Notes that `what` happened at `at` with these numbers; `line` is only made when it is read.
    pub(crate) fn note(&mut self, at: Ms, what: &str, numbers: &[u64], line: impl FnOnce() -> String) {
        let mut hash = mix64(self.hash ^ at);
        hash = mix64(hash ^ digest64(what.as_bytes()));
        for number in numbers {
            hash = mix64(hash ^ number);
        }
        self.hash = hash;
        if let Some(lines) = self.lines.as_mut().filter(|l| l.len() < LINES_MAX) {
            lines.push(format!("{:>8} ms  {what}: {}", at, line()));
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }
}
