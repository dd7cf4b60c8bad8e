//! Which generation may be cut off from outside, shared between the trainer and the agent.

use crate::collective::AbortHandle;
use argosy_common::ids::Generation;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug, Default)]
struct Board {
    /// Generations up to this one were aborted, whether they had begun here or not.
    aborted: Option<Generation>,
    open: Option<(Generation, AbortHandle)>,
}

/// Aborts by generation. An abort may come before the trainer has heard of the generation; it holds all the same.
#[derive(Clone, Debug, Default)]
pub struct Aborts {
    board: Arc<Mutex<Board>>,
}

impl Aborts {
    /// Cuts off everything that belongs to `generation` or an older one. Never waits.
    pub fn abort(&self, generation: Generation) {
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.aborted = board.aborted.max(Some(generation));
        let hit = board
            .open
            .as_ref()
            .filter(|(g, _)| *g <= generation)
            .map(|(_, handle)| handle.clone());
        drop(board);
        if let Some(handle) = hit {
            handle.abort();
        }
    }

    /// The handle of a generation that begins here.
    #[must_use]
    pub fn open(&self, generation: Generation) -> AbortHandle {
        let handle = AbortHandle::new();
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        if board.aborted >= Some(generation) {
            handle.abort();
        }
        board.open = Some((generation, handle.clone()));
        handle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abort_before_the_generation_begins_holds_when_it_does() {
        let aborts = Aborts::default();
        aborts.abort(Generation(3));
        assert!(aborts.open(Generation(3)).is_aborted());
        let later = aborts.open(Generation(4));
        assert!(!later.is_aborted());
        aborts.abort(Generation(3));
        assert!(!later.is_aborted(), "an old abort spares the new generation");
        aborts.abort(Generation(4));
        assert!(later.is_aborted());
    }
}
