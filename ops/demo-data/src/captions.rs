//! The words beside a picture: names, keywords and phrases round them.

use crate::concepts::Concept;
use crate::seed::Draws;

/// Phrases for zero-shot evaluation, `{}` for the class name; the training captions say the same in better grammar.
pub(crate) const TEMPLATES: [&str; 8] = [
    "{}",
    "{} emoji",
    "{} icon",
    "a drawing of a {}.",
    "an emoji of a {}.",
    "a small picture of a {}.",
    "clip art of a {}.",
    "a sticker of a {}.",
];

/// How many captions a concept has, no two alike.
pub(crate) const PER_CONCEPT: usize = 12;

/// The caption number `index` of a concept (taken modulo their count). A concept's captions come in an order of its own,
/// so the styles, which walk it side by side, do not each get one phrase.
pub(crate) fn caption(concept: &Concept, index: usize) -> String {
    let mut draws = Draws::for_key(&concept.code);
    let mut order: Vec<usize> = (0..PER_CONCEPT).collect();
    draws.shuffle(&mut order);
    let mut words = concept.keywords.clone();
    let (name, kin) = (concept.name.to_ascii_lowercase(), concept.subgroup.replace('-', " "));
    words.retain(|word| !name.contains(word.as_str()) && *word != kin);
    draws.shuffle(&mut words);
    phrase(concept, &words, order[index % PER_CONCEPT])
}

fn phrase(concept: &Concept, words: &[String], kind: usize) -> String {
    let name = &concept.name;
    let thing = with_article(name);
    let kin = concept.subgroup.replace('-', " ");
    let word = words.first().unwrap_or(&kin);
    match kind {
        0 => format!("a drawing of {thing}."),
        1 => format!("an emoji of {thing}."),
        2 => name.clone(),
        3 if words.is_empty() => format!("picture: {name}"),
        3 => format!("{name}, {word}"),
        4 => format!("a small picture of {thing}."),
        5 => format!("clip art of {thing}."),
        6 => format!("{}, {name}", keywords(words, &kin)),
        7 => format!("{name} icon"),
        8 => format!("{name}, {kin}"),
        9 => format!("a sticker of {thing}, {word}."),
        10 => format!("{name} emoji"),
        _ => format!("{name}: {}", keywords(words, &kin)),
    }
}

/// Up to three keywords; the subgroup's words where a concept has none.
fn keywords(words: &[String], kin: &str) -> String {
    if words.is_empty() {
        kin.to_owned()
    } else {
        words[..words.len().min(3)].join(", ")
    }
}

/// `a` or `an` by the first letter; none before plurals, names and what already has a number or article of its own.
fn with_article(name: &str) -> String {
    let plural = name
        .split(' ')
        .next_back()
        .is_some_and(|last| last.ends_with('s') && !["ss", "us", "is", "as"].iter().any(|end| last.ends_with(end)));
    let proper = name.starts_with(|first: char| first.is_ascii_uppercase());
    match name.chars().next() {
        Some(first) if !plural && !proper && first.is_ascii_lowercase() => {
            // "unicorn" and "one o'clock" begin with consonants to the ear.
            let vowel = "aeiou".contains(first) && !["uni", "one"].iter().any(|start| name.starts_with(start));
            format!("{} {name}", if vowel { "an" } else { "a" })
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::concepts::concept;

    #[test]
    fn captions_any_concept_are_distinct_and_carry_its_name() {
        for keywords in [
            &[][..],
            &["apple"],
            &["fruit"],
            &["food fruit"],
            &["fruit", "apple", "diet", "health"],
        ] {
            let concept = concept("red apple", keywords);
            let captions: BTreeSet<String> = (0..PER_CONCEPT).map(|index| caption(&concept, index)).collect();
            assert_eq!(captions.len(), PER_CONCEPT, "{captions:?}");
            assert!(
                captions
                    .iter()
                    .all(|text| text.contains("red apple") && text.len() < 120),
                "{captions:?}"
            );
        }
    }

    #[test]
    fn caption_same_index_is_the_same() {
        let concept = concept("red apple", &["fruit", "apple"]);
        assert_eq!(caption(&concept, 3), caption(&concept, 3));
        assert_eq!(caption(&concept, 3), caption(&concept, 3 + PER_CONCEPT));
    }

    #[test]
    fn article_names_get_the_right_one() {
        let cases = [
            ("red apple", "a red apple"),
            ("owl", "an owl"),
            ("unicorn", "a unicorn"),
            ("one o'clock", "a one o'clock"),
            ("glasses", "glasses"),
            ("wrapped gifts", "wrapped gifts"),
            ("cactus", "a cactus"),
            ("Tokyo tower", "Tokyo tower"),
            ("8 ball", "8 ball"),
        ];
        for (name, expected) in cases {
            assert_eq!(with_article(name), expected);
        }
    }
}
