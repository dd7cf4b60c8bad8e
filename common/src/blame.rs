//! Who is to blame for a generation that broke although nobody was lost (rule G10). A suspicion is a hint: nobody is expelled
//! at the first failure unless it is both behind and silent.

use crate::events::AbortReport;
use crate::ids::WorkerId;
use std::collections::{BTreeMap, BTreeSet};

/// What is done about it, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same members again; these pairs are kept apart in the ring.
    Again {
        /// Pairs whose link was reported as broken, each with the smaller id first.
        apart: Vec<(WorkerId, WorkerId)>,
        /// Why.
        reason: String,
    },
    /// This member goes.
    Expel {
        /// Who.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
}

/// What is known when the generation is closed.
#[derive(Clone, Debug)]
pub struct Evidence<'a> {
    /// Reports of those who aborted.
    pub reports: &'a BTreeMap<WorkerId, AbortReport>,
    /// Members without a heartbeat for more than half the failure budget.
    pub silent: &'a BTreeSet<WorkerId>,
    /// Lanes by member.
    pub lanes: &'a BTreeMap<WorkerId, u32>,
    /// How often in a row the same members failed without a step in between, this time included; from 1.
    pub failures: u32,
}

/// How far a member came: step, then collectives entered in it.
fn progress(report: &AbortReport) -> (u64, u32) {
    (report.step, report.entered)
}

/// Pairs whose link somebody reported as broken.
fn broken_links(reports: &BTreeMap<WorkerId, AbortReport>) -> Vec<(WorkerId, WorkerId)> {
    let pairs: BTreeSet<(WorkerId, WorkerId)> = reports
        .iter()
        .flat_map(|(by, report)| report.lost_links.iter().map(move |peer| (*by.min(peer), *by.max(peer))))
        .filter(|(a, b)| a != b)
        .collect();
    pairs.into_iter().collect()
}

/// Judges a failure in which every member of the generation answered.
#[must_use]
pub fn judge(evidence: &Evidence<'_>) -> Verdict {
    let furthest = evidence.reports.values().map(progress).max();
    let least = evidence.reports.values().map(progress).min();
    let behind: BTreeSet<WorkerId> = evidence
        .reports
        .iter()
        .filter(|(_, r)| furthest != least && Some(progress(r)) == least)
        .map(|(w, _)| *w)
        .collect();
    let links = broken_links(evidence.reports);
    // Behind and silent agree; either alone is how an innocent neighbour of the guilty looks.
    if let Some(worker) = behind.iter().find(|w| evidence.silent.contains(w)) {
        return Verdict::Expel {
            worker: *worker,
            reason: "it is furthest behind and sends no heartbeat".into(),
        };
    }
    if evidence.failures < 2 {
        return Verdict::Again {
            apart: links,
            reason: "nobody is proven guilty; once again with the same members".into(),
        };
    }
    if let Some(worker) = one_of(&behind, evidence.lanes) {
        let reason = format!(
            "it was furthest behind when {} generations in a row failed",
            evidence.failures
        );
        return Verdict::Expel { worker, reason };
    }
    if let Some(worker) = one_of(evidence.silent, evidence.lanes) {
        let reason = "it sends no heartbeat, and all came equally far".into();
        return Verdict::Expel { worker, reason };
    }
    let mut named: BTreeMap<WorkerId, u32> = BTreeMap::new();
    for (a, b) in &links {
        *named.entry(*a).or_default() += 1;
        *named.entry(*b).or_default() += 1;
    }
    let most = named.values().copied().max().unwrap_or(0);
    let suspects: BTreeSet<WorkerId> = named.iter().filter(|(_, n)| **n == most).map(|(w, _)| *w).collect();
    match one_of(&suspects, evidence.lanes) {
        Some(worker) => Verdict::Expel {
            worker,
            reason: format!("it is named in most failed links ({most})"),
        },
        None => Verdict::Again {
            apart: Vec::new(),
            reason: "no link was named and all came equally far".into(),
        },
    }
}

/// On a tie the one with fewer lanes, then the higher id.
fn one_of(among: &BTreeSet<WorkerId>, lanes: &BTreeMap<WorkerId, u32>) -> Option<WorkerId> {
    among
        .iter()
        .copied()
        .min_by_key(|w| (lanes.get(w).copied().unwrap_or(0), std::cmp::Reverse(*w)))
}

/// An order of the ring in which no pair of `apart` are neighbours, if there is one near: one member changes its place at a
/// time. A ring of three or less has no such order and stays as it is.
#[must_use]
pub fn ring_order(members: &[WorkerId], apart: &[(WorkerId, WorkerId)]) -> Vec<WorkerId> {
    let clashes = |ring: &[WorkerId]| {
        (0..ring.len())
            .map(|i| (ring[i], ring[(i + 1) % ring.len()]))
            .filter(|(a, b)| apart.contains(&(*a.min(b), *a.max(b))))
            .count()
    };
    let mut ring = members.to_vec();
    for _ in 0..apart.len() {
        let now = clashes(&ring);
        if now == 0 {
            break;
        }
        let better = apart.iter().flat_map(|(a, b)| [*a, *b]).find_map(|mover| {
            let rest: Vec<WorkerId> = ring.iter().copied().filter(|w| *w != mover).collect();
            (0..=rest.len()).find_map(|at| {
                let mut tried = rest.clone();
                tried.insert(at, mover);
                (tried.len() == ring.len() && clashes(&tried) < now).then_some(tried)
            })
        });
        match better {
            Some(next) => ring = next,
            None => break,
        }
    }
    ring
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn w(id: u32) -> WorkerId {
        WorkerId(id)
    }

    fn report(entered: u32, lost: &[u32]) -> AbortReport {
        AbortReport {
            step: 5,
            entered,
            lost_links: lost.iter().map(|i| w(*i)).collect(),
            ..AbortReport::default()
        }
    }

    fn verdict(reports: &[(u32, AbortReport)], silent: &[u32], failures: u32) -> Verdict {
        judge(&Evidence {
            reports: &reports.iter().map(|(i, r)| (w(*i), r.clone())).collect(),
            silent: &silent.iter().map(|i| w(*i)).collect(),
            lanes: &BTreeMap::from([(w(1), 2), (w(2), 3), (w(3), 2)]),
            failures,
        })
    }

    #[test]
    fn reset_between_the_living_is_tried_again_with_the_pair_apart() {
        let reports = [(1, report(2, &[2])), (2, report(2, &[1])), (3, report(2, &[]))];
        assert!(matches!(verdict(&reports, &[], 1), Verdict::Again { apart, .. } if apart == vec![(w(1), w(2))]));
    }

    #[test]
    fn member_behind_and_silent_goes_at_once_one_that_is_only_behind_does_not() {
        let reports = [(1, report(2, &[])), (2, report(1, &[])), (3, report(2, &[]))];
        assert!(matches!(verdict(&reports, &[2], 1), Verdict::Expel { worker, .. } if worker == w(2)));
        assert!(matches!(verdict(&reports, &[], 1), Verdict::Again { .. }));
        assert!(matches!(verdict(&reports, &[], 2), Verdict::Expel { worker, .. } if worker == w(2)));
    }

    #[test]
    fn equal_reports_twice_expel_the_most_named_then_fewer_lanes_then_the_higher_id() {
        let reports = [(1, report(2, &[2])), (2, report(2, &[])), (3, report(2, &[2]))];
        assert!(matches!(verdict(&reports, &[], 2), Verdict::Expel { worker, .. } if worker == w(2)));
        let pair = [(1, report(2, &[2])), (2, report(2, &[]))];
        assert!(
            matches!(verdict(&pair, &[], 2), Verdict::Expel { worker, .. } if worker == w(1)),
            "fewer lanes"
        );
        let equals = [(1, report(2, &[3])), (3, report(2, &[]))];
        assert!(
            matches!(verdict(&equals, &[], 2), Verdict::Expel { worker, .. } if worker == w(3)),
            "higher id"
        );
    }

    #[test]
    fn suspected_pair_is_no_pair_of_neighbours_where_the_ring_is_large_enough() {
        let ring = ring_order(&[w(1), w(2), w(3), w(4)], &[(w(1), w(2))]);
        let at = |id| ring.iter().position(|x| *x == w(id)).expect("still there");
        assert_eq!(at(1).abs_diff(at(2)), 2, "{ring:?}");
        assert_eq!(ring_order(&[w(1), w(2), w(3)], &[(w(1), w(2))]).len(), 3);
    }

    proptest! {
        /// The plain reference is the rule (G10), word by word: behind, then silent, then named most, fewer lanes, higher id.
        #[test]
        fn judgement_of_any_reports_follows_the_rule(
            told in proptest::collection::btree_map(1u32..6, (0u64..3, 0u32..3, proptest::collection::vec(1u32..6, 0..3)), 1..6),
            quiet in proptest::collection::btree_set(1u32..6, 0..4), lanes in proptest::collection::vec(0u32..3, 6),
            failures in 1u32..4,
        ) {
            let reports: BTreeMap<WorkerId, AbortReport> = told
                .iter()
                .map(|(id, (step, entered, lost))| (w(*id), AbortReport { step: *step, ..report(*entered, lost) }))
                .collect();
            let silent: BTreeSet<WorkerId> = quiet.iter().map(|i| w(*i)).collect();
            let lanes: BTreeMap<WorkerId, u32> = lanes.iter().enumerate().map(|(i, n)| (w(i as u32), *n)).collect();
            let verdict = judge(&Evidence { reports: &reports, silent: &silent, lanes: &lanes, failures });
            let came = |id: &WorkerId| (reports[id].step, reports[id].entered);
            let least = reports.keys().map(came).min();
            let is_behind = |id: &WorkerId| reports.contains_key(id) && Some(came(id)) == least && reports.keys().any(|o| came(o) > came(id));
            let named = |id: &WorkerId| {
                let others = (1..6).map(w).filter(|o| o != id);
                others.filter(|o| {
                    let says = |a: &WorkerId, b: &WorkerId| reports.get(a).is_some_and(|r| r.lost_links.contains(b));
                    says(id, o) || says(o, id)
                }).count()
            };
            match verdict {
                Verdict::Expel { worker, .. } => {
                    let guilty = is_behind(&worker) && silent.contains(&worker);
                    prop_assert!(guilty || failures >= 2, "the first failure proves nothing of {worker}");
                    let anybody_behind = reports.keys().any(is_behind);
                    if !guilty {
                        let suspect = |id: &WorkerId| match (anybody_behind, silent.is_empty()) {
                            (true, _) => is_behind(id),
                            (false, false) => silent.contains(id),
                            (false, true) => named(id) > 0 && (1..6).map(w).all(|o| named(&o) <= named(id)),
                        };
                        prop_assert!(suspect(&worker));
                        let few = |id: &WorkerId| (lanes.get(id).copied().unwrap_or(0), std::cmp::Reverse(*id));
                        prop_assert!((1..6).map(w).filter(suspect).all(|o| few(&worker) <= few(&o)));
                    }
                }
                Verdict::Again { apart, .. } => {
                    prop_assert!(!reports.keys().any(|id| is_behind(id) && silent.contains(id)));
                    let nobody = !reports.keys().any(is_behind) && silent.is_empty() && (1..6).map(w).all(|id| named(&id) == 0);
                    prop_assert!(failures < 2 || nobody);
                    prop_assert!(apart.iter().all(|(a, b)| a < b));
                }
            }
        }

        #[test]
        fn ring_order_of_any_suspects_has_the_same_members_and_no_more_clashes(
            members in proptest::collection::btree_set(1u32..9, 1..8), pairs in proptest::collection::vec((1u32..9, 1u32..9), 0..4),
        ) {
            let members: Vec<WorkerId> = members.into_iter().map(w).collect();
            let apart: Vec<(WorkerId, WorkerId)> = pairs.iter().filter(|(a, b)| a != b).map(|(a, b)| (w(*a.min(b)), w(*a.max(b)))).collect();
            let ring = ring_order(&members, &apart);
            let clashes = |ring: &[WorkerId]| (0..ring.len()).filter(|i| {
                let (a, b) = (ring[*i], ring[(i + 1) % ring.len()]);
                apart.contains(&(a.min(b), a.max(b)))
            }).count();
            prop_assert!(clashes(&ring) <= clashes(&members));
            let mut sorted = ring.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, members);
        }
    }
}
