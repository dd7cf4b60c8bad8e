//! What befalls a fleet, as a TOML file an operator writes.

use crate::queue::Ms;
use crate::spot::Trace;
use argosy_common::config::nearest;
use serde::{Deserialize, Serialize};

/// The file's keys; every one has a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultsFile {
    /// Shape of the reclaims: `poisson`, `correlated` or `diurnal`.
    pub trace: Trace,
    /// Mean life of one worker in seconds; 0: nobody is ever taken.
    pub mean_life_s: u64,
    /// Zones of a correlated trace.
    pub zones: u32,
    /// Period of a diurnal trace.
    pub period_s: u64,
    /// One in so many losses is silent (a machine that vanishes): noticed by the failure budget only. 0: none.
    pub silent_one_in: u32,
    /// A worker is told so long before it is taken.
    pub notice_ms: Ms,
    /// Mean time until a machine stands in its place.
    pub replace_ms: Ms,
    /// From a process's start until it can join.
    pub warm_up_ms: Ms,
    /// Connecting the ring of a generation.
    pub connect_ms: Ms,
    /// Taking the state over from peers.
    pub heal_ms: Ms,
    /// Copying and uploading the parts of a checkpoint.
    pub upload_ms: Ms,
    /// Size of the state.
    pub state_bytes: u64,
    /// A checkpoint every so many steps.
    pub checkpoint_steps: u64,
    /// The one knob of time-outs.
    pub failure_budget_ms: Ms,
    /// APPLY waits so long for the copy of a checkpoint's parts, which runs beside the step.
    pub copy_ms: Ms,
    /// Both baselines: nobody trains while a checkpoint is saved.
    pub save_ms: Ms,
    /// Both baselines: a silent loss is noticed so late. PyTorch's default for NCCL: ten minutes.
    pub hang_ms: Ms,
    /// Stop-the-world restart: all processes start again and load the last checkpoint.
    pub restart_ms: Ms,
    /// Checkpoint restart: the job is queued again, a full fleet is waited for, all start and load.
    pub requeue_ms: Ms,
}

impl Default for FaultsFile {
    fn default() -> Self {
        Self {
            trace: Trace::Poisson,
            mean_life_s: 48 * 3_600,
            zones: 3,
            period_s: 86_400,
            silent_one_in: 4,
            notice_ms: 0,
            replace_ms: 120_000,
            warm_up_ms: 20_000,
            connect_ms: 500,
            heal_ms: 2_000,
            upload_ms: 10_000,
            state_bytes: 1_800_000_000,
            checkpoint_steps: 200,
            failure_budget_ms: 10_000,
            copy_ms: 50,
            save_ms: 2_000,
            hang_ms: 600_000,
            restart_ms: 90_000,
            requeue_ms: 420_000,
        }
    }
}

/// A faults file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FaultsError {
    /// Not TOML, or a wrong type.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// A key that means nothing.
    #[error("line {line}: unknown key `{key}`{}; there are {}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default(), known.join(", "))]
    UnknownKey {
        /// Where it stands.
        line: usize,
        /// The key.
        key: String,
        /// The known one most like it.
        nearest: Option<String>,
        /// All there are.
        known: Vec<String>,
    },
    /// A value that makes no sense.
    #[error("`{key}` is {value}, expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it is.
        value: u64,
        /// What it may be.
        expected: &'static str,
    },
}

impl FaultsFile {
    /// Reads a file's text.
    ///
    /// # Errors
    /// The line and key that are wrong.
    pub fn parse(text: &str) -> Result<Self, FaultsError> {
        let table: toml::Table = toml::from_str(text)?;
        refuse_unknown_keys(text, &table)?;
        let file: Self = toml::from_str(text)?;
        let day = 86_400_000;
        let checks = [
            ("zones", u64::from(file.zones), 1, 10_000, "1 to 10000"),
            ("period_s", file.period_s, 1, 365 * 86_400, "1 second to a year"),
            (
                "mean_life_s",
                file.mean_life_s,
                0,
                100 * 365 * 86_400,
                "at most 100 years",
            ),
            ("replace_ms", file.replace_ms, 0, day, "at most a day"),
            ("warm_up_ms", file.warm_up_ms, 0, 110_000, "at most 110000"),
            ("connect_ms", file.connect_ms, 0, 30_000, "at most 30000"),
            ("heal_ms", file.heal_ms, 0, 30_000, "at most 30000"),
            ("upload_ms", file.upload_ms, 0, day, "at most a day"),
            ("notice_ms", file.notice_ms, 0, day, "at most a day"),
            ("state_bytes", file.state_bytes, 1, 1 << 44, "1 byte to 16 TiB"),
            ("checkpoint_steps", file.checkpoint_steps, 1, 1 << 32, "at least 1"),
            ("failure_budget_ms", file.failure_budget_ms, 100, day, "100 ms to a day"),
            ("copy_ms", file.copy_ms, 0, 600_000, "at most 600000"),
            ("save_ms", file.save_ms, 0, day, "at most a day"),
            ("hang_ms", file.hang_ms, 0, day, "at most a day"),
            ("restart_ms", file.restart_ms, 0, day, "at most a day"),
            ("requeue_ms", file.requeue_ms, 0, 30 * day, "at most 30 days"),
        ];
        for (key, value, least, most, expected) in checks {
            if !(least..=most).contains(&value) {
                return Err(FaultsError::Value { key, value, expected });
            }
        }
        Ok(file)
    }

    /// Parts of a checkpoint: 64 MiB each (rule K1).
    #[must_use]
    pub fn parts(&self) -> u32 {
        self.state_bytes.div_ceil(64 << 20).clamp(1, 100_000) as u32
    }
}

/// The names of all keys.
fn keys() -> Vec<String> {
    // Our own struct of numbers and names always is a table.
    let table = toml::Table::try_from(FaultsFile::default()).unwrap_or_default();
    table.keys().cloned().collect()
}

fn refuse_unknown_keys(text: &str, table: &toml::Table) -> Result<(), FaultsError> {
    let known = keys();
    let Some(key) = table.keys().find(|key| !known.contains(key)) else {
        return Ok(());
    };
    let names: Vec<&str> = known.iter().map(String::as_str).collect();
    let begins = |line: &str| {
        line.trim_start_matches([' ', '\t', '[', '"', '\''])
            .starts_with(key.as_str())
    };
    Err(FaultsError::UnknownKey {
        line: text.lines().position(begins).map_or(1, |at| at + 1),
        key: key.clone(),
        nearest: nearest(key, &names).map(ToOwned::to_owned),
        known,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_file_with_a_wrong_key_or_value_is_refused_by_name() {
        for (text, word) in [
            ("mean_live_s = 3", "mean_live_s"),
            ("zones = 0", "zones"),
            ("trace = \"x\"", "trace"),
        ] {
            let error = FaultsFile::parse(text).expect_err(text).to_string();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(FaultsFile::parse("").expect("defaults"), FaultsFile::default());
        let error = FaultsFile::parse("zones = 3\nmean_live_s = 3")
            .expect_err("a wrong key")
            .to_string();
        let begin = "line 2: unknown key `mean_live_s`; did you mean `mean_life_s`?; there are checkpoint_steps, ";
        assert!(error.starts_with(begin), "{error}");
    }

    #[test]
    fn faults_file_that_ships_has_every_key_with_its_default_and_a_word_about_it() {
        let text = include_str!("../../../../ops/examples/faults/spot.toml");
        assert_eq!(FaultsFile::parse(text).expect("it ships"), FaultsFile::default());
        for key in keys() {
            let line = text
                .lines()
                .find(|l| l.split('=').next().is_some_and(|k| k.trim() == key));
            assert!(line.is_some_and(|l| l.contains(" # ")), "{key}");
        }
    }
}
