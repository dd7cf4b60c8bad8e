//! The state as bytes: export, import, hashes, and a reader beside the next step.

use super::TorchEngine;
use crate::engine::state::{ReadLease, StateRead};
use crate::engine::{Engine, EngineError, Result, STATE_CHUNK_BYTES, expect_len, hash_state_bytes};
use argosy_torch_ext::{FlatBuffer, FlatReader};

/// Reads the state's arrays where they lie.
#[derive(Debug)]
pub(super) struct StateReader {
    arrays: Vec<FlatReader>,
    /// The count of updates.
    applied: [u8; 8],
    /// Last, so that the arrays are let go first.
    _lease: ReadLease,
}

impl StateRead for StateReader {
    fn read(&self, at: usize, out: &mut [u8]) {
        let pieces = self.arrays.iter().map(FlatReader::as_bytes).chain([&self.applied[..]]);
        let (mut start, end) = (0, at + out.len());
        for piece in pieces {
            let (from, to) = (at.max(start), end.min(start + piece.len()));
            if from < to {
                out[from - at..to - at].copy_from_slice(&piece[from - start..to - start]);
            }
            start += piece.len();
        }
    }
}

impl TorchEngine {
    /// Arrays of the state in order, `[P]` each.
    pub(super) fn arrays(&self) -> Vec<&FlatBuffer> {
        let moments = [&self.params.values, &self.adam.exp_avg, &self.adam.exp_avg_sq];
        moments.into_iter().chain(self.ema.as_ref()).collect()
    }

    pub(super) fn export_bytes(&self, out: &mut Vec<u8>) {
        out.clear();
        out.reserve(self.state_len());
        for buffer in self.arrays() {
            out.extend_from_slice(buffer.as_bytes());
        }
        out.extend_from_slice(&self.adam.applied.to_le_bytes());
    }

    pub(super) fn import_bytes(&mut self, bytes: &[u8], expected_hash: Option<u64>) -> Result<()> {
        // An engine that keeps no average, as evaluation has, leaves that of a state out.
        let with_average = self.state_elements() * 16 + 8;
        if self.ema.is_some() || bytes.len() != with_average {
            expect_len("state bytes", self.state_len(), bytes.len())?;
        }
        if expected_hash.is_some_and(|h| h != hash_state_bytes(bytes)) {
            return Err(EngineError::State(
                "the state's hash differs from the one announced; fetch it again".into(),
            ));
        }
        self.gate.wait();
        self.step = None;
        let (arrays, count) = bytes.split_at(bytes.len() - 8);
        let moments = [
            &mut self.params.values,
            &mut self.adam.exp_avg,
            &mut self.adam.exp_avg_sq,
        ];
        let buffers = moments.into_iter().chain(self.ema.as_mut());
        for (buffer, bytes) in buffers.zip(arrays.chunks(4 * self.params.grads.len())) {
            for (value, b) in buffer.as_mut_slice().iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_le_bytes(*b);
            }
        }
        self.adam.applied = count.as_chunks().0.first().map_or(0, |b| u64::from_le_bytes(*b));
        self.params.refresh()
    }

    pub(super) fn hash_bytes(&self) -> u64 {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for buffer in self.arrays() {
            hash.update(buffer.as_bytes());
        }
        hash.update(&self.adam.applied.to_le_bytes());
        hash.digest()
    }

    pub(super) fn hash_chunks(&self) -> Vec<u64> {
        let arrays = self.arrays().into_iter().map(FlatBuffer::as_bytes);
        let chunks = arrays.flat_map(|array| array.chunks(STATE_CHUNK_BYTES));
        let count = self.adam.applied.to_le_bytes();
        chunks.chain([&count[..]]).map(hash_state_bytes).collect()
    }

    pub(super) fn start_from(&mut self, params: &[f32]) -> Result<()> {
        expect_len("parameters", self.state_elements(), params.len())?;
        self.gate.wait();
        self.step = None;
        self.params.values.as_mut_slice().copy_from_slice(params);
        self.adam.exp_avg.as_mut_slice().fill(0.0);
        self.adam.exp_avg_sq.as_mut_slice().fill(0.0);
        self.adam.applied = 0;
        self.params.round()?;
        if let Some(ema) = &mut self.ema {
            ema.as_mut_slice().copy_from_slice(self.params.values.as_slice());
        }
        self.params.refresh()
    }

    pub(super) fn reader(&self) -> StateReader {
        StateReader {
            arrays: self.arrays().into_iter().map(FlatBuffer::reader).collect(),
            applied: self.adam.applied.to_le_bytes(),
            _lease: self.gate.lease(),
        }
    }
}
