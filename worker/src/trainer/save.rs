//! A checkpoint's copy, at the boundary it was ordered for.

use super::{BatchSource, Trainer};
use crate::checkpoint::{UploadJob, parts_total};
use crate::engine::Engine;
use argosy_common::events::FromWorker;
use argosy_common::follower::Event;
use argosy_common::ids::StateName;

impl<E: Engine, S: BatchSource> Trainer<E, S> {
    /// Copies the ordered parts if the state is the ordered one; what follows happens on another thread.
    pub(super) fn checkpoint_if_due(&mut self, name: StateName) {
        let Some(order) = self.checkpoint.take_if(|order| order.at_step <= name.step) else {
            return;
        };
        let attempt = order.attempt;
        let failed = |reason: String| Event::Passed(FromWorker::PartFailed { attempt, reason });
        if order.at_step < name.step {
            self.emit(failed(format!(
                "the order for step {} came at step {}",
                order.at_step, name.step
            )));
            return;
        }
        let total = parts_total(self.engine.state_elements(), self.engine.state_arrays());
        if total != order.parts_total {
            self.emit(failed(format!(
                "this model's state has {total} parts, not {}",
                order.parts_total
            )));
            return;
        }
        if order.parts.is_empty() {
            return;
        }
        self.setup.failpoint.hit("checkpoint", name.step);
        let mut state = Vec::new();
        self.engine.export_state(&mut state);
        let run = self.setup.run.clone();
        let job = UploadJob {
            run,
            attempt,
            name,
            parts: order.parts,
            state,
            table: self.engine.tensor_table(),
        };
        if let Err(reason) = self.uploader.upload(job) {
            self.emit(failed(reason));
        }
    }
}
