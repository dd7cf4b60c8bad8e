//! A worker without numbers: the real session and the real follower round a trainer that counts steps.

use crate::story::{TOKEN, World};
use argosy_common::events::{FromWorker, PartFailure, PartInfo, StepReport, ToWorker};
use argosy_common::follower::{Command, Event, Follower, Settings, TrainerOrder};
use argosy_common::hash::digest64;
use argosy_common::ids::{Generation, StateName, WorkerId};
use argosy_common::plan::Plan;
use argosy_common::steplog::StepRecord;
use argosy_coordinator::attempt_prefix;
use argosy_rpc::{Hello, Returning, RpcError, Session, connect};
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub(crate) async fn join(endpoint: &str, worker: WorkerId) -> Result<Session, RpcError> {
    enter(endpoint, worker, None).await
}

pub(crate) async fn enter(endpoint: &str, worker: WorkerId, returning: Option<Returning>) -> Result<Session, RpcError> {
    let hello = Hello {
        worker,
        node: String::new(),
        pid: worker.0,
        numeric_class: "counting".into(),
        returning,
    };
    connect(endpoint, TOKEN, hello).await
}

/// The life of one worker, as a process would live it.
pub(crate) async fn live(world: World, worker: WorkerId, endpoint: String) {
    match join(&endpoint, worker).await {
        Ok(session) => work(world, worker, session, vec![endpoint]).await,
        Err(_) => world.exited(worker, 5),
    }
}

/// A worker that knows several coordinators, of which one leads.
pub(crate) async fn live_among(world: World, worker: WorkerId, endpoints: Vec<String>) {
    let session = loop {
        if let Some(session) = find(&endpoints, worker, None).await {
            break session;
        }
        tokio::time::sleep(Duration::from_millis(50)).await; // nobody leads yet
    };
    work(world, worker, session, endpoints).await;
}

async fn find(endpoints: &[String], worker: WorkerId, returning: Option<Returning>) -> Option<Session> {
    for endpoint in endpoints {
        if let Ok(session) = enter(endpoint, worker, returning).await {
            return Some(session);
        }
    }
    None
}

async fn work(world: World, worker: WorkerId, session: Session, endpoints: Vec<String>) {
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
            leases: session.welcome.leases,
            lease: None,
        },
        follower: Follower::new(Settings {
            worker: worker.0,
            leases: session.welcome.leases,
            orphan_max_ms: session.welcome.orphan_max_ms,
            ..Settings::default()
        }),
        began: Instant::now(),
        reconnect_at: None,
        connected: true,
        session,
    };
    let term = life.session.welcome.term;
    life.tell(Event::Welcomed { term }).await;
    let ready = Event::TrainerReady {
        addr: format!("127.0.0.1:{}", worker.0),
        name: StateName::INITIAL,
    };
    let mut code = life.tell(ready).await;
    while code.is_none() {
        let now = life.now();
        let event = if let Some(event) = life.trainer.next(now) {
            event
        } else {
            tokio::select! {
                message = life.session.incoming.recv(), if life.connected => {
                    life.connected = message.is_some();
                    heard(message)
                }
                () = until(life.reconnect_at) => life.reconnect(&endpoints).await,
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

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

struct Life {
    follower: Follower,
    trainer: Trainer,
    session: Session,
    began: Instant,
    reconnect_at: Option<Instant>,
    connected: bool,
}

impl Life {
    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    async fn reconnect(&mut self, endpoints: &[String]) -> Event {
        self.reconnect_at = None;
        let ours = &self.session.welcome;
        let returning = Returning {
            config_hash: ours.job.config_hash(),
            index_hash: ours.index_hash,
        };
        match find(endpoints, self.trainer.worker, Some(returning)).await {
            Some(session) => {
                self.session = session;
                self.connected = true;
                let term = self.session.welcome.term;
                Event::Welcomed { term }
            }
            None => Event::Unreachable,
        }
    }

    /// Steps the follower and does what it says; returns the exit code when it says so.
    async fn tell(&mut self, event: Event) -> Option<u8> {
        let mut code = None;
        let now = self.now();
        for command in self.follower.step(event, now) {
            match command {
                Command::Order(order) => self.trainer.take(order),
                Command::Tell(word) => {
                    let _ = self.session.outgoing.send(word).await; // a lost stream shows on the other half
                }
                Command::Lease { generation, until } => self.trainer.lease = Some((generation, until)),
                Command::Reconnect { after_ms } => {
                    self.reconnect_at = Some(Instant::now() + Duration::from_millis(after_ms));
                }
                Command::AbortCollective { .. } => {}
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
    /// Steps need a lease.
    leases: bool,
    lease: Option<(Generation, u64)>,
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
    fn next(&mut self, now: u64) -> Option<Event> {
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
        let leased = !self.leases || self.lease.is_some_and(|(of, until)| of == generation && now < until);
        if !leased || !self.running || step >= self.total_steps || !self.world.may_step(plan, step, ordered) {
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
