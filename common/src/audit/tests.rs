use super::*;
use crate::events::Record;
use crate::ids::{Term, WorkerId};
use crate::plan::StateSource;
use crate::sampling::{Sampler, lane_digest};
use crate::shape::SourceShape;

fn shape() -> RunShape {
    RunShape {
        seed: 3,
        sources: vec![
            SourceShape {
                name: "a".into(),
                shard_rows: vec![7, 0, 12],
            },
            SourceShape {
                name: "b".into(),
                shard_rows: vec![10],
            },
        ],
        batch: 8,
        lanes: 4,
        window_factor: 2,
        total_positions: 58,
    }
}

fn formed(generation: u64, base: StateName) -> Record {
    Record::GenerationFormed {
        generation: Generation(generation),
        term: Term(1),
        base,
        source: StateSource::Peers,
        members: vec![WorkerId(1)],
        lanes: vec![0; 4],
        plan_hash: 100 + generation,
    }
}

fn name(step: u64, generation: u64) -> StateName {
    StateName {
        step,
        applied_gen: Generation(generation),
    }
}

fn applied(sampler: &mut Sampler, step: u64, generation: u64) -> StepRecord {
    let ids: Vec<_> = (0..4).map(|lane| sampler.step_samples(lane, step)).collect();
    let masked = if step == 2 {
        vec![MaskedRow {
            lane: 1,
            row: 0,
            reason: MaskReason::Format,
        }]
    } else {
        Vec::new()
    };
    let positions: u32 = ids.iter().map(|l| l.len() as u32).sum();
    StepRecord::Applied {
        name: name(step + 1, generation),
        plan_hash: 100 + generation,
        lanes: ids
            .iter()
            .enumerate()
            .map(|(lane, ids)| lane_digest(lane as u32, ids))
            .collect(),
        valid: positions - masked.len() as u32,
        masked,
        skipped: None,
        loss: Some(1.0),
    }
}

/// Two generations: the first applies steps 0..5 on two workers, one of which gets on to step 5 unseen by the rest; the
/// second goes on from step 4.
fn story() -> (Vec<Record>, BTreeMap<String, Vec<StepRecord>>) {
    let mut sampler = Sampler::new(shape());
    let first: Vec<StepRecord> = (0..5).map(|k| applied(&mut sampler, k, 1)).collect();
    let second: Vec<StepRecord> = (4..8).map(|k| applied(&mut sampler, k, 2)).collect();
    let records = vec![
        Record::RunCreated {
            run: "r".into(),
            config_hash: 1,
            index_hash: 2,
        },
        formed(1, StateName::INITIAL),
        formed(2, name(4, 1)),
        Record::RunFinished { name: name(8, 2) },
    ];
    let mut survivor = first[..4].to_vec();
    survivor.extend(second);
    (
        records,
        BTreeMap::from([("w1".to_string(), first), ("w2".to_string(), survivor)]),
    )
}

fn judge(records: &[Record], logs: &BTreeMap<String, Vec<StepRecord>>) -> AuditReport {
    audit(&AuditInput {
        shape: &shape(),
        records,
        logs,
    })
}

#[test]
fn audit_of_a_run_with_a_loss_counts_every_position_once() {
    let (records, logs) = story();
    let report = judge(&records, &logs);
    assert!(report.holds, "{:?}", report.findings);
    assert_eq!((report.steps, report.positions, report.trained), (8, 58, 57));
    assert_eq!(report.masked, BTreeMap::from([(MaskReason::Format, 1)]));
    assert_eq!(report.superseded, 1, "the step that only the lost worker applied");
    assert_eq!(report.sources["a"].positions + report.sources["b"].positions, 58);
}

#[test]
fn audit_of_doctored_logs_fails_and_names_the_step() {
    type Doctor = fn(&mut Vec<Record>, &mut BTreeMap<String, Vec<StepRecord>>);
    type Expected = fn(&Finding) -> bool;
    let cases: [(&str, Doctor, Expected); 7] = [
        (
            "missing step",
            |_, logs| {
                logs.get_mut("w2").expect("w2").remove(6);
            },
            |f| matches!(f, Finding::MissingStep { step: 6, .. }),
        ),
        (
            "doubled step",
            |_, logs| {
                let log = logs.get_mut("w2").expect("w2");
                log.push(log[6].clone());
            },
            |f| matches!(f, Finding::DoubledStep { name, .. } if name.step == 7),
        ),
        (
            "swapped lanes",
            |_, logs| {
                if let Some(StepRecord::Applied { lanes, .. }) = logs.get_mut("w2").and_then(|l| l.get_mut(5)) {
                    lanes.swap(0, 1);
                }
            },
            |f| matches!(f, Finding::WrongSamples { step: 5, lane: 0 }),
        ),
        (
            "forged digest on one of two loggers",
            |_, logs| {
                if let Some(StepRecord::Applied { lanes, .. }) = logs.get_mut("w1").and_then(|l| l.get_mut(1)) {
                    lanes[2] ^= 1;
                }
            },
            |f| matches!(f, Finding::Disagreement { name, .. } if name.step == 2),
        ),
        (
            "missing generation",
            |records, _| {
                records.remove(1);
            },
            |f| matches!(f, Finding::BrokenLineage { .. }),
        ),
        (
            "wrong quarantine count",
            |_, logs| {
                for log in logs.values_mut() {
                    if let StepRecord::Applied { masked, .. } = &mut log[2] {
                        masked.clear();
                    }
                }
            },
            |f| matches!(f, Finding::WrongCount { step: 2, .. }),
        ),
        (
            "ended too early",
            |records, _| {
                records.pop();
                records.push(Record::RunFinished { name: name(7, 2) });
            },
            |f| matches!(f, Finding::WrongEnd { .. }),
        ),
    ];
    for (what, doctor, expected) in cases {
        let (mut records, mut logs) = story();
        doctor(&mut records, &mut logs);
        let report = judge(&records, &logs);
        assert!(!report.holds, "{what} was not noticed");
        assert!(report.findings.iter().any(expected), "{what}: {:?}", report.findings);
    }
}

#[test]
fn audit_of_an_unfinished_run_misses_steps_that_a_checkpoint_proves() {
    let (mut records, mut logs) = story();
    records.pop();
    let whole = judge(&records, &logs);
    assert!(whole.holds && !whole.finished, "{:?}", whole.findings);
    records.push(Record::CheckpointCommitted {
        attempt: 1,
        key: "1/manifest.json".into(),
        name: name(8, 2),
    });
    assert!(judge(&records, &logs).holds);
    logs.get_mut("w2").expect("w2").truncate(6);
    let cut = judge(&records, &logs);
    assert!(
        cut.findings
            .iter()
            .any(|f| matches!(f, Finding::MissingStep { step: 6, .. })),
        "{:?}",
        cut.findings
    );
    logs.clear();
    assert_eq!(judge(&records, &logs).findings_total, 8, "all logs are gone");
}

#[test]
fn audit_after_going_back_to_a_manifest_supersedes_what_lies_beyond() {
    let mut sampler = Sampler::new(shape());
    let records = vec![
        formed(1, StateName::INITIAL),
        Record::Resumed {
            generation: Generation(2),
            name: name(2, 1),
            manifest: Some("m".into()),
        },
        formed(2, name(2, 1)),
    ];
    let mut log: Vec<StepRecord> = (0..5).map(|k| applied(&mut sampler, k, 1)).collect();
    log.extend((2..4).map(|k| applied(&mut sampler, k, 2)));
    let report = judge(&records, &BTreeMap::from([("w1".to_string(), log)]));
    assert!(report.holds, "{:?}", report.findings);
    assert_eq!(
        (report.steps, report.superseded, report.resumed, report.finished),
        (4, 3, 1, false)
    );
}
