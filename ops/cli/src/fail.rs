//! How a command fails: an exit code, one sentence, and what to do about it.

use crate::out;
use argosy_common::config::ConfigError;
use argosy_common::exit::Exit;
use argosy_shard_loader::DataError;
use std::path::Path;

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            help: None,
        }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// A file that could not be read or written.
    pub(crate) fn io(what: &str, path: &Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        let exit = match error.kind() {
            ErrorKind::NotFound => Exit::NotFound,
            ErrorKind::PermissionDenied => Exit::Denied,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::OutOfMemory => Exit::NoCapacity,
            _ => Exit::JobFailed,
        };
        Self::new(exit, format!("cannot {what} {}: {error}", path.display()))
    }

    /// Tells the person at the terminal.
    pub(crate) fn print(&self) {
        out::say(&format!("{} {}", out::style("error:", out::RED), self.message));
        if let Some(help) = &self.help {
            out::say(&format!("{}  {help}", out::style("help:", out::CYAN)));
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        // A flag that does not fit is the command line's fault, not the job file's.
        let exit = match &error {
            ConfigError::Layer { place, .. } if place.starts_with("--") => Exit::Usage,
            _ => Exit::BadConfig,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::new(error.exit(), error.to_string())
    }
}
