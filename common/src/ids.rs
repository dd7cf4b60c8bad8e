//! Names of things, as types that do not mix.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// One life of one worker process. Given by the coordinator, never reused within a run.
    WorkerId, u32, "w"
);
id!(
    /// A deterministic endless stream of samples; `0..Q`.
    LaneId, u32, "lane "
);
id!(
    /// A membership generation. Unique and growing (rule G5).
    Generation, u64, "gen "
);
id!(
    /// A coordinator's reign; fences its writes (rule G6).
    Term, u64, "term "
);

/// The name of a replicated state (rule G1): how many steps it has applied, and in which generation the last of them was.
///
/// Equal names mean equal bits. Names are ordered by generation before step: a state applied in a later generation is the
/// truth even when an abandoned one got further.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StateName {
    /// Steps applied so far; also the next step to take.
    pub step: u64,
    /// The generation that applied the last of them; 0 for the initial state.
    pub applied_gen: Generation,
}

impl StateName {
    /// The seeded state before any step, which every worker can make by itself.
    pub const INITIAL: Self = Self {
        step: 0,
        applied_gen: Generation(0),
    };
}

impl Ord for StateName {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.applied_gen, self.step).cmp(&(other.applied_gen, other.step))
    }
}

impl PartialOrd for StateName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} of gen {}", self.step, self.applied_gen.0)
    }
}

/// One row of one shard: what a position of a lane stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SampleId {
    /// Index of the source in the job.
    pub source: u16,
    /// Index of the shard in the source's index.
    pub shard: u32,
    /// Row of the shard, counted in the order of the tar file.
    pub row: u32,
}

impl fmt::Display for SampleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.source, self.shard, self.row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_names_order_by_generation_before_step() {
        let older = StateName {
            step: 90,
            applied_gen: Generation(3),
        };
        let newer = StateName {
            step: 80,
            applied_gen: Generation(4),
        };
        assert!(newer > older, "a later generation is the truth even at a smaller step");
        assert!(StateName::INITIAL < older);
    }
}
