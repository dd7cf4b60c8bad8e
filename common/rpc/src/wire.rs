//! Conversions between the words of [`argosy_common::events`] and the messages of the protocol.
//!
//! Encoding cannot fail: free text for people is cut to its limit. Decoding checks everything and names the field.

mod checkpoint;
mod failure;

use crate::client::{Hello, Returning, Welcome};
use crate::proto;
use argosy_common::config::{JOB_FILE_BYTES_MAX, Job};
use argosy_common::events::{FromWorker, PartInfo, StepReport, ToWorker};
use argosy_common::ids::{Generation, StateName, Term, WorkerId};
use argosy_common::plan::{Member, Plan, StateSource};
use argosy_common::steplog::MaskReason;
use proto::coordinator_message::Body as ToBody;
use proto::worker_message::Body as FromBody;

/// Longest name, key, address or path in bytes.
pub const NAME_BYTES_MAX: usize = 4096;
/// Longest name of a node: a host's name.
pub const NODE_BYTES_MAX: usize = 253;
/// Longest free text (a reason, a cause) in bytes; longer ones are cut when they are sent.
pub const TEXT_BYTES_MAX: usize = 8192;
/// Most lanes of a plan.
pub const LANES_MAX: usize = argosy_common::shape::LANES_MAX as usize;
/// Most members of a plan.
pub const MEMBERS_MAX: usize = 4096;
/// Most parts of a checkpoint.
pub const PARTS_MAX: usize = 1 << 16;
/// Most phases of a step report.
pub const PHASES_MAX: usize = 64;
/// Most hashes of a state's chunks in a step report.
pub const STATE_HASHES_MAX: usize = 1 << 14;
/// Longest secret of a run in bytes.
pub const SECRET_BYTES_MAX: usize = 256;

/// A message that breaks the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "message field `{field}`: expected {expected}, got {got}; the peer runs another version or is not an argosy process"
)]
pub struct WireError {
    /// Path of the field.
    pub field: &'static str,
    /// What was expected.
    pub expected: String,
    /// What came.
    pub got: String,
}

impl WireError {
    fn new(field: &'static str, expected: impl Into<String>, got: impl ToString) -> Self {
        Self {
            field,
            expected: expected.into(),
            got: got.to_string(),
        }
    }
}

type Checked<T> = Result<T, WireError>;

fn required<T>(field: &'static str, value: Option<T>) -> Checked<T> {
    value.ok_or_else(|| WireError::new(field, "a value", "nothing"))
}

fn at_most(field: &'static str, what: &str, len: usize, max: usize) -> Checked<()> {
    if len > max {
        return Err(WireError::new(field, format!("at most {max} {what}"), len));
    }
    Ok(())
}

/// A name that must be there.
fn name(field: &'static str, value: String) -> Checked<String> {
    at_most(field, "bytes", value.len(), NAME_BYTES_MAX)?;
    if value.is_empty() {
        return Err(WireError::new(field, "a text", "an empty one"));
    }
    Ok(value)
}

fn text(field: &'static str, value: String) -> Checked<String> {
    at_most(field, "bytes", value.len(), TEXT_BYTES_MAX)?;
    Ok(value)
}

fn generation(field: &'static str, value: u64) -> Checked<Generation> {
    if value == 0 {
        return Err(WireError::new(field, "a generation from 1", 0));
    }
    Ok(Generation(value))
}

/// Cuts free text to its limit, at a character's edge.
fn cut(mut value: String) -> String {
    let mut end = value.len().min(TEXT_BYTES_MAX);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    value.truncate(end);
    value
}

fn encode_name(name: StateName) -> proto::StateName {
    proto::StateName {
        step: name.step,
        applied_gen: name.applied_gen.0,
    }
}

fn state_name(field: &'static str, value: Option<proto::StateName>) -> Checked<StateName> {
    let value = required(field, value)?;
    Ok(StateName {
        step: value.step,
        applied_gen: Generation(value.applied_gen),
    })
}

/// The message of a hello.
#[must_use]
pub fn encode_hello(hello: &Hello, protocol_version: u32) -> proto::WorkerMessage {
    proto::WorkerMessage {
        body: Some(FromBody::Hello(proto::Hello {
            protocol_version,
            worker_id: hello.worker.0,
            node: hello.node.clone(),
            pid: hello.pid,
            numeric_class: hello.numeric_class.clone(),
            returning: hello.returning.is_some(),
            config_hash: hello.returning.map_or(0, |run| run.config_hash),
            index_hash: hello.returning.map_or(0, |run| run.index_hash),
        })),
    }
}

/// Takes a hello whose version was checked.
///
/// # Errors
/// [`WireError`] names the field.
pub fn decode_hello(hello: proto::Hello) -> Checked<Hello> {
    at_most("hello.node", "bytes", hello.node.len(), NODE_BYTES_MAX)?;
    Ok(Hello {
        worker: WorkerId(hello.worker_id),
        node: hello.node,
        pid: hello.pid,
        numeric_class: name("hello.numeric_class", hello.numeric_class)?,
        returning: hello.returning.then_some(Returning {
            config_hash: hello.config_hash,
            index_hash: hello.index_hash,
        }),
    })
}

/// The message of a welcome.
///
/// # Errors
/// [`WireError`] if the job cannot be written as TOML (a seed above 2^63-1).
pub fn encode_welcome(welcome: &Welcome) -> Checked<proto::CoordinatorMessage> {
    let job_toml =
        toml::to_string(&welcome.job).map_err(|e| WireError::new("welcome.job_toml", "a job that TOML can hold", e))?;
    Ok(proto::CoordinatorMessage {
        body: Some(ToBody::Welcome(proto::Welcome {
            protocol_version: crate::PROTOCOL_VERSION,
            run: welcome.run.clone(),
            job_toml,
            job_dir: welcome.job_dir.clone(),
            index_path: welcome.index_path.clone(),
            index_hash: welcome.index_hash,
            lanes: welcome.lanes,
            window_factor: welcome.window_factor,
            total_positions: welcome.total_positions,
            run_dir: welcome.run_dir.clone(),
            heartbeat_ms: welcome.heartbeat_ms,
            run_secret: welcome.run_secret.clone(),
            decode_threads: welcome.decode_threads,
            torch_threads: welcome.torch_threads,
            term: welcome.term.0,
            leases: welcome.leases,
            orphan_max_ms: welcome.orphan_max_ms,
            worker_id: welcome.worker.0,
            files_url: welcome.files_url.clone().unwrap_or_default(),
        })),
    })
}

/// Takes a welcome whose version was checked.
///
/// # Errors
/// [`WireError`] names the field.
pub fn decode_welcome(welcome: proto::Welcome) -> Checked<Welcome> {
    at_most("welcome.job_toml", "bytes", welcome.job_toml.len(), JOB_FILE_BYTES_MAX)?;
    let job = Job::from_toml("the job in the coordinator's welcome", &welcome.job_toml)
        .map_err(|e| WireError::new("welcome.job_toml", "a job", e))?;
    at_most("welcome.lanes", "lanes", welcome.lanes as usize, LANES_MAX)?;
    for (field, value) in [
        ("welcome.lanes", u64::from(welcome.lanes)),
        ("welcome.window_factor", u64::from(welcome.window_factor)),
        ("welcome.heartbeat_ms", welcome.heartbeat_ms),
        ("welcome.worker_id", u64::from(welcome.worker_id)),
    ] {
        if value == 0 {
            return Err(WireError::new(field, "at least 1", 0));
        }
    }
    let secret_bytes = welcome.run_secret.len();
    at_most("welcome.run_secret", "bytes", secret_bytes, SECRET_BYTES_MAX)?;
    if secret_bytes < 16 {
        return Err(WireError::new("welcome.run_secret", "at least 16 bytes", secret_bytes));
    }
    at_most("welcome.files_url", "bytes", welcome.files_url.len(), NAME_BYTES_MAX)?;
    Ok(Welcome {
        worker: WorkerId(welcome.worker_id),
        files_url: Some(welcome.files_url).filter(|url| !url.is_empty()),
        run: name("welcome.run", welcome.run)?,
        job,
        job_dir: name("welcome.job_dir", welcome.job_dir)?,
        index_path: name("welcome.index_path", welcome.index_path)?,
        index_hash: welcome.index_hash,
        lanes: welcome.lanes,
        window_factor: welcome.window_factor,
        total_positions: welcome.total_positions,
        run_dir: name("welcome.run_dir", welcome.run_dir)?,
        heartbeat_ms: welcome.heartbeat_ms,
        run_secret: welcome.run_secret,
        decode_threads: welcome.decode_threads,
        torch_threads: welcome.torch_threads,
        term: Term(welcome.term),
        leases: welcome.leases,
        orphan_max_ms: welcome.orphan_max_ms,
    })
}

fn encode_plan(plan: Plan) -> proto::Plan {
    use proto::state_source::Kind;
    let kind = match plan.source {
        StateSource::Seed => Kind::Seed(proto::Nothing {}),
        StateSource::Manifest { key } => Kind::ManifestKey(key),
        StateSource::Peers => Kind::Peers(proto::Nothing {}),
    };
    let member = |m: &Member| proto::Member {
        worker: m.worker.0,
        addr: m.addr.clone(),
        heals: m.heals,
    };
    proto::Plan {
        run: plan.run,
        generation: plan.generation.0,
        term: plan.term.0,
        base: Some(encode_name(plan.base)),
        source: Some(proto::StateSource { kind: Some(kind) }),
        members: plan.members.iter().map(member).collect(),
        lanes: plan.lanes.to_vec(),
        skip: plan.skip.map(cut),
        quarantine: plan.quarantine.into_iter().map(failure::encode_quarantined).collect(),
    }
}

fn decode_plan(plan: Option<proto::Plan>) -> Checked<Plan> {
    use proto::state_source::Kind;
    let plan = required("form.plan", plan)?;
    at_most("form.plan.members", "members", plan.members.len(), MEMBERS_MAX)?;
    at_most("form.plan.lanes", "lanes", plan.lanes.len(), LANES_MAX)?;
    let members_total = plan.members.len() as u32;
    if members_total == 0 {
        return Err(WireError::new("form.plan.members", "at least one member", 0));
    }
    if let Some(owner) = plan.lanes.iter().find(|owner| **owner >= members_total) {
        return Err(WireError::new(
            "form.plan.lanes",
            format!("owners below {members_total}"),
            owner,
        ));
    }
    let member = |m: proto::Member| {
        Ok(Member {
            worker: WorkerId(m.worker),
            addr: name("form.plan.members.addr", m.addr)?,
            heals: m.heals,
        })
    };
    let source = match required("form.plan.source.kind", plan.source.and_then(|s| s.kind))? {
        Kind::Seed(_) => StateSource::Seed,
        Kind::ManifestKey(key) => StateSource::Manifest {
            key: name("form.plan.source.manifest_key", key)?,
        },
        Kind::Peers(_) => StateSource::Peers,
    };
    Ok(Plan {
        run: name("form.plan.run", plan.run)?,
        generation: generation("form.plan.generation", plan.generation)?,
        term: Term(plan.term),
        base: state_name("form.plan.base", plan.base)?,
        source,
        members: plan.members.into_iter().map(member).collect::<Checked<_>>()?,
        lanes: plan.lanes.into(),
        skip: plan.skip.map(|why| text("form.plan.skip", why)).transpose()?,
        quarantine: failure::decode_quarantine(plan.quarantine)?,
    })
}

/// The message of what the coordinator says to a worker.
#[must_use]
pub fn encode_to_worker(message: ToWorker) -> proto::CoordinatorMessage {
    let body = match message {
        ToWorker::Form { plan } => ToBody::Form(proto::Form {
            plan: Some(encode_plan(plan)),
        }),
        ToWorker::Activate { generation } => ToBody::Activate(proto::Activate {
            generation: generation.0,
        }),
        ToWorker::Close { generation, after_step } => ToBody::Close(proto::Close {
            generation: generation.0,
            after_step,
        }),
        ToWorker::Checkpoint {
            attempt,
            at_step,
            parts,
            spare,
            parts_total,
            since,
        } => ToBody::Checkpoint(proto::Checkpoint {
            attempt,
            at_step,
            parts,
            spare,
            parts_total,
            since,
        }),
        ToWorker::UploadSpare { attempt, parts } => ToBody::UploadSpare(proto::UploadSpare { attempt, parts }),
        ToWorker::Prepare {
            generation,
            lanes,
            from_step,
        } => ToBody::Prepare(proto::Prepare {
            generation: generation.0,
            lanes,
            from_step,
        }),
        ToWorker::Lease {
            generation,
            asked_at,
            lasts_ms,
        } => ToBody::Lease(proto::Lease {
            generation: generation.0,
            asked_at,
            lasts_ms,
        }),
        ToWorker::Finish => ToBody::Finish(proto::Finish {}),
    };
    proto::CoordinatorMessage { body: Some(body) }
}

/// Takes what the coordinator says after its welcome.
///
/// # Errors
/// [`WireError`] names the field.
pub fn decode_to_worker(message: proto::CoordinatorMessage) -> Checked<ToWorker> {
    Ok(match required("body", message.body)? {
        ToBody::Welcome(_) => return Err(WireError::new("body", "one welcome", "a second one")),
        ToBody::Form(m) => ToWorker::Form {
            plan: decode_plan(m.plan)?,
        },
        ToBody::Activate(m) => ToWorker::Activate {
            generation: generation("activate.generation", m.generation)?,
        },
        ToBody::Close(m) => ToWorker::Close {
            generation: generation("close.generation", m.generation)?,
            after_step: m.after_step,
        },
        ToBody::Checkpoint(m) => checkpoint::decode(m)?,
        ToBody::UploadSpare(m) => checkpoint::decode_spare(m)?,
        ToBody::Prepare(m) => {
            at_most("prepare.lanes", "lanes", m.lanes.len(), LANES_MAX)?;
            ToWorker::Prepare {
                generation: generation("prepare.generation", m.generation)?,
                lanes: m.lanes,
                from_step: m.from_step,
            }
        }
        ToBody::Lease(m) => ToWorker::Lease {
            generation: generation("lease.generation", m.generation)?,
            asked_at: m.asked_at,
            lasts_ms: m.lasts_ms,
        },
        ToBody::Finish(_) => ToWorker::Finish,
    })
}

fn encode_report(report: StepReport) -> proto::StepDone {
    let count = |(reason, rows)| proto::MaskedCount {
        reason: match reason {
            MaskReason::Missing => proto::MaskReason::Missing,
            MaskReason::Format => proto::MaskReason::Format,
            MaskReason::Pixels => proto::MaskReason::Pixels,
            MaskReason::Bytes => proto::MaskReason::Bytes,
            MaskReason::Caption => proto::MaskReason::Caption,
            MaskReason::Quarantined => proto::MaskReason::Quarantined,
        }
        .into(),
        rows,
    };
    proto::StepDone {
        generation: report.generation.0,
        name: Some(encode_name(report.name)),
        loss: report.loss,
        lr: report.lr,
        logit_scale: report.logit_scale,
        grad_norm: report.grad_norm,
        valid: report.valid,
        masked: report.masked.into_iter().map(count).collect(),
        phase_ms: report.phase_ms,
        state_hashes: report.state_hashes,
    }
}

fn decode_report(done: proto::StepDone) -> Checked<StepReport> {
    at_most("step_done.phase_ms", "phases", done.phase_ms.len(), PHASES_MAX)?;
    at_most(
        "step_done.state_hashes",
        "hashes",
        done.state_hashes.len(),
        STATE_HASHES_MAX,
    )?;
    // The conductor's time-outs are made of these.
    if let Some((_, ms)) = done.phase_ms.iter().find(|(_, ms)| !(ms.is_finite() && **ms >= 0.0)) {
        return Err(WireError::new("step_done.phase_ms", "milliseconds from 0", ms));
    }
    let mut masked = std::collections::BTreeMap::new();
    for count in done.masked {
        let reason = match proto::MaskReason::try_from(count.reason) {
            Ok(proto::MaskReason::Missing) => MaskReason::Missing,
            Ok(proto::MaskReason::Format) => MaskReason::Format,
            Ok(proto::MaskReason::Pixels) => MaskReason::Pixels,
            Ok(proto::MaskReason::Bytes) => MaskReason::Bytes,
            Ok(proto::MaskReason::Caption) => MaskReason::Caption,
            Ok(proto::MaskReason::Quarantined) => MaskReason::Quarantined,
            Ok(proto::MaskReason::Unspecified) | Err(_) => {
                return Err(WireError::new(
                    "step_done.masked.reason",
                    "a known reason",
                    count.reason,
                ));
            }
        };
        if masked.insert(reason, count.rows).is_some() {
            return Err(WireError::new(
                "step_done.masked.reason",
                "each reason once",
                count.reason,
            ));
        }
    }
    Ok(StepReport {
        generation: generation("step_done.generation", done.generation)?,
        name: state_name("step_done.name", done.name)?,
        loss: done.loss,
        lr: done.lr,
        logit_scale: done.logit_scale,
        grad_norm: done.grad_norm,
        valid: done.valid,
        masked,
        phase_ms: done.phase_ms,
        state_hashes: done.state_hashes,
    })
}

/// The message of what a worker says to the coordinator.
#[must_use]
pub fn encode_from_worker(message: FromWorker) -> proto::WorkerMessage {
    let body = match message {
        FromWorker::Ready { addr, name } => FromBody::Ready(proto::Ready {
            addr,
            name: Some(encode_name(name)),
        }),
        FromWorker::Heartbeat => FromBody::Heartbeat(proto::Heartbeat {}),
        FromWorker::Formed { generation } => FromBody::Formed(proto::Formed {
            generation: generation.0,
        }),
        FromWorker::Closed {
            generation,
            name,
            cause,
        } => FromBody::Closed(proto::Closed {
            generation: generation.0,
            name: Some(encode_name(name)),
            cause: cause.map(cut),
        }),
        FromWorker::StepDone { report } => FromBody::StepDone(encode_report(report)),
        FromWorker::PartUploaded { attempt, part, name } => FromBody::PartUploaded(proto::PartUploaded {
            attempt,
            index: part.index,
            key: part.key,
            bytes: part.bytes,
            checksum: part.checksum,
            name: Some(encode_name(name)),
        }),
        FromWorker::PartFailed {
            attempt,
            failure,
            reason,
        } => FromBody::PartFailed(proto::PartFailed {
            attempt,
            reason: cut(reason),
            kind: checkpoint::encode_failure(failure) as i32,
        }),
        FromWorker::RestoreFailed { key, damaged, reason } => FromBody::RestoreFailed(proto::RestoreFailed {
            key,
            damaged,
            reason: cut(reason),
        }),
        other @ (FromWorker::LeaseWanted { .. }
        | FromWorker::Primed { .. }
        | FromWorker::Draining { .. }
        | FromWorker::Aborted { .. }
        | FromWorker::LaneBlocked { .. }
        | FromWorker::Rejoined { .. }) => failure::encode(other),
        FromWorker::Notice { message } => FromBody::Notice(proto::Notice { message: cut(message) }),
        FromWorker::Failed { exit, message } => FromBody::Failed(proto::Failed {
            exit: u32::from(exit),
            message: cut(message),
        }),
    };
    proto::WorkerMessage { body: Some(body) }
}

/// Takes what a worker says after its hello.
///
/// # Errors
/// [`WireError`] names the field.
pub fn decode_from_worker(message: proto::WorkerMessage) -> Checked<FromWorker> {
    Ok(match required("body", message.body)? {
        FromBody::Hello(_) => return Err(WireError::new("body", "one hello", "a second one")),
        FromBody::Ready(m) => FromWorker::Ready {
            addr: name("ready.addr", m.addr)?,
            name: state_name("ready.name", m.name)?,
        },
        FromBody::Heartbeat(_) => FromWorker::Heartbeat,
        FromBody::Formed(m) => FromWorker::Formed {
            generation: generation("formed.generation", m.generation)?,
        },
        FromBody::Closed(m) => FromWorker::Closed {
            generation: generation("closed.generation", m.generation)?,
            name: state_name("closed.name", m.name)?,
            cause: m.cause.map(|cause| text("closed.cause", cause)).transpose()?,
        },
        FromBody::StepDone(m) => FromWorker::StepDone {
            report: decode_report(m)?,
        },
        FromBody::PartUploaded(m) => {
            at_most("part_uploaded.index", "as the last part", m.index as usize, PARTS_MAX)?;
            FromWorker::PartUploaded {
                attempt: m.attempt,
                part: PartInfo {
                    index: m.index,
                    key: name("part_uploaded.key", m.key)?,
                    bytes: m.bytes,
                    checksum: m.checksum,
                },
                name: state_name("part_uploaded.name", m.name)?,
            }
        }
        FromBody::PartFailed(m) => FromWorker::PartFailed {
            attempt: m.attempt,
            failure: checkpoint::decode_failure(m.kind)?,
            reason: text("part_failed.reason", m.reason)?,
        },
        FromBody::RestoreFailed(m) => FromWorker::RestoreFailed {
            key: name("restore_failed.key", m.key)?,
            damaged: m.damaged,
            reason: text("restore_failed.reason", m.reason)?,
        },
        FromBody::LeaseWanted(m) => failure::decode_lease_wanted(&m)?,
        FromBody::Primed(m) => failure::decode_primed(m)?,
        FromBody::Draining(m) => FromWorker::Draining { grace_ms: m.grace_ms },
        FromBody::Aborted(m) => failure::decode_aborted(m)?,
        FromBody::LaneBlocked(m) => failure::decode_blocked(m)?,
        FromBody::Rejoined(m) => failure::decode_rejoined(m)?,
        FromBody::Notice(m) => FromWorker::Notice {
            message: text("notice.message", m.message)?,
        },
        FromBody::Failed(m) => FromWorker::Failed {
            exit: u8::try_from(m.exit).map_err(|_| WireError::new("failed.exit", "an exit code below 256", m.exit))?,
            message: text("failed.message", m.message)?,
        },
    })
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
