//! Text that was decoded by the wrong encoding, put right as ftfy 6.3.1's `fix_encoding` does.
//!
//! The idea is ftfy's: where pairs of characters occur that hardly do in honest text, undo one wrong decoding, and again
//! until nothing changes. What looks odd below is what ftfy does; OpenCLIP trains on it.

use super::tables::{BADNESS, CONTINUATION, DETECTOR, ENCODINGS};
use super::variants;
use regex::{Regex, bytes::Regex as BytesRegex};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// UTF-8 that lacks nothing but its bytes A0, which became spaces. (`chardata.ALTERED_UTF8_RE`)
const ALTERED: &str = r"(?-u)[\xc2\xc3\xc5\xce\xd0\xd9] |[\xe2\xe3] [\x80-\x84\x86-\x9f\xa1-\xbf]|[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf] |\xf0 [\x80-\xbf][\x80-\xbf]|\xf0[\x80-\xbf] [\x80-\xbf]|\xf0[\x80-\xbf][\x80-\xbf] ";
/// UTF-8 and CESU-8 of which some bytes were lost: 1A stands for them. (`chardata.LOSSY_UTF8_RE`)
const LOSSY: &str = r"(?-u)[\xc2-\xdf]\x1a|[\xc2-\xc3][?]|\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]|\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]|[\xe0-\xef][\x1a?][\x1a\x80-\xbf]|[\xe0-\xef][\x1a\x80-\xbf][\x1a?]|[\xf0-\xf4][\x1a?][\x1a\x80-\xbf][\x1a\x80-\xbf]|[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]|[\xf0-\xf4][\x1a\x80-\xbf][\x1a\x80-\xbf][\x1a?]|\x1a";

/// Rounds after which a text that never comes to rest is left as it is; honest ones take two or three.
const ROUNDS_MAX: usize = 32;

/// One encoding of one byte per character.
struct Encoding {
    name: &'static str,
    upper: BTreeMap<char, u8>,
}

struct Patterns {
    badness: Regex,
    detector: Regex,
    continuation: Regex,
    altered: BytesRegex,
    lossy: BytesRegex,
    encodings: Vec<Encoding>,
}

#[allow(
    clippy::expect_used,
    reason = "the patterns are constants and every test compiles them"
)]
static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| {
    let text = |pattern: &str| Regex::new(pattern).expect("a constant");
    let bytes = |pattern: &str| BytesRegex::new(pattern).expect("a constant");
    Patterns {
        badness: text(BADNESS),
        detector: text(DETECTOR),
        continuation: text(CONTINUATION),
        altered: bytes(ALTERED),
        lossy: bytes(LOSSY),
        encodings: ENCODINGS
            .iter()
            .map(|(name, upper)| Encoding::new(name, upper))
            .collect(),
    }
});

impl Encoding {
    fn new(name: &'static str, upper: &str) -> Self {
        let mut map = BTreeMap::new();
        for (ch, byte) in upper.chars().zip(0x80u8..=0xff) {
            // Where two bytes give one character, Python's table keeps the last.
            map.insert(ch, byte);
        }
        Self { name, upper: map }
    }

    /// A "sloppy" one gives bytes that mean nothing their Latin-1 character, and 1A the replacement character.
    fn is_sloppy(&self) -> bool {
        self.name.starts_with("sloppy")
    }

    /// The bytes that `text` was, had it been decoded by this encoding.
    fn encode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars()
            .map(|ch| match ch {
                '\u{1a}' if self.is_sloppy() => None,
                '\u{fffd}' if self.is_sloppy() => Some(0x1a),
                '\0'..='\u{7f}' => Some(ch as u8),
                _ => self.upper.get(&ch).copied(),
            })
            .collect()
    }
}

/// Whether `text` holds pairs of characters that speak of mojibake.
fn is_bad(text: &str) -> bool {
    PATTERNS.badness.is_match(text)
}

/// Undoes wrong decodings until there is none.
pub(super) fn fix_encoding(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    for _ in 0..ROUNDS_MAX {
        match fix_once(&text) {
            Some(fixed) if fixed != text => text = Cow::Owned(fixed),
            _ => break,
        }
    }
    text
}

/// One step; `None` leaves the text as it is.
fn fix_once(text: &str) -> Option<String> {
    if text.is_ascii() || !is_bad(text) {
        return None;
    }
    let mut was_latin_1 = false;
    for encoding in &PATTERNS.encodings {
        let Some(bytes) = encoding.encode(text) else { continue };
        was_latin_1 |= encoding.name == "latin-1";
        if let Some(fixed) = decode(encoding, bytes) {
            return Some(fixed);
        }
    }
    let fixed = decode_inconsistent_utf8(text);
    if fixed != text {
        return Some(fixed);
    }
    // Latin-1 that was meant to be Windows-1252: C1 characters, which nobody wants. ftfy means to leave text alone that
    // both encodings have, but asks for a name that it never notes down.
    if was_latin_1 {
        let bytes = text.chars().map(|ch| windows_1252(ch, false));
        if let Some(fixed) = bytes.collect::<Option<String>>()
            && fixed != text
        {
            return Some(fixed);
        }
    }
    Some(fix_c1_controls(text).into_owned())
}

/// Takes the bytes for UTF-8 or one of its kin.
fn decode(encoding: &Encoding, mut bytes: Vec<u8>) -> Option<String> {
    // In MacRoman an en dash before a space would match.
    if encoding.name != "macroman" && PATTERNS.altered.is_match(&bytes) {
        bytes = restore_byte_a0(&bytes);
    }
    if encoding.is_sloppy() {
        bytes = PATTERNS.lossy.replace_all(&bytes, "\u{fffd}".as_bytes()).into_owned();
    }
    if bytes.contains(&0xed) || bytes.contains(&0xc0) {
        variants::decode(&bytes)
    } else {
        String::from_utf8(bytes).ok()
    }
}

/// Makes spaces that must have been byte A0 so again. "Ã la" was "à la" and keeps its space; "Ã s" and some other
/// Portuguese words do not.
fn restore_byte_a0(bytes: &[u8]) -> Vec<u8> {
    let mut spaced = Vec::with_capacity(bytes.len() + 8);
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        if let Some(word) = rest.strip_prefix(b"\xc3 ")
            && ![&b" "[..], b"quele", b"quela", b"quilo", b"s "]
                .iter()
                .any(|w| word.starts_with(w))
        {
            spaced.extend_from_slice(b"\xc3\xa0 ");
            rest = word;
        } else {
            spaced.push(*first);
            rest = after;
        }
    }
    let replaced = PATTERNS
        .altered
        .replace_all(&spaced, |found: &regex::bytes::Captures<'_>| {
            let altered = found[0].iter().map(|b| if *b == b' ' { 0xa0 } else { *b });
            altered.collect::<Vec<u8>>()
        });
    replaced.into_owned()
}

/// Mends passages that look like UTF-8 inside text that as a whole is not.
fn decode_inconsistent_utf8(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut done, mut at) = (0, 0);
    while let Some(found) = PATTERNS.detector.find_at(text, at) {
        // A passage that goes on from a character of its own kind is part of a larger garble.
        let before = text[..found.start()].chars().next_back();
        if before.is_some_and(|ch| PATTERNS.continuation.is_match(ch.encode_utf8(&mut [0; 4]))) {
            let first = found.as_str().chars().next().map_or(1, char::len_utf8);
            at = found.start() + first;
            continue;
        }
        out.push_str(&text[done..found.start()]);
        let passage = found.as_str();
        // Shorter than the whole, so that this comes to an end.
        if passage.len() < text.len() && is_bad(passage) {
            out.push_str(&fix_encoding(passage));
        } else {
            out.push_str(passage);
        }
        (done, at) = (found.end(), found.end());
    }
    out.push_str(&text[done..]);
    out
}

/// What a Latin-1 character is in Windows-1252. Five bytes are nothing there; `sloppy` keeps them.
fn windows_1252(ch: char, sloppy: bool) -> Option<char> {
    let upper = ENCODINGS[1].1;
    match ch {
        '\u{81}' | '\u{8d}' | '\u{8f}' | '\u{90}' | '\u{9d}' => sloppy.then_some(ch),
        '\u{80}'..='\u{9f}' => upper.chars().nth(ch as usize - 0x80),
        _ => Some(ch),
    }
}

/// C1 control characters become what Windows-1252 has in their places, as in browsers.
pub(super) fn fix_c1_controls(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|ch| ('\u{80}'..='\u{9f}').contains(&ch)) {
        return Cow::Borrowed(text);
    }
    text.chars().map(|ch| windows_1252(ch, true).unwrap_or(ch)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_have_128_characters_each() {
        for (name, upper) in ENCODINGS {
            assert_eq!(upper.chars().count(), 128, "{name}");
        }
        assert_eq!(ENCODINGS[1].0, "sloppy-windows-1252");
    }

    #[test]
    fn fix_encoding_mojibake_becomes_text_and_text_stays() {
        for (text, expected) in [
            ("schÃ¶n", "schön"),
            ("âœ” No problems", "✔ No problems"),
            ("РџСЂРёРІРµС‚ вЂ“ РјРёСЂ", "Привет – мир"),
            ("voilÃ le travail", "voilà le travail"),
            ("naïve café, Ελληνικά, Привет", "naïve café, Ελληνικά, Привет"),
        ] {
            assert_eq!(fix_encoding(text), expected);
        }
    }

    #[test]
    fn fix_encoding_never_ending_text_ends() {
        // Each round finds something in what the last one left.
        let mut text = "é".to_owned();
        for _ in 0..12 {
            text = text.bytes().map(char::from).collect();
        }
        assert_eq!(fix_encoding(&text), "é");
    }
}
