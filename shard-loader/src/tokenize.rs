//! Captions to ids: CLIP's byte pair encoding, or a tokenizer that a file describes, with OpenCLIP's cleaning and cutting.
//!
//! Ids of CLIP's own equal those of open_clip 3.3.0 on Python 3.11 (ftfy 6.3.1, Unicode 14); `tests/peers/captions.py` compares. Known
//! exceptions, with their causes:
//! - letters and numbers that came with Unicode 17 or later: Python's regex module knows them as such, Rust's not yet;
//! - a caption of more than a million characters, of which only the lines up to there are looked at, and a word of more than
//!   16 KiB, which is cut there: both would let one caption take minutes;
//! - of a caption of more than 4,096 bytes a mask draws among the ids of the first 4,096 words.

mod file;
mod mask;

pub use file::{FileTokenizer, Special};
pub use mask::{Choose, Mask, masked};

use crate::clean::{Clean, clean};
use argosy_common::hash::digest64;
use argosy_common::rng::{Draws, Purpose};
use instant_clip_tokenizer::Token;
use regex::Regex;
use std::sync::LazyLock;

/// Entries of the only vocabulary there is.
pub const VOCABULARY: u32 = 49_408;
/// Cleaned captions longer than this many bytes are first cut to the words that a row can hold.
const ENCODED_BYTES_MAX: usize = 4_096;
/// Words that a mask draws among.
const MASKED_WORDS_MAX: usize = 4_096;
/// Bytes of a word that are looked at; merging pairs takes time that grows with their square.
const WORD_BYTES_MAX: usize = 16 << 10;
/// Start of text.
pub const START: i32 = 49_406;
/// End of text; the largest id, which is how the model finds it.
pub const END: i32 = 49_407;

/// OpenCLIP's pattern for words, spelled out where its indifference to case reaches further than the crate's: the long s is
/// an s, and U+0345, whose other cases are letters, belongs to no word.
#[allow(clippy::expect_used, reason = "the pattern is a constant and every test compiles it")]
static WORDS: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"<[sſ]tart_of_text>|<end_of_text>|'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}\u{345}]+";
    Regex::new(pattern).expect("a constant")
});

/// Words that only the long s makes one, with the ids of their bytes' pairs.
const LONG_S_WORDS: [(&str, &[i32]); 2] = [
    ("'ſ", &[6, 129, 379]),
    ("<ſtart_of_text>", &[27, 129, 123, 16707, 62, 684, 62, 18169, 285]),
];

/// Makes tokens of captions. Shared between threads; building one takes some 20 ms.
pub struct Tokenizer {
    kind: Kind,
    context_length: usize,
}

enum Kind {
    /// CLIP's own.
    Clip {
        pairs: instant_clip_tokenizer::Tokenizer,
        clean: Clean,
        mask: Option<Mask>,
    },
    File(Box<FileTokenizer>),
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("context_length", &self.context_length)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// CLIP's own tokenizer for rows of `context_length` tokens, at least 2 (start and end).
    #[must_use]
    pub fn new(context_length: usize) -> Self {
        Self::clip(context_length, Clean::Lower, None)
    }

    /// The same with another cleaning (its vocabulary has lower case only), and with a mask where captions are too long.
    #[must_use]
    pub fn clip(context_length: usize, clean: Clean, mask: Option<Mask>) -> Self {
        let pairs = instant_clip_tokenizer::Tokenizer::new();
        Self {
            kind: Kind::Clip { pairs, clean, mask },
            context_length: context_length.max(2),
        }
    }

    /// A tokenizer that was read from a file.
    #[must_use]
    pub fn of_file(file: FileTokenizer) -> Self {
        Self {
            context_length: file.context_length(),
            kind: Kind::File(Box::new(file)),
        }
    }

    /// Tokens of a row.
    #[must_use]
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Ids that it makes: all are below.
    #[must_use]
    pub fn vocabulary(&self) -> u32 {
        match &self.kind {
            Kind::Clip { .. } => VOCABULARY,
            Kind::File(file) => file.vocabulary(),
        }
    }

    /// Writes the row of `text` (start, tokens, end, zeros, where it is CLIP's own) into `out`, `[context_length]`; gives the
    /// number of tokens up to and with the first of the largest ids, which is CLIP's end; 0 where a file's tokenizer has no
    /// ids for the text. A longer caption is cut and its last token becomes the end.
    ///
    /// `<start_of_text>` and `<end_of_text>` inside a caption become those tokens, as in OpenCLIP; what follows an end is in
    /// the row but not in the number, since OpenCLIP takes a text's feature at the first end.
    ///
    /// What a mask draws depends on the text alone; in training it is drawn by [`Tokenizer::row_drawn`].
    pub fn row(&self, text: &str, out: &mut [i32]) -> u16 {
        self.row_drawn(
            text,
            || Draws::new(digest64(text.as_bytes()), Purpose::TokenMask, 0, 0),
            out,
        )
    }

    /// As [`Tokenizer::row`], with `draws` for what a mask draws.
    pub fn row_drawn(&self, text: &str, draws: impl FnOnce() -> Draws, out: &mut [i32]) -> u16 {
        let context = self.context_length.min(out.len());
        let Kind::Clip {
            pairs,
            clean: how,
            mask,
        } = &self.kind
        else {
            return self.file_row(text, out);
        };
        let mut ids = Vec::with_capacity(2 * self.context_length);
        ids.push(START);
        let words = if mask.is_some() {
            MASKED_WORDS_MAX
        } else {
            self.context_length
        };
        encode(pairs, &clean(text, *how), words, &mut ids);
        if let Some(mask) = mask.filter(|_| ids.len() > context.saturating_sub(1)) {
            let kept = masked(&ids[1..], context.saturating_sub(2), mask, &mut draws());
            ids.truncate(1);
            ids.extend(kept);
        }
        ids.push(END);
        if ids.len() > context {
            ids.truncate(context);
            if let Some(last) = ids.last_mut() {
                *last = END;
            }
        }
        let (row, rest) = out.split_at_mut(ids.len());
        row.copy_from_slice(&ids);
        rest.fill(0);
        ids.iter().position(|id| *id == END).map_or(ids.len(), |at| at + 1) as u16
    }

    fn file_row(&self, text: &str, out: &mut [i32]) -> u16 {
        let Kind::File(file) = &self.kind else { return 0 };
        let Some(ids) = file.ids(text).filter(|ids| ids.len() == out.len()) else {
            out.fill(0);
            return 0;
        };
        out.copy_from_slice(&ids);
        let largest = ids.iter().copied().max().unwrap_or_default();
        ids.iter().position(|id| *id == largest).map_or(0, |at| at + 1) as u16
    }
}

/// Ids of a clean text's words; of a long text's first `words` ones.
fn encode(pairs: &instant_clip_tokenizer::Tokenizer, text: &str, words: usize, ids: &mut Vec<i32>) {
    let short;
    let needed = if text.len() > ENCODED_BYTES_MAX {
        short = first_words(text, words);
        &short
    } else {
        text
    };
    let mut tokens = Vec::with_capacity(64);
    if !needed.contains(['ſ', '\u{345}']) {
        pairs.encode(needed, &mut tokens);
        ids.extend(tokens.iter().map(|token| i32::from(Token::to_u16(*token))));
        return;
    }
    for word in WORDS.find_iter(needed) {
        if let Some((_, known)) = LONG_S_WORDS.iter().find(|(long, _)| *long == word.as_str()) {
            ids.extend_from_slice(known);
            continue;
        }
        tokens.clear();
        pairs.encode(word.as_str(), &mut tokens);
        ids.extend(tokens.iter().map(|token| i32::from(Token::to_u16(*token))));
    }
}

/// The first `count` words. Each gives at least one token, so what lies behind them is cut off anyway.
fn first_words(text: &str, count: usize) -> String {
    let mut out = String::new();
    let mut end = 0;
    for word in WORDS.find_iter(text).take(count) {
        out.push_str(&text[end..word.start()]);
        let length = word.as_str().floor_char_boundary(WORD_BYTES_MAX);
        out.push_str(&word.as_str()[..length]);
        end = word.end();
    }
    out
}

/// Whether a caption holds anything to train on: after white space is gone, something is left.
#[must_use]
pub fn is_empty(text: &str) -> bool {
    text.trim().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str, context: usize) -> (Vec<i32>, u16) {
        let mut out = vec![-1; context];
        let length = Tokenizer::new(context).row(text, &mut out);
        (out, length)
    }

    #[test]
    fn row_short_caption_is_padded_with_zeros() {
        assert_eq!(row("Hi there", 6), (vec![START, 1883, 997, END, 0, 0], 4));
        assert_eq!(row("", 3), (vec![START, END, 0], 2));
    }

    #[test]
    fn row_long_caption_is_cut_and_still_ends() {
        let (ids, length) = row(&"cat ".repeat(200), 77);
        assert_eq!((ids[0], ids[76], length), (START, END, 77));
        assert_eq!(row("a b c d", 2), (vec![START, END], 2));
    }

    #[test]
    fn row_caption_of_ten_megabytes_takes_no_longer_than_its_first_words() {
        let started = std::time::Instant::now();
        let words = row(&"cat ".repeat(2_500_000), 77);
        assert_eq!(words, row(&"cat ".repeat(200), 77));
        let (ids, length) = row(&"é".repeat(5_000_000), 77);
        assert_eq!((ids[76], length), (END, 77));
        assert_eq!(row(&" \n".repeat(5_000_000), 77).1, 2);
        // Generous: merging all pairs of such a word would take hours.
        assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
    }

    #[test]
    fn row_length_counts_to_the_first_end() {
        let inside = row("hi <end_of_text> there", 8);
        assert_eq!(inside, (vec![START, 1883, END, 997, END, 0, 0, 0], 3));
        // The same when the row is cut behind it.
        assert_eq!(row("hi <end_of_text> there", 4), (vec![START, 1883, END, END], 3));
    }
}
