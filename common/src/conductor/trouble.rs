//! What broke although nobody was lost: blame, and numbers that are not finite (rules G10, G11).

use super::blocked::Unread;
use super::{Conductor, Settings, Tick, Turn};
use crate::blame::{Evidence, Verdict, judge};
use crate::events::{AbortReport, NotFinite, Outcome, RunEvent, StepReport};
use crate::exit::Exit;
use crate::ids::WorkerId;
use crate::plan::Plan;
use crate::quarantine::QuarantineLedger;
use crate::rules::Rules;
use std::collections::{BTreeMap, BTreeSet};

/// Suspect hardware gets so long to leave.
const CORDON_GRACE_MS: u64 = 60_000;

/// Why hardware is suspect.
const ONLY_WITHOUT: &str = "a step was finite only without it: suspect hardware";

/// A step that was not finite and is done again.
#[derive(Debug)]
struct Poison {
    step: u64,
    lanes: BTreeSet<u32>,
    /// Who had those lanes.
    workers: BTreeSet<WorkerId>,
}

/// What the conductor remembers of trouble.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) quarantine: QuarantineLedger,
    /// Suspect hardware.
    pub(super) cordoned: BTreeSet<WorkerId>,
    /// Lanes that a worker must not have, for now.
    pub(super) banned: BTreeSet<(u32, WorkerId)>,
    /// Pairs that are not neighbours in the next ring.
    pub(super) apart: Vec<(WorkerId, WorkerId)>,
    reports: BTreeMap<WorkerId, AbortReport>,
    /// Failures without a loss since the last step.
    failures: u32,
    poison: Option<Poison>,
    skip: Option<(u64, String)>,
    skipped_in_a_row: u32,
    pub(super) unread: Unread,
}

impl Trouble {
    pub(super) fn new(quarantine: QuarantineLedger) -> Self {
        Self {
            quarantine,
            cordoned: BTreeSet::new(),
            banned: BTreeSet::new(),
            apart: Vec::new(),
            reports: BTreeMap::new(),
            failures: 0,
            poison: None,
            skip: None,
            skipped_in_a_row: 0,
            unread: Unread::default(),
        }
    }

    pub(super) fn next_deadline(&self, settings: &Settings) -> Option<(Tick, &'static str)> {
        self.unread.next_deadline(settings)
    }

    pub(super) fn forget_reports(&mut self) {
        self.reports.clear();
    }

    /// Why step `step` is passed over, if it is.
    pub(super) fn skip_at(&self, step: u64) -> Option<String> {
        self.skip
            .as_ref()
            .filter(|(at, _)| *at == step)
            .map(|(_, why)| why.clone())
    }
}

impl<R: Rules> Conductor<R> {
    pub(super) fn aborted(&mut self, worker: WorkerId, report: AbortReport) {
        if self.member_of(worker, report.generation) {
            self.trouble.reports.insert(worker, report);
        }
    }

    /// A generation broke and all its members answered: who or what was it?
    pub(super) fn judge_failure(&mut self, plan: &Plan, turn: &mut Turn) {
        if self.trouble.reports.is_empty() {
            return;
        }
        self.trouble.failures += 1;
        let step = self
            .trouble
            .reports
            .values()
            .map(|r| r.step)
            .max()
            .unwrap_or(plan.base.step);
        let not_finite: Vec<NotFinite> = self
            .trouble
            .reports
            .values()
            .filter(|r| r.step == step)
            .filter_map(|r| r.not_finite.clone())
            .collect();
        if !not_finite.is_empty() {
            self.not_finite(plan, step, &not_finite, turn);
            return;
        }
        let half_budget = turn.now.saturating_sub(self.settings.failure_budget_ms / 2);
        let members = || plan.members.iter().enumerate();
        let lanes = members()
            .map(|(rank, m)| (m.worker, plan.lanes_of(rank).len() as u32))
            .collect();
        // Who is still starting has no part in the step and is not heard of for a while.
        let mut silent = self.seats.silent(half_budget);
        silent.retain(|w| plan.rank_of(*w).is_some());
        let verdict = judge(&Evidence {
            reports: &self.trouble.reports,
            silent: &silent,
            lanes: &lanes,
            failures: self.trouble.failures,
        });
        match verdict {
            Verdict::Again { apart, reason } => {
                self.trouble.apart = apart;
                turn.announce(RunEvent::Blamed { worker: None, reason });
            }
            Verdict::Expel { worker, reason } => {
                let blamed = Some(worker);
                turn.announce(RunEvent::Blamed {
                    worker: blamed,
                    reason: reason.clone(),
                });
                self.lose(worker, &reason, turn);
            }
        }
    }

    /// The step is done once more with the guilty lanes elsewhere; a guilty lane again is the data's fault, and the step is
    /// passed over; another one is the first worker's.
    fn not_finite(&mut self, plan: &Plan, step: u64, found: &[NotFinite], turn: &mut Turn) {
        let lanes: BTreeSet<u32> = found.iter().flat_map(|n| n.lanes.iter().copied()).collect();
        let before = self.trouble.poison.take().filter(|p| p.step == step);
        let again = before.as_ref().is_some_and(|p| !p.lanes.is_disjoint(&lanes));
        if again || found.iter().any(|n| n.sum) || lanes.is_empty() {
            let why = if again {
                format!("lanes {lanes:?} are not finite on two workers")
            } else {
                "the sum of finite parts is not finite".to_owned()
            };
            self.skip(step, why, turn);
            return;
        }
        if let Some(before) = before {
            self.cordon(&before.workers, ONLY_WITHOUT, turn);
        }
        let owner = |lane: &u32| {
            plan.lanes
                .get(*lane as usize)
                .and_then(|rank| plan.members.get(*rank as usize))
        };
        let owned: BTreeSet<(u32, WorkerId)> = lanes.iter().filter_map(|q| Some((*q, owner(q)?.worker))).collect();
        let workers: BTreeSet<WorkerId> = owned.iter().map(|(_, w)| *w).collect();
        let names: Vec<String> = workers.iter().map(ToString::to_string).collect();
        let reason = format!(
            "lanes {lanes:?} of {} are not finite at step {step}; once again elsewhere",
            names.join(", ")
        );
        turn.announce(RunEvent::Blamed { worker: None, reason });
        self.trouble.banned.extend(owned);
        self.trouble.poison = Some(Poison { step, lanes, workers });
    }

    fn skip(&mut self, step: u64, why: String, turn: &mut Turn) {
        self.trouble.skipped_in_a_row += 1;
        let reason = format!("step {step} is passed over: {why}");
        turn.announce(RunEvent::Blamed { worker: None, reason });
        if self.trouble.skipped_in_a_row >= self.settings.policy.nonfinite_max {
            let steps = self.trouble.skipped_in_a_row;
            let message =
                format!("{steps} steps in a row were passed over, the last because {why}; lower the learning rate");
            let exit = Exit::JobFailed.code();
            self.end(Outcome::Failed { exit, message }, turn);
            return;
        }
        self.trouble.skip = Some((step, why));
    }

    /// Suspect hardware that comes back goes again, so that another can come for it.
    pub(super) fn keep_out(&mut self, worker: WorkerId, turn: &mut Turn) {
        if self.trouble.cordoned.contains(&worker) {
            self.drain(worker, CORDON_GRACE_MS, turn);
        }
    }

    /// Takes suspect workers out of the run, unless they are all there is.
    pub(super) fn cordon(&mut self, workers: &BTreeSet<WorkerId>, why: &str, turn: &mut Turn) {
        for worker in workers {
            let others = self
                .seats
                .ready()
                .into_iter()
                .filter(|w| w != worker && self.may_train(*w))
                .count();
            if others == 0 || !self.seats.contains(*worker) {
                continue;
            }
            self.trouble.cordoned.insert(*worker);
            turn.announce(RunEvent::Blamed {
                worker: Some(*worker),
                reason: why.into(),
            });
            self.drain(*worker, CORDON_GRACE_MS, turn);
        }
    }

    /// A step was applied: what it proves about the trouble before it.
    pub(super) fn trouble_passed(&mut self, report: &StepReport, turn: &mut Turn) {
        let step = report.name.step;
        self.trouble.failures = 0;
        self.trouble.apart.clear();
        if report.loss.is_some() {
            self.trouble.skipped_in_a_row = 0;
        }
        self.trouble.skip = self.trouble.skip.take().filter(|(at, _)| *at >= step);
        self.trouble.unread.stepped(step);
        let passed = self.trouble.poison.take_if(|poison| poison.step < step);
        if self.trouble.unread.is_empty() && self.trouble.poison.is_none() {
            self.trouble.banned.clear();
        }
        if let Some(poison) = passed
            && report.loss.is_some()
        {
            self.cordon(&poison.workers, ONLY_WITHOUT, turn);
        }
    }
}
