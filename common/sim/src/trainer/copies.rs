//! Copies of the state for checkpoints, and their way to the object store.

use crate::objects::{Object, Put, Trouble};
use crate::process::Upload;
use crate::world::{Ev, World};
use argosy_common::events::{FromWorker, PartFailure, PartInfo};
use argosy_common::follower::Event;
use argosy_common::rules::Rules;

/// An upload is tried so often.
const TRIES_MAX: u32 = 8;

impl<R: Rules> World<R> {
    pub(super) fn copy_if_due(&mut self, process: usize) {
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
    pub(super) fn drop_checkpoint(&mut self, process: usize) {
        if let Some(order) = self.processes[process].trainer.checkpoint.take() {
            let reason = format!("p{process} left the generation before its boundary");
            self.part_failed(process, order.attempt, PartFailure::Late, reason);
        }
    }

    pub(super) fn trouble_now(&self) -> Option<Trouble> {
        self.trouble
            .filter(|(_, until, _)| *until > self.now())
            .map(|(t, _, _)| t)
    }

    pub(super) fn part_failed(&mut self, process: usize, attempt: u64, failure: PartFailure, reason: String) {
        let failed = FromWorker::PartFailed {
            attempt,
            failure,
            reason,
        };
        self.follow(process, Event::Passed(failed));
    }

    /// Parts of a copied state, own ones or those of a lost owner, go on their way.
    pub(super) fn upload_parts(&mut self, process: usize, attempt: u64, parts: Vec<u32>) {
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
}
