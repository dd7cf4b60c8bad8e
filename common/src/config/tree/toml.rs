//! TOML to the tree.

use super::super::ConfigError;
use super::{NESTING_MAX, Node, Place, Value, line_of, parse_error, too_deep};
use std::ops::Range;
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Lines of byte offsets, without counting from the beginning each time.
struct Lines<'a> {
    file: &'a Arc<str>,
    /// Offsets at which lines begin.
    begins: Vec<usize>,
}

impl Lines<'_> {
    fn line(&self, span: &Range<usize>) -> usize {
        self.begins.partition_point(|begin| *begin <= span.start).max(1)
    }

    fn place(&self, span: &Range<usize>) -> Place {
        Place::Line(Arc::clone(self.file), self.line(span))
    }
}

pub(super) fn read(file: &Arc<str>, text: &str) -> Result<Node, ConfigError> {
    let root = DeTable::parse(text).map_err(|e| {
        let line = e.span().map_or(1, |span| line_of(text, span.start));
        parse_error(file, line, e.message().trim().replace('\n', " "))
    })?;
    let ends = text.bytes().enumerate().filter(|(_, b)| *b == b'\n');
    let lines = Lines {
        file,
        begins: std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect(),
    };
    let span = root.span();
    Ok(Node {
        place: lines.place(&span),
        value: table(&lines, root.into_inner(), 1)?,
    })
}

fn table(lines: &Lines<'_>, entries: DeTable<'_>, depth: usize) -> Result<Value, ConfigError> {
    let mut out = Vec::new();
    for (key, value) in entries {
        let node = Node {
            place: lines.place(&key.span()),
            value: any(lines, value, depth)?,
        };
        out.push((key.into_inner().into_owned(), node));
    }
    Ok(Value::Table(out))
}

fn any(lines: &Lines<'_>, value: Spanned<DeValue<'_>>, depth: usize) -> Result<Value, ConfigError> {
    let span = value.span();
    let line = || lines.line(&span);
    if depth > NESTING_MAX {
        return Err(too_deep(lines.file, line()));
    }
    Ok(match value.into_inner() {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Boolean(truth) => Value::Bool(truth),
        DeValue::Datetime(date) => Value::Text(date.to_string()),
        DeValue::Integer(int) => i128::from_str_radix(int.as_str(), int.radix())
            .map(Value::Int)
            .map_err(|_| parse_error(lines.file, line(), "too large a number"))?,
        DeValue::Float(float) => float
            .as_str()
            .parse()
            .map(Value::Float)
            .map_err(|_| parse_error(lines.file, line(), "no number"))?,
        DeValue::Array(items) => {
            let mut list = Vec::with_capacity(items.len());
            for item in items {
                list.push(Node {
                    place: lines.place(&item.span()),
                    value: any(lines, item, depth + 1)?,
                });
            }
            Value::List(list)
        }
        DeValue::Table(entries) => table(lines, entries, depth + 1)?,
    })
}
