//! What is laid over a job file: the environment, then flags. Defaults lie below all.

use super::tree::{Node, Place};
use super::{ConfigError, JOB_FILE_BYTES_MAX, Job, JobFormat, check, unknown};

/// Environment variables that begin so set keys of a job: `ARGOSY_JOB__TRAIN__LR=1e-3`.
pub const JOB_VARIABLES: &str = "ARGOSY_JOB__";
/// Values of the environment and of flags are no longer than this.
const VALUE_BYTES_MAX: usize = 1 << 16;

/// What lies over a job file.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// Names and values of the environment; those that do not begin with [`JOB_VARIABLES`] are passed over.
    pub environment: Vec<(String, String)>,
    /// Dotted keys with their values, and the flag as it was typed.
    pub flags: Vec<Setting>,
}

/// One flag that sets a key.
#[derive(Clone, Debug)]
pub struct Setting {
    /// As in `train.lr`.
    pub key: String,
    /// As in TOML, or a string where it is not TOML.
    pub value: String,
    /// For errors and origins: `--set train.lr=1e-3`.
    pub flag: String,
}

/// A job, and where each of its values was said.
#[derive(Clone, Debug)]
pub struct SettledJob {
    /// The job, checked.
    pub job: Job,
    /// What was said, without defaults.
    pub said: Node,
}

impl Job {
    /// Reads and checks a job file with what lies over it. `file` names it in errors, and its ending says the format.
    ///
    /// # Errors
    /// [`ConfigError`] names the place (a line, a variable, a flag) and the key, what was expected and, for an unknown key,
    /// the nearest known one.
    pub fn read(file: &str, text: &str, layers: &Layers) -> Result<SettledJob, ConfigError> {
        Self::read_as(file, text, JobFormat::of(file), layers)
    }

    pub(super) fn read_as(
        file: &str,
        text: &str,
        format: JobFormat,
        layers: &Layers,
    ) -> Result<SettledJob, ConfigError> {
        if text.len() > JOB_FILE_BYTES_MAX {
            return Err(ConfigError::TooLarge {
                file: file.into(),
                bytes: text.len(),
                bytes_max: JOB_FILE_BYTES_MAX,
            });
        }
        let mut said = Node::read(file, text, format)?;
        for (name, value) in &layers.environment {
            if let Some(key) = name.strip_prefix(JOB_VARIABLES) {
                let key = key.replace("__", ".").to_ascii_lowercase();
                lay(&mut said, &key, value, &Place::Variable(name.as_str().into()))?;
            }
        }
        for flag in &layers.flags {
            lay(
                &mut said,
                &flag.key,
                &flag.value,
                &Place::Flag(flag.flag.as_str().into()),
            )?;
        }
        unknown::refuse_unknown_keys(&said)?;
        let mut job: Self = said.read_out()?;
        job.name_sources();
        check::check(file, &job).map_err(|error| error.located(&said))?;
        Ok(SettledJob { job, said })
    }
}

fn lay(said: &mut Node, key: &str, value: &str, place: &Place) -> Result<(), ConfigError> {
    if value.len() > VALUE_BYTES_MAX || key.split('.').count() > 8 {
        return Err(ConfigError::Layer {
            place: place.to_string(),
            message: format!("too long; a key has at most 8 parts, a value {VALUE_BYTES_MAX} bytes"),
        });
    }
    said.lay(key, Node::typed(value, place))
        .map_err(|part| ConfigError::Layer {
            place: place.to_string(),
            message: format!("`{part}` is not a section of the job"),
        })
}
