//! UTF-8 as some programs write it: CESU-8 (characters beyond U+FFFF as two encoded surrogates) and Java's (NUL as C0 80).
//!
//! As ftfy's codec `utf-8-variants` reads them, with its ways at the end of a line: its patterns take an end, and an end
//! before a last line feed, for any byte that is missing.

/// Decodes; `None` when it is no text in either way.
pub(super) fn decode(bytes: &[u8]) -> Option<String> {
    let mut out = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while !rest.is_empty() {
        let cut = (0..rest.len())
            .find(|at| is_special(&rest[*at..]))
            .unwrap_or(rest.len());
        out.push_str(std::str::from_utf8(&rest[..cut]).ok()?);
        rest = &rest[cut..];
        match rest.first() {
            None => break,
            Some(0xc0) if rest.len() > 1 => {
                out.push('\0');
                rest = &rest[2..];
            }
            Some(0xed) if matches_pair(rest) && rest.len() >= 6 => {
                let bits = |i: usize, mask: u8, shift: u32| u32::from(rest[i] & mask) << shift;
                let number = bits(1, 0xf, 16) + bits(2, 0x3f, 10) + bits(4, 0xf, 6) + bits(5, 0x3f, 0);
                out.push(char::from_u32(number + 0x1_0000)?);
                rest = &rest[6..];
            }
            // A lone surrogate, or bytes that lack.
            Some(_) => return None,
        }
    }
    Some(out)
}

/// Whether what begins here is read differently from UTF-8.
fn is_special(bytes: &[u8]) -> bool {
    match bytes.first() {
        Some(0xc0) => follows(bytes, 1, 0x80, 0x80),
        Some(0xed) => matches_pair(bytes) || (follows(bytes, 1, 0xa0, 0xbf) && follows(bytes, 2, 0x80, 0xbf)),
        _ => false,
    }
}

/// Two surrogates, possibly cut.
fn matches_pair(bytes: &[u8]) -> bool {
    let ranges = [
        (0xed, 0xed),
        (0xa0, 0xaf),
        (0x80, 0xbf),
        (0xed, 0xed),
        (0xb0, 0xbf),
        (0x80, 0xbf),
    ];
    let mut at = 0;
    for (low, high) in ranges {
        if bytes.get(at).is_some_and(|b| (low..=high).contains(b)) {
            at += 1;
        } else if at == 0 || !is_end(bytes, at) {
            return false;
        }
    }
    true
}

/// Whether byte `at` is in `low..=high` or lacks.
fn follows(bytes: &[u8], at: usize, low: u8, high: u8) -> bool {
    // Once one lacks, all behind it do.
    let at = (1..=at).find(|i| is_end(bytes, *i)).unwrap_or(at);
    bytes.get(at).is_some_and(|b| (low..=high).contains(b)) || is_end(bytes, at)
}

fn is_end(bytes: &[u8], at: usize) -> bool {
    at == bytes.len() || (at + 1 == bytes.len() && bytes[at] == b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_kin_of_utf8_gives_their_text() {
        assert_eq!(decode(b"\xed\xa0\xbd\xed\xb8\x8d!").as_deref(), Some("\u{1f60d}!"));
        assert_eq!(decode(b"a\xc0\x80b").as_deref(), Some("a\0b"));
        assert_eq!(decode("한국어".as_bytes()).as_deref(), Some("한국어"));
    }

    #[test]
    fn decode_lone_or_cut_surrogates_give_nothing() {
        for bytes in [
            &b"\xed\xa0\xbd"[..],
            b"\xed\xa0\xbdabc",
            b"\xed\xb8\x8d",
            b"\xed",
            b"\xc0",
            b"\xed\xa0",
            b"x\xff",
        ] {
            assert_eq!(decode(bytes), None, "{bytes:x?}");
        }
    }
}
