//! What must hold in every world, looked at when it could break.

use crate::oracle::Oracle;
use crate::world::World;
use argosy_common::audit::{AuditInput, audit};
use argosy_common::events::{FromWorker, Outcome, PartInfo, Record, ToWorker};
use argosy_common::ids::{Generation, StateName, Term, WorkerId};
use argosy_common::invariants::{
    Checked, InvariantId, lane_handed_over, lanes_owned, logged_first, plan_has_source, truth_is_newest,
};
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
#[derive(Clone, Debug, Default)]
pub(crate) struct Checks {
    pub(crate) violation: Option<Violation>,
    pub(crate) count: u64,
    oracle: Oracle,
    /// The generation that is being left and by whose word, whether lanes may not move unprimed, and whether the order was to
    /// leave at a boundary.
    planned: Option<(Term, Generation, bool, bool)>,
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
    head_name: Option<StateName>,
    kept: Vec<u64>,
}

impl Checks {
    /// A generation is about to be closed: at a boundary, unless an order says otherwise. Somebody whose grace is over goes
    /// whether its lanes are primed elsewhere or not, and where all go there is no elsewhere.
    pub(crate) fn closing(&mut self, term: Term, generation: Generation, reason: &str) {
        let may_wait = !reason.ends_with("has to go now") && !reason.starts_with("all members drain");
        self.planned = Some((term, generation, may_wait, false));
    }

    /// Another reign knows nothing of a move under way; who is asked to leave while a boundary is waited for leaves there.
    pub(crate) fn plan_changed(&mut self) {
        self.planned = None;
    }

    /// A member was lost: lanes are shared out anew.
    pub(crate) fn lost_one(&mut self) {
        self.planned = None;
    }
}

impl<R: Rules> World<R> {
    /// The bits of a state that was trained exactly.
    pub(crate) fn bits_of(&mut self, name: StateName) -> u64 {
        self.checks.oracle.bits_of(name, &self.data)
    }

    /// A worker is about to say something.
    pub(crate) fn says(&mut self, process: usize, message: &FromWorker) {
        if let FromWorker::Closed { generation, .. } = message {
            let closed = self.checks.closed.entry(process).or_default();
            *closed = (*closed).max(*generation);
        }
        let name = match message {
            FromWorker::Closed { name, .. } | FromWorker::Rejoined { name, .. } => *name,
            FromWorker::StepDone { report } => report.name,
            _ => return,
        };
        let p = &self.processes[process];
        let (logged, worker) = (p.trainer.logged.contains(&name), p.worker.unwrap_or(WorkerId(0)));
        self.holds_to(logged_first(worker, name, logged));
    }

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
        let expected = self.bits_of(name);
        self.must(InvariantId::EqualNamesEqualBits, bits == expected, || {
            format!("p{process} holds {name} with bits {bits:016x}, exact training gives {expected:016x}")
        });
    }

    /// `process` applied a step: the state `name` came from `before`.
    pub(crate) fn applied(&mut self, process: usize, before: StateName, name: StateName, plan_hash: u64) {
        let durable = self.checks.oracle.line(name.applied_gen).map(|l| l.plan_hash);
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
        match message {
            ToWorker::Form { plan } => {
                let durable = self.checks.oracle.line(plan.generation).map(|l| l.plan_hash);
                let (generation, hash) = (plan.generation, plan.hash());
                self.must(InvariantId::DurableFirst, durable == Some(hash), || {
                    format!("the plan of {generation} was sent before it was durable")
                });
                self.holds_to(lanes_owned(plan, self.config.lanes));
                self.holds_to(plan_has_source(plan));
                self.checks.oracle.planned(generation, plan.skip.is_some());
            }
            ToWorker::Close { after_step, .. } => match (after_step, &mut self.checks.planned) {
                (Some(_), Some((.., ordered))) => *ordered = true,
                (Some(_), None) => {}
                // Broken off after all.
                (None, planned) => *planned = None,
            },
            _ => {}
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
        match record.clone() {
            Record::GenerationFormed {
                generation,
                term,
                base,
                members,
                lanes,
                ..
            } => {
                self.trace
                    .note(now, "formed", &[generation.0, base.step, members.len() as u64], || {
                        let names: Vec<String> = members.iter().map(ToString::to_string).collect();
                        format!("{generation} from {base} with {}", names.join(", "))
                    });
                let last = self.checks.oracle.last();
                self.must(InvariantId::GenerationsGrow, generation > last, || {
                    format!("{generation} was formed after {last}")
                });
                self.starts_from_the_newest(base, &members);
                self.checks.oracle.recorded(&record);
                let trained = self.checks.trained.get(&last).copied().unwrap_or(0);
                // A member that has closed it says that no other can be further than one step ahead. If none has, its lease is
                // over, and nobody begins to apply anything in it; who stands still in an APPLY that began under the lease
                // may still end it, and the state does not count then (G1).
                let acknowledged = self.checks.closed.values().any(|closed| *closed >= last);
                let most = trained.max(base.step) + u64::from(acknowledged || self.applies_in(last));
                self.checks.followed.insert(last, most);
                self.one_step_lost(last);
                let owned =
                    lanes.len() == self.config.lanes as usize && lanes.iter().all(|l| (*l as usize) < members.len());
                self.must(InvariantId::LanesOwned, owned, || {
                    format!("a lane of {generation} has no owner")
                });
                self.lanes_were_handed_over(term, last, generation);
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
                self.checks.head_name = Some(name);
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
                self.checks.oracle.recorded(&record);
            }
            Record::Quarantined { .. } => self.checks.oracle.recorded(&record),
            Record::CheckpointRejected { .. }
            | Record::WorkersNamed { .. }
            | Record::RunCreated { .. }
            | Record::CheckpointOpened { .. }
            | Record::RunFinished { .. } => {}
        }
    }

    /// Somebody is between the first and the last write of an APPLY of `generation`.
    fn applies_in(&self, generation: Generation) -> bool {
        let mut trainers = self.processes.iter().map(|p| &p.trainer);
        trainers.any(|t| t.dirty && t.inside.as_ref().is_some_and(|i| i.plan.generation == generation))
    }

    /// No member of the new generation holds a newer state that counts, and no manifest does (G1).
    fn starts_from_the_newest(&mut self, base: StateName, members: &[WorkerId]) {
        let clean = |p: &&crate::process::Process<R>| p.alive && p.worker.is_some_and(|w| members.contains(&w));
        let held = self.processes.iter().filter(clean).map(|p| p.trainer.name);
        let newest: Vec<StateName> = held.filter(|n| *n != base && self.checks.oracle.counts(*n)).collect();
        let head = self.checks.head_name.filter(|n| self.checks.oracle.counts(*n));
        self.holds_to(truth_is_newest(base, newest.into_iter().chain([base]), head));
    }

    /// Lanes that leave a living member at a boundary were fetched by their new owners first (L8).
    fn lanes_were_handed_over(&mut self, term: Term, last: Generation, next: Generation) {
        let by_plan = self.checks.planned.take() == Some((term, last, true, true));
        let owners = |generation| {
            self.checks
                .oracle
                .line(generation)
                .map(|l| l.owners.clone())
                .unwrap_or_default()
        };
        let moves: Vec<_> = (0u32..)
            .zip(owners(last))
            .zip(owners(next))
            .filter(|((_, a), b)| a != b)
            .collect();
        for ((lane, from), to) in moves {
            let living = |w: WorkerId| self.processes.iter().find(|p| p.alive && p.worker == Some(w));
            let (stays, new) = (living(from).is_some(), living(to));
            if let Some(new) = new.filter(|_| stays && by_plan) {
                let primed = new.trainer.primed.contains(&lane);
                self.holds_to(lane_handed_over(lane, from, to, primed));
            }
        }
        self.processes.iter_mut().for_each(|p| p.trainer.primed.clear());
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
        let bits = self.bits_of(name);
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
