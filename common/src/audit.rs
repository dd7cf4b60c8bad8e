//! The audit: was every position up to the last step trained exactly once along the lineage (rules AU1, AU2)?
//!
//! The lineage is the chain of durable `GenerationFormed` and `Resumed` records that leads to the final state. Entries off
//! it are listed as superseded, never counted. Ids are recomputed here by arithmetic of its own (`stream`), which walks
//! lanes with plain vectors where the sampler jumps with closed forms.

mod findings;
mod lineage;
mod stream;
#[cfg(test)]
mod tests;

use crate::events::Record;
use crate::ids::{Generation, SampleId, StateName};
use crate::invariants::{counts_add_up, one_step_lost};
use crate::quarantine::RowRange;
use crate::shape::RunShape;
use crate::steplog::{MaskReason, MaskedRow, StepRecord};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

pub use findings::Finding;
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
    for (generation, base) in &lineage.followed {
        let last = entries.keys().filter(|name| name.applied_gen == *generation).max();
        let trained = last.map_or(0, |name| name.step);
        if one_step_lost(*generation, trained, *base).is_err() {
            let (generation, base) = (*generation, *base);
            find(
                &mut report,
                Finding::LostMore {
                    generation,
                    trained,
                    base,
                },
            );
        }
    }
    let ledger = left_out(input.records, &mut report);
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
        let sought = Sought {
            input,
            lineage: &lineage,
            ledger: &ledger,
            ids: &ids,
        };
        judge_step(&sought, step, *generation, logged, &mut report);
    }
    let on_lineage =
        |name: &StateName| name.step > 0 && lineage.appliers.get(name.step as usize - 1) == Some(&name.applied_gen);
    report.superseded = entries
        .iter()
        .filter(|(name, _)| !on_lineage(name))
        .map(|(_, logged)| logged.len() as u64)
        .sum();
    let sum = |counts: &BTreeMap<String, u64>| counts.values().sum::<u64>();
    let masked = report.masked.values().sum();
    let (quarantined, skipped) = (sum(&report.quarantined), sum(&report.skipped));
    // Every step was judged by itself; this is about our own sums.
    debug_assert!(
        report.findings_total > 0
            || counts_add_up(report.positions, report.trained, masked, quarantined, skipped).is_ok()
    );
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
    if counts_add_up(positions, valid, masked, 0, 0).is_err() || !real {
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
