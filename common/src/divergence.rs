//! Who must heal when states of one name differ (rule N3).
//!
//! Every member's step report carries hashes of its state's chunks now and then. Members whose hashes a strict majority
//! shares stay; the others heal from them. Without a majority nobody can say who is right, and all go back to the last
//! committed manifest. Who differs from a majority for the second time is cordoned: memory or processor is suspect.

use crate::ids::{StateName, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

/// Names whose reports are not complete and that are kept; members are never further apart than a step or two.
const OPEN_MAX: usize = 8;
/// Ties in one run after which going back once more is no answer.
pub const TIES_MAX: u32 = 3;

/// What the reports of one name say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Some members have not reported.
    Open,
    /// All are equal.
    Agree,
    /// A strict majority is equal.
    Minority {
        /// Heal from the majority.
        heal: BTreeSet<WorkerId>,
        /// For the second time: to be kept out.
        cordon: BTreeSet<WorkerId>,
    },
    /// No majority: all heal from the last committed manifest.
    Tie {
        /// Ties so far in this run, this one included.
        ties: u32,
    },
}

/// Compares states by their hashes.
#[derive(Clone, Debug, Default)]
pub struct StateWatch {
    open: BTreeMap<StateName, BTreeMap<WorkerId, Vec<u64>>>,
    offences: BTreeMap<WorkerId, u32>,
    ties: u32,
}

impl StateWatch {
    /// Forgets reports that will not be completed: another generation begins.
    pub fn begin_generation(&mut self) {
        self.open.clear();
    }

    /// Takes one member's hashes of the state `name`; judges when all `members` have reported.
    pub fn report(&mut self, name: StateName, worker: WorkerId, hashes: Vec<u64>, members: &[WorkerId]) -> Verdict {
        self.open.entry(name).or_default().insert(worker, hashes);
        while self.open.len() > OPEN_MAX {
            self.open.pop_first();
        }
        let complete = self
            .open
            .get(&name)
            .is_some_and(|told| members.iter().all(|m| told.contains_key(m)));
        if !complete {
            return Verdict::Open;
        }
        let told = self.open.remove(&name).unwrap_or_default();
        self.judge(&told, members)
    }

    fn judge(&mut self, told: &BTreeMap<WorkerId, Vec<u64>>, members: &[WorkerId]) -> Verdict {
        let mut camps: BTreeMap<&[u64], BTreeSet<WorkerId>> = BTreeMap::new();
        for worker in members {
            let hashes = told.get(worker).map(Vec::as_slice).unwrap_or_default();
            camps.entry(hashes).or_default().insert(*worker);
        }
        if camps.len() <= 1 {
            return Verdict::Agree;
        }
        let voters = camps.values().map(BTreeSet::len).sum::<usize>();
        let Some(majority) = camps.values().find(|camp| camp.len() * 2 > voters) else {
            self.ties += 1;
            return Verdict::Tie { ties: self.ties };
        };
        let guilty = members.iter().filter(|w| !majority.contains(w));
        let (mut heal, mut cordon) = (BTreeSet::new(), BTreeSet::new());
        for worker in guilty {
            let offences = self.offences.entry(*worker).or_default();
            *offences += 1;
            let side = if *offences > 1 { &mut cordon } else { &mut heal };
            side.insert(*worker);
        }
        debug_assert!(
            heal.len() + cordon.len() < majority.len(),
            "N3: who differs from a strict majority is outnumbered by it"
        );
        Verdict::Minority { heal, cordon }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Generation;
    use proptest::prelude::*;

    fn name(step: u64) -> StateName {
        StateName {
            step,
            applied_gen: Generation(1),
        }
    }

    fn members(n: u32) -> Vec<WorkerId> {
        (1..=n).map(WorkerId).collect()
    }

    /// Reports `hashes[i]` of member `i + 1`; gives the last verdict and checks that the earlier ones wait.
    fn round(watch: &mut StateWatch, step: u64, hashes: &[u64]) -> Verdict {
        let all = members(hashes.len() as u32);
        let mut verdicts: Vec<Verdict> = all
            .iter()
            .zip(hashes)
            .map(|(w, h)| watch.report(name(step), *w, vec![7, *h], &all))
            .collect();
        let last = verdicts.pop().unwrap();
        assert!(verdicts.iter().all(|v| *v == Verdict::Open), "{verdicts:?}");
        last
    }

    fn set(workers: &[u32]) -> BTreeSet<WorkerId> {
        workers.iter().copied().map(WorkerId).collect()
    }

    #[test]
    fn minority_heals_first_and_is_cordoned_the_second_time() {
        let mut watch = StateWatch::default();
        assert_eq!(round(&mut watch, 1, &[5, 5, 5]), Verdict::Agree);
        let (heal, cordon) = (set(&[2]), set(&[]));
        assert_eq!(round(&mut watch, 2, &[5, 6, 5]), Verdict::Minority { heal, cordon });
        watch.begin_generation();
        let (heal, cordon) = (set(&[]), set(&[2]));
        assert_eq!(round(&mut watch, 9, &[5, 6, 5]), Verdict::Minority { heal, cordon });
    }

    #[test]
    fn halves_are_no_majority_and_ties_are_counted() {
        let mut watch = StateWatch::default();
        assert_eq!(round(&mut watch, 1, &[5, 6]), Verdict::Tie { ties: 1 });
        assert_eq!(round(&mut watch, 2, &[5, 6, 6, 5]), Verdict::Tie { ties: 2 });
        assert_eq!(round(&mut watch, 3, &[1, 2, 3]), Verdict::Tie { ties: 3 });
    }

    #[test]
    fn reports_of_an_older_generation_are_not_completed_by_a_newer_one() {
        let mut watch = StateWatch::default();
        let all = members(2);
        watch.report(name(1), all[0], vec![1], &all);
        watch.begin_generation();
        assert_eq!(watch.report(name(1), all[1], vec![2], &all), Verdict::Open);
    }

    proptest! {
        #[test]
        fn verdict_follows_the_majority_whatever_the_order(
            hashes in prop::collection::vec(0u64..3, 1..9),
            rotate in 0usize..9,
        ) {
            let all = members(hashes.len() as u32);
            let mut watch = StateWatch::default();
            let mut verdict = Verdict::Open;
            for k in 0..all.len() {
                let i = (k + rotate) % all.len();
                verdict = watch.report(name(3), all[i], vec![hashes[i]], &all);
            }
            let count = |h: u64| hashes.iter().filter(|x| **x == h).count();
            let winner = (0..3).find(|h| count(*h) * 2 > hashes.len());
            let expected = match winner {
                Some(h) if count(h) == hashes.len() => Verdict::Agree,
                Some(h) => Verdict::Minority {
                    heal: all.iter().zip(&hashes).filter(|(_, x)| **x != h).map(|(w, _)| *w).collect(),
                    cordon: BTreeSet::new(),
                },
                None => Verdict::Tie { ties: 1 },
            };
            prop_assert_eq!(verdict, expected);
            prop_assert!(watch.open.is_empty(), "what was judged is forgotten");
        }

        #[test]
        fn open_reports_stay_bounded(steps in prop::collection::vec(0u64..1000, 0..100)) {
            let mut watch = StateWatch::default();
            for step in steps {
                watch.report(name(step), WorkerId(1), vec![step], &members(2));
                prop_assert!(watch.open.len() <= OPEN_MAX);
            }
        }
    }
}
