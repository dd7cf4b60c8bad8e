//! CLIP's byte pair encoding with OpenCLIP's cleaning and cutting.

use crate::clean::clean;
use instant_clip_tokenizer::Token;

/// Entries of the only vocabulary there is.
pub const VOCABULARY: u32 = 49_408;
/// Start of text.
pub const START: i32 = 49_406;
/// End of text; the largest id, which is how the model finds it.
pub const END: i32 = 49_407;

/// Makes tokens of captions. Shared between threads; building one takes some 20 ms.
pub struct Tokenizer {
    pairs: instant_clip_tokenizer::Tokenizer,
    context_length: usize,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("context_length", &self.context_length)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// A tokenizer for rows of `context_length` tokens, at least 2 (start and end).
    #[must_use]
    pub fn new(context_length: usize) -> Self {
        Self {
            pairs: instant_clip_tokenizer::Tokenizer::new(),
            context_length: context_length.max(2),
        }
    }

    /// Tokens of a row.
    #[must_use]
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Writes the row of `text` (start, tokens, end, zeros) into `out`, `[context_length]`; gives the number of tokens up to
    /// and with the first end. A longer caption is cut and its last token becomes the end.
    ///
    /// `<start_of_text>` and `<end_of_text>` inside a caption become those tokens, as in OpenCLIP; what follows an end is in
    /// the row but not in the number, since OpenCLIP takes a text's feature at the first end.
    pub fn row(&self, text: &str, out: &mut [i32]) -> u16 {
        let mut tokens = vec![self.pairs.start_of_text()];
        self.pairs.encode(&clean(text), &mut tokens);
        tokens.push(self.pairs.end_of_text());
        let context = self.context_length.min(out.len());
        if tokens.len() > context {
            tokens.truncate(context);
            if let Some(last) = tokens.last_mut() {
                *last = self.pairs.end_of_text();
            }
        }
        out.fill(0);
        for (id, token) in out.iter_mut().zip(&tokens) {
            *id = i32::from(Token::to_u16(*token));
        }
        let end = self.pairs.end_of_text();
        tokens
            .iter()
            .position(|token| *token == end)
            .map_or(tokens.len(), |at| at + 1) as u16
    }
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
    fn row_length_counts_to_the_first_end() {
        let inside = row("hi <end_of_text> there", 8);
        assert_eq!(inside, (vec![START, 1883, END, 997, END, 0, 0, 0], 3));
        // The same when the row is cut behind it.
        assert_eq!(row("hi <end_of_text> there", 4), (vec![START, 1883, END, END], 3));
    }
}
