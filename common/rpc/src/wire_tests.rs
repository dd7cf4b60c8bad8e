use super::*;
use argosy_common::events::{AbortReport, NotFinite};
use argosy_common::quarantine::{Quarantined, ReadFault, RowRange};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn names() -> impl Strategy<Value = StateName> {
    (any::<u64>(), any::<u64>()).prop_map(|(step, applied_gen)| StateName {
        step,
        applied_gen: Generation(applied_gen),
    })
}

fn generations() -> impl Strategy<Value = Generation> {
    (1..=u64::MAX).prop_map(Generation)
}

fn plans() -> impl Strategy<Value = Plan> {
    let sources = prop_oneof![
        Just(StateSource::Seed),
        Just(StateSource::Peers),
        "[a-z0-9/]{1,30}".prop_map(|key| StateSource::Manifest { key }),
    ];
    let members = vec((any::<u32>(), "[a-z0-9.:]{1,30}", any::<bool>()), 1..5);
    (
        names(),
        generations(),
        any::<u64>(),
        sources,
        members,
        vec(any::<u32>(), 0..40),
        prop::option::of(".{0,20}"),
        vec((any::<u64>(), any::<u64>(), rows(), ".{0,20}"), 0..3),
    )
        .prop_map(
            |(base, generation, term, source, members, lanes, skip, quarantine)| Plan {
                skip,
                quarantine: quarantine
                    .into_iter()
                    .map(|(revision, holds_from, rows, reason)| Quarantined {
                        revision,
                        holds_from,
                        rows,
                        reason,
                    })
                    .collect(),
                run: "r".into(),
                generation,
                term: Term(term),
                base,
                source,
                lanes: lanes.iter().map(|owner| owner % members.len() as u32).collect(),
                members: members
                    .into_iter()
                    .map(|(worker, addr, heals)| Member {
                        worker: WorkerId(worker),
                        addr,
                        heals,
                    })
                    .collect(),
            },
        )
}

fn rows() -> impl Strategy<Value = RowRange> {
    (any::<u16>(), any::<u32>(), 0..9u32, 1..9u32).prop_map(|(source, shard, from, len)| RowRange {
        source,
        shard,
        from,
        until: from + len,
    })
}

fn failure_words() -> impl Strategy<Value = FromWorker> {
    let received = btree_map(any::<u32>().prop_map(WorkerId), any::<u64>(), 0..4);
    let not_finite =
        prop::option::of((vec(any::<u32>(), 0..4), any::<bool>()).prop_map(|(lanes, sum)| NotFinite { lanes, sum }));
    let links = vec(any::<u32>().prop_map(WorkerId), 0..4);
    let report = (
        generations(),
        any::<u64>(),
        "[a-z]{0,9}",
        any::<u32>(),
        received,
        links,
        not_finite,
    )
        .prop_map(
            |(generation, step, phase, entered, received, lost_links, not_finite)| AbortReport {
                generation,
                step,
                phase,
                entered,
                received,
                lost_links,
                not_finite,
            },
        );
    prop_oneof![
        (generations(), any::<u64>()).prop_map(|(generation, at)| FromWorker::LeaseWanted { generation, at }),
        (generations(), vec(any::<u32>(), 0..9))
            .prop_map(|(generation, lanes)| FromWorker::Primed { generation, lanes }),
        any::<u64>().prop_map(|grace_ms| FromWorker::Draining { grace_ms }),
        report.prop_map(|report| FromWorker::Aborted { report }),
        (
            generations(),
            any::<u64>(),
            any::<u32>(),
            rows(),
            any::<bool>(),
            ".{0,40}"
        )
            .prop_map(|(generation, step, lane, rows, way, error)| {
                FromWorker::LaneBlocked {
                    generation,
                    step,
                    lane,
                    rows,
                    fault: if way { ReadFault::Way } else { ReadFault::Shard },
                    error,
                }
            }),
        (
            "[a-z0-9.:]{1,30}",
            names(),
            prop::option::of(generations()),
            any::<u64>()
        )
            .prop_map(|(addr, name, inside, left)| FromWorker::Rejoined {
                addr,
                name,
                inside,
                left: Generation(left),
            }),
    ]
}

fn to_worker() -> impl Strategy<Value = ToWorker> {
    prop_oneof![
        plans().prop_map(|plan| ToWorker::Form { plan }),
        generations().prop_map(|generation| ToWorker::Activate { generation }),
        (generations(), any::<Option<u64>>())
            .prop_map(|(generation, after_step)| ToWorker::Close { generation, after_step }),
        (any::<u64>(), any::<u64>(), vec(0..9u32, 0..9), vec(0..9u32, 0..9)).prop_map(
            |(attempt, at_step, parts, spare)| ToWorker::Checkpoint {
                attempt,
                at_step,
                parts,
                spare,
                parts_total: 9,
                since: at_step / 2,
            }
        ),
        (any::<u64>(), vec(0..9u32, 0..9)).prop_map(|(attempt, parts)| ToWorker::UploadSpare { attempt, parts }),
        (generations(), vec(any::<u32>(), 0..9), any::<u64>()).prop_map(|(generation, lanes, from_step)| {
            ToWorker::Prepare {
                generation,
                lanes,
                from_step,
            }
        }),
        (generations(), any::<u64>(), any::<u64>()).prop_map(|(generation, asked_at, lasts_ms)| ToWorker::Lease {
            generation,
            asked_at,
            lasts_ms
        }),
        Just(ToWorker::Finish),
    ]
}

fn reports() -> impl Strategy<Value = StepReport> {
    let reasons = prop::sample::select(vec![
        MaskReason::Missing,
        MaskReason::Format,
        MaskReason::Pixels,
        MaskReason::Bytes,
        MaskReason::Caption,
        MaskReason::Quarantined,
    ]);
    let numbers = (-1e30..1e30f64, -1e30..1e30f64, -1e30..1e30f64);
    (
        (
            generations(),
            names(),
            prop::option::of(-1e30..1e30f64),
            numbers,
            any::<u32>(),
        ),
        btree_map(reasons, any::<u32>(), 0..5),
        btree_map("[a-z]{1,9}", 0.0..1e9f32, 0..6),
        prop::collection::vec(any::<u64>(), 0..4),
    )
        .prop_map(
            |((generation, name, loss, (lr, logit_scale, grad_norm), valid), masked, phase_ms, state_hashes)| {
                StepReport {
                    generation,
                    name,
                    loss,
                    lr,
                    logit_scale,
                    grad_norm,
                    valid,
                    masked,
                    phase_ms,
                    state_hashes,
                }
            },
        )
}

fn from_worker() -> impl Strategy<Value = FromWorker> {
    let part = (0..1000u32, "[a-z0-9/]{1,30}", any::<u64>(), any::<u64>()).prop_map(|(index, key, bytes, checksum)| {
        PartInfo {
            index,
            key,
            bytes,
            checksum,
        }
    });
    prop_oneof![
        ("[a-z0-9.:]{1,30}", names()).prop_map(|(addr, name)| FromWorker::Ready { addr, name }),
        Just(FromWorker::Heartbeat),
        generations().prop_map(|generation| FromWorker::Formed { generation }),
        (generations(), names(), prop::option::of(".{0,40}")).prop_map(|(generation, name, cause)| {
            FromWorker::Closed {
                generation,
                name,
                cause,
            }
        }),
        reports().prop_map(|report| FromWorker::StepDone { report }),
        (any::<u64>(), part, names()).prop_map(|(attempt, part, name)| FromWorker::PartUploaded {
            attempt,
            part,
            name
        }),
        (any::<u64>(), 0..2i32, ".{0,40}").prop_map(|(attempt, kind, reason)| FromWorker::PartFailed {
            attempt,
            failure: checkpoint::decode_failure(kind).expect("a kind"),
            reason
        }),
        (".{1,40}", any::<bool>(), ".{0,40}").prop_map(|(key, damaged, reason)| FromWorker::RestoreFailed {
            key,
            damaged,
            reason
        }),
        ".{0,40}".prop_map(|message| FromWorker::Notice { message }),
        (any::<u8>(), ".{0,40}").prop_map(|(exit, message)| FromWorker::Failed { exit, message }),
        failure_words(),
    ]
}

proptest! {
    #[test]
    fn any_order_survives_the_wire(message in to_worker()) {
        let bytes = prost::Message::encode_to_vec(&encode_to_worker(message.clone()));
        let back = <proto::CoordinatorMessage as prost::Message>::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(decode_to_worker(back).unwrap(), message);
    }

    #[test]
    fn any_word_survives_the_wire(message in from_worker()) {
        let bytes = prost::Message::encode_to_vec(&encode_from_worker(message.clone()));
        let back = <proto::WorkerMessage as prost::Message>::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(decode_from_worker(back).unwrap(), message);
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(message) = <proto::WorkerMessage as prost::Message>::decode(bytes.as_slice()) {
            let _ = decode_from_worker(message);
        }
        if let Ok(message) = <proto::CoordinatorMessage as prost::Message>::decode(bytes.as_slice()) {
            let _ = decode_to_worker(message);
        }
    }
}

fn plan() -> proto::Plan {
    proto::Plan {
        run: "r".into(),
        generation: 1,
        term: 1,
        base: Some(proto::StateName::default()),
        source: Some(proto::StateSource {
            kind: Some(proto::state_source::Kind::Seed(proto::Nothing {})),
        }),
        members: vec![proto::Member {
            worker: 1,
            addr: "a".into(),
            heals: false,
        }],
        lanes: vec![0],
        skip: None,
        quarantine: Vec::new(),
    }
}

fn wrong_field_of(plan: proto::Plan) -> &'static str {
    let body = Some(ToBody::Form(proto::Form { plan: Some(plan) }));
    decode_to_worker(proto::CoordinatorMessage { body }).unwrap_err().field
}

#[test]
fn plan_with_a_wrong_field_is_refused_by_that_fields_name() {
    type Spoil = fn(&mut proto::Plan);
    let cases: [(&str, Spoil); 9] = [
        ("form.plan.run", |p| p.run.clear()),
        ("form.plan.generation", |p| p.generation = 0),
        ("form.plan.base", |p| p.base = None),
        ("form.plan.source.kind", |p| p.source = None),
        ("form.plan.members", |p| p.members.clear()),
        ("form.plan.members", |p| {
            p.members = vec![proto::Member::default(); MEMBERS_MAX + 1]
        }),
        ("form.plan.members.addr", |p| {
            p.members[0].addr = "x".repeat(NAME_BYTES_MAX + 1)
        }),
        ("form.plan.lanes", |p| p.lanes = vec![1]),
        ("form.plan.lanes", |p| p.lanes = vec![0; LANES_MAX + 1]),
    ];
    for (field, spoil) in cases {
        let mut spoiled = plan();
        spoil(&mut spoiled);
        assert_eq!(wrong_field_of(spoiled), field);
    }
}

#[test]
fn word_with_a_wrong_field_is_refused_by_that_fields_name() {
    let done = |spoil: fn(&mut proto::StepDone)| {
        let mut done = proto::StepDone {
            generation: 1,
            name: Some(proto::StateName::default()),
            ..Default::default()
        };
        spoil(&mut done);
        FromBody::StepDone(done)
    };
    let failed = proto::Failed {
        exit: 256,
        message: String::new(),
    };
    let cases = [
        (None, "body"),
        (Some(FromBody::Hello(proto::Hello::default())), "body"),
        (Some(FromBody::Ready(proto::Ready::default())), "ready.addr"),
        (Some(FromBody::Formed(proto::Formed::default())), "formed.generation"),
        (Some(done(|d| d.name = None)), "step_done.name"),
        (
            Some(done(|d| d.phase_ms = [("a".into(), f32::NAN)].into())),
            "step_done.phase_ms",
        ),
        (
            Some(done(|d| d.phase_ms = [("a".into(), -1.0)].into())),
            "step_done.phase_ms",
        ),
        (
            Some(done(|d| {
                d.phase_ms = (0..=PHASES_MAX).map(|i| (i.to_string(), 0.0)).collect()
            })),
            "step_done.phase_ms",
        ),
        (
            Some(done(|d| d.masked = vec![proto::MaskedCount { reason: 99, rows: 1 }])),
            "step_done.masked.reason",
        ),
        (
            Some(done(|d| d.masked = vec![proto::MaskedCount { reason: 1, rows: 1 }; 2])),
            "step_done.masked.reason",
        ),
        (Some(FromBody::Failed(failed)), "failed.exit"),
        (
            Some(FromBody::PartUploaded(proto::PartUploaded {
                index: u32::MAX,
                ..Default::default()
            })),
            "part_uploaded.index",
        ),
    ];
    for (body, field) in cases {
        let error = decode_from_worker(proto::WorkerMessage { body }).unwrap_err();
        assert_eq!(error.field, field, "{error}");
    }
}

#[test]
fn long_reason_is_cut_at_a_characters_edge_and_still_arrives() {
    let message = FromWorker::Failed {
        exit: 1,
        message: format!("x{}", "ä".repeat(TEXT_BYTES_MAX)),
    };
    let FromWorker::Failed { message, .. } = decode_from_worker(encode_from_worker(message)).unwrap() else {
        panic!("another message");
    };
    assert_eq!(message.len(), TEXT_BYTES_MAX - 1);
}

#[test]
fn largest_plan_fits_a_message() {
    let member = proto::Member {
        worker: u32::MAX,
        addr: "255.255.255.255:65535".into(),
        heals: true,
    };
    let largest = proto::Plan {
        members: vec![member; MEMBERS_MAX],
        lanes: vec![MEMBERS_MAX as u32 - 1; LANES_MAX],
        skip: None,
        quarantine: Vec::new(),
        ..plan()
    };
    assert!(prost::Message::encoded_len(&largest) < crate::MESSAGE_BYTES_MAX / 2);
}
