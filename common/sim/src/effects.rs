//! Which faults changed something. A fault counts once, and only when an effect can be traced to it: a generation closed, a
//! step aborted, a commit delayed or given up, a leader changed, a decision that came late, twice or out of order.

use crate::faults::{Fault, FaultKind};
use crate::net::Node;
use crate::queue::Ms;
use argosy_common::ids::WorkerId;
use std::collections::BTreeMap;

/// A fault under way.
#[derive(Clone, Debug)]
struct Pending {
    fault: usize,
    targets: Vec<Node>,
    until: Ms,
}

/// The book of faults and effects.
#[derive(Clone, Debug, Default)]
pub(crate) struct Effects {
    pending: Vec<Pending>,
    effective: BTreeMap<usize, FaultKind>,
}

impl Effects {
    /// Fault number `fault` was injected into `targets`; effects up to `until` may be its.
    pub(crate) fn injected(&mut self, fault: usize, targets: Vec<Node>, until: Ms) {
        self.pending.push(Pending { fault, targets, until });
    }

    /// Something changed, and `nodes` had a part in it. One fault at most is credited: the latest that hit one of them.
    pub(crate) fn saw(&mut self, nodes: &[Node], now: Ms, faults: &[Fault]) {
        self.pending.retain(|p| p.until >= now);
        let hit = |p: &Pending| nodes.iter().any(|n| p.targets.contains(n));
        if let Some(at) = self.pending.iter().rposition(hit) {
            let fault = self.pending.remove(at).fault;
            self.credit(fault, faults);
        }
    }

    /// This very fault changed something.
    pub(crate) fn credit(&mut self, fault: usize, faults: &[Fault]) {
        if let Some(kind) = faults.get(fault).map(|f| f.kind) {
            self.effective.insert(fault, kind);
        }
    }

    /// Effective faults by kind.
    pub(crate) fn counts(&self) -> BTreeMap<FaultKind, u64> {
        let mut counts = BTreeMap::new();
        for kind in self.effective.values() {
            *counts.entry(*kind).or_default() += 1;
        }
        counts
    }
}

/// Workers that a conductor's reason names. Who joins is one of them: what befell it made it late.
pub(crate) fn named(reason: &str) -> Vec<WorkerId> {
    let words = reason.split(|c: char| !c.is_ascii_alphanumeric());
    let id = |word: &str| word.strip_prefix('w')?.parse().ok().map(WorkerId);
    words.filter_map(id).collect()
}

/// Whether a generation was left by plan, and not because something broke.
pub(crate) fn is_planned(reason: &str) -> bool {
    ["join", "drain", "is slow", "has to go"]
        .iter()
        .any(|word| reason.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_names_those_to_whom_something_happened() {
        for (reason, workers, planned) in [
            ("w3 joins", vec![3], true),
            ("w3, w4 join, w2 drains", vec![3, 4, 2], true),
            ("w12 is slow: 90 ms a lane", vec![12], true),
            ("w7: its stream broke", vec![7], false),
            ("states of step 4 of gen 2 differ (INV1)", vec![], false),
        ] {
            let workers: Vec<WorkerId> = workers.into_iter().map(WorkerId).collect();
            assert_eq!((named(reason), is_planned(reason)), (workers, planned), "{reason}");
        }
    }

    #[test]
    fn effect_credits_the_latest_fault_of_its_node_once() {
        let fault = |kind| Fault {
            kind,
            at_ms: 0,
            who: 0,
            for_ms: 0,
        };
        let faults = [fault(FaultKind::MemberHang), fault(FaultKind::MemberCrash)];
        let mut effects = Effects::default();
        effects.injected(0, vec![Node::Process(1)], 100);
        effects.injected(1, vec![Node::Process(1)], 100);
        effects.saw(&[Node::Process(2)], 10, &faults);
        assert!(effects.counts().is_empty(), "another node's effect");
        effects.saw(&[Node::Process(1), Node::Store], 10, &faults);
        assert_eq!(effects.counts(), BTreeMap::from([(FaultKind::MemberCrash, 1)]));
        effects.saw(&[Node::Process(1)], 101, &faults);
        assert_eq!(effects.counts().len(), 1, "too late to be its effect");
    }
}
