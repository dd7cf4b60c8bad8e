//! The seven drawing styles: where each comes from, whose it is, and whether the demo trains on it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::concepts::{self, Concept, json, plain_code};
use crate::draw::Drawing;
use crate::icons::{IconByCode, IconSet, Names};
use crate::packages::{self, Files, Package};

/// How a set says which concept an icon draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    CodePoints,
    Labels,
    Fx,
    FileNames,
}

/// A drawing style.
#[derive(Debug)]
pub(crate) struct Style {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) author: &'static str,
    pub(crate) home: &'static str,
    /// SPDX identifier, as the package states it.
    pub(crate) licence: &'static str,
    pub(crate) package: &'static Package,
    pub(crate) trained: bool,
    naming: Naming,
}

impl Style {
    /// Fx stopped in 2016 and lacks younger emoji; every other style draws every class.
    fn complete(&self) -> bool {
        self.naming != Naming::Fx
    }
}

pub(crate) const STYLES: [Style; 7] = [
    Style {
        name: "noto",
        title: "Noto Emoji",
        author: "Google LLC and contributors",
        home: "https://github.com/googlefonts/noto-emoji",
        licence: "Apache-2.0",
        package: &packages::NOTO,
        trained: true,
        naming: Naming::CodePoints,
    },
    Style {
        name: "noto-v1",
        title: "Noto Emoji, first version",
        author: "Google Inc. and contributors",
        home: "https://github.com/googlefonts/noto-emoji",
        licence: "Apache-2.0",
        package: &packages::NOTO_V1,
        trained: true,
        naming: Naming::Labels,
    },
    Style {
        name: "fluent-flat",
        title: "Fluent Emoji, flat",
        author: "Microsoft Corporation",
        home: "https://github.com/microsoft/fluentui-emoji",
        licence: "MIT",
        package: &packages::FLUENT_FLAT,
        trained: true,
        naming: Naming::CodePoints,
    },
    Style {
        name: "fluent-3d",
        title: "Fluent Emoji, 3D",
        author: "Microsoft Corporation; packed by LobeHub",
        home: "https://github.com/microsoft/fluentui-emoji",
        licence: "MIT",
        package: &packages::FLUENT_3D,
        trained: true,
        naming: Naming::FileNames,
    },
    Style {
        name: "emojione",
        title: "Emoji One 2",
        author: "Ranks.com Inc. (Emoji One) and EmojiTwo contributors",
        home: "https://github.com/EmojiTwo/emojitwo",
        licence: "CC-BY-4.0",
        package: &packages::EMOJIONE,
        trained: true,
        naming: Naming::Labels,
    },
    Style {
        name: "twemoji",
        title: "Twemoji",
        author: "Twitter, Inc. and other contributors",
        home: "https://github.com/jdecked/twemoji",
        licence: "CC-BY-4.0",
        package: &packages::TWEMOJI,
        trained: false,
        naming: Naming::CodePoints,
    },
    Style {
        name: "fx",
        title: "Firefox OS Emoji",
        author: "Mozilla Foundation",
        home: "https://github.com/mozilla/fxemoji",
        licence: "Apache-2.0",
        package: &packages::FX,
        trained: false,
        naming: Naming::Fx,
    },
];

/// The pictures behind a style.
#[derive(Debug)]
enum Source {
    Icons(IconSet),
    Pictures(Files),
}

/// A style with its pictures at hand.
#[derive(Debug)]
pub(crate) struct Album {
    pub(crate) style: &'static Style,
    source: Source,
    icons: IconByCode,
}

impl Album {
    pub(crate) fn draws(&self, concept: &Concept) -> bool {
        self.icons.contains_key(&concept.code)
    }

    pub(crate) fn drawing(&self, concept: &Concept) -> Result<Drawing> {
        let style = self.style.name;
        let icon = self
            .icons
            .get(&concept.code)
            .with_context(|| format!("{style} has no `{}`", concept.name))?;
        let drawing = match &self.source {
            Source::Icons(set) => Drawing::from_svg(&set.svg(icon)?),
            Source::Pictures(files) => {
                let bytes = files
                    .get(icon)
                    .with_context(|| format!("{style} lacks the file `{icon}`"))?;
                Drawing::from_webp(bytes)
            }
        };
        drawing.with_context(|| format!("{style}: icon `{icon}`"))
    }
}

/// Every style and every concept of the class list, in Unicode's order.
#[derive(Debug)]
pub(crate) struct Collection {
    pub(crate) albums: Vec<Album>,
    pub(crate) classes: Vec<Concept>,
}

impl Collection {
    /// Opens all packages in `cache`, fetching what is missing.
    pub(crate) fn open(cache: &Path) -> Result<Self> {
        let about = packages::NAMES.open(cache)?;
        let all = concepts::read(&about)?;
        let formal: BTreeMap<String, String> = json(&about, "meta/unicode-names.json")?;
        let sources: Vec<Source> = STYLES
            .iter()
            .map(|style| open_source(style, cache))
            .collect::<Result<_>>()?;
        let coded: Vec<&IconSet> = STYLES
            .iter()
            .zip(&sources)
            .filter_map(|(style, source)| match source {
                Source::Icons(set) if style.naming == Naming::CodePoints => Some(set),
                _ => None,
            })
            .collect();
        let names = Names::gather(&all, &coded, &formal);
        let icons: Vec<IconByCode> = STYLES
            .iter()
            .zip(&sources)
            .map(|(style, source)| match (style.naming, source) {
                (Naming::Labels, Source::Icons(set)) => Ok(set.by_name(&names, &all)),
                (Naming::Fx, Source::Icons(set)) => set.by_fx_name(&names, &all),
                (_, Source::Icons(set)) => Ok(set.by_code(&all)),
                (_, Source::Pictures(files)) => Ok(pictures_by_code(files)),
            })
            .collect::<Result<_>>()?;
        let albums: Vec<Album> = STYLES
            .iter()
            .zip(sources)
            .zip(icons)
            .map(|((style, source), icons)| Album { style, source, icons })
            .collect();
        let shared = |concept: &Concept| {
            albums
                .iter()
                .all(|album| !album.style.complete() || album.draws(concept))
        };
        let classes = all.into_iter().filter(shared).collect();
        Ok(Self { albums, classes })
    }
}

fn open_source(style: &Style, cache: &Path) -> Result<Source> {
    let files = style.package.open(cache)?;
    let manifest: serde_json::Value = json(&files, "package.json")?;
    let stated = manifest["license"].as_str().unwrap_or("none");
    let package = style.package.name;
    ensure!(
        stated == style.licence,
        "{package} states licence {stated}, expected {}",
        style.licence
    );
    Ok(match style.naming {
        Naming::FileNames => Source::Pictures(files),
        _ => Source::Icons(IconSet::read(&files).with_context(|| format!("package {package}"))?),
    })
}

/// Files called by their code points: `assets/1f34e.webp`.
fn pictures_by_code(files: &Files) -> IconByCode {
    let code = |path: &String| {
        Some((
            plain_code(path.strip_prefix("assets/")?.strip_suffix(".webp")?),
            path.clone(),
        ))
    };
    files.keys().filter_map(code).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_file_names_become_codes() {
        let files: Files = ["assets/2764-fe0f.webp", "README.md"]
            .map(|path| (path.to_owned(), Vec::new()))
            .into_iter()
            .collect();
        let expected = [("2764".to_owned(), "assets/2764-fe0f.webp".to_owned())];
        assert_eq!(pictures_by_code(&files), expected.into());
    }

    #[test]
    fn styles_trained_and_unseen_are_both_there_and_permissive() {
        assert_eq!(STYLES.iter().filter(|style| style.trained).count(), 5);
        assert!(
            STYLES
                .iter()
                .all(|style| ["Apache-2.0", "MIT", "CC-BY-4.0"].contains(&style.licence))
        );
    }
}
