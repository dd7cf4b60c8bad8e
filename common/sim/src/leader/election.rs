//! Who leads: candidacy, the lease of a reign, and what a standby hears of it.

use crate::clock::Clock;
use crate::etcd::Op;
use crate::net::Node;
use crate::queue::Ms;
use crate::world::{Ev, World};
use argosy_common::conductor::{Conductor, Event, Policy, Restored, Settings};
use argosy_common::events::{Outcome, Record};
use argosy_common::ids::Term;
use argosy_common::ledger::Keep;
use argosy_common::rules::Rules;

/// Renewals of a reign in the life of its lease.
const RENEWALS: Ms = 6;

impl<R: Rules> World<R> {
    /// So long a leader knows that it leads, from when it asked: two thirds of the lease, by its own clock.
    pub(super) fn surely_ms(&self) -> Ms {
        self.etcd.ttl() * 2 / 3
    }

    pub(crate) fn boot(&mut self, coordinator: usize, life: u32) {
        if self.coordinators[coordinator].life != life || self.coordinators[coordinator].gone {
            return;
        }
        // On one machine the run folder's lock is free only when all of the old house are gone (rule G5).
        if self.config.spawns && self.processes.iter().any(|p| p.alive) {
            self.queue.after(100, Ev::Boot { coordinator, life });
            return;
        }
        self.ask(coordinator, Op::Campaign);
    }

    /// Elected: reads the store and goes on from there.
    pub(super) fn reign(&mut self, coordinator: usize, term: Term, sent: Ms) {
        let now = self.now();
        let restored = Restored::from_records(self.etcd.records());
        self.checks.plan_changed();
        self.trace.note(now, "leads", &[coordinator as u64, term.0], || {
            format!("c{coordinator} in {term}")
        });
        if let Some(name) = restored.finished {
            self.ended = Some(Outcome::Succeeded { name, manifest: None });
            return;
        }
        let settings = self.settings(term);
        let renews = self.etcd.ttl() / RENEWALS;
        let reason = "the coordinator ended before it was complete";
        let abandoned = |attempt: &u64| {
            (
                Record::CheckpointAbandoned {
                    attempt: *attempt,
                    reason: reason.into(),
                },
                false,
            )
        };
        let clock = Clock::drawn(&mut self.draws);
        let surely = clock.when(self.surely_ms());
        let c = &mut self.coordinators[coordinator];
        c.term = Some(term);
        c.began = now;
        c.clock = clock;
        c.lease_until = sent + surely;
        c.records = self.etcd.records().len();
        c.writing = restored.open_attempts.iter().map(abandoned).collect();
        c.brain = Some(Conductor::new(settings, restored));
        let life = c.life;
        self.queue.after(renews, Ev::Renew { coordinator, life });
        self.write_next(coordinator);
        self.leads_on(coordinator);
    }

    /// Tells the brain until when it leads, on its own clock.
    pub(super) fn leads_on(&mut self, coordinator: usize) {
        let c = &self.coordinators[coordinator];
        let until = c.clock.shows(c.lease_until.saturating_sub(c.began));
        self.tell(coordinator, Event::LeadershipHeld { until });
    }

    pub(super) fn settings(&self, term: Term) -> Settings {
        let c = &self.config;
        Settings {
            run: "world".into(),
            term,
            lanes: self.shape.lanes,
            total_steps: self.shape.total_steps(),
            workers_min: c.workers_min,
            workers_target: c.workers,
            workers_max: c.workers_max,
            spawns: c.spawns,
            failure_budget_ms: c.failure_budget_ms,
            worker_errors_max: 1_000,
            checkpoint_steps: c.checkpoint_steps,
            checkpoint_ms: 0,
            keep: Keep {
                last: 2,
                every_steps: 0,
            },
            parts_total: c.parts,
            seed: 0,
            policy: Policy {
                // The lock of one machine ends with its process.
                reign_ms: if c.spawns { 0 } else { self.surely_ms() },
                outage_max_ms: if c.leases { c.lease_ms } else { 0 },
                unreadable_after_ms: c.unreadable_after_ms,
                // Skipped steps are told by the worlds; a run that fails for them would only be shorter.
                nonfinite_max: 1_000,
                ..Policy::default()
            },
        }
    }

    pub(crate) fn renew(&mut self, coordinator: usize, life: u32) {
        let now = self.now();
        let c = &self.coordinators[coordinator];
        let Some(term) = c.term.filter(|_| c.life == life) else {
            return;
        };
        if now >= c.lease_until {
            return self.falls(coordinator, "its lease has run out");
        }
        self.ask(coordinator, Op::Renew { term });
        let wait = self.etcd.ttl() / RENEWALS;
        self.queue.after(wait, Ev::Renew { coordinator, life });
    }

    /// A standby hears of the leader's key.
    pub(crate) fn watch(&mut self, coordinator: usize, life: u32, revision: u64) {
        let now = self.now();
        if self.coordinators[coordinator].life != life {
            return;
        }
        let (down, _) = self.down_until;
        if down > now || self.net.is_cut(Node::Store, Node::Coordinator(coordinator), now) {
            self.queue.after(
                100,
                Ev::Watch {
                    coordinator,
                    life,
                    revision,
                },
            );
            return;
        }
        self.etcd.expire(now);
        match self.etcd.watch(revision) {
            Ok(changes)
                if !changes
                    .iter()
                    .any(|c| c.deleted && R::passes_watch_event(revision, c.revision)) =>
            {
                self.queue.after(
                    100,
                    Ev::Watch {
                        coordinator,
                        life,
                        revision,
                    },
                );
            }
            Ok(_) => self.ask(coordinator, Op::Campaign),
            Err(_) => {
                self.effect(Node::Coordinator(coordinator));
                self.ask(coordinator, Op::Campaign);
            }
        }
    }
}
