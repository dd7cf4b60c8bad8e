//! `argosy profile`: some steps of a job by one worker, taken apart. Time by phase and by class of operator, work against
//! what the machine can do, one sentence that says what limits it, and a trace for Perfetto or Chrome.

mod classes;
mod machine;
mod report;
mod run;
mod trace;

pub use report::Profile;
pub use run::run;

use clap::Args;
use std::path::PathBuf;

/// Marks in a recording where BACKWARD goes from the loss into the towers.
pub const TOWERS_BACKWARD: &std::ffi::CStr = c"argosy::towers_backward";

/// Arguments of `argosy-worker profile`.
#[derive(Clone, Debug, Args)]
pub struct ProfileArgs {
    /// The job, with lanes and window factor settled
    #[arg(long, value_name = "FILE")]
    pub job: PathBuf,
    /// Folder that the job's relative paths start at
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// Index of its shards
    #[arg(long, value_name = "FILE")]
    pub index: PathBuf,
    /// Length of its run
    #[arg(long, value_name = "POSITIONS")]
    pub total_positions: u64,
    /// Threads of tensor operations
    #[arg(long, value_name = "N")]
    pub threads: u32,
    /// Folder for what a worker writes
    #[arg(long, value_name = "DIR")]
    pub work: PathBuf,
    /// Steps that are measured, after one that is not
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub steps: u64,
    /// Where the trace goes
    #[arg(long, value_name = "FILE")]
    pub trace: PathBuf,
}
