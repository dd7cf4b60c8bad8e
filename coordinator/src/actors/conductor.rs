//! The shell round the brain: messages in, events to the brain, its commands out. It decides nothing.

use super::{artefacts, root, store};
use crate::admission::Guests;
use crate::handle::Order;
use crate::options::Spawner;
use crate::store::StoreError;
use argosy_common::conductor::{Command, Conductor, Event, Tick};
use argosy_common::events::{FromWorker, Manifest, Outcome, RunEvent, ToWorker};
use argosy_common::ids::WorkerId;
use argosy_common::shape::RunShape;
use argosy_rpc::clock;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// A process that ended has closed its stream; what it said last is read within this time, or not at all.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// After the end, or after they hung up, workers may take so long to leave by themselves, and after the end as long again
/// when they were killed.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);

pub(crate) struct Shell;

#[derive(Debug)]
pub(crate) enum Msg {
    /// Straight to the brain.
    Event(Event),
    /// A worker came in.
    Connected {
        worker: WorkerId,
        outgoing: mpsc::Sender<ToWorker>,
    },
    /// A worker has come without an id.
    IdWanted { reply: oneshot::Sender<WorkerId> },
    /// A worker said something; `place` is given back when it is dropped.
    Said {
        worker: WorkerId,
        message: FromWorker,
        place: OwnedSemaphorePermit,
    },
    /// Everything a worker said has been passed on and its stream has ended.
    Disconnected { worker: WorkerId },
    /// People should hear of this.
    Announce(RunEvent),
    /// A record could not be written, or this reign is over.
    StoreFailed(StoreError),
    /// The reign holds for so long from now.
    Reigns(Duration),
    /// From the process around.
    Order(Order),
    /// The timer set for this tick.
    Due { at: Tick },
    /// A process ended a while ago; its stream has had its time.
    LastWordsOver { worker: WorkerId },
    /// A worker that was dismissed after it had ended its session had its time to leave.
    Remains { worker: WorkerId },
    /// Workers had their time to leave; the second time nothing more is waited for.
    LeaveOver { killed: bool },
}

/// Everything the shell needs.
pub(crate) struct Args {
    pub(crate) brain: Conductor,
    /// The brain's clock is the milliseconds since then, suspended time included: leases are counted by it.
    pub(crate) began_ms: u64,
    pub(crate) endpoint: String,
    pub(crate) spawner: Arc<dyn Spawner>,
    pub(crate) guests: Arc<Guests>,
    pub(crate) store: ActorRef<store::Msg>,
    pub(crate) artefacts: ActorRef<artefacts::Msg>,
    pub(crate) journal: ActorRef<RunEvent>,
    pub(crate) root: ActorRef<root::Msg>,
    pub(crate) shape: RunShape,
    /// A manifest with what is the same in all of this run.
    pub(crate) manifest: Manifest,
}

pub(crate) struct State {
    args: Args,
    sessions: BTreeMap<WorkerId, mpsc::Sender<ToWorker>>,
    /// Processes that were started and not yet reaped.
    children: BTreeSet<WorkerId>,
    /// Those who wait for an id, in order.
    nameless: VecDeque<oneshot::Sender<WorkerId>>,
    /// Exits that wait for the last words on the stream.
    exits: BTreeMap<WorkerId, Event>,
    /// The earliest timer under way.
    armed: Option<Tick>,
    outcome: Option<Outcome>,
}

impl Actor for Shell {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, _: ActorRef<Msg>, args: Args) -> Result<State, ActorProcessingErr> {
        Ok(State {
            args,
            sessions: BTreeMap::new(),
            children: BTreeSet::new(),
            nameless: VecDeque::new(),
            exits: BTreeMap::new(),
            armed: None,
            outcome: None,
        })
    }

    /// The first look round: workers are wanted.
    async fn post_start(&self, myself: ActorRef<Msg>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.drive(&myself, vec![Event::Ticked]);
        state.leave_when_empty();
        Ok(())
    }

    async fn handle(&self, myself: ActorRef<Msg>, message: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        let events = state.translate(&myself, message);
        state.drive(&myself, events);
        state.leave_when_empty();
        Ok(())
    }
}

impl State {
    fn now(&self) -> Tick {
        clock::now_ms().saturating_sub(self.args.began_ms)
    }

    /// What a message means to the brain.
    fn translate(&mut self, myself: &ActorRef<Msg>, message: Msg) -> Vec<Event> {
        match message {
            Msg::Event(event) => vec![event],
            Msg::Connected { worker, outgoing } => {
                self.sessions.insert(worker, outgoing);
                vec![Event::WorkerConnected { worker }]
            }
            Msg::IdWanted { reply } => {
                self.nameless.push_back(reply);
                vec![Event::IdWanted]
            }
            Msg::Said {
                worker,
                message,
                place: _place,
            } => vec![Event::Said { worker, message }],
            Msg::Disconnected { worker } => {
                self.sessions.remove(&worker);
                let exit = self.exits.remove(&worker);
                exit.into_iter().chain([Event::StreamLost { worker }]).collect()
            }
            Msg::Announce(event) => {
                tell(&self.args.journal, event);
                Vec::new()
            }
            Msg::StoreFailed(error) => {
                tell(&self.args.root, root::Msg::Failed(error.into()));
                Vec::new()
            }
            Msg::Reigns(held) => {
                let until = self
                    .now()
                    .saturating_add(Tick::try_from(held.as_millis()).unwrap_or(Tick::MAX));
                vec![Event::LeadershipHeld { until }]
            }
            Msg::Order(Order::Stop) => vec![Event::StopRequested],
            Msg::Order(Order::Leave) => Vec::new(), // whoever runs this ends all of it
            Msg::Order(Order::Exited {
                worker,
                pid,
                code,
                signal,
            }) => {
                self.children.remove(&worker);
                self.args.guests.forget(worker);
                let exited = Event::WorkerExited {
                    worker,
                    pid,
                    code,
                    signal,
                };
                if !self.sessions.contains_key(&worker) {
                    return vec![exited];
                }
                // Its last words, perhaps why it ended, are still on their way.
                self.exits.insert(worker, exited);
                myself.send_after(LAST_WORDS, move || Msg::LastWordsOver { worker });
                Vec::new()
            }
            Msg::LastWordsOver { worker } => self.exits.remove(&worker).into_iter().collect(),
            Msg::Due { at } => {
                if self.armed == Some(at) {
                    self.armed = None;
                }
                vec![Event::Ticked]
            }
            Msg::Remains { worker } => {
                self.kill(worker);
                Vec::new()
            }
            Msg::LeaveOver { killed } => {
                self.leave_over(myself, killed);
                Vec::new()
            }
        }
    }

    /// Steps the brain through `events` and what they bring about at once, then sets the timer.
    fn drive(&mut self, myself: &ActorRef<Msg>, events: Vec<Event>) {
        let mut queue = VecDeque::from(events);
        while let Some(event) = queue.pop_front() {
            let now = self.now();
            for command in self.args.brain.step(event, now) {
                queue.extend(self.execute(myself, command));
            }
        }
        self.arm(myself);
    }

    /// Carries out one command; returns what came of it at once.
    fn execute(&mut self, myself: &ActorRef<Msg>, command: Command) -> Option<Event> {
        match command {
            Command::Persist { record } => {
                let reply_to = myself.clone();
                tell(&self.args.store, store::Msg::Append { record, reply_to });
            }
            Command::Send { to, message } => {
                // Gone, or so far behind that its queue is full: either way it cannot be reached.
                if let Some(session) = self.sessions.get(&to)
                    && session.try_send(message).is_err()
                {
                    self.sessions.remove(&to);
                    return Some(Event::StreamLost { worker: to });
                }
            }
            Command::SpawnWorker { worker } => return Some(self.spawn(worker)),
            Command::GiveId { worker } => {
                if let Some(reply) = self.nameless.pop_front() {
                    let _ = reply.send(worker); // gone meanwhile: the id is nobody's
                }
            }
            Command::Dismiss { worker, reason } => {
                tracing::info!(%worker, reason, "a worker is dismissed");
                let hung_up = self.sessions.remove(&worker).is_none();
                self.args.guests.forget(worker);
                // Who has ended the session by itself is about to end, and shall say how.
                match hung_up {
                    true => drop(myself.send_after(LEAVE_WITHIN, move || Msg::Remains { worker })),
                    false => self.kill(worker),
                }
            }
            Command::WriteManifest {
                attempt,
                name,
                parent,
                parts,
            } => {
                let manifest = Box::new(Manifest {
                    attempt,
                    name,
                    positions_seen: self.args.shape.positions_before(name.step),
                    parent,
                    parts,
                    ..self.args.manifest.clone()
                });
                let reply_to = myself.clone();
                tell(&self.args.artefacts, artefacts::Msg::Write { manifest, reply_to });
            }
            Command::CollectGarbage { attempts, keep_logs } => {
                tell(&self.args.artefacts, artefacts::Msg::Collect { attempts, keep_logs });
            }
            Command::Announce { event } => tell(&self.args.journal, event),
            Command::End { outcome } => {
                self.outcome = Some(outcome);
                myself.send_after(LEAVE_WITHIN, || Msg::LeaveOver { killed: false });
            }
        }
        None
    }

    fn kill(&self, worker: WorkerId) {
        if self.children.contains(&worker) {
            self.args.spawner.kill(worker);
        }
    }

    fn spawn(&mut self, worker: WorkerId) -> Event {
        self.args.guests.expect(worker);
        match self.args.spawner.spawn(worker, &self.args.endpoint) {
            Ok(pid) => {
                self.children.insert(worker);
                Event::WorkerSpawned { worker, pid }
            }
            Err(error) => {
                tracing::error!(%worker, %error, "a worker's process could not be started");
                self.args.guests.forget(worker);
                Event::WorkerExited {
                    worker,
                    pid: 0,
                    code: None,
                    signal: None,
                }
            }
        }
    }

    /// Sets a timer if none under way is early enough. One that has become too early does no harm.
    fn arm(&mut self, myself: &ActorRef<Msg>) {
        let Some((at, _)) = self.args.brain.next_deadline() else {
            return;
        };
        if self.armed.is_some_and(|armed| armed <= at) {
            return;
        }
        self.armed = Some(at);
        let wait = at.saturating_sub(self.now()).max(1);
        myself.send_after(Duration::from_millis(wait), move || Msg::Due { at });
    }

    /// After the end: ready when every worker has left.
    fn leave_when_empty(&self) {
        if let Some(outcome) = &self.outcome
            && self.children.is_empty()
            && self.sessions.is_empty()
        {
            tell(&self.args.root, root::Msg::Ended(outcome.clone()));
        }
    }

    fn leave_over(&mut self, myself: &ActorRef<Msg>, killed: bool) {
        tracing::warn!(left = self.children.len(), killed, "workers did not leave in time");
        self.sessions.clear();
        if killed {
            self.children.clear();
            return;
        }
        for worker in &self.children {
            self.args.spawner.kill(*worker);
        }
        myself.send_after(LEAVE_WITHIN, || Msg::LeaveOver { killed: true });
    }
}

/// A sibling that cannot be told anything any more has failed; its supervisor ends the run and names it.
fn tell<M: ractor::Message>(to: &ActorRef<M>, message: M) {
    if let Err(error) = to.cast(message) {
        tracing::debug!(%error, "a sibling is gone");
    }
}
