//! Which icon of a set draws which concept. Sets with a table of code points are read by it; the others by name.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::concepts::{Concept, json, plain_code, slug};
use crate::packages::Files;

/// Icons by concept code.
pub(crate) type IconByCode = BTreeMap<String, String>;

/// Concepts that Fx names in its own way.
const FX_NAMES: &str = include_str!("fx_names.txt");

#[derive(Debug, Deserialize)]
struct Icon {
    body: String,
    width: Option<f32>,
    height: Option<f32>,
}

#[derive(Debug, Deserialize)]
struct Alias {
    parent: String,
    #[serde(default, rename = "hFlip")]
    flipped: bool,
}

/// An icon set in Iconify's form: bodies of SVG pictures by name.
#[derive(Debug, Deserialize)]
pub(crate) struct IconSet {
    icons: BTreeMap<String, Icon>,
    #[serde(default)]
    aliases: BTreeMap<String, Alias>,
    #[serde(default = "default_side")]
    width: f32,
    #[serde(default = "default_side")]
    height: f32,
    #[serde(skip)]
    by_code: IconByCode,
}

/// Iconify's own default for a set that names no size.
fn default_side() -> f32 {
    16.0
}

impl IconSet {
    pub(crate) fn read(files: &Files) -> Result<Self> {
        let mut set: Self = json(files, "icons.json")?;
        let chars: BTreeMap<String, String> = json(files, "chars.json")?;
        for (code, name) in chars {
            set.by_code.entry(plain_code(&code)).or_insert(name);
        }
        Ok(set)
    }

    /// The SVG document of an icon.
    pub(crate) fn svg(&self, name: &str) -> Result<String> {
        let alias = self.aliases.get(name);
        let icon = alias.map_or(name, |alias| &alias.parent);
        let Icon { body, width, height } = self.icons.get(icon).with_context(|| format!("no icon `{name}`"))?;
        let (width, height) = (width.unwrap_or(self.width), height.unwrap_or(self.height));
        ensure!(width > 0.0 && height > 0.0, "icon `{name}` has no area");
        let mirror = match alias {
            Some(alias) if alias.flipped => format!("translate({width} 0) scale(-1 1)"),
            _ => String::new(),
        };
        Ok(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" xmlns:xlink=\"http://www.w3.org/1999/xlink\" width=\"{width}\" \
             height=\"{height}\" viewBox=\"0 0 {width} {height}\"><g transform=\"{mirror}\">{body}</g></svg>"
        ))
    }

    /// Icons by the set's own table of code points.
    pub(crate) fn by_code(&self, concepts: &[Concept]) -> IconByCode {
        let known = |concept: &Concept| {
            self.by_code
                .get(&concept.code)
                .map(|name| (concept.code.clone(), name.clone()))
        };
        concepts.iter().filter_map(known).collect()
    }

    /// Icons by name, for a set without code points. An icon whose own name is the label goes before one under an older name.
    pub(crate) fn by_name(&self, names: &Names, concepts: &[Concept]) -> IconByCode {
        let mut aliases: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (alias, Alias { parent, flipped }) in &self.aliases {
            if !flipped {
                aliases.entry(parent).or_default().push(alias);
            }
        }
        let mut icons: IconByCode = concepts
            .iter()
            .filter(|concept| self.icons.contains_key(&concept.slug))
            .map(|concept| (concept.code.clone(), concept.slug.clone()))
            .collect();
        for icon in self.icons.keys() {
            let others = aliases.get(icon.as_str()).into_iter().flatten().copied();
            if let Some(code) = std::iter::once(icon.as_str())
                .chain(others)
                .find_map(|name| names.code(name))
            {
                icons.entry(code.to_owned()).or_insert_with(|| icon.clone());
            }
        }
        icons
    }

    /// Icons by names written without hyphens, and by the table of those that Fx names in its own way.
    pub(crate) fn by_fx_name(&self, names: &Names, concepts: &[Concept]) -> Result<IconByCode> {
        let by_slug: BTreeMap<&str, &str> = concepts.iter().map(|c| (c.slug.as_str(), c.code.as_str())).collect();
        let (mut icons, mut left_out) = (IconByCode::new(), Vec::new());
        // The table goes first: it says which of Fx's two cats is the face.
        for line in FX_NAMES.lines().filter(|line| !line.starts_with('#')) {
            let (icon, label) = line
                .split_once(' ')
                .with_context(|| format!("fx_names.txt: no pair in `{line}`"))?;
            ensure!(self.icons.contains_key(icon), "fx_names.txt: Fx has no icon `{icon}`");
            if label == "-" {
                left_out.push(icon.to_owned());
                continue;
            }
            let code = by_slug
                .get(label)
                .with_context(|| format!("fx_names.txt: no concept `{label}`"))?;
            let earlier = icons.insert((*code).to_owned(), icon.to_owned());
            ensure!(earlier.is_none(), "fx_names.txt: `{label}` is drawn twice");
        }
        let settled: BTreeSet<String> = icons.values().cloned().chain(left_out).collect();
        for icon in self.icons.keys().filter(|icon| !settled.contains(*icon)) {
            if let Some(code) = names.squeezed_code(icon) {
                icons.entry(code.to_owned()).or_insert_with(|| icon.clone());
            }
        }
        Ok(icons)
    }
}

/// Concept codes by every name in use, today's and older ones; a name used for two concepts goes to the better witness.
#[derive(Debug, Default)]
pub(crate) struct Names {
    votes: BTreeMap<String, BTreeMap<String, u32>>,
    squeezed: BTreeMap<String, String>,
}

impl Names {
    /// Today's labels outweigh the names of sets that carry code points; those outweigh aliases and Unicode's formal names.
    pub(crate) fn gather(concepts: &[Concept], coded: &[&IconSet], unicode: &BTreeMap<String, String>) -> Self {
        let mut names = Self::default();
        let codes: BTreeMap<&str, ()> = concepts.iter().map(|c| (c.code.as_str(), ())).collect();
        for concept in concepts {
            names.vote(&concept.slug, &concept.code, 100);
        }
        for set in coded {
            let mut by_name: BTreeMap<&str, &str> = BTreeMap::new();
            for (code, name) in set.by_code.iter().filter(|(code, _)| codes.contains_key(code.as_str())) {
                names.vote(name, code, 10);
                by_name.insert(name, code);
            }
            for (alias, Alias { parent, flipped }) in &set.aliases {
                if let (false, Some(code)) = (*flipped, by_name.get(parent.as_str())) {
                    names.vote(alias, code, 1);
                }
            }
        }
        for (code, name) in unicode {
            let code = plain_code(code);
            if codes.contains_key(code.as_str()) {
                names.vote(&slug(name), &code, 1);
            }
        }
        let squeezed = names
            .votes
            .keys()
            .filter_map(|name| Some((name.replace('-', ""), names.code(name)?.to_owned())));
        names.squeezed = squeezed.collect();
        names
    }

    fn vote(&mut self, name: &str, code: &str, weight: u32) {
        *self
            .votes
            .entry(name.to_owned())
            .or_default()
            .entry(code.to_owned())
            .or_default() += weight;
    }

    fn code(&self, name: &str) -> Option<&str> {
        // Equal votes go to the smaller code: any fixed choice will do.
        let best = |votes: &BTreeMap<String, u32>| votes.values().max().copied();
        let votes = self.votes.get(name)?;
        let top = best(votes)?;
        votes
            .iter()
            .find(|(_, weight)| **weight == top)
            .map(|(code, _)| code.as_str())
    }

    fn squeezed_code(&self, name: &str) -> Option<&str> {
        self.squeezed.get(&name.replace('-', "")).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::concepts::concept;

    fn set(icons: &str, aliases: &str, chars: &str) -> IconSet {
        let icons = format!(r#"{{"width":8,"height":8,"icons":{icons},"aliases":{aliases}}}"#);
        let files = [("icons.json", icons.as_str()), ("chars.json", chars)];
        IconSet::read(
            &files
                .map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec()))
                .into(),
        )
        .unwrap()
    }

    fn two() -> Vec<Concept> {
        let bear = Concept {
            code: "1f43b".into(),
            ..concept("bear", &[])
        };
        vec![
            bear,
            Concept {
                code: "1f604".into(),
                ..concept("big grin", &[])
            },
        ]
    }

    #[test]
    fn icons_older_name_is_found_through_an_alias() {
        let coded = set(
            r#"{"bear":{"body":""}}"#,
            r#"{"bear-face":{"parent":"bear"}}"#,
            r#"{"1f43b":"bear"}"#,
        );
        let old = set(r#"{"bear-face":{"body":""},"letter-x":{"body":""}}"#, "{}", "{}");
        let names = Names::gather(&two(), &[&coded], &BTreeMap::new());
        assert_eq!(
            old.by_name(&names, &two()),
            [("1f43b".to_owned(), "bear-face".to_owned())].into()
        );
    }

    #[test]
    fn names_two_claims_the_label_wins() {
        // The coded set calls another emoji by what is today the label of 1f604.
        let coded = set(r#"{"big-grin":{"body":""}}"#, "{}", r#"{"1f43b":"big-grin"}"#);
        let names = Names::gather(&two(), &[&coded], &BTreeMap::new());
        assert_eq!(names.code("big-grin"), Some("1f604"));
        assert_eq!(names.squeezed_code("biggrin"), Some("1f604"));
        assert_eq!(names.code("grin"), None);
    }

    #[test]
    fn svg_mirrored_alias_flips_its_parent() {
        let set = set(
            r#"{"left":{"body":"<p/>"}}"#,
            r#"{"right":{"parent":"left","hFlip":true}}"#,
            "{}",
        );
        assert!(set.svg("right").unwrap().contains("translate(8 0) scale(-1 1)"));
        assert!(!set.svg("left").unwrap().contains("scale"));
        assert!(set.svg("up").unwrap_err().to_string().contains("`up`"));
    }

    #[test]
    fn fx_names_icon_missing_from_the_set_is_named() {
        let error = set(r#"{"tramcar":{"body":""}}"#, "{}", "{}")
            .by_fx_name(&Names::default(), &[])
            .unwrap_err();
        assert!(error.to_string().contains("Fx has no icon `2hearts`"), "{error}");
    }

    #[test]
    fn fx_table_every_line_is_a_distinct_pair() {
        let lines: Vec<_> = FX_NAMES.lines().filter(|line| !line.starts_with('#')).collect();
        let pairs: Vec<(&str, &str)> = lines.iter().map(|line| line.split_once(' ').unwrap()).collect();
        let icons: BTreeSet<&str> = pairs.iter().map(|pair| pair.0).collect();
        let drawn: Vec<&str> = pairs.iter().map(|pair| pair.1).filter(|label| *label != "-").collect();
        assert!(
            lines.len() > 200 && icons.len() == lines.len(),
            "an icon is there twice"
        );
        assert_eq!(
            drawn.iter().collect::<BTreeSet<_>>().len(),
            drawn.len(),
            "a concept is there twice"
        );
        assert!(drawn.iter().all(|label| *label == slug(label)), "the table holds slugs");
    }
}
