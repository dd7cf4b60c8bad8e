//! What a command says on stdout, in each of the formats of `-o`.

use crate::args::Format;
use crate::fail::{Failure, Outcome};
use crate::{out, yaml};
use argosy_common::exit::Exit;
use serde::Serialize;
use serde_json::Value;

/// Prints `value` with the version of its form for machines (1 where it says none), or `text` for people (with more columns if it is told so). `rows`
/// names the list whose entries are the lines of `-o jsonl`; each line then has the scalars that stand beside the list, too.
pub(crate) fn print(
    format: Format,
    value: &impl Serialize,
    rows: Option<&str>,
    text: impl FnOnce(bool) -> String,
) -> Outcome<()> {
    if let Format::Table | Format::Wide = format {
        return out::data(&text(format == Format::Wide));
    }
    let value =
        serde_json::to_value(value).map_err(|e| Failure::new(Exit::JobFailed, format!("cannot write JSON: {e}")))?;
    machines(format, value, rows)
}

/// The same for what is JSON already.
pub(crate) fn machines(format: Format, mut value: Value, rows: Option<&str>) -> Outcome<()> {
    if let Some(map) = value.as_object_mut() {
        map.entry("version").or_insert_with(|| 1.into());
    }
    match format {
        Format::Yaml => out::data(&yaml::text(&value)),
        Format::Jsonl => out::data(&lines(value, rows)),
        _ => out::json(&value),
    }
}

fn lines(mut value: Value, rows: Option<&str>) -> String {
    let list = rows.and_then(|name| value.as_object_mut()?.remove(name));
    let Some(Value::Array(list)) = list else {
        return format!("{value}\n");
    };
    let mut beside = value.as_object().cloned().unwrap_or_default();
    beside.retain(|_, value| !value.is_object() && !value.is_array());
    list.into_iter()
        .map(|row| {
            let mut line = beside.clone();
            match row {
                Value::Object(row) => line.extend(row),
                other => {
                    line.insert("value".into(), other);
                }
            }
            format!("{}\n", Value::Object(line))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn jsonl_is_one_line_a_row_with_what_stands_beside_the_list() {
        let value = json!({"version": 1, "run": "a", "more": {"x": 1}, "rows": [{"b": 1}, {"b": 2}]});
        assert_eq!(
            lines(value.clone(), Some("rows")),
            "{\"b\":1,\"run\":\"a\",\"version\":1}\n{\"b\":2,\"run\":\"a\",\"version\":1}\n"
        );
        assert_eq!(lines(value, None).lines().count(), 1);
        assert_eq!(lines(json!({"version": 1, "rows": []}), Some("rows")), "");
    }
}
