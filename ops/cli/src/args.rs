//! The command line, as clap reads it.

use crate::clean::CleanArgs;
use crate::convert::ConvertArgs;
use crate::planning::PlanArgs;
use crate::settled::ConfigCommand;
use crate::validate::ValidateArgs;
use argosy_common::node::Role;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Elastic CLIP training: workers may come and go, what is trained stays the same.
#[derive(Debug, Parser)]
#[command(name = "argosy", version, propagate_version = true, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Log to stderr: -v info, -vv debug, -vvv trace (or ARGOSY_LOG=FILTER)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Scripts may rely on them.
const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 the job failed, 2 wrong command line, 3 not found, 4 conflict, 5 unavailable, 6 denied,
            75 no capacity for now, 78 wrong job file, 101 a bug, 130 ended by Ctrl-C";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Look at shards and write a job file for them
    Init(InitArgs),
    /// Print the job of a command line of open_clip_train, and name what of it cannot be honoured
    ConvertArgs(ConvertArgs),
    /// Show what a job's values are and where they come from
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the JSON Schema of job files
    Schema,
    /// Check a job: its fields, how its parts fit together, and data, buckets, disks and memory
    Validate(ValidateArgs),
    /// Say what a job will do and cost: steps, bytes, shares of workers, days, and how it differs from a run's
    Plan(PlanArgs),
    /// Train a job on this machine: a coordinator and worker processes
    Run(RunArgs),
    /// Decide what a run on a cluster will train, and put it where its machines find it: below the job's checkpoint.url
    Prepare(PrepareArgs),
    /// Read shards' headers and write their index, or show one
    Index(IndexArgs),
    /// Look at data before it is trained on
    #[command(subcommand)]
    Data(DataCommand),
    /// Evaluate a checkpoint
    #[command(subcommand)]
    Eval(EvalCommand),
    /// List a run's checkpoints
    Checkpoints(FolderArgs),
    /// Write a checkpoint in OpenCLIP's hub layout: CHECKPOINT -o DIR
    ///
    /// CHECKPOINT is a run folder, a manifest.json by path or URL, a folder in that layout, or a bare weight file (safetensors,
    /// or what PyTorch saved) with --model NAME|FILE. Options: --weights trained|ema, --results FILE (lines of JSON for the
    /// model card), --format table|json, --force-quick-gelu, --pretrained-tag TAG, --pretrained-mismatch, --tokenizer FILE.
    Export {
        /// Passed on to `argosy-worker export`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// Features of pictures and captions: --checkpoint C -o FILE and --data SHARDS, --texts FILE or --tensors FILE
    ///
    /// FILE.safetensors gets `image_features` and `text_features`, normalised; FILE.npy becomes one file each. --tensors takes
    /// a safetensors file with ready `images` (f32) and `texts` (i64). Options: --weights trained|ema, --batch, --threads,
    /// --image-key, --text-key, --max-image-pixels, --format table|json.
    Embed {
        /// Passed on to `argosy-worker embed`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// Models by name, with activation, normalisation, tokenizer and accuracy of the weights published for them
    Models(ModelsArgs),
    /// Compare numbers with OpenCLIP's, from a folder made by tests/peers/dump.py
    Parity(ParityArgs),
    /// Take some steps of a job apart: where the time goes, and what limits it
    Profile(ProfileArgs),
    /// Check that a run trained every position exactly once
    Audit(FolderArgs),
    /// Simulate: what a fleet would do, or worlds in which faults try to break the brains
    Sim(SimArgs),
    /// Write what happened in a run as one HTML page
    Report(ReportArgs),
    /// Make the certificates of a cluster: one authority, one certificate for each coordinator and worker
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Show versions, paths and what is missing
    Doctor(OutputArgs),
    /// Remove what was downloaded, the demo, or runs; says what it would remove unless told --yes
    Clean(CleanArgs),
    /// Print the completions of a shell
    Completions { shell: clap_complete::Shell },
    /// Write man pages into a folder
    #[command(hide = true)]
    Man { dir: PathBuf },
    /// Unpack the demo's archives
    #[command(hide = true)]
    Unpack(UnpackArgs),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// The same with more columns, where there are any
    Wide,
    /// One object, with the version of its format
    Json,
    /// One object a line and row
    Jsonl,
    /// As json, in YAML
    Yaml,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OutputArgs {
    /// Format of stdout
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

/// A job file and what is laid over it.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The job file (TOML, YAML or JSON, by its ending)
    pub(crate) job: PathBuf,
    /// Set a key of the job, as in `--set train.epochs=3`; goes over ARGOSY_JOB__TRAIN__EPOCHS, and that over the file
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
}

/// A run that is looked at.
#[derive(Debug, Args)]
pub(crate) struct FolderArgs {
    /// Folder of the run
    pub(crate) run: PathBuf,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Which members of a shard are a sample's.
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    /// Suffixes of the picture, in order of preference
    #[arg(long, default_value = "jpg;png;jpeg;webp")]
    pub(crate) image_key: String,
    /// Suffixes of the caption; `json:FIELD` is a field of the sample's JSON
    #[arg(long, default_value = "txt")]
    pub(crate) text_key: String,
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Shards: a folder, a pattern like `data/{00000..00041}.tar`, or an address like s3://bucket/prefix/
    #[arg(value_name = "URL")]
    pub(crate) shards: String,
    /// Where the job is written
    #[arg(long, value_name = "FILE", default_value = "job.toml")]
    pub(crate) out: PathBuf,
    /// A built-in model [default: by the number and size of the pictures]
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Worker processes that the job asks for [default: 2, or 1 on one core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) workers: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// Worker processes; the job's `workers.target` by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) workers: Option<u32>,
    /// Folder of the run [default: runs/NAME]
    #[arg(long, value_name = "DIR")]
    pub(crate) run: Option<PathBuf>,
    /// Go on with the run in that folder, at the exact position, with any number of workers. `name`, `workers`,
    /// `checkpoint` (but its url), `evaluation`, `failure`, `data.index`, `train.state_hash_steps` and, outside
    /// deterministic mode, `train.threads` and `train.micro_batch` may differ from what it began with
    #[arg(long)]
    pub(crate) resume: bool,
    /// Start from the weights in this folder (open_clip_config.json and open_clip_model.safetensors), as `argosy export`
    /// and model hubs lay them out, or from this weight file (safetensors, or what PyTorch saved)
    #[arg(long, value_name = "PATH")]
    pub(crate) pretrained: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PrepareArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// Folder of the run on this machine [default: runs/NAME]
    #[arg(long, value_name = "DIR")]
    pub(crate) run: Option<PathBuf>,
    /// Start from the weights in this folder, as in `argosy run`
    #[arg(long, value_name = "DIR")]
    pub(crate) pretrained: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct IndexArgs {
    /// Shards: folders, files, patterns like `data/{00000..00041}.tar`, manifests, addresses like `s3://bucket/set/`
    #[arg(value_name = "SHARDS", required_unless_present = "show")]
    pub(crate) shards: Vec<String>,
    /// Where the index is written
    #[arg(long, value_name = "FILE", default_value = "index.argosy")]
    pub(crate) out: PathBuf,
    /// Show an index that exists
    #[arg(long, value_name = "FILE", conflicts_with_all = ["shards", "out"])]
    pub(crate) show: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    /// Take the counts of sizes.json or img2dataset instead of reading the shards; a run reads them when it comes to them
    #[arg(long)]
    pub(crate) adopt: bool,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Which samples are kept.
#[derive(Debug, Args)]
pub(crate) struct FilterArgs {
    /// Keep samples whose id stands in this file, one per line
    #[arg(long, value_name = "FILE")]
    pub(crate) ids: Option<String>,
    /// Field of the sample's JSON that holds its id [default: its key]
    #[arg(long, value_name = "FIELD", requires = "ids")]
    pub(crate) id_field: Option<String>,
    /// Fewest and most characters of the caption
    #[arg(long, value_names = ["MIN", "MAX"], num_args = 2)]
    pub(crate) caption_chars: Option<Vec<u32>>,
    /// Condition on a field of the sample's JSON, as in `similarity >= 0.3`; may be given several times
    #[arg(long = "where", value_name = "CONDITION")]
    pub(crate) conditions: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Read and decode every sample once; name each that a run would leave out, with its reason
    Check(DataCheckArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DataCheckArgs {
    /// Shards: folders, files, patterns, manifests or addresses
    #[arg(value_name = "SHARDS", required = true)]
    pub(crate) shards: Vec<String>,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    /// Pictures with more pixels are named
    #[arg(long, default_value_t = 25_000_000, value_name = "N")]
    pub(crate) max_image_pixels: u64,
    /// Problems that are listed; beyond that they are counted
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub(crate) list: usize,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EvalCommand {
    /// Zero-shot classification of shards; arguments go to `argosy-worker eval-zero-shot`
    #[command(disable_help_flag = true)]
    ZeroShot {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ParityArgs {
    /// The folder
    pub(crate) dir: PathBuf,
    /// In-process workers that share the lanes
    #[arg(long, value_name = "W")]
    pub(crate) workers: Option<u32>,
    /// Lanes [default: golden.json's, else one row a lane]
    #[arg(long, value_name = "Q")]
    pub(crate) lanes: Option<u32>,
    /// Rows that a worker encodes at once; with fewer than it has, features come first and the towers run again
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) micro_batch: Option<u32>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ModelsArgs {
    /// Keep those whose names or tags hold all these parts
    #[arg(value_name = "PART")]
    pub(crate) parts: Vec<String>,
    /// Those that are not built as well, with the reason
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ProfileArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// Steps that are measured, after one that is not
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(crate) steps: u64,
    /// Where the trace goes, for ui.perfetto.dev
    #[arg(long, value_name = "FILE", default_value = "profile.trace.json")]
    pub(crate) trace: PathBuf,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SimArgs {
    /// Size a fleet of so many workers; without it, a small world with faults is run
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) workers: Option<u32>,
    /// Shards of the data set
    #[arg(long, value_name = "N", default_value_t = 200_000, requires = "workers", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) shards: u32,
    /// Samples of one pass
    #[arg(long, value_name = "N", default_value_t = 2_000_000_000, requires = "workers", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) samples: u64,
    /// Lanes [default: as a job would have]
    #[arg(long, value_name = "Q", requires = "workers")]
    pub(crate) lanes: Option<u32>,
    /// Global batch [default: 64 a worker]
    #[arg(long, value_name = "B", requires = "workers", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch: Option<u32>,
    /// Length of a step with all workers, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1_000, requires = "workers", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub(crate) step_ms: u64,
    /// What befalls the fleet (TOML; ops/examples/faults/spot.toml has every key)
    #[arg(long, value_name = "FILE", requires = "workers")]
    pub(crate) faults: Option<PathBuf>,
    /// Do not repeat it at other failure rates
    #[arg(long, requires = "workers")]
    pub(crate) no_rates: bool,
    /// Seed of everything that is drawn
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Worlds to run, one seed after the other
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "workers", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) worlds: u64,
    /// Tell what happens in the world, line by line
    #[arg(long, conflicts_with = "workers")]
    pub(crate) story: bool,
    /// Faults of the world instead of those of its seed, as a failure prints them
    #[arg(long, value_name = "KIND@MS:WHO:FOR_MS", conflicts_with = "workers")]
    pub(crate) fault: Vec<argosy_sim::Fault>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Folder of the run; it may be under way
    pub(crate) run: PathBuf,
    /// Where the page is written [default: RUN/report.html]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Shards for the contact sheet [default: the job's first evaluation set, else its first source]
    #[arg(long, value_name = "SHARDS", conflicts_with = "no_sheet")]
    pub(crate) data: Option<String>,
    /// No contact sheet: the only part that needs the checkpoint and the data
    #[arg(long)]
    pub(crate) no_sheet: bool,
}

fn role(text: &str) -> Result<Role, String> {
    match text {
        "coordinator" => Ok(Role::Coordinator),
        "worker" => Ok(Role::Worker),
        "etcd" => Ok(Role::Etcd),
        other => Err(format!("`{other}` is no role; expected coordinator, worker or etcd")),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum PkiCommand {
    /// Make an authority: DIR/ca.pem for everybody, DIR/ca.key for nobody; and DIR/token for coordinators and workers
    Init {
        /// The authority's folder
        dir: PathBuf,
        /// How long it is valid
        #[arg(long, value_name = "DAYS", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Make a node's TLS folder, DIR/NAME: its certificate and key, and the authority's certificate
    Issue {
        /// The authority's folder
        dir: PathBuf,
        /// The node's name: letters, digits and `-`; of an etcd the name that it is reached by
        name: String,
        /// What it may be
        #[arg(long, value_name = "coordinator|worker|etcd", value_parser = role)]
        role: Role,
        /// How long it is valid
        #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
    /// Say that nodes' certificates are good no more, in DIR/revoked.pem and in every node's folder
    Revoke {
        /// The authority's folder
        dir: PathBuf,
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Replace certificates and keys by new ones of the same names and roles; all of them by default
    Rotate {
        /// The authority's folder
        dir: PathBuf,
        /// Names
        names: Vec<String>,
        /// How long they are valid
        #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
}

#[derive(Debug, Args)]
pub(crate) struct UnpackArgs {
    /// A `.tar.zst` file
    pub(crate) archive: PathBuf,
    /// Folder to unpack into
    pub(crate) dir: PathBuf,
}
