//! Worlds from outside: seeds hold, equal seeds are equal, planted faults count.

use argosy_common::rules::Shipped;
use argosy_sim::{Config, FaultKind, Outcome, run, schedule, shrink};
use std::collections::BTreeMap;

/// Says how to see it again.
fn complain(seed: u64, config: &Config, outcome: &Outcome) -> String {
    let faults = |list: Vec<argosy_sim::Fault>| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    format!(
        "seed {seed}: {:?}\n  all: {}\n  enough: {}\n  again: argosy sim --seed {seed}",
        outcome.violation,
        faults(schedule(seed, config)),
        faults(shrink::<Shipped>(seed, config)),
    )
}

fn sweep(seeds: std::ops::Range<u64>) -> BTreeMap<FaultKind, u64> {
    let mut effective = BTreeMap::new();
    let mut broken = Vec::new();
    for seed in seeds {
        let config = Config::for_seed(seed);
        let outcome = run::<Shipped>(seed, &config);
        for (kind, n) in &outcome.effective {
            *effective.entry(*kind).or_default() += n;
        }
        if outcome.violation.is_some() {
            broken.push(complain(seed, &config, &outcome));
        }
    }
    assert!(
        broken.is_empty(),
        "{} worlds broke:\n{}",
        broken.len(),
        broken.join("\n")
    );
    effective
}

#[test]
fn worlds_without_faults_end_in_one_generation() {
    for seed in 0..50 {
        let config = Config::for_seed(seed).calm();
        let outcome = run::<Shipped>(seed, &config);
        assert_eq!(outcome.violation, None, "seed {seed}");
        assert!(outcome.effective.is_empty(), "seed {seed}");
    }
}

#[test]
fn worlds_of_two_hundred_seeds_hold_and_every_kind_of_fault_changes_something() {
    let effective = sweep(0..200);
    for kind in FaultKind::ALL {
        assert!(effective.contains_key(kind), "{} never changed anything", kind.name());
    }
}

#[test]
fn world_of_one_seed_run_twice_has_one_hash() {
    let mut hashes = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let config = Config::for_seed(seed);
        let first = run::<Shipped>(seed, &config);
        assert_eq!(first, run::<Shipped>(seed, &config), "seed {seed}");
        hashes.insert(first.hash);
    }
    assert_eq!(hashes.len(), 40, "other seeds, other worlds");
}
