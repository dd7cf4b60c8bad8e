//! A tokenizer described by a `tokenizer.json`, used as OpenCLIP's `HFTokenizer` uses it.

use crate::clean::{Clean, clean};
use crate::error::DataError;
use std::path::Path;
use tokenizers::{PaddingDirection, PaddingParams, PaddingStrategy, Tokenizer, TruncationDirection, TruncationParams};

/// Largest description. That of mT5's 250,000 pieces has 16 MB.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Rows longer than this no text tower has.
const CONTEXT_MAX: usize = 1 << 16;

/// What happens to special tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Special {
    /// Those that the file puts around a text.
    #[default]
    Own,
    /// The same, and separators become 0 (`strip_sep_token`).
    WithoutSeparators,
    /// Beginning, text, end, padding and a class token last (`tokenizer_mode = "clips"`).
    Clips,
}

/// Ids of tokens with a meaning.
#[derive(Clone, Copy, Debug)]
struct Meanings {
    pad: u32,
    separator: Option<u32>,
    begin: u32,
    end: u32,
    class: u32,
}

/// Makes ids by a file's rules.
pub struct FileTokenizer {
    inner: Tokenizer,
    context_length: usize,
    clean: Clean,
    special: Special,
    meanings: Meanings,
}

impl std::fmt::Debug for FileTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileTokenizer")
            .field("context_length", &self.context_length)
            .field("clean", &self.clean)
            .field("special", &self.special)
            .finish_non_exhaustive()
    }
}

impl FileTokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json` beside it where there is one: that says which tokens pad, begin and
    /// end.
    ///
    /// # Errors
    /// Names the file, and what of it is missing or cannot be used.
    pub fn open(file: &Path, context_length: usize, clean: Clean, special: Special) -> Result<Self, DataError> {
        let bad = |why: String| DataError::Config(format!("tokenizer {}: {why}", file.display()));
        let read = |path: &Path| -> Result<Vec<u8>, String> {
            let len = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
            if len > FILE_BYTES_MAX {
                return Err(format!("{len} bytes, at most {FILE_BYTES_MAX} are read"));
            }
            std::fs::read(path).map_err(|e| e.to_string())
        };
        let mut inner = Tokenizer::from_bytes(read(file).map_err(bad)?).map_err(|e| bad(e.to_string()))?;
        let beside = file.with_file_name("tokenizer_config.json");
        let words: serde_json::Value = if beside.is_file() {
            let text = read(&beside).map_err(bad)?;
            serde_json::from_slice(&text).map_err(|e| bad(format!("{}: {e}", beside.display())))?
        } else {
            serde_json::Value::Null
        };
        let meanings = meanings(&inner, &words, special).map_err(bad)?;
        if !(2..=CONTEXT_MAX).contains(&context_length) {
            return Err(bad(format!(
                "rows of {context_length} ids, 2 to {CONTEXT_MAX} expected"
            )));
        }
        cut_and_pad(&mut inner, &words, context_length, special, meanings.pad).map_err(bad)?;
        let this = Self {
            inner,
            context_length,
            clean,
            special,
            meanings,
        };
        // What cannot make ids of nothing makes none of anything.
        if this.ids("").is_none() {
            return Err(bad(format!("it makes no row of {context_length} ids")));
        }
        Ok(this)
    }

    /// Ids of a row.
    #[must_use]
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// All ids are below.
    #[must_use]
    pub fn vocabulary(&self) -> u32 {
        let largest = self.inner.get_vocab(true).into_values().max();
        largest.map_or(0, |id| id.saturating_add(1))
    }

    /// Ids of `text`, `[context_length]`; `None` where the file has no id for some part of it.
    #[must_use]
    pub fn ids(&self, text: &str) -> Option<Vec<i32>> {
        let text = clean(text, self.clean);
        let encoded = self
            .inner
            .encode_fast(text.as_str(), self.special != Special::Clips)
            .ok()?;
        let number = |id: u32| i32::try_from(id).ok();
        let ids: Option<Vec<i32>> = encoded.get_ids().iter().map(|id| number(*id)).collect();
        let ids = match self.special {
            Special::Own => ids?,
            Special::WithoutSeparators => {
                let separator = self.meanings.separator.and_then(number);
                ids?.into_iter()
                    .map(|id| if Some(id) == separator { 0 } else { id })
                    .collect()
            }
            Special::Clips => {
                let room = self.context_length.saturating_sub(3);
                let mut row = vec![number(self.meanings.begin)?];
                row.extend(ids?.into_iter().take(room));
                row.push(number(self.meanings.end)?);
                row.resize(self.context_length - 1, number(self.meanings.pad)?);
                row.push(number(self.meanings.class)?);
                row
            }
        };
        (ids.len() == self.context_length).then_some(ids)
    }
}

fn meanings(inner: &Tokenizer, words: &serde_json::Value, special: Special) -> Result<Meanings, String> {
    // A token is named by a text, or by an object around it.
    let named = |key: &str| {
        let word = words[key].as_str().or_else(|| words[key]["content"].as_str())?;
        inner.token_to_id(word)
    };
    let pad = inner.get_padding().map(|padding| padding.pad_id);
    let pad = named("pad_token").or(pad);
    let pad = pad.ok_or("no padding in it, and no `pad_token` in a tokenizer_config.json beside it")?;
    let separator = named("sep_token").or_else(|| inner.token_to_id("[SEP]"));
    if special == Special::WithoutSeparators && separator.is_none() {
        return Err("strip_sep_token = true, and there is no `sep_token`".into());
    }
    let needed = |key: &str| match (named(key), special) {
        (Some(id), _) => Ok(id),
        (None, Special::Clips) => Err(format!(
            "tokenizer_mode = \"clips\" needs a `{key}` in tokenizer_config.json"
        )),
        (None, _) => Ok(pad),
    };
    Ok(Meanings {
        pad,
        separator,
        begin: needed("bos_token")?,
        end: needed("eos_token")?,
        class: needed("cls_token")?,
    })
}

/// Rows of one length, whatever the file says.
fn cut_and_pad(
    inner: &mut Tokenizer,
    words: &serde_json::Value,
    context: usize,
    special: Special,
    pad: u32,
) -> Result<(), String> {
    let left = |key: &str| words[key] == "left";
    if special == Special::Clips {
        inner.with_padding(None);
        return inner.with_truncation(None).map(drop).map_err(|e| e.to_string());
    }
    // (The crate subtracts without looking.)
    inner.with_truncation(None).map_err(|e| e.to_string())?;
    inner.with_padding(None);
    let around = inner.encode_fast("", true).map_err(|e| e.to_string())?.get_ids().len();
    if around >= context {
        return Err(format!(
            "it puts {around} ids around every text, and a row has {context}"
        ));
    }
    let direction = if left("truncation_side") {
        TruncationDirection::Left
    } else {
        TruncationDirection::Right
    };
    let cut = TruncationParams {
        max_length: context,
        direction,
        ..TruncationParams::default()
    };
    inner.with_truncation(Some(cut)).map_err(|e| e.to_string())?;
    inner.with_padding(Some(PaddingParams {
        strategy: PaddingStrategy::Fixed(context),
        direction: if left("padding_side") {
            PaddingDirection::Left
        } else {
            PaddingDirection::Right
        },
        pad_id: pad,
        ..PaddingParams::default()
    }));
    Ok(())
}
