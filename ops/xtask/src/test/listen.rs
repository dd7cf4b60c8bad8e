//! Passes a child's output on, line by line, and lets somebody listen.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

/// Runs `command`; every line of both its streams is shown on ours and, without colours, handed to `heard`.
pub(crate) fn run(mut command: Command, heard: impl FnMut(&str) + Send) -> Result<ExitStatus> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the test runner")?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let heard = Mutex::new(heard);
    std::thread::scope(|scope| {
        let heard = &heard;
        if let Some(pipe) = stdout {
            scope.spawn(move || forward(pipe, std::io::stdout(), heard));
        }
        if let Some(pipe) = stderr {
            scope.spawn(move || forward(pipe, std::io::stderr(), heard));
        }
    });
    child.wait().context("cannot wait for the test runner")
}

fn forward(pipe: impl Read, mut to: impl Write, heard: &Mutex<impl FnMut(&str)>) {
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    // Tests may print anything, so lines are bytes; a pipe that breaks ends the listening, the exit status decides.
    while reader.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
        let _ = to.write_all(&line);
        let text = strip_colours(&String::from_utf8_lossy(&line));
        heard.lock().unwrap_or_else(PoisonError::into_inner)(text.trim_end());
        line.clear();
    }
}

/// Without the terminal's escape sequences (`ESC [ ... letter`).
pub(crate) fn strip_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter != '\u{1b}' {
            plain.push(letter);
            continue;
        }
        if letters.next() == Some('[') {
            for inner in letters.by_ref() {
                if ('\u{40}'..='\u{7e}').contains(&inner) {
                    break;
                }
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_stripped_and_text_is_kept() {
        assert_eq!(
            strip_colours("\u{1b}[32;1m     Summary\u{1b}[0m [ 1.0s]"),
            "     Summary [ 1.0s]"
        );
        assert_eq!(strip_colours("plain [x]"), "plain [x]");
    }

    #[test]
    fn lines_of_both_streams_are_heard_and_the_status_is_kept() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; printf 'last \\377'; exit 4"]);
        let mut heard = Vec::new();
        let status = run(command, |line| heard.push(line.to_owned())).unwrap();
        heard.sort();
        assert_eq!(heard, ["last \u{fffd}", "one", "two"]);
        assert_eq!(status.code(), Some(4));
    }
}
