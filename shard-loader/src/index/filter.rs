//! Which samples an index keeps: by id list, by the caption's length, by fields of the JSON beside a picture. Decided once,
//! when the index is made (rule L6).

use crate::error::DataError;
use crate::sample::{self, Caption};
use argosy_common::config::FilterConfig;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3Default;

/// Largest list of ids that is read.
const IDS_BYTES_MAX: u64 = 8 << 30;

/// A filter; the default keeps everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    ids: Option<Arc<BTreeSet<String>>>,
    id_field: Option<String>,
    caption_chars: Option<[u32; 2]>,
    conditions: Vec<Condition>,
}

/// `field op value`.
#[derive(Clone, Debug, PartialEq)]
struct Condition {
    field: String,
    op: Op,
    value: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Equal,
    Unequal,
    AtLeast,
    AtMost,
    Above,
    Below,
}

/// Longest operators first, so that `>=` is not read as `>`.
const OPS: [(&str, Op); 6] = [
    (">=", Op::AtLeast),
    ("<=", Op::AtMost),
    ("==", Op::Equal),
    ("!=", Op::Unequal),
    (">", Op::Above),
    ("<", Op::Below),
];

impl Filter {
    /// The filter of a job; a relative path of its id list starts at `base`.
    ///
    /// # Errors
    /// A list that cannot be read, a condition that is none.
    pub fn of(config: &FilterConfig, base: &Path) -> Result<Self, DataError> {
        let ids = config.ids.as_ref().map(|file| read_ids(&base.join(file))).transpose()?;
        let conditions: Result<_, String> = config.conditions.iter().map(|text| Condition::parse(text)).collect();
        Ok(Self {
            ids: ids.map(Arc::new),
            id_field: config.id_field.clone(),
            caption_chars: config.caption_chars,
            conditions: conditions.map_err(DataError::Config)?,
        })
    }

    /// Whether it keeps everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What it does, in words that are equal for equal filters; empty when it keeps everything.
    #[must_use]
    pub fn words(&self) -> String {
        let mut out = String::new();
        if let Some(ids) = &self.ids {
            let mut hash = Xxh3Default::new();
            for id in ids.iter() {
                hash.update(&(id.len() as u64).to_le_bytes());
                hash.update(id.as_bytes());
            }
            let field = self.id_field.as_deref().unwrap_or("key");
            let _ = write!(out, "{field} among {} ids ({:016x})", ids.len(), hash.digest());
        }
        let mut and = |text: String| {
            out.push_str(if out.is_empty() { "" } else { "; " });
            out.push_str(&text);
        };
        if let Some([low, high]) = self.caption_chars {
            and(format!("caption of {low} to {high} characters"));
        }
        for condition in &self.conditions {
            and(condition.words());
        }
        out
    }

    /// Whether the JSON member must be read.
    pub(crate) fn needs_json(&self) -> bool {
        !self.conditions.is_empty() || self.id_field.is_some() && self.ids.is_some()
    }

    /// Whether the caption must be read.
    pub(crate) fn needs_caption(&self) -> bool {
        self.caption_chars.is_some()
    }

    /// Whether a sample is kept; it is not when what the filter asks for is not there.
    pub(crate) fn keeps(&self, key: &str, json: Option<&Value>, captions: &[Caption]) -> bool {
        let listed = |ids: &BTreeSet<String>| match &self.id_field {
            None => ids.contains(key) || ids.contains(key.rsplit('/').next().unwrap_or(key)),
            Some(field) => match json.and_then(|json| sample::field(json, field)) {
                Some(Value::String(id)) => ids.contains(id),
                Some(Value::Number(id)) => ids.contains(&id.to_string()),
                _ => false,
            },
        };
        // A run draws among those that fit ([`sample::choose`]).
        let long_enough = |wanted| {
            captions
                .iter()
                .any(|caption| sample::is_of_length(&caption.text, wanted))
        };
        self.ids.as_deref().is_none_or(listed)
            && self.caption_chars.is_none_or(long_enough)
            && self.conditions.iter().all(|c| {
                json.and_then(|json| sample::field(json, &c.field))
                    .is_some_and(|v| c.holds(v))
            })
    }
}

fn read_ids(path: &Path) -> Result<BTreeSet<String>, DataError> {
    let file = path.display().to_string();
    let failed = |e: std::io::Error| DataError::Io {
        file: file.clone(),
        error: e.to_string(),
    };
    let size = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => DataError::NotFound {
            what: format!("the list of ids {file}"),
            hint: String::new(),
        },
        _ => failed(e),
    })?;
    if size.len() > IDS_BYTES_MAX {
        return Err(DataError::Config(format!(
            "{file}: {} bytes, a list of ids has at most {IDS_BYTES_MAX}",
            size.len()
        )));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let ids: BTreeSet<String> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .map(str::to_owned)
        .collect();
    if ids.is_empty() {
        return Err(DataError::Config(format!(
            "{file}: lists no id; one per line is expected"
        )));
    }
    Ok(ids)
}

impl Condition {
    fn parse(text: &str) -> Result<Self, String> {
        // The operator that stands first decides; the value may hold others.
        let found = OPS
            .iter()
            .filter_map(|(sign, op)| text.find(sign).map(|at| (at, std::cmp::Reverse(sign.len()), sign, *op)))
            .min_by_key(|(at, length, ..)| (*at, *length));
        let (at, _, sign, op) =
            found.ok_or_else(|| format!("condition `{text}`: expected FIELD OP VALUE, as in `similarity >= 0.3`"))?;
        let (field, value) = (text[..at].trim(), text[at + sign.len()..].trim());
        if field.is_empty() || value.is_empty() {
            return Err(format!(
                "condition `{text}`: a field and a value are expected round `{sign}`"
            ));
        }
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.trim_matches('\'').to_owned()));
        if !matches!(op, Op::Equal | Op::Unequal) && !value.is_number() {
            return Err(format!(
                "condition `{text}`: `{sign}` compares numbers, {value} is none"
            ));
        }
        Ok(Self {
            field: field.to_owned(),
            op,
            value,
        })
    }

    fn words(&self) -> String {
        let sign = OPS.iter().find(|(_, op)| *op == self.op).map_or("", |(sign, _)| sign);
        format!("{} {sign} {}", self.field, self.value)
    }

    fn holds(&self, found: &Value) -> bool {
        let numbers = found.as_f64().zip(self.value.as_f64());
        let equal = || numbers.map_or_else(|| *found == self.value, |(a, b)| a == b);
        match self.op {
            Op::Equal => equal(),
            Op::Unequal => !equal(),
            Op::AtLeast => numbers.is_some_and(|(a, b)| a >= b),
            Op::AtMost => numbers.is_some_and(|(a, b)| a <= b),
            Op::Above => numbers.is_some_and(|(a, b)| a > b),
            Op::Below => numbers.is_some_and(|(a, b)| a < b),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions(texts: &[&str]) -> Result<Filter, DataError> {
        let config = FilterConfig {
            conditions: texts.iter().map(|t| (*t).to_owned()).collect(),
            ..FilterConfig::default()
        };
        Filter::of(&config, Path::new("/"))
    }

    #[test]
    fn conditions_hold_by_value_and_fail_where_the_field_is_missing() {
        let json = serde_json::json!({"similarity": 0.3, "lang": "en", "deep": {"nsfw": false}});
        let holds = |text: &str| conditions(&[text]).expect(text).keeps("k", Some(&json), &[]);
        for yes in [
            "similarity >= 0.3",
            "similarity<1",
            "lang == en",
            "lang == \"en\"",
            "lang != de",
            "deep.nsfw == false",
        ] {
            assert!(holds(yes), "{yes}");
        }
        for no in [
            "similarity > 0.3",
            "lang == de",
            "absent != 1",
            "lang >= 3",
            "deep.nsfw == true",
        ] {
            assert!(!holds(no), "{no}");
        }
        for bad in ["similarity", ">= 3", "a >=", "lang > en"] {
            assert!(conditions(&[bad]).is_err(), "{bad}");
        }
        let words = conditions(&["a>=1", "b == x"]).expect("good").words();
        assert_eq!(words, "a >= 1; b == \"x\"");
        assert!(Filter::default().is_empty() && Filter::default().words().is_empty());
    }

    #[test]
    fn ids_are_looked_up_by_key_or_field() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ids.txt"), "7\nu-1\r\n\n").expect("written");
        let of = |field: Option<&str>| {
            let config = FilterConfig {
                ids: Some("ids.txt".into()),
                id_field: field.map(str::to_owned),
                ..FilterConfig::default()
            };
            Filter::of(&config, folder.path()).expect("a list")
        };
        let json = serde_json::json!({"uid": "u-1", "n": 7});
        assert!(of(None).keeps("part/7", None, &[]) && !of(None).keeps("8", Some(&json), &[]));
        assert!(of(Some("uid")).keeps("8", Some(&json), &[]) && of(Some("n")).keeps("8", Some(&json), &[]));
        assert!(!of(Some("none")).keeps("7", Some(&json), &[]));
        assert!(of(None).words() != of(Some("uid")).words());
    }
}
