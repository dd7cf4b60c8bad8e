//! A bar on a terminal, a few plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

#[derive(Debug)]
pub(crate) struct Meter {
    label: String,
    total_bytes: u64,
    bar: Option<ProgressBar>,
    started: Instant,
    quarters_told: u64,
}

impl Meter {
    /// `label` names what moves, as in "fetching torch 2.11.0".
    pub(crate) fn start(label: &str, total_bytes: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(label, total_bytes));
        if bar.is_none() {
            eprintln!("{label}, {}", calc_megabytes(total_bytes));
        }
        Self {
            label: label.to_owned(),
            total_bytes,
            bar,
            started: Instant::now(),
            quarters_told: 0,
        }
    }

    pub(crate) fn set(&mut self, bytes: u64) {
        // What we poll may pass through a second copy on its way: never show more than there is.
        let bytes = bytes.min(self.total_bytes);
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
            return;
        }
        let quarters = (bytes * 4).checked_div(self.total_bytes).unwrap_or(4);
        // Small files would only scroll the log away.
        let worth_telling = self.started.elapsed() > Duration::from_secs(5);
        if quarters > self.quarters_told && quarters < 4 && worth_telling {
            eprintln!("{}: {} %", self.label, quarters * 25);
            self.quarters_told = quarters;
        }
    }

    pub(crate) fn finish(self) {
        let seconds = self.started.elapsed().as_secs_f64();
        let line = format!("{}: done in {seconds:.1} s", self.label);
        match &self.bar {
            Some(bar) => {
                bar.finish_and_clear();
                eprintln!("{line}");
            }
            None => eprintln!("{line}"),
        }
    }
}

fn bar(label: &str, total_bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(total_bytes).with_message(label.to_owned());
    // The template is a constant, so a failure to parse it only costs the decoration.
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:28}] {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// Whole megabytes (10^6 bytes) in words.
pub(crate) fn calc_megabytes(bytes: u64) -> String {
    match bytes {
        0..=9_999_999 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn megabytes_keep_a_digit_only_when_small() {
        assert_eq!(calc_megabytes(2_243_632), "2.2 MB");
        assert_eq!(calc_megabytes(530_604_548), "530 MB");
    }
}
