//! What every name means, told from the durable records alone: the bits of its state, and whether it lies on the lineage.

use crate::data::{Data, SEED_BITS, next_bits};
use argosy_common::events::Record;
use argosy_common::ids::{Generation, StateName, WorkerId};
use argosy_common::quarantine::Quarantined;
use std::collections::BTreeMap;

/// A durable generation.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) base: StateName,
    pub(crate) plan_hash: u64,
    /// Owner of each lane.
    pub(crate) owners: Vec<WorkerId>,
    /// Rows given up by then.
    ledger: Vec<Quarantined>,
    /// Its first step is passed over: only its plan says so.
    skips: bool,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Oracle {
    lines: BTreeMap<Generation, Line>,
    ledger: Vec<Quarantined>,
    known: BTreeMap<StateName, u64>,
    /// Which generation applied each step of the lineage, up to the last base.
    chain: Vec<Generation>,
    last: Generation,
    /// The run went back since: names of the newest generation do not count any more, whoever turns up with them (G1).
    went_back: bool,
}

impl Oracle {
    pub(crate) fn line(&self, generation: Generation) -> Option<&Line> {
        self.lines.get(&generation)
    }

    /// The newest durable generation.
    pub(crate) fn last(&self) -> Generation {
        self.last
    }

    /// Whether a state of this name counts: it is on the lineage, or of the generation that is the newest.
    pub(crate) fn counts(&self, name: StateName) -> bool {
        let at = (name.step as usize).checked_sub(1);
        let on_chain = at.is_some_and(|at| self.chain.get(at) == Some(&name.applied_gen));
        on_chain
            || (name.applied_gen == self.last
                && self.last > Generation(0)
                && !self.went_back
                && name.step as usize > self.chain.len())
    }

    pub(crate) fn recorded(&mut self, record: &Record) {
        match record {
            Record::GenerationFormed {
                generation,
                base,
                members,
                lanes,
                plan_hash,
                ..
            } => {
                let owner = |rank: &u32| members.get(*rank as usize).copied().unwrap_or(WorkerId(0));
                self.cut_at(*base);
                self.last = *generation;
                self.went_back = false;
                let line = Line {
                    base: *base,
                    plan_hash: *plan_hash,
                    owners: lanes.iter().map(owner).collect(),
                    ledger: self.ledger.clone(),
                    skips: false,
                };
                self.lines.insert(*generation, line);
            }
            Record::Resumed { name, .. } => {
                self.cut_at(*name);
                self.went_back = true;
            }
            Record::Quarantined { entry } => self.ledger.push(entry.clone()),
            _ => {}
        }
    }

    fn cut_at(&mut self, base: StateName) {
        let steps = base.step as usize;
        self.chain.resize(steps.max(self.chain.len()), base.applied_gen);
        self.chain.truncate(steps);
    }

    /// The plan of a generation is seen for the first time.
    pub(crate) fn planned(&mut self, generation: Generation, skips: bool) {
        if let Some(line) = self.lines.get_mut(&generation) {
            line.skips |= skips;
        }
    }

    /// The bits of a state that was trained exactly, by the plans of the generations that led to it.
    pub(crate) fn bits_of(&mut self, name: StateName, data: &Data) -> u64 {
        if name == StateName::INITIAL {
            return SEED_BITS;
        }
        if let Some(bits) = self.known.get(&name) {
            return *bits;
        }
        let Some(line) = self.lines.get(&name.applied_gen).cloned() else {
            return 0;
        };
        if line.base.applied_gen >= name.applied_gen || line.base.step >= name.step {
            return 0; // no such state can have been trained
        }
        let mut bits = self.bits_of(line.base, data);
        for step in line.base.step..name.step {
            if !(line.skips && step == line.base.step) {
                bits = next_bits(bits, data.sum(step, &line.ledger), line.plan_hash);
            }
            let after = StateName {
                step: step + 1,
                applied_gen: name.applied_gen,
            };
            self.known.insert(after, bits);
        }
        bits
    }
}
