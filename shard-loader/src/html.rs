//! HTML entities, by the rules of Python's `html.unescape` (those of HTML 5), which OpenCLIP applies twice.

use crate::clean::PAIRS;
use std::borrow::Cow;

/// Names that stand for their character even without a semicolon, also as the beginning of a longer word.
const LEGACY: &str = "AElig AMP Aacute Acirc Agrave Aring Atilde Auml COPY Ccedil ETH Eacute Ecirc Egrave Euml GT Iacute Icirc \
    Igrave Iuml LT Ntilde Oacute Ocirc Ograve Oslash Otilde Ouml QUOT REG THORN Uacute Ucirc Ugrave Uuml \
    Yacute aacute acirc acute aelig agrave amp aring atilde auml brvbar ccedil cedil cent copy curren deg \
    divide eacute ecirc egrave eth euml frac12 frac14 frac34 gt iacute icirc iexcl igrave iquest iuml laquo lt \
    macr micro middot nbsp not ntilde oacute ocirc ograve ordf ordm oslash otilde ouml para plusmn pound quot \
    raquo reg sect shy sup1 sup2 sup3 szlig thorn times uacute ucirc ugrave uml uuml yacute yen yuml";

/// What the numbers 128 to 159 stand for: browsers read them as Windows-1252.
#[rustfmt::skip]
const WINDOWS_1252: [char; 32] = [
    '\u{20ac}', '\u{81}', '\u{201a}', '\u{192}', '\u{201e}', '\u{2026}', '\u{2020}', '\u{2021}',
    '\u{2c6}', '\u{2030}', '\u{160}', '\u{2039}', '\u{152}', '\u{8d}', '\u{17d}', '\u{8f}',
    '\u{90}', '\u{2018}', '\u{2019}', '\u{201c}', '\u{201d}', '\u{2022}', '\u{2013}', '\u{2014}',
    '\u{2dc}', '\u{2122}', '\u{161}', '\u{203a}', '\u{153}', '\u{9d}', '\u{17e}', '\u{178}',
];

/// Longest name that is looked at, in characters.
const NAME_CHARS_MAX: usize = 32;

/// Replaces entities by what they stand for; unknown ones stay.
pub(crate) fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let taken = if after.starts_with('#') {
            number(after, &mut out)
        } else {
            name(after, &mut out)
        };
        if taken == 0 {
            out.push('&');
        }
        rest = &after[taken..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Reads `#123;` or `#x1f;`; gives the bytes taken, 0 when it is neither.
fn number(text: &str, out: &mut String) -> usize {
    let hex = matches!(text.as_bytes().get(1), Some(b'x' | b'X'));
    let (start, radix) = if hex { (2, 16) } else { (1, 10) };
    let digits = text[start..]
        .bytes()
        .take_while(|b| char::from(*b).is_digit(radix))
        .count();
    if digits == 0 {
        return 0;
    }
    let end = start + digits;
    // Too many digits are a number beyond Unicode like any other.
    let value = u32::from_str_radix(&text[start..end], radix).unwrap_or(u32::MAX);
    match value {
        0x80..=0x9f => out.push(WINDOWS_1252[value as usize - 0x80]),
        0 => out.push(char::REPLACEMENT_CHARACTER),
        1..=8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef => {}
        _ if value <= 0x10_ffff && value & 0xfffe == 0xfffe => {}
        _ => out.push(char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER)),
    }
    end + usize::from(text[end..].starts_with(';'))
}

/// Reads a name; gives the bytes taken, 0 when nobody knows it.
fn name(text: &str, out: &mut String) -> usize {
    let is_part = |c: &char| !matches!(c, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';');
    let length: usize = text
        .chars()
        .take_while(is_part)
        .take(NAME_CHARS_MAX)
        .map(char::len_utf8)
        .sum();
    let word = &text[..length];
    if text[length..].starts_with(';')
        && let Some(value) = known(word)
    {
        out.push_str(&value);
        return length + 1;
    }
    // The longest legacy name that the word begins with; two characters at least.
    let legacy = LEGACY
        .split(' ')
        .filter(|l| word.starts_with(l))
        .max_by_key(|l| l.len());
    match legacy.and_then(|l| known(l).map(|value| (l.len(), value))) {
        Some((taken, value)) => {
            out.push_str(&value);
            taken
        }
        None => 0,
    }
}

/// The text of an entity by its name.
pub(crate) fn known(name: &str) -> Option<String> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    if let Ok(at) = PAIRS.binary_search_by_key(&name, |(known, _)| known) {
        return Some(PAIRS[at].1.to_owned());
    }
    let entity = format!("&{name};");
    let value = html_escape::decode_html_entities(&entity).into_owned();
    (value != entity).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unescape_known_entities_give_their_text() {
        for (text, expected) in [
            ("fish &amp chips", "fish & chips"),
            ("&notit; &notin;", "\u{ac}it; \u{2209}"),
            ("&#150;&#x41;&#66", "\u{2013}AB"),
            (
                "&#0;&#xD800;&#1114112;&#99999999999;",
                "\u{fffd}\u{fffd}\u{fffd}\u{fffd}",
            ),
            ("&#1;&#xfffe;x", "x"),
            ("&nope; & &; &# &#x &é;", "&nope; & &; &# &#x &é;"),
            ("&amp;amp;", "&amp;"),
        ] {
            assert_eq!(unescape(text), expected, "{text}");
        }
    }

    #[test]
    fn legacy_names_are_all_known() {
        assert_eq!(LEGACY.split(' ').count(), 106);
        assert!(LEGACY.split(' ').all(|l| known(l).is_some()));
    }
}
