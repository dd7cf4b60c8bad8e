//! Checkpoints: how their attempts ended, and whether what they say of the run is what the audit counts (rules K1, K3, M4).

use super::{AuditReport, Finding, arithmetic, find};
use crate::events::{PositionCounts, Record};
use crate::ids::StateName;
use crate::plan::StateSource;
use crate::shape::RunShape;
use crate::steplog::StepRecord;
use std::collections::BTreeMap;

/// What a committed checkpoint says of the run.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// Key of its manifest.
    pub key: String,
    /// Its state.
    pub name: StateName,
    /// Positions up to it.
    pub positions_seen: u64,
    /// What became of them.
    pub counts: PositionCounts,
    /// Its logs, oldest first: the attempt that wrote one, and the steps it begins behind and ends with.
    pub history: Vec<(u64, u64, u64)>,
}

#[derive(Default)]
struct Attempts<'a> {
    /// Attempts that were opened, with their step and how they ended.
    opened: BTreeMap<u64, (u64, Option<&'static str>)>,
    /// Committed checkpoints that were not rejected, by key.
    committed: BTreeMap<&'a str, StateName>,
}

/// Follows the attempts through the records: numbers grow, each ends once, and nobody goes on from what was not committed.
pub(super) fn attempts(records: &[Record], report: &mut AuditReport) {
    let mut attempts = Attempts::default();
    for record in records {
        if let Err((attempt, detail)) = attempts.takes(record) {
            find(report, Finding::BrokenAttempt { attempt, detail });
        }
    }
}

impl<'a> Attempts<'a> {
    /// # Errors
    /// The attempt, 0 if none is named, and what is wrong with it.
    fn takes(&mut self, record: &'a Record) -> Result<(), (u64, String)> {
        match record {
            Record::CheckpointOpened { attempt, at_step } => {
                let last = self.opened.last_key_value().map_or(0, |(last, _)| *last);
                let open = self.opened.iter().find(|(_, (_, end))| end.is_none()).map(|(n, _)| *n);
                self.opened.insert(*attempt, (*at_step, None));
                must(*attempt > last, *attempt, || {
                    format!("it was opened after attempt {last}")
                })?;
                must(open.is_none(), *attempt, || {
                    format!("it was opened before attempt {} had ended", open.unwrap_or(0))
                })
            }
            Record::CheckpointAbandoned { attempt, .. } => self.ends(*attempt, "abandoned").map(|_| ()),
            Record::CheckpointCommitted { attempt, key, name } => {
                let head = self.committed.values().max().copied();
                self.committed.insert(key, *name);
                let at = self.ends(*attempt, "committed")?;
                must(at == name.step, *attempt, || {
                    format!("it was opened for step {at} and committed as {name}")
                })?;
                must(head.is_none_or(|head| *name > head), *attempt, || {
                    format!("it was committed as {name}, which is not newer than the head")
                })
            }
            Record::CheckpointRejected { attempt, key, .. } => {
                let known = self.committed.remove(key.as_str()).is_some();
                must(known, *attempt, || format!("{key} was rejected, but is no head"))
            }
            Record::Resumed { name, manifest, .. } => self.goes_on(*name, manifest.as_deref()),
            Record::GenerationFormed {
                base,
                source: StateSource::Manifest { key },
                ..
            } => self.goes_on(*base, Some(key)),
            _ => Ok(()),
        }
    }

    /// Notes how an attempt ended; the step it was opened for.
    fn ends(&mut self, attempt: u64, how: &'static str) -> Result<u64, (u64, String)> {
        let Some((at, end)) = self.opened.get_mut(&attempt) else {
            return Err((attempt, format!("it was {how}, but never opened")));
        };
        match end.replace(how) {
            None => Ok(*at),
            Some(before) => Err((attempt, format!("it was {before}, and then {how}"))),
        }
    }

    fn goes_on(&self, name: StateName, key: Option<&str>) -> Result<(), (u64, String)> {
        let Some(key) = key else { return Ok(()) };
        let known = self.committed.get(key);
        must(known == Some(&name), 0, || match known {
            Some(other) => format!("the run went on from {key} as {name}, but that is {other}"),
            None => format!("the run went on from {key}, which was never committed, or was rejected"),
        })
    }
}

fn must(holds: bool, attempt: u64, detail: impl FnOnce() -> String) -> Result<(), (u64, String)> {
    match holds {
        true => Ok(()),
        false => Err((attempt, detail())),
    }
}

/// What `saved` says of itself: that its logs reach from the beginning to its state without a gap, hold the steps they are
/// said to hold, and that its positions are those of its steps.
pub(super) fn judge(
    saved: &Saved,
    shape: &RunShape,
    logs: &BTreeMap<String, Vec<StepRecord>>,
    report: &mut AuditReport,
) {
    let mut wrong = |detail: String| {
        let key = saved.key.clone();
        find(report, Finding::WrongCheckpoint { key, detail });
    };
    let expected = arithmetic::positions(shape, saved.name.step);
    if saved.positions_seen != expected {
        let seen = saved.positions_seen;
        wrong(format!(
            "it counts {seen} positions up to {}, which has {expected}",
            saved.name
        ));
    }
    let mut reached = 0;
    for (attempt, from, to) in &saved.history {
        if *from != reached || to < from {
            wrong(format!(
                "the log of attempt {attempt} begins behind step {from}, the one before ends with {reached}"
            ));
        }
        reached = *to;
        let Some(log) = logs.get(&format!("checkpoint {attempt}")) else {
            continue; // it could not be read, which was said
        };
        let steps = log.iter().filter_map(|record| match record {
            StepRecord::Applied { name, .. } => Some(name.step),
            StepRecord::Opened { .. } | StepRecord::Healed { .. } => None,
        });
        if !steps.eq(from + 1..=*to) {
            wrong(format!(
                "the log of attempt {attempt} does not hold the steps {} to {to}",
                from + 1
            ));
        }
    }
    if reached != saved.name.step {
        wrong(format!("its logs end with step {reached}, its state is {}", saved.name));
    }
}

/// Compares the counts of a checkpoint on the lineage with what the audit has counted up to its step.
pub(super) fn compare(saved: &Saved, report: &mut AuditReport) {
    let quarantined: u64 = report.quarantined.values().sum();
    let mut masked = report.masked.clone();
    if quarantined > 0 {
        *masked.entry(crate::steplog::MaskReason::Quarantined).or_default() += quarantined;
    }
    let counted = PositionCounts {
        trained: report.trained,
        masked,
        skipped: report.skipped.clone(),
    };
    if saved.counts != counted {
        let sum = |counts: &PositionCounts| counts.masked.values().chain(counts.skipped.values()).sum::<u64>();
        let detail = format!(
            "it counts {} trained and {} other rows up to {}, the logs have {} and {}",
            saved.counts.trained,
            sum(&saved.counts),
            saved.name,
            counted.trained,
            sum(&counted),
        );
        let key = saved.key.clone();
        find(report, Finding::WrongCheckpoint { key, detail });
    }
}
