//! What workers report of a step, of one that broke, and of a part that did not come.

use crate::ids::{Generation, StateName, WorkerId};
use crate::steplog::MaskReason;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a step broke, as one worker saw it (rule G10).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbortReport {
    /// The generation.
    pub generation: Generation,
    /// The step (count of applied steps before it).
    pub step: u64,
    /// Word for the phase it was in.
    pub phase: String,
    /// Collectives entered in that step.
    pub entered: u32,
    /// Bytes received in that step, by peer.
    pub received: BTreeMap<WorkerId, u64>,
    /// Peers whose link broke.
    pub lost_links: Vec<WorkerId>,
    /// A number was not finite (rule G11).
    pub not_finite: Option<NotFinite>,
}

/// Where a number stopped being finite, taken before sums mix (rule G11).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotFinite {
    /// Guilty lanes: those of the rows, else all lanes of the workers.
    pub lanes: Vec<u32>,
    /// The sum of finite parts was not finite: nobody is guilty.
    pub sum: bool,
}

/// One applied step, as one worker saw it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)] // events of before a field was added are read too
pub struct StepReport {
    /// The generation that applied it.
    pub generation: Generation,
    /// The state after it.
    pub name: StateName,
    /// Loss of the whole matrix; `None` if the step was passed over (`V < 2`).
    pub loss: Option<f64>,
    /// Learning rate used.
    pub lr: f64,
    /// Logit scale (exponentiated) after it.
    pub logit_scale: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Valid rows of the whole step.
    pub valid: u32,
    /// Rows of the whole step that took no part, by reason.
    pub masked: BTreeMap<MaskReason, u32>,
    /// Milliseconds by phase: load, encode, gather, loss, reduce, apply.
    pub phase_ms: BTreeMap<String, f32>,
    /// Hashes of the state's chunks after it, in order; empty on steps that do not compare (rule N3).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub state_hashes: Vec<u64>,
}

impl StepReport {
    /// Milliseconds of the whole step.
    #[must_use]
    pub fn step_ms(&self) -> f32 {
        self.phase_ms.values().sum()
    }
}

/// Why a part did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartFailure {
    /// The order came after its boundary: the next one is given further ahead.
    Late,
    /// The store did not take it, or there is no room: it is tried again after a while.
    Store,
}
