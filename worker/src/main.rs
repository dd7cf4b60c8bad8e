//! `argosy-worker`: the process that trains, and the commands that need libtorch.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command says is its output"
)]

use anyhow::Context;
use argosy_common::config::Job;
use argosy_common::exit::Exit;
use argosy_common::ids::WorkerId;
use argosy_common::secret;
use argosy_worker::agent::{self, JoinOptions, LeaveArgs};
use argosy_worker::eval::{self, EvalArgs, SheetArgs};
use argosy_worker::gpu::{self, CheckArgs};
use argosy_worker::hub::embed::{self, EmbedArgs};
use argosy_worker::hub::export::{self, ExportArgs};
use argosy_worker::hub::listing::{self, ListArgs};
use argosy_worker::profile::{self, ProfileArgs};
use argosy_worker::{crash, device, model, parity};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

#[derive(Debug, Parser)]
#[command(
    name = "argosy-worker",
    version,
    about = "Trains for an Argosy coordinator; `argosy` starts it"
)]
struct Cli {
    /// How log lines look on stderr
    #[arg(long, global = true, value_enum, default_value_t, env = "ARGOSY_LOG_FORMAT")]
    log_format: LogFormat,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

/// How a machine of a cluster joins. It needs nothing else: the run's files come from the coordinator and the run's place.
#[derive(Debug, clap::Args)]
struct ClusterArgs {
    /// Join a run on a cluster: all its coordinators, of which one leads
    #[arg(
        long = "join",
        value_name = "URL,...",
        value_delimiter = ',',
        requires = "token_file"
    )]
    join: Vec<String>,
    /// File that holds the cluster's token
    #[arg(long, value_name = "FILE", env = "ARGOSY_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Folder with ca.pem, node.pem and node.key, as `argosy pki issue --role worker` makes it [default: the folder `tls`
    /// beside the token, if there is one]
    #[arg(long, value_name = "DIR", env = "ARGOSY_TLS")]
    tls: Option<PathBuf>,
    /// Folder of its own for the run's files, logs of steps and crash reports
    #[arg(long, value_name = "DIR", default_value = "worker")]
    dir: PathBuf,
    /// This machine's name [default: that in its certificate]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where other workers find it [default: the address that it reaches the coordinator from, any port]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// The host that other workers reach it at, where that is not the address it listens on
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    #[command(flatten)]
    leave: LeaveArgs,
}

impl From<ClusterArgs> for JoinOptions {
    fn from(args: ClusterArgs) -> Self {
        let token_file = args.token_file.unwrap_or_default(); // clap asks for it
        let beside = token_file.with_file_name("tls");
        Self {
            endpoints: args.join,
            tls: args.tls.or_else(|| beside.is_dir().then_some(beside)),
            token_file,
            worker: None,
            name: args.name,
            dir: args.dir,
            listen: args.listen,
            advertise: args.advertise,
            leave: args.leave,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join a coordinator and train until the run is over
    Join {
        /// A coordinator, http://host:port; given several times, of which one leads
        #[arg(long = "endpoint", value_name = "URL", required = true)]
        endpoints: Vec<String>,
        /// File that holds the token
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
        /// Id that the coordinator gave this worker
        #[arg(long, value_name = "N")]
        worker: u32,
        #[command(flatten)]
        leave: LeaveArgs,
    },
    /// Print size and parts of a job's model as JSON
    DescribeModel {
        /// The job file
        #[arg(long, value_name = "FILE")]
        job: PathBuf,
    },
    /// Compare a folder of golden values with OpenCLIP's, shared by W workers
    Parity {
        /// Folder made by tests/peers/dump.py
        dir: PathBuf,
        /// In-process workers
        #[arg(long, value_name = "W", default_value_t = 1)]
        workers: usize,
        /// Lanes; by default the golden's own, else one row a lane
        #[arg(long, value_name = "Q")]
        lanes: Option<usize>,
        /// Rows that a worker encodes at once; with fewer than it has, features come first and the towers run again
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        micro_batch: Option<u32>,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Write a checkpoint in OpenCLIP's hub layout
    Export {
        #[command(flatten)]
        args: ExportArgs,
        /// Format of stdout
        #[arg(long, value_enum, default_value_t)]
        format: Output,
    },
    /// Features of pictures and captions
    Embed {
        #[command(flatten)]
        args: EmbedArgs,
        /// Format of stdout
        #[arg(long, value_enum, default_value_t)]
        format: Output,
    },
    /// Take some steps of a job apart
    Profile {
        #[command(flatten)]
        args: ProfileArgs,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// What there is to compute with on GPUs, and what is missing, as JSON
    Devices,
    /// Compare steps on a GPU with the same steps on the CPU
    CheckDevice {
        #[command(flatten)]
        args: CheckArgs,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Zero-shot classification of shards with a checkpoint
    EvalZeroShot {
        #[command(flatten)]
        args: EvalArgs,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Captions with their nearest pictures and back, as JSON with thumbnails
    ContactSheet {
        #[command(flatten)]
        args: SheetArgs,
    },
    /// Models by name, with the weights published for them
    Models {
        #[command(flatten)]
        args: ListArgs,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Images a second that a built-in model trains at on this machine, as JSON
    Measure {
        /// Name of the model
        #[arg(long)]
        model: String,
        /// Threads of one tensor operation; all cores by default
        #[arg(long)]
        threads: Option<usize>,
    },
}

/// An exit code and the sentence that explains it.
type Failure = (Exit, String);

fn main() -> ExitCode {
    let cli = Cli::parse();
    secret::learn_environment(variables());
    start_logging(cli.log_format);
    crash::install();
    let result = std::panic::catch_unwind(|| match (cli.cluster.join.is_empty(), cli.command) {
        (false, None) => join(cli.cluster.into()),
        (true, Some(command)) => carry_out(command),
        (false, Some(_)) => Err((Exit::Usage, "--join and a command exclude each other".into())),
        (true, None) => {
            let help = Cli::command().render_help();
            Err((
                Exit::Usage,
                format!("say --join URL --token-file FILE, or a command\n\n{help}"),
            ))
        }
    });
    match result {
        _ if crash::happened() => Exit::Panic.into(),
        Ok(Ok(exit)) => exit.into(),
        Ok(Err((exit, message))) => {
            eprintln!("error: {}", secret::hide(&message));
            exit.into()
        }
        Err(_) => Exit::Panic.into(),
    }
}

/// The environment, as far as it is text.
fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_env("ARGOSY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(|| secret::Hiding(std::io::stderr()));
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

fn carry_out(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Join {
            endpoints,
            token_file,
            worker,
            leave,
        } => join(JoinOptions {
            endpoints,
            token_file,
            worker: Some(WorkerId(worker)),
            tls: None,
            name: None,
            dir: "worker".into(),
            listen: None,
            advertise: None,
            leave,
        }),
        Command::DescribeModel { job } => describe_model(&job),
        Command::Parity {
            dir,
            workers,
            lanes,
            micro_batch,
            output,
        } => {
            let options = parity::Options {
                workers,
                lanes,
                micro_rows: micro_batch.map_or(usize::MAX, |rows| rows as usize),
                ..parity::Options::default()
            };
            run_parity(&dir, &options, output)
        }
        Command::Export { args, format } => {
            let done = export::run(&args)?;
            match format {
                Output::Json => print_json(&done)?,
                Output::Table => {
                    let (folder, weights, from) = (&done.folder, done.weights, &done.from);
                    print_data(&format!(
                        "{folder}: {} {weights} parameters of {from}\n",
                        done.parameters
                    ))?;
                }
            }
            hint(&format!(
                "next: open_clip.create_model(\"local-dir:{}\") in Python",
                done.folder
            ));
            Ok(Exit::Ok)
        }
        Command::Embed { args, format } => {
            let done = embed::run(&args)?;
            match format {
                Output::Json => print_json(&done)?,
                Output::Table => {
                    let files = done.files.join(", ");
                    print_data(&format!(
                        "{files}: {} images, {} texts, {} wide\n",
                        done.images, done.texts, done.dim
                    ))?;
                }
            }
            for (reason, count) in &done.left_out {
                eprintln!("left out: {count} ({reason})");
            }
            hint("next: read them with safetensors or numpy; rows follow the order of the input");
            Ok(Exit::Ok)
        }
        Command::Profile { args, output } => {
            let profile = profile::run(&args, &|line| eprintln!("{line}"))?;
            match output {
                Output::Json => print_json(&profile)?,
                Output::Table => print_data(&profile.table())?,
            }
            Ok(Exit::Ok)
        }
        Command::Devices => {
            print_json(device::cuda())?;
            Ok(Exit::Ok)
        }
        Command::CheckDevice { args, output } => {
            let report = gpu::run(&args, &|line| eprintln!("{line}"))?;
            match output {
                Output::Json => print_json(&report)?,
                Output::Table => print_data(&report.table())?,
            }
            Ok(if report.holds { Exit::Ok } else { Exit::JobFailed })
        }
        Command::EvalZeroShot { args, output } => {
            let report = eval::run(&args)?;
            match output {
                Output::Json => print_json(&report)?,
                Output::Table => print_data(&report.table())?,
            }
            hint("next: --predictions FILE writes every answer; argosy report RUN shows the pictures");
            Ok(Exit::Ok)
        }
        Command::ContactSheet { args } => {
            print_json(&eval::contact_sheet(&args)?)?;
            Ok(Exit::Ok)
        }
        Command::Models { args, output } => {
            let listing = listing::list(&args);
            match output {
                Output::Json => print_json(&listing)?,
                Output::Table => print_data(&listing.table())?,
            }
            hint(
                "next: fetch a file of these weights and give it to --pretrained with model.name; nothing is downloaded",
            );
            Ok(Exit::Ok)
        }
        Command::Measure { model, threads } => {
            let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
            print_json(&eval::measure(&model, threads)?)?;
            Ok(Exit::Ok)
        }
    }
}

fn join(options: JoinOptions) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| (Exit::NoCapacity, format!("no threads for the runtime: {e}")))?;
    let ended = runtime.block_on(agent::join(options));
    runtime.shutdown_background();
    ended
}

fn describe_model(path: &Path) -> Result<Exit, Failure> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| (Exit::NotFound, format!("job file {file}: {e}")))?;
    let job = Job::from_toml(&file, &text).map_err(|e| (Exit::BadConfig, e.to_string()))?;
    let base = path.parent().unwrap_or(Path::new("."));
    let (config, preprocess) = model::resolve_job(&job, base).map_err(|e| (Exit::BadConfig, e.to_string()))?;
    let digest = model::pretrained_digest(&job.model, base).map_err(|e| (Exit::NotFound, e.to_string()))?;
    let described = model::Description {
        pretrained_digest: digest,
        ..model::describe(&config, &preprocess, job.train.ema_half_life_samples.is_some())
    };
    print_json(&described)?;
    Ok(Exit::Ok)
}

fn run_parity(dir: &Path, options: &parity::Options, output: Output) -> Result<Exit, Failure> {
    if !dir.is_dir() {
        let message = format!(
            "folder {} does not exist; give one made by tests/peers/dump.py",
            dir.display()
        );
        return Err((Exit::NotFound, message));
    }
    let report = parity::run(dir, options).map_err(|e| (Exit::JobFailed, e.to_string()))?;
    match output {
        Output::Json => print_json(&report)?,
        Output::Table => {
            let mut table = format!("{:<14} {:>10} {:>10}  at\n", "measure", "value", "bound");
            for m in &report.measures {
                let fails = if m.holds { "" } else { "  FAILS" };
                let name = m.measure.name();
                table += &format!("{name:<14} {:>10.2e} {:>10.2e}  {}{fails}\n", m.value, m.bound, m.at);
            }
            let verdict = if report.holds { "all hold" } else { "FAILS" };
            print_data(&format!("{table}{verdict}\n"))?;
        }
    }
    hint("next: -o json has every measure; bounds are in tests/bounds.toml");
    Ok(if report.holds { Exit::Ok } else { Exit::JobFailed })
}

/// What to do next, for people at a terminal.
fn hint(line: &str) {
    if std::io::stdout().is_terminal() {
        eprintln!("{line}");
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .context("the result cannot be written as JSON")
        .map_err(|e| (Exit::Panic, format!("{e:#}")))?;
    print_data(&(text + "\n"))
}

/// Data on stdout. A reader that has seen enough (`| head`) is no error.
fn print_data(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err((Exit::JobFailed, format!("cannot write to stdout: {e}")))
        }
        _ => Ok(()),
    }
}
