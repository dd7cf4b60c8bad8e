//! The text files beside the archives. Their numbers come from what was drawn, never from a keyboard.

use std::fmt::Write as _;

use crate::captions::TEMPLATES;
use crate::concepts::Concept;
use crate::draw::SIDE_PX;
use crate::packages;
use crate::shards::{Archive, RENDITIONS};
use crate::styles::Style;

type Drawn = [(&'static Style, Archive)];

/// File names and contents.
pub(crate) fn files(classes: &[Concept], drawn: &Drawn) -> Vec<(&'static str, String)> {
    let lines =
        |line: &dyn Fn(usize, &Concept) -> String| classes.iter().enumerate().map(|(n, c)| line(n, c)).collect();
    vec![
        ("classes.txt", lines(&|_, concept| format!("{}\n", concept.name))),
        (
            "subcategories.txt",
            lines(&|number, concept| format!("{number}\t{}\n", concept.subgroup)),
        ),
        (
            "templates.txt",
            TEMPLATES.iter().map(|template| format!("{template}\n")).collect(),
        ),
        ("README.md", readme(classes, drawn)),
        ("NOTICE.md", notice(drawn.iter().map(|(style, _)| *style))),
    ]
}

/// Samples of a style's `train` or `test` shards.
pub(crate) fn samples(archive: &Archive, part: &str) -> usize {
    archive
        .shards
        .iter()
        .filter(|(name, _)| name.contains(&format!("/{part}-")))
        .map(|(_, count)| count)
        .sum()
}

/// One row of the README's table; a test reads it back.
pub(crate) fn row(style: &Style, archive: &Archive) -> String {
    format!(
        "| {} | {} | {} | {} | {} | {} | {} |",
        style.name,
        style.title,
        if style.trained { "yes" } else { "no" },
        samples(archive, "train"),
        samples(archive, "test"),
        archive.shards.len(),
        archive.bytes.len()
    )
}

fn readme(classes: &[Concept], drawn: &Drawn) -> String {
    let mut subgroups: Vec<&str> = classes.iter().map(|concept| concept.subgroup.as_str()).collect();
    subgroups.sort_unstable();
    subgroups.dedup();
    let bytes: usize = drawn.iter().map(|(_, archive)| archive.bytes.len()).sum();
    let samples: usize = drawn.iter().flat_map(|(_, archive)| archive.shards.values()).sum();
    let rows: String = drawn
        .iter()
        .map(|(style, archive)| row(style, archive) + "\n")
        .collect();
    let chance = 100.0 / classes.len() as f64;
    let (classes, groups) = (classes.len(), subgroups.len());
    format!(
        "# The demo's data: one world, seven hands

The same {classes} things, each drawn in up to seven styles. A model trains on some styles and is then asked, zero-shot, what it
sees in styles that it never met. Chance is {chance:.3} % top-1 over all {classes} names. Everything here is made by
`cargo xtask demo-data` (source in `ops/demo-data`) and comes out byte for byte the same each time; do not edit it by hand.

| style | drawn by | trained | train samples | test samples | shards | bytes |
|---|---|---|---|---|---|---|
{rows}
{samples} image-text pairs in {bytes} bytes.

- `STYLE.tar.zst` holds `STYLE/train-0000N.tar` and `STYLE/test-00000.tar`, WebDataset shards of {SIDE_PX} x {SIDE_PX} px pictures
  (`jpg`, some `png` and `webp`) with `txt` (caption), `json` (`concept`, `codepoint`, `style`, `subgroup`, `keywords`) and `cls`
  (class number).
- A training shard mixes all things; each thing comes {RENDITIONS} times per style, each time at another size, place, angle, tint and
  background, with another caption. A test shard shows each thing once, upright on a quiet background, in no look that was trained on.
- `classes.txt`: the name of class N in line N + 1. `subcategories.txt`: class number, tab, one of {groups} subcategories.
  `templates.txt`: phrases with `{{}}` for the name.
- The class list is what six styles share. Fx ended in 2016 and lacks younger emoji; it is tested on those it has, against all names.

Authors and licences are in [NOTICE.md](NOTICE.md).
"
    )
}

/// Whose everything is; a test holds it against the committed file.
pub(crate) fn notice(styles: impl IntoIterator<Item = &'static Style>) -> String {
    let mut text = String::from(
        "# Whose drawings these are

The pictures in the archives are works of the authors below, under their licences. Changes made: each drawing was rasterised
(or reduced), resized, moved, turned by a few degrees, tinted or turned gray in part, laid on a plain or two-coloured background and
saved as JPEG, PNG or WebP. No author endorses this project.
",
    );
    for style in styles {
        let Style {
            title,
            author,
            home,
            licence,
            package,
            ..
        } = style;
        let file = match (*licence, style.name) {
            ("MIT", "fluent-3d") => "licenses/MIT-fluent.txt and licenses/MIT-lobehub.txt".to_owned(),
            ("MIT", _) => "licenses/MIT-fluent.txt".to_owned(),
            _ => format!("licenses/{licence}.txt"),
        };
        let _ = write!(
            text,
            "\n## {title} (`{}.tar.zst`)\n\n- Author: {author}\n- Home: {home}\n- Licence: {licence}, text in {file}\n- Taken from: \
             {} {}\n",
            style.name, package.name, package.version
        );
    }
    let _ = write!(
        text,
        "\n## Names, keywords and subcategories (captions, `classes.txt`, `subcategories.txt`)\n\n- Author: Unicode, Inc. \
         (Unicode CLDR and the emoji data files), packed by Miles Johnson and contributors (emojibase)\n- Copyright: \
         Copyright (c) 1991-2025 Unicode, Inc.; Copyright (c) 2017-2019 Miles Johnson\n- Home: https://cldr.unicode.org and \
         https://github.com/milesj/emojibase\n- Licence: Unicode-3.0, text in licenses/Unicode-3.0.txt; the packing MIT, text in \
         licenses/MIT-emojibase.txt\n- Changes made: a part of the names and keywords was chosen and put into phrases\n- Taken \
         from: {} {}\n",
        packages::NAMES.name,
        packages::NAMES.version
    );
    text
}
