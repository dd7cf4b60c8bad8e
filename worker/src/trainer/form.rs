//! Entering a generation: the base state first, then the ring.

use super::{BatchSource, Halt, Held, InGeneration, Trainer};
use crate::collective::{AbortHandle, Collective, ring::RingCollective};
use crate::engine::Engine;
use crate::peer::{self, Hello, Purpose, Snapshot, Wanted};
use argosy_common::events::FromWorker;
use argosy_common::exit::Exit;
use argosy_common::follower::Event;
use argosy_common::hash::digest64;
use argosy_common::ids::Generation;
use argosy_common::plan::{Member, Plan, StateSource, generation_secret};
use argosy_common::steplog::StepRecord;
use argosy_rpc::frame::Fence;
use std::sync::{Arc, Mutex};

impl<E: Engine, S: BatchSource> Trainer<E, S> {
    pub(super) fn form(&mut self, plan: Plan) -> Result<InGeneration, Halt> {
        let generation = plan.generation;
        let abort = self.setup.aborts.open(generation);
        let Some(rank) = plan.rank_of(self.setup.worker) else {
            return Err(Halt::left(format!(
                "{} is no member of {generation}",
                self.setup.worker
            )));
        };
        self.server.close(Generation(generation.0.saturating_sub(1)));
        // Batches are made while states travel.
        self.source.leave_out(&plan.quarantine);
        self.source.assign(&plan.lanes_of(rank), plan.base.step);
        let plan_hash = plan.hash();
        let fence = Fence {
            run: digest64(plan.run.as_bytes()),
            generation: generation.0,
            plan: plan_hash,
            step: plan.base.step,
        };
        if plan.members[rank].heals {
            self.heal(&plan, fence, &abort)?;
        } else if self.held != Held::Clean(plan.base) {
            let why = format!("the plan takes {:?} for {}; it has to heal", self.held, plan.base);
            return Err(Halt::left(why));
        } else if plan.source == StateSource::Peers && plan.members.iter().any(|m| m.heals) {
            self.post_snapshot(&plan, fence);
        }
        let collective = self.join_ring(&plan, rank, fence, &abort)?;
        tracing::info!(%generation, rank, members = plan.members.len(), base = %plan.base, "formed");
        Ok(InGeneration {
            plan,
            plan_hash,
            rank,
            collective,
            abort,
            running: false,
            stop_after: None,
        })
    }

    fn post_snapshot(&self, plan: &Plan, fence: Fence) {
        self.server.post(
            plan.generation,
            Arc::new(Snapshot {
                fence,
                name: plan.base,
                state: Mutex::new(self.engine.state_reader()),
                bytes: self.engine.state_len(),
                hash: self.engine.state_hash(),
                log: self.history.whole(),
            }),
        );
    }

    /// Takes over the base state: into a second buffer, checked whole, then swapped in (rule G7).
    fn heal(&mut self, plan: &Plan, fence: Fence, abort: &AbortHandle) -> Result<(), Halt> {
        self.setup.failpoint.hit("heal", plan.base.step);
        let from = match &plan.source {
            StateSource::Seed => {
                let fresh = (self.setup.make_engine)()?;
                self.engine = fresh;
                self.history.clear();
                "seed".to_owned()
            }
            StateSource::Manifest { key } => {
                let bytes = self.restore(key, plan)?;
                self.take_over(&bytes, plan)?;
                self.history.clear();
                "manifest".to_owned()
            }
            StateSource::Peers => self.heal_from_peers(plan, fence, abort)?,
        };
        self.held = Held::Clean(plan.base);
        let record = StepRecord::Healed {
            name: plan.base,
            gen_: plan.generation,
            from,
        };
        self.write_log(&record)
    }

    /// Takes slices from all holders at once, each healing member beginning with another one.
    fn heal_from_peers(&mut self, plan: &Plan, fence: Fence, abort: &AbortHandle) -> Result<String, Halt> {
        let mut holders: Vec<&Member> = plan.holders().collect();
        if holders.is_empty() {
            return Err(Halt::left(format!("nobody in {} holds {}", plan.generation, plan.base)));
        }
        let first = plan.rank_of(self.setup.worker).unwrap_or(0) % holders.len();
        holders.rotate_left(first);
        let addresses: Vec<String> = holders.iter().map(|m| m.addr.clone()).collect();
        let wanted = Wanted {
            holders: &addresses,
            fence,
            secret: generation_secret(&self.setup.run_secret, plan.generation),
            tls: self.server.tls(),
            bytes: self.engine.state_len(),
        };
        let fetched = peer::fetch(wanted, abort)?;
        self.take_over(&fetched.bytes, plan)?;
        self.history.take_over(&fetched.log).map_err(Halt::left)?;
        let from = fetched.from.iter().filter_map(|i| holders.get(*i));
        let from: Vec<String> = from.map(|m| m.worker.to_string()).collect();
        Ok(from.join(","))
    }

    /// Reads the base state from its checkpoint. One that is damaged is no reason to end the run: the coordinator is told,
    /// and has older ones.
    fn restore(&self, key: &str, plan: &Plan) -> Result<Vec<u8>, Halt> {
        let restored = crate::checkpoint::restore(self.uploader.store(), key, plan.base, &self.layout);
        restored.map_err(|error| {
            let reason = error.to_string();
            tracing::error!(key, reason, "the checkpoint cannot be read");
            self.emit(Event::Passed(FromWorker::RestoreFailed {
                key: key.to_owned(),
                damaged: error.is_damage(),
                reason: reason.clone(),
            }));
            Halt::left(reason)
        })
    }

    /// Swaps in what was checked whole before.
    fn take_over(&mut self, bytes: &[u8], plan: &Plan) -> Result<(), Halt> {
        let before = std::mem::replace(&mut self.held, Held::Dirty);
        match self.engine.import_state(bytes, None) {
            Ok(()) => {
                self.held = Held::Clean(plan.base);
                Ok(())
            }
            Err(error) => {
                self.held = before; // an engine checks everything before it writes anything
                Err(error.into())
            }
        }
    }

    fn join_ring(
        &self,
        plan: &Plan,
        rank: usize,
        fence: Fence,
        abort: &AbortHandle,
    ) -> Result<Box<dyn Collective>, Halt> {
        let size = plan.members.len();
        if size == 1 {
            return Ok(Box::new(RingCollective::alone(fence, abort.clone())));
        }
        let secret = generation_secret(&self.setup.run_secret, plan.generation);
        let hello = Hello {
            generation: plan.generation,
            secret,
            purpose: Purpose::Ring { from_rank: rank as u32 },
        };
        let next = peer::connect(&plan.members[(rank + 1) % size].addr, &hello, self.server.tls(), abort)?;
        let prev = self
            .server
            .take_ring(plan.generation, ((rank + size - 1) % size) as u32, abort)?;
        let ring = RingCollective::new(rank, size, fence, next, prev, abort.clone())
            .map_err(|e| Halt::left(format!("the ring's sockets: {e}")))?;
        Ok(Box::new(ring))
    }

    /// A log that cannot be written ends the run here: a state whose history is lost must not be shown (rule AU1).
    pub(super) fn write_log(&mut self, record: &StepRecord) -> Result<(), Halt> {
        match self.log.write(record) {
            Ok(line) => {
                self.history.note(record, line);
                Ok(())
            }
            Err(e) => Err(Halt::Failed {
                exit: Exit::JobFailed,
                message: format!("the step log {} cannot be written: {e}", self.log.path().display()),
            }),
        }
    }
}
