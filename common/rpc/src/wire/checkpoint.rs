//! Words about parts of a checkpoint.

use super::{Checked, PARTS_MAX, WireError, at_most};
use crate::proto;
use crate::proto::part_failed::Kind;
use argosy_common::events::{PartFailure, ToWorker};

/// Takes an order to copy parts.
pub(super) fn decode(m: proto::Checkpoint) -> Checked<ToWorker> {
    let total = m.parts_total;
    at_most("checkpoint.parts_total", "parts", total as usize, PARTS_MAX)?;
    for (field, parts) in [("checkpoint.parts", &m.parts), ("checkpoint.spare", &m.spare)] {
        at_most(field, "parts", parts.len(), total as usize)?;
        below(field, parts, total)?;
    }
    Ok(ToWorker::Checkpoint {
        attempt: m.attempt,
        at_step: m.at_step,
        parts: m.parts,
        spare: m.spare,
        parts_total: total,
        since: m.since,
    })
}

/// Takes an order to upload copies.
pub(super) fn decode_spare(m: proto::UploadSpare) -> Checked<ToWorker> {
    at_most("upload_spare.parts", "parts", m.parts.len(), PARTS_MAX)?;
    below("upload_spare.parts", &m.parts, PARTS_MAX as u32)?;
    Ok(ToWorker::UploadSpare {
        attempt: m.attempt,
        parts: m.parts,
    })
}

pub(super) fn encode_failure(kind: PartFailure) -> Kind {
    match kind {
        PartFailure::Late => Kind::Late,
        PartFailure::Store => Kind::Store,
    }
}

pub(super) fn decode_failure(kind: i32) -> Checked<PartFailure> {
    match Kind::try_from(kind) {
        Ok(Kind::Late) => Ok(PartFailure::Late),
        Ok(Kind::Store) => Ok(PartFailure::Store),
        Err(_) => Err(WireError::new("part_failed.kind", "a known kind", kind)),
    }
}

fn below(field: &'static str, parts: &[u32], limit: u32) -> Checked<()> {
    match parts.iter().find(|part| **part >= limit) {
        Some(part) => Err(WireError::new(field, format!("parts below {limit}"), part)),
        None => Ok(()),
    }
}
