//! The words about failures: leases, moves of lanes, blame, blocked lanes, rejoining.

use super::{
    Checked, LANES_MAX, MEMBERS_MAX, WireError, at_most, cut, encode_name, generation, name, required, state_name,
};
use super::{FromBody, text};
use crate::proto;
use argosy_common::events::{AbortReport, FromWorker, NotFinite};
use argosy_common::ids::{Generation, WorkerId};
use argosy_common::quarantine::{Quarantined, ReadFault, RowRange};

/// Most revisions of the quarantine ledger in a plan.
const REVISIONS_MAX: usize = 4096;

fn encode_rows(rows: RowRange) -> proto::RowRange {
    proto::RowRange {
        source: u32::from(rows.source),
        shard: rows.shard,
        from: rows.from,
        until: rows.until,
    }
}

fn decode_rows(field: &'static str, rows: Option<proto::RowRange>) -> Checked<RowRange> {
    let rows = required(field, rows)?;
    if rows.from >= rows.until {
        return Err(WireError::new(
            field,
            "at least one row",
            format!("{}..{}", rows.from, rows.until),
        ));
    }
    Ok(RowRange {
        source: u16::try_from(rows.source).map_err(|_| WireError::new(field, "a source below 65536", rows.source))?,
        shard: rows.shard,
        from: rows.from,
        until: rows.until,
    })
}

pub(super) fn encode_quarantined(entry: Quarantined) -> proto::Quarantined {
    proto::Quarantined {
        revision: entry.revision,
        holds_from: entry.holds_from,
        rows: Some(encode_rows(entry.rows)),
        reason: cut(entry.reason),
    }
}

pub(super) fn decode_quarantine(entries: Vec<proto::Quarantined>) -> Checked<Vec<Quarantined>> {
    at_most("form.plan.quarantine", "revisions", entries.len(), REVISIONS_MAX)?;
    let decode = |entry: proto::Quarantined| {
        Ok(Quarantined {
            revision: entry.revision,
            holds_from: entry.holds_from,
            rows: decode_rows("form.plan.quarantine.rows", entry.rows)?,
            reason: text("form.plan.quarantine.reason", entry.reason)?,
        })
    };
    entries.into_iter().map(decode).collect()
}

/// The body of a word about failures; any other word is a heartbeat, which says nothing but that we live.
pub(super) fn encode(message: FromWorker) -> FromBody {
    match message {
        FromWorker::LeaseWanted { generation, at } => FromBody::LeaseWanted(proto::LeaseWanted {
            generation: generation.0,
            at,
        }),
        FromWorker::Primed { generation, lanes } => FromBody::Primed(proto::Primed {
            generation: generation.0,
            lanes,
        }),
        FromWorker::Draining { grace_ms } => FromBody::Draining(proto::Draining { grace_ms }),
        FromWorker::Aborted { report } => FromBody::Aborted(proto::Aborted {
            generation: report.generation.0,
            step: report.step,
            phase: cut(report.phase),
            entered: report.entered,
            received: report
                .received
                .into_iter()
                .map(|(peer, bytes)| (peer.0, bytes))
                .collect(),
            lost_links: report.lost_links.into_iter().map(|peer| peer.0).collect(),
            not_finite: report.not_finite.map(|n| proto::NotFinite {
                lanes: n.lanes,
                sum: n.sum,
            }),
        }),
        FromWorker::LaneBlocked {
            generation,
            step,
            lane,
            rows,
            fault,
            error,
        } => FromBody::LaneBlocked(proto::LaneBlocked {
            generation: generation.0,
            step,
            lane,
            rows: Some(encode_rows(rows)),
            error: cut(error),
            way: fault == ReadFault::Way,
        }),
        FromWorker::Rejoined {
            addr,
            name,
            inside,
            left,
        } => FromBody::Rejoined(proto::Rejoined {
            addr,
            name: Some(encode_name(name)),
            inside: inside.map(|g| g.0),
            left: left.0,
        }),
        _ => FromBody::Heartbeat(proto::Heartbeat {}),
    }
}

pub(super) fn decode_lease_wanted(m: &proto::LeaseWanted) -> Checked<FromWorker> {
    Ok(FromWorker::LeaseWanted {
        generation: generation("lease_wanted.generation", m.generation)?,
        at: m.at,
    })
}

pub(super) fn decode_primed(m: proto::Primed) -> Checked<FromWorker> {
    at_most("primed.lanes", "lanes", m.lanes.len(), LANES_MAX)?;
    Ok(FromWorker::Primed {
        generation: generation("primed.generation", m.generation)?,
        lanes: m.lanes,
    })
}

pub(super) fn decode_aborted(m: proto::Aborted) -> Checked<FromWorker> {
    at_most("aborted.received", "peers", m.received.len(), MEMBERS_MAX)?;
    at_most("aborted.lost_links", "peers", m.lost_links.len(), MEMBERS_MAX)?;
    let not_finite = |n: proto::NotFinite| {
        at_most("aborted.not_finite.lanes", "lanes", n.lanes.len(), LANES_MAX)?;
        Ok(NotFinite {
            lanes: n.lanes,
            sum: n.sum,
        })
    };
    Ok(FromWorker::Aborted {
        report: AbortReport {
            generation: generation("aborted.generation", m.generation)?,
            step: m.step,
            phase: text("aborted.phase", m.phase)?,
            entered: m.entered,
            received: m
                .received
                .into_iter()
                .map(|(peer, bytes)| (WorkerId(peer), bytes))
                .collect(),
            lost_links: m.lost_links.into_iter().map(WorkerId).collect(),
            not_finite: m.not_finite.map(not_finite).transpose()?,
        },
    })
}

pub(super) fn decode_blocked(m: proto::LaneBlocked) -> Checked<FromWorker> {
    Ok(FromWorker::LaneBlocked {
        generation: generation("lane_blocked.generation", m.generation)?,
        step: m.step,
        lane: m.lane,
        rows: decode_rows("lane_blocked.rows", m.rows)?,
        fault: if m.way { ReadFault::Way } else { ReadFault::Shard },
        error: text("lane_blocked.error", m.error)?,
    })
}

pub(super) fn decode_rejoined(m: proto::Rejoined) -> Checked<FromWorker> {
    Ok(FromWorker::Rejoined {
        addr: name("rejoined.addr", m.addr)?,
        name: state_name("rejoined.name", m.name)?,
        inside: m.inside.map(|g| generation("rejoined.inside", g)).transpose()?,
        left: Generation(m.left),
    })
}
