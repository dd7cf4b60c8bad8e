//! The command line, as clap reads it.

use clap::{Parser, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Coordinates one run on a cluster, or stands by for the coordinator that does.
///
/// Ctrl-C takes a checkpoint and ends the run; SIGTERM leaves the lead to a standby.
#[derive(Debug, Parser)]
#[command(name = "argosy-coordinator", version, max_term_width = 100)]
pub(crate) struct Args {
    /// The run: the address that `argosy prepare` printed
    #[arg(value_name = "URL")]
    pub(crate) run: String,
    /// All members of the etcd cluster that keeps records and elects the leader
    #[arg(
        long,
        value_name = "URL,...",
        value_delimiter = ',',
        required = true,
        env = "ARGOSY_ETCD"
    )]
    pub(crate) etcd: Vec<String>,
    /// Name to log in to etcd with
    #[arg(long, value_name = "NAME", requires = "etcd_password_file")]
    pub(crate) etcd_user: Option<String>,
    /// File that holds its password
    #[arg(long, value_name = "FILE", requires = "etcd_user")]
    pub(crate) etcd_password_file: Option<PathBuf>,
    /// Folder with the certificates for etcd, as in --tls, which is used by default where etcd's addresses are https
    #[arg(long, value_name = "DIR")]
    pub(crate) etcd_tls: Option<PathBuf>,
    /// Where workers find it while it leads; off loopback --tls is needed
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7070")]
    pub(crate) listen: SocketAddr,
    /// What it says of its place in etcd, for people [default: as --listen]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
    /// Folder with ca.pem, node.pem and node.key, as `argosy pki issue --role coordinator` makes it
    #[arg(long, value_name = "DIR", env = "ARGOSY_TLS")]
    pub(crate) tls: Option<PathBuf>,
    /// File that holds the cluster's token, the same on all machines, at least 32 characters
    #[arg(long, value_name = "FILE", env = "ARGOSY_TOKEN_FILE")]
    pub(crate) token_file: PathBuf,
    /// Folder of its own for events and copies of the run's files; `argosy audit` reads it
    #[arg(long, value_name = "DIR", default_value = "coordinator")]
    pub(crate) dir: PathBuf,
    /// Workers that are wanted [default: the job's workers.target]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) workers: Option<u32>,
    /// Command that is run by `sh -c` while fewer workers are here than are wanted, with ARGOSY_RUN, ARGOSY_WORKERS_HERE,
    /// ARGOSY_WORKERS_TARGET and ARGOSY_WORKERS_WANTED (how many are missing) in its environment
    #[arg(long, value_name = "COMMAND")]
    pub(crate) scale: Option<String>,
    /// While workers are missing, the command is run so often
    #[arg(long, value_name = "S", default_value_t = 120, requires = "scale", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) scale_every_s: u64,
    /// A leader that etcd has not heard for so long is followed by another
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..=300))]
    pub(crate) lease_s: u64,
    /// Workers train on for so long without hearing from a coordinator
    #[arg(long, value_name = "S", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) outage_max_s: u64,
    /// Workers look for a coordinator for so long before they end
    #[arg(long, value_name = "S", default_value_t = 1_800, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub(crate) orphan_max_s: u64,
    /// How log lines look on stderr
    #[arg(long, value_enum, default_value_t, env = "ARGOSY_LOG_FORMAT")]
    pub(crate) log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}
