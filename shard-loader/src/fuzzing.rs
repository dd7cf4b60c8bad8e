//! What must hold for any bytes: the targets of `shard-loader/fuzz`, which tests replay on a committed corpus.
//!
//! Each takes what a stranger could put into a shard or an index file and panics when a promise is broken.

use crate::decode::{Reduction, Rgb, decode, decode_reduced};
use crate::index::Index;
use crate::sample::{Grouper, Keys};
use crate::tar::{NAME_BYTES_MAX, Walker};
use crate::tokenize::{END, START, Tokenizer, VOCABULARY};
use crate::transform::{Resize, Transformer};
use argosy_common::ids::SampleId;
use bytes::Bytes;
use std::sync::LazyLock;

/// Pixels that a fuzzed picture may claim; small, so that many are tried.
const PIXELS_MAX: u64 = 1 << 20;

/// An archive: members lie inside it and follow each other, names are bounded, samples are made of members.
pub fn tar(bytes: &[u8]) {
    let size = bytes.len() as u64;
    let keys = Keys::new("jpg;png;jpeg;webp", "txt");
    let (mut grouper, mut groups, mut last) = (Grouper::default(), Vec::new(), 0);
    for member in Walker::new(Bytes::copy_from_slice(bytes)) {
        let Ok(member) = member else { break };
        assert!(member.start >= last, "members overlap");
        assert!(
            member.data.start <= member.data.end && member.data.end <= size,
            "{member:?}"
        );
        // A byte that is no text becomes a character of three.
        assert!(
            member.name.len() <= 3 * (NAME_BYTES_MAX + 1),
            "a name of {} bytes",
            member.name.len()
        );
        last = member.data.end;
        groups.extend(grouper.push(&member));
    }
    groups.extend(grouper.finish());
    for group in groups {
        let texts = keys.texts().iter().map(|text| group.get(text.suffix()));
        for range in texts.chain([group.image(&keys)]).flatten() {
            assert!(group.start <= range.start && range.end <= size, "{range:?}");
        }
    }
}

/// What an index file holds behind its header: refused, or every answer it gives is inside what it says of itself.
pub fn index(payload: &[u8]) {
    let Ok(index) = Index::sealed(payload) else { return };
    let _ = index.keys();
    for (source, shape) in index.to_shape().iter().enumerate() {
        for (shard, rows) in shape.shard_rows.iter().enumerate().take(64) {
            for row in [0, rows / 2, rows.saturating_sub(1), *rows] {
                let Ok(place) = index.place(SampleId {
                    source: source as u16,
                    shard: shard as u32,
                    row,
                }) else {
                    continue;
                };
                assert!(
                    place.is_none_or(|p| p.range.start <= p.range.end && p.range.end <= p.shard_bytes),
                    "row {row} of shard {shard} lies outside of it"
                );
            }
        }
    }
}

/// A caption: a row that begins, ends and is padded as the model expects, the same one each time.
pub fn caption(bytes: &[u8]) {
    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::new(77));
    let text = String::from_utf8_lossy(bytes);
    let mut row = [-1; 77];
    let length = usize::from(TOKENIZER.row(&text, &mut row));
    assert_eq!((row[0], row[length - 1]), (START, END));
    assert!(row.iter().all(|id| (0..VOCABULARY as i32).contains(id)), "{row:?}");
    assert!(!row[..length - 1].contains(&END), "an end before the end");
    let mut again = [-1; 77];
    assert_eq!((usize::from(TOKENIZER.row(&text, &mut again)), again), (length, row));
}

/// A picture: refused for a reason, or as many bytes as it says, the same ones whatever the buffer held before.
pub fn picture(bytes: &[u8]) {
    let mut first = Rgb::default();
    let result = decode(bytes, PIXELS_MAX, &mut first);
    let mut second = Rgb {
        pixels: vec![0xa5; 1000],
        ..Rgb::default()
    };
    assert_eq!(decode(bytes, PIXELS_MAX, &mut second), result);
    if result.is_err() {
        return;
    }
    assert_eq!(first, second);
    assert_eq!(first.pixels.len(), first.width * first.height * 3);
    assert!((1..=PIXELS_MAX).contains(&((first.width * first.height) as u64)));
    let mut out = vec![0; 16 * 16 * 3];
    Transformer::default().evaluate(&first, 16, Resize::default(), &mut out);
    let full = decode_reduced(bytes, PIXELS_MAX, &mut second, |_| Reduction::Half);
    assert!(full.is_err() || full == Ok((first.width, first.height)));
}
