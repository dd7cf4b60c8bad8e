//! What a worker writes at APPLY, so that whoever holds a state holds its history (rule AU1). One JSON object a line.

use crate::ids::{Generation, StateName};
use serde::{Deserialize, Serialize};

/// Version of the step log's format.
pub const STEP_LOG_VERSION: u32 = 1;

/// Why a row is not trained. All but the last are pure functions of the bytes (rule M1); the last is the coordinator's alone
/// and follows from its ledger (rule M2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskReason {
    /// The index has the row, the shard lacks it (or lacks its picture or caption).
    Missing,
    /// Not a picture that can be decoded.
    Format,
    /// More pixels than `max_image_pixels`.
    Pixels,
    /// More bytes than `max_sample_bytes`.
    Bytes,
    /// A caption that is empty or not UTF-8.
    Caption,
    /// A durable revision of the quarantine ledger leaves it out from this step on.
    Quarantined,
}

impl std::fmt::Display for MaskReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Format => "format",
            Self::Pixels => "pixels",
            Self::Bytes => "bytes",
            Self::Caption => "caption",
            Self::Quarantined => "quarantined",
        })
    }
}

/// What became of one row of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowState {
    /// Trained.
    Valid,
    /// Takes no part, for this reason.
    Masked(MaskReason),
    /// Beyond the run's last position; not a position at all.
    Absent,
}

impl RowState {
    /// One byte for the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Valid => 0,
            Self::Masked(MaskReason::Missing) => 1,
            Self::Masked(MaskReason::Format) => 2,
            Self::Masked(MaskReason::Pixels) => 3,
            Self::Masked(MaskReason::Bytes) => 4,
            Self::Masked(MaskReason::Caption) => 5,
            Self::Masked(MaskReason::Quarantined) => 6,
            Self::Absent => 255,
        }
    }

    /// The state of a byte; `None` for a byte that means nothing.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Valid,
            1 => Self::Masked(MaskReason::Missing),
            2 => Self::Masked(MaskReason::Format),
            3 => Self::Masked(MaskReason::Pixels),
            4 => Self::Masked(MaskReason::Bytes),
            5 => Self::Masked(MaskReason::Caption),
            6 => Self::Masked(MaskReason::Quarantined),
            255 => Self::Absent,
            _ => return None,
        })
    }
}

/// A masked row, in clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskedRow {
    /// Lane.
    pub lane: u32,
    /// Row of the lane's batch, from 0.
    pub row: u32,
    /// Why.
    pub reason: MaskReason,
}

/// One line of a worker's step log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StepRecord {
    /// First line of a file.
    Opened {
        /// Format version.
        version: u32,
        /// The worker.
        worker: u32,
        /// Its process.
        pid: u32,
    },
    /// A step was applied (or passed over: then `skipped` says why).
    Applied {
        /// The state after it.
        name: StateName,
        /// The generation's plan.
        plan_hash: u64,
        /// Digest of the ids of every lane, in lane order; see [`crate::sampling::lane_digest`].
        lanes: Vec<u64>,
        /// Valid rows `V`.
        valid: u32,
        /// Rows that took no part.
        masked: Vec<MaskedRow>,
        /// Why nothing was written but the name.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        skipped: Option<String>,
        /// The loss of the whole matrix; `null` when skipped.
        loss: Option<f64>,
    },
    /// The state was taken over from somebody else.
    Healed {
        /// The state taken over.
        name: StateName,
        /// In which generation.
        gen_: Generation,
        /// `manifest`, `seed`, or the members that gave slices of it, as in `w3` or `w1,w3`.
        from: String,
    },
}

/// Reads a step log. A torn last line (the writer was killed in it) is dropped; any other bad line is an error naming it.
///
/// # Errors
/// The 1-based line and what is wrong with it.
pub fn parse(text: &str) -> Result<Vec<StepRecord>, (usize, String)> {
    let complete = text.rfind('\n').map_or(0, |end| end + 1);
    text[..complete]
        .lines()
        .enumerate()
        .map(|(i, line)| serde_json::from_str(line).map_err(|e| (i + 1, e.to_string())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_log_with_a_torn_last_line_keeps_the_whole_ones() {
        let record = StepRecord::Healed {
            name: StateName::INITIAL,
            gen_: Generation(1),
            from: "seed".into(),
        };
        let line = serde_json::to_string(&record).expect("serialises");
        let text = format!("{line}\n{line}\n{}", &line[..10]);
        assert_eq!(parse(&text).expect("two lines"), vec![record.clone(), record]);
        let broken = format!("{}\n{line}\n", &line[..10]);
        assert_eq!(parse(&broken).expect_err("first line is bad").0, 1);
    }

    #[test]
    fn row_states_survive_their_byte() {
        for code in 0..=255u8 {
            if let Some(state) = RowState::from_code(code) {
                assert_eq!(state.code(), code);
            }
        }
        assert_eq!(RowState::from_code(99), None);
    }
}
