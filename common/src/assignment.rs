//! Which worker owns which lane: total, balanced to one lane, moving as little as possible, idempotent.

use crate::ids::WorkerId;
use std::collections::BTreeMap;

/// Assigns `lanes` lanes to `members`, keeping as many as possible where `previous` has them.
///
/// Every lane gets exactly one owner (invariant A1), loads differ by at most one lane (A2), a lane moves only if its owner
/// left or balance needs it (A3), and applying the result again changes nothing (A4). Members beyond the lanes get none.
/// `previous[q]` is the owner of lane `q` before, if any. Returns the owner of each lane; empty without members.
#[must_use]
pub fn assign(lanes: u32, members: &[WorkerId], previous: &[WorkerId]) -> Vec<WorkerId> {
    if members.is_empty() {
        return Vec::new();
    }
    let mut sorted = members.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let base = lanes as usize / sorted.len();
    let mut longer = lanes as usize % sorted.len();
    let mut held: BTreeMap<WorkerId, Vec<u32>> = sorted.iter().map(|w| (*w, Vec::new())).collect();
    let mut homeless = Vec::new();
    for lane in 0..lanes {
        match previous.get(lane as usize).and_then(|w| held.get_mut(w)) {
            Some(mine) => mine.push(lane),
            None => homeless.push(lane),
        }
    }
    // Those with most keep the longer shares, so that nothing moves between two workers of equal right.
    let mut by_load = sorted.clone();
    by_load.sort_by_key(|w| (std::cmp::Reverse(held[w].len()), *w));
    let mut quota = BTreeMap::new();
    for worker in &by_load {
        let extra = usize::from(longer > 0);
        longer -= extra;
        quota.insert(*worker, base + extra);
    }
    for worker in &sorted {
        if let Some(mine) = held.get_mut(worker) {
            let keep = quota[worker].min(mine.len());
            homeless.extend(mine.drain(keep..));
        }
    }
    homeless.sort_unstable();
    let mut pool = homeless.into_iter();
    for worker in &sorted {
        if let Some(mine) = held.get_mut(worker) {
            while mine.len() < quota[worker] {
                let Some(lane) = pool.next() else { break };
                mine.push(lane);
            }
        }
    }
    let mut owners = vec![sorted[0]; lanes as usize];
    for worker in &sorted {
        for lane in &held[worker] {
            owners[*lane as usize] = *worker;
        }
    }
    debug_assert!(pool.next().is_none(), "every lane has an owner");
    owners
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn loads(owners: &[WorkerId]) -> BTreeMap<WorkerId, usize> {
        let mut loads = BTreeMap::new();
        for owner in owners {
            *loads.entry(*owner).or_default() += 1;
        }
        loads
    }

    proptest! {
        #[test]
        fn assignment_after_any_change_is_total_balanced_minimal_and_idempotent(
            lanes in 1u32..70, before in proptest::collection::btree_set(0u32..12, 1..8),
            after in proptest::collection::btree_set(0u32..12, 1..8),
        ) {
            let ids = |set: &std::collections::BTreeSet<u32>| set.iter().map(|i| WorkerId(*i)).collect::<Vec<_>>();
            let first = assign(lanes, &ids(&before), &[]);
            let second = assign(lanes, &ids(&after), &first);
            prop_assert_eq!(second.len(), lanes as usize);
            prop_assert!(second.iter().all(|w| after.contains(&w.0)));
            let counts = loads(&second);
            let max = counts.values().max().copied().unwrap_or(0);
            let min = ids(&after).iter().map(|w| counts.get(w).copied().unwrap_or(0)).min().unwrap_or(0);
            prop_assert!(max - min <= 1, "loads {counts:?}");
            prop_assert_eq!(&assign(lanes, &ids(&after), &second), &second);
            // Lower bound of movement: orphaned lanes, plus what members hold above the larger share.
            let kept = loads(&first);
            let n = after.len();
            let (base, longer) = (lanes as usize / n, lanes as usize % n);
            let mut stay: Vec<usize> = ids(&after).iter().map(|w| kept.get(w).copied().unwrap_or(0)).collect();
            stay.sort_unstable_by(|a, b| b.cmp(a));
            let most: usize = stay.iter().enumerate().map(|(i, h)| (*h).min(base + usize::from(i < longer))).sum();
            let moved = first.iter().zip(&second).filter(|(a, b)| a != b).count();
            prop_assert_eq!(moved, lanes as usize - most);
        }
    }

    #[test]
    fn members_beyond_the_lanes_are_spares() {
        let owners = assign(2, &[WorkerId(1), WorkerId(2), WorkerId(3)], &[]);
        assert_eq!(owners, vec![WorkerId(1), WorkerId(2)]);
    }
}
