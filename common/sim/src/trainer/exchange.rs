//! Exchanges between all members of a generation, fenced frame by frame; and who dies in the middle of one.

use crate::net::Node;
use crate::process::{At, Exchange, FRAMES_MAX, Frame, Stage};
use crate::queue::Ms;
use crate::world::{Ev, World};
use argosy_common::follower::Event;
use argosy_common::rules::Rules;
use std::collections::BTreeMap;

impl<R: Rules> World<R> {
    /// Sends this exchange's frames to all members and waits for theirs. Half of those doomed here die between two sends.
    pub(super) fn reach(&mut self, process: usize, exchange: Exchange, sum: u64) {
        let bad = match exchange {
            Exchange::Gather => self.not_finite_lanes(process),
            _ => Vec::new(),
        };
        let trainer = &mut self.processes[process].trainer;
        let step = trainer.name.step;
        let Some(inside) = &mut trainer.inside else { return };
        inside.at = match exchange {
            Exchange::Connect => At::Connecting,
            Exchange::Gather => At::In(Stage::Gather),
            Exchange::Lse => At::In(Stage::Lse),
            Exchange::Reduce => At::In(Stage::Reduce),
            Exchange::Sentinel => At::In(Stage::Sentinel),
        };
        let mine = |lane: &u32| inside.plan.lanes[*lane as usize] as usize == inside.rank;
        inside.entered += u32::from(exchange != Exchange::Connect);
        let data = &self.data;
        let lanes = if exchange == Exchange::Gather {
            (0..inside.plan.lanes.len() as u32)
                .filter(mine)
                .map(|q| (q, data.digest(step, q)))
                .collect()
        } else {
            Vec::new()
        };
        let frame = Frame {
            fence: inside.fence(step),
            exchange,
            from: process,
            lanes,
            bad,
            sum,
        };
        let peers = inside.peers.clone();
        let at = inside.at.clone();
        let doomed = match at {
            At::In(stage) => self.doomed(process, stage),
            At::Connecting => self.doomed(process, Stage::Plan),
            _ => None,
        };
        let reached = match doomed {
            Some(_) => self.draws.below(peers.len() as u64 + 1) as usize,
            None => peers.len(),
        };
        for to in peers.into_iter().take(reached) {
            self.send_frame(process, to, frame.clone());
        }
        if let Some((fault, dies)) = doomed {
            self.doom_comes(process, fault, dies, 0);
        }
    }

    pub(super) fn send_frame(&mut self, from: usize, to: usize, frame: Frame) {
        let now = self.now();
        let frame = Box::new(frame);
        if from == to {
            self.queue.after(0, Ev::Frame { to, frame });
            return;
        }
        let mut touched = Vec::new();
        let fate = self
            .net
            .carry(Node::Process(from), Node::Process(to), now, &mut touched);
        let at = fate.cut_until.unwrap_or(now) + fate.delay;
        if at > now + 50 {
            for fault in touched {
                self.effects.credit(fault, &self.faults);
            }
        }
        if let Some(again) = fate.again {
            let frame = frame.clone();
            self.queue.at(at + again, Ev::Frame { to, frame });
        }
        self.queue.at(at, Ev::Frame { to, frame });
    }

    pub(crate) fn frame_arrives(&mut self, to: usize, frame: Frame) {
        let Some(p) = self.processes.get_mut(to).filter(|p| p.alive) else {
            return;
        };
        if p.frames.len() >= FRAMES_MAX {
            p.frames.pop_front();
        }
        p.frames.push_back(frame);
        self.look(to);
    }

    /// Goes on if the exchange that is waited for is complete.
    pub(super) fn look(&mut self, process: usize) {
        let p = &self.processes[process];
        let Some(inside) = &p.trainer.inside else { return };
        let exchange = match &inside.at {
            At::Connecting => Exchange::Connect,
            At::In(stage) => match stage.exchange() {
                Some(exchange) => exchange,
                None => return,
            },
            At::Healing { .. } | At::Formed | At::Unleased => return,
        };
        let step = p.trainer.name.step;
        let Some(frames) = p.exchange_frames(exchange, step) else {
            return;
        };
        let sum = frames.iter().fold(0u64, |sum, f| sum.wrapping_add(f.sum));
        let lanes: BTreeMap<u32, u64> = frames.iter().flat_map(|f| f.lanes.iter().copied()).collect();
        let mut bad: Vec<u32> = frames.iter().flat_map(|f| f.bad.iter().copied()).collect();
        bad.sort_unstable();
        bad.dedup();
        let world = frames.len() as u64;
        let (fence, generation) = (inside.fence(step), inside.plan.generation);
        let all_lanes = inside.plan.lanes.len();
        let used = |f: &Frame| f.exchange == exchange && R::accepts_frame(fence, f.fence);
        let p = &mut self.processes[process];
        p.frames.retain(|f| !used(f));
        let Some(inside) = p.trainer.inside.as_mut() else {
            return;
        };
        match exchange {
            Exchange::Connect => {
                inside.at = At::Formed;
                self.follow(process, Event::TrainerFormed { generation });
            }
            Exchange::Gather => {
                inside.gathered = (0..all_lanes as u32)
                    .map(|q| lanes.get(&q).copied().unwrap_or(0))
                    .collect();
                if !bad.is_empty() && !inside.skips(step) {
                    return self.found_not_finite(process, bad);
                }
                self.work(process, Stage::Loss);
            }
            Exchange::Lse => self.work(process, Stage::Backward),
            Exchange::Reduce => {
                inside.reduced = sum;
                self.reach(process, Exchange::Sentinel, 1);
            }
            Exchange::Sentinel => {
                if sum != world {
                    return self.halt(process, Some("the sentinel's sum is not the number of ranks".into()));
                }
                self.apply_if_leased(process);
            }
        }
    }

    /// Whether somebody is doomed in this stage, and it is this process.
    pub(super) fn doomed(&mut self, process: usize, stage: Stage) -> Option<(usize, bool)> {
        let members = self.processes[process]
            .trainer
            .inside
            .as_ref()
            .map_or(1, |i| i.peers.len());
        let rank = self.processes[process].trainer.inside.as_ref().map_or(0, |i| i.rank);
        let same = |s: Stage| s == stage || (s == Stage::Loss && stage == Stage::Lse);
        let at = self
            .dooms
            .iter()
            .position(|d| same(d.stage) && d.who as usize % members == rank)?;
        let doom = self.dooms.remove(at);
        Some((doom.fault, doom.dies))
    }

    /// It dies in the middle of it, or all its connections are reset.
    pub(super) fn doom_comes(&mut self, process: usize, fault: usize, dies: bool, wait: Ms) {
        self.hit(fault, vec![Node::Process(process)]);
        let Some(inside) = &self.processes[process].trainer.inside else {
            return;
        };
        let generation = inside.plan.generation;
        if dies {
            self.queue.after(wait, Ev::Kill { process });
            return;
        }
        for to in inside.peers.clone() {
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
