//! What the process around a coordinator tells it.

use argosy_common::ids::WorkerId;
use tokio::sync::mpsc;

/// One thing told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    Stop,
    Leave,
    Exited {
        worker: WorkerId,
        pid: u32,
        code: Option<i32>,
        signal: Option<i32>,
    },
}

/// Tells a run about exits and stops. Cheap to clone; works before the run starts and is harmless after it.
#[derive(Clone, Debug)]
pub struct CoordinatorHandle(mpsc::UnboundedSender<Order>);

/// The other end, given to [`crate::run`].
#[derive(Debug)]
pub struct Orders(pub(crate) mpsc::UnboundedReceiver<Order>);

/// A handle, made before the run because the [`crate::Spawner`] needs it.
#[must_use]
pub fn handle() -> (CoordinatorHandle, Orders) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (CoordinatorHandle(sender), Orders(receiver))
}

impl CoordinatorHandle {
    /// A process that the spawner started was reaped.
    pub fn worker_exited(&self, worker: WorkerId, pid: u32, code: Option<i32>, signal: Option<i32>) {
        let _ = self.0.send(Order::Exited {
            worker,
            pid,
            code,
            signal,
        });
    }

    /// End this coordinator and let another lead; the run goes on. A standby just ends.
    pub fn leave(&self) {
        let _ = self.0.send(Order::Leave);
    }

    /// Take a checkpoint and end; a second time: end now.
    pub fn stop(&self) {
        let _ = self.0.send(Order::Stop);
    }
}
