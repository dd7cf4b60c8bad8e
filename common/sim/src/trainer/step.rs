//! The phases of a step, up to APPLY behind a complete sentinel and under a lease.

use crate::data::next_bits;
use crate::process::{At, Exchange, Stage};
use crate::queue::Ms;
use crate::world::{Ev, World};
use argosy_common::events::StepReport;
use argosy_common::follower::Event;
use argosy_common::ids::{Generation, StateName};
use argosy_common::invariants::{counts_add_up, lease_held};
use argosy_common::rules::Rules;
use argosy_common::steplog::{STEP_LOG_VERSION, StepRecord};
use std::collections::BTreeMap;

/// States kept for members that come back with an old one.
const HISTORY_MAX: usize = 8;

impl<R: Rules> World<R> {
    /// Behind a complete sentinel: APPLY, if the step lease allows it; else waits in place (rule G5).
    pub(super) fn apply_if_leased(&mut self, process: usize) {
        let p = &mut self.processes[process];
        let now = p.clock.shows(self.queue.now());
        let (leased, until) = p.trainer.lease;
        let Some(inside) = &mut p.trainer.inside else { return };
        let generation = inside.plan.generation;
        if !self.config.leases || R::lease_allows(leased, generation, until, now) {
            if self.config.leases {
                self.holds_to(lease_held(generation, leased, until, now));
            }
            return self.work(process, Stage::Apply);
        }
        inside.at = At::Unleased;
    }

    /// The follower has a lease for its trainer, or takes one away.
    pub(crate) fn leased(&mut self, process: usize, generation: Generation, until: Ms) {
        let trainer = &mut self.processes[process].trainer;
        trainer.lease = (generation, until);
        if trainer.inside.as_ref().is_some_and(|i| i.at == At::Unleased) {
            self.apply_if_leased(process);
        }
    }

    /// Begins a stage of the trainer's own work.
    pub(super) fn work(&mut self, process: usize, stage: Stage) {
        let now = self.now();
        let doomed = self.doomed(process, stage);
        let p = &mut self.processes[process];
        let slow = if p.slow_until > now { 8 } else { 1 };
        p.trainer.token += 1;
        p.trainer.dirty = stage == Stage::Apply;
        let token = p.trainer.token;
        let Some(inside) = &mut p.trainer.inside else { return };
        inside.at = At::In(stage);
        if stage == Stage::Load {
            inside.entered = 0;
        }
        let wait: Ms = (self.config.step_ms * stage.percent() * slow / 100).max(1);
        let jitter = self.draws.below(wait / 4 + 1);
        self.queue.after(wait + jitter, Ev::WorkDone { process, token });
        if let Some((fault, dies)) = doomed {
            self.doom_comes(process, fault, dies, wait / 2);
        }
    }

    pub(crate) fn work_done(&mut self, process: usize, token: u64) {
        let p = &mut self.processes[process];
        if !p.alive || p.trainer.token != token {
            return;
        }
        let Some(inside) = &mut p.trainer.inside else { return };
        let At::In(stage) = inside.at else { return };
        if stage == Stage::Apply {
            return self.apply(process);
        }
        if let Some(cause) = inside.cut_off.take() {
            return self.halt(process, cause);
        }
        let blocked = stage == Stage::Load && self.lane_waits(process, token);
        let p = &mut self.processes[process];
        let Some(inside) = &mut p.trainer.inside else { return };
        match stage {
            Stage::Load if blocked => {}
            Stage::Load => self.work(process, Stage::Encode),
            Stage::Encode => self.reach(process, Exchange::Gather, 0),
            Stage::Loss => self.reach(process, Exchange::Lse, 0),
            Stage::Backward => {
                let step = p.trainer.name.step;
                let (lanes, ledger) = (inside.plan.lanes_of(inside.rank), &inside.plan.quarantine);
                let part = lanes
                    .into_iter()
                    .fold(0u64, |sum, q| sum.wrapping_add(self.data.part(step, q, ledger)));
                self.reach(process, Exchange::Reduce, part);
            }
            _ => {}
        }
    }

    /// What its lanes cost a member: a usual share costs a usual step.
    fn own_ms(&self, process: usize) -> f32 {
        let p = &self.processes[process];
        let Some(inside) = &p.trainer.inside else { return 0.0 };
        let slow = if p.slow_until > self.queue.now() { 8.0 } else { 1.0 };
        let share = inside.plan.lanes_of(inside.rank).len() * inside.plan.members.len();
        slow * (self.config.step_ms * share as u64) as f32 / self.config.lanes as f32
    }

    pub(super) fn apply(&mut self, process: usize) {
        let now = self.now();
        let trainer = &mut self.processes[process].trainer;
        let Some(inside) = &trainer.inside else { return };
        let generation = inside.plan.generation;
        let name = StateName {
            step: trainer.name.step + 1,
            applied_gen: generation,
        };
        trainer.history.push_back((trainer.name, trainer.bits));
        if trainer.history.len() > HISTORY_MAX {
            trainer.history.pop_front();
        }
        let before = trainer.name;
        let skipped = inside.plan.skip.clone().filter(|_| inside.skips(before.step));
        for _ in 0..R::applies() {
            if skipped.is_none() {
                trainer.bits = next_bits(trainer.bits, inside.reduced, inside.plan_hash);
            }
        }
        let masked = self.data.left_out(before.step, &inside.plan.quarantine);
        trainer.name = name;
        trainer.dirty = false;
        let lanes = inside.gathered.clone();
        let plan_hash = inside.plan_hash;
        let positions = self.shape.positions_before(name.step) - self.shape.positions_before(name.step - 1);
        let valid = positions.saturating_sub(masked.len() as u64);
        let (trained, passed) = if skipped.is_some() { (0, valid) } else { (valid, 0) };
        self.holds_to(counts_add_up(positions, trained, 0, masked.len() as u64, passed));
        self.poison_passes(name.step);
        let loss = skipped.is_none().then_some(1.0);
        let own_ms = self.own_ms(process);
        self.trace
            .note(now, "applied", &[process as u64, name.step, generation.0], || {
                let over = skipped.as_deref().map(|s| format!(", passed over: {s}"));
                format!("p{process} {name}{}", over.unwrap_or_default())
            });
        self.applied(process, before, name, plan_hash);
        let record = StepRecord::Applied {
            name,
            plan_hash,
            lanes,
            valid: valid as u32,
            masked,
            skipped,
            loss,
        };
        self.log(process, record);
        let report = StepReport {
            generation,
            name,
            loss,
            valid: valid as u32,
            phase_ms: BTreeMap::from([("encode".to_string(), own_ms)]),
            ..StepReport::default()
        };
        self.follow(process, Event::Stepped { report });
        self.boundary(process);
    }

    pub(crate) fn log(&mut self, process: usize, record: StepRecord) {
        if let StepRecord::Applied { name, .. } | StepRecord::Healed { name, .. } = &record {
            self.processes[process].trainer.logged.insert(*name);
        }
        let p = &mut self.processes[process];
        if let Some(worker) = p.worker {
            let log = self.logs.entry(worker.to_string()).or_default();
            // Only one that begins with nothing says so: an old state has no line of its own.
            if std::mem::take(&mut p.log_opens) {
                log.push(StepRecord::Opened {
                    version: STEP_LOG_VERSION,
                    worker: worker.0,
                    pid: process as u32,
                });
            }
            log.push(record);
        }
    }
}
