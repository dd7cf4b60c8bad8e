//! What befalls the world: deaths of workers, a stop, deaths of the coordinator.

use super::{TURNS_MAX, World};
use crate::conductor::{Conductor, Event, Restored};
use crate::events::{Outcome, Record};
use crate::ids::WorkerId;

impl World {
    /// SIGKILL: what was said is still on the wire, the rest is silence; a parent reaps it some time later.
    pub(super) fn kill(&mut self, worker: WorkerId) {
        if let Some(dead) = self.workers.remove(&worker) {
            for message in dead.outbox {
                self.tell(Event::Said { worker, message });
            }
            if !self.settings.spawns || self.draws.below(2) == 0 {
                self.tell(Event::StreamLost { worker });
            }
            if self.settings.spawns {
                self.exits.push_back(worker);
            }
        }
    }

    /// Ctrl-C once the run has come to `step`; turns the world until the conductor ends it.
    pub(in super::super) fn stop_at_step(&mut self, step: u64) -> Option<Outcome> {
        self.tell(Event::Ticked);
        let mut stopped = false;
        for _ in 0..TURNS_MAX {
            if self.outcome.is_some() {
                return self.outcome.take();
            }
            if !stopped && self.conductor.observe().steps_done >= step {
                stopped = true;
                self.tell(Event::StopRequested);
            }
            self.turn();
        }
        panic!(
            "seed {}: a stopped world hangs in {:?}",
            self.seed,
            self.conductor.observe()
        );
    }

    /// The coordinator dies and is started again: of the records under way some are durable, workers end themselves.
    pub(in super::super) fn restart(&mut self) {
        let durable = self.draws.below(self.persists.len() as u64 + 1) as usize;
        self.records.extend(self.persists.drain(..).take(durable));
        for (attempt, name) in std::mem::take(&mut self.to_write) {
            if self.draws.below(2) == 0 {
                self.manifests
                    .insert(format!("{attempt}/manifest.json"), (name, self.bits_of[&name]));
            }
        }
        self.workers.clear();
        self.spawning.clear();
        self.exits.clear();
        self.outcome = None;
        let restored = Restored::from_records(&self.records);
        for attempt in &restored.open_attempts {
            let reason = "the coordinator ended before it was complete".into();
            self.records.push(Record::CheckpointAbandoned {
                attempt: *attempt,
                reason,
            });
        }
        if let Some(name) = restored.finished {
            self.outcome = Some(Outcome::Succeeded { name, manifest: None });
        }
        self.conductor = Conductor::new(self.settings.clone(), restored);
        self.now = 0;
    }

    /// Turns the world `turns` times, or until it ends.
    pub(in super::super) fn turn_for(&mut self, turns: u64) {
        self.tell(Event::Ticked);
        for _ in 0..turns {
            if self.outcome.is_none() {
                self.turn();
            }
        }
    }
}
