//! The audit: was every position up to the last step trained exactly once along the lineage (rules AU1, AU2)?
//!
//! The lineage is the chain of durable `GenerationFormed` and `Resumed` records that leads to the final state. Entries off
//! it are listed as superseded, never counted.
//!
//! Nothing that is computed here is computed by the code that is audited (rule AU3): random numbers, digests, lengths and
//! sums are the audit's own (`arithmetic`, `stream`); a test reads these files for calls that it must not make. Shared are
//! the formats that it reads, and the ids of invariants for its findings.

mod arithmetic;
mod findings;
mod lineage;
mod logs;
mod saved;
mod stream;
#[cfg(test)]
mod tests;

use crate::events::Record;
use crate::ids::{Generation, SampleId, StateName};
use crate::quarantine::RowRange;
use crate::shape::RunShape;
use crate::steplog::{MaskReason, MaskedRow, StepRecord};
use logs::Entry;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

pub use findings::Finding;
pub use lineage::Lineage;
pub use saved::Saved;

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

/// The audit's verdict (rule M4: positions = trained + masked + quarantined + skipped).
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
    /// Rows that took no part, by reason; those of the quarantine ledger stand below.
    pub masked: BTreeMap<MaskReason, u64>,
    /// Rows that the quarantine ledger leaves out, by its reason.
    pub quarantined: BTreeMap<String, u64>,
    /// Valid rows of steps that were passed over, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// The same per source.
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
    /// Rows that were trained.
    pub trained: u64,
    /// Rows that took no part.
    pub masked: u64,
    /// Rows that the quarantine ledger leaves out.
    pub quarantined: u64,
    /// Valid rows of steps that were passed over.
    pub skipped: u64,
}

/// More findings are counted, not listed.
pub const FINDINGS_MAX: usize = 50;

/// Judges a run by its records and step logs.
#[must_use]
pub fn audit(input: &AuditInput<'_>) -> AuditReport {
    audit_with(input, &[])
}

/// The same with what committed checkpoints say of the run. The logs that they carry are among the input's, by the name
/// `checkpoint ATTEMPT`.
#[must_use]
pub fn audit_with(input: &AuditInput<'_>, checkpoints: &[Saved]) -> AuditReport {
    let mut report = AuditReport {
        total_steps: arithmetic::total_steps(input.shape),
        ..AuditReport::default()
    };
    let entries = logs::entries(input, &mut report);
    let formed = logs::formed(input.records);
    logs::follow(input, &formed, &mut report);
    saved::attempts(input.records, &mut report);
    plans_are_whole(input, &mut report);
    let lineage = Lineage::read(input.records, entries.keys().copied());
    let lineage = judge_lineage(lineage, &entries, &mut report);
    let ledger = left_out(input.records, &mut report);
    let mut streams = stream::Streams::new(input.shape);
    for saved in checkpoints {
        saved::judge(saved, input.shape, input.logs, &mut report);
    }
    for (step, generation) in lineage.appliers.iter().enumerate() {
        let step = step as u64;
        let name = StateName {
            step: step + 1,
            applied_gen: *generation,
        };
        let ids = streams.take(step);
        let logged = entries.get(&name).map(Vec::as_slice).unwrap_or_default();
        let sought = Sought {
            input,
            lineage: &lineage,
            ledger: &ledger,
            ids: &ids,
        };
        judge_step(&sought, step, *generation, logged, &mut report);
        for saved in checkpoints.iter().filter(|saved| saved.name == name) {
            saved::compare(saved, &mut report);
        }
    }
    let on_lineage =
        |name: &StateName| name.step > 0 && lineage.appliers.get(name.step as usize - 1) == Some(&name.applied_gen);
    for (name, logged) in entries.iter().filter(|(name, _)| !on_lineage(name)) {
        report.superseded += logged.len() as u64;
        let plan = formed.get(&name.applied_gen).map(|f| f.plan_hash);
        if plan.is_some_and(|plan| logged.iter().any(|e| e.plan_hash != plan)) {
            let (step, generation) = (name.step.saturating_sub(1), name.applied_gen);
            find(&mut report, Finding::WrongPlan { step, generation });
        }
    }
    let sum = |counts: &BTreeMap<String, u64>| counts.values().sum::<u64>();
    let others = report.masked.values().sum::<u64>() + sum(&report.quarantined) + sum(&report.skipped);
    // Every step was judged by itself; this is about our own sums.
    debug_assert!(report.findings_total > 0 || report.positions == report.trained + others);
    report.holds = report.findings_total == 0;
    report
}

/// Takes the lineage into the report, with what is wrong with it.
fn judge_lineage(lineage: Lineage, entries: &BTreeMap<StateName, Vec<Entry<'_>>>, report: &mut AuditReport) -> Lineage {
    for detail in &lineage.broken {
        find(report, Finding::BrokenLineage { detail: detail.clone() });
    }
    for (generation, term, after) in &lineage.late {
        let (generation, term, after) = (*generation, *term, *after);
        find(
            report,
            Finding::LateReign {
                generation,
                term,
                after,
            },
        );
    }
    report.generations = lineage.generations;
    report.resumed = lineage.resumed;
    report.finished = lineage.finished.is_some();
    if let Some(name) = lineage.finished.filter(|n| n.step != report.total_steps) {
        let total_steps = report.total_steps;
        find(report, Finding::WrongEnd { name, total_steps });
    }
    report.steps = lineage.appliers.len() as u64;
    for (generation, base) in &lineage.followed {
        let last = entries.keys().filter(|name| name.applied_gen == *generation).max();
        let trained = last.map_or(0, |name| name.step);
        // One step may have been applied by somebody whom the successor does not know.
        if trained > base.step + 1 {
            let (generation, base) = (*generation, *base);
            find(
                report,
                Finding::LostMore {
                    generation,
                    trained,
                    base,
                },
            );
        }
    }
    lineage
}

/// Every lane of every generation has one owner, who is a member, and every member is one.
fn plans_are_whole(input: &AuditInput<'_>, report: &mut AuditReport) {
    for record in input.records {
        let Record::GenerationFormed {
            generation,
            members,
            lanes,
            ..
        } = record
        else {
            continue;
        };
        let different: BTreeSet<_> = members.iter().collect();
        let detail = if lanes.len() != input.shape.lanes as usize {
            format!("it has {} lanes of {}", lanes.len(), input.shape.lanes)
        } else if different.len() != members.len() {
            "a member stands in it twice".to_owned()
        } else if let Some(lane) = lanes.iter().position(|owner| *owner as usize >= members.len()) {
            format!("lane {lane} belongs to nobody")
        } else {
            continue;
        };
        let generation = *generation;
        find(report, Finding::BrokenPlan { generation, detail });
    }
}

fn find(report: &mut AuditReport, finding: Finding) {
    report.findings_total += 1;
    if report.findings.len() < FINDINGS_MAX {
        report.findings.push(finding);
    }
}

/// What a step is judged by.
struct Sought<'a> {
    input: &'a AuditInput<'a>,
    lineage: &'a Lineage,
    ledger: &'a [(u64, RowRange, String)],
    ids: &'a [Vec<SampleId>],
}

/// The quarantine ledger as the records have it: first step, rows, reason. Read here anew: the conductor's own ledger is
/// what is being audited.
fn left_out(records: &[Record], report: &mut AuditReport) -> Vec<(u64, RowRange, String)> {
    let mut ledger: Vec<(u64, RowRange, String)> = Vec::new();
    for record in records {
        let Record::Quarantined { entry } = record else {
            continue;
        };
        let expected = ledger.len() as u64 + 1;
        if entry.revision != expected || entry.rows.from >= entry.rows.until {
            let detail = format!("revision {} stands where revision {expected} should", entry.revision);
            find(report, Finding::BrokenLedger { detail });
        }
        ledger.push((entry.holds_from, entry.rows, entry.reason.clone()));
    }
    ledger
}

fn judge_step(sought: &Sought<'_>, step: u64, generation: Generation, logged: &[Entry<'_>], report: &mut AuditReport) {
    let (input, lineage, ids) = (sought.input, sought.lineage, sought.ids);
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
        let expected = arithmetic::digest(lane as u32, expected);
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
    count_rows(sought, step, positions, first, report);
}

/// Adds the step to the counts; rows that do not add up, that do not exist, or that the quarantine ledger has otherwise are
/// findings.
fn count_rows(sought: &Sought<'_>, step: u64, positions: u64, entry: &Entry<'_>, report: &mut AuditReport) {
    let (valid, masked) = (u64::from(entry.valid), entry.masked.len() as u64);
    let sample = |row: &MaskedRow| {
        sought
            .ids
            .get(row.lane as usize)
            .and_then(|lane| lane.get(row.row as usize))
    };
    let reason = |id: &SampleId| {
        let holds = |(from, rows, _): &&(u64, RowRange, String)| {
            *from <= step
                && (rows.source, rows.shard) == (id.source, id.shard)
                && rows.from <= id.row
                && id.row < rows.until
        };
        sought.ledger.iter().find(holds).map(|(_, _, reason)| reason)
    };
    // Rows of the ledger by place, and rows that were logged so; the same place twice is no second row.
    let mut expected = BTreeSet::new();
    for (lane, ids) in sought.ids.iter().enumerate() {
        let left = ids.iter().enumerate().filter(|(_, id)| reason(id).is_some());
        expected.extend(left.map(|(row, _)| (lane as u32, row as u32)));
    }
    let quarantined = |row: &&MaskedRow| row.reason == MaskReason::Quarantined;
    let logged: BTreeSet<(u32, u32)> = entry
        .masked
        .iter()
        .filter(quarantined)
        .map(|r| (r.lane, r.row))
        .collect();
    if expected != logged {
        let (ledger, logged) = (expected.len() as u64, logged.len() as u64);
        find(report, Finding::WrongQuarantine { step, ledger, logged });
    }
    let places: BTreeSet<(u32, u32)> = entry.masked.iter().map(|r| (r.lane, r.row)).collect();
    let real = entry.masked.iter().all(|row| sample(row).is_some()) && places.len() == entry.masked.len();
    if valid + masked != positions || !real {
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
        match sample(row).and_then(reason).filter(|_| quarantined(&row)) {
            Some(reason) => *report.quarantined.entry(reason.clone()).or_default() += 1,
            None => *report.masked.entry(row.reason).or_default() += 1,
        }
    }
    for (lane, ids) in sought.ids.iter().enumerate() {
        for (row, id) in ids.iter().enumerate() {
            let Some(source) = sought.input.shape.sources.get(id.source as usize) else {
                continue;
            };
            let count = report.sources.entry(source.name.clone()).or_default();
            let at = (lane as u32, row as u32);
            match (logged.contains(&at), places.contains(&at), entry.skipped) {
                (true, _, _) => count.quarantined += 1,
                (false, true, _) => count.masked += 1,
                (false, false, Some(_)) => count.skipped += 1,
                (false, false, None) => count.trained += 1,
            }
        }
    }
}
