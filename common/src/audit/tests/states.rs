//! Doctored states: checkpoints that do not hold what they say, attempts that were given up, heals that cannot have been,
//! generations cut out.

use super::*;
use crate::events::PositionCounts;

/// The story, and a worker that joins the second generation and heals from the first's survivor.
fn joined() -> (Vec<Record>, Logs) {
    let (mut records, mut logs) = story();
    let formed = formed(2, name(4, 1), &[2, 3]);
    records[3] = formed;
    let mut log = vec![
        StepRecord::Opened {
            version: 1,
            worker: 3,
            pid: 7,
        },
        StepRecord::Healed {
            name: name(4, 1),
            gen_: Generation(2),
            from: "w2".into(),
        },
    ];
    log.extend(logs["w2"][4..].iter().cloned());
    logs.insert("w3.jsonl".into(), log);
    (records, logs)
}

/// Rows of the steps up to `step`, as the survivor's log has them.
fn counts(logs: &Logs, step: usize) -> PositionCounts {
    let mut counts = PositionCounts::default();
    for record in &logs["w2"][..step] {
        let StepRecord::Applied { valid, masked, .. } = record else {
            panic!("{record:?}")
        };
        counts.trained += u64::from(*valid);
        for row in masked {
            *counts.masked.entry(row.reason).or_default() += 1;
        }
    }
    counts
}

/// What the committed checkpoint says of the run; its logs lie beside.
fn saved(logs: &mut Logs) -> Saved {
    let own = logs["w2"].clone();
    logs.insert("checkpoint 2".into(), own[..6].to_vec());
    Saved {
        key: "2/manifest.json".into(),
        name: name(6, 2),
        positions_seen: 48,
        counts: counts(logs, 6),
        history: vec![(2, 0, 6)],
    }
}

fn findings(records: &[Record], logs: &Logs, saved: &[Saved]) -> Vec<String> {
    let shape = shape();
    let input = AuditInput {
        shape: &shape,
        records,
        logs,
    };
    let report = audit_with(&input, saved);
    assert_eq!(report.holds, report.findings.is_empty());
    report.findings.iter().map(ToString::to_string).collect()
}

#[test]
fn audit_of_a_join_with_a_checkpoint_holds() {
    let (records, mut logs) = joined();
    let saved = saved(&mut logs);
    assert_eq!(findings(&records, &logs, &[saved]), [""; 0]);
}

#[test]
fn doctored_checkpoint_that_skips_rows_is_named() {
    let doctored = |message: &str, doctor: fn(&mut Saved, &mut Logs)| {
        let (records, mut logs) = story();
        let mut saved = saved(&mut logs);
        doctor(&mut saved, &mut logs);
        let found = findings(&records, &logs, &[saved]);
        let wanted = format!("INV8: 2/manifest.json does not fit the run: {message}");
        assert!(found.contains(&wanted), "wanted {wanted:?}, found {found:#?}");
    };
    doctored(
        "it counts 47 positions up to step 6 of gen 2, which has 48",
        |saved, _| {
            saved.positions_seen -= 1;
        },
    );
    let counted = counts(&story().1, 6);
    let others: u64 = counted.masked.values().sum();
    let message = format!(
        "it counts {} trained and {others} other rows up to step 6 of gen 2, the logs have {} and {others}",
        counted.trained - 8,
        counted.trained
    );
    doctored(&message, |saved, _| saved.counts.trained -= 8);
    doctored(
        "the log of attempt 2 begins behind step 1, the one before ends with 0",
        |saved, _| {
            saved.history[0].1 = 1;
        },
    );
    doctored("its logs end with step 5, its state is step 6 of gen 2", |saved, _| {
        saved.history[0].2 = 5
    });
    doctored("the log of attempt 2 does not hold the steps 1 to 6", |_, logs| {
        logs.get_mut("checkpoint 2").expect("its log").remove(3);
    });
}

#[test]
fn doctored_attempt_that_was_abandoned_is_no_checkpoint() {
    let message = "INV16: attempt 1 at a checkpoint: it was abandoned, and then committed";
    doctored(message, |records, _| records.insert(6, committed(1, name(5, 2))));
    // The run goes on from it, as if it were one.
    let message = "INV16: the records of checkpoints do not fit: the run went on from 1/manifest.json, which was never \
                   committed, or was rejected";
    doctored(message, |records, _| {
        records.insert(
            6,
            Record::Resumed {
                generation: Generation(3),
                name: name(5, 2),
                manifest: Some("1/manifest.json".into()),
            },
        );
    });
    doctored(
        "INV16: attempt 2 at a checkpoint: it was committed, but never opened",
        |records, _| {
            records.remove(6);
        },
    );
    let message = "INV16: attempt 2 at a checkpoint: it was opened for step 5 and committed as step 6 of gen 2";
    doctored(message, |records, _| records[6] = opened(2, 5));
    let message =
        "INV16: attempt 3 at a checkpoint: it was committed as step 5 of gen 2, which is not newer than the head";
    doctored(message, |records, _| {
        records.splice(8..8, [opened(3, 5), committed(3, name(5, 2))]);
    });
    doctored(
        "INV16: attempt 1 at a checkpoint: it was opened after attempt 2",
        |records, _| {
            records.insert(8, opened(1, 8));
        },
    );
    doctored(
        "INV16: attempt 2 at a checkpoint: it was opened before attempt 1 had ended",
        |records, _| {
            records.remove(5);
        },
    );
}

#[test]
fn doctored_heals_are_named() {
    let doctored = |message: &str, doctor: fn(&mut StepRecord)| {
        let (records, mut logs) = joined();
        doctor(&mut logs.get_mut("w3.jsonl").expect("the joiner's log")[1]);
        let found = findings(&records, &logs, &[]);
        let wanted = format!("INV11: w3.jsonl is no way from state to state: {message}");
        assert!(found.contains(&wanted), "wanted {wanted:?}, found {found:#?}");
    };
    fn from(record: &mut StepRecord, other: &str) {
        if let StepRecord::Healed { from, .. } = record {
            *from = other.into();
        }
    }
    doctored(
        "it healed to step 4 of gen 1 from `w3`, where gen 2 takes it from another member",
        |r| from(r, "w3"),
    );
    doctored(
        "it healed to step 4 of gen 1 from `w1`, where gen 2 takes it from another member",
        |r| from(r, "w1"),
    );
    doctored(
        "it healed to step 4 of gen 1 from `w2,w1`, where gen 2 takes it from another member",
        |r| from(r, "w2,w1"),
    );
    doctored(
        "it healed to step 4 of gen 1 from `seed`, where gen 2 takes it from another member",
        |r| from(r, "seed"),
    );
    doctored(
        "it healed to step 3 of gen 1 in gen 2, which began with step 4 of gen 1",
        |r| {
            if let StepRecord::Healed { name, .. } = r {
                name.step = 3;
            }
        },
    );
    doctored("gen 7 has no record", |r| {
        if let StepRecord::Healed { gen_, .. } = r {
            gen_.0 = 7;
        }
    });
    doctored("it was no member of gen 1", |r| {
        if let StepRecord::Healed { gen_, .. } = r {
            gen_.0 = 1;
        }
    });
    // A step on a state that it never took over.
    let message = format!(
        "step 5 of gen 2 was applied on {}, but its generation began with step 4 of gen 1",
        StateName::INITIAL
    );
    doctored(&message, |r| {
        *r = StepRecord::Opened {
            version: 1,
            worker: 3,
            pid: 7,
        };
    });
    doctored("it says that it is the log of w2", |r| {
        *r = StepRecord::Opened {
            version: 1,
            worker: 2,
            pid: 7,
        };
    });
}

#[test]
fn doctored_log_that_leaves_a_step_out_is_named_though_another_has_it() {
    let message = "INV11: w1 is no way from state to state: step 4 of gen 1 follows on step 2 of gen 1";
    doctored(message, |_, logs| {
        logs.get_mut("w1").expect("w1").remove(2);
    });
}

#[test]
fn doctored_step_in_a_generation_that_was_left_is_named() {
    let message = "INV2: w2 has step 5 of gen 1 after its worker had left that generation for gen 2";
    doctored(message, |_, logs| {
        let late = applied(&mut Sampler::new(shape()), 4, 1);
        logs.get_mut("w2").expect("w2").push(late);
    });
}

#[test]
fn doctored_log_of_a_worker_that_was_no_member_is_named() {
    doctored(
        "INV11: w9 is no way from state to state: it was no member of gen 1",
        |_, logs| {
            let log = logs["w1"].clone();
            logs.insert("w9".into(), log);
        },
    );
}

#[test]
fn doctored_lineage_without_a_generation_that_made_no_step_is_named() {
    // A generation between the two, which broke before its first step: nothing but its number is missing.
    let (mut records, mut logs) = story();
    records.insert(3, formed(2, name(4, 1), &[2]));
    records[4] = formed(3, name(4, 1), &[2]);
    let later = |name: &mut StateName| {
        if name.applied_gen == Generation(2) {
            name.applied_gen = Generation(3);
        }
    };
    for record in &mut records[5..] {
        if let Record::CheckpointCommitted { name, .. } | Record::RunFinished { name } = record {
            later(name);
        }
    }
    for record in logs.values_mut().flatten() {
        if let StepRecord::Applied { name, plan_hash, .. } = record {
            *plan_hash += u64::from(name.applied_gen == Generation(2));
            later(name);
        }
    }
    assert_eq!(findings(&records, &logs, &[]), [""; 0]);
    records.remove(3);
    let message = "INV5: the records are no chain: gen 3 was formed after gen 1, with none between";
    assert_eq!(findings(&records, &logs, &[]), [message]);
}

#[test]
fn doctored_lineage_whose_middle_is_cut_out_is_named() {
    // The second generation's record is gone, and the run ends as if the first had gone on.
    let (mut records, logs) = story();
    records.drain(3..8);
    let found = findings(&records, &logs, &[]);
    assert!(
        found.iter().any(|f| f.starts_with("INV5: the records are no chain")),
        "{found:#?}"
    );
    assert!(
        found
            .iter()
            .any(|f| f.contains("w2") && f.contains("gen 2 has no record")),
        "{found:#?}"
    );
}

#[test]
fn doctored_plan_with_a_lane_of_nobody_is_named() {
    doctored(
        "INV3: the plan of gen 2 is none: lane 3 belongs to nobody",
        |records, _| {
            if let Record::GenerationFormed { lanes, .. } = &mut records[3] {
                lanes[3] = 1;
            }
        },
    );
    doctored(
        "INV3: the plan of gen 1 is none: a member stands in it twice",
        |records, _| {
            if let Record::GenerationFormed { members, .. } = &mut records[1] {
                members.push(WorkerId(1));
            }
        },
    );
    doctored("INV3: the plan of gen 1 is none: it has 3 lanes of 4", |records, _| {
        if let Record::GenerationFormed { lanes, .. } = &mut records[1] {
            lanes.pop();
        }
    });
}

#[test]
fn doctored_plan_of_work_that_was_done_again_is_named() {
    doctored(
        "INV4: step 4 was trained under another plan than the record of gen 1 has",
        |_, logs| match &mut logs.get_mut("w1").expect("w1")[4] {
            StepRecord::Applied { plan_hash, .. } => *plan_hash += 9,
            other => panic!("{other:?}"),
        },
    );
}

#[test]
fn audit_calls_nothing_that_it_audits() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![folder.join("audit.rs")];
    let entries = std::fs::read_dir(folder.join("audit")).expect("its folder");
    files.extend(entries.map(|e| e.expect("an entry").path()).filter(|p| p.is_file()));
    assert!(files.len() > 6, "{files:?}");
    for file in files.iter().filter(|f| !f.ends_with("tests.rs")) {
        let text = std::fs::read_to_string(file).expect("a source file");
        let code = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .expect("there is a first");
        for line in code.lines().filter(|line| line.trim_start().starts_with("use crate::")) {
            let formats = ["ids", "events", "steplog", "plan", "shape", "quarantine"];
            let format = formats.iter().any(|f| line.contains(&format!("crate::{f}::")));
            let id = line.contains("crate::invariants::InvariantId;");
            assert!(format || id, "{}: {line}", file.display());
        }
        let banned = [
            "crate::rng",
            "crate::hash",
            "crate::sampling",
            ".total_steps()",
            ".lane_rows()",
            ".pass_rows()",
            ".lane_positions(",
            ".step_range(",
            ".positions_before(",
            ".rows()",
            ".contains(id",
            "rows.contains(",
            ".lanes_of(",
        ];
        for call in banned {
            assert!(!code.contains(call), "{} calls {call}", file.display());
        }
    }
}
