//! Data goes to stdout, chatter to stderr; neither panics when the other end is gone.

use crate::fail::{Failure, Outcome};
use argosy_common::exit::Exit;
use argosy_common::secret;
use std::io::{ErrorKind, IsTerminal, Write};

pub(crate) const RED: &str = "31;1";
pub(crate) const GREEN: &str = "32;1";
pub(crate) const CYAN: &str = "36;1";
pub(crate) const YELLOW: &str = "33;1";

/// A line of chatter. A closed stderr is nobody's problem.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", secret::hide(line));
}

/// What to do next: for people at a terminal, not for a pipe.
pub(crate) fn hint(line: &str) {
    if std::io::stdout().is_terminal() {
        say(line);
    }
}

/// `text` in colour where stderr is a terminal that wants it (<https://no-color.org>).
pub(crate) fn style(text: &str, code: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
        || std::env::var_os("TERM").is_some_and(|t| t == "dumb")
        || !std::io::stderr().is_terminal();
    if plain {
        text.to_owned()
    } else {
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Data. A reader that has gone away (`| head`) has seen what it wanted.
pub(crate) fn data(text: &str) -> Outcome<()> {
    let mut stdout = std::io::stdout().lock();
    let text = secret::hide(text);
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::JobFailed, format!("cannot write to stdout: {e}")))
        }
        _ => Ok(()),
    }
}

/// A value as JSON on stdout.
pub(crate) fn json(value: &impl serde::Serialize) -> Outcome<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::new(Exit::JobFailed, format!("cannot write JSON: {e}")))?;
    data(&(text + "\n"))
}

/// A path as a terminal can open it.
pub(crate) fn file_link(path: &std::path::Path) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/-_.~".contains(b);
    let bytes = path.as_os_str().as_encoded_bytes();
    let link = bytes.iter().map(|b| {
        if plain(b) {
            char::from(*b).to_string()
        } else {
            format!("%{b:02X}")
        }
    });
    format!("file://{}", link.collect::<String>())
}

/// Columns of text: the first left-aligned, the others right-aligned.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    /// The last so many columns are for those who ask for more.
    wide: usize,
    /// All columns are aligned left.
    left: bool,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self {
            rows: vec![head.iter().map(|h| h.to_uppercase()).collect()],
            wide: 0,
            left: false,
        }
    }

    /// Words rather than numbers: everything is aligned left.
    pub(crate) fn left(mut self) -> Self {
        self.left = true;
        self
    }

    /// Adds columns that only `-o wide` shows; cells of theirs come last in every row.
    pub(crate) fn wide(mut self, head: &[&str]) -> Self {
        self.rows[0].extend(head.iter().map(|h| h.to_uppercase()));
        self.wide = head.len();
        self
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.to_vec());
    }

    pub(crate) fn render(&self) -> String {
        self.render_as(false)
    }

    pub(crate) fn render_as(&self, wide: bool) -> String {
        let hidden = if wide { 0 } else { self.wide };
        let columns = self.rows[0].len() - hidden;
        let width = |c: usize| {
            let cells = self.rows.iter().filter_map(|r| r.get(c));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).enumerate().map(|(c, (cell, &w))| {
                if c == 0 || self.left {
                    format!("{cell:<w$}")
                } else {
                    format!("{cell:>w$}")
                }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(c);
    }
    text
}

/// Bytes in the unit a person would choose (powers of 1000).
pub(crate) fn bytes(n: u64) -> String {
    match n {
        0..=999 => format!("{n} B"),
        1_000..=999_999 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..=999_999_999 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

/// Seconds as `1 h 02 min`, `3 min 20 s` or `12 s`.
pub(crate) fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..=59 => format!("{s} s"),
        60..=3599 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_uneven_cells_lines_up() {
        let mut table = Table::new(&["shard", "rows"]);
        table.row(&["a.tar".into(), "7".into()]);
        table.row(&["longer.tar".into(), "1,000".into()]);
        assert_eq!(
            table.render(),
            "SHARD        ROWS\na.tar           7\nlonger.tar  1,000\n"
        );
    }

    #[test]
    fn wide_columns_are_shown_to_those_who_ask() {
        let mut table = Table::new(&["a", "b"]).wide(&["c"]);
        table.row(&["1".into(), "2".into(), "3".into()]);
        assert_eq!(table.render(), "A  B\n1  2\n");
        assert_eq!(table.render_as(true), "A  B  C\n1  2  3\n");
    }

    #[test]
    fn numbers_read_like_a_persons() {
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(bytes(1_500), "1.5 kB");
        assert_eq!(duration(3_725.0), "1 h 02 min");
        assert_eq!(duration(59.4), "59 s");
    }
}
