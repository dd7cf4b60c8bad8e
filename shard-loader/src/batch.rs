//! What one lane contributes to one step.

use argosy_common::ids::SampleId;
use argosy_common::steplog::{MaskReason, RowState};

/// The rows of one lane at one step, ready for the device. Plain bytes; normalisation happens there.
///
/// `b` is the number of rows, `S` the picture's side, `C` the context length.
#[derive(Clone, Debug, PartialEq)]
pub struct LaneBatch {
    /// The step.
    pub step: u64,
    /// The lane.
    pub lane: u32,
    /// Rows `b` of a full batch; the vectors below are always this long, whatever is masked or absent.
    pub rows: u32,
    /// The samples in trained order; shorter than `b` at the end of the run only.
    pub samples: Vec<SampleId>,
    /// What became of each row, `[b]`.
    pub states: Vec<RowState>,
    /// `[b, S, S, 3]` in 0..=255, rows of RGB; zero where a row is not valid.
    pub pixels: Vec<u8>,
    /// `[b, C]` token ids, zero after the end and where a row is not valid.
    pub tokens: Vec<i32>,
    /// `[b]` tokens with start and end of text; 0 where a row is not valid.
    pub lengths: Vec<u16>,
    /// [`argosy_common::sampling::lane_digest`] of `samples`.
    pub digest: u64,
}

impl LaneBatch {
    /// Rows that are trained.
    #[must_use]
    pub fn valid_rows(&self) -> u32 {
        self.states.iter().filter(|s| **s == RowState::Valid).count() as u32
    }

    /// Rows that take no part, with their reasons.
    pub fn masked(&self) -> impl Iterator<Item = (u32, MaskReason)> + '_ {
        self.states.iter().enumerate().filter_map(|(row, state)| match state {
            RowState::Masked(reason) => Some((row as u32, *reason)),
            RowState::Valid | RowState::Absent => None,
        })
    }
}
