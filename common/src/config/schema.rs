//! The schema of a job file, from the structs that read it.

use super::Job;
use schemars::generate::SchemaSettings;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// The keys of a table; `None` for those that hold no table.
#[derive(Debug, Default)]
pub(super) struct Section {
    pub(super) keys: BTreeMap<String, Option<Section>>,
    /// Names of its keys are the user's.
    pub(super) open: bool,
}

/// All sections.
#[derive(Debug)]
pub(super) struct Sections {
    pub(super) root: Section,
}

impl Job {
    /// The JSON Schema (draft 2020-12) of a job file in any of its formats.
    #[must_use]
    pub fn schema() -> Value {
        let mut schema = SchemaSettings::draft2020_12()
            .into_generator()
            .into_root_schema_for::<Self>()
            .to_value();
        if let Some(root) = schema.as_object_mut() {
            root.insert("title".into(), "An Argosy job, version 1".into());
        }
        schema
    }
}

/// The sections of a job, made once.
pub(super) fn sections() -> &'static Sections {
    static SECTIONS: OnceLock<Sections> = OnceLock::new();
    SECTIONS.get_or_init(|| {
        let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
        let schema = settings.into_generator().into_root_schema_for::<Job>().to_value();
        Sections {
            root: section_of(&schema).unwrap_or_default(),
        }
    })
}

/// The table that a schema describes, alone, in a list, or as one of several choices.
fn section_of(schema: &Value) -> Option<Section> {
    if let Some(properties) = schema["properties"].as_object() {
        let keys = properties.iter().map(|(key, inner)| (key.clone(), section_of(inner)));
        return Some(Section {
            keys: keys.collect(),
            open: false,
        });
    }
    if schema["additionalProperties"].is_object() {
        return Some(Section {
            keys: BTreeMap::new(),
            open: true,
        });
    }
    if schema["items"].is_object() {
        return section_of(&schema["items"]);
    }
    let choices = ["anyOf", "allOf", "oneOf"]
        .into_iter()
        .filter_map(|name| schema[name].as_array());
    choices.flatten().find_map(section_of)
}

impl Sections {
    /// Where a key of this very name is known, if anywhere: people put keys into the wrong section.
    pub(super) fn anywhere(&self, key: &str) -> Option<String> {
        fn search(path: &str, section: &Section, key: &str) -> Option<String> {
            section.keys.iter().find_map(|(name, inner)| {
                let full = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                if name == key {
                    return Some(full);
                }
                search(&full, inner.as_ref()?, key)
            })
        }
        search("", &self.root, key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_refuses_unknown_keys_and_says_what_each_key_is() {
        let schema = Job::schema();
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(
            schema["required"],
            serde_json::json!(["version", "name", "model", "data", "train"])
        );
        let train = &schema["$defs"]["TrainConfig"];
        assert_eq!(train["additionalProperties"], false, "{schema:#}");
        let lr = &train["properties"]["lr"];
        assert_eq!(lr["description"], "Peak learning rate.");
        assert_eq!(lr["default"], 5e-4);
    }

    #[test]
    fn sections_are_those_of_the_structs() {
        let root = &sections().root;
        let section = |name: &str| root.keys[name].as_ref().expect("a section");
        assert!(
            section("data").keys["sources"]
                .as_ref()
                .is_some_and(|s| s.keys.contains_key("shards"))
        );
        assert!(section("train").keys["lr"].is_none());
        assert_eq!(
            sections().anywhere("color_jitter").as_deref(),
            Some("data.aug_cfg.color_jitter")
        );
        // A key left out of what is written is a key all the same.
        assert!(section("train").keys.contains_key("lock_text"));
    }
}
