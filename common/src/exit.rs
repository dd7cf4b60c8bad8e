//! Exit codes of every Argosy process; scripts may rely on them.

/// How a process ended, as its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All was done.
    Ok = 0,
    /// The job failed: bad data that ends a run, a check that did not hold, training that diverged.
    JobFailed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A file, folder, run or job that was named does not exist.
    NotFound = 3,
    /// What was asked contradicts what is there.
    Conflict = 4,
    /// A process or service that is needed cannot be reached.
    Unavailable = 5,
    /// The caller may not do this.
    Denied = 6,
    /// Not enough workers, memory or disk for now.
    NoCapacity = 75,
    /// The job file or another configuration is wrong.
    BadConfig = 78,
    /// A bug: the process panicked.
    Panic = 101,
    /// Ended by Ctrl-C.
    Interrupted = 130,
}

impl Exit {
    /// The numeric code.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The exit that a numeric code stands for; unknown codes count as a failed job.
    #[must_use]
    pub fn from_code(code: i32) -> Self {
        match code {
            0 => Self::Ok,
            2 => Self::Usage,
            3 => Self::NotFound,
            4 => Self::Conflict,
            5 => Self::Unavailable,
            6 => Self::Denied,
            75 => Self::NoCapacity,
            78 => Self::BadConfig,
            101 => Self::Panic,
            130 => Self::Interrupted,
            _ => Self::JobFailed,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
