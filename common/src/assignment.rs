//! Which worker owns which lane: total, balanced by speed, moving as little as possible, idempotent.

use crate::ids::WorkerId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// Assigns `lanes` lanes to `members` as if all were equally fast; see [`assign_by_speed`].
#[must_use]
pub fn assign(lanes: u32, members: &[WorkerId], previous: &[WorkerId]) -> Vec<WorkerId> {
    let equal: BTreeMap<WorkerId, u32> = members.iter().map(|w| (*w, 1)).collect();
    assign_by_speed(lanes, &equal, previous)
}

/// Assigns `lanes` lanes to the keys of `speeds`, keeping as many as possible where `previous` has them.
///
/// Every lane gets exactly one owner (invariant A1); no other shares would make the slowest member's `lanes / speed` smaller,
/// and equally fast members differ by at most one lane (A2); a lane moves only if its owner left or its share shrank (A3);
/// applying the result again changes nothing (A4). Members beyond the lanes get none. `previous[q]` is the owner of lane `q`
/// before, if any. Speeds are relative; 0 counts as 1. Returns the owner of each lane; empty without members.
#[must_use]
pub fn assign_by_speed(lanes: u32, speeds: &BTreeMap<WorkerId, u32>, previous: &[WorkerId]) -> Vec<WorkerId> {
    let Some(first) = speeds.keys().next() else {
        return Vec::new();
    };
    // Members by place in the order of their ids: no map is asked once a lane.
    let mut members: Vec<Member> = speeds.iter().map(|(w, s)| Member::new(*w, *s)).collect();
    let mut places: Vec<Option<usize>> = Vec::with_capacity(lanes as usize);
    let known = previous.get(..lanes as usize).unwrap_or(previous);
    for run in known.chunk_by(|a, b| a == b) {
        let place = members.binary_search_by_key(&run[0], |m| m.worker).ok();
        if let Some(place) = place {
            members[place].held += run.len() as u64;
        }
        places.extend(std::iter::repeat_n(place, run.len()));
    }
    places.resize(lanes as usize, None);
    share_out(lanes, &mut members);
    let mut owners = vec![*first; lanes as usize];
    let mut homeless = Vec::new();
    let mut kept = vec![0; members.len()];
    for (lane, place) in places.into_iter().enumerate() {
        match place.filter(|at| kept[*at] < members[*at].quota) {
            Some(at) => {
                kept[at] += 1;
                owners[lane] = members[at].worker;
            }
            None => homeless.push(lane),
        }
    }
    let mut pool = homeless.into_iter();
    for (member, kept) in members.iter().zip(kept) {
        for lane in pool.by_ref().take((member.quota - kept) as usize) {
            owners[lane] = member.worker;
        }
    }
    debug_assert!(pool.next().is_none(), "every lane has an owner");
    owners
}

/// A member while lanes are shared out.
#[derive(Clone, Copy, Debug)]
struct Member {
    worker: WorkerId,
    speed: u64,
    /// Lanes it had before.
    held: u64,
    /// Lanes it gets.
    quota: u64,
}

impl Member {
    fn new(worker: WorkerId, speed: u32) -> Self {
        Self {
            worker,
            speed: u64::from(speed.max(1)),
            held: 0,
            quota: 0,
        }
    }
}

/// Sets the quotas that end the slowest member's step soonest: each lane in turn to whom it would end soonest with (D'Hondt's
/// method; begun at the lower quotas, which it never falls below). Among equals those who hold the lane already keep it.
fn share_out(lanes: u32, members: &mut [Member]) {
    let all: u64 = members.iter().map(|m| m.speed).sum();
    // What is left after the lower quotas is less than one lane a member.
    let mut left = u64::from(lanes);
    for member in members.iter_mut() {
        member.quota = u64::from(lanes) * member.speed / all;
        left -= member.quota;
    }
    let turns = members.iter().enumerate().map(|(at, m)| Reverse(Turn::new(at, m)));
    let mut queue: BinaryHeap<Reverse<Turn>> = turns.collect();
    while left > 0 {
        let Some(Reverse(next)) = queue.pop() else { break };
        left -= 1;
        members[next.at].quota += 1;
        queue.push(Reverse(Turn::new(next.at, &members[next.at])));
    }
}

/// The next lane of one member: `lanes` of them would take `lanes / speed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    lanes: u64,
    speed: u64,
    /// It holds that lane already.
    keeps: bool,
    /// Its place among the members, in the order of their ids.
    at: usize,
}

impl Turn {
    fn new(at: usize, member: &Member) -> Self {
        Self {
            lanes: member.quota + 1,
            speed: member.speed,
            keeps: member.held > member.quota,
            at,
        }
    }
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.lanes * other.speed)
            .cmp(&(other.lanes * self.speed))
            .then(other.keeps.cmp(&self.keeps))
            .then(self.at.cmp(&other.at))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Takes lanes off members that must not have them (rules G11, M2), each in exchange for one of the member with fewest.
pub fn keep_away(owners: &mut [WorkerId], members: &[WorkerId], banned: &BTreeSet<(u32, WorkerId)>) {
    for (lane, worker) in banned {
        if owners.get(*lane as usize) != Some(worker) {
            continue;
        }
        let load = |w: &WorkerId| owners.iter().filter(|o| *o == w).count();
        let other = members
            .iter()
            .filter(|w| *w != worker && !banned.contains(&(*lane, **w)))
            .min_by_key(|w| (load(w), **w));
        let Some(other) = other.copied() else { continue };
        let back = (0..owners.len() as u32).find(|q| owners[*q as usize] == other && !banned.contains(&(*q, *worker)));
        let even = load(&other) + 1 > load(worker);
        owners[*lane as usize] = other;
        if let (Some(back), true) = (back, even) {
            owners[back as usize] = *worker;
        }
    }
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

    proptest! {
        /// The plain reference: every way to share the lanes out, and the one whose slowest member ends first.
        #[test]
        fn assignment_by_speed_any_members_ends_the_slowest_as_soon_as_any_shares_could(
            lanes in 1u32..9, speeds in proptest::collection::vec(1u32..9, 1..4), owners in proptest::collection::vec(0u32..4, 9),
        ) {
            let speeds: BTreeMap<WorkerId, u32> = speeds.iter().enumerate().map(|(i, s)| (WorkerId(i as u32), *s)).collect();
            let before: Vec<WorkerId> = owners.iter().map(|o| WorkerId(*o)).collect();
            let after = assign_by_speed(lanes, &speeds, &before);
            prop_assert_eq!(after.len(), lanes as usize);
            let end = |counts: &[u32]| counts.iter().zip(speeds.values()).map(|(n, s)| n * 5040 / s).max();
            let mut best = None;
            let mut counts = vec![0u32; speeds.len()];
            loop {
                if counts.iter().sum::<u32>() == lanes {
                    let this = end(&counts);
                    best = best.map_or(Some(this), |b: Option<u32>| Some(b.min(this)));
                }
                let Some(at) = counts.iter().position(|n| *n < lanes) else { break };
                counts[at] += 1;
                counts[..at].fill(0);
            }
            let got = loads(&after);
            let got: Vec<u32> = speeds.keys().map(|w| got.get(w).copied().unwrap_or(0) as u32).collect();
            prop_assert_eq!(Some(end(&got)), best, "{:?} of {:?}", got, speeds);
            // A lane moves only if its owner left or has fewer now.
            let held = loads(&before[..lanes as usize]);
            let stay: u32 = speeds.keys().zip(&got).map(|(w, n)| (*n).min(held.get(w).copied().unwrap_or(0) as u32)).sum();
            let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count() as u32;
            prop_assert_eq!(moved, lanes - stay);
            prop_assert_eq!(assign_by_speed(lanes, &speeds, &after), after);
        }
    }

    #[test]
    fn lane_that_a_worker_must_not_have_is_exchanged_and_nothing_else_moves() {
        let (a, b) = (WorkerId(1), WorkerId(2));
        let mut owners = vec![a, a, b, b];
        keep_away(&mut owners, &[a, b], &BTreeSet::from([(1, a)]));
        assert_eq!(owners, vec![a, b, a, b]);
        let mut alone = vec![a, a];
        keep_away(&mut alone, &[a], &BTreeSet::from([(1, a)]));
        assert_eq!(alone, vec![a, a], "somebody has to");
    }

    #[test]
    fn members_beyond_the_lanes_are_spares() {
        let owners = assign(2, &[WorkerId(1), WorkerId(2), WorkerId(3)], &[]);
        assert_eq!(owners, vec![WorkerId(1), WorkerId(2)]);
    }
}
