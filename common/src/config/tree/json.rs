//! JSON to the tree.
//!
//! `serde_json` judges the text; what it does not tell, the lines of values, is found by walking over a text that is known
//! to be good.

use super::super::ConfigError;
use super::{NESTING_MAX, Node, Place, Value, parse_error, said_twice, too_deep};
use serde::de::IgnoredAny;
use std::sync::Arc;

pub(super) fn read(file: &Arc<str>, text: &str) -> Result<Node, ConfigError> {
    // Looks at every byte without building anything and without recursion.
    if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
        let (line, said) = (error.line().max(1), error.to_string());
        let message = said.split(" at line ").next().unwrap_or_default();
        return Err(parse_error(file, line, message));
    }
    let mut reader = Reader {
        file,
        text,
        at: 0,
        line: 1,
    };
    reader.node(1)
}

struct Reader<'a> {
    file: &'a Arc<str>,
    text: &'a str,
    at: usize,
    line: usize,
}

impl Reader<'_> {
    fn place(&self) -> Place {
        Place::Line(Arc::clone(self.file), self.line)
    }

    /// The next byte behind white space; 0 at the end.
    fn peek(&mut self) -> u8 {
        let bytes = self.text.as_bytes();
        while let Some(byte) = bytes.get(self.at).filter(|b| b.is_ascii_whitespace()) {
            self.line += usize::from(*byte == b'\n');
            self.at += 1;
        }
        bytes.get(self.at).copied().unwrap_or(0)
    }

    fn node(&mut self, depth: usize) -> Result<Node, ConfigError> {
        let first = self.peek();
        let place = self.place();
        if depth > NESTING_MAX {
            return Err(too_deep(self.file, self.line));
        }
        let value = match first {
            b'{' => Value::Table(self.table(depth)?),
            b'[' => Value::List(self.list(depth)?),
            b'"' => Value::Text(self.string()?),
            _ => self.word()?,
        };
        Ok(Node { place, value })
    }

    fn table(&mut self, depth: usize) -> Result<Vec<(String, Node)>, ConfigError> {
        self.at += 1;
        let mut entries: Vec<(String, Node)> = Vec::new();
        while self.peek() == b'"' {
            let place = self.place();
            let key = self.string()?;
            if entries.iter().any(|(name, _)| *name == key) {
                return Err(said_twice(self.file, self.line, &key));
            }
            if self.peek() != b':' {
                break;
            }
            self.at += 1;
            let value = self.node(depth + 1)?.value;
            entries.push((key, Node { place, value }));
            if self.peek() == b',' {
                self.at += 1;
            }
        }
        self.close(b'}').map(|()| entries)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, ConfigError> {
        self.at += 1;
        let mut items = Vec::new();
        while !matches!(self.peek(), b']' | 0) {
            items.push(self.node(depth + 1)?);
            if self.peek() == b',' {
                self.at += 1;
            }
        }
        self.close(b']').map(|()| items)
    }

    fn close(&mut self, bracket: u8) -> Result<(), ConfigError> {
        if self.peek() != bracket {
            let message = format!("`{}` is missing", char::from(bracket));
            return Err(parse_error(self.file, self.line, message));
        }
        self.at += 1;
        Ok(())
    }

    fn string(&mut self) -> Result<String, ConfigError> {
        let bytes = self.text.as_bytes();
        let mut end = self.at + 1;
        while let Some(byte) = bytes.get(end).filter(|b| **b != b'"') {
            end += 1 + usize::from(*byte == b'\\');
        }
        let slice = self.text.get(self.at..=end).unwrap_or_default();
        self.at = end + 1;
        // Lone surrogates are found here only.
        serde_json::from_str(slice).map_err(|e| parse_error(self.file, self.line, e.to_string()))
    }

    /// A number, `true`, `false` or `null`.
    fn word(&mut self) -> Result<Value, ConfigError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let length = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c)))
            .unwrap_or(rest.len());
        let word = &rest[..length];
        self.at += length.max(1);
        Ok(match word {
            "null" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            number => match (number.parse::<i128>(), number.parse::<f64>()) {
                (Ok(int), _) => Value::Int(int),
                (_, Ok(float)) if float.is_finite() => Value::Float(float),
                _ => {
                    return Err(parse_error(
                        self.file,
                        self.line,
                        format!("`{number}` is too large a number"),
                    ));
                }
            },
        })
    }
}
