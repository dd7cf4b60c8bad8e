//! The step logs by themselves: each tells one worker's way from state to state (rules AU1, G1, G7).

use super::{AuditInput, AuditReport, Finding, find};
use crate::events::Record;
use crate::ids::{Generation, StateName, WorkerId};
use crate::plan::StateSource;
use crate::steplog::{MaskedRow, StepRecord};
use std::collections::BTreeMap;

/// A logged step with the log it stands in.
pub(super) struct Entry<'a> {
    pub(super) log: &'a str,
    pub(super) plan_hash: u64,
    pub(super) lanes: &'a [u64],
    pub(super) valid: u32,
    pub(super) masked: &'a [MaskedRow],
    pub(super) skipped: Option<&'a str>,
}

/// A generation as its record has it.
pub(super) struct Formed<'a> {
    pub(super) base: StateName,
    pub(super) source: &'a StateSource,
    pub(super) members: &'a [WorkerId],
    pub(super) plan_hash: u64,
}

/// All generations.
pub(super) fn formed<'a>(records: &'a [Record]) -> BTreeMap<Generation, Formed<'a>> {
    let mut all = BTreeMap::new();
    for record in records {
        if let Record::GenerationFormed {
            generation,
            base,
            source,
            members,
            plan_hash,
            ..
        } = record
        {
            let formed = Formed {
                base: *base,
                source,
                members,
                plan_hash: *plan_hash,
            };
            all.insert(*generation, formed);
        }
    }
    all
}

/// All logged steps by name; a name twice in one log is a finding.
pub(super) fn entries<'a>(input: &AuditInput<'a>, report: &mut AuditReport) -> BTreeMap<StateName, Vec<Entry<'a>>> {
    let mut entries: BTreeMap<StateName, Vec<Entry<'a>>> = BTreeMap::new();
    for (log, records) in input.logs {
        for record in records {
            let StepRecord::Applied {
                name,
                plan_hash,
                lanes,
                valid,
                masked,
                skipped,
                ..
            } = record
            else {
                continue;
            };
            let logged = entries.entry(*name).or_default();
            if logged.iter().any(|e| e.log == log.as_str()) {
                let (name, log) = (*name, log.clone());
                find(report, Finding::DoubledStep { name, log });
                continue;
            }
            logged.push(Entry {
                log,
                plan_hash: *plan_hash,
                lanes,
                valid: *valid,
                masked,
                skipped: skipped.as_deref(),
            });
        }
    }
    entries
}

/// The worker whose log this is; none of what a checkpoint carries.
fn worker_of(log: &str) -> Option<WorkerId> {
    let stem = log.strip_suffix(".jsonl").unwrap_or(log);
    stem.strip_prefix('w')?.parse().ok().map(WorkerId)
}

/// Follows every log from state to state.
pub(super) fn follow(input: &AuditInput<'_>, formed: &BTreeMap<Generation, Formed<'_>>, report: &mut AuditReport) {
    for (log, records) in input.logs {
        let worker = worker_of(log);
        let mut walk = Walk {
            formed,
            worker,
            held: None,
        };
        let mut entered = Generation(0);
        for record in records {
            // Who enters a generation has closed all before it (rule G3).
            let (name, generation) = match record {
                StepRecord::Opened { .. } => (StateName::INITIAL, entered),
                StepRecord::Applied { name, .. } => (*name, name.applied_gen),
                StepRecord::Healed { name, gen_, .. } => (*name, *gen_),
            };
            if generation < entered {
                let log = log.clone();
                find(report, Finding::AfterClosing { log, name, entered });
            }
            entered = entered.max(generation);
            if let Err(detail) = walk.takes(record) {
                let log = log.clone();
                find(report, Finding::BrokenLog { log, detail });
            }
        }
    }
}

struct Walk<'a> {
    formed: &'a BTreeMap<Generation, Formed<'a>>,
    worker: Option<WorkerId>,
    /// The state after the last line; `None` if nothing says it.
    held: Option<StateName>,
}

impl Walk<'_> {
    fn takes(&mut self, record: &StepRecord) -> Result<(), String> {
        match record {
            StepRecord::Opened { worker, .. } => {
                // A process begins with nothing; what a checkpoint carries begins somewhere on the way.
                self.held = self.worker.map(|_| StateName::INITIAL);
                match self.worker {
                    Some(own) if own.0 != *worker => {
                        Err(format!("it says that it is the log of {}", WorkerId(*worker)))
                    }
                    _ => Ok(()),
                }
            }
            StepRecord::Applied { name, .. } => {
                let before = self.held.replace(*name);
                self.applied(before, *name)
            }
            StepRecord::Healed { name, gen_, from } => {
                self.held = Some(*name);
                self.healed(*name, *gen_, from)
            }
        }
    }

    fn generation(&self, generation: Generation) -> Result<&Formed<'_>, String> {
        let formed = self.formed.get(&generation);
        let formed = formed.ok_or_else(|| format!("{generation} has no record"))?;
        match self.worker {
            Some(worker) if !formed.members.contains(&worker) => Err(format!("it was no member of {generation}")),
            _ => Ok(formed),
        }
    }

    /// A step follows on the state that was held, and the first of a generation on its base.
    fn applied(&self, before: Option<StateName>, name: StateName) -> Result<(), String> {
        let base = self.generation(name.applied_gen)?.base;
        let from = match before {
            Some(held) if held.applied_gen == name.applied_gen => held,
            Some(held) if held != base => {
                return Err(format!(
                    "{name} was applied on {held}, but its generation began with {base}"
                ));
            }
            _ => base,
        };
        // What a checkpoint carries may begin in the midst of a generation.
        let midway = before.is_none() && name.step > base.step;
        match name.step == from.step + 1 || midway {
            true => Ok(()),
            false => Err(format!("{name} follows on {from}")),
        }
    }

    /// A state is taken over as the base of the generation, from where its plan says.
    fn healed(&self, name: StateName, generation: Generation, from: &str) -> Result<(), String> {
        let formed = self.generation(generation)?;
        if name != formed.base {
            let base = formed.base;
            return Err(format!("it healed to {name} in {generation}, which began with {base}"));
        }
        let fits = match formed.source {
            StateSource::Seed => from == "seed",
            StateSource::Manifest { .. } => from == "manifest",
            StateSource::Peers => {
                let other = |peer: &WorkerId| Some(*peer) != self.worker && formed.members.contains(peer);
                from.split(',')
                    .all(|peer| worker_of(peer).is_some_and(|peer| other(&peer)))
            }
        };
        match fits {
            true => Ok(()),
            false => Err(format!(
                "it healed to {name} from `{from}`, where {generation} takes it from {}",
                source(formed)
            )),
        }
    }
}

fn source(formed: &Formed<'_>) -> &'static str {
    match formed.source {
        StateSource::Seed => "the seed",
        StateSource::Manifest { .. } => "a manifest",
        StateSource::Peers => "another member",
    }
}
