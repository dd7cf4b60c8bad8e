//! From tar members to samples, as WebDataset groups them.

use crate::tar::Member;
use crate::tokenize;
use argosy_common::config::{CaptionDraw, DataConfig};
use argosy_common::rng::Draws;
use serde_json::Value;
use std::ops::Range;

/// Most members of one sample; a shard could give millions the same base name. What follows is a sample of its own, which lacks a
/// picture and is counted so.
pub const MEMBERS_MAX: usize = 128;

/// Which members of a sample are its picture and its caption, in order of preference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    image: Vec<String>,
    text: Vec<TextSource>,
}

/// Where a caption may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextSource {
    /// The member with this suffix is the caption.
    Member(String),
    /// A field of the member `json`; dots lead into objects. An array holds several captions.
    Field(String),
}

impl TextSource {
    /// Suffix of the member that it stands in.
    #[must_use]
    pub fn suffix(&self) -> &str {
        match self {
            Self::Member(suffix) => suffix,
            Self::Field(_) => "json",
        }
    }
}

/// A caption of a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caption {
    /// Which entry of the keys it comes from.
    pub entry: usize,
    /// Its text, not cleaned.
    pub text: String,
}

impl Keys {
    /// From lists joined by `;`, as OpenCLIP and WebDataset write them; `json:FIELD` is a caption in a field.
    #[must_use]
    pub fn new(image_key: &str, text_key: &str) -> Self {
        let entries = |keys: &str| -> Vec<String> {
            let entries = keys.split(';').map(|k| k.trim().trim_start_matches('.').to_owned());
            entries.filter(|k| !k.is_empty()).collect()
        };
        let text = |entry: String| match entry.split_once(':') {
            Some((suffix, field)) if suffix.eq_ignore_ascii_case("json") => TextSource::Field(field.trim().to_owned()),
            _ => TextSource::Member(entry.to_lowercase()),
        };
        Self {
            image: entries(image_key).into_iter().map(|k| k.to_lowercase()).collect(),
            text: entries(text_key).into_iter().map(text).collect(),
        }
    }

    /// Where captions may stand, in order of preference.
    #[must_use]
    pub fn texts(&self) -> &[TextSource] {
        &self.text
    }
}

/// The value of a field; dots lead into objects.
#[must_use]
pub fn field<'a>(json: &'a Value, path: &str) -> Option<&'a Value> {
    // A field whose own name has dots is found before they are taken as a path.
    json.get(path)
        .or_else(|| path.split('.').try_fold(json, |value, name| value.get(name)))
}

/// The captions that entry number `entry` finds in the bytes of its member; none when they are not UTF-8 or not JSON.
#[must_use]
pub fn captions_of(entry: usize, source: &TextSource, bytes: &[u8]) -> Vec<Caption> {
    let one = |text: &str| Caption {
        entry,
        text: text.to_owned(),
    };
    match source {
        TextSource::Member(_) => std::str::from_utf8(bytes).map(one).into_iter().collect(),
        TextSource::Field(path) => {
            let json: Option<Value> = serde_json::from_slice(bytes).ok();
            match json.as_ref().and_then(|json| field(json, path)) {
                Some(Value::String(text)) => vec![one(text)],
                Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).map(one).collect(),
                _ => Vec::new(),
            }
        }
    }
}

/// Whether a caption is as long as the filter asks for, in characters without the spaces round it.
#[must_use]
pub fn is_of_length(text: &str, [low, high]: [u32; 2]) -> bool {
    (low as usize..=high as usize).contains(&text.trim().chars().count())
}

/// The caption that is trained; `None` without any. `draws` are those of the row (rule L1: a pure function of its place).
///
/// Where the filter asks for captions of some length, those of another are as good as not there: the index keeps a row that has
/// one that fits, and this one is trained.
#[must_use]
pub fn choose<'a>(captions: &'a [Caption], data: &DataConfig, draws: &mut Draws) -> Option<&'a str> {
    let fits = |caption: &&Caption| {
        let wanted = data.filter.caption_chars;
        wanted.is_none_or(|wanted| is_of_length(&caption.text, wanted))
    };
    let captions: Vec<&Caption> = captions.iter().filter(fits).collect();
    let first = captions.first()?.entry;
    let entry = match data.caption_draw {
        CaptionDraw::First => first,
        CaptionDraw::Weighted => {
            let weight = |entry: usize| data.caption_weights.get(entry).copied().unwrap_or(1.0);
            let mut entries: Vec<usize> = captions.iter().map(|c| c.entry).collect();
            entries.dedup();
            let sum: f64 = entries.iter().map(|e| weight(*e)).sum();
            let mut at = draws.unit() * sum;
            // Where all that the sample has weighs nothing, its first is better than no caption.
            let mut chosen = first;
            for entry in entries.into_iter().filter(|e| weight(*e) > 0.0) {
                chosen = entry;
                at -= weight(entry);
                if at < 0.0 {
                    break;
                }
            }
            chosen
        }
    };
    let own: Vec<&Caption> = captions.into_iter().filter(|c| c.entry == entry).collect();
    let i = if own.len() > 1 {
        draws.below(own.len() as u64) as usize
    } else {
        0
    };
    own.get(i).map(|caption| caption.text.as_str())
}

/// Consecutive members that share a base name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Path up to the first dot of the last component.
    pub key: String,
    /// (suffix in lower case, data), in the archive's order.
    pub members: Vec<(String, Range<u64>)>,
    /// First byte of the first member's headers.
    pub start: u64,
    /// One past the last member's padded data.
    pub end: u64,
}

impl Group {
    /// The data of the first suffix in `wanted` that the sample has.
    fn first_of(&self, wanted: &[String]) -> Option<Range<u64>> {
        wanted.iter().find_map(|key| self.get(key))
    }

    /// The data of the member with suffix `suffix`.
    #[must_use]
    pub fn get(&self, suffix: &str) -> Option<Range<u64>> {
        self.members
            .iter()
            .find(|(s, _)| s == suffix)
            .map(|(_, data)| data.clone())
    }

    /// Where the picture lies.
    #[must_use]
    pub fn image(&self, keys: &Keys) -> Option<Range<u64>> {
        self.first_of(&keys.image)
    }

    /// Whether a member is there in which a caption may stand.
    #[must_use]
    pub fn has_text(&self, keys: &Keys) -> bool {
        keys.text.iter().any(|source| self.get(source.suffix()).is_some())
    }

    /// All captions that the sample has, in order of preference; `bytes` gives the data of a range.
    #[must_use]
    pub fn captions<'b>(&self, keys: &Keys, bytes: impl Fn(Range<u64>) -> &'b [u8]) -> Vec<Caption> {
        let entries = keys.text.iter().enumerate();
        entries
            .filter_map(|(i, source)| Some((i, source, self.get(source.suffix())?)))
            .flat_map(|(i, source, range)| captions_of(i, source, bytes(range)))
            .filter(|caption| !tokenize::is_empty(&caption.text))
            .collect()
    }
}

/// Gathers members into groups, one at a time.
#[derive(Debug, Default)]
pub struct Grouper {
    open: Option<Group>,
}

impl Grouper {
    /// Takes the next member of the archive; gives the sample that it completes.
    ///
    /// Members without a base name or suffix, and WebDataset's `__meta__` members, belong to no sample. A suffix that the
    /// sample has already begins a new one: LAION's shards hold such neighbours. So does a member too many.
    pub fn push(&mut self, member: &Member) -> Option<Group> {
        if is_meta(&member.name) {
            return None;
        }
        let (key, suffix) = split_name(&member.name)?;
        let suffix = suffix.to_lowercase();
        let same = self
            .open
            .as_ref()
            .is_some_and(|g| g.key == key && g.members.len() < MEMBERS_MAX && g.get(&suffix).is_none());
        let done = if same { None } else { self.open.take() };
        let group = self.open.get_or_insert_with(|| Group {
            key: key.to_owned(),
            start: member.start,
            ..Group::default()
        });
        group.members.push((suffix, member.data.clone()));
        group.end = member.end();
        done
    }

    /// The last sample of the archive.
    pub fn finish(self) -> Option<Group> {
        self.open
    }
}

/// `__name__` or a folder of that form at the top of the archive.
fn is_meta(name: &str) -> bool {
    let top = name.split('/').next().unwrap_or_default();
    top.len() >= 4 && top.starts_with("__") && top.ends_with("__")
}

/// Splits at the first dot of the last path component.
fn split_name(name: &str) -> Option<(&str, &str)> {
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = file + name[file..].find('.')?;
    (dot > file).then(|| (&name[..dot], &name[dot + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(names: &[&str]) -> Vec<(String, Vec<String>)> {
        let mut grouper = Grouper::default();
        let mut out = Vec::new();
        for (i, name) in names.iter().enumerate() {
            let at = i as u64 * 1024;
            out.extend(grouper.push(&Member {
                name: (*name).into(),
                start: at,
                data: at + 512..at + 600,
            }));
        }
        out.extend(grouper.finish());
        out.into_iter()
            .map(|g| (g.key, g.members.into_iter().map(|(s, _)| s).collect()))
            .collect()
    }

    #[test]
    fn members_of_one_base_name_make_one_sample() {
        let got = groups(&["a/1.JPG", "a/1.txt", "a.b/2.seg.png", "a.b/2.txt"]);
        let expected = [("a/1", vec!["jpg", "txt"]), ("a.b/2", vec!["seg.png", "txt"])];
        assert_eq!(
            got,
            expected.map(|(k, s)| (k.to_owned(), s.into_iter().map(str::to_owned).collect()))
        );
    }

    #[test]
    fn suffix_repeated_begins_a_new_sample() {
        assert_eq!(groups(&["1.jpg", "1.txt", "1.jpg", "1.txt"]).len(), 2);
    }

    #[test]
    fn sample_of_too_many_members_ends_and_another_begins() {
        let names: Vec<String> = (0..300).map(|i| format!("1.{i}")).collect();
        let groups = groups(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let members: Vec<usize> = groups.iter().map(|(_, members)| members.len()).collect();
        assert_eq!(members, [MEMBERS_MAX, MEMBERS_MAX, 300 - 2 * MEMBERS_MAX]);
    }

    #[test]
    fn members_without_a_sample_are_passed_over() {
        assert_eq!(
            groups(&["README", ".hidden", "__meta__/x.txt", "1.jpg", "__info__", "1.txt"]).len(),
            1
        );
    }

    #[test]
    fn picture_is_taken_by_the_order_of_the_key() {
        let keys = Keys::new("jpg;png", "txt");
        let group = Group {
            members: vec![("png".into(), 0..1), ("jpg".into(), 1..2)],
            ..Group::default()
        };
        assert_eq!(group.image(&keys), Some(1..2));
        assert!(!group.has_text(&keys));
    }

    fn data(draw: &str) -> DataConfig {
        let text = format!(
            "version = 1\nname = \"t\"\n[model]\nname = \"ViT-B-32\"\n[data]\nsources = [{{ shards = \".\" }}]\n{draw}\n[train]\n"
        );
        argosy_common::config::Job::from_toml("t", &text)
            .expect("a good job")
            .data
    }

    fn group_with(txt: &str, json: &str) -> (Group, Vec<u8>) {
        let bytes = [txt.as_bytes(), json.as_bytes()].concat();
        let split = txt.len() as u64;
        let members = vec![("txt".into(), 0..split), ("json".into(), split..bytes.len() as u64)];
        let group = Group {
            members,
            ..Group::default()
        };
        (group, bytes)
    }

    fn drawn(text_key: &str, draw: &str, txt: &str, json: &str) -> std::collections::BTreeMap<String, u32> {
        let keys = Keys::new("jpg", text_key);
        let (group, bytes) = group_with(txt, json);
        let captions = group.captions(&keys, |r| &bytes[r.start as usize..r.end as usize]);
        let data = data(&format!("text_key = \"{text_key}\"\n{draw}"));
        let mut seen = std::collections::BTreeMap::new();
        for position in 0..4000 {
            let mut draws = Draws::new(3, argosy_common::rng::Purpose::Caption, 1, position);
            let chosen = choose(&captions, &data, &mut draws).unwrap_or("-").to_owned();
            *seen.entry(chosen).or_default() += 1;
        }
        seen
    }

    #[test]
    fn caption_of_first_choice_is_the_first_entry_there_is() {
        let json = r#"{"alt": "from json", "deep": {"er": "deep"}, "many": ["a", "b", "c", " "]}"#;
        let only = |text: &str| [(text.to_owned(), 4000)].into();
        assert_eq!(drawn("txt;json:alt", "", "from txt", json), only("from txt"));
        assert_eq!(drawn("json:alt;txt", "", "from txt", json), only("from json"));
        assert_eq!(drawn("json:none;json:deep.er;txt", "", "from txt", json), only("deep"));
        assert_eq!(
            drawn("txt;json:alt", "", " \n", json),
            only("from json"),
            "an empty caption is none"
        );
        assert_eq!(drawn("json:alt", "", "from txt", "{"), only("-"));
        let many = drawn("json:many", "", "", json);
        assert!(
            many.len() == 3 && many.values().all(|n| (1200..1470).contains(n)),
            "{many:?}"
        );
    }

    #[test]
    fn caption_of_another_length_than_the_filter_asks_for_is_never_drawn() {
        let many = r#"{"many": ["a", "three", "seven", "much too long"]}"#;
        let filter = "[data.filter]\ncaption_chars = [2, 7]";
        let seen = drawn("txt;json:many", filter, "much longer than that", many);
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["seven", "three"]);
        let weighted = format!("caption_draw = \"weighted\"\ncaption_weights = [9, 1]\n{filter}");
        let seen = drawn("txt;json:many", &weighted, "much longer than that", many);
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["seven", "three"]);
        assert_eq!(drawn("txt", filter, "x", "{}"), [("-".to_owned(), 4000)].into());
    }

    #[test]
    fn caption_of_weighted_choice_follows_the_weights_of_what_is_there() {
        let draw = "caption_draw = \"weighted\"\ncaption_weights = [1, 3, 0]";
        let seen = drawn("txt;json:a;json:b", draw, "t", r#"{"a": "a", "b": "b"}"#);
        assert!(seen.len() == 2 && (900..1100).contains(&seen["t"]), "{seen:?}");
        assert_eq!(
            drawn("txt;json:a;json:b", draw, "t", r#"{"b": "b"}"#),
            [("t".to_owned(), 4000)].into()
        );
        assert_eq!(
            drawn("txt;json:a;json:b", draw, "", r#"{"b": "b"}"#),
            [("b".to_owned(), 4000)].into()
        );
    }
}
