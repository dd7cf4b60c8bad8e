//! A simulator that tries to break Argosy's decisions.
//!
//! The brains of [`argosy_common`] are pure; this crate is another shell round them. A world of virtual time has worker
//! processes with a toy trainer of exact integers, coordinators that are elected by lease, a network, a metadata store with
//! etcd's promises and an object store, and a schedule of faults drawn from a seed. After every event the invariants are
//! looked at; at the end the audit judges the durable records and the step logs.
//!
//! Equal seeds give equal traces, in debug and in release: no clock, no hash map's order, no float decides anything.

mod check;
mod clock;
mod config;
mod data;
mod effects;
pub mod etcd;
mod faults;
pub mod fleet;
mod inject;
mod leader;
mod links;
mod net;
mod objects;
mod oracle;
mod process;
mod queue;
mod shrink;
mod sick;
mod spot;
mod trace;
mod trainer;
mod world;

use argosy_common::rules::Rules;
use serde::Serialize;
use std::collections::BTreeMap;

pub use check::Violation;
pub use config::Config;
pub use faults::{Fault, FaultKind, schedule};
pub use queue::Ms;
pub use shrink::shrink;
pub use spot::{Rates, Reclaim, Reclaims, Trace, reclaims};

/// How a world ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// Digest of everything that happened, in order.
    pub hash: u64,
    /// Events on the virtual clock.
    pub events: u64,
    /// Simulated milliseconds.
    pub sim_ms: u64,
    /// Generations formed.
    pub generations: u64,
    /// Times an invariant was looked at.
    pub checks: u64,
    /// Faults injected, by kind.
    pub injected: BTreeMap<FaultKind, u64>,
    /// Faults that changed something, by kind.
    pub effective: BTreeMap<FaultKind, u64>,
    /// The first thing that did not hold.
    pub violation: Option<Violation>,
    /// What happened, line by line, if [`Config::log`] asked for it.
    #[serde(skip)]
    pub log: Vec<String>,
}

/// Runs the world of `seed` under the rules `R` to its end or to the first violation.
#[must_use]
pub fn run<R: Rules>(seed: u64, config: &Config) -> Outcome {
    run_with::<R>(seed, config, &schedule(seed, config))
}

/// The same with faults of one's own.
#[must_use]
pub fn run_with<R: Rules>(seed: u64, config: &Config, faults: &[Fault]) -> Outcome {
    world::World::<R>::new(seed, config.clone(), faults.to_vec()).run(seed)
}
