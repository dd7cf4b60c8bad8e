//! A checkpoint's copy, at the boundary it was ordered for.

use super::{BatchSource, CheckpointOrder, Trainer};
use crate::checkpoint::{UploadJob, parts_total};
use crate::engine::Engine;
use argosy_common::events::{FromWorker, PartFailure};
use argosy_common::follower::Event;
use argosy_common::ids::StateName;

impl<E: Engine, S: BatchSource> Trainer<E, S> {
    /// Begins to copy the ordered parts if the state is the ordered one. The copy runs beside the next step, whose APPLY
    /// waits for it (rule K2).
    pub(super) fn checkpoint_if_due(&mut self, name: StateName) {
        let Some(order) = self.checkpoint.take_if(|order| order.at_step <= name.step) else {
            return;
        };
        let attempt = order.attempt;
        if order.at_step < name.step {
            let why = format!("the order for step {} came at step {}", order.at_step, name.step);
            self.part_failed(attempt, PartFailure::Late, why);
        } else if let Err(why) = self.begin_checkpoint(order, name) {
            self.part_failed(attempt, PartFailure::Store, why);
        }
    }

    /// An order that will not be carried out is told of: its attempt would wait for the parts for ever.
    pub(super) fn drop_checkpoint(&mut self, why: &str) {
        if let Some(order) = self.checkpoint.take() {
            self.part_failed(order.attempt, PartFailure::Late, why.into());
        }
    }

    fn begin_checkpoint(&mut self, order: CheckpointOrder, name: StateName) -> Result<(), String> {
        let total = parts_total(self.engine.state_len());
        if total != order.parts_total {
            return Err(format!(
                "a checkpoint of this model has {total} parts, not {}",
                order.parts_total
            ));
        }
        let log = self.history.since(order.since, name.step)?;
        // The parent is committed: nobody asks for what led to it again.
        self.history.forget(order.since);
        if order.parts.is_empty() && order.spare.is_empty() {
            return Ok(());
        }
        self.setup.failpoint.hit("checkpoint", name.step);
        self.uploader.upload(UploadJob {
            run: self.setup.run.clone(),
            attempt: order.attempt,
            name,
            parts: order.parts,
            spare: order.spare,
            reader: self.engine.state_reader(),
            layout: self.layout.clone(),
            log,
        })
    }

    fn part_failed(&self, attempt: u64, failure: PartFailure, reason: String) {
        self.emit(Event::Passed(FromWorker::PartFailed {
            attempt,
            failure,
            reason,
        }));
    }
}
