//! Rows that cannot be read although nothing is wrong with their bytes (rule M2): another worker tries, and after two, or
//! after long, the rows are given up. Where the way to the data is at fault and not the data, nothing is ever given up.

use super::{AfterPersist, Conductor, Phase, Settings, Tick, Turn};
use crate::events::{Record, RunEvent};
use crate::ids::WorkerId;
use crate::quarantine::RowRange;
use crate::rules::Rules;
use std::collections::{BTreeMap, BTreeSet};

/// A worker that so often could not read what others read has no way to the data.
const WAY_FAILURES_MAX: u32 = 2;

/// Rows that somebody could not read.
#[derive(Debug)]
struct Blocked {
    lane: u32,
    step: u64,
    since: Tick,
    workers: BTreeSet<WorkerId>,
    error: String,
    give_up: bool,
}

/// What is not read since the last step.
#[derive(Debug, Default)]
pub(super) struct Unread {
    rows: BTreeMap<RowRange, Blocked>,
    /// Who has no way to the data: how often it said so, and when last.
    ways: BTreeMap<WorkerId, (u32, Tick)>,
}

impl Unread {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn next_deadline(&self, settings: &Settings) -> Option<(Tick, &'static str)> {
        let waits = self.rows.values().filter(|b| !b.give_up).map(|b| b.since).min();
        waits.map(|since| (since + settings.policy.unreadable_after_ms, "rows stay unreadable"))
    }

    /// Steps up to `step` are applied: what they waited for was read.
    pub(super) fn stepped(&mut self, step: u64) {
        self.rows.retain(|_, blocked| blocked.step >= step);
        if self.ways.len() > 1 {
            self.ways.clear(); // the store was away from all, and is back
        }
    }

    /// Notes that `worker` cannot read `rows`. What another could not read either is one entry with what both failed at: a
    /// lane's new owner asks for fewer rows at once. Gives the entry, and whether that is news.
    fn note(&mut self, worker: WorkerId, rows: RowRange, fresh: Blocked) -> (&mut Blocked, bool) {
        let known = self.rows.keys().find_map(|other| Some((*other, other.common(rows)?)));
        let (rows, mut blocked) = match known.and_then(|(other, both)| Some((both, self.rows.remove(&other)?))) {
            Some((_, before)) if before.workers.contains(&worker) && before.workers.len() == 1 => (rows, before),
            Some((both, before)) => (both, before),
            None => (rows, fresh),
        };
        let new = blocked.workers.insert(worker);
        (self.rows.entry(rows).or_insert(blocked), new)
    }
}

impl<R: Rules> Conductor<R> {
    /// A lane waits for rows that this worker cannot read: another one tries, and after that nobody.
    pub(super) fn lane_blocked(
        &mut self,
        worker: WorkerId,
        step: u64,
        lane: u32,
        rows: RowRange,
        error: &str,
        turn: &mut Turn,
    ) {
        let fresh = Blocked {
            lane,
            step,
            since: turn.now,
            workers: BTreeSet::new(),
            error: error.into(),
            give_up: false,
        };
        let (blocked, new) = self.trouble.unread.note(worker, rows, fresh);
        blocked.give_up |= blocked.workers.len() >= 2;
        if new && self.others_stay(worker) {
            self.take_lane(worker, lane, error, turn);
        } // alone, time decides
    }

    /// A worker has no way to the data. One alone hands its lane over, and goes if it cannot read what others read; when
    /// another has none either, it is the store, and all wait for it.
    pub(super) fn way_blocked(&mut self, worker: WorkerId, lane: u32, error: &str, turn: &mut Turn) {
        let (now, patience) = (turn.now, self.settings.policy.unreadable_after_ms);
        let ways = &mut self.trouble.unread.ways;
        ways.retain(|_, (_, at)| now.saturating_sub(*at) <= patience);
        let (times, at) = ways.entry(worker).or_default();
        (*times, *at) = (*times + 1, now);
        let (first, often) = (*times == 1, *times >= WAY_FAILURES_MAX);
        let alone = ways.len() == 1;
        if first {
            let message = format!("cannot read lane {lane}, and tries again: {error}");
            turn.announce(RunEvent::WorkerNotice { worker, message });
        }
        if !alone || !self.others_stay(worker) {
            return;
        }
        if often {
            let why = format!("it cannot read what others read: {error}");
            self.trouble.unread.ways.remove(&worker);
            self.cordon(&BTreeSet::from([worker]), &why, turn);
        }
        self.take_lane(worker, lane, error, turn);
    }

    fn others_stay(&self, worker: WorkerId) -> bool {
        self.seats.ready().into_iter().any(|w| w != worker && self.may_train(w))
    }

    fn take_lane(&mut self, worker: WorkerId, lane: u32, error: &str, turn: &mut Turn) {
        self.trouble.banned.insert((lane, worker));
        self.leave_generation(None, &format!("{worker} cannot read lane {lane}: {error}"), None, turn);
    }

    /// Rows that were unreadable for too long are given up with the next generation.
    pub(super) fn give_up_unreadable(&mut self, turn: &mut Turn) {
        let patience = self.settings.policy.unreadable_after_ms;
        for blocked in self.trouble.unread.rows.values_mut() {
            blocked.give_up |= turn.now.saturating_sub(blocked.since) >= patience;
        }
        // The plan at hand may have been made before that, or while it could not be changed.
        let late = self.trouble.unread.rows.values().find(|b| b.give_up);
        let late = late.map(|b| format!("lane {} stays unreadable: {}", b.lane, b.error));
        if let Some(reason) = late.filter(|_| matches!(self.phase, Phase::Running { .. })) {
            self.leave_generation(None, &reason, None, turn);
        }
    }

    /// Makes the next revisions of the quarantine ledger durable, before the generation that they hold for.
    pub(super) fn give_up_rows(&mut self, holds_from: u64, turn: &mut Turn) {
        let given_up: Vec<(RowRange, String)> = self
            .trouble
            .unread
            .rows
            .iter()
            .filter(|(_, b)| b.give_up)
            .map(|(rows, b)| (*rows, b.error.clone()))
            .collect();
        for (rows, error) in given_up {
            self.trouble.unread.rows.remove(&rows);
            let Some(entry) = self.trouble.quarantine.propose(rows, holds_from, &error) else {
                continue;
            };
            if self.trouble.quarantine.apply(entry.clone()).is_ok() {
                turn.announce(RunEvent::Quarantined { entry: entry.clone() });
                self.persist(Record::Quarantined { entry }, AfterPersist::Nothing, turn);
            }
        }
    }
}
