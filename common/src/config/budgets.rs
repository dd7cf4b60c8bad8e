//! The `[budgets]` section: how often a queued job is tried again.

use super::Job;
use super::check::{ConfigError, refuser};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Being preempted is nobody's error and may happen for ever unless told otherwise; a job's own errors have a limit. Errors
/// that another try cannot mend (a wrong job file, a missing file, a denied bucket) are never tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetsConfig {
    /// So many errors of its own, of all kinds together and without progress in between, are forgiven.
    pub errors_max: u32,
    /// The same by kind of error, where it shall be fewer.
    pub errors_max_by_reason: BTreeMap<ErrorKind, u32>,
    /// So many preemptions without progress in between are suffered; any number by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemptions_max: Option<u32>,
}

/// Errors of a job's own that may pass at another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Exit code 1: it failed.
    Failed,
    /// Exit code 101: it met a bug of ours.
    Panicked,
}

impl Default for BudgetsConfig {
    fn default() -> Self {
        Self {
            errors_max: 3,
            errors_max_by_reason: BTreeMap::new(),
            preemptions_max: None,
        }
    }
}

impl BudgetsConfig {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Errors of one kind that are forgiven.
    #[must_use]
    pub fn errors_max_of(&self, kind: ErrorKind) -> u32 {
        let own = self.errors_max_by_reason.get(&kind).copied();
        own.unwrap_or(self.errors_max).min(self.errors_max)
    }
}

/// Priorities lie between minus this and this.
const PRIORITY_MAX: i32 = 1000;

pub(super) fn check(file: &str, job: &Job) -> Result<(), ConfigError> {
    let refuse = refuser(file);
    if !(-PRIORITY_MAX..=PRIORITY_MAX).contains(&job.priority) {
        return refuse("priority", job.priority.to_string(), "-1000 to 1000");
    }
    let budgets = &job.budgets;
    if let Some((_, most)) = budgets
        .errors_max_by_reason
        .iter()
        .find(|(_, most)| **most > budgets.errors_max)
    {
        let expected = format!(
            "at most budgets.errors_max ({}), which counts all kinds",
            budgets.errors_max
        );
        return refuse("budgets.errors_max_by_reason", most.to_string(), &expected);
    }
    Ok(())
}
