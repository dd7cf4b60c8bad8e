//! The audit: was every position up to the last step trained exactly once along the lineage (rules AU1, AU2)?
//!
//! The lineage is the chain of durable `GenerationFormed` and `Resumed` records that leads to the final state. Entries off
//! it are listed as superseded, never counted. Ids are recomputed here by arithmetic of its own (`stream`), which walks
//! lanes with plain vectors where the sampler jumps with closed forms.

mod lineage;
mod stream;
#[cfg(test)]
mod tests;

use crate::events::Record;
use crate::ids::{Generation, StateName};
use crate::shape::RunShape;
use crate::steplog::{MaskReason, MaskedRow, StepRecord};
use serde::Serialize;
use std::collections::BTreeMap;

pub use lineage::Lineage;

/// What is audited.
#[derive(Clone, Debug)]
pub struct AuditInput<'a> {
    /// Where every position's sample follows from.
    pub shape: &'a RunShape,
    /// The durable records in order.
    pub records: &'a [Record],
    /// The step logs, by file name.
    pub logs: &'a BTreeMap<String, Vec<StepRecord>>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// The records do not form a chain.
    BrokenLineage {
        /// Where and why.
        detail: String,
    },
    /// Nobody logged a step of the lineage.
    MissingStep {
        /// The step (0-based).
        step: u64,
        /// The generation that should have applied it.
        generation: Generation,
    },
    /// One worker logged one name twice.
    DoubledStep {
        /// The name.
        name: StateName,
        /// The log.
        log: String,
    },
    /// Two workers logged one name differently.
    Disagreement {
        /// The name.
        name: StateName,
        /// The logs.
        logs: Vec<String>,
    },
    /// A lane's digest is not that of the ids that the plan gives it.
    WrongSamples {
        /// The step.
        step: u64,
        /// The lane.
        lane: u32,
    },
    /// The logged plan is not the durable one.
    WrongPlan {
        /// The step.
        step: u64,
        /// The generation.
        generation: Generation,
    },
    /// Valid and masked rows of a step do not add up to its positions.
    WrongCount {
        /// The step.
        step: u64,
        /// Positions of the step.
        positions: u64,
        /// Valid rows logged.
        valid: u64,
        /// Masked rows logged.
        masked: u64,
    },
    /// The run is recorded as finished, but not at its last step.
    WrongEnd {
        /// The recorded final state.
        name: StateName,
        /// Steps of the run.
        total_steps: u64,
    },
}

/// The audit's verdict (rule M4: positions = trained + masked + skipped).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AuditReport {
    /// Nothing is wrong.
    pub holds: bool,
    /// The run is recorded as finished.
    pub finished: bool,
    /// Steps on the lineage.
    pub steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Positions of those steps.
    pub positions: u64,
    /// Rows that were trained.
    pub trained: u64,
    /// Rows that took no part, by reason.
    pub masked: BTreeMap<MaskReason, u64>,
    /// Valid rows of steps that were passed over, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// The same per source: positions, trained or skipped, masked.
    pub sources: BTreeMap<String, SourceCount>,
    /// Generations that were formed.
    pub generations: u64,
    /// Times the run went back to a manifest or to the seed.
    pub resumed: u64,
    /// Logged steps off the lineage: work done again, never counted.
    pub superseded: u64,
    /// The first findings, at most [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// Findings in all.
    pub findings_total: u64,
}

/// Counts of one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SourceCount {
    /// Positions of the lineage.
    pub positions: u64,
    /// Rows that took no part.
    pub masked: u64,
}

/// More findings are counted, not listed.
pub const FINDINGS_MAX: usize = 50;

/// A logged step with the log it stands in.
struct Entry<'a> {
    log: &'a str,
    plan_hash: u64,
    lanes: &'a [u64],
    valid: u32,
    masked: &'a [MaskedRow],
    skipped: Option<&'a str>,
}

/// Judges a run.
#[must_use]
pub fn audit(input: &AuditInput<'_>) -> AuditReport {
    let mut report = AuditReport {
        total_steps: input.shape.total_steps(),
        ..AuditReport::default()
    };
    let entries = entries(input, &mut report);
    let lineage = Lineage::read(input.records, entries.keys().copied());
    for detail in &lineage.broken {
        find(&mut report, Finding::BrokenLineage { detail: detail.clone() });
    }
    report.generations = lineage.generations;
    report.resumed = lineage.resumed;
    report.finished = lineage.finished.is_some();
    if let Some(name) = lineage.finished.filter(|n| n.step != report.total_steps) {
        let total_steps = report.total_steps;
        find(&mut report, Finding::WrongEnd { name, total_steps });
    }
    report.steps = lineage.appliers.len() as u64;
    let mut streams: Vec<stream::LaneStream> = (0..input.shape.lanes)
        .map(|lane| stream::LaneStream::new(input.shape, lane))
        .collect();
    for (step, generation) in lineage.appliers.iter().enumerate() {
        let step = step as u64;
        let name = StateName {
            step: step + 1,
            applied_gen: *generation,
        };
        let ids: Vec<_> = streams.iter_mut().map(|s| s.take(input.shape, step)).collect();
        let logged = entries.get(&name).map(Vec::as_slice).unwrap_or_default();
        judge_step(input, &lineage, step, *generation, &ids, logged, &mut report);
    }
    let on_lineage =
        |name: &StateName| name.step > 0 && lineage.appliers.get(name.step as usize - 1) == Some(&name.applied_gen);
    report.superseded = entries
        .iter()
        .filter(|(name, _)| !on_lineage(name))
        .map(|(_, logged)| logged.len() as u64)
        .sum();
    report.holds = report.findings_total == 0;
    report
}

fn find(report: &mut AuditReport, finding: Finding) {
    report.findings_total += 1;
    if report.findings.len() < FINDINGS_MAX {
        report.findings.push(finding);
    }
}

/// All logged steps by name; a name twice in one log is a finding.
fn entries<'a>(input: &AuditInput<'a>, report: &mut AuditReport) -> BTreeMap<StateName, Vec<Entry<'a>>> {
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
                find(
                    report,
                    Finding::DoubledStep {
                        name: *name,
                        log: log.clone(),
                    },
                );
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

fn judge_step(
    input: &AuditInput<'_>,
    lineage: &Lineage,
    step: u64,
    generation: Generation,
    ids: &[Vec<crate::ids::SampleId>],
    logged: &[Entry<'_>],
    report: &mut AuditReport,
) {
    let positions: u64 = ids.iter().map(|lane| lane.len() as u64).sum();
    report.positions += positions;
    for id in ids.iter().flatten() {
        if let Some(source) = input.shape.sources.get(id.source as usize) {
            report.sources.entry(source.name.clone()).or_default().positions += 1;
        }
    }
    let Some(first) = logged.first() else {
        find(report, Finding::MissingStep { step, generation });
        return;
    };
    let same = |e: &&Entry<'_>| {
        e.lanes == first.lanes && e.valid == first.valid && e.masked == first.masked && e.skipped == first.skipped
    };
    if !logged.iter().all(|e| same(&e)) {
        let name = StateName {
            step: step + 1,
            applied_gen: generation,
        };
        find(
            report,
            Finding::Disagreement {
                name,
                logs: logged.iter().map(|e| e.log.to_string()).collect(),
            },
        );
    }
    if logged
        .iter()
        .any(|e| lineage.plans.get(&generation) != Some(&e.plan_hash))
    {
        find(report, Finding::WrongPlan { step, generation });
    }
    for (lane, expected) in ids.iter().enumerate() {
        let expected = stream::digest(lane as u32, expected);
        if first.lanes.get(lane) != Some(&expected) {
            find(
                report,
                Finding::WrongSamples {
                    step,
                    lane: lane as u32,
                },
            );
        }
    }
    count_rows(input, step, positions, ids, first, report);
}

/// Adds the step to the counts; rows that do not add up, or that do not exist, are a finding.
fn count_rows(
    input: &AuditInput<'_>,
    step: u64,
    positions: u64,
    ids: &[Vec<crate::ids::SampleId>],
    entry: &Entry<'_>,
    report: &mut AuditReport,
) {
    let (valid, masked) = (u64::from(entry.valid), entry.masked.len() as u64);
    let sample = |row: &MaskedRow| ids.get(row.lane as usize).and_then(|lane| lane.get(row.row as usize));
    if valid + masked != positions || entry.masked.iter().any(|row| sample(row).is_none()) {
        find(
            report,
            Finding::WrongCount {
                step,
                positions,
                valid,
                masked,
            },
        );
    }
    match entry.skipped {
        Some(reason) => *report.skipped.entry(reason.to_string()).or_default() += valid,
        None => report.trained += valid,
    }
    for row in entry.masked {
        *report.masked.entry(row.reason).or_default() += 1;
        if let Some(source) = sample(row).and_then(|id| input.shape.sources.get(id.source as usize)) {
            report.sources.entry(source.name.clone()).or_default().masked += 1;
        }
    }
}
