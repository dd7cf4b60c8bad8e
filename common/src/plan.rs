//! A generation's plan: who computes what, from which state, fenced by a hash and a secret.

use crate::ids::{Generation, StateName, Term, WorkerId};
use crate::quarantine::Quarantined;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// A worker's place in a generation; its index in [`Plan::members`] is its rank and its place in the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Who.
    pub worker: WorkerId,
    /// Where its peers reach it, `host:port`.
    pub addr: String,
    /// It does not hold the base state and must heal first (rule G1).
    pub heals: bool,
}

/// Where a member that is behind gets the base state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum StateSource {
    /// Made from the run's seed; the base is [`StateName::INITIAL`].
    Seed,
    /// Read from a committed checkpoint's manifest, by its key in the run's object store.
    Manifest {
        /// Key of the manifest object.
        key: String,
    },
    /// Copied from the members that hold it.
    Peers,
}

/// What one generation does (rule G5). Made by the conductor, durable before anyone hears of it. Every member gets it, so
/// its tables are shared: a copy costs the same however large the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The run.
    pub run: String,
    /// Unique, growing.
    pub generation: Generation,
    /// Reign of the coordinator that made it.
    pub term: Term,
    /// State that every member holds before the first step; that step is `base.step`.
    pub base: StateName,
    /// Where those behind get it.
    pub source: StateSource,
    /// Members in ring order.
    pub members: Arc<[Member]>,
    /// Owner of each lane, as an index into `members`.
    pub lanes: Arc<[u32]>,
    /// The step `base.step` is passed over by all, for this reason: an APPLY that writes nothing but the name (rule G11).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip: Option<String>,
    /// Rows that nobody reads, each from its step on (rule M2).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantine: Vec<Quarantined>,
}

impl Plan {
    /// Digest of everything in the plan: what frames and step logs carry (rule G6).
    #[must_use]
    pub fn hash(&self) -> u64 {
        crate::hash::digest_json(self)
    }

    /// Rank of `worker` in this generation.
    #[must_use]
    pub fn rank_of(&self, worker: WorkerId) -> Option<usize> {
        // Members mostly stand in the order of their ids; ten thousand of them ask this again and again.
        self.members
            .binary_search_by_key(&worker, |m| m.worker)
            .ok()
            .or_else(|| self.members.iter().position(|m| m.worker == worker))
    }

    /// Lanes of the member with rank `rank`, ascending.
    #[must_use]
    pub fn lanes_of(&self, rank: usize) -> Vec<u32> {
        (0..self.lanes.len() as u32)
            .filter(|q| self.lanes[*q as usize] as usize == rank)
            .collect()
    }

    /// Members that hold the base state, if peers are the source.
    pub fn holders(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| !m.heals)
    }
}

/// The secret that ring and heal connections of one generation must show, derived from the run's secret.
#[must_use]
pub fn generation_secret(run_secret: &[u8], generation: Generation) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(b"argosy generation secret v1");
    hasher.update((run_secret.len() as u64).to_le_bytes());
    hasher.update(run_secret);
    hasher.update(generation.0.to_le_bytes());
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_secrets_differ_by_generation_and_by_run() {
        let a = generation_secret(b"run", Generation(1));
        assert_ne!(a, generation_secret(b"run", Generation(2)));
        assert_ne!(a, generation_secret(b"other", Generation(1)));
        assert_eq!(a, generation_secret(b"run", Generation(1)));
    }
}
