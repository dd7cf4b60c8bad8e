//! From tar members to samples, as WebDataset groups them.

use crate::tar::Member;
use std::ops::Range;

/// Which members of a sample are its picture and its caption, in order of preference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    image: Vec<String>,
    text: Vec<String>,
}

impl Keys {
    /// From lists joined by `;`, as OpenCLIP and WebDataset write them.
    #[must_use]
    pub fn new(image_key: &str, text_key: &str) -> Self {
        let list = |keys: &str| {
            keys.split(';')
                .map(|k| k.trim().trim_start_matches('.').to_ascii_lowercase())
                .filter(|k| !k.is_empty())
                .collect()
        };
        Self {
            image: list(image_key),
            text: list(text_key),
        }
    }
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

    /// Where the caption lies.
    #[must_use]
    pub fn text(&self, keys: &Keys) -> Option<Range<u64>> {
        self.first_of(&keys.text)
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
    /// sample has already begins a new one: LAION's shards hold such neighbours.
    pub fn push(&mut self, member: &Member) -> Option<Group> {
        if is_meta(&member.name) {
            return None;
        }
        let (key, suffix) = split_name(&member.name)?;
        let suffix = suffix.to_lowercase();
        let same = self
            .open
            .as_ref()
            .is_some_and(|g| g.key == key && g.get(&suffix).is_none());
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
        assert_eq!(group.text(&keys), None);
    }
}
