//! How faults strike.

use crate::faults::{Fault, FaultKind};
use crate::net::{Ail, Ailment, Node};
use crate::objects::Trouble;
use crate::process::Stage;
use crate::queue::Ms;
use crate::world::{Doom, Ev, World};
use argosy_common::follower;
use argosy_common::ids::StateName;
use argosy_common::rules::Rules;

impl<R: Rules> World<R> {
    /// Fault number `fault` hit these nodes: what changes there within two failure budgets after its end may be its doing.
    pub(crate) fn hit(&mut self, fault: usize, nodes: Vec<Node>) {
        let lasts = self.faults.get(fault).map_or(0, |f| f.for_ms);
        let until = self.now() + lasts + 2 * self.config.failure_budget_ms;
        self.effects.injected(fault, nodes, until);
    }

    /// A living process: the one that `who` means among those there are.
    fn victim(&self, who: u32) -> Option<usize> {
        let alive: Vec<usize> = (0..self.processes.len()).filter(|p| self.processes[*p].alive).collect();
        (!alive.is_empty()).then(|| alive[who as usize % alive.len()])
    }

    fn leading(&self) -> Option<usize> {
        (0..self.coordinators.len()).find(|c| self.coordinators[*c].leads())
    }

    pub(crate) fn strike(&mut self, number: usize) {
        let fault = self.faults[number];
        let now = self.now();
        self.net.heal(now);
        self.trace.note(
            now,
            "fault",
            &[fault.kind as u64, u64::from(fault.who), fault.for_ms],
            || fault.to_string(),
        );
        match fault.kind {
            FaultKind::MemberCrash
            | FaultKind::MemberHang
            | FaultKind::MemberSlow
            | FaultKind::TrainerStuck
            | FaultKind::MemberDrain
            | FaultKind::MemberFlap
            | FaultKind::MemberOldState
            | FaultKind::NanData
            | FaultKind::NanMember
            | FaultKind::LaneUnreadable
            | FaultKind::SpotReclaim
            | FaultKind::AllGone => self.strike_members(number, fault),
            FaultKind::AbortPlan
            | FaultKind::AbortLoad
            | FaultKind::AbortEncode
            | FaultKind::AbortGather
            | FaultKind::AbortLoss
            | FaultKind::AbortBackward
            | FaultKind::AbortReduce
            | FaultKind::AbortSentinel
            | FaultKind::AbortApply => {
                let stage = stage(fault.kind);
                let doom = Doom {
                    fault: number,
                    stage,
                    who: fault.who / 2,
                    dies: fault.who.is_multiple_of(2),
                };
                self.dooms.push(doom);
            }
            FaultKind::HealSourceDies => {
                self.heal_doom = Some(number);
                // Somebody must heal for it: a fresh process joins, or somebody dies and is replaced.
                if let Some(process) = self.victim(fault.who) {
                    self.kill(process);
                }
            }
            FaultKind::CoordinatorCrash
            | FaultKind::CoordinatorPause
            | FaultKind::TwoLeaders
            | FaultKind::LeaseLost => {
                self.strike_leader(number, fault);
            }
            FaultKind::StoreCompacted => {
                let standby = (0..self.coordinators.len()).find(|c| !self.coordinators[*c].leads());
                self.etcd.compact();
                if let Some(standby) = standby {
                    self.cut(number, Node::Store, Node::Coordinator(standby), fault.for_ms);
                    self.hit(number, vec![Node::Coordinator(standby)]);
                }
                // Its revision is compacted away while it does not hear: the leader's renewal is not enough to see that.
                if let Some(leader) = self.leading().filter(|_| standby.is_some()) {
                    self.falls(leader, "killed");
                    self.etcd.forget_leader();
                    self.etcd.compact();
                }
            }
            FaultKind::StoreUnknown => self.unknown_until = (now + fault.for_ms, number),
            FaultKind::StoreDown => self.down_until = (now + fault.for_ms, number),
            FaultKind::Object503 => self.trouble = Some((Trouble::Unavailable, now + fault.for_ms, number)),
            FaultKind::ObjectSlow => {
                self.trouble = Some((Trouble::Slow(100 + fault.for_ms / 4), now + fault.for_ms, number));
            }
            FaultKind::ObjectTorn => self.trouble = Some((Trouble::Torn, now + fault.for_ms, number)),
            FaultKind::ObjectLostReply => self.trouble = Some((Trouble::LostReply, now + fault.for_ms, number)),
            FaultKind::NetDelay
            | FaultKind::NetLoss
            | FaultKind::NetDuplicate
            | FaultKind::NetReorder
            | FaultKind::Partition
            | FaultKind::PartitionOneWay
            | FaultKind::PartitionPeers
            | FaultKind::MembersUnreachable => self.strike_net(number, fault),
        }
    }

    fn strike_members(&mut self, number: usize, fault: Fault) {
        let now = self.now();
        let until = now + fault.for_ms;
        if fault.kind == FaultKind::AllGone {
            let all: Vec<usize> = (0..self.processes.len()).filter(|p| self.processes[*p].alive).collect();
            self.hit(number, all.iter().map(|p| Node::Process(*p)).collect());
            return all.into_iter().for_each(|p| self.kill(p));
        }
        let Some(process) = self.victim(fault.who) else { return };
        if self.config.spawns && matches!(fault.kind, FaultKind::MemberFlap | FaultKind::MemberOldState) {
            self.faults[number].kind = FaultKind::MemberCrash; // its successor has nothing of it: a crash, and counted as one
        }
        match fault.kind {
            FaultKind::NanData => return self.strike_numbers(number, process, fault.who, true),
            FaultKind::NanMember => return self.strike_numbers(number, process, fault.who, false),
            FaultKind::LaneUnreadable => return self.strike_rows(number, process, fault.who, until),
            _ => {}
        }
        self.hit(number, vec![Node::Process(process)]);
        let p = &mut self.processes[process];
        match fault.kind {
            FaultKind::MemberHang => p.asleep_until = p.asleep_until.max(until),
            FaultKind::MemberSlow => p.slow_until = p.slow_until.max(until),
            FaultKind::TrainerStuck => p.stuck_until = p.stuck_until.max(until),
            FaultKind::MemberDrain => self.follow(process, follower::Event::SignalReceived),
            FaultKind::SpotReclaim => {
                self.follow(process, follower::Event::SignalReceived);
                self.queue.at(until, Ev::Kill { process });
            }
            FaultKind::MemberFlap => {
                self.flapping = Some(fault.for_ms);
                self.kill(process);
            }
            FaultKind::MemberOldState => {
                self.old_states = Some(fault.who);
                self.kill(process);
            }
            _ => self.kill(process),
        }
    }

    fn strike_leader(&mut self, number: usize, fault: Fault) {
        let Some(leader) = self.leading() else { return };
        let now = self.now();
        let node = Node::Coordinator(leader);
        self.hit(number, vec![node]);
        match fault.kind {
            FaultKind::CoordinatorCrash => {
                // Of two, one may be lost with its machine: then the standby has to notice by itself.
                let others = self.coordinators.iter().filter(|c| !c.gone).count();
                self.coordinators[leader].gone = fault.who.is_multiple_of(4) && others > 1;
                self.falls(leader, "killed");
            }
            FaultKind::CoordinatorPause => {
                let until = now + fault.for_ms;
                self.coordinators[leader].asleep_until = until;
                let keep_alive = self.config.failure_budget_ms;
                if fault.for_ms > keep_alive {
                    let sessions: Vec<usize> = self.coordinators[leader].sessions.values().copied().collect();
                    for session in sessions {
                        self.break_both(session, keep_alive);
                    }
                }
            }
            _ => {
                self.cut(number, node, Node::Store, fault.for_ms);
                self.cut(number, Node::Store, node, fault.for_ms);
                if fault.kind == FaultKind::LeaseLost {
                    self.etcd.forget_leader();
                }
            }
        }
    }

    fn ailing(&mut self, fault: usize, ail: Ail, from: Option<Node>, to: Option<Node>, for_ms: Ms) {
        let until = self.now() + for_ms;
        self.net.ail(Ailment {
            fault,
            ail,
            from,
            to,
            until,
        });
    }

    fn cut(&mut self, fault: usize, from: Node, to: Node, for_ms: Ms) {
        self.ailing(fault, Ail::Cut, Some(from), Some(to), for_ms);
    }

    fn strike_net(&mut self, number: usize, fault: Fault) {
        let Some(process) = self.victim(fault.who) else { return };
        let node = Node::Process(process);
        let lasts = fault.for_ms;
        let leader = self.leading().map(Node::Coordinator);
        let other = self.victim(fault.who.wrapping_add(1)).map(Node::Process);
        self.hit(number, vec![node]);
        let ail = match fault.kind {
            FaultKind::NetDelay => Some(Ail::Delay(20 + lasts / 8)),
            FaultKind::NetLoss => Some(Ail::Loss),
            FaultKind::NetDuplicate => Some(Ail::Duplicate),
            FaultKind::NetReorder => Some(Ail::Reorder),
            _ => None,
        };
        if let Some(ail) = ail {
            self.ailing(number, ail, Some(node), None, lasts);
            self.ailing(number, ail, None, Some(node), lasts);
            return;
        }
        match (fault.kind, leader, other) {
            (FaultKind::PartitionPeers, _, Some(other)) => self.cut(number, node, other, lasts),
            (FaultKind::PartitionOneWay, Some(leader), _) if fault.who.is_multiple_of(2) => {
                self.cut(number, node, leader, lasts);
            }
            (FaultKind::PartitionOneWay, Some(leader), _) => self.cut(number, leader, node, lasts),
            (FaultKind::Partition, Some(leader), _) => {
                self.cut(number, node, leader, lasts);
                self.cut(number, leader, node, lasts);
            }
            (FaultKind::MembersUnreachable, Some(leader), _) => {
                let members: Vec<usize> = (0..self.processes.len())
                    .filter(|p| self.processes[*p].trainer.inside.is_some())
                    .collect();
                // Longer than their lease, and a spare is there to go on without them.
                let lasts = lasts + self.config.lease_ms;
                let until = self.now() + lasts + 2 * self.config.failure_budget_ms;
                let nodes = members.iter().map(|p| Node::Process(*p)).collect();
                self.effects.injected(number, nodes, until);
                for member in members {
                    self.cut(number, Node::Process(member), leader, lasts);
                    self.cut(number, leader, Node::Process(member), lasts);
                }
                if !self.config.spawns {
                    self.platform_starts(50);
                }
            }
            _ => {}
        }
    }

    /// What the process that comes after `process` starts with: the seeded state, or one of some steps ago.
    pub(crate) fn old_state(&mut self, process: usize, name: StateName, bits: u64) -> (StateName, u64) {
        let fresh = (StateName::INITIAL, crate::data::SEED_BITS);
        let Some(who) = self.old_states.take() else {
            return fresh;
        };
        let p = &self.processes[process].trainer;
        if p.dirty {
            return fresh; // a dirty state is nobody's
        }
        let back = who as usize % (p.history.len() + 1);
        p.history
            .iter()
            .rev()
            .nth(back.wrapping_sub(1))
            .copied()
            .unwrap_or((name, bits))
    }

    /// A flapping member's successor dies soon, too.
    pub(crate) fn inherits(&mut self, _process: usize, next: usize) {
        self.processes[next].flaps = self.flapping.take();
    }
}

fn stage(kind: FaultKind) -> Stage {
    match kind {
        FaultKind::AbortPlan => Stage::Plan,
        FaultKind::AbortEncode => Stage::Encode,
        FaultKind::AbortGather => Stage::Gather,
        FaultKind::AbortLoss => Stage::Loss,
        FaultKind::AbortBackward => Stage::Backward,
        FaultKind::AbortReduce => Stage::Reduce,
        FaultKind::AbortSentinel => Stage::Sentinel,
        FaultKind::AbortApply => Stage::Apply,
        _ => Stage::Load,
    }
}
