//! What a coordinator writes: transactions on the metadata store, manifests in the object store.

use crate::etcd::{Op, Reply};
use crate::net::Node;
use crate::objects::{Object, Put, Trouble};
use crate::queue::Ms;
use crate::world::{Ev, World};
use argosy_common::conductor::Event;
use argosy_common::ids::StateName;
use argosy_common::rules::Rules;

/// A transaction without an answer for so long has an unknown outcome.
const ANSWER_MS: Ms = 1_500;
/// A commit that takes longer was delayed.
const COMMIT_LATE_MS: Ms = 40;

impl<R: Rules> World<R> {
    /// Sends a transaction to the store.
    pub(crate) fn ask(&mut self, coordinator: usize, op: Op) {
        let life = self.coordinators[coordinator].life;
        let wait = 1 + self.draws.below(4);
        self.queue.after(wait, Ev::Request { coordinator, life, op });
    }

    pub(crate) fn request(&mut self, coordinator: usize, life: u32, op: Op) {
        let now = self.now();
        let answer = |op, reply| Ev::Answer {
            coordinator,
            life,
            op,
            reply,
            sent: now,
        };
        let node = Node::Coordinator(coordinator);
        let append = matches!(op, Op::Append { .. });
        let cut = self.net.is_cut(node, Node::Store, now);
        let (down, fault) = self.down_until;
        if cut || down > now {
            let until = if down > now { down } else { now + ANSWER_MS };
            if down > now && append {
                self.effects.credit(fault, &self.faults);
            }
            let in_time = until - now < ANSWER_MS && !cut;
            if in_time {
                self.queue.at(until, Ev::Request { coordinator, life, op });
            } else {
                self.queue.after(ANSWER_MS, answer(op, None));
            }
            return;
        }
        let (unknown, fault) = self.unknown_until;
        let lost = unknown > now && append;
        if lost {
            self.effects.credit(fault, &self.faults);
        }
        // Half of the answers that never come are to requests that came.
        if !lost || self.draws.below(2) == 0 {
            let before = self.etcd.records().len();
            let reply = self.etcd.execute(op.clone(), coordinator, life, now);
            if self.etcd.records().len() > before {
                self.recorded();
            }
            if !lost {
                let wait = 1 + self.draws.below(4);
                self.queue.after(wait, answer(op, Some(reply)));
                return;
            }
        }
        self.queue.after(ANSWER_MS, answer(op, None));
    }

    pub(crate) fn answered(&mut self, coordinator: usize, life: u32, op: &Op, reply: Option<Reply>, sent: Ms) {
        let now = self.now();
        if self.coordinators[coordinator].life != life {
            return;
        }
        match (op, reply) {
            (_, Some(Reply::Elected { term })) => self.reign(coordinator, term, sent),
            (_, Some(Reply::Taken { revision })) => {
                self.queue.after(
                    100,
                    Ev::Watch {
                        coordinator,
                        life,
                        revision,
                    },
                );
            }
            (Op::Campaign, _) => self.queue.after(200, Ev::Boot { coordinator, life }),
            (_, Some(Reply::Renewed { .. })) => {
                // Counted from when it was asked for: the store may have begun to count then.
                let surely = self.surely_ms();
                let c = &mut self.coordinators[coordinator];
                let until = sent + c.clock.when(surely);
                c.lease_until = c.lease_until.max(until);
                self.leads_on(coordinator);
            }
            (Op::Renew { .. }, None) => {} // the local deadline decides
            (_, Some(Reply::Appended)) => {
                let c = &mut self.coordinators[coordinator];
                c.in_flight = false;
                c.records += 1;
                let told = c.writing.pop_front().is_some_and(|(_, told)| told);
                if now > sent + COMMIT_LATE_MS {
                    self.effect(Node::Store);
                }
                if told {
                    self.tell(coordinator, Event::Persisted);
                }
                self.write_next(coordinator);
            }
            (_, Some(Reply::Refused)) => self.falls(coordinator, "the store refuses its term"),
            (Op::Append { .. }, None) => self.falls(coordinator, "the outcome of a write is unknown"),
        }
    }

    pub(super) fn write_next(&mut self, coordinator: usize) {
        let c = &mut self.coordinators[coordinator];
        if c.in_flight {
            return;
        }
        let (Some((record, _)), Some(term)) = (c.writing.front(), c.term) else {
            return;
        };
        c.in_flight = true;
        let op = Op::Append {
            term,
            expected: c.records,
            record: Box::new(record.clone()),
        };
        self.ask(coordinator, op);
    }

    /// Create-only; after an unclear answer it is read back and compared (rule K3).
    pub(crate) fn put_manifest(&mut self, coordinator: usize, life: u32, attempt: u64, name: StateName, tries: u32) {
        if self.coordinators[coordinator].life != life {
            return;
        }
        let now = self.now();
        let key = format!("{attempt}/manifest.json");
        let trouble = self.trouble.filter(|(_, until, _)| *until > now);
        if let Some((_, _, fault)) = trouble {
            self.effects.credit(fault, &self.faults);
        }
        let trouble = trouble.map(|(t, _, _)| t);
        if let Some(Trouble::Slow(more)) = trouble.filter(|_| tries == 0) {
            self.queue.after(
                more,
                Ev::PutManifest {
                    coordinator,
                    life,
                    attempt,
                    name,
                    tries: 1,
                },
            );
            return;
        }
        let bits = self.bits_of(name);
        let object = Object {
            name,
            bits,
            whole: true,
        };
        let put = self.objects.put(&key, object, true, trouble);
        let same = put == Put::Exists
            && self
                .objects
                .peek(&key)
                .is_some_and(|o| o.name == name && o.bits == bits);
        if put == Put::Stored || same {
            self.tell(coordinator, Event::ManifestWritten { attempt, key });
        } else if tries < 6 {
            let wait = 50 << tries;
            self.queue.after(
                wait,
                Ev::PutManifest {
                    coordinator,
                    life,
                    attempt,
                    name,
                    tries: tries + 1,
                },
            );
        } else {
            let reason = "the object store does not take it".into();
            self.tell(coordinator, Event::ManifestFailed { attempt, reason });
        }
    }
}
