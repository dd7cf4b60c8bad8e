//! Locked towers (LiT, Zhai et al. 2022): which parameters are not trained, group by group as open_clip 3.3.0 locks them
//! (`VisionTransformer.lock`, `ModifiedResNet.lock`, `lock_text_tower`).
//!
//! A tower's groups are its embeddings, its blocks one by one (the last with the final norm), and its projection. Unlocked
//! groups are counted from the projection, so what is trained of a tower is always a last part of it.

use super::config::{ModelConfig, TextProjection, VisionKind};
use super::specs::Specs;
use crate::engine::{EngineError, Result};
use argosy_common::config::TrainConfig;
use std::collections::BTreeSet;

/// What of a model is locked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Locks {
    /// Groups of the image tower that are trained all the same, where the tower is locked.
    pub image: Option<u32>,
    /// BatchNorm of a locked image tower uses its running statistics, and leaves them as they are.
    pub freeze_bn_stats: bool,
    /// Groups of the text tower that are trained all the same, where the tower is locked.
    pub text: Option<u32>,
}

impl Locks {
    /// What a job says.
    #[must_use]
    pub fn of(train: &TrainConfig) -> Self {
        Self {
            image: train.lock_image.then_some(train.lock_image_unlocked_groups),
            freeze_bn_stats: train.lock_image && train.lock_image_freeze_bn_stats,
            text: train.lock_text.then_some(train.lock_text_unlocked_layers),
        }
    }

    /// Names of the parameters that are not trained.
    ///
    /// # Errors
    /// When a ResNet shall be locked in part, which OpenCLIP cannot either.
    pub fn frozen(&self, config: &ModelConfig) -> Result<BTreeSet<String>> {
        if matches!(config.vision.kind, VisionKind::ResNet(_)) && self.image.is_some_and(|groups| groups > 0) {
            let why = "a ResNet is locked whole; leave the key out";
            return Err(EngineError::State(format!("train.lock_image_unlocked_groups: {why}")));
        }
        let names = Specs::of(config).trained.into_keys();
        Ok(names.filter(|name| self.locks(config, name)).collect())
    }

    fn locks(&self, config: &ModelConfig, name: &str) -> bool {
        if name.starts_with("logit_") {
            return false;
        }
        let (unlocked, blocks, own, projection) = match name.strip_prefix("visual.") {
            Some(own) => (self.image, config.vision.blocks(), own, true),
            None => (
                self.text,
                config.text.stack.layers,
                name.strip_prefix("text.").unwrap_or(name),
                config.text.projection != TextProjection::None,
            ),
        };
        let Some(unlocked) = unlocked else { return false };
        // Embeddings are group 0, block i is group i + 1; without a projection the last block is the last group.
        let group = if let Some(rest) = own.strip_prefix("transformer.resblocks.") {
            let block = rest.split('.').next().and_then(|number| number.parse::<i64>().ok());
            block.unwrap_or(0) + 1
        } else if own.starts_with("ln_post") || own.starts_with("ln_final") {
            blocks
        } else if own == "proj" || own.starts_with("text_projection") {
            blocks + 1
        } else {
            0
        };
        let groups = blocks + 1 + i64::from(projection);
        group < groups - i64::from(unlocked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `tests/peers/locks.py` from OpenCLIP's own `lock`.
    const GOLDEN: &str = include_str!("../../../tests/goldens/locks.json");

    #[test]
    fn locks_freeze_the_parameters_that_open_clip_freezes() {
        let golden: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() > 20);
        for case in cases {
            let (config, _) = ModelConfig::from_json(&case["config"].to_string()).unwrap();
            let groups = |key: &str| case[key].as_u64().map(|n| n as u32);
            let locks = Locks {
                image: groups("image"),
                text: groups("text"),
                freeze_bn_stats: case["freeze_bn_stats"].as_bool().unwrap(),
            };
            let frozen: Vec<String> = locks.frozen(&config).unwrap().into_iter().collect();
            let want: Vec<&str> = case["frozen"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|n| n.as_str())
                .collect();
            assert_eq!(frozen, want, "{case}");
        }
    }

    #[test]
    fn locks_of_a_resnet_in_part_are_refused_by_key() {
        let config = ModelConfig::by_name("RN50").unwrap();
        let locks = Locks {
            image: Some(1),
            ..Locks::default()
        };
        let error = locks.frozen(&config).unwrap_err().to_string();
        assert!(error.contains("lock_image_unlocked_groups"), "{error}");
    }
}
