//! The committed archives hold what the texts beside them say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use crate::encode::decoded_size;
use crate::styles::STYLES;
use crate::{ARCHIVE_BYTES_MAX, CLASSES_MIN, notes, shards, tar};

fn demo(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../demo").join(name)
}

fn lines(name: &str) -> Vec<String> {
    fs::read_to_string(demo(name))
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// Checks every file of a shard and returns (samples, captions, classes).
fn check_shard(name: &str, bytes: &[u8], classes: &[String]) -> (usize, BTreeSet<String>, BTreeSet<usize>) {
    let mut samples: BTreeMap<String, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
    for entry in tar::read(bytes).unwrap() {
        let (key, ending) = entry.name.split_once('.').unwrap();
        samples
            .entry(key.to_owned())
            .or_default()
            .insert(ending.to_owned(), entry.data);
    }
    let (mut captions, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for (key, files) in &samples {
        let pictures: Vec<_> = files
            .keys()
            .filter(|e| ["jpg", "png", "webp"].contains(&e.as_str()))
            .collect();
        assert_eq!((pictures.len(), files.len()), (1, 4), "{name}: {key}");
        assert_eq!(
            decoded_size(pictures[0], &files[pictures[0]]).unwrap(),
            (64, 64),
            "{name}: {key}"
        );
        let caption = std::str::from_utf8(&files["txt"]).unwrap();
        let class: usize = std::str::from_utf8(&files["cls"]).unwrap().parse().unwrap();
        let about: serde_json::Value = serde_json::from_slice(&files["json"]).unwrap();
        assert_eq!(about["concept"], classes[class].as_str(), "{name}: {key}");
        assert!(caption.contains(&classes[class]), "{name}: {key}: `{caption}`");
        captions.insert(caption.to_owned());
        seen.insert(class);
    }
    (samples.len(), captions, seen)
}

#[test]
fn committed_archives_hold_what_the_readme_says() {
    let (classes, readme) = (lines("classes.txt"), lines("README.md"));
    let mut total = 0;
    for style in &STYLES {
        let bytes = fs::read(demo(&format!("{}.tar.zst", style.name))).unwrap();
        total += bytes.len();
        let plain = zstd::decode_all(bytes.as_slice()).unwrap();
        let mut archive = shards::Archive {
            bytes,
            shards: BTreeMap::new(),
        };
        let mut trained = BTreeSet::new();
        for entry in tar::read(&plain).unwrap() {
            let (count, captions, seen) = check_shard(&entry.name, &entry.data, &classes);
            assert!(captions.len() * 10 > count * 9, "{}: captions repeat", entry.name);
            if entry.name.contains("/train-") {
                trained.extend(seen);
            } else if style.name != "fx" {
                assert_eq!(seen.len(), classes.len(), "{} lacks classes", entry.name);
            }
            archive.shards.insert(entry.name, count);
        }
        assert_eq!(
            trained.len(),
            if style.trained { classes.len() } else { 0 },
            "{}",
            style.name
        );
        assert!(
            notes::samples(&archive, "test") >= CLASSES_MIN,
            "{} shows too few things",
            style.name
        );
        assert!(
            readme.contains(&notes::row(style, &archive)),
            "the README does not say {}",
            notes::row(style, &archive)
        );
    }
    assert!(total <= ARCHIVE_BYTES_MAX, "{total} bytes");
}

#[test]
fn committed_lists_agree_with_each_other() {
    let (classes, subcategories) = (lines("classes.txt"), lines("subcategories.txt"));
    assert!(classes.len() >= CLASSES_MIN);
    assert_eq!(
        classes.iter().collect::<BTreeSet<_>>().len(),
        classes.len(),
        "a class name is there twice"
    );
    for (number, line) in subcategories.iter().enumerate() {
        let (index, subcategory) = line.split_once('\t').unwrap();
        assert_eq!(index.parse::<usize>().unwrap(), number);
        assert!(!subcategory.is_empty());
    }
    assert_eq!(subcategories.len(), classes.len());
    assert!(
        lines("templates.txt")
            .iter()
            .all(|template| template.matches("{}").count() == 1)
    );
    let notice = lines("NOTICE.md").join("\n");
    for style in &STYLES {
        assert!(
            notice.contains(style.package.name) && notice.contains(style.home),
            "{} is not named",
            style.name
        );
    }
}

#[test]
fn committed_notice_is_the_one_that_is_written_and_its_licences_are_there() {
    let notice = fs::read_to_string(demo("NOTICE.md")).unwrap();
    assert_eq!(notice, notes::notice(&STYLES));
    let files: Vec<&str> = notice
        .split(|c: char| c.is_whitespace() || ",;".contains(c))
        .filter(|word| word.starts_with("licenses/"))
        .collect();
    assert!(files.contains(&"licenses/Unicode-3.0.txt"), "{files:?}");
    for file in files {
        assert!(fs::read_to_string(demo(file)).unwrap().len() > 500, "{file}");
    }
    let whole = fs::read_to_string(demo("../../NOTICE")).unwrap();
    for style in &STYLES {
        assert!(
            whole.contains(style.author.split(';').next().unwrap()),
            "{} lacks its author",
            style.name
        );
    }
}
