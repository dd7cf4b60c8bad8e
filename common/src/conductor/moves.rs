//! Planned moves of lanes: joins, drains, and from slow workers to fast ones (rules L8, G8, G13).
//!
//! A move has two phases. New owners are told what will be theirs and fetch its first rows while the old ones train on; when
//! they have them, the generation is left at a boundary and the next one is formed with the lanes where they were announced.

use super::generation::CLOSE_STEPS_AHEAD;
use super::{Conductor, Phase, Settings, Tick, Turn};
use crate::assignment::{assign_by_speed, keep_away};
use crate::events::{RunEvent, StepReport, ToWorker};
use crate::ids::WorkerId;
use crate::invariants::{debug_assert_holds, lane_handed_over};
use crate::plan::Plan;
use crate::rules::Rules;
use std::collections::{BTreeMap, BTreeSet};

/// A new owner may take so long to fetch first rows, beyond the failure budget; then the move is put off as long again.
const PRIMING_MS: u64 = 30_000;
/// Speeds are looked at every so many steps.
const REBALANCE_STEPS: u64 = 32;
/// Speed of a worker like most; others are rounded to eighths of it, and a quarter more or less is noise.
const SPEED_USUAL: u32 = 8;
/// A reason names so many workers at most.
const NAMED_MAX: usize = 8;
/// Phases whose time is a worker's own; in the others it waits for its peers.
const OWN_PHASES: [&str; 4] = ["load", "encode", "loss", "backward"];

/// A move under way.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) reason: String,
    members: Vec<WorkerId>,
    owners: Vec<WorkerId>,
    /// New owners and lanes that are not primed yet: looked at with every event, so only what is missing is kept.
    missing: BTreeSet<(WorkerId, u32)>,
    from_step: u64,
    deadline: Tick,
}

/// Who comes, who goes, who is slow.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Asked to leave, with the tick at which they leave whatever is open.
    pub(super) draining: BTreeMap<WorkerId, Tick>,
    /// Asked to leave, and needed until what they alone hold of a checkpoint is stored (rule G13), or until this tick.
    pub(super) held_back: BTreeMap<WorkerId, Tick>,
    /// Told to go.
    released: BTreeSet<WorkerId>,
    /// Steps done when the last drain began: a checkpoint from then on saves what the last clean members hold.
    drain_since: u64,
    pub(super) under_way: Option<Move>,
    /// A joiner has waited for others since then.
    joining_since: Option<Tick>,
    not_before: Tick,
    /// Milliseconds of its own a worker takes for a lane.
    lane_ms: BTreeMap<WorkerId, f32>,
    loads: BTreeMap<WorkerId, u32>,
    rebalance_due: bool,
}

impl Moves {
    pub(super) fn next_deadline(&self, settings: &Settings) -> Option<(Tick, &'static str)> {
        let waits = self.draining.iter().filter(|(w, _)| !self.released.contains(w));
        let waits = waits.chain(&self.held_back);
        let drained = waits.map(|(_, at)| (*at, "a grace period ends")).min();
        let primed = self
            .under_way
            .as_ref()
            .map(|m| (m.deadline, "new owners have first rows"));
        let window = settings.policy.join_window_ms;
        let joins = self.joining_since.map(|since| (since + window, "joiners join at once"));
        [drained, primed, joins].into_iter().flatten().min()
    }

    /// All who were asked to leave.
    pub(super) fn leaving(&self) -> impl Iterator<Item = WorkerId> {
        self.draining.keys().chain(self.held_back.keys()).copied()
    }

    pub(super) fn primed(&mut self, worker: WorkerId, lanes: &[u32]) {
        if let Some(under_way) = &mut self.under_way {
            for lane in lanes {
                under_way.missing.remove(&(worker, *lane));
            }
        }
    }

    /// Forgets `worker`; true if it went because it was told to.
    pub(super) fn left(&mut self, worker: WorkerId) -> bool {
        // Who is lost takes no lane over any more; members of a move stand in the order of their ids.
        self.under_way.take_if(|m| m.members.binary_search(&worker).is_ok());
        self.draining.remove(&worker);
        self.held_back.remove(&worker);
        self.lane_ms.remove(&worker);
        self.released.remove(&worker)
    }

    pub(super) fn formed(&mut self, members: &[WorkerId], owners: &[WorkerId]) {
        self.joining_since = None;
        self.rebalance_due = false;
        self.loads = members.iter().map(|w| (*w, 0)).collect();
        for run in owners.chunk_by(|a, b| a == b) {
            *self.loads.entry(run[0]).or_default() += run.len() as u32;
        }
    }

    /// Takes a member's own time for its lanes; the coarse mean forgets a bad moment.
    pub(super) fn stepped(&mut self, worker: WorkerId, report: &StepReport) {
        let own: f32 = OWN_PHASES.iter().filter_map(|phase| report.phase_ms.get(*phase)).sum();
        let lanes = self.loads.get(&worker).copied().unwrap_or(0);
        if own > 0.0 && lanes > 0 {
            let now = own / lanes as f32;
            let mean = self.lane_ms.entry(worker).or_insert(now);
            *mean += (now - *mean) * 0.2;
        }
        self.rebalance_due |= report.name.step.is_multiple_of(REBALANCE_STEPS);
    }

    /// Relative speeds; of workers not measured yet the usual one.
    fn speeds(&self, members: &[WorkerId]) -> BTreeMap<WorkerId, u32> {
        let mut all: Vec<f32> = members.iter().filter_map(|w| self.lane_ms.get(w).copied()).collect();
        all.sort_by(f32::total_cmp);
        let median = all.get(all.len() / 2).copied().unwrap_or(0.0);
        let speed = |w: &WorkerId| match self.lane_ms.get(w) {
            Some(ms) if *ms > 0.0 && (median / ms - 1.0).abs() >= 0.25 => {
                ((median / ms * SPEED_USUAL as f32).round() as u32).clamp(1, 8 * SPEED_USUAL)
            }
            _ => SPEED_USUAL,
        };
        members.iter().map(|w| (*w, speed(w))).collect()
    }
}

/// Who does what, in words.
fn do_so(workers: &[WorkerId], verb: &str) -> String {
    format!("{} {verb}{}", names(workers), if workers.len() == 1 { "s" } else { "" })
}

/// Names for people, who need not read ten thousand of them.
fn names(workers: &[WorkerId]) -> String {
    let (named, others) = workers.split_at(workers.len().min(NAMED_MAX));
    let mut text = named.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !others.is_empty() {
        text += &format!(" and {} more", others.len());
    }
    text
}

impl<R: Rules> Conductor<R> {
    /// Whether `worker` may be in the next generation.
    pub(super) fn may_train(&self, worker: WorkerId) -> bool {
        !self.moves.draining.contains_key(&worker) && !self.trouble.cordoned.contains(&worker)
    }

    /// Who can be in the next generation: ready workers that stay, and if they are too few those who drain, once more, to
    /// save or hand over what they hold.
    fn eligible(&self) -> Vec<WorkerId> {
        let ready = self.seats.ready();
        let staying: Vec<WorkerId> = ready.iter().copied().filter(|w| self.may_train(*w)).collect();
        if self.are_enough(staying.len()) {
            return staying;
        }
        let held = |w: &WorkerId| self.moves.draining.contains_key(w) && !self.moves.released.contains(w);
        ready.into_iter().filter(|w| self.may_train(*w) || held(w)).collect()
    }

    fn are_enough(&self, staying: usize) -> bool {
        staying >= self.settings.workers_min.max(1) as usize
    }

    /// How many [`Self::eligible`] lists.
    pub(super) fn eligible_count(&self) -> usize {
        let is_ready = |w: &&WorkerId| self.seats.ready_at(**w).is_some();
        let draining = self.moves.draining.keys();
        let cordoned = self.trouble.cordoned.iter();
        let cordoned = cordoned.filter(|w| !self.moves.draining.contains_key(w));
        let kept_out = draining.clone().chain(cordoned).filter(is_ready).count();
        let staying = self.seats.ready_count() - kept_out;
        if self.are_enough(staying) {
            return staying;
        }
        let held = draining.filter(|w| !self.moves.released.contains(w)).filter(is_ready);
        staying + held.count()
    }

    /// Who is in the next generation if it is formed now, by id.
    pub(super) fn candidates(&self) -> Vec<WorkerId> {
        let ready = self.eligible();
        self.announced(&ready).unwrap_or(ready)
    }

    /// Members of the move for which the last generation was left, if they are all there: who turned up since has no lane
    /// primed and joins by a move of its own (rule L8).
    fn announced(&self, ready: &[WorkerId]) -> Option<Vec<WorkerId>> {
        let members = &self.moves.under_way.as_ref()?.members;
        let enough = members.len() >= self.settings.workers_min.max(1) as usize;
        let there = enough && members.iter().all(|w| ready.binary_search(w).is_ok());
        there.then(|| members.clone())
    }

    /// Somebody has to go within `grace_ms`.
    pub(super) fn drain(&mut self, worker: WorkerId, grace_ms: u64, turn: &mut Turn) {
        let known = self.moves.draining.contains_key(&worker) || self.moves.held_back.contains_key(&worker);
        if known || !self.seats.contains(worker) {
            return;
        }
        turn.announce(RunEvent::WorkerDraining { worker, grace_ms });
        // A fifth of the grace is left for going: the last step, the answer, the process.
        let by = turn.now + grace_ms / 5 * 4;
        // Who is under suspicion goes at once, whatever it holds.
        if self.must_stay(worker) && !self.trouble.cordoned.contains(&worker) {
            self.moves.held_back.insert(worker, by);
        } else {
            self.begin_drain(worker, by, turn);
        }
    }

    /// Whether a checkpoint's part would go with `worker` and those who drain already. Without a third there is no choice.
    fn must_stay(&self, worker: WorkerId) -> bool {
        let leaves = |w: WorkerId| self.moves.draining.contains_key(&w);
        let third = |w: &WorkerId| *w != worker && !leaves(*w) && !self.moves.held_back.contains_key(w);
        self.ledger.last_copy_goes(worker, leaves) && self.seats.ready().iter().any(third)
    }

    fn begin_drain(&mut self, worker: WorkerId, by: Tick, turn: &mut Turn) {
        self.moves.draining.insert(worker, by);
        self.moves.drain_since = self.steps_done;
        self.moves.under_way = None;
        let plan = match &self.phase {
            Phase::Waiting => return self.let_drained_go(turn),
            Phase::Persisting { plan, .. }
            | Phase::Forming { plan, .. }
            | Phase::Running { plan }
            | Phase::Closing { plan, .. } => plan,
            Phase::Ended => return,
        };
        // Who is in no generation hands nothing over.
        if plan.rank_of(worker).is_none() && self.moves.released.insert(worker) {
            turn.send(worker, ToWorker::Finish);
        }
    }

    /// Those who were needed and are not any more, or whose time is up, drain now.
    pub(super) fn admit_drains(&mut self, turn: &mut Turn) {
        let held: Vec<(WorkerId, Tick)> = self.moves.held_back.iter().map(|(w, by)| (*w, *by)).collect();
        for (worker, by) in held {
            if by <= turn.now || !self.must_stay(worker) {
                // As if it were asked only now: a move that is under way has other members than it was primed for.
                if self.moves.under_way.is_some() {
                    let grace_ms = by.saturating_sub(turn.now);
                    turn.announce(RunEvent::WorkerDraining { worker, grace_ms });
                }
                self.moves.held_back.remove(&worker);
                self.begin_drain(worker, by, turn);
            }
        }
    }

    /// Whether a checkpoint holds what was trained when the last drain began.
    fn is_saved(&self) -> bool {
        self.ledger.head().map_or(0, |h| h.name.step) >= self.moves.drain_since
    }

    /// Of a generation that is over: those who were asked to leave may, unless they alone hold its state and have time.
    pub(super) fn let_drained_go(&mut self, turn: &mut Turn) {
        // Those who are back have yet to say which state they hold, or train on in a generation that is kept.
        let unknown = self.may_yet_keep() || self.lease.is_awaited();
        if self.moves.draining.is_empty() || unknown {
            return;
        }
        let ready = self.seats.ready();
        let name = |w: &WorkerId| self.seats.ready_at(*w).map(|(_, name)| name);
        let counts = |w: &&WorkerId| {
            let clean = !self.suspects.contains(w);
            clean && name(w).is_some_and(|name| R::counts(name, self.floor) && self.on_lineage(name))
        };
        let newest = ready
            .iter()
            .filter(counts)
            .filter_map(name)
            .max_by(|a, b| R::compare(*a, *b));
        let kept = ready.iter().any(|w| self.may_train(*w) && name(w) == newest);
        let free = kept || self.is_saved();
        let go: Vec<(WorkerId, Tick)> = self.moves.draining.iter().map(|(w, at)| (*w, *at)).collect();
        for (worker, at) in go {
            if (free || at <= turn.now) && self.moves.released.insert(worker) {
                turn.send(worker, ToWorker::Finish);
            }
        }
    }

    /// Whether nobody who stays holds the state, and no checkpoint since then does: one is taken first (rule G13).
    pub(super) fn saves_before_drain(&self) -> bool {
        let Phase::Running { plan } = &self.phase else {
            return false;
        };
        !self.moves.draining.is_empty() && !self.is_saved() && plan.members.iter().all(|m| !self.may_train(m.worker))
    }

    /// What a generation that trains has to do about joins, drains and slow members.
    pub(super) fn consider_moves(&mut self, turn: &mut Turn) {
        let Phase::Running { plan } = &self.phase else { return };
        if self.seats.newcomers().is_empty() {
            self.moves.joining_since = None; // who was waited for is gone: the next one has a window of its own
        }
        // Asked with every event of a fleet, so nothing here looks at all members unless there is something to do.
        let leaving = self.moves.draining.keys().any(|w| !self.moves.released.contains(w));
        let room = plan.members.len() < self.settings.workers_max as usize;
        let joining = room && self.seats.newcomers().iter().any(|w| self.may_train(*w));
        let idle = !joining && !leaving && !self.moves.rebalance_due;
        let at_end = self.steps_done + CLOSE_STEPS_AHEAD >= self.settings.total_steps;
        // Nothing moves any more in the last steps or after a stop.
        if (idle && self.moves.under_way.is_none()) || at_end || self.stopping {
            return;
        }
        let boundary = self.steps_done + CLOSE_STEPS_AHEAD;
        let overdue = |(w, at): &(&WorkerId, &Tick)| **at <= turn.now && plan.rank_of(**w).is_some();
        if let Some((late, _)) = self.moves.draining.iter().find(overdue) {
            let reason = format!("{late} has to go now");
            self.moves.under_way = None;
            self.leave_generation(None, &reason, Some(boundary), turn);
            return;
        }
        // A move waits for a checkpoint to be copied; its parts go up beside the next generation.
        let copying = self.ledger.opened().is_some_and(|(_, at)| self.steps_done < at);
        if copying || turn.now < self.moves.not_before {
            return;
        }
        if self.moves.under_way.is_some() {
            self.finish_move(boundary, turn);
            return;
        }
        let plan = plan.clone();
        if joining && !leaving && self.waits_for_joiners(turn.now) {
            return;
        }
        if let Some((reason, members)) = self.wanted_members(&plan, turn.now) {
            self.prepare_move(reason, members, boundary, turn);
        }
    }

    /// Whether joiners wait for others who are on their way.
    fn waits_for_joiners(&mut self, now: Tick) -> bool {
        let since = *self.moves.joining_since.get_or_insert(now);
        self.seats.any_warming() && now < since + self.settings.policy.join_window_ms
    }

    /// Who should train next and why, if that is another set or another share.
    fn wanted_members(&mut self, plan: &Plan, now: Tick) -> Option<(String, Vec<WorkerId>)> {
        let members: Vec<WorkerId> = plan.members.iter().map(|m| m.worker).collect();
        let mut next: Vec<WorkerId> = members.iter().copied().filter(|w| self.may_train(*w)).collect();
        let going: Vec<WorkerId> = members.iter().copied().filter(|w| !self.may_train(*w)).collect();
        if next.is_empty() {
            let saved = !self.saves_before_drain();
            return saved.then(|| (format!("all members drain: {}", names(&going)), next));
        }
        let room = (self.settings.workers_max as usize).saturating_sub(next.len());
        let newcomers = self.seats.newcomers().iter().copied();
        let newcomers = newcomers.filter(|w| self.may_train(*w) && !members.contains(w));
        let joining: Vec<WorkerId> = newcomers.take(room).collect();
        if !joining.is_empty() && going.is_empty() && self.waits_for_joiners(now) {
            return None;
        }
        next.extend(&joining);
        next.sort_unstable();
        if next.len() < self.settings.workers_min as usize {
            return None; // too few would be left: the grace may bring others
        }
        match (joining.is_empty(), going.is_empty()) {
            (false, true) => Some((do_so(&joining, "join"), next)),
            (true, false) => Some((do_so(&going, "drain"), next)),
            (false, false) => Some((format!("{}, {}", do_so(&joining, "join"), do_so(&going, "drain")), next)),
            (true, true) => self.slow_member(next),
        }
    }

    /// A reason to share the lanes out anew: the slowest member would end at least a fifth sooner.
    fn slow_member(&mut self, members: Vec<WorkerId>) -> Option<(String, Vec<WorkerId>)> {
        if !std::mem::take(&mut self.moves.rebalance_due) {
            return None;
        }
        let speeds = self.moves.speeds(&members);
        let end = |owners: &[WorkerId]| {
            let mut loads: BTreeMap<WorkerId, u32> = BTreeMap::new();
            for run in owners.chunk_by(|a, b| a == b) {
                *loads.entry(run[0]).or_default() += run.len() as u32;
            }
            let time = |(w, n): (&WorkerId, &u32)| (n * 1000 / speeds.get(w).copied().unwrap_or(SPEED_USUAL), *w);
            loads.iter().map(time).max()
        };
        let now = end(&self.lanes)?;
        // No shares end sooner than lanes that could be cut: mostly that says it before ten thousand members are shared out.
        let all: u64 = speeds.values().map(|s| u64::from(*s)).sum();
        if u64::from(self.settings.lanes) * 1000 / all.max(1) * 5 > u64::from(now.0) * 4 {
            return None;
        }
        let then = end(&assign_by_speed(self.settings.lanes, &speeds, &self.lanes))?;
        (then.0 * 5 <= now.0 * 4).then(|| {
            let ms = self.moves.lane_ms.get(&now.1).copied().unwrap_or(0.0);
            (format!("{} is slow: {ms:.0} ms a lane", now.1), members)
        })
    }

    /// Phase one: new owners are told.
    fn prepare_move(&mut self, reason: String, members: Vec<WorkerId>, from_step: u64, turn: &mut Turn) {
        let owners = if members.is_empty() {
            Vec::new()
        } else {
            self.shares(&members)
        };
        let mut by_owner: BTreeMap<WorkerId, Vec<u32>> = BTreeMap::new();
        for (lane, owner) in owners.iter().enumerate() {
            if self.lanes.get(lane) != Some(owner) {
                by_owner.entry(*owner).or_default().push(lane as u32);
            }
        }
        let each = by_owner
            .iter()
            .flat_map(|(w, lanes)| lanes.iter().map(move |lane| (*w, *lane)));
        let missing: BTreeSet<(WorkerId, u32)> = each.collect();
        turn.announce(RunEvent::LanesMoving {
            reason: reason.clone(),
            lanes: missing.len() as u32,
            from_step,
        });
        let generation = self.generation;
        for (worker, lanes) in by_owner {
            let order = ToWorker::Prepare {
                generation,
                lanes,
                from_step,
            };
            turn.send(worker, order);
        }
        self.moves.under_way = Some(Move {
            reason,
            members,
            owners,
            missing,
            from_step,
            deadline: turn.now + self.settings.failure_budget_ms + PRIMING_MS,
        });
        self.finish_move(from_step, turn);
    }

    /// Phase two, once all lanes are primed; a move whose owners do not answer is put off.
    fn finish_move(&mut self, boundary: u64, turn: &mut Turn) {
        let Some(under_way) = &self.moves.under_way else { return };
        debug_assert!(
            under_way
                .missing
                .iter()
                .all(|(w, _)| self.seats.contains(*w) && self.may_train(*w)),
            "who is lost or drains ends the move it is part of"
        );
        if R::lane_may_move(under_way.missing.is_empty()) {
            let (reason, after) = (under_way.reason.clone(), boundary.max(under_way.from_step));
            self.leave_generation(None, &reason, Some(after), turn);
        } else if under_way.deadline <= turn.now {
            self.moves.under_way = None;
            self.moves.not_before = turn.now + PRIMING_MS;
        }
    }

    fn shares(&self, members: &[WorkerId]) -> Vec<WorkerId> {
        let mut owners = assign_by_speed(self.settings.lanes, &self.moves.speeds(members), &self.lanes);
        keep_away(&mut owners, members, &self.trouble.banned);
        owners
    }

    /// Owners of the lanes in the next generation: as announced, if the same members form it.
    pub(super) fn owners_for(&mut self, members: &[WorkerId]) -> Vec<WorkerId> {
        let mut sorted = members.to_vec();
        sorted.sort_unstable();
        let Some(moved) = self.moves.under_way.take().filter(|m| m.members == sorted) else {
            return self.shares(members);
        };
        for (lane, (from, to)) in self.lanes.iter().zip(&moved.owners).enumerate() {
            let lane = lane as u32;
            if from != to && self.seats.contains(*from) {
                let primed = !moved.missing.contains(&(*to, lane));
                debug_assert_holds::<R>(|| lane_handed_over(lane, *from, *to, primed));
            }
        }
        moved.owners
    }
}
