//! How far a walk over shards has come: a bar on a terminal, a plain line now and then elsewhere.

use crate::out;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines, and before the first: what is done sooner needs none.
const EVERY: Duration = Duration::from_secs(2);

/// Progress over shards; many threads may tell it.
pub(crate) struct ShardProgress {
    doing: &'static str,
    bar: Option<ProgressBar>,
    said: Mutex<Instant>,
}

impl ShardProgress {
    pub(crate) fn new(doing: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::no_length();
            let template = format!("{doing} [{{bar:24}}] {{pos}}/{{len}} shards{{msg}}");
            match ProgressStyle::with_template(&template) {
                Ok(style) => bar.with_style(style.progress_chars("=> ")),
                Err(_) => bar,
            }
        });
        let said = Mutex::new(Instant::now());
        Self { doing, bar, said }
    }

    /// `done` of `total` shards, with `rows` in them where rows are counted.
    pub(crate) fn tell(&self, done: usize, total: usize, rows: Option<u64>) {
        let rows = rows.map(|n| format!(", {} rows", out::count(n))).unwrap_or_default();
        if let Some(bar) = &self.bar {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(rows);
        } else if self.is_due(Instant::now()) {
            out::say(&line(self.doing, done, total, &rows));
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let due = now.saturating_duration_since(*said) >= EVERY;
        if due {
            *said = now;
        }
        due
    }
}

impl Drop for ShardProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn line(doing: &str, done: usize, total: usize, rows: &str) -> String {
    let (done, total) = (out::count(done as u64), out::count(total as u64));
    format!("{doing}: {done} of {total} shards{rows}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_every_two_seconds_and_none_before() {
        let progress = ShardProgress::new("indexing");
        let begun = *progress.said.lock().unwrap();
        let after = |seconds| progress.is_due(begun + Duration::from_millis(seconds));
        assert_eq!(
            [0, 1999, 2000, 2001, 3999, 4000].map(after),
            [false, false, true, false, false, true]
        );
    }

    #[test]
    fn line_says_what_is_done_of_how_much() {
        assert_eq!(
            line("indexing", 12, 1000, ", 7 rows"),
            "indexing: 12 of 1,000 shards, 7 rows"
        );
    }
}
