//! Captions before they become tokens, in OpenCLIP's three ways.
//!
//! `ftfy.fix_text` (6.3.1), HTML entities twice, white space collapsed; then lower case, or nothing, or SigLIP's canonical form.

mod mojibake;
mod tables;
mod variants;

use crate::html::{self, unescape};
use regex::Regex;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;
pub(crate) use tables::PAIRS;
use tables::{LIGATURES, NEWER, WIDTHS};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// Characters that are repaired at once; longer lines are cut there, as ftfy does.
const LINE_CHARS_MAX: usize = 1_000_000;
/// Rounds after which a text that never comes to rest is left as it is.
const ROUNDS_MAX: usize = 32;

/// How a caption is cleaned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clean {
    /// White space collapsed, lower case.
    #[default]
    Lower,
    /// White space collapsed.
    Whitespace,
    /// Underscores are spaces, ASCII punctuation is dropped, lower case, white space collapsed.
    Canonicalize,
}

/// Cleans a caption as OpenCLIP's tokenizers do, up to the line in which its millionth character stands: a row holds far
/// fewer, and nobody's caption may take minutes.
pub(crate) fn clean(text: &str, how: Clean) -> String {
    let text = head(text);
    let fixed = if needs_fixing(text) {
        Cow::Owned(fix_text(text))
    } else {
        Cow::Borrowed(text)
    };
    let once = unescape(&fixed);
    let plain = unescape(&once);
    match how {
        Clean::Lower => lower(collapse(&plain)),
        Clean::Whitespace => collapse(&plain),
        Clean::Canonicalize => {
            let kept = plain.chars().filter(|c| *c == '_' || !c.is_ascii_punctuation());
            let spaced: String = kept.map(|c| if c == '_' { ' ' } else { c }).collect();
            collapse(&lower(spaced))
        }
    }
}

/// Words with single spaces between them.
fn collapse(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split(is_space).filter(|w| !w.is_empty()) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

fn lower(mut text: String) -> String {
    if text.is_ascii() {
        text.make_ascii_lowercase();
        return text;
    }
    known_parts(&text, &|part| part.to_lowercase())
}

/// Changes what lies between characters that came after Unicode 14, which Python 3.11 takes for unassigned.
fn known_parts(text: &str, change: &dyn Fn(&str) -> String) -> String {
    static NEW: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(NEWER).ok());
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for found in NEW.iter().flat_map(|new| new.find_iter(text)) {
        out.push_str(&change(&text[done..found.start()]));
        out.push_str(found.as_str());
        done = found.end();
    }
    out.push_str(&change(&text[done..]));
    out
}

/// The lines up to the millionth character; a line that is longer is cut where `ftfy` would cut it.
fn head(text: &str) -> &str {
    if text.len() <= LINE_CHARS_MAX {
        return text;
    }
    let Some((limit, _)) = text.char_indices().nth(LINE_CHARS_MAX) else {
        return text;
    };
    let line_start = text[..limit].rfind('\n').map_or(0, |at| at + 1);
    let line_end = text[limit..].find('\n').map_or(text.len(), |at| limit + at + 1);
    let cut = text[line_start..line_end].char_indices().nth(LINE_CHARS_MAX);
    &text[..cut.map_or(line_end, |(at, _)| line_start + at)]
}

/// Whether `ftfy` could change anything: printable ASCII without entities passes through it untouched.
fn needs_fixing(text: &str) -> bool {
    !text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'&')
}

/// What Python's `str.split` takes for white space: Unicode's, and four separators of the ASCII control range.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `ftfy.fix_text`: line by line, entities as long as no line so far held a `<`.
fn fix_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut entities = true;
    let mut rest = text;
    while !rest.is_empty() {
        let mut end = rest.find('\n').map_or(rest.len(), |at| at + 1);
        // Counting is for what could be too long only.
        if end > LINE_CHARS_MAX {
            end = rest
                .char_indices()
                .nth(LINE_CHARS_MAX)
                .map_or(end, |(at, _)| at.min(end));
        }
        let (line, after) = rest.split_at(end);
        entities &= !line.contains('<');
        out.push_str(&fix_line(line, entities));
        rest = after;
    }
    out
}

/// `ftfy.fix_and_explain`: every repair in its order, until none changes anything.
fn fix_line(line: &str, entities: bool) -> String {
    let mut text = line.to_owned();
    for _ in 0..ROUNDS_MAX {
        let plain = if entities {
            named_entities(&text)
        } else {
            Cow::Borrowed(&*text)
        };
        let decoded = mojibake::fix_encoding(&plain);
        let controlled = mojibake::fix_c1_controls(&decoded);
        let fixed = without_terminal_escapes(&usual_characters(&controlled)).into_owned();
        let kept: String = fixed.chars().filter(|ch| !is_control(*ch)).collect();
        let fixed = match is_nfc_quick(kept.chars()) {
            IsNormalized::Yes => kept,
            _ => known_parts(&kept, &|part| part.nfc().collect()),
        };
        if fixed == text {
            break;
        }
        text = fixed;
    }
    text
}

static USUAL: LazyLock<BTreeMap<char, &'static str>> =
    LazyLock::new(|| LIGATURES.iter().chain(&WIDTHS).copied().collect());

/// Ligatures to letters, full and half width to the usual one, curly quotes to straight ones, line breaks to line feeds.
fn usual_characters(text: &str) -> Cow<'_, str> {
    if text.is_ascii() && !text.contains('\r') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut before = '\0';
    for ch in text.chars() {
        match ch {
            '\n' if before == '\r' => {}
            '\r' | '\u{2028}' | '\u{2029}' | '\u{85}' => out.push('\n'),
            '\u{2bc}' | '\u{2018}'..='\u{201b}' => out.push('\''),
            '\u{201c}'..='\u{201f}' => out.push('"'),
            _ if ch.is_ascii() => out.push(ch),
            // The one ligature whose letters hold a character that is replaced again.
            '\u{149}' => out.push_str("'n"),
            _ => match USUAL.get(&ch) {
                Some(usual) => out.push_str(usual),
                None => out.push(ch),
            },
        }
        before = ch;
    }
    Cow::Owned(out)
}

/// `chardata.CONTROL_CHARS`.
fn is_control(ch: char) -> bool {
    matches!(ch, '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
}

/// Entities that end with a semicolon, those of lower case in capitals too. (`fixes.unescape_html`)
fn named_entities(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = match entity(rest).map(|entity| (entity.len(), meaning(entity))) {
            Some((length, Some(value))) => {
                out.push_str(&value);
                length
            }
            Some((length, None)) => {
                out.push_str(&rest[..length]);
                length
            }
            None => {
                out.push('&');
                1
            }
        };
        rest = &rest[taken..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The `&name;` or `&#number;` that `text` begins with, of 1 to 24 letters and digits.
fn entity(text: &str) -> Option<&str> {
    let hash = usize::from(text.as_bytes().get(1) == Some(&b'#'));
    let start = 1 + hash;
    let length = text[start..].bytes().take_while(u8::is_ascii_alphanumeric).count();
    let end = start + length;
    ((1..=24).contains(&length) && text.as_bytes().get(end) == Some(&b';')).then(|| &text[..=end])
}

fn meaning(entity: &str) -> Option<String> {
    if entity.starts_with("&#") {
        let value = unescape(entity).into_owned();
        return (!value.contains(';')).then_some(value);
    }
    let name = &entity[1..entity.len() - 1];
    if let Some(value) = html::known(name) {
        return Some(value);
    }
    let lower = name.to_ascii_lowercase();
    let is_upper = name.to_ascii_uppercase() == name && lower != name;
    // What reads as an entity without its semicolon, like `&AMPX;`, is left to those who take such.
    if !is_upper || unescape(entity) != entity {
        return None;
    }
    html::known(&lower).map(|value| value.to_uppercase())
}

/// Drops ANSI colour codes (`ESC [ 3 1 m`).
fn without_terminal_escapes(text: &str) -> Cow<'_, str> {
    let mut parts = text.split("\u{1b}[");
    let first = parts.next().unwrap_or_default();
    if first.len() == text.len() {
        return Cow::Borrowed(text);
    }
    let mut out = first.to_owned();
    for part in parts {
        // Any script's digits, as Python has it.
        let code = part.trim_start_matches(|c: char| c == ';' || is_digit(c));
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

fn is_digit(c: char) -> bool {
    static DIGIT: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\d$").ok());
    c.is_ascii_digit() || (!c.is_ascii() && DIGIT.as_ref().is_some_and(|d| d.is_match(c.encode_utf8(&mut [0; 4]))))
}
