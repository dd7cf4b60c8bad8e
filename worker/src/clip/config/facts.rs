//! What weights depend on, of a configuration whose model may not be built.

use super::{ConfigError, Preprocess, Result, TokenizerConfig, read};
use serde_json::Value;

/// What a published configuration says, piece by piece: one that cannot be used spoils no other.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    pub quick_gelu: Result<bool>,
    pub preprocess: Result<Preprocess>,
    pub tokenizer: Result<TokenizerConfig>,
}

impl Facts {
    /// Reads `{"model_cfg", "preprocess_cfg"}`, or a bare model configuration.
    ///
    /// # Errors
    /// When it is no JSON.
    pub fn from_json(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).map_err(|e| ConfigError::Syntax(e.to_string()))?;
        let model = value.get("model_cfg").unwrap_or(&value);
        Ok(Self {
            quick_gelu: read::quick_gelu_of(model),
            preprocess: Preprocess::default().overlaid(&value["preprocess_cfg"], None),
            tokenizer: read::tokenizer_of(model),
        })
    }
}
