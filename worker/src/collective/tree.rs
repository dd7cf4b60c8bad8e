//! Sums over lanes in an order of their own (rule N4): a fixed binary tree, whoever owns the lanes.
//!
//! Node `i` of level `l` stands for lanes `i * 2^l .. (i + 1) * 2^l` below `Q`; its sum is that of its left half plus that of
//! its right half, or its left half alone where no lane lies in the right one. A worker adds up what its own lanes complete
//! and hands on nodes, never other sums, so every rounding is the same at any world size.

use super::{BLOCK_ELEMENTS, Collective, CollectiveError, Result};
use std::collections::BTreeMap;

/// Most elements that one gather brings in, so that memory stays bounded whatever the number of nodes.
const GATHERED_ELEMENTS_MAX: usize = 16 << 20;

/// A place in the tree: level and index.
type Node = (u32, u32);

/// Nodes of a tree over `lanes` lanes, each the largest that has been completed.
#[derive(Debug)]
pub struct LaneTree<T> {
    lanes: u32,
    nodes: BTreeMap<Node, T>,
}

impl<T> LaneTree<T> {
    /// No lane yet.
    #[must_use]
    pub fn new(lanes: u32) -> Self {
        Self {
            lanes,
            nodes: BTreeMap::new(),
        }
    }

    /// First lane of a node.
    fn first(&(level, index): &Node) -> u64 {
        u64::from(index) << level
    }

    /// Puts `value` in its place and joins it upwards as far as it goes; `join(left, right)` leaves the sum in `left`.
    pub fn insert(&mut self, node: Node, mut value: T, mut join: impl FnMut(&mut T, T)) {
        let (mut level, mut index) = node;
        // The root is the first node that holds all lanes.
        while (1u64 << level) < u64::from(self.lanes) {
            let sibling = (level, index ^ 1);
            if index & 1 == 1 {
                let Some(mut left) = self.nodes.remove(&sibling) else {
                    break;
                };
                join(&mut left, value);
                value = left;
            } else if Self::first(&sibling) < u64::from(self.lanes) {
                let Some(right) = self.nodes.remove(&sibling) else {
                    break;
                };
                join(&mut value, right);
            }
            (level, index) = (level + 1, index >> 1);
        }
        self.nodes.insert((level, index), value);
    }

    /// Adds a lane.
    pub fn lane(&mut self, lane: u32, value: T, join: impl FnMut(&mut T, T)) {
        self.insert((0, lane), value, join);
    }

    /// The nodes, by first lane.
    fn by_lane(&self) -> Vec<(&Node, &T)> {
        let mut nodes: Vec<_> = self.nodes.iter().collect();
        nodes.sort_by_key(|(node, _)| Self::first(node));
        nodes
    }
}

/// The nodes that a worker with these lanes ends with, by first lane; everybody computes them from the plan.
fn cover(lanes: u32, own: &[u32]) -> Vec<Node> {
    let mut tree = LaneTree::new(lanes);
    for lane in own {
        tree.lane(*lane, (), |_, ()| {});
    }
    tree.by_lane().into_iter().map(|(node, ())| *node).collect()
}

/// Adds `right` to `left`, element by element.
pub fn add(left: &mut [f32], right: &[f32]) {
    debug_assert_eq!(left.len(), right.len(), "two nodes of one tree have one length");
    for (l, r) in left.iter_mut().zip(right) {
        *l += r;
    }
}

/// Sum over all lanes into `out`. `mine` holds vectors as long as `out`, of the lanes `lanes_of[rank]`.
///
/// # Errors
/// Any [`CollectiveError`]; `out` is worthless then.
pub fn sum(
    collective: &mut dyn Collective,
    mine: &LaneTree<Vec<f32>>,
    lanes_of: &[Vec<u32>],
    out: &mut [f32],
) -> Result<()> {
    let covers: Vec<Vec<Node>> = lanes_of.iter().map(|own| cover(mine.lanes, own)).collect();
    let nodes_total: usize = covers.iter().map(Vec::len).sum();
    let own = mine.by_lane();
    let expected = covers.get(collective.rank()).map(Vec::as_slice).unwrap_or_default();
    let fits = own.iter().map(|(node, _)| **node).eq(expected.iter().copied())
        && own.iter().all(|(_, values)| values.len() == out.len());
    if !fits || nodes_total == 0 {
        return Err(CollectiveError::Mismatch(format!(
            "sums of other lanes than the plan's, or of another length than {}",
            out.len()
        )));
    }
    let piece = (GATHERED_ELEMENTS_MAX / nodes_total).max(BLOCK_ELEMENTS);
    let (mut bytes, mut all) = (Vec::new(), Vec::new());
    for (start, out) in (0..).step_by(piece).zip(out.chunks_mut(piece)) {
        bytes.clear();
        for (_, values) in &own {
            bytes.extend(values[start..start + out.len()].iter().flat_map(|v| v.to_le_bytes()));
        }
        let lens: Vec<usize> = covers.iter().map(|nodes| nodes.len() * out.len() * 4).collect();
        all.resize(lens.iter().sum(), 0);
        collective.all_gather(&bytes, &lens, &mut all)?;
        join_all(mine.lanes, &covers, &all, out);
    }
    Ok(())
}

/// Joins the gathered nodes of all ranks up to the root.
fn join_all(lanes: u32, covers: &[Vec<Node>], all: &[u8], out: &mut [f32]) {
    let mut tree = LaneTree::new(lanes);
    let vectors = all.chunks(out.len() * 4);
    for (node, bytes) in covers.iter().flatten().zip(vectors) {
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        tree.insert(*node, values, |left, right| add(left, &right));
    }
    debug_assert_eq!(tree.nodes.len(), 1, "the plan gives every lane an owner");
    if let Some(root) = tree.nodes.values().next() {
        out.copy_from_slice(root);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AbortHandle, local};
    use super::*;
    use proptest::prelude::*;

    /// The tree by its definition.
    fn by_definition(level: u32, index: u32, lanes: &[Vec<f32>]) -> Option<Vec<f32>> {
        if level == 0 {
            return lanes.get(index as usize).cloned();
        }
        let mut left = by_definition(level - 1, index * 2, lanes)?;
        if let Some(right) = by_definition(level - 1, index * 2 + 1, lanes) {
            add(&mut left, &right);
        }
        Some(left)
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn tree_sum_has_the_bits_of_its_definition_whoever_owns_the_lanes(
            owners in prop::collection::vec(0usize..5, 1..24),
            seed in any::<u32>(),
        ) {
            let lanes_total = owners.len() as u32;
            let len = 37;
            // Of many magnitudes, so that another order of additions shows.
            let value = |lane: usize, i: usize| {
                let x = (lane as u32 * 977 + i as u32 * 131).wrapping_mul(2_654_435_761).wrapping_add(seed);
                (f32::from(x as u16) - 32768.0) * [1e-6, 1.0, 3e4][x as usize / 7 % 3]
            };
            let lanes: Vec<Vec<f32>> = (0..owners.len()).map(|q| (0..len).map(|i| value(q, i)).collect()).collect();
            let expected = by_definition(lanes_total.next_power_of_two().ilog2(), 0, &lanes).unwrap();
            let lanes_of: Vec<Vec<u32>> =
                (0..5).map(|r| (0..lanes_total).filter(|q| owners[*q as usize] == r).collect()).collect();
            let handles: Vec<AbortHandle> = (0..5).map(|_| AbortHandle::new()).collect();
            let sums: Vec<Vec<f32>> = std::thread::scope(|scope| {
                let threads: Vec<_> = local::connect(&handles).into_iter().enumerate().map(|(rank, mut c)| {
                    let (lanes, lanes_of) = (&lanes, &lanes_of);
                    scope.spawn(move || {
                        let mut tree = LaneTree::new(lanes_total);
                        for lane in &lanes_of[rank] {
                            tree.lane(*lane, lanes[*lane as usize].clone(), |l, r: Vec<f32>| add(l, &r));
                        }
                        let mut out = vec![f32::NAN; len];
                        sum(&mut c, &tree, lanes_of, &mut out).unwrap();
                        out
                    })
                }).collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            for got in sums {
                prop_assert_eq!(bits(&got), bits(&expected));
            }
        }
    }

    #[test]
    fn tree_of_another_owner_than_the_plans_is_refused() {
        let mut one = local::connect(&[AbortHandle::new()]).remove(0);
        let mut tree = LaneTree::new(2);
        tree.lane(0, vec![1.0], |l, r: Vec<f32>| add(l, &r));
        let refused = sum(&mut one, &tree, &[vec![0, 1]], &mut [0.0]);
        assert!(matches!(refused, Err(CollectiveError::Mismatch(_))), "{refused:?}");
    }
}
