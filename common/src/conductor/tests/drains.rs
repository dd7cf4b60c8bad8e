//! Who may leave when, with parts of a checkpoint on their way (rule G13): owner and buddy never go together while a third
//! exists.

use super::failures::said;
use super::stories::{Story, name, settings};
use crate::conductor::{Event, Restored, Settings};
use crate::events::{FromWorker, PartInfo, RunEvent, ToWorker};
use crate::ids::{Generation, StateName, WorkerId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Parts of a checkpoint.
const PARTS: u32 = 5;
/// Checkpoints are due every so many steps.
const CADENCE: u64 = 8;
const GRACE_MS: u64 = 100_000;

/// Workers that do what they are told at once, but upload only when asked to.
struct Fleet {
    story: Story,
    /// Orders up to this one were carried out.
    heard: usize,
    alive: BTreeSet<u32>,
    draining: BTreeSet<u32>,
    /// Parts that each still has to write, and of which each keeps a copy.
    owed: BTreeMap<u32, BTreeSet<u32>>,
    spare: BTreeMap<u32, BTreeSet<u32>>,
    stored: BTreeSet<u32>,
    attempt: u64,
    state: StateName,
}

impl Fleet {
    /// All of `size` train, and have just copied their parts.
    fn copied(size: u32) -> Self {
        let settings = Settings {
            workers_target: size,
            workers_max: size,
            lanes: 2 * size,
            parts_total: PARTS,
            checkpoint_steps: CADENCE,
            ..settings()
        };
        let mut fleet = Self {
            story: Story::under(settings, Restored::default()),
            heard: 0,
            alive: (1..=size).collect(),
            draining: BTreeSet::new(),
            owed: BTreeMap::new(),
            spare: BTreeMap::new(),
            stored: BTreeSet::new(),
            attempt: 0,
            state: StateName::INITIAL,
        };
        for worker in 1..=size {
            fleet.story.ready(worker, StateName::INITIAL);
        }
        fleet.listen();
        while fleet.attempt == 0 || fleet.state.step < CADENCE {
            fleet.make_step();
        }
        fleet
    }

    /// Every member applies the next step.
    fn make_step(&mut self) {
        let plan = self.story.last_plan();
        self.state = name(self.state.step + 1, plan.generation.0);
        for member in plan.members.iter().filter(|m| self.alive.contains(&m.worker.0)) {
            self.story.done(member.worker.0, self.state.step, plan.generation.0);
        }
        self.listen();
    }

    /// Carries out what has come.
    fn listen(&mut self) {
        while let Some((to, order)) = self.story.sent.get(self.heard).cloned() {
            self.heard += 1;
            let WorkerId(worker) = to;
            if !self.alive.contains(&worker) {
                continue;
            }
            match order {
                ToWorker::Form { plan } => {
                    let generation = plan.generation;
                    self.story.tell(said(worker, FromWorker::Formed { generation }));
                }
                ToWorker::Close { generation, after_step } => self.close(worker, generation, after_step),
                ToWorker::Checkpoint {
                    attempt, parts, spare, ..
                } => {
                    if attempt > self.attempt {
                        (self.attempt, self.owed, self.spare) = (attempt, BTreeMap::new(), BTreeMap::new());
                        self.stored.clear();
                    }
                    self.owed.insert(worker, parts.into_iter().collect());
                    self.spare.insert(worker, spare.into_iter().collect());
                }
                ToWorker::UploadSpare { attempt, parts } if attempt == self.attempt => {
                    self.owed.entry(worker).or_default().extend(parts);
                }
                ToWorker::Finish => self.leaves(worker),
                _ => {}
            }
        }
    }

    /// The boundary is reached by whoever closes first; all others are there with it.
    fn close(&mut self, worker: u32, generation: Generation, after_step: Option<u64>) {
        while let Some(step) = after_step.filter(|step| self.state.step < *step) {
            self.state = name(self.state.step + 1, generation.0);
            assert!(self.state.step <= step);
        }
        let state = if self.state.step == 0 {
            StateName::INITIAL
        } else {
            self.state
        };
        self.story.close(worker, generation.0, state);
    }

    /// It is told to go, and is gone.
    fn leaves(&mut self, worker: u32) {
        self.alive.remove(&worker);
        let staying: Vec<u32> = self.alive.difference(&self.draining).copied().collect();
        let keeps = |part: &u32| {
            let holds = |kept: &BTreeMap<u32, BTreeSet<u32>>, w: &u32| kept.get(w).is_some_and(|p| p.contains(part));
            self.alive.iter().any(|w| holds(&self.owed, w) || holds(&self.spare, w))
        };
        let lost: Vec<u32> = (0..PARTS)
            .filter(|part| !self.stored.contains(part) && !keeps(part))
            .collect();
        assert!(
            staying.is_empty() || lost.is_empty(),
            "w{worker} took the last copies of parts {lost:?} along, although {staying:?} stay"
        );
        self.story.tell(Event::WorkerExited {
            worker: WorkerId(worker),
            pid: worker,
            code: Some(0),
            signal: None,
        });
        self.owed.remove(&worker);
        self.spare.remove(&worker);
    }

    fn drain(&mut self, worker: u32) {
        if self.alive.contains(&worker) && self.draining.insert(worker) {
            let grace_ms = GRACE_MS;
            self.story.tell(said(worker, FromWorker::Draining { grace_ms }));
            self.listen();
        }
    }

    /// The next of its parts is stored; false if there is none.
    fn upload(&mut self, worker: u32) -> bool {
        let part = self.owed.get_mut(&worker).and_then(BTreeSet::pop_first);
        let Some(index) = part.filter(|_| self.alive.contains(&worker)) else {
            return false;
        };
        self.stored.insert(index);
        let part = PartInfo {
            index,
            key: format!("{}/{index}", self.attempt),
            bytes: 1,
            checksum: 1,
        };
        let (attempt, name) = (self.attempt, name(CADENCE, 1));
        self.story
            .tell(said(worker, FromWorker::PartUploaded { attempt, part, name }));
        self.listen();
        true
    }

    fn given_up(&self) -> bool {
        let given_up = |e: &RunEvent| matches!(e, RunEvent::CheckpointAbandoned { .. });
        self.story.announced.iter().any(given_up)
    }
}

proptest! {
    #[test]
    fn owner_and_buddy_never_drain_together_while_a_third_exists(
        size in 3u32..7,
        script in proptest::collection::vec((0u8..3, 1u32..7), 0..40),
    ) {
        let mut fleet = Fleet::copied(size);
        for (what, worker) in script {
            // One stays: a run in which all drain saves first, which is another rule.
            let leaves_one = fleet.draining.len() as u32 + 1 < size;
            match what {
                0 if leaves_one => fleet.drain(worker),
                1 => { fleet.upload(worker); }
                _ => fleet.make_step(),
            }
        }
        while (1..=size).any(|worker| fleet.upload(worker)) {}
        for _ in 0..6 {
            fleet.make_step();
        }
        prop_assert!(!fleet.given_up(), "{:?}", fleet.story.announced);
        prop_assert_eq!(fleet.stored.len() as u32, PARTS);
        let left: BTreeSet<u32> = fleet.draining.intersection(&fleet.alive).copied().collect();
        prop_assert!(left.is_empty(), "{:?} were asked to leave and are still there", left);
    }
}

#[test]
fn buddy_of_one_that_drains_is_held_back_until_the_part_is_stored_and_no_longer_than_its_grace() {
    for stored in [true, false] {
        let mut fleet = Fleet::copied(3);
        fleet.drain(1);
        fleet.drain(2);
        for _ in 0..4 {
            fleet.make_step();
        }
        assert!(
            !fleet.alive.contains(&1) && fleet.alive.contains(&2),
            "one after the other"
        );
        if stored {
            while fleet.upload(2) {}
        } else {
            // It must go: what it has not stored is lost, and the attempt with it.
            fleet.draining = fleet.alive.clone();
            while fleet.story.now < GRACE_MS && fleet.alive.contains(&2) {
                fleet.story.now += 400;
                let alive: Vec<u32> = fleet.alive.iter().copied().collect();
                alive
                    .into_iter()
                    .for_each(|w| fleet.story.tell(said(w, FromWorker::Heartbeat)));
                fleet.listen();
            }
        }
        for _ in 0..4 {
            fleet.make_step();
        }
        assert_eq!((fleet.alive.contains(&2), fleet.given_up()), (false, !stored));
    }
}

#[test]
fn worker_in_no_generation_that_is_asked_to_leave_goes_at_once_and_is_no_loss() {
    let mut story = Story::two_running();
    story.done(1, 7, 1);
    story.tell(Event::WorkerConnected { worker: WorkerId(3) });
    story.tell(said(3, FromWorker::Draining { grace_ms: GRACE_MS }));
    assert!(story.sent.contains(&(WorkerId(3), ToWorker::Finish)));
    story.tell(Event::StreamLost { worker: WorkerId(3) });
    let lost = |e: &RunEvent| matches!(e, RunEvent::WorkerLost { .. });
    assert!(!story.announced.iter().any(lost), "{:?}", story.announced);
    assert_eq!(story.last_plan().generation, Generation(1));
}
