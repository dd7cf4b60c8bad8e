//! Trouble in which nobody dies: numbers that are not finite, and rows that cannot be read (rules G11, M2).

use crate::net::Node;
use crate::process::At;
use crate::queue::Ms;
use crate::world::{Ev, World};
use argosy_common::events::{AbortReport, FromWorker, NotFinite};
use argosy_common::follower::Event;
use argosy_common::ids::WorkerId;
use argosy_common::quarantine::{ReadFault, RowRange};
use argosy_common::rules::Rules;

/// A lane that waits for rows looks again so often.
const LOOK_MS: Ms = 200;

/// A lane of one step whose rows are not finite on whoever computes them, or a process whose results are not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Poison {
    pub(crate) fault: usize,
    pub(crate) what: Poisoned,
}

/// See [`Poison`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Poisoned {
    /// The data's fault.
    Lane { step: u64, lane: u32 },
    /// The hardware's, for so many steps to come.
    Process { process: usize, times: u32 },
}

/// Rows that cannot be read, by one process or by all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unreadable {
    pub(crate) fault: usize,
    pub(crate) rows: RowRange,
    pub(crate) by: Option<usize>,
    pub(crate) until: Ms,
}

impl<R: Rules> World<R> {
    /// Lanes of `process` that are not finite in the step at hand; found out before its features are gathered.
    pub(crate) fn not_finite_lanes(&mut self, process: usize) -> Vec<u32> {
        if self.poison.is_empty() {
            return Vec::new();
        }
        let trainer = &self.processes[process].trainer;
        let Some(inside) = &trainer.inside else {
            return Vec::new();
        };
        let step = trainer.name.step;
        let mine = inside.plan.lanes_of(inside.rank);
        let mut bad = Vec::new();
        let mut credits = Vec::new();
        for poison in &mut self.poison {
            match &mut poison.what {
                Poisoned::Lane { step: at, lane } if *at == step && mine.contains(lane) => bad.push(*lane),
                Poisoned::Process { process: who, times } if *who == process && *times > 0 && !mine.is_empty() => {
                    *times -= 1;
                    bad.extend(&mine);
                }
                _ => continue,
            }
            credits.push(poison.fault);
        }
        for fault in credits {
            self.effects.credit(fault, &self.faults);
        }
        bad.sort_unstable();
        bad.dedup();
        bad
    }

    /// The rows that a process waits for and cannot read now, with their lane.
    pub(crate) fn unreadable_rows(&self, process: usize) -> Option<(u32, Unreadable)> {
        let now = self.now();
        let trainer = &self.processes[process].trainer;
        let inside = trainer.inside.as_ref()?;
        let step = trainer.name.step;
        let troubled = self
            .unreadable
            .filter(|u| u.until > now && u.by.is_none_or(|p| p == process))?;
        let given_up = |id| {
            let holds = |r: &&argosy_common::quarantine::Quarantined| r.holds_from <= step && r.rows.contains(id);
            inside.plan.quarantine.iter().find(holds).is_some()
        };
        let waits = |lane: &u32| {
            let rows = self.data.rows(step, *lane).iter();
            rows.copied().any(|id| troubled.rows.contains(id) && !given_up(id))
        };
        let lane = inside.plan.lanes_of(inside.rank).into_iter().find(waits)?;
        Some((lane, troubled))
    }

    /// LOAD is not done while rows of a lane cannot be read: it is said, and the lane waits.
    pub(crate) fn lane_waits(&mut self, process: usize, token: u64) -> bool {
        let Some((lane, troubled)) = self.unreadable_rows(process) else {
            return false;
        };
        let trainer = &mut self.processes[process].trainer;
        let Some(inside) = &mut trainer.inside else {
            return false;
        };
        let first = !std::mem::replace(&mut inside.blocked, true);
        let blocked = FromWorker::LaneBlocked {
            generation: inside.plan.generation,
            step: trainer.name.step,
            lane,
            rows: troubled.rows,
            fault: ReadFault::Shard,
            error: "503".into(),
        };
        let now = self.now();
        self.effects.credit(troubled.fault, &self.faults);
        if first {
            self.trace.note(now, "blocked", &[process as u64, lane.into()], || {
                format!("p{process} cannot read rows of lane {lane}")
            });
        }
        self.queue.after(LOOK_MS, Ev::WorkDone { process, token });
        self.follow(process, Event::Passed(blocked));
        true
    }

    /// A generation breaks at `process`: what it saw, said before it says that it has left (rule G10).
    pub(crate) fn report_abort(&mut self, process: usize, bad: Option<Vec<u32>>) {
        let trainer = &self.processes[process].trainer;
        let Some(inside) = &trainer.inside else { return };
        let phase = match &inside.at {
            At::In(stage) => format!("{stage:?}").to_lowercase(),
            _ => return,
        };
        let named = |process: &usize| self.processes[*process].worker;
        let lost_links: Vec<WorkerId> = inside.lost.iter().filter_map(named).collect();
        let report = AbortReport {
            generation: inside.plan.generation,
            step: trainer.name.step,
            phase,
            entered: inside.entered,
            lost_links,
            not_finite: bad.map(|lanes| NotFinite { lanes, sum: false }),
            ..AbortReport::default()
        };
        self.follow(process, Event::Passed(FromWorker::Aborted { report }));
    }

    /// GATHER has shown lanes that are not finite: nobody goes on to LOSS (rule G11).
    pub(crate) fn found_not_finite(&mut self, process: usize, bad: Vec<u32>) {
        let cause = format!("lanes {bad:?} are not finite");
        self.report_abort(process, Some(bad));
        self.leaves(process, Some(cause));
    }

    /// Poison that has been met: the step is over, or the hardware was fine again.
    pub(crate) fn poison_passes(&mut self, step: u64) {
        self.poison.retain(|p| match p.what {
            Poisoned::Lane { step: at, .. } => at >= step,
            Poisoned::Process { times, .. } => times > 0,
        });
    }

    pub(crate) fn strike_numbers(&mut self, fault: usize, process: usize, who: u32, data: bool) {
        let step = self
            .processes
            .iter()
            .filter(|p| p.alive)
            .map(|p| p.trainer.name.step)
            .max()
            .unwrap_or(0);
        let what = if data {
            let lane = who % self.config.lanes;
            Poisoned::Lane { step: step + 1, lane }
        } else {
            Poisoned::Process { process, times: 1 }
        };
        self.poison.push(Poison { fault, what });
        self.hit(fault, vec![Node::Process(process)]);
    }

    /// Some rows of a shard cannot be read for a while, by one process or, every other time, by nobody.
    pub(crate) fn strike_rows(&mut self, fault: usize, process: usize, who: u32, until: Ms) {
        let ahead = self.processes[process].trainer.name.step + 1;
        let step = ahead.min(self.shape.total_steps() - 1);
        let lane = who % self.config.lanes;
        let Some(id) = self.data.rows(step, lane).first().copied() else {
            return;
        };
        let rows = RowRange {
            source: id.source,
            shard: id.shard,
            from: id.row,
            until: (id.row + 1 + who % 3).min(self.shape.sources[0].shard_rows[id.shard as usize]),
        };
        let by = who.is_multiple_of(2).then_some(process);
        let until = if by.is_some() { until } else { Ms::MAX };
        self.unreadable = Some(Unreadable { fault, rows, by, until });
    }
}
