//! WebDataset shards of one style, and the archive they ship in.

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::captions::{PER_CONCEPT, caption};
use crate::concepts::Concept;
use crate::draw::{Drawing, Look};
use crate::encode::Format;
use crate::seed::Draws;
use crate::styles::Album;
use crate::tar;

/// Pictures per trained style and concept.
pub(crate) const RENDITIONS: usize = 2;
/// Training shards per style: several, so that a style can be spread over workers.
const TRAIN_SHARDS: usize = 6;
const TRAIN_QUALITY: i32 = 68;
const TEST_QUALITY: i32 = 68;

/// What a words-free reader may want to know of a sample.
#[derive(Debug, Serialize)]
struct About<'a> {
    concept: &'a str,
    codepoint: String,
    style: &'a str,
    subgroup: &'a str,
    keywords: &'a [String],
}

/// One image-text pair.
#[derive(Debug, Clone)]
struct Sample {
    key: String,
    class: usize,
    caption: String,
    about: String,
    rgb: Vec<u8>,
}

/// The archive of a style and what it holds.
#[derive(Debug)]
pub(crate) struct Archive {
    pub(crate) bytes: Vec<u8>,
    /// Samples by shard name.
    pub(crate) shards: BTreeMap<String, usize>,
}

/// Draws all of a style. `place` is its number among the styles: it sets which of a concept's captions the style gets.
pub(crate) fn archive(album: &Album, place: usize, classes: &[Concept]) -> Result<Archive> {
    let style = album.style.name;
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for (class, concept) in classes.iter().enumerate().filter(|(_, concept)| album.draws(concept)) {
        let drawing = album.drawing(concept)?;
        if album.style.trained {
            for rendition in 0..RENDITIONS {
                let key = format!("{style}-{}-{rendition}", concept.code);
                let look = Look::varied(&mut Draws::for_key(&key), colour_matters(concept));
                let words = caption(concept, place * RENDITIONS + rendition);
                train.push(sample(key, class, style, concept, words, &drawing, &look)?);
            }
        }
        let key = format!("{style}-{}-t", concept.code);
        let look = Look::plain(&mut Draws::for_key(&key));
        let words = caption(concept, PER_CONCEPT - 1 - place % 2);
        test.push(sample(key, class, style, concept, words, &drawing, &look)?);
    }
    pack(style, train, &test)
}

fn pack(style: &str, mut train: Vec<Sample>, test: &[Sample]) -> Result<Archive> {
    Draws::for_key(style).shuffle(&mut train);
    let mut outer = tar::Writer::default();
    let mut shards = BTreeMap::new();
    let mut add = |name: String, samples: &[Sample], first: usize, quality: i32| -> Result<()> {
        outer.add(&name, &shard(samples, first, quality)?)?;
        shards.insert(name, samples.len());
        Ok(())
    };
    for (number, samples) in split(&train, TRAIN_SHARDS).into_iter().enumerate() {
        add(format!("{style}/train-{number:05}.tar"), samples, number, TRAIN_QUALITY)?;
    }
    add(format!("{style}/test-00000.tar"), test, 0, TEST_QUALITY)?;
    let mut encoder = zstd::Encoder::new(Vec::new(), 19).context("cannot start zstd")?;
    encoder.include_checksum(true).context("zstd takes no checksum")?;
    encoder.write_all(&outer.finish()).context("cannot compress")?;
    let bytes = encoder.finish().context("cannot end the zstd stream")?;
    Ok(Archive { bytes, shards })
}

/// Near-equal runs; none when there is nothing.
fn split<T>(items: &[T], parts: usize) -> Vec<&[T]> {
    if items.is_empty() {
        Vec::new()
    } else {
        items.chunks(items.len().div_ceil(parts)).collect()
    }
}

/// One tar: picture, txt, json, cls per sample.
fn shard(samples: &[Sample], first: usize, quality: i32) -> Result<Vec<u8>> {
    let mut tar = tar::Writer::default();
    for (number, sample) in samples.iter().enumerate() {
        let format = Format::of(first + number);
        tar.add(
            &format!("{}.{}", sample.key, format.ending()),
            &format.encode(&sample.rgb, quality)?,
        )?;
        tar.add(&format!("{}.txt", sample.key), sample.caption.as_bytes())?;
        tar.add(&format!("{}.json", sample.key), sample.about.as_bytes())?;
        tar.add(&format!("{}.cls", sample.key), sample.class.to_string().as_bytes())?;
    }
    Ok(tar.finish())
}

fn sample(
    key: String,
    class: usize,
    style: &str,
    concept: &Concept,
    caption: String,
    drawing: &Drawing,
    look: &Look,
) -> Result<Sample> {
    let rgb = drawing.render(look).with_context(|| format!("sample `{key}`"))?;
    ensure!(
        rgb.chunks_exact(3).any(|pixel| pixel != &rgb[..3]),
        "sample `{key}` shows nothing; leave its icon out"
    );
    let about = About {
        concept: &concept.name,
        codepoint: concept.code.to_ascii_uppercase(),
        style,
        subgroup: &concept.subgroup,
        keywords: &concept.keywords,
    };
    let about = serde_json::to_string(&about).context("cannot write the sample's JSON")?;
    Ok(Sample {
        key,
        class,
        caption,
        about,
        rgb,
    })
}

/// Whether the concept is told from others by its colour.
fn colour_matters(concept: &Concept) -> bool {
    const COLOURS: [&str; 11] = [
        "red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "pink", "rainbow",
    ];
    ["heart", "geometric"].contains(&concept.subgroup.as_str())
        || concept.name.split(' ').any(|word| COLOURS.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::concepts::concept;

    fn tiny() -> Vec<Sample> {
        let svg = r#"<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><circle cx="4" cy="4" r="3"/></svg>"#;
        let drawing = Drawing::from_svg(svg).unwrap();
        let concept = concept("red apple", &["fruit"]);
        let draw = |number: usize| {
            let key = format!("noto-{number}-0");
            let look = Look::varied(&mut Draws::for_key(&key), true);
            sample(
                key,
                number,
                "noto",
                &concept,
                caption(&concept, number),
                &drawing,
                &look,
            )
            .unwrap()
        };
        (0..13).map(draw).collect()
    }

    #[test]
    fn pack_twice_gives_the_same_bytes() {
        let (a, b) = (
            pack("noto", tiny(), &tiny()).unwrap(),
            pack("noto", tiny(), &tiny()).unwrap(),
        );
        assert!(a.bytes == b.bytes, "two runs differ");
        assert_eq!(a.shards["noto/train-00000.tar"], 3);
        assert_eq!((a.shards.len(), a.shards.values().sum::<usize>()), (6, 26));
    }

    #[test]
    fn shard_every_sample_has_its_four_files() {
        let entries = tar::read(&shard(&tiny(), 0, 75).unwrap()).unwrap();
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(
            names[..4],
            ["noto-0-0.png", "noto-0-0.txt", "noto-0-0.json", "noto-0-0.cls"]
        );
        assert_eq!(names.len(), 13 * 4);
        let about: serde_json::Value = serde_json::from_slice(&entries[2].data).unwrap();
        assert_eq!(
            (about["codepoint"].as_str(), about["keywords"][0].as_str()),
            (Some("1F34E"), Some("fruit"))
        );
    }

    #[test]
    fn sample_empty_drawing_is_refused() {
        let drawing = Drawing::from_svg(r#"<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>"#).unwrap();
        let look = Look::plain(&mut Draws::for_key("x"));
        let error = sample(
            "k".into(),
            0,
            "noto",
            &concept("red apple", &[]),
            "c".into(),
            &drawing,
            &look,
        );
        assert!(error.unwrap_err().to_string().contains("shows nothing"));
    }

    #[test]
    fn colour_names_are_told_by_colour() {
        assert!(colour_matters(&concept("red apple", &[])));
        assert!(!colour_matters(&concept("shredded wheat", &[])));
    }
}
