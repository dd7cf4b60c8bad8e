//! A worker of the toy world.

use crate::events::{FromWorker, PartFailure, PartInfo, ToWorker};
use crate::follower::{self, Follower, TrainerOrder};
use crate::ids::{Generation, StateName, WorkerId};
use crate::plan::{Plan, StateSource};
use crate::steplog::StepRecord;
use std::collections::{BTreeMap, VecDeque};

/// A worker of the toy world: the real follower over a trainer that needs no time.
pub(super) struct Worker {
    pub(super) follower: Follower,
    pub(super) name: StateName,
    /// The toy state: a chain of digests, so that equal names can be checked for equal bits.
    pub(super) bits: u64,
    pub(super) plan: Option<Plan>,
    pub(super) running: bool,
    pub(super) stop_after: Option<u64>,
    pub(super) copies: Vec<(u64, u64, Vec<u32>)>,
    /// The attempt whose state was copied last: number, state, bits.
    pub(super) copied: Option<(u64, StateName, u64)>,
    /// Parts of a lost owner that were asked for.
    pub(super) wanted: Vec<(u64, Vec<u32>)>,
    pub(super) inbox: VecDeque<ToWorker>,
    pub(super) outbox: VecDeque<FromWorker>,
    pub(super) warm: bool,
}

impl Worker {
    /// A worker that has just started.
    pub(super) fn new(bits: u64) -> Self {
        Self {
            follower: Follower::default(),
            name: StateName::INITIAL,
            bits,
            plan: None,
            running: false,
            stop_after: None,
            copies: Vec::new(),
            copied: None,
            wanted: Vec::new(),
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            warm: false,
        }
    }

    pub(super) fn stop(&mut self, generation: Generation, cause: Option<&str>) -> Option<follower::Event> {
        let plan = self.plan.take_if(|p| p.generation == generation)?;
        self.running = false;
        self.stop_after = None;
        let cause = cause.map(String::from);
        Some(follower::Event::TrainerStopped {
            generation: plan.generation,
            name: self.name,
            cause,
        })
    }

    /// The toy trainer: takes an order at once.
    pub(super) fn order(
        &mut self,
        manifests: &BTreeMap<String, (StateName, u64)>,
        bits_of: &BTreeMap<StateName, u64>,
        order: TrainerOrder,
    ) -> Option<follower::Event> {
        match order {
            TrainerOrder::Form { plan } => {
                if self.name != plan.base {
                    if let crate::plan::StateSource::Manifest { key } = &plan.source {
                        assert_eq!(manifests[key].0, plan.base, "the manifest holds the base");
                    }
                    self.name = plan.base;
                    self.bits = bits_of[&plan.base];
                }
                let generation = plan.generation;
                self.plan = Some(plan);
                Some(follower::Event::TrainerFormed { generation })
            }
            TrainerOrder::Run { .. } => {
                self.running = true;
                None
            }
            TrainerOrder::StopAfter { generation, step } => {
                self.stop_after = Some(step);
                if self.name.step >= step {
                    self.stop(generation, None)
                } else {
                    None
                }
            }
            TrainerOrder::Checkpoint {
                attempt,
                at_step,
                parts,
                ..
            } => {
                self.copies.push((attempt, at_step, parts));
                None
            }
            TrainerOrder::UploadSpare { attempt, parts } => {
                self.wanted.push((attempt, parts));
                None
            }
            TrainerOrder::Prime { generation, lanes, .. } => {
                Some(follower::Event::Passed(FromWorker::Primed { generation, lanes }))
            }
            TrainerOrder::EmergencyCopy | TrainerOrder::Quit => None,
        }
    }

    pub(super) fn copy_parts(&mut self, worker: WorkerId) -> Vec<follower::Event> {
        let name = self.name;
        let (due, later) = std::mem::take(&mut self.copies)
            .into_iter()
            .partition(|c| c.1 <= name.step);
        self.copies = later;
        let mut told = Vec::new();
        let failed = |attempt, failure, reason: String| {
            follower::Event::Passed(FromWorker::PartFailed {
                attempt,
                failure,
                reason,
            })
        };
        for (attempt, at_step, parts) in due {
            if at_step == name.step {
                self.copied = Some((attempt, name, self.bits));
                self.wanted.push((attempt, parts));
            } else if !parts.is_empty() {
                let reason = format!("{worker} is past step {at_step}");
                told.push(failed(attempt, PartFailure::Late, reason));
            }
        }
        for (attempt, parts) in std::mem::take(&mut self.wanted) {
            let Some((_, name, checksum)) = self.copied.filter(|c| c.0 == attempt) else {
                told.push(failed(attempt, PartFailure::Store, "never copied".into()));
                continue;
            };
            told.extend(parts.into_iter().map(|index| {
                let part = PartInfo {
                    index,
                    key: format!("{attempt}/{index}"),
                    bytes: 1,
                    checksum,
                };
                follower::Event::Passed(FromWorker::PartUploaded { attempt, part, name })
            }));
        }
        told
    }
}

/// The line that a member writes when it takes the base of a plan over.
pub(super) fn healed(worker: WorkerId, order: &TrainerOrder) -> Option<StepRecord> {
    let TrainerOrder::Form { plan } = order else {
        return None;
    };
    plan.members.iter().find(|m| m.worker == worker && m.heals)?;
    let from = match plan.source {
        StateSource::Seed => "seed".to_owned(),
        StateSource::Manifest { .. } => "manifest".to_owned(),
        StateSource::Peers => plan.holders().next()?.worker.to_string(),
    };
    Some(StepRecord::Healed {
        name: plan.base,
        gen_: plan.generation,
        from,
    })
}
