//! Which classes are recognised least, and what they are taken for.

use serde::Serialize;
use std::collections::BTreeMap;

/// Classes that are told.
const WORST_CLASSES: usize = 10;
/// Wrong classes that are told of each.
const MISTAKES: usize = 3;

/// One class and what it is taken for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassReport {
    /// Number of the class.
    pub class: usize,
    /// Its name.
    pub name: String,
    /// Its samples.
    pub samples: u64,
    /// Share of them that were recognised.
    pub top1: f64,
    /// What the others were taken for, the most frequent first.
    pub taken_for: Vec<Mistake>,
}

/// A wrong class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mistake {
    /// Number of the class.
    pub class: usize,
    /// Its name.
    pub name: String,
    /// Samples that were taken for it.
    pub samples: u64,
}

impl ClassReport {
    /// For people.
    pub(super) fn sentence(&self) -> String {
        let others: Vec<String> = self
            .taken_for
            .iter()
            .map(|m| format!("{} ({})", m.name, m.samples))
            .collect();
        let share = self.top1 * 100.0;
        format!(
            "{}: {share:.1} % of {}, taken for {}",
            self.name,
            self.samples,
            others.join(", ")
        )
    }
}

/// The worst classes first; among equals those with more samples, then the lower number. Classes without a mistake are no
/// matter. `per_class` holds samples and hits, `confused` samples by right and first class.
pub(super) fn worst(
    per_class: &[(u64, u64)],
    confused: &BTreeMap<(usize, usize), u64>,
    names: &[String],
) -> Vec<ClassReport> {
    let mut classes: Vec<usize> = (0..per_class.len())
        .filter(|c| per_class[*c].0 > per_class[*c].1)
        .collect();
    let share = |c: usize| per_class[c].1 as f64 / per_class[c].0 as f64;
    classes.sort_by(|&a, &b| {
        share(a)
            .total_cmp(&share(b))
            .then(per_class[b].0.cmp(&per_class[a].0))
            .then(a.cmp(&b))
    });
    classes.truncate(WORST_CLASSES);
    let report = |class: usize| {
        let mut others: Vec<(usize, u64)> = confused
            .range((class, 0)..(class + 1, 0))
            .map(|((_, other), n)| (*other, *n))
            .collect();
        others.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        others.truncate(MISTAKES);
        ClassReport {
            class,
            name: names[class].clone(),
            samples: per_class[class].0,
            top1: share(class),
            taken_for: others
                .into_iter()
                .map(|(class, samples)| Mistake {
                    class,
                    name: names[class].clone(),
                    samples,
                })
                .collect(),
        }
    };
    classes.into_iter().map(report).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worst_classes_come_first_with_what_they_are_taken_for() {
        let names: Vec<String> = ["a", "b", "c", "d"].map(Into::into).to_vec();
        // Class a: 4 of 4; b: 1 of 4; c: no sample; d: 1 of 8.
        let per_class = [(4, 4), (4, 1), (0, 0), (8, 1)];
        let confused = BTreeMap::from([((1, 0), 1), ((1, 2), 2), ((3, 0), 5), ((3, 1), 2)]);
        let worst = worst(&per_class, &confused, &names);
        let told: Vec<String> = worst.iter().map(ClassReport::sentence).collect();
        assert_eq!(
            told,
            [
                "d: 12.5 % of 8, taken for a (5), b (2)",
                "b: 25.0 % of 4, taken for c (2), a (1)"
            ]
        );
    }
}
