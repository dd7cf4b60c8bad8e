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
    ///
    /// The two tables, which are long in a large fleet, go in byte by byte (lengths first, little endian), the rest as JSON.
    #[must_use]
    pub fn hash(&self) -> u64 {
        // Named one by one, so that a new field cannot be forgotten here.
        let Self {
            run,
            generation,
            term,
            base,
            source,
            members,
            lanes,
            skip,
            quarantine,
        } = self;
        let rest = crate::hash::digest_json(&(run, generation, term, base, source, skip, quarantine));
        let mut bytes = Vec::with_capacity(24 + 40 * members.len() + 4 * lanes.len());
        for number in [rest, members.len() as u64, lanes.len() as u64] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for member in members.iter() {
            bytes.extend_from_slice(&member.worker.0.to_le_bytes());
            bytes.push(u8::from(member.heals));
            bytes.extend_from_slice(&(member.addr.len() as u64).to_le_bytes());
            bytes.extend_from_slice(member.addr.as_bytes());
        }
        for owner in lanes.iter() {
            bytes.extend_from_slice(&owner.to_le_bytes());
        }
        crate::hash::digest64(&bytes)
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
    fn plan_hash_of_a_plan_that_differs_anywhere_differs() {
        let member = |worker, addr: &str, heals| Member {
            worker: WorkerId(worker),
            addr: addr.into(),
            heals,
        };
        let plan = Plan {
            run: "r".into(),
            generation: Generation(3),
            term: Term(1),
            base: StateName::INITIAL,
            source: StateSource::Peers,
            members: vec![member(1, "a:1", false), member(2, "b:2", true)].into(),
            lanes: vec![0, 1, 1].into(),
            skip: None,
            quarantine: Vec::new(),
        };
        let changes: [fn(&mut Plan); 12] = [
            |p| p.run.push('x'),
            |p| p.generation.0 += 1,
            |p| p.term.0 += 1,
            |p| p.base.step += 1,
            |p| p.source = StateSource::Seed,
            |p| p.members = p.members.iter().rev().cloned().collect(),
            |p| p.members = p.members[..1].to_vec().into(),
            |p| {
                let mut members = p.members.to_vec();
                members[0].addr = "a:2".into();
                p.members = members.into();
            },
            |p| {
                let mut members = p.members.to_vec();
                members[1].heals = false;
                p.members = members.into();
            },
            |p| p.lanes = vec![0, 1, 0].into(),
            |p| p.lanes = vec![0, 1].into(),
            |p| p.skip = Some(String::new()),
        ];
        let mut hashes = std::collections::BTreeSet::from([plan.hash()]);
        assert_eq!(plan.hash(), plan.clone().hash());
        for change in changes {
            let mut other = plan.clone();
            change(&mut other);
            hashes.insert(other.hash());
        }
        assert_eq!(hashes.len(), 13);
    }

    #[test]
    fn generation_secrets_differ_by_generation_and_by_run() {
        let a = generation_secret(b"run", Generation(1));
        assert_ne!(a, generation_secret(b"run", Generation(2)));
        assert_ne!(a, generation_secret(b"other", Generation(1)));
        assert_eq!(a, generation_secret(b"run", Generation(1)));
    }
}
