//! A job before it is a job: the values of one text, whatever its format, each with the place it came from.
//!
//! Errors and `argosy config show --origin` say where a value stands, which no two of the formats' own readers can; so all
//! three become this tree first, and one deserializer reads it.

mod de;
mod json;
mod toml;
mod yaml;

use super::ConfigError;
use std::fmt;
use std::sync::Arc;

/// Deeper than this no job is nested, and neither reading nor dropping a tree can exhaust a stack.
const NESTING_MAX: usize = 32;

/// The formats of a job file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobFormat {
    /// TOML 1.0.
    Toml,
    /// YAML 1.2, one document without tags and aliases.
    Yaml,
    /// JSON.
    Json,
}

impl JobFormat {
    /// By the ending of the file's name; whatever is neither `.yaml`, `.yml` nor `.json` is TOML.
    #[must_use]
    pub fn of(file: &str) -> Self {
        let ending = file.rsplit_once('.').map_or("", |(_, ending)| ending);
        if ending.eq_ignore_ascii_case("yaml") || ending.eq_ignore_ascii_case("yml") {
            Self::Yaml
        } else if ending.eq_ignore_ascii_case("json") {
            Self::Json
        } else {
            Self::Toml
        }
    }
}

/// Where a value was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a line of a file, from 1.
    Line(Arc<str>, usize),
    /// By an environment variable.
    Variable(Arc<str>),
    /// By a flag, as it was typed.
    Flag(Arc<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(file, line) => write!(f, "{file}:{line}"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A value and where it was said: of an entry of a table the place of its key.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// What a text can say.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Table(Vec<(String, Node)>),
}

impl Node {
    /// Reads a text of a format.
    pub(super) fn read(file: &str, text: &str, format: JobFormat) -> Result<Self, ConfigError> {
        let name: Arc<str> = file.into();
        let root = match format {
            JobFormat::Toml => toml::read(&name, text),
            JobFormat::Yaml => yaml::read(&name, text),
            JobFormat::Json => json::read(&name, text),
        }?;
        match root.value {
            Value::Table(_) => Ok(root),
            _ => Err(parse_error(&name, 1, "a job is a table of keys and values")),
        }
    }

    /// A value as a person types it behind `KEY=`: as in TOML, or a string where it is not TOML.
    pub(super) fn typed(text: &str, place: &Place) -> Self {
        let said = toml::read(&"".into(), &format!("v = {text}")).ok();
        let value = match said.map(|root| root.value) {
            // More than one key: the text had lines of its own, and is no value.
            Some(Value::Table(mut entries)) if entries.len() == 1 => entries.remove(0).1.value,
            _ => Value::Text(text.to_owned()),
        };
        let mut node = Self {
            place: place.clone(),
            value,
        };
        node.say_everywhere(place);
        node
    }

    fn say_everywhere(&mut self, place: &Place) {
        self.place = place.clone();
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|node| node.say_everywhere(place)),
            Value::Table(entries) => entries.iter_mut().for_each(|(_, node)| node.say_everywhere(place)),
            _ => {}
        }
    }

    /// Lays `node` over what stands at a dotted key; sections that are missing are made. A number picks from a list.
    ///
    /// # Errors
    /// The part of the key that is no section.
    pub(super) fn lay(&mut self, key: &str, node: Self) -> Result<(), String> {
        let (name, rest) = match key.split_once('.') {
            Some((name, rest)) => (name, Some(rest)),
            None => (key, None),
        };
        let slot = match &mut self.value {
            Value::Table(entries) => {
                let at = entries.iter().position(|(n, _)| n == name).unwrap_or_else(|| {
                    let empty = Self {
                        place: node.place.clone(),
                        value: Value::Table(Vec::new()),
                    };
                    entries.push((name.to_owned(), empty));
                    entries.len() - 1
                });
                &mut entries[at].1
            }
            Value::List(items) => name
                .parse::<usize>()
                .ok()
                .and_then(|at| items.get_mut(at))
                .ok_or_else(|| name.to_owned())?,
            _ => return Err(name.to_owned()),
        };
        match rest {
            None => *slot = node,
            Some(rest) => match slot.value {
                Value::Table(_) | Value::List(_) => slot.lay(rest, node)?,
                _ => return Err(name.to_owned()),
            },
        }
        Ok(())
    }

    /// Where a key was said, as in `train.lr` or `data.sources[0].shards`; `None` where its default stands.
    #[must_use]
    pub fn place_of(&self, key: &str) -> Option<&Place> {
        self.find(key).map(|node| &node.place)
    }

    /// The nearest section of a key that was said, or the key itself.
    pub(super) fn nearest_place(&self, key: &str) -> Option<&Place> {
        self.place_of(key).or_else(|| {
            let (section, _) = key.rsplit_once(['.', '['])?;
            self.nearest_place(section)
        })
    }

    fn find(&self, key: &str) -> Option<&Self> {
        let mut node = self;
        for name in key.split(['.', '[']).map(|name| name.trim_end_matches(']')) {
            node = match &node.value {
                Value::Table(entries) => entries.iter().find(|(n, _)| n == name).map(|(_, node)| node)?,
                Value::List(items) => items.get(name.parse::<usize>().ok()?)?,
                _ => return None,
            };
        }
        Some(node)
    }
}

fn parse_error(file: &str, line: usize, message: impl Into<String>) -> ConfigError {
    ConfigError::Parse {
        place: format!("{file}:{line}"),
        message: message.into(),
    }
}

fn too_deep(file: &str, line: usize) -> ConfigError {
    parse_error(file, line, format!("nested more than {NESTING_MAX} deep"))
}

fn said_twice(file: &str, line: usize, key: &str) -> ConfigError {
    parse_error(file, line, format!("`{key}` stands twice in one table"))
}

/// Line number (from 1) of a byte offset.
fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count() + 1
}
