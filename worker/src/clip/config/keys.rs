//! Reading one JSON object key by key, so that what nobody read can be refused.

use super::{ConfigError, Result};
use argosy_common::config::nearest;
use serde_json::{Map, Value};

pub(super) fn object<'a>(key: &str, value: &'a Value) -> Result<&'a Map<String, Value>> {
    value.as_object().ok_or_else(|| ConfigError::Invalid {
        key: key.into(),
        why: if value.is_null() {
            "missing".into()
        } else {
            format!("an object expected, got {value}")
        },
    })
}

/// One object's keys; remembers which were read so that the rest can be refused.
pub(super) struct Keys<'a> {
    prefix: &'static str,
    map: &'a Map<String, Value>,
    read: Vec<&'static str>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(prefix: &'static str, map: &'a Map<String, Value>) -> Self {
        Self {
            prefix,
            map,
            read: Vec::new(),
        }
    }

    pub(super) fn take(&mut self, key: &'static str) -> &'a Value {
        self.read.push(key);
        self.map.get(key).unwrap_or(&Value::Null)
    }

    pub(super) fn invalid(&self, key: &str, why: String) -> ConfigError {
        ConfigError::Invalid {
            key: format!("{}{key}", self.prefix),
            why,
        }
    }

    pub(super) fn unsupported(&self, key: &str, why: &str) -> ConfigError {
        let value = self.map.get(key).map(Value::to_string).unwrap_or_default();
        ConfigError::Unsupported {
            key: format!("{}{key}", self.prefix),
            value,
            why: why.into(),
        }
    }

    pub(super) fn whole(&mut self, key: &'static str, default: Option<i64>, most: i64) -> Result<i64> {
        let value = self.take(key);
        let number = if value.is_null() { default } else { value.as_i64() };
        match number {
            Some(n) if (1..=most).contains(&n) => Ok(n),
            _ if value.is_null() => Err(self.invalid(key, "missing".into())),
            _ => Err(self.invalid(key, format!("a whole number in 1..={most} expected, got {value}"))),
        }
    }

    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> Result<bool> {
        let value = self.take(key);
        if value.is_null() {
            return Ok(default);
        }
        value
            .as_bool()
            .ok_or_else(|| self.invalid(key, format!("true or false expected, got {value}")))
    }

    pub(super) fn float(&mut self, key: &'static str) -> Result<Option<f64>> {
        let value = self.take(key);
        if value.is_null() {
            return Ok(None);
        }
        let number = value
            .as_f64()
            .ok_or_else(|| self.invalid(key, format!("a number expected, got {value}")))?;
        Ok(Some(number))
    }

    pub(super) fn integer(&mut self, key: &'static str, default: i32) -> Result<i32> {
        let value = self.take(key);
        if value.is_null() {
            return Ok(default);
        }
        let number = value.as_i64().and_then(|n| i32::try_from(n).ok());
        number.ok_or_else(|| self.invalid(key, format!("a whole number expected, got {value}")))
    }

    pub(super) fn text(&mut self, key: &'static str, default: &'static str) -> Result<&'a str> {
        let value = self.take(key);
        if value.is_null() {
            return Ok(default);
        }
        value
            .as_str()
            .ok_or_else(|| self.invalid(key, format!("a word expected, got {value}")))
    }

    /// A word; none where it is left out or empty.
    pub(super) fn word(&mut self, key: &'static str) -> Result<Option<String>> {
        let word = self.text(key, "")?;
        Ok((!word.is_empty()).then(|| word.to_owned()))
    }

    pub(super) fn mlp_width(&mut self, width: i64) -> Result<i64> {
        let ratio = self.float("mlp_ratio")?.unwrap_or(4.0);
        let hidden = width as f64 * ratio;
        if !(1.0..=1e8).contains(&hidden) {
            return Err(self.invalid("mlp_ratio", format!("{ratio} gives a hidden width of {hidden}")));
        }
        Ok(hidden as i64) // floor, as Python's int()
    }

    /// Refuses every key that was not read, except those in `fixed` at their fixed value.
    pub(super) fn finish(self, fixed: &Value) -> Result<()> {
        for (key, value) in self.map {
            if self.read.contains(&key.as_str()) {
                continue;
            }
            match fixed.get(key) {
                Some(only) if same(only, value) => {}
                Some(only) => return Err(self.unsupported(key, &format!("Argosy builds only {only}"))),
                None => {
                    let fixed = fixed.as_object().into_iter().flat_map(|map| map.keys());
                    let known: Vec<&str> = self.read.iter().copied().chain(fixed.map(String::as_str)).collect();
                    let why = match nearest(key, &known) {
                        Some(name) => format!("Argosy knows no key of that name; did you mean {name}?"),
                        None => "Argosy knows no key of that name".into(),
                    };
                    return Err(self.unsupported(key, &why));
                }
            }
        }
        Ok(())
    }
}

/// Equal, or equal as numbers (`0` and `0.0`).
fn same(a: &Value, b: &Value) -> bool {
    a == b || matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}
