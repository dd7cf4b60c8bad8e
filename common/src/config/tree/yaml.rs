//! YAML to the tree: the core schema of YAML 1.2, in which `no` is a string and `1e-3` a number.

use super::super::ConfigError;
use super::{NESTING_MAX, Node, Place, Value, parse_error, said_twice, too_deep};
use saphyr_parser::{Event, Parser, ScalarStyle};
use std::sync::Arc;

/// A list or a table whose end has not come yet.
enum Open {
    List(Place, Vec<Node>),
    /// With the key whose value comes next.
    Table(Place, Vec<(String, Node)>, Option<(String, Place)>),
}

struct Builder<'a> {
    file: &'a Arc<str>,
    open: Vec<Open>,
    root: Option<Node>,
}

pub(super) fn read(file: &Arc<str>, text: &str) -> Result<Node, ConfigError> {
    let mut builder = Builder {
        file,
        open: Vec::new(),
        root: None,
    };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| parse_error(file, e.marker().line(), e.info()))?;
        builder.take(event, span.start.line().max(1))?;
    }
    let empty = || Node {
        place: Place::Line(Arc::clone(file), 1),
        value: Value::Table(Vec::new()),
    };
    Ok(builder.root.unwrap_or_else(empty))
}

impl Builder<'_> {
    fn place(&self, line: usize) -> Place {
        Place::Line(Arc::clone(self.file), line)
    }

    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), ConfigError> {
        let refuse = |why: &str| Err(parse_error(self.file, line, why));
        match event {
            Event::Scalar(.., Some(_)) | Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)) => {
                refuse("tags (`!...`) are not read")
            }
            Event::Alias(_) => refuse("aliases (`*...`) are not read: write the value out"),
            Event::DocumentStart(_) if self.root.is_some() => refuse("a second document begins, one is read"),
            Event::SequenceStart(..) => {
                let place = self.begin(line)?;
                self.open.push(Open::List(place, Vec::new()));
                Ok(())
            }
            Event::MappingStart(..) => {
                let place = self.begin(line)?;
                self.open.push(Open::Table(place, Vec::new(), None));
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List(place, items)) => self.value(place, Value::List(items), line),
                Some(Open::Table(place, entries, _)) => self.value(place, Value::Table(entries), line),
                None => Ok(()),
            },
            Event::Scalar(text, style, ..) => self.scalar(&text, style, line),
            _ => Ok(()),
        }
    }

    /// The place of a list or table that begins.
    fn begin(&self, line: usize) -> Result<Place, ConfigError> {
        if self.open.len() >= NESTING_MAX {
            return Err(too_deep(self.file, line));
        }
        if matches!(self.open.last(), Some(Open::Table(_, _, None))) {
            return Err(parse_error(self.file, line, "a key is expected, not a list or table"));
        }
        Ok(self.place(line))
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, line: usize) -> Result<(), ConfigError> {
        let place = self.place(line);
        if let Some(Open::Table(_, entries, key @ None)) = self.open.last_mut() {
            if entries.iter().any(|(name, _)| name == text) {
                return Err(said_twice(self.file, line, text));
            }
            *key = Some((text.to_owned(), place));
            return Ok(());
        }
        let value = match style {
            ScalarStyle::Plain => plain(text).ok_or_else(|| {
                let message = format!("`{text}` is too large a number");
                parse_error(self.file, line, message)
            })?,
            _ => Value::Text(text.to_owned()),
        };
        self.value(place, value, line)
    }

    fn value(&mut self, place: Place, value: Value, line: usize) -> Result<(), ConfigError> {
        match self.open.last_mut() {
            None => self.root = Some(Node { place, value }),
            Some(Open::List(_, items)) => items.push(Node { place, value }),
            Some(Open::Table(_, entries, key)) => match key.take() {
                Some((key, place)) => entries.push((key, Node { place, value })),
                None => return Err(parse_error(self.file, line, "a key is expected")),
            },
        }
        Ok(())
    }
}

/// What a plain scalar is (YAML 1.2.2, 10.3.2); `None` for a number that is out of all bounds.
fn plain(text: &str) -> Option<Value> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    Some(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" => Value::Float(f64::NAN),
        _ if matches!(unsigned, ".inf" | ".Inf" | ".INF") => {
            let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
            Value::Float(sign * f64::INFINITY)
        }
        _ if digits(unsigned) => Value::Int(text.parse().ok()?),
        _ if is_float(unsigned) => Value::Float(text.parse::<f64>().ok().filter(|f| f.is_finite())?),
        _ => match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
            (Some(hex), _) if hex.bytes().all(|b| b.is_ascii_hexdigit()) && !hex.is_empty() => {
                Value::Int(i128::from_str_radix(hex, 16).ok()?)
            }
            (_, Some(octal)) if octal.bytes().all(|b| (b'0'..=b'7').contains(&b)) && !octal.is_empty() => {
                Value::Int(i128::from_str_radix(octal, 8).ok()?)
            }
            _ => Value::Text(text.to_owned()),
        },
    })
}

/// `(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(text: &str) -> bool {
    let (number, exponent) = match text.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))),
        None => (text, None),
    };
    let all = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let mantissa = match number.split_once('.') {
        Some((whole, part)) => all(whole) && all(part) && !(whole.is_empty() && part.is_empty()),
        None => !number.is_empty() && all(number),
    };
    mantissa && exponent.is_none_or(|e| !e.is_empty() && all(e))
}
