//! Captions before they become tokens: OpenCLIP's `lower` cleaning.
//!
//! `ftfy.fix_text`, HTML entities twice, white space collapsed, lower case.

use crate::html::unescape;
use std::borrow::Cow;

/// Cleans a caption as OpenCLIP's tokenizer does by default.
pub(crate) fn clean(text: &str) -> String {
    let fixed = if needs_fixing(text) {
        Cow::Owned(plsfix::fix_text(&without_terminal_escapes(text), None))
    } else {
        Cow::Borrowed(text)
    };
    let plain = unescape(&unescape(&fixed)).into_owned();
    let mut out = String::with_capacity(plain.len());
    for word in plain.split(is_space).filter(|w| !w.is_empty()) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out.to_lowercase()
}

/// Whether `ftfy` could change anything: printable ASCII without entities passes through it untouched.
fn needs_fixing(text: &str) -> bool {
    !text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'&')
}

/// What Python's `str.split` takes for white space: Unicode's, and four separators of the ASCII control range.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Drops ANSI colour codes (`ESC [ 3 1 m`), which `plsfix` leaves in.
fn without_terminal_escapes(text: &str) -> Cow<'_, str> {
    let mut parts = text.split("\u{1b}[");
    let first = parts.next().unwrap_or_default();
    if first.len() == text.len() {
        return Cow::Borrowed(text);
    }
    let mut out = first.to_owned();
    for part in parts {
        let code = part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        match code.chars().next() {
            Some(c) if c.is_ascii_alphabetic() => out.push_str(&code[1..]),
            _ => {
                out.push_str("\u{1b}[");
                out.push_str(part);
            }
        }
    }
    Cow::Owned(out)
}
