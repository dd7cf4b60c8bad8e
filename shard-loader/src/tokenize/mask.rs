//! CLIPA's reductions of captions that are too long (Li et al. 2023; open_clip 3.3.0, `get_reduction_mask_fn`).

use argosy_common::rng::Draws;

/// Which ids of a caption that is too long stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// A run of them.
    Simple,
    /// Some, in their order.
    Random,
    /// Some, in any order.
    Shuffle,
}

impl Mask {
    /// OpenCLIP's `reduction_mask` of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "simple" => Self::Simple,
            "random" => Self::Random,
            "shuffle" => Self::Shuffle,
            _ => return None,
        })
    }
}

/// Who decides what stays.
pub trait Choose {
    /// A number below `choices`.
    fn start(&mut self, choices: usize) -> usize;
    /// An order of `0..n`.
    fn order(&mut self, n: usize) -> Vec<usize>;
}

impl Choose for Draws {
    fn start(&mut self, choices: usize) -> usize {
        self.below(choices as u64) as usize
    }

    fn order(&mut self, n: usize) -> Vec<usize> {
        self.permutation(n).into_iter().map(|at| at as usize).collect()
    }
}

/// `keep` of the ids, all where there are no more.
pub fn masked(ids: &[i32], keep: usize, mask: Mask, choose: &mut impl Choose) -> Vec<i32> {
    if ids.len() <= keep {
        return ids.to_vec();
    }
    if mask == Mask::Simple {
        let start = choose.start(ids.len() - keep + 1);
        return ids.iter().skip(start).take(keep).copied().collect();
    }
    let mut stay = choose.order(ids.len());
    stay.truncate(keep);
    if mask == Mask::Random {
        stay.sort_unstable();
    }
    stay.iter().filter_map(|at| ids.get(*at)).copied().collect()
}
