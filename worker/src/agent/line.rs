//! The line to the coordinator: who is called, what waits to be said, and the stream at hand.

use super::shell::Told;
use argosy_common::events::FromWorker;
use argosy_common::ids::WorkerId;
use argosy_rpc::{Hello, Returning, RpcError, Session, Tls, Welcome};
use ractor::ActorRef;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

/// Reports that wait for a network that takes nothing; of those beyond it the oldest steps go first.
const WAITING_MAX: usize = 512;
/// Last words get so long to reach the coordinator.
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);

/// Where coordinators are and how this worker shows itself. Of several coordinators one leads; the others do not answer.
pub(super) struct Calls {
    endpoints: Vec<String>,
    token: String,
    tls: Option<Tls>,
    hello: Hello,
    /// The one that answered last is asked first.
    next: AtomicUsize,
}

impl std::fmt::Debug for Calls {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calls")
            .field("endpoints", &self.endpoints)
            .field("hello", &self.hello)
            .finish_non_exhaustive()
    }
}

impl Calls {
    pub(super) fn new(endpoints: Vec<String>, token: String, tls: Option<Tls>, hello: Hello) -> Self {
        Self {
            endpoints,
            token,
            tls,
            hello,
            next: AtomicUsize::new(0),
        }
    }

    /// This worker has an id from now on.
    pub(super) fn named(&mut self, worker: WorkerId) {
        self.hello.worker = worker;
    }

    pub(super) fn node(&self) -> &str {
        &self.hello.node
    }

    /// The first call of this process.
    ///
    /// # Errors
    /// Why none let it in; a refusal tells more than silence.
    pub(super) async fn first(&self) -> Result<Session, RpcError> {
        self.call(&self.hello, |_| Ok(())).await
    }

    /// A later one, with a state of the run that `welcome` told of.
    ///
    /// # Errors
    /// As [`Self::first`]; a coordinator of another run is not taken for this one's.
    pub(super) async fn again(&self, welcome: &Welcome) -> Result<Session, RpcError> {
        let hello = Hello {
            returning: Some(Returning {
                config_hash: welcome.job.config_hash(),
                index_hash: welcome.index_hash,
            }),
            ..self.hello.clone()
        };
        self.call(&hello, |theirs| same_run(welcome, theirs)).await
    }

    async fn call(&self, hello: &Hello, fits: impl Fn(&Welcome) -> Result<(), String>) -> Result<Session, RpcError> {
        let first = self.next.load(Ordering::Relaxed);
        let mut worst = None;
        for turn in 0..self.endpoints.len() {
            let at = (first + turn) % self.endpoints.len();
            let endpoint = &self.endpoints[at];
            let answer = match &self.tls {
                Some(tls) => argosy_rpc::connect_with(endpoint, &self.token, tls, hello.clone()).await,
                None => argosy_rpc::connect(endpoint, &self.token, hello.clone()).await,
            };
            let answer = answer.and_then(|session| match fits(&session.welcome) {
                Ok(()) => Ok(session),
                Err(reason) => Err(RpcError::OtherRun {
                    endpoint: endpoint.clone(),
                    reason,
                }),
            });
            match answer {
                Ok(session) => {
                    self.next.store(at, Ordering::Relaxed);
                    return Ok(session);
                }
                Err(error) => {
                    tracing::info!(%error, "no session");
                    let silent = |e: &RpcError| matches!(e, RpcError::Unreachable { .. });
                    if worst.as_ref().is_none_or(silent) {
                        worst = Some(error);
                    }
                }
            }
        }
        Err(worst.unwrap_or_else(|| RpcError::BadEndpoint {
            endpoint: String::new(),
            reason: "no coordinator was named".into(),
        }))
    }
}

/// Whether `theirs` is the run that `ours` told of: a worker keeps its state for that one only.
fn same_run(ours: &Welcome, theirs: &Welcome) -> Result<(), String> {
    let differs = if ours.run != theirs.run {
        "name"
    } else if ours.job.config_hash() != theirs.job.config_hash() {
        "configuration"
    } else if ours.index_hash != theirs.index_hash || ours.total_positions != theirs.total_positions {
        "data"
    } else if (ours.lanes, ours.window_factor) != (theirs.lanes, theirs.window_factor) {
        "lanes"
    } else if ours.run_secret != theirs.run_secret {
        "secret"
    } else {
        return Ok(());
    };
    Err(format!("its run has another {differs} than {}", ours.run))
}

/// What waits to be said. Never blocks who speaks: a network that hangs must not keep an abort or a signal waiting.
#[derive(Debug, Default)]
struct Outbox {
    waiting: Mutex<VecDeque<FromWorker>>,
    changed: Notify,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, VecDeque<FromWorker>> {
        // Every change is one push or pop: a panic elsewhere leaves nothing half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, message: FromWorker) {
        let mut waiting = self.lock();
        match &message {
            // About this moment: an older one that still waits tells nothing more.
            FromWorker::Heartbeat | FromWorker::LeaseWanted { .. } => {
                waiting.retain(|m| std::mem::discriminant(m) != std::mem::discriminant(&message));
            }
            // What was kept or left unsaid before is heard by nobody who does not know this worker.
            FromWorker::Rejoined { .. } => {
                waiting.push_front(message);
                drop(waiting);
                return self.changed.notify_one();
            }
            _ => {}
        }
        if waiting.len() >= WAITING_MAX {
            let step = waiting.iter().position(|m| matches!(m, FromWorker::StepDone { .. }));
            waiting.remove(step.unwrap_or(0));
        }
        waiting.push_back(message);
        drop(waiting);
        self.changed.notify_one();
    }

    /// Says what waits until the stream is lost, or until `last` is told and nothing waits any more.
    async fn pump(&self, to: mpsc::Sender<FromWorker>, last: &Notify) {
        let mut ending = false;
        loop {
            // A place first: what is taken from the queue is on its way.
            let Ok(place) = to.reserve().await else { return };
            let message = self.lock().pop_front();
            match message {
                Some(message) => place.send(message),
                None if ending => return,
                None => {
                    drop(place);
                    tokio::select! {
                        () = self.changed.notified() => {}
                        () = last.notified() => ending = true,
                        () = to.closed() => return,
                    }
                }
            }
        }
    }
}

/// A session under way.
#[derive(Debug)]
struct Stream {
    pump: JoinHandle<()>,
    listen: JoinHandle<()>,
    last: Arc<Notify>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) calls: Arc<Calls>,
    /// The first answer of a coordinator: which run this is.
    pub(super) welcome: Arc<Welcome>,
    outbox: Arc<Outbox>,
    stream: Option<Stream>,
    /// Counts streams: what an earlier one still says is not heard.
    number: u64,
}

impl Line {
    pub(super) fn new(calls: Calls, welcome: Welcome) -> Self {
        Self {
            calls: Arc::new(calls),
            welcome: Arc::new(welcome),
            outbox: Arc::default(),
            stream: None,
            number: 0,
        }
    }

    /// Whether `number` is the stream at hand.
    pub(super) fn is_current(&self, number: u64) -> bool {
        self.stream.is_some() && number == self.number
    }

    pub(super) fn say(&self, message: FromWorker) {
        self.outbox.say(message);
    }

    /// Takes up a session; what waited is said in it.
    pub(super) fn open(&mut self, session: Session, shell: ActorRef<Told>) {
        self.drop_stream();
        self.number += 1;
        let (outbox, last) = (Arc::clone(&self.outbox), Arc::new(Notify::new()));
        let ending = Arc::clone(&last);
        let Session { outgoing, incoming, .. } = session;
        self.stream = Some(Stream {
            pump: tokio::spawn(async move { outbox.pump(outgoing, &ending).await }),
            listen: tokio::spawn(listen(incoming, self.number, shell)),
            last,
        });
    }

    /// Hears and says nothing more in the stream at hand.
    pub(super) fn drop_stream(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.pump.abort();
            stream.listen.abort();
        }
    }

    /// Says the last words, and waits a moment until they have been read.
    pub(super) async fn close(&mut self) {
        let Some(stream) = self.stream.take() else { return };
        stream.last.notify_one();
        // The sending half ends with the pump; the coordinator ends the other half when it has read everything.
        let said = async {
            let _ = stream.pump.await;
            let _ = stream.listen.await;
        };
        if tokio::time::timeout(FLUSH_PATIENCE, said).await.is_err() {
            tracing::debug!("the last words may not have arrived");
        }
    }
}

async fn listen(mut incoming: mpsc::Receiver<argosy_common::events::ToWorker>, stream: u64, shell: ActorRef<Told>) {
    while let Some(message) = incoming.recv().await {
        let _ = shell.cast(Told::Heard { stream, message });
    }
    let _ = shell.cast(Told::StreamEnded { stream });
}

#[cfg(test)]
mod tests {
    use super::*;
    use argosy_common::events::StepReport;
    use argosy_common::ids::{Generation, StateName};

    fn step(step: u64) -> FromWorker {
        let name = StateName {
            step,
            applied_gen: Generation(1),
        };
        FromWorker::StepDone {
            report: StepReport {
                name,
                ..StepReport::default()
            },
        }
    }

    fn rejoined() -> FromWorker {
        FromWorker::Rejoined {
            addr: String::new(),
            name: StateName::INITIAL,
            inside: None,
            left: Generation(1),
        }
    }

    #[tokio::test]
    async fn outbox_that_nobody_empties_keeps_the_newest_and_who_this_is_comes_first() {
        let outbox = Outbox::default();
        let closed = FromWorker::Formed {
            generation: Generation(7),
        };
        outbox.say(closed.clone());
        for n in 0..2 * WAITING_MAX as u64 {
            outbox.say(step(n));
            outbox.say(FromWorker::Heartbeat);
        }
        outbox.say(rejoined());
        let (to, mut heard) = mpsc::channel(2 * WAITING_MAX);
        let last = Notify::new();
        last.notify_one();
        outbox.pump(to, &last).await;
        let mut said = Vec::new();
        while let Some(message) = heard.recv().await {
            said.push(message);
        }
        assert_eq!(said[..2], [rejoined(), closed], "only steps are given up");
        assert_eq!(said.last(), Some(&FromWorker::Heartbeat));
        let beats = said.iter().filter(|m| **m == FromWorker::Heartbeat).count();
        assert!(beats == 1 && said.len() <= WAITING_MAX + 1, "{beats} of {}", said.len());
        assert_eq!(said[said.len() - 2], step(2 * WAITING_MAX as u64 - 1));
    }

    #[tokio::test]
    async fn outbox_whose_stream_breaks_keeps_what_was_not_said() {
        let outbox = Outbox::default();
        outbox.say(step(1));
        outbox.say(step(2));
        let (to, heard) = mpsc::channel(1);
        drop(heard);
        outbox.pump(to, &Notify::new()).await;
        assert_eq!(outbox.lock().len(), 2);
    }
}
