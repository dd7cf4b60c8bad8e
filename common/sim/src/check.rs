//! What must hold in every world, looked at when it could break.

use crate::world::{SEED_BITS, World};
use argosy_common::audit::{AuditInput, audit};
use argosy_common::events::{FromWorker, Outcome, PartInfo, Record, ToWorker};
use argosy_common::ids::{Generation, StateName};
use argosy_common::invariants::{Checked, InvariantId};
use argosy_common::rules::Rules;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Id of the invariant; see ARCHITECTURE.md.
    pub id: String,
    /// What was seen instead.
    pub detail: String,
    /// When.
    pub at_ms: u64,
    /// Number of the event in the world's trace.
    pub event: u64,
}

/// What the world remembers in order to judge.
#[derive(Clone, Debug)]
pub(crate) struct Checks {
    pub(crate) violation: Option<Violation>,
    pub(crate) count: u64,
    /// Bits of the undisturbed run, by steps applied.
    expected: Vec<u64>,
    /// Plan hash of every durable generation.
    durable: BTreeMap<Generation, u64>,
    last_generation: Generation,
    /// The highest count of steps that each followed generation may come to.
    followed: BTreeMap<Generation, u64>,
    /// Highest count of steps applied in each generation.
    trained: BTreeMap<Generation, u64>,
    /// Generations each process has closed.
    closed: BTreeMap<usize, Generation>,
    /// Names applied by each process.
    applied: BTreeSet<(usize, StateName)>,
    committed: BTreeSet<u64>,
    head: Option<u64>,
    kept: Vec<u64>,
}

impl Checks {
    pub(crate) fn new(expected: Vec<u64>) -> Self {
        Self {
            violation: None,
            count: 0,
            expected,
            durable: BTreeMap::new(),
            last_generation: Generation(0),
            followed: BTreeMap::new(),
            trained: BTreeMap::new(),
            closed: BTreeMap::new(),
            applied: BTreeSet::new(),
            committed: BTreeSet::new(),
            head: None,
            kept: Vec::new(),
        }
    }

    /// The bits of a state that was trained exactly.
    pub(crate) fn bits_of(&self, name: StateName) -> u64 {
        self.expected.get(name.step as usize).copied().unwrap_or(SEED_BITS)
    }

    /// A worker is about to say something.
    pub(crate) fn said(&mut self, process: usize, message: &FromWorker) {
        if let FromWorker::Closed { generation, .. } = message {
            let closed = self.closed.entry(process).or_default();
            *closed = (*closed).max(*generation);
        }
    }
}

impl<R: Rules> World<R> {
    /// Judges `holds` as one check of invariant `id`.
    fn must(&mut self, id: InvariantId, holds: bool, detail: impl FnOnce() -> String) {
        self.checks.count += 1;
        if !holds {
            self.violate(&id.to_string(), detail());
        }
    }

    /// Judges by a check that the brains and the audit use, too.
    pub(crate) fn holds_to(&mut self, checked: Checked) {
        self.checks.count += 1;
        if let Err(violation) = checked {
            self.violate(&violation.id.to_string(), violation.detail);
        }
    }

    /// A process holds a state: its bits are those of its name (G1).
    pub(crate) fn holds(&mut self, process: usize) {
        let (name, bits) = (
            self.processes[process].trainer.name,
            self.processes[process].trainer.bits,
        );
        let expected = self.checks.bits_of(name);
        self.must(InvariantId::EqualNamesEqualBits, bits == expected, || {
            format!("p{process} holds {name} with bits {bits:016x}, exact training gives {expected:016x}")
        });
    }

    /// `process` applied a step: the state `name` came from `before`.
    pub(crate) fn applied(&mut self, process: usize, before: StateName, name: StateName, plan_hash: u64) {
        let durable = self.checks.durable.get(&name.applied_gen).copied();
        self.must(InvariantId::DurableFirst, durable == Some(plan_hash), || {
            format!("p{process} applied {name} under a plan that is not the durable one of its generation")
        });
        let closed = self.checks.closed.get(&process).copied().unwrap_or_default();
        self.must(InvariantId::NothingAfterClosed, closed < name.applied_gen, || {
            format!("p{process} applied {name} after it had closed {closed}")
        });
        let first = self.checks.applied.insert((process, name));
        self.must(InvariantId::ExactlyOnce, first && name.step == before.step + 1, || {
            format!("p{process} applied {name} on top of {before}")
        });
        let trained = self.checks.trained.entry(name.applied_gen).or_default();
        *trained = name.step.max(*trained);
        self.one_step_lost(name.applied_gen);
        self.holds(process);
    }

    /// A generation that was followed may end the step that it was in, and no other. (Its successor may start from further
    /// back, when nobody who had gone on could be reached.)
    fn one_step_lost(&mut self, generation: Generation) {
        let trained = self.checks.trained.get(&generation).copied();
        let most = self.checks.followed.get(&generation).copied();
        if let (Some(trained), Some(most)) = (trained, most) {
            self.must(InvariantId::OneStepLost, trained <= most, || {
                format!("{generation} trained up to step {trained}, by its successor it was to end at {most}")
            });
        }
    }

    /// A message to a worker is on its way: plans only when they are durable (G5).
    pub(crate) fn heard_of(&mut self, message: &ToWorker) {
        if let ToWorker::Form { plan } = message {
            let durable = self.checks.durable.get(&plan.generation).copied();
            let (generation, hash) = (plan.generation, plan.hash());
            self.must(InvariantId::DurableFirst, durable == Some(hash), || {
                format!("the plan of {generation} was sent before it was durable")
            });
        }
    }

    /// A record is durable.
    pub(crate) fn recorded(&mut self) {
        let Some(record) = self.etcd.records().last().cloned() else {
            return;
        };
        let now = self.now();
        let terms = self.etcd.terms();
        let ordered = terms.len() < 2 || terms[terms.len() - 2] <= terms[terms.len() - 1];
        self.must(InvariantId::TermsFence, ordered, || {
            "a record of an older term was written after one of a newer".into()
        });
        match record {
            Record::GenerationFormed {
                generation,
                base,
                members,
                lanes,
                plan_hash,
                ..
            } => {
                self.trace
                    .note(now, "formed", &[generation.0, base.step, members.len() as u64], || {
                        format!("{generation} from {base} with {members:?}")
                    });
                let last = std::mem::replace(&mut self.checks.last_generation, generation);
                self.must(InvariantId::GenerationsGrow, generation > last, || {
                    format!("{generation} was formed after {last}")
                });
                self.checks.durable.insert(generation, plan_hash);
                let trained = self.checks.trained.get(&last).copied().unwrap_or(0);
                self.checks.followed.insert(last, trained.max(base.step) + 1);
                self.one_step_lost(last);
                let owned =
                    lanes.len() == self.config.lanes as usize && lanes.iter().all(|l| (*l as usize) < members.len());
                self.must(InvariantId::LanesOwned, owned, || {
                    format!("a lane of {generation} has no owner")
                });
            }
            Record::CheckpointCommitted { attempt, key, name } => {
                self.trace.note(now, "committed", &[attempt, name.step], || {
                    format!("attempt {attempt}: {name}")
                });
                let manifest = self.objects.peek(&key).cloned();
                let whole = manifest.is_some_and(|m| m.whole && m.name == name);
                self.must(InvariantId::HeadComplete, whole, || {
                    format!("{key} is the head and not there, or of another state than {name}")
                });
                let first = self.checks.committed.insert(attempt);
                self.must(InvariantId::OneAttempt, first, || {
                    format!("attempt {attempt} was committed twice")
                });
                self.parts_are_there(attempt, name);
                self.checks.head = Some(attempt);
                self.checks.kept.push(attempt);
            }
            Record::CheckpointAbandoned { attempt, .. } => {
                let committed = self.checks.committed.contains(&attempt);
                self.must(InvariantId::OneAttempt, !committed, || {
                    format!("attempt {attempt} was abandoned after it was committed")
                });
            }
            Record::Resumed { generation, name, .. } => {
                self.trace.note(now, "resumed", &[generation.0, name.step], || {
                    format!("{generation} from {name}")
                });
            }
            Record::Quarantined { .. }
            | Record::CheckpointRejected { .. }
            | Record::WorkersNamed { .. }
            | Record::RunCreated { .. }
            | Record::CheckpointOpened { .. }
            | Record::RunFinished { .. } => {}
        }
    }

    /// A manifest is about to be written: its parts must be there (K3).
    pub(crate) fn manifest_of(&mut self, attempt: u64, name: StateName, parts: &[PartInfo]) {
        let all = parts.len() as u32 == self.config.parts;
        self.must(InvariantId::HeadComplete, all, || {
            format!("the manifest of attempt {attempt} lists {} parts", parts.len())
        });
        self.parts_are_there(attempt, name);
    }

    fn parts_are_there(&mut self, attempt: u64, name: StateName) {
        let bits = self.checks.bits_of(name);
        for index in 0..self.config.parts {
            let part = self.objects.peek(&format!("{attempt}/{index}")).cloned();
            let good = part.is_some_and(|p| p.whole && p.name == name && p.bits == bits);
            self.must(InvariantId::HeadComplete, good, || {
                format!("part {index} of attempt {attempt} is not there, or not of {name}")
            });
        }
    }

    /// What an attempt has written is about to be deleted: it is not the head (K3).
    pub(crate) fn collects(&mut self, attempt: u64) {
        let head = self.checks.head;
        self.must(InvariantId::HeadComplete, head != Some(attempt), || {
            format!("attempt {attempt} is the head and is deleted")
        });
    }

    /// The end: everything was trained exactly once, and the audit agrees.
    pub(crate) fn verdict(&mut self) {
        let Some(outcome) = self.ended.clone().filter(|_| self.checks.violation.is_none()) else {
            return;
        };
        let Outcome::Succeeded { name, .. } = outcome else {
            return self.violate("LIVE", format!("the run did not succeed: {outcome:?}"));
        };
        let total = self.shape.total_steps();
        self.must(InvariantId::ExactlyOnce, name.step == total, || {
            format!("the run ended at {name} of {total} steps")
        });
        let report = audit(&AuditInput {
            shape: &self.shape,
            records: self.etcd.records(),
            logs: &self.logs,
        });
        self.must(InvariantId::ExactlyOnce, report.holds && report.finished, || {
            let findings: Vec<_> = report.findings.iter().take(3).collect();
            format!("the audit does not hold: {findings:?}")
        });
        let now = self.now();
        self.trace
            .note(now, "ended", &[name.step, name.applied_gen.0, report.trained], || {
                name.to_string()
            });
    }
}
