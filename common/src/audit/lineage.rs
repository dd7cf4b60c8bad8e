//! The chain of generations that leads to the final state (rule AU2).

use crate::events::Record;
use crate::ids::{Generation, StateName, Term, WorkerId};
use std::collections::BTreeMap;

/// Which generation applied which step of the final state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// `appliers[k]` is the generation that applied step `k`.
    pub appliers: Vec<Generation>,
    /// Plan hash of every generation formed.
    pub plans: BTreeMap<Generation, u64>,
    /// Generations that another one with a member of theirs followed from a state of their own, with that state.
    pub followed: Vec<(Generation, StateName)>,
    /// Generations formed.
    pub generations: u64,
    /// `Resumed` records.
    pub resumed: u64,
    /// Final state, if the run is recorded as finished.
    pub finished: Option<StateName>,
    /// Generations that a reign formed after a later one had, each with both.
    pub late: Vec<(Generation, Term, Term)>,
    /// Why the records are no chain; empty if they are.
    pub broken: Vec<String>,
}

impl Lineage {
    /// Reads the chain. `logged` are the names in the step logs: of a run that is not finished, the newest name of the last
    /// generation is where it stands.
    pub fn read(records: &[Record], logged: impl Iterator<Item = StateName>) -> Self {
        let mut lineage = Self::default();
        let mut current: Option<Generation> = None;
        let (mut term, mut resumed) = (Term(0), false);
        let mut before: &[WorkerId] = &[];
        for record in records {
            match record {
                Record::GenerationFormed {
                    generation,
                    base,
                    plan_hash,
                    term: reign,
                    members,
                    ..
                } => {
                    if *reign < term {
                        lineage.late.push((*generation, *reign, term));
                    }
                    term = term.max(*reign);
                    // Each is the next of the one before, whoever forms it: numbers are read back from these records.
                    let before_it = current.unwrap_or(Generation(0));
                    if *generation <= before_it {
                        lineage
                            .broken
                            .push(format!("{generation} was formed after a later one"));
                    } else if generation.0 != before_it.0 + 1 {
                        lineage
                            .broken
                            .push(format!("{generation} was formed after {before_it}, with none between"));
                    }
                    // Whoever stays holds the state it left with. If nobody does, the newest state within reach may be
                    // an old one, brought back by a process that had left long before (rule G1).
                    let stays = members.iter().any(|member| before.contains(member));
                    before = members;
                    if current == Some(base.applied_gen) && !std::mem::take(&mut resumed) && stays {
                        lineage.followed.push((base.applied_gen, *base));
                    }
                    lineage.cut_at(current, *base);
                    lineage.generations += 1;
                    lineage.plans.insert(*generation, *plan_hash);
                    current = Some(*generation);
                }
                Record::Resumed { name, manifest, .. } => {
                    lineage.resumed += 1;
                    resumed = true;
                    lineage.cut_at(current, *name);
                    if manifest.is_none() && *name != StateName::INITIAL {
                        lineage.broken.push(format!("resumed from {name} without a manifest"));
                    }
                }
                Record::RunFinished { name } => {
                    lineage.cut_at(current, *name);
                    lineage.finished = Some(*name);
                }
                Record::CheckpointCommitted { name, .. } => lineage.reaches(current, *name),
                Record::Quarantined { .. }
                | Record::WorkersNamed { .. }
                | Record::RunCreated { .. }
                | Record::CheckpointOpened { .. }
                | Record::CheckpointAbandoned { .. }
                | Record::CheckpointRejected { .. } => {}
            }
        }
        if lineage.finished.is_none()
            && let Some(generation) = current
            && let Some(newest) = logged.filter(|name| name.applied_gen == generation).max()
        {
            lineage.reaches(current, newest);
        }
        lineage
    }

    /// Notes that the chain goes at least as far as `name`: a durable checkpoint proves its steps, logged or not.
    fn reaches(&mut self, current: Option<Generation>, name: StateName) {
        let step = name.step as usize;
        if step > self.appliers.len() {
            self.cut_at(current, name);
        } else if step > 0 && self.appliers[step - 1] != name.applied_gen {
            self.broken.push(format!("{name} is not on the chain"));
        }
    }

    /// Makes `base` the end of the chain. What `current` applied since its own base belongs to it, if `base` says so;
    /// what lies beyond `base` is superseded.
    fn cut_at(&mut self, current: Option<Generation>, base: StateName) {
        let wanted = base.step as usize;
        if Some(base.applied_gen) == current && wanted > self.appliers.len() {
            self.appliers.resize(wanted, base.applied_gen);
            return;
        }
        if wanted > self.appliers.len() {
            self.broken
                .push(format!("{base} stands beyond what its generation can have applied"));
            return;
        }
        self.appliers.truncate(wanted);
        let last = self.appliers.last().copied().unwrap_or(Generation(0));
        if last != base.applied_gen {
            self.broken.push(format!(
                "{base} is not on the chain: step {wanted} was applied by {last}"
            ));
        }
    }
}
