//! What an exported state is made of, and how its bytes are read while the engine computes.

use super::TensorSpec;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Type of the values of a [`StateTensor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateKind {
    /// Little-endian f32.
    F32,
    /// Little-endian u64.
    U64,
}

impl StateKind {
    /// Bytes of one value.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::U64 => 8,
        }
    }
}

/// A tensor of the exported state, under the name it has in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateTensor {
    /// A weight's own name, or the name of its array before it (`exp_avg.visual.proj`).
    pub name: String,
    /// Empty for a scalar.
    pub shape: Vec<usize>,
    /// Type of its values.
    pub kind: StateKind,
    /// Its bytes in the exported state. Tensors follow each other without gaps.
    pub at: Range<usize>,
}

/// Name of the count of applied updates, the last tensor of a state.
pub const APPLIED_STEPS: &str = "applied_steps";

/// The table of a state that is one array after the other, each with all tensors of `table` under its own prefix, and the
/// count of applied updates at the end. An engine with more arrays names them here, and they ride along in checkpoints.
#[must_use]
pub fn state_table(table: &[TensorSpec], prefixes: &[&str]) -> Vec<StateTensor> {
    let mut out = Vec::with_capacity(table.len() * prefixes.len() + 1);
    let mut end = 0;
    for prefix in prefixes {
        for spec in table {
            let start = end;
            end += 4 * spec.len;
            out.push(StateTensor {
                name: format!("{prefix}{}", spec.name),
                shape: spec.shape.iter().map(|d| *d as usize).collect(),
                kind: StateKind::F32,
                at: start..end,
            });
        }
    }
    out.push(StateTensor {
        name: APPLIED_STEPS.into(),
        shape: vec![1],
        kind: StateKind::U64,
        at: end..end + 8,
    });
    out
}

/// Reads a state on another thread, beside a forward and backward pass (rule K2). While one exists the engine changes
/// nothing: APPLY waits until it is dropped.
pub trait StateRead: Debug + Send {
    /// Copies bytes `at..at + out.len()` of the exported state.
    fn read(&self, at: usize, out: &mut [u8]);
}

/// A reader of bytes that were exported already.
#[derive(Debug)]
pub struct ExportedState(pub Vec<u8>);

impl StateRead for ExportedState {
    fn read(&self, at: usize, out: &mut [u8]) {
        out.copy_from_slice(&self.0[at..at + out.len()]);
    }
}

/// Counts who reads a state at the moment.
#[derive(Debug, Clone, Default)]
pub struct ReadGate {
    shared: Arc<(Mutex<usize>, Condvar)>,
}

/// Keeps writers out until it is dropped.
#[derive(Debug)]
pub struct ReadLease(ReadGate);

impl ReadGate {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more reader.
    #[must_use]
    pub fn lease(&self) -> ReadLease {
        *self.lock() += 1;
        ReadLease(self.clone())
    }

    /// Returns when nobody reads any more.
    pub fn wait(&self) {
        let mut readers = self.lock();
        while *readers > 0 {
            readers = self.shared.1.wait(readers).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for ReadLease {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.0.shared.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_opens_when_the_last_reader_is_gone() {
        let gate = ReadGate::default();
        gate.wait();
        let (first, second) = (gate.lease(), gate.lease());
        drop(first);
        let waiting = gate.clone();
        let (tell, told) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            waiting.wait();
            tell.send(()).unwrap();
        });
        assert!(told.try_recv().is_err(), "one still reads");
        drop(second);
        told.recv().unwrap();
        writer.join().unwrap();
    }
}
