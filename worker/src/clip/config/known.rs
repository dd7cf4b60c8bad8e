//! Every model configuration that open_clip 3.3.0 ships, by name: built, or refused with the reason.

use serde_json::Value;

/// The native configurations as OpenCLIP has them (and two of the demonstration's), and the names of the others by what
/// they need.
const TABLE: &str = include_str!("../models.json");

/// A name and what it stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    pub name: String,
    /// Its `model_cfg`, or what it has that Argosy does not build.
    pub config: Result<Value, String>,
}

/// All names that OpenCLIP and Argosy know, sorted.
#[must_use]
pub fn known() -> Vec<Known> {
    let table: Value = serde_json::from_str(TABLE).unwrap_or_default();
    let native = table["native"].as_object().into_iter().flatten();
    let refused = table["refused"].as_object().into_iter().flatten();
    let native = native.map(|(name, config)| Known {
        name: name.clone(),
        config: Ok(config.clone()),
    });
    let refused = refused.flat_map(|(why, names)| {
        let names = names.as_array().into_iter().flatten().filter_map(Value::as_str);
        names.map(move |name| Known {
            name: name.into(),
            config: Err(why.clone()),
        })
    });
    let mut all: Vec<Known> = native.chain(refused).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::{ConfigError, ModelConfig};

    #[test]
    fn known_every_name_of_open_clip_is_built_or_refused_with_its_reason() {
        let all = known();
        let built = all.iter().filter(|m| m.config.is_ok()).count();
        // 144 configurations in open_clip 3.3.0, and demo-64 and demo-tiny.
        assert_eq!((all.len(), built), (146, 57));
        for model in all.iter().filter(|m| m.config.is_err()) {
            let error = ModelConfig::by_name(&model.name).unwrap_err();
            assert!(
                matches!(&error, ConfigError::NotBuilt { why, .. } if !why.is_empty()),
                "{error}"
            );
        }
    }
}
