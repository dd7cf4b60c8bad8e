//! JSON values as YAML, for people who read it and for readers of YAML 1.1 and 1.2 alike.

use serde_json::Value;

/// The document, ending in a line break.
pub(crate) fn text(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => entries(value, 0, &mut out),
        Value::Array(list) if !list.is_empty() => entries(value, 0, &mut out),
        scalar => {
            out.push_str(&self::scalar(scalar));
            out.push('\n');
        }
    }
    out
}

/// The lines of a list or table that is not empty. The first begins where `out` ends.
fn entries(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    let mut first = true;
    let mut begin = |out: &mut String, head: &str| {
        if !std::mem::take(&mut first) || indent == 0 {
            out.push_str(&pad);
        }
        out.push_str(head);
    };
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                begin(out, &format!("{}:", string(key)));
                inner(value, indent + 2, "\n", out);
            }
        }
        Value::Array(list) => {
            for value in list {
                begin(out, "-");
                inner(value, indent + 2, " ", out);
            }
        }
        _ => {}
    }
}

/// What stands behind `key:` or `-`. A list or table begins behind `before`: on a line of its own, or on this one.
fn inner(value: &Value, indent: usize, before: &str, out: &mut String) {
    let empty = match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => true,
    };
    if empty {
        out.push(' ');
        out.push_str(&scalar(value));
        out.push('\n');
        return;
    }
    out.push_str(before);
    if before == "\n" {
        out.push_str(&" ".repeat(indent));
    }
    entries(value, indent, out);
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        Value::Number(number) => {
            let text = number.to_string();
            // YAML 1.1 takes `1e-7` for a word.
            match text.split_once('e') {
                Some((digits, exponent)) => {
                    let point = if digits.contains('.') { "" } else { ".0" };
                    let sign = if exponent.starts_with(['-', '+']) { "" } else { "+" };
                    format!("{digits}{point}e{sign}{exponent}")
                }
                None => text,
            }
        }
        Value::Object(_) => "{}".into(),
        Value::Array(_) => "[]".into(),
        other => other.to_string(),
    }
}

/// Plain where nobody could take it for anything else; else in the quotes of JSON, which are YAML's.
fn string(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || "/_".contains(c))
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_./-".contains(c));
    const WORDS: [&str; 10] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan"];
    if plain && !WORDS.contains(&text.to_ascii_lowercase().as_str()) {
        text.to_owned()
    } else {
        Value::String(text.to_owned()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_of_every_shape_are_written_as_a_person_would() {
        let value = json!({
            "a": 1, "b": [], "c": {}, "d": [1, "no", {"x": null, "y": [true]}, [2, 3]], "e": {"f": {"g": "a: b"}}, "h": 1e-7,
        });
        let expected = "a: 1\nb: []\nc: {}\nd:\n  - 1\n  - \"no\"\n  - x: null\n    \"y\":\n      - true\n  - - 2\n    - 3\n\
                        e:\n  f:\n    g: \"a: b\"\nh: 1.0e-7\n";
        assert_eq!(text(&value), expected);
    }

    #[test]
    fn job_written_as_yaml_is_read_as_the_same_job() {
        use argosy_common::config::{Job, Layers};
        let job = "version = 1\nname = \"a\"\nseed = 3\n[model]\nname = \"m\"\nimage_std = [0.25, 1e-7, 1]\n[data]\n\
                   sources = [{ name = \"null\", shards = \"s3://b/{0..9}.tar\" }, { name = \"12\", shards = \"é # x\" }]\n\
                   train_num_samples = 5\n[train]\nlr = 1e-9\n";
        let job = Job::from_toml("j", job).unwrap();
        let written = text(&serde_json::to_value(&job).unwrap());
        let read = Job::read("j.yaml", &written, &Layers::default()).unwrap_or_else(|e| panic!("{e}\n{written}"));
        assert_eq!(read.job, job);
    }
}
