//! The toy trainer: the phases of a step, exchanges between members, heals, checkpoints. It obeys as the real one does:
//! orders are looked at between steps, a collective is cut off from outside, an APPLY under way is finished first.

mod copies;
mod exchange;
mod heal;
mod step;

use crate::data::next_bits;
use crate::net::Node;
use crate::process::{At, CopyOrder, Exchange, Inside, Stage};
use crate::world::{Ev, World};
use argosy_common::events::FromWorker;
use argosy_common::follower::{Event, TrainerOrder};
use argosy_common::ids::{Generation, StateName};
use argosy_common::plan::Plan;
use argosy_common::rules::Rules;

impl<R: Rules> World<R> {
    pub(crate) fn order(&mut self, process: usize, order: TrainerOrder) {
        match order {
            TrainerOrder::Form { plan } => self.form(process, plan),
            TrainerOrder::Run { generation } => {
                if let Some(inside) = self.inside(process, generation) {
                    inside.running = true;
                    self.boundary(process);
                }
            }
            TrainerOrder::StopAfter { generation, step } => {
                if let Some(inside) = self.inside(process, generation) {
                    inside.stop_after = Some(inside.stop_after.unwrap_or(u64::MAX).min(step));
                    if inside.at == At::Formed {
                        self.boundary(process);
                    }
                }
            }
            TrainerOrder::Checkpoint {
                attempt,
                at_step,
                parts,
                ..
            } => {
                let trainer = &mut self.processes[process].trainer;
                trainer.checkpoint = Some(CopyOrder {
                    attempt,
                    at_step,
                    parts,
                });
                match &trainer.inside {
                    None => self.drop_checkpoint(process),
                    Some(inside) if inside.at == At::Formed => self.copy_if_due(process),
                    Some(_) => {}
                }
            }
            TrainerOrder::UploadSpare { attempt, parts } => self.upload_parts(process, attempt, parts),
            TrainerOrder::Prime { generation, lanes, .. } => {
                let wait = 10 + self.draws.below(60);
                self.queue.after(
                    wait,
                    Ev::Primed {
                        process,
                        generation,
                        lanes,
                    },
                );
            }
            TrainerOrder::EmergencyCopy | TrainerOrder::Quit => {}
        }
    }

    /// The first rows of lanes to come are here.
    pub(crate) fn primed(&mut self, process: usize, generation: Generation, lanes: Vec<u32>) {
        if self.processes[process].alive {
            self.processes[process].trainer.primed.extend(&lanes);
            let primed = FromWorker::Primed { generation, lanes };
            self.follow(process, Event::Passed(primed));
        }
    }

    fn inside(&mut self, process: usize, generation: Generation) -> Option<&mut Inside> {
        let inside = self.processes[process].trainer.inside.as_mut();
        inside.filter(|i| i.plan.generation == generation)
    }

    fn form(&mut self, process: usize, plan: Plan) {
        let now = self.now();
        let place = |addr: &str| {
            addr.strip_prefix('p')
                .and_then(|n| n.parse().ok())
                .unwrap_or(usize::MAX)
        };
        let peers: Vec<usize> = plan.members.iter().map(|m| place(&m.addr)).collect();
        let Some(rank) = peers.iter().position(|p| *p == process) else {
            return;
        };
        let (base, generation) = (plan.base, plan.generation);
        let plan_hash = plan.hash();
        let trainer = &mut self.processes[process].trainer;
        trainer.token += 1;
        let heals = !R::holds(trainer.name, base);
        let at = if heals {
            At::Healing { source: None }
        } else {
            At::Connecting
        };
        trainer.inside = Some(Inside {
            plan_hash,
            rank,
            peers,
            at,
            running: false,
            stop_after: None,
            cut_off: None,
            entered: 0,
            lost: Vec::new(),
            blocked: false,
            gathered: Vec::new(),
            reduced: 0,
            plan,
        });
        self.trace
            .note(now, "forms", &[process as u64, generation.0, u64::from(heals)], || {
                format!(
                    "p{process} {generation} from {base}{}",
                    if heals { ", heals" } else { "" }
                )
            });
        if heals {
            self.heal(process)
        } else {
            self.reach(process, Exchange::Connect, 0)
        }
    }

    /// What is due between two steps; then the next.
    fn boundary(&mut self, process: usize) {
        self.copy_if_due(process);
        let trainer = &mut self.processes[process].trainer;
        let Some(inside) = &mut trainer.inside else { return };
        if inside.stop_after.is_some_and(|step| trainer.name.step >= step) {
            return self.halt(process, None);
        }
        if inside.running
            && let Some(cause) = inside.cut_off.take()
        {
            return self.halt(process, cause);
        }
        inside.at = At::Formed;
        if inside.running && trainer.name.step < self.shape.total_steps() {
            self.work(process, Stage::Load);
        }
    }

    /// Leaves the generation with a clean state: connections are cut first, so nothing is applied in it any more.
    pub(crate) fn halt(&mut self, process: usize, cause: Option<String>) {
        if cause.is_some() {
            self.report_abort(process, None);
        }
        self.leaves(process, cause);
    }

    /// The same, what it saw having been said.
    pub(crate) fn leaves(&mut self, process: usize, cause: Option<String>) {
        let now = self.now();
        self.tell_peers(process);
        let trainer = &mut self.processes[process].trainer;
        let Some(inside) = trainer.inside.take() else { return };
        trainer.token += 1;
        let (generation, name) = (inside.plan.generation, trainer.name);
        self.drop_checkpoint(process);
        self.trace
            .note(now, "left", &[process as u64, generation.0, name.step], || {
                format!(
                    "p{process} {generation} with {name}{}",
                    cause.as_deref().map(|c| format!(": {c}")).unwrap_or_default()
                )
            });
        if matches!(inside.at, At::In(_)) {
            self.effect(Node::Process(process));
        }
        self.holds(process);
        self.follow(
            process,
            Event::TrainerStopped {
                generation,
                name,
                cause,
            },
        );
        if R::applies_after_closing() && inside.at == At::In(Stage::Sentinel) {
            self.applies_late(process, &inside);
        }
    }

    /// What a trainer must not do: it has said that it left, and ends its step all the same (rule G3).
    fn applies_late(&mut self, process: usize, inside: &Inside) {
        let trainer = &mut self.processes[process].trainer;
        let before = trainer.name;
        trainer.bits = next_bits(trainer.bits, inside.reduced, inside.plan_hash);
        trainer.name = StateName {
            step: before.step + 1,
            applied_gen: inside.plan.generation,
        };
        let name = trainer.name;
        self.applied(process, before, name, inside.plan_hash);
    }

    /// Its connections of this generation close; the others notice.
    pub(crate) fn tell_peers(&mut self, process: usize) {
        let Some(inside) = &self.processes[process].trainer.inside else {
            return;
        };
        let generation = inside.plan.generation;
        let peers: Vec<usize> = inside.peers.iter().copied().filter(|p| *p != process).collect();
        for to in peers {
            let wait = 1 + self.draws.below(5);
            let now = self.now();
            if !self.net.is_cut(Node::Process(process), Node::Process(to), now) {
                self.queue.after(
                    wait,
                    Ev::PeerGone {
                        to,
                        generation,
                        from: process,
                    },
                );
            }
        }
    }

    pub(crate) fn peer_gone(&mut self, to: usize, generation: Generation, from: usize) {
        if self.processes.get(to).is_some_and(|p| p.alive) {
            if let Some(inside) = self.inside(to, generation) {
                inside.lost.push(from);
            }
            self.cut_off(to, generation, Some(format!("p{from} is gone")));
        }
    }

    /// The collective of a generation is cut off, from outside or because a connection broke.
    pub(crate) fn cut_off(&mut self, process: usize, generation: Generation, cause: Option<String>) {
        let Some(inside) = self.inside(process, generation) else {
            return;
        };
        let waits = match &inside.at {
            At::Healing { .. } => cause.is_none(),
            At::Connecting | At::Unleased => true,
            At::Formed => false,
            At::In(stage) => stage.exchange().is_some(),
        };
        if waits {
            self.halt(process, cause);
        } else if !matches!(inside.at, At::Healing { .. }) {
            inside.cut_off.get_or_insert(cause);
        }
    }
}
