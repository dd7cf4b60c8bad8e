//! What is drawn: the emoji that are neither flags, nor components, nor skin tones, with their names and keywords.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::packages::Files;

/// Groups of emojibase that are no concepts of their own.
const LEFT_OUT: [&str; 2] = ["component", "flags"];

/// One thing that every style draws.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Concept {
    /// Code points in lower-case hex joined by `-`, without joiners and variation selectors: `1f34e`.
    pub(crate) code: String,
    /// Class name as captions write it: `red apple`.
    pub(crate) name: String,
    /// Emojibase's label as icon sets write it: `red-apple`.
    pub(crate) slug: String,
    pub(crate) keywords: Vec<String>,
    /// `food-fruit`
    pub(crate) subgroup: String,
    /// Position in Unicode's own order, which keeps kin together.
    pub(crate) order: u32,
}

#[derive(Deserialize)]
struct Row {
    label: String,
    hexcode: String,
    #[serde(default)]
    tags: Vec<String>,
    group: Option<u32>,
    subgroup: Option<u32>,
    order: Option<u32>,
}

#[derive(Deserialize)]
struct Groups {
    groups: BTreeMap<u32, String>,
    subgroups: BTreeMap<u32, String>,
}

/// All concepts of emojibase, in Unicode's order.
pub(crate) fn read(files: &Files) -> Result<Vec<Concept>> {
    let rows: Vec<Row> = json(files, "en/data.json")?;
    let Groups { groups, subgroups } = json(files, "meta/groups.json")?;
    let mut concepts: Vec<Concept> = rows
        .into_iter()
        .filter_map(|row| {
            let group = groups.get(&row.group?)?;
            if LEFT_OUT.contains(&group.as_str()) {
                return None;
            }
            let name = class_name(&row.label);
            let keywords = row.tags.into_iter().filter(|tag| *tag != name).collect();
            Some(Concept {
                code: plain_code(&row.hexcode),
                slug: slug(&row.label),
                name,
                keywords,
                subgroup: subgroups.get(&row.subgroup?)?.clone(),
                order: row.order?,
            })
        })
        .collect();
    concepts.sort_by_key(|concept| concept.order);
    Ok(concepts)
}

/// One JSON file of a package.
pub(crate) fn json<T: DeserializeOwned>(files: &Files, path: &str) -> Result<T> {
    let bytes = files.get(path).with_context(|| format!("the package lacks `{path}`"))?;
    serde_json::from_slice(bytes).with_context(|| format!("cannot read `{path}`"))
}

/// Hex code points without U+FE0F and U+200D: sets differ in where they write those two.
pub(crate) fn plain_code(hexcode: &str) -> String {
    let parts: Vec<String> = hexcode
        .split('-')
        .map(str::to_ascii_lowercase)
        .filter(|part| part != "fe0f" && part != "200d")
        .collect();
    parts.join("-")
}

/// A label as icon sets spell it: ASCII letters, digits and hyphens.
pub(crate) fn slug(label: &str) -> String {
    let mut slug = String::new();
    for letter in label.chars() {
        match letter {
            '\'' | '’' => {}
            'ñ' => slug.push('n'),
            '#' => slug.push_str("hash"),
            '*' => slug.push_str("asterisk"),
            letter if letter.is_ascii_alphanumeric() => slug.push(letter.to_ascii_lowercase()),
            letter if letter.is_ascii() && !slug.ends_with('-') && !slug.is_empty() => slug.push('-'),
            _ => {}
        }
    }
    slug.trim_end_matches('-').to_owned()
}

/// Plain English from a label: `man: blond hair` becomes `man with blond hair`, curly quotes go.
fn class_name(label: &str) -> String {
    let label = label.replace('’', "'").replace(['“', '”', '(', ')'], "");
    match label.split_once(": ") {
        Some(("keycap", key)) => format!("keycap {key}"),
        Some((who, what)) => format!("{who} with {what}"),
        None => label,
    }
}

#[cfg(test)]
pub(crate) fn concept(name: &str, keywords: &[&str]) -> Concept {
    Concept {
        code: "1f34e".into(),
        name: name.into(),
        slug: slug(name),
        keywords: keywords.iter().map(|&word| word.to_owned()).collect(),
        subgroup: "food-fruit".into(),
        order: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(rows: &str) -> Files {
        let groups =
            r#"{"groups":{"2":"component","4":"food-drink"},"subgroups":{"32":"skin-tone","42":"food-fruit"}}"#;
        [("en/data.json", rows), ("meta/groups.json", groups)]
            .map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec()))
            .into()
    }

    #[test]
    fn concepts_components_and_ungrouped_are_left_out() {
        let rows = r#"[
            {"label":"pear","hexcode":"1F350","tags":["fruit","pear"],"group":4,"subgroup":42,"order":9},
            {"label":"red apple","hexcode":"1F34E","tags":["fruit"],"group":4,"subgroup":42,"order":8},
            {"label":"light skin tone","hexcode":"1F3FB","group":2,"subgroup":32,"order":1},
            {"label":"regional indicator A","hexcode":"1F1E6"}]"#;
        let concepts = read(&files(rows)).unwrap();
        let names: Vec<_> = concepts.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["red apple", "pear"]);
        assert_eq!(
            concepts[1].keywords,
            ["fruit"],
            "a keyword equal to the name says nothing new"
        );
    }

    #[test]
    fn concepts_missing_file_is_named() {
        assert!(read(&Files::new()).unwrap_err().to_string().contains("en/data.json"));
    }

    #[test]
    fn labels_odd_signs_become_slugs_and_names() {
        assert_eq!(slug("A button (blood type)"), "a-button-blood-type");
        assert_eq!(slug("woman’s boot"), "womans-boot");
        assert_eq!(slug("keycap: #"), "keycap-hash");
        assert_eq!(slug("Japanese “here” button"), "japanese-here-button");
        assert_eq!(class_name("man: blond hair"), "man with blond hair");
        assert_eq!(class_name("keycap: 10"), "keycap 10");
        assert_eq!(class_name("Japanese “here” button"), "Japanese here button");
        assert_eq!(plain_code("2764-FE0F-200D-1F525"), "2764-1f525");
    }
}
