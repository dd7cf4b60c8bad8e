//! The way to end a collective from another thread, at once.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

type Hook = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Shared {
    aborted: AtomicBool,
    hooks: Mutex<Vec<Hook>>,
}

/// Aborts whatever one generation waits for: sockets are shut, waiting threads are woken. Never waits itself.
#[derive(Clone, Default)]
pub struct AbortHandle {
    shared: Arc<Shared>,
}

impl AbortHandle {
    /// A handle that nobody has used.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the collective. Once used, always used.
    pub fn abort(&self) {
        self.shared.aborted.store(true, Ordering::SeqCst);
        let hooks = std::mem::take(&mut *self.shared.hooks.lock().unwrap_or_else(PoisonError::into_inner));
        for hook in hooks {
            hook();
        }
    }

    /// Whether it was used.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.shared.aborted.load(Ordering::SeqCst)
    }

    /// Runs `hook` when the handle is used; at once if it already was.
    pub fn on_abort(&self, hook: impl FnOnce() + Send + 'static) {
        let mut hooks = self.shared.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that an abort either finds the hook in the list or is seen here.
        if self.is_aborted() {
            drop(hooks);
            hook();
        } else {
            hooks.push(Box::new(hook));
        }
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle")
            .field("aborted", &self.is_aborted())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn abort_runs_every_hook_once_whether_set_before_or_after() {
        let count = Arc::new(AtomicU32::new(0));
        let handle = AbortHandle::new();
        let hook = || {
            let count = count.clone();
            move || {
                count.fetch_add(1, Ordering::SeqCst);
            }
        };
        handle.on_abort(hook());
        handle.abort();
        handle.abort();
        handle.on_abort(hook());
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }
}
