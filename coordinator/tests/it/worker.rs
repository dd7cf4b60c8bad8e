//! A worker without numbers: the real session and the real follower round a trainer that counts steps.

use crate::story::{TOKEN, World};
use argosy_common::events::{FromWorker, PartFailure, PartInfo, StepReport, ToWorker};
use argosy_common::follower::{Command, Event, Follower, TrainerOrder};
use argosy_common::hash::digest64;
use argosy_common::ids::{Generation, StateName, WorkerId};
use argosy_common::plan::Plan;
use argosy_common::steplog::StepRecord;
use argosy_coordinator::attempt_prefix;
use argosy_rpc::{Hello, RpcError, Session, connect};
use std::path::PathBuf;
use std::time::Duration;

pub(crate) async fn join(endpoint: &str, worker: WorkerId) -> Result<Session, RpcError> {
    let hello = Hello {
        worker,
        pid: worker.0,
        numeric_class: "counting".into(),
    };
    connect(endpoint, TOKEN, hello).await
}

/// The life of one worker, as a process would live it.
pub(crate) async fn live(world: World, worker: WorkerId, endpoint: String) {
    let Ok(session) = join(&endpoint, worker).await else {
        world.exited(worker, 5);
        return;
    };
    let mut changes = world.changes();
    let mut heartbeat = tokio::time::interval(Duration::from_millis(session.welcome.heartbeat_ms));
    let mut life = Life {
        trainer: Trainer {
            world: world.clone(),
            worker,
            total_steps: session.welcome.total_positions.div_ceil(8),
            checkpoints: PathBuf::from(&session.welcome.run_dir).join("checkpoints"),
            name: StateName::INITIAL,
            plan: None,
            running: false,
            stop_after: None,
            checkpoint: None,
            refused: None,
            copied: 0,
            primed: None,
        },
        follower: Follower::default(),
        session,
    };
    let ready = Event::TrainerReady {
        addr: format!("127.0.0.1:{}", worker.0),
        name: StateName::INITIAL,
    };
    let mut code = life.tell(ready).await;
    while code.is_none() {
        let event = if let Some(event) = life.trainer.next() {
            event
        } else {
            tokio::select! {
                message = life.session.incoming.recv() => heard(message),
                _ = changes.changed() => continue,
                _ = heartbeat.tick() => Event::HeartbeatDue,
            }
        };
        code = life.tell(event).await;
    }
    // A parent may reap a process before its last words were read.
    world.exited(worker, code.unwrap_or(0));
    life.session.finish(Duration::from_secs(5)).await;
}

fn heard(message: Option<ToWorker>) -> Event {
    message.map_or(Event::StreamLost, Event::Heard)
}

struct Life {
    follower: Follower,
    trainer: Trainer,
    session: Session,
}

impl Life {
    /// Steps the follower and does what it says; returns the exit code when it says so.
    async fn tell(&mut self, event: Event) -> Option<u8> {
        let mut code = None;
        for command in self.follower.step(event, 0) {
            match command {
                Command::Order(order) => self.trainer.take(order),
                Command::Tell(word) => {
                    let _ = self.session.outgoing.send(word).await; // a lost stream shows on the other half
                }
                Command::AbortCollective { .. } | Command::Lease { .. } | Command::Reconnect { .. } => {}
                Command::Exit { code: exit, .. } => code = Some(exit),
            }
        }
        code
    }
}

struct Checkpoint {
    attempt: u64,
    at_step: u64,
    parts: Vec<u32>,
    parts_total: u32,
    since: u64,
}

struct Trainer {
    world: World,
    worker: WorkerId,
    total_steps: u64,
    checkpoints: PathBuf,
    name: StateName,
    plan: Option<(Plan, bool)>,
    running: bool,
    stop_after: Option<u64>,
    checkpoint: Option<Checkpoint>,
    /// An answer to an order that cannot be carried out.
    refused: Option<FromWorker>,
    /// Step of the last checkpoint copied; nobody holds for it again.
    copied: u64,
    /// Said next: there is nothing to fetch here.
    primed: Option<FromWorker>,
}

impl Trainer {
    fn take(&mut self, order: TrainerOrder) {
        match order {
            TrainerOrder::Form { plan } => {
                self.world.entered(self.worker, &plan, self.name);
                self.name = plan.base;
                self.plan = Some((plan, false));
                self.running = false;
                self.stop_after = None;
                self.checkpoint = None;
            }
            TrainerOrder::Run { generation } => self.running = self.generation() == Some(generation),
            TrainerOrder::StopAfter { generation, step } if self.generation() == Some(generation) => {
                self.stop_after = Some(step);
            }
            TrainerOrder::Checkpoint {
                attempt,
                at_step,
                parts,
                parts_total,
                since,
                ..
            } => {
                self.checkpoint = Some(Checkpoint {
                    attempt,
                    at_step,
                    parts,
                    parts_total,
                    since,
                });
            }
            // Who held a part is gone with it in these stories: nobody keeps copies.
            TrainerOrder::UploadSpare { attempt, .. } => {
                self.refused = Some(FromWorker::PartFailed {
                    attempt,
                    failure: PartFailure::Store,
                    reason: "no copy".into(),
                });
            }
            TrainerOrder::Prime { generation, lanes, .. } => {
                self.primed = Some(FromWorker::Primed { generation, lanes })
            }
            TrainerOrder::StopAfter { .. } | TrainerOrder::EmergencyCopy | TrainerOrder::Quit => {}
        }
    }

    fn generation(&self) -> Option<Generation> {
        self.plan.as_ref().map(|(plan, _)| plan.generation)
    }

    /// What the trainer does next, if there is anything to do.
    fn next(&mut self) -> Option<Event> {
        if let Some(word) = self.primed.take() {
            return Some(Event::Passed(word));
        }
        if let Some(word) = self.refused.take().or_else(|| self.copy_part()) {
            return Some(Event::Passed(word));
        }
        let (plan, formed) = self.plan.as_mut()?;
        let generation = plan.generation;
        if self.stop_after.is_some_and(|step| step <= self.name.step) {
            self.plan = None;
            self.running = false;
            return Some(Event::TrainerStopped {
                generation,
                name: self.name,
                cause: None,
            });
        }
        if !*formed {
            *formed = true;
            return Some(Event::TrainerFormed { generation });
        }
        let step = self.name.step;
        // The order may have come to nothing with the generation, and the boundary has to be reached all the same.
        let ordered = self.checkpoint.is_some() || self.copied == step || self.stop_after.is_some();
        if !self.running || step >= self.total_steps || !self.world.may_step(plan, step, ordered) {
            return None;
        }
        if let Some(FromWorker::Failed { exit, message }) = self.world.failure_at(step) {
            return Some(Event::TrainerFailed { exit, message });
        }
        self.name = StateName {
            step: step + 1,
            applied_gen: generation,
        };
        self.world.advanced(self.worker, plan, step + 1);
        let report = StepReport {
            generation,
            name: self.name,
            loss: Some(1.0),
            valid: 8,
            phase_ms: [("encode".to_string(), 1.0)].into(),
            ..StepReport::default()
        };
        Some(Event::Stepped { report })
    }

    /// Copies one part of the checkpoint that is due, or says that its boundary has passed.
    fn copy_part(&mut self) -> Option<FromWorker> {
        let checkpoint = self.checkpoint.as_mut()?;
        let attempt = checkpoint.attempt;
        if checkpoint.at_step > self.name.step {
            return None;
        }
        if checkpoint.at_step < self.name.step {
            self.checkpoint = None;
            let reason = "the boundary has passed".into();
            return Some(FromWorker::PartFailed {
                attempt,
                failure: PartFailure::Late,
                reason,
            });
        }
        let Some(index) = checkpoint.parts.pop() else {
            self.copied = checkpoint.at_step;
            self.checkpoint = None;
            return None;
        };
        let key = format!("{}part-{index:05}", attempt_prefix(attempt));
        let bytes = match index + 1 == checkpoint.parts_total {
            true => log(checkpoint.since, self.name),
            false => self.name.to_string(),
        };
        let path = self.checkpoints.join(&key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        let part = PartInfo {
            index,
            key,
            bytes: bytes.len() as u64,
            checksum: digest64(bytes.as_bytes()),
        };
        let name = self.name;
        Some(FromWorker::PartUploaded { attempt, part, name })
    }
}

/// Lines of the steps behind `since` up to `name`.
fn log(since: u64, name: StateName) -> String {
    let line = |step| {
        let record = StepRecord::Applied {
            name: StateName { step, ..name },
            plan_hash: 0,
            lanes: Vec::new(),
            valid: 8,
            masked: Vec::new(),
            skipped: None,
            loss: Some(1.0),
        };
        serde_json::to_string(&record).unwrap() + "\n"
    };
    (since + 1..=name.step).map(line).collect()
}
