mod states;

use super::*;
use crate::events::Record;
use crate::ids::{Term, WorkerId};
use crate::plan::StateSource;
use crate::quarantine::{Quarantined, RowRange};
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

fn formed(generation: u64, base: StateName, members: &[u32]) -> Record {
    Record::GenerationFormed {
        generation: Generation(generation),
        term: Term(1),
        base,
        source: StateSource::Peers,
        members: members.iter().map(|w| WorkerId(*w)).collect(),
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
    let gone = given_up(sampler);
    let mut masked = Vec::new();
    for (lane, ids) in ids.iter().enumerate() {
        for (row, id) in ids.iter().enumerate() {
            let reason = match (step, lane, row) {
                _ if step >= 3 && *id == gone => MaskReason::Quarantined,
                (2, 1, 0) => MaskReason::Format,
                _ => continue,
            };
            let (lane, row) = (lane as u32, row as u32);
            masked.push(MaskedRow { lane, row, reason });
        }
    }
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

/// The first row of lane 0 at step 3, which nobody could read from then on.
fn given_up(sampler: &mut Sampler) -> SampleId {
    sampler.step_samples(0, 3)[0]
}

fn revision(number: u64) -> Record {
    let id = given_up(&mut Sampler::new(shape()));
    let rows = RowRange {
        source: id.source,
        shard: id.shard,
        from: id.row,
        until: id.row + 1,
    };
    Record::Quarantined {
        entry: Quarantined {
            revision: number,
            holds_from: 3,
            rows,
            reason: "503".into(),
        },
    }
}

fn opened(attempt: u64, at_step: u64) -> Record {
    Record::CheckpointOpened { attempt, at_step }
}

fn committed(attempt: u64, name: StateName) -> Record {
    Record::CheckpointCommitted {
        attempt,
        key: format!("{attempt}/manifest.json"),
        name,
    }
}

/// Two generations: the first applies steps 0..5 on two workers, one of which gets on to step 5 unseen by the rest; the
/// second goes on from step 4. One attempt at a checkpoint is given up, the next one is committed.
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
        formed(1, StateName::INITIAL, &[1, 2]),
        revision(1),
        formed(2, name(4, 1), &[2]),
        opened(1, 5),
        Record::CheckpointAbandoned {
            attempt: 1,
            reason: "503".into(),
        },
        opened(2, 6),
        committed(2, name(6, 2)),
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
    let gone = report.quarantined["503"];
    assert!(gone > 0, "the row comes once a pass");
    assert_eq!((report.steps, report.positions, report.trained), (8, 58, 57 - gone));
    let whole = |s: &SourceCount| s.positions == s.trained + s.masked + s.quarantined + s.skipped;
    assert!(report.sources.values().all(whole), "{:?}", report.sources);
    assert_eq!(report.masked, BTreeMap::from([(MaskReason::Format, 1)]));
    assert_eq!(report.superseded, 1, "the step that only the lost worker applied");
    assert_eq!(report.sources["a"].positions + report.sources["b"].positions, 58);
}

type Logs = BTreeMap<String, Vec<StepRecord>>;

/// Doctors the story and demands the audit's message.
fn doctored(message: &str, doctor: impl Fn(&mut Vec<Record>, &mut Logs)) {
    let (mut records, mut logs) = story();
    doctor(&mut records, &mut logs);
    let report = judge(&records, &logs);
    let found: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    assert!(
        !report.holds && found.iter().any(|f| f == message),
        "wanted {message:?}, found {found:#?}"
    );
}

/// The masked rows of step `step` in every log that has it.
fn masked_rows(logs: &mut Logs, step: u64, doctor: impl Fn(&mut Vec<MaskedRow>, &mut u32)) {
    for record in logs.values_mut().flatten() {
        if let StepRecord::Applied {
            name, masked, valid, ..
        } = record
            && name.step == step + 1
        {
            doctor(masked, valid);
        }
    }
}

fn lanes_of<'a>(logs: &'a mut Logs, log: &str, line: usize) -> &'a mut Vec<u64> {
    match &mut logs.get_mut(log).expect("a log")[line] {
        StepRecord::Applied { lanes, .. } => lanes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn doctored_missing_step_is_named() {
    doctored("INV10: nobody logged step 6, which gen 2 applied", |_, logs| {
        logs.get_mut("w2").expect("w2").remove(6);
    });
}

#[test]
fn doctored_doubled_step_is_named() {
    doctored("INV9: w2 has step 7 of gen 2 twice", |_, logs| {
        let log = logs.get_mut("w2").expect("w2");
        log.push(log[6].clone());
    });
}

#[test]
fn doctored_swapped_lanes_are_named() {
    let message = "INV9: lane 0 trained other samples at step 5 than the plan gives it";
    doctored(message, |_, logs| lanes_of(logs, "w2", 5).swap(0, 1));
}

#[test]
fn doctored_hash_on_one_of_two_loggers_is_named() {
    let message = "INV1: w1 and w2 do not say the same of step 2 of gen 1";
    doctored(message, |_, logs| lanes_of(logs, "w1", 1)[2] ^= 1);
}

#[test]
fn doctored_hash_on_all_loggers_is_named() {
    doctored(
        "INV9: lane 2 trained other samples at step 1 than the plan gives it",
        |_, logs| {
            for log in ["w1", "w2"] {
                lanes_of(logs, log, 1)[2] ^= 1;
            }
        },
    );
}

#[test]
fn doctored_missing_generation_is_named() {
    let message = "INV5: the records are no chain: step 4 of gen 1 stands beyond what its generation can have applied";
    doctored(message, |records, _| {
        records.remove(1);
    });
}

#[test]
fn doctored_plan_is_named() {
    let message = "INV4: step 4 was trained under another plan than the record of gen 2 has";
    doctored(message, |records, _| {
        if let Record::GenerationFormed { plan_hash, .. } = &mut records[3] {
            *plan_hash ^= 1;
        }
    });
}

#[test]
fn doctored_reign_that_goes_back_is_named() {
    let message = "INV15: gen 2 was formed in term 0, after one of term 1";
    doctored(message, |records, _| {
        if let Record::GenerationFormed { term, .. } = &mut records[3] {
            *term = Term(0);
        }
    });
}

#[test]
fn doctored_quarantine_count_is_named() {
    let message = "INV14: the ledger leaves 1 rows out at step 3, but 0 were logged as quarantined";
    doctored(message, |_, logs| {
        masked_rows(logs, 3, |masked, valid| {
            masked.clear();
            *valid += 1;
        });
    });
    let called_otherwise = |masked: &mut Vec<MaskedRow>, _: &mut u32| masked[0].reason = MaskReason::Format;
    doctored(message, |_, logs| masked_rows(logs, 3, called_otherwise));
}

#[test]
fn doctored_quarantine_ledger_is_named() {
    let message = "INV14: the quarantine ledger is broken: revision 2 stands where revision 1 should";
    doctored(message, |records, _| records[2] = revision(2));
}

#[test]
fn doctored_masked_rows_are_named() {
    let message = "INV14: step 2 has 8 positions, but 7 valid and 0 masked rows were logged";
    doctored(message, |_, logs| masked_rows(logs, 2, |masked, _| masked.clear()));
    let twice = "INV14: step 2 has 8 positions, but 6 valid and 2 masked rows were logged";
    doctored(twice, |_, logs| {
        masked_rows(logs, 2, |masked, valid| {
            masked.push(masked[0].clone());
            *valid -= 1;
        });
    });
}

#[test]
fn doctored_steps_beyond_a_successor_are_named() {
    let message = "INV7: gen 1 had trained 7 steps when its successor began at step 4 of gen 1";
    doctored(message, |_, logs| {
        let mut sampler = Sampler::new(shape());
        let beyond = (5..7).map(|k| applied(&mut sampler, k, 1));
        logs.get_mut("w1").expect("w1").extend(beyond);
    });
}

#[test]
fn doctored_end_is_named() {
    doctored(
        "INV9: the run is recorded as finished at step 7 of gen 2, but has 8 steps",
        |records, _| {
            records.pop();
            records.push(Record::RunFinished { name: name(7, 2) });
        },
    );
}

#[test]
fn audit_of_an_unfinished_run_misses_steps_that_a_checkpoint_proves() {
    let (mut records, mut logs) = story();
    records.pop();
    let whole = judge(&records, &logs);
    assert!(whole.holds && !whole.finished, "{:?}", whole.findings);
    records.extend([opened(3, 8), committed(3, name(8, 2))]);
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
    let mut records = vec![
        formed(1, StateName::INITIAL, &[1]),
        revision(1),
        opened(1, 2),
        committed(1, name(2, 1)),
        Record::Resumed {
            generation: Generation(2),
            name: name(2, 1),
            manifest: Some("1/manifest.json".into()),
        },
        formed(2, name(2, 1), &[1]),
    ];
    if let Some(Record::GenerationFormed { source, .. }) = records.last_mut() {
        let key = "1/manifest.json".into();
        *source = StateSource::Manifest { key };
    }
    let mut log: Vec<StepRecord> = (0..5).map(|k| applied(&mut sampler, k, 1)).collect();
    log.push(StepRecord::Healed {
        name: name(2, 1),
        gen_: Generation(2),
        from: "manifest".into(),
    });
    log.extend((2..4).map(|k| applied(&mut sampler, k, 2)));
    let report = judge(&records, &BTreeMap::from([("w1".to_string(), log)]));
    assert!(report.holds, "{:?}", report.findings);
    assert_eq!(
        (report.steps, report.superseded, report.resumed, report.finished),
        (4, 3, 1, false)
    );
}
