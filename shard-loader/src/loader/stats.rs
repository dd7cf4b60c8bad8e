//! Counters of a loader.

use crate::batch::LaneBatch;
use argosy_common::steplog::MaskReason;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a loader did since its start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoaderStats {
    /// Valid rows handed out; a step that was done again counts again.
    pub images: u64,
    /// Bytes read from shards.
    pub bytes: u64,
    /// Rows handed out that take no part, by reason.
    pub masked: BTreeMap<MaskReason, u64>,
    /// Rows that shards hold beyond what was claimed of them; they are not trained (rule L6).
    pub rows_beyond: u64,
    /// Time of the fetching thread.
    pub fetch_seconds: f64,
    /// Time of all decoding threads together, pictures to RGB.
    pub decode_seconds: f64,
    /// The same, crop, resize and colours.
    pub transform_seconds: f64,
    /// The same, captions to tokens.
    pub tokenize_seconds: f64,
    /// Time the trainer waited.
    pub wait_seconds: f64,
}

/// Where a thread's time goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    Fetch = 0,
    Decode = 1,
    Transform = 2,
    Tokenize = 3,
    Wait = 4,
}

const REASONS: [MaskReason; 6] = [
    MaskReason::Missing,
    MaskReason::Format,
    MaskReason::Pixels,
    MaskReason::Bytes,
    MaskReason::Caption,
    MaskReason::Quarantined,
];

#[derive(Debug, Default)]
pub(super) struct Counters {
    images: AtomicU64,
    bytes: AtomicU64,
    beyond: AtomicU64,
    masked: [AtomicU64; REASONS.len()],
    nanos: [AtomicU64; 5],
}

impl Counters {
    pub(super) fn spent(&self, stage: Stage, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanos[stage as usize].fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn read(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn beyond(&self, rows: u64) {
        self.beyond.fetch_add(rows, Ordering::Relaxed);
    }

    pub(super) fn handed_out(&self, batches: &[LaneBatch], waited: Duration) {
        self.spent(Stage::Wait, waited);
        for batch in batches {
            self.images.fetch_add(u64::from(batch.valid_rows()), Ordering::Relaxed);
            for (_, reason) in batch.masked() {
                for (counter, known) in self.masked.iter().zip(REASONS) {
                    if known == reason {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    pub(super) fn snapshot(&self) -> LoaderStats {
        let seconds = |stage: Stage| self.nanos[stage as usize].load(Ordering::Relaxed) as f64 / 1e9;
        let masked = REASONS
            .iter()
            .zip(&self.masked)
            .map(|(r, n)| (*r, n.load(Ordering::Relaxed)));
        LoaderStats {
            images: self.images.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            masked: masked.filter(|(_, n)| *n > 0).collect(),
            rows_beyond: self.beyond.load(Ordering::Relaxed),
            fetch_seconds: seconds(Stage::Fetch),
            decode_seconds: seconds(Stage::Decode),
            transform_seconds: seconds(Stage::Transform),
            tokenize_seconds: seconds(Stage::Tokenize),
            wait_seconds: seconds(Stage::Wait),
        }
    }
}
