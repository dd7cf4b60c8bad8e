//! What happened in a run, from its events: several processes may have worked on it, one after the other.

use argosy_common::events::{Outcome, RunEvent, StampedEvent, StepReport};
use argosy_common::ids::WorkerId;
use argosy_common::steplog::MaskReason;
use std::collections::BTreeMap;

/// Between the end of one process and the start of the next the run's clock stands; the page shows so many seconds.
const SESSION_GAP_S: f64 = 1.0;

/// From the closing of a generation to the first step of the next.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Recovery {
    pub(super) from_s: f64,
    pub(super) to_s: f64,
    /// The first step after it.
    pub(super) step: u64,
    pub(super) reason: String,
}

/// A stretch of a worker's life.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Span {
    pub(super) from_s: f64,
    pub(super) to_s: f64,
    /// The generation it was a member of; none while it was starting or waiting.
    pub(super) generation: Option<u64>,
}

/// One worker process.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Member {
    pub(super) worker: WorkerId,
    pub(super) spans: Vec<Span>,
    /// When and how it ended.
    pub(super) end: Option<(f64, String)>,
}

/// A generation that was formed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) at_s: f64,
    pub(super) step: u64,
    pub(super) members: Vec<WorkerId>,
    pub(super) healing: Vec<WorkerId>,
    pub(super) reason: String,
}

/// A result of one evaluation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Evaluation {
    pub(super) set: String,
    pub(super) step: u64,
    pub(super) top1: f64,
    pub(super) top5: f64,
    pub(super) chance: f64,
    pub(super) samples: u64,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Story {
    pub(super) run: String,
    pub(super) total_steps: u64,
    pub(super) total_positions: u64,
    pub(super) batch: u32,
    pub(super) unix_ms: u64,
    /// When each process that worked on the run began.
    pub(super) sessions: Vec<f64>,
    pub(super) end_s: f64,
    /// Steps in order; of one done twice, the last.
    pub(super) steps: BTreeMap<u64, StepReport>,
    /// All reports in the order of time, for the speed.
    pub(super) pace: Vec<(f64, u32)>,
    pub(super) recoveries: Vec<Recovery>,
    pub(super) members: Vec<Member>,
    pub(super) generations: Vec<Generation>,
    /// Seconds on the run's joined clock, step and key.
    pub(super) checkpoints: Vec<(f64, u64, String)>,
    pub(super) evaluations: Vec<Evaluation>,
    pub(super) outcome: Option<Outcome>,
    /// Everything but the steps, for the list of events.
    pub(super) log: Vec<(f64, RunEvent)>,
    /// Lines that could not be read.
    pub(super) unread: usize,
    offset_s: f64,
    /// When, which generation and why.
    closing: Option<(f64, u64, String)>,
    last_step_s: f64,
}

impl Story {
    /// Reads the text of `events.jsonl`.
    pub(super) fn read(text: &str) -> Self {
        let mut story = Self::default();
        for line in text.lines().filter(|l| !l.trim().is_empty()) {
            match serde_json::from_str::<StampedEvent>(line) {
                Ok(event) => story.take(&event),
                Err(_) => story.unread += 1,
            }
        }
        story.end();
        story
    }

    /// Rows masked by reason, each step counted once.
    pub(super) fn masked(&self) -> BTreeMap<MaskReason, u64> {
        let mut masked = BTreeMap::new();
        for (reason, rows) in self.steps.values().flat_map(|s| &s.masked) {
            *masked.entry(*reason).or_default() += u64::from(*rows);
        }
        masked
    }

    /// Images a second at the end of each step, over the five steps before it.
    pub(super) fn speed(&self) -> Vec<(f64, f64)> {
        const OVER: usize = 5;
        let speed = |i: usize| {
            let from = i.saturating_sub(OVER);
            let rows: u64 = self.pace[from + 1..=i].iter().map(|(_, rows)| u64::from(*rows)).sum();
            let seconds = self.pace[i].0 - self.pace[from].0;
            (seconds > 0.0).then(|| (self.pace[i].0, rows as f64 / seconds))
        };
        (1..self.pace.len()).filter_map(speed).collect()
    }

    fn take(&mut self, stamped: &StampedEvent) {
        if let RunEvent::RunStarted {
            run,
            total_steps,
            total_positions,
            batch,
            unix_ms,
            ..
        } = &stamped.event
        {
            if !self.sessions.is_empty() {
                self.end();
                self.offset_s = self.end_s + SESSION_GAP_S;
                // From the start of the process that goes on to its first step, whatever generation makes it.
                self.closing = Some((self.offset_s, 0, "the run was started again".to_owned()));
            } else {
                self.unix_ms = *unix_ms;
            }
            self.sessions.push(self.offset_s);
            self.run.clone_from(run);
            (self.total_steps, self.total_positions, self.batch) = (*total_steps, *total_positions, *batch);
        }
        let at_s = self.offset_s + stamped.at_ms as f64 / 1e3;
        // Evaluations may be told of long after the training's end; they move no clock.
        let beside = matches!(
            stamped.event,
            RunEvent::EvaluationDone { .. } | RunEvent::EvaluationFailed { .. }
        );
        if !beside {
            self.end_s = self.end_s.max(at_s);
        }
        match &stamped.event {
            RunEvent::StepDone { report, .. } => return self.step(at_s, report),
            RunEvent::CheckpointCommitted { key, name } => self.checkpoints.push((at_s, name.step, key.clone())),
            RunEvent::EvaluationDone {
                set,
                name,
                top1,
                top5,
                chance,
                samples,
                ..
            } => self.evaluations.push(Evaluation {
                set: set.clone(),
                step: name.step,
                top1: *top1,
                top5: *top5,
                chance: *chance,
                samples: *samples,
            }),
            RunEvent::RunFinished { outcome } => self.outcome = Some(outcome.clone()),
            event => self.membership(at_s, event),
        }
        self.log.push((at_s, stamped.event.clone()));
    }

    fn step(&mut self, at_s: f64, report: &StepReport) {
        // Who drains makes steps of the closing generation still: nothing stands until the last of them.
        let over = |closing: &mut (f64, u64, String)| report.generation.0 > closing.1;
        if let Some((closed_s, _, reason)) = self.closing.take_if(over) {
            self.recoveries.push(Recovery {
                from_s: closed_s.max(self.last_step_s),
                to_s: at_s,
                step: report.name.step,
                reason,
            });
        }
        self.last_step_s = at_s;
        self.pace.push((at_s, report.valid));
        self.steps.insert(report.name.step, report.clone());
    }

    fn membership(&mut self, at_s: f64, event: &RunEvent) {
        match event {
            RunEvent::WorkerSpawned { worker, .. } => self.members.push(Member {
                worker: *worker,
                spans: vec![Span {
                    from_s: at_s,
                    to_s: at_s,
                    generation: None,
                }],
                end: None,
            }),
            RunEvent::WorkerLost { worker, reason } => self.end_member(*worker, at_s, reason),
            RunEvent::WorkerExited {
                worker, code, signal, ..
            } => {
                let how = match (signal, code) {
                    (Some(signal), _) => format!("ended by signal {signal}"),
                    (None, Some(code)) => format!("exited with code {code}"),
                    (None, None) => "gone".to_owned(),
                };
                self.end_member(*worker, at_s, &how);
            }
            RunEvent::GenerationFormed {
                generation,
                members,
                base,
                healing,
                reason,
            } => {
                self.generations.push(Generation {
                    number: generation.0,
                    at_s,
                    step: base.step,
                    members: members.clone(),
                    healing: healing.clone(),
                    reason: reason.clone(),
                });
                self.change(at_s, |worker| members.contains(&worker).then_some(generation.0));
            }
            RunEvent::GenerationClosing { generation, reason } => {
                self.closing.get_or_insert_with(|| (at_s, generation.0, reason.clone()));
            }
            _ => {}
        }
    }

    /// Ends the stretch of everybody who lives and begins another.
    fn change(&mut self, at_s: f64, generation_of: impl Fn(WorkerId) -> Option<u64>) {
        for member in self.members.iter_mut().filter(|m| m.end.is_none()) {
            let generation = generation_of(member.worker);
            if let Some(last) = member.spans.last_mut() {
                last.to_s = at_s;
            }
            member.spans.push(Span {
                from_s: at_s,
                to_s: at_s,
                generation,
            });
        }
    }

    fn end_member(&mut self, worker: WorkerId, at_s: f64, how: &str) {
        let found = self
            .members
            .iter_mut()
            .rev()
            .find(|m| m.worker == worker && m.end.is_none());
        if let Some(member) = found {
            if let Some(last) = member.spans.last_mut() {
                last.to_s = at_s;
            }
            member.end = Some((at_s, how.to_owned()));
        }
    }

    /// The end of a process: who lives has lived until here.
    fn end(&mut self) {
        let end_s = self.end_s;
        self.closing = None;
        for member in self.members.iter_mut().filter(|m| m.end.is_none()) {
            if let Some(last) = member.spans.last_mut() {
                last.to_s = end_s;
            }
            member.end = Some((end_s, "still there at the last event".to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: &str = r#"{"at_ms":0,"event":"run_started","run":"r-1","lanes":4,"batch":8,"total_steps":4,"total_positions":30}
{"at_ms":5,"event":"worker_spawned","worker":1,"pid":10}
{"at_ms":5,"event":"worker_spawned","worker":2,"pid":11}
{"at_ms":400,"event":"generation_formed","generation":1,"members":[1,2],"base":{"step":0,"applied_gen":0},"healing":[],"reason":"the run begins"}
{"at_ms":1000,"event":"step_done","report":{"generation":1,"name":{"step":1,"applied_gen":1},"loss":2.0,"lr":0.1,"logit_scale":14.0,"grad_norm":1.0,"valid":8,"masked":{},"phase_ms":{}},"worker":1}
{"at_ms":1500,"event":"worker_lost","worker":2,"reason":"its stream broke"}
{"at_ms":1501,"event":"generation_closing","generation":1,"reason":"w2 was lost"}
{"at_ms":1600,"event":"generation_formed","generation":2,"members":[1],"base":{"step":1,"applied_gen":1},"healing":[],"reason":"membership changed"}
{"at_ms":2000,"event":"step_done","report":{"generation":2,"name":{"step":2,"applied_gen":2},"loss":1.5,"lr":0.1,"logit_scale":14.0,"grad_norm":1.0,"valid":7,"masked":{"caption":1},"phase_ms":{}},"worker":1}
{"at_ms":2100,"event":"run_finished","outcome":{"outcome":"interrupted","name":{"step":2,"applied_gen":2}}}
{"at_ms":0,"event":"run_started","run":"r-1","lanes":4,"batch":8,"total_steps":4,"total_positions":30}
{"at_ms":10,"event":"worker_spawned","worker":1,"pid":20}
{"at_ms":500,"event":"step_done","report":{"generation":3,"name":{"step":2,"applied_gen":3},"loss":1.4,"lr":0.1,"logit_scale":14.0,"grad_norm":1.0,"valid":7,"masked":{"caption":1},"phase_ms":{}},"worker":1}
not an event
"#;

    #[test]
    fn story_of_two_processes_has_one_clock_and_counts_each_step_once() {
        let story = Story::read(EVENTS);
        assert_eq!(story.sessions, [0.0, 3.1]);
        assert_eq!((story.steps.len(), story.unread), (2, 1));
        assert_eq!(story.steps[&2].loss, Some(1.4));
        assert_eq!(story.masked(), BTreeMap::from([(MaskReason::Caption, 1)]));
        assert!((story.end_s - 3.6).abs() < 1e-9);
        let recovery = &story.recoveries[..];
        assert!(
            matches!(recovery, [r, _] if r.from_s == 1.501 && r.to_s == 2.0 && r.step == 2),
            "{recovery:?}"
        );
        assert!(
            matches!(recovery, [_, again] if again.from_s == 3.1 && again.to_s == 3.6 && again.reason.contains("again")),
            "{recovery:?}"
        );
    }

    #[test]
    fn story_of_a_lost_worker_ends_its_line_and_not_its_neighbours() {
        let story = Story::read(EVENTS);
        let spans = |i: usize| -> Vec<Option<u64>> { story.members[i].spans.iter().map(|s| s.generation).collect() };
        assert_eq!(spans(0), [None, Some(1), Some(2)]);
        assert_eq!(spans(1), [None, Some(1)]);
        assert_eq!(story.members[1].end, Some((1.5, "its stream broke".to_owned())));
        assert_eq!(story.members.len(), 3);
    }
}
