//! The door: who may join, and the task that carries a worker's words to the conductor.

use crate::actors::conductor::Msg;
use argosy_common::events::FromWorker;
use argosy_common::ids::WorkerId;
use argosy_common::numeric::{NumericClass, THREADS};
use argosy_rpc::server::{Admission, Doorman, QUEUE};
use argosy_rpc::{Hello, NO_ID, Welcome};
use ractor::ActorRef;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tonic::Status;

/// Words of one worker that may wait in the conductor's mailbox, which itself has no bound.
const WORDS_WAITING_MAX: usize = 64;

#[derive(Debug, Default)]
struct Known {
    /// Ids given to processes that have not connected.
    expected: BTreeSet<WorkerId>,
    /// Ids that were used; one id is one life.
    used: BTreeSet<WorkerId>,
    /// Those whose streams are open.
    inside: BTreeSet<WorkerId>,
    /// The run's numeric class: that of the first worker (rule N2).
    numeric_class: Option<NumericClass>,
}

/// Keeps the door.
#[derive(Debug)]
pub(crate) struct Door {
    welcome: Welcome,
    conductor: ActorRef<Msg>,
    /// Ids up to this one were given before this coordinator began.
    past: WorkerId,
    guests: Arc<Guests>,
}

/// Who is expected; shared between the door and the conductor.
#[derive(Debug)]
pub(crate) struct Guests {
    /// Only ids that were given out may come.
    by_invitation: bool,
    known: Mutex<Known>,
}

impl Guests {
    pub(crate) fn new(by_invitation: bool) -> Self {
        Self {
            by_invitation,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change is one insertion or removal: a panic elsewhere leaves nothing half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn expect(&self, worker: WorkerId) {
        self.known().expected.insert(worker);
    }

    fn left(&self, worker: WorkerId) {
        self.known().inside.remove(&worker);
    }

    pub(crate) fn forget(&self, worker: WorkerId) {
        self.known().expected.remove(&worker);
    }

    // A status is what the session answers with, whatever its size.
    #[allow(clippy::result_large_err)]
    fn enter(&self, hello: &Hello, class: &NumericClass, past: WorkerId) -> Result<(), Status> {
        let mut known = self.known();
        let worker = hello.worker;
        let known_before = worker <= past || known.used.contains(&worker);
        let returning = hello.returning.is_some();
        if returning && known_before {
            if known.inside.contains(&worker) {
                return Err(Status::already_exists(format!(
                    "worker id {worker} is still connected; its old stream has to break first"
                )));
            }
        } else if known_before {
            return Err(Status::already_exists(format!(
                "worker id {worker} was used before; every process needs an id of its own above {past}"
            )));
        }
        if self.by_invitation && !returning && !known.expected.contains(&worker) {
            return Err(Status::not_found(format!(
                "worker id {worker} is not expected: this coordinator starts its workers itself"
            )));
        }
        if known.inside.is_empty() {
            known.numeric_class = None; // who made it the run's has left
        }
        if let Some(difference) = known.numeric_class.as_ref().and_then(|run| run.difference(class)) {
            return Err(Status::failed_precondition(format!(
                "worker {worker} computes other bits than this run: {difference}; use the same device, build, threads and \
                 precision on all workers"
            )));
        }
        known.numeric_class.get_or_insert_with(|| class.clone());
        known.expected.remove(&worker);
        known.used.insert(worker);
        known.inside.insert(worker);
        Ok(())
    }
}

impl Door {
    pub(crate) fn new(welcome: Welcome, conductor: ActorRef<Msg>, past: WorkerId, guests: Arc<Guests>) -> Self {
        Self {
            welcome,
            conductor,
            past,
            guests,
        }
    }

    /// An id for a worker that came without one; only the conductor knows which were never given.
    async fn name(&self) -> Result<WorkerId, Status> {
        let over = |_| Status::unavailable("the run is over");
        let (reply, named) = oneshot::channel();
        self.conductor
            .cast(Msg::IdWanted { reply })
            .map_err(|_| Status::unavailable("the run is over"))?;
        named.await.map_err(over)
    }

    /// A state of another run is none of this one's, whatever its name.
    // A status is what the session answers with, whatever its size.
    #[allow(clippy::result_large_err)]
    fn check_run(&self, hello: &Hello) -> Result<(), Status> {
        let Some(theirs) = hello.returning else { return Ok(()) };
        let differs = if theirs.config_hash != self.welcome.job.config_hash() {
            "training configuration"
        } else if theirs.index_hash != self.welcome.index_hash {
            "index"
        } else {
            return Ok(());
        };
        Err(Status::failed_precondition(format!(
            "worker {} holds a state of a run with another {differs}; end it and start it anew",
            hello.worker
        )))
    }

    /// The class that the worker will be of with what the welcome tells it.
    fn effective_class(&self, hello: &Hello) -> NumericClass {
        let class = NumericClass::parse(&hello.numeric_class).in_run(&self.welcome.job.train);
        match self.welcome.torch_threads {
            0 => class,
            threads => class.told(THREADS, threads.to_string()),
        }
    }
}

#[tonic::async_trait]
impl Doorman for Door {
    async fn admit(&self, mut hello: Hello) -> Result<Admission, Status> {
        self.check_run(&hello)?;
        if hello.worker == NO_ID && !self.guests.by_invitation {
            hello.worker = self.name().await?;
        }
        let class = self.effective_class(&hello);
        self.guests.enter(&hello, &class, self.past)?;
        let worker = hello.worker;
        let (to_worker, outgoing) = mpsc::channel(QUEUE);
        let (incoming, words) = mpsc::channel(QUEUE);
        let connected = Msg::Connected {
            worker,
            outgoing: to_worker,
        };
        if self.conductor.cast(connected).is_err() {
            return Err(Status::unavailable("the run is over"));
        }
        tracing::info!(%worker, node = hello.node, pid = hello.pid, %class, "a worker connected");
        tokio::spawn(carry(worker, words, self.conductor.clone(), Arc::clone(&self.guests)));
        Ok(Admission {
            welcome: Welcome {
                worker,
                ..self.welcome.clone()
            },
            outgoing,
            incoming,
        })
    }
}

/// Carries a worker's words until its stream ends, and says so.
async fn carry(worker: WorkerId, mut words: mpsc::Receiver<FromWorker>, conductor: ActorRef<Msg>, guests: Arc<Guests>) {
    let places = Arc::new(Semaphore::new(WORDS_WAITING_MAX));
    while let Some(message) = words.recv().await {
        // Never closed, so this waits until the conductor has taken an earlier word.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            break;
        };
        if conductor.cast(Msg::Said { worker, message, place }).is_err() {
            break; // the run is over
        }
    }
    let _ = conductor.cast(Msg::Disconnected { worker });
    guests.left(worker);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_of_another_numeric_class_is_refused_with_the_word_that_differs() {
        let guests = Guests::new(false);
        let enter = |worker: u32, class: &str| {
            let hello = Hello {
                worker: WorkerId(worker),
                node: String::new(),
                pid: 1,
                numeric_class: class.into(),
                returning: None,
            };
            guests.enter(&hello, &NumericClass::parse(class), WorkerId(0))
        };
        enter(1, "device=cpu threads=2").unwrap();
        let refused = enter(2, "device=cpu threads=4").unwrap_err();
        assert!(refused.message().contains("threads 4, this run has 2"), "{refused}");
        enter(2, "device=cpu threads=2").unwrap();
        // When all have left, the next one says which class it is.
        for worker in [1, 2] {
            guests.left(WorkerId(worker));
        }
        enter(3, "device=cpu threads=4").unwrap();
        let refused = enter(4, "device=cpu threads=2").unwrap_err();
        assert!(refused.message().contains("threads 2, this run has 4"), "{refused}");
    }
}
