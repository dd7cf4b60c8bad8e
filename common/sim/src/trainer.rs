//! The toy trainer: the phases of a step, exchanges between members, heals, checkpoints. It obeys as the real one does:
//! orders are looked at between steps, a collective is cut off from outside, an APPLY under way is finished first.

use crate::data::{SEED_BITS, next_bits};
use crate::net::Node;
use crate::objects::{Object, Put, Trouble};
use crate::process::{At, CopyOrder, Exchange, FRAMES_MAX, Frame, Inside, Stage, Upload};
use crate::queue::Ms;
use crate::world::{Ev, World};
use argosy_common::events::{FromWorker, PartFailure, PartInfo, StepReport};
use argosy_common::follower::{Event, TrainerOrder};
use argosy_common::ids::{Generation, StateName};
use argosy_common::invariants::{clean_source, counts_add_up, lease_held};
use argosy_common::plan::{Plan, StateSource};
use argosy_common::rules::Rules;
use argosy_common::steplog::{STEP_LOG_VERSION, StepRecord};
use std::collections::BTreeMap;

/// States kept for members that come back with an old one.
const HISTORY_MAX: usize = 8;
/// An upload is tried so often.
const TRIES_MAX: u32 = 8;

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

    /// Asks somebody for the base state.
    fn heal(&mut self, process: usize) {
        let Some(inside) = &self.processes[process].trainer.inside else {
            return;
        };
        let (base, token) = (inside.plan.base, self.processes[process].trainer.token);
        let slow = match self.trouble {
            Some((Trouble::Slow(more), until, _)) if until > self.now() => more,
            _ => 0,
        };
        let (took, source, wait) = match &inside.plan.source {
            StateSource::Seed => (Some((StateName::INITIAL, SEED_BITS)), None, 5),
            StateSource::Manifest { key } => (self.load(&key.clone(), base), None, 30 + slow),
            StateSource::Peers => {
                let holders: Vec<usize> = inside
                    .plan
                    .members
                    .iter()
                    .zip(&inside.peers)
                    .filter(|(m, _)| !m.heals)
                    .map(|(_, p)| *p)
                    .collect();
                let start = inside.rank;
                let ready = |p: &usize| self.gives(*p, process, base).is_some();
                let source = (0..holders.len())
                    .map(|i| holders[(start + i) % holders.len()])
                    .find(ready);
                (source.and_then(|s| self.gives(s, process, base)), source, 40)
            }
        };
        let trainer = &mut self.processes[process].trainer;
        if let Some(inside) = &mut trainer.inside {
            inside.at = At::Healing { source };
        }
        if R::heals_in_place() && source.is_some() {
            trainer.bits = !trainer.bits; // half written: neither the old state nor the new one
        }
        if let (Some(source), Some(fault)) = (source, self.heal_doom) {
            self.heal_doom = None;
            self.hit(fault, vec![Node::Process(source)]);
            self.queue.after(wait / 2, Ev::Kill { process: source });
        }
        let wait = wait + self.draws.below(40);
        self.queue.after(wait, Ev::HealDone { process, token, took });
    }

    /// The state that `source` shows to `asker`: clean, of that name, in the same generation, not training yet.
    fn gives(&self, source: usize, asker: usize, base: StateName) -> Option<(StateName, u64)> {
        let wanted = self.processes[asker].trainer.inside.as_ref()?.plan_hash;
        let p = self
            .processes
            .get(source)
            .filter(|p| p.alive && p.asleep_until <= self.now())?;
        let inside = p
            .trainer
            .inside
            .as_ref()
            .filter(|i| i.plan_hash == wanted && !i.running)?;
        let cut = self.net.is_cut(Node::Process(source), Node::Process(asker), self.now());
        let shown = !p.trainer.dirty && !matches!(inside.at, At::Healing { .. }) && !cut;
        (shown && R::holds(p.trainer.name, base)).then_some((p.trainer.name, p.trainer.bits))
    }

    /// The state that a manifest names, if manifest and all parts can be read whole.
    fn load(&mut self, key: &str, base: StateName) -> Option<(StateName, u64)> {
        let trouble = self.trouble_now();
        let read = self.objects.get(key, trouble);
        if read.is_err()
            && let Some((_, _, fault)) = self.trouble
        {
            self.effects.credit(fault, &self.faults);
        }
        let manifest = read.ok()?;
        if manifest.name != base {
            self.violate("INV8", format!("{key} is of {}, the plan says {base}", manifest.name));
            return None;
        }
        let attempt = key.split('/').next().unwrap_or_default();
        let parts = self.config.parts;
        let whole = (0..parts).all(|i| {
            let part = self.objects.get(&format!("{attempt}/{i}"), trouble);
            part.is_ok_and(|p| p.name == manifest.name && p.bits == manifest.bits)
        });
        whole.then_some((manifest.name, manifest.bits))
    }

    fn trouble_now(&self) -> Option<Trouble> {
        self.trouble
            .filter(|(_, until, _)| *until > self.now())
            .map(|(t, _, _)| t)
    }

    pub(crate) fn heal_done(&mut self, process: usize, token: u64, took: Option<(StateName, u64)>) {
        let now = self.now();
        let trainer = &self.processes[process].trainer;
        if trainer.token != token || !self.processes[process].alive {
            return;
        }
        let Some(inside) = &trainer.inside else { return };
        let At::Healing { source } = inside.at else { return };
        let base = inside.plan.base;
        let (generation, plan_source) = (inside.plan.generation, inside.plan.source.clone());
        let still_there = source.is_none_or(|s| self.gives(s, process, base).is_some());
        if let (Some(source), true) = (source, still_there && took.is_some()) {
            let from = &self.processes[source].trainer;
            let holds = (!from.dirty).then_some(from.name);
            self.holds_to(clean_source(base, holds));
        }
        let Some((name, bits)) = took.filter(|_| still_there) else {
            if source.is_some() {
                // The own state is as it was: heals go into a second buffer (rule G7).
                return self.halt(process, Some("the source of the state is gone".into()));
            }
            self.processes[process].trainer.token += 1;
            return self.heal(process);
        };
        let peer = source.and_then(|s| self.processes[s].worker);
        let from = match (peer, plan_source) {
            (Some(peer), _) => peer.to_string(),
            (None, StateSource::Seed) => "seed".to_owned(),
            (None, _) => "manifest".to_owned(),
        };
        let trainer = &mut self.processes[process].trainer;
        trainer.name = name;
        trainer.bits = bits;
        self.trace
            .note(now, "healed", &[process as u64, name.step, name.applied_gen.0], || {
                format!("p{process} to {name} from {from}")
            });
        let record = StepRecord::Healed {
            name,
            gen_: generation,
            from,
        };
        self.log(process, record);
        self.holds(process);
        self.reach(process, Exchange::Connect, 0);
    }

    pub(crate) fn log(&mut self, process: usize, record: StepRecord) {
        if let StepRecord::Applied { name, .. } | StepRecord::Healed { name, .. } = &record {
            self.processes[process].trainer.logged.insert(*name);
        }
        let p = &mut self.processes[process];
        if let Some(worker) = p.worker {
            let log = self.logs.entry(worker.to_string()).or_default();
            // Only one that begins with nothing says so: an old state has no line of its own.
            if std::mem::take(&mut p.log_opens) {
                log.push(StepRecord::Opened {
                    version: STEP_LOG_VERSION,
                    worker: worker.0,
                    pid: process as u32,
                });
            }
            log.push(record);
        }
    }

    /// Sends this exchange's frames to all members and waits for theirs. Half of those doomed here die between two sends.
    fn reach(&mut self, process: usize, exchange: Exchange, sum: u64) {
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

    fn send_frame(&mut self, from: usize, to: usize, frame: Frame) {
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
    fn look(&mut self, process: usize) {
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

    /// Behind a complete sentinel: APPLY, if the step lease allows it; else waits in place (rule G5).
    fn apply_if_leased(&mut self, process: usize) {
        let p = &mut self.processes[process];
        let now = self.queue.now() + p.clock;
        let (leased, until) = p.trainer.lease;
        let Some(inside) = &mut p.trainer.inside else { return };
        let generation = inside.plan.generation;
        if !self.config.leases || R::lease_allows(leased, generation, until, now) {
            if self.config.leases {
                self.holds_to(lease_held(generation, leased, until, now));
            }
            return self.work(process, Stage::Apply);
        }
        inside.at = At::Unleased;
    }

    /// The follower has a lease for its trainer, or takes one away.
    pub(crate) fn leased(&mut self, process: usize, generation: Generation, until: Ms) {
        let trainer = &mut self.processes[process].trainer;
        trainer.lease = (generation, until);
        if trainer.inside.as_ref().is_some_and(|i| i.at == At::Unleased) {
            self.apply_if_leased(process);
        }
    }

    /// Begins a stage of the trainer's own work.
    fn work(&mut self, process: usize, stage: Stage) {
        let now = self.now();
        let doomed = self.doomed(process, stage);
        let p = &mut self.processes[process];
        let slow = if p.slow_until > now { 8 } else { 1 };
        p.trainer.token += 1;
        p.trainer.dirty = stage == Stage::Apply;
        let token = p.trainer.token;
        let Some(inside) = &mut p.trainer.inside else { return };
        inside.at = At::In(stage);
        if stage == Stage::Load {
            inside.entered = 0;
        }
        let wait: Ms = (self.config.step_ms * stage.percent() * slow / 100).max(1);
        let jitter = self.draws.below(wait / 4 + 1);
        self.queue.after(wait + jitter, Ev::WorkDone { process, token });
        if let Some((fault, dies)) = doomed {
            self.doom_comes(process, fault, dies, wait / 2);
        }
    }

    pub(crate) fn work_done(&mut self, process: usize, token: u64) {
        let p = &mut self.processes[process];
        if !p.alive || p.trainer.token != token {
            return;
        }
        let Some(inside) = &mut p.trainer.inside else { return };
        let At::In(stage) = inside.at else { return };
        if stage == Stage::Apply {
            return self.apply(process);
        }
        if let Some(cause) = inside.cut_off.take() {
            return self.halt(process, cause);
        }
        let blocked = stage == Stage::Load && self.lane_waits(process, token);
        let p = &mut self.processes[process];
        let Some(inside) = &mut p.trainer.inside else { return };
        match stage {
            Stage::Load if blocked => {}
            Stage::Load => self.work(process, Stage::Encode),
            Stage::Encode => self.reach(process, Exchange::Gather, 0),
            Stage::Loss => self.reach(process, Exchange::Lse, 0),
            Stage::Backward => {
                let step = p.trainer.name.step;
                let (lanes, ledger) = (inside.plan.lanes_of(inside.rank), &inside.plan.quarantine);
                let part = lanes
                    .into_iter()
                    .fold(0u64, |sum, q| sum.wrapping_add(self.data.part(step, q, ledger)));
                self.reach(process, Exchange::Reduce, part);
            }
            _ => {}
        }
    }

    fn apply(&mut self, process: usize) {
        let now = self.now();
        let trainer = &mut self.processes[process].trainer;
        let Some(inside) = &trainer.inside else { return };
        let generation = inside.plan.generation;
        let name = StateName {
            step: trainer.name.step + 1,
            applied_gen: generation,
        };
        trainer.history.push_back((trainer.name, trainer.bits));
        if trainer.history.len() > HISTORY_MAX {
            trainer.history.pop_front();
        }
        let before = trainer.name;
        let skipped = inside.plan.skip.clone().filter(|_| inside.skips(before.step));
        for _ in 0..R::applies() {
            if skipped.is_none() {
                trainer.bits = next_bits(trainer.bits, inside.reduced, inside.plan_hash);
            }
        }
        let masked = self.data.left_out(before.step, &inside.plan.quarantine);
        trainer.name = name;
        trainer.dirty = false;
        let lanes = inside.gathered.clone();
        let plan_hash = inside.plan_hash;
        let positions = self.shape.positions_before(name.step) - self.shape.positions_before(name.step - 1);
        let valid = positions.saturating_sub(masked.len() as u64);
        let (trained, passed) = if skipped.is_some() { (0, valid) } else { (valid, 0) };
        self.holds_to(counts_add_up(positions, trained, 0, masked.len() as u64, passed));
        self.poison_passes(name.step);
        let loss = skipped.is_none().then_some(1.0);
        self.trace
            .note(now, "applied", &[process as u64, name.step, generation.0], || {
                let over = skipped.as_deref().map(|s| format!(", passed over: {s}"));
                format!("p{process} {name}{}", over.unwrap_or_default())
            });
        self.applied(process, before, name, plan_hash);
        let record = StepRecord::Applied {
            name,
            plan_hash,
            lanes,
            valid: valid as u32,
            masked,
            skipped,
            loss,
        };
        self.log(process, record);
        let report = StepReport {
            generation,
            name,
            loss,
            valid: valid as u32,
            phase_ms: BTreeMap::from([("step".to_string(), self.config.step_ms as f32)]),
            ..StepReport::default()
        };
        self.follow(process, Event::Stepped { report });
        self.boundary(process);
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
            self.effect(Some(Node::Process(process)));
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

    fn copy_if_due(&mut self, process: usize) {
        let trainer = &mut self.processes[process].trainer;
        let (name, bits) = (trainer.name, trainer.bits);
        let Some(order) = trainer.checkpoint.take_if(|o| o.at_step <= name.step) else {
            return;
        };
        let attempt = order.attempt;
        if order.at_step < name.step {
            let reason = format!("p{process} is past step {}", order.at_step);
            return self.part_failed(process, attempt, PartFailure::Late, reason);
        }
        trainer.copied = Some((attempt, name, bits));
        self.upload_parts(process, attempt, order.parts);
    }

    /// An order that will not be carried out is told of: its attempt would wait for the parts for ever.
    fn drop_checkpoint(&mut self, process: usize) {
        if let Some(order) = self.processes[process].trainer.checkpoint.take() {
            let reason = format!("p{process} left the generation before its boundary");
            self.part_failed(process, order.attempt, PartFailure::Late, reason);
        }
    }

    fn part_failed(&mut self, process: usize, attempt: u64, failure: PartFailure, reason: String) {
        let failed = FromWorker::PartFailed {
            attempt,
            failure,
            reason,
        };
        self.follow(process, Event::Passed(failed));
    }

    /// Parts of a copied state, own ones or those of a lost owner, go on their way.
    fn upload_parts(&mut self, process: usize, attempt: u64, parts: Vec<u32>) {
        let copied = self.processes[process].trainer.copied;
        let Some((_, name, bits)) = copied.filter(|c| c.0 == attempt) else {
            let reason = format!("p{process} has no copy");
            return self.part_failed(process, attempt, PartFailure::Store, reason);
        };
        for index in parts {
            let key = format!("{attempt}/{index}");
            let part = PartInfo {
                index,
                key,
                bytes: 1,
                checksum: bits,
            };
            let upload = Box::new(Upload {
                attempt,
                part,
                name,
                bits,
                tries: 0,
            });
            let wait = 10 + self.draws.below(30);
            self.queue.after(wait, Ev::Uploading { process, upload });
        }
    }

    pub(crate) fn upload(&mut self, process: usize, mut upload: Upload) {
        if !self.processes[process].alive {
            return;
        }
        let trouble = self.trouble_now();
        let object = Object {
            name: upload.name,
            bits: upload.bits,
            whole: true,
        };
        let slow = match trouble {
            Some(Trouble::Slow(more)) if upload.tries == 0 => more,
            _ => 0,
        };
        if (slow > 0 || matches!(trouble, Some(Trouble::Unavailable | Trouble::Torn | Trouble::LostReply)))
            && let Some((_, _, fault)) = self.trouble
        {
            self.effects.credit(fault, &self.faults);
        }
        let done = slow == 0 && self.objects.put(&upload.part.key, object, false, trouble) == Put::Stored;
        let Upload {
            attempt,
            ref part,
            name,
            ..
        } = upload;
        if done {
            let part = part.clone();
            self.follow(process, Event::Passed(FromWorker::PartUploaded { attempt, part, name }));
        } else if upload.tries >= TRIES_MAX {
            let reason = "the object store does not take it".into();
            self.part_failed(process, attempt, PartFailure::Store, reason);
        } else {
            upload.tries += 1;
            let wait = slow + (50 << upload.tries.min(6));
            self.queue.after(
                wait,
                Ev::Uploading {
                    process,
                    upload: Box::new(upload),
                },
            );
        }
    }

    /// Whether somebody is doomed in this stage, and it is this process.
    fn doomed(&mut self, process: usize, stage: Stage) -> Option<(usize, bool)> {
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
    fn doom_comes(&mut self, process: usize, fault: usize, dies: bool, wait: Ms) {
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
