//! The worker's end of a session.

mod connector;

use crate::proto::coordination_client::CoordinationClient;
use crate::proto::coordinator_message::Body;
use crate::tls::Tls;
use crate::wire::{self, WireError};
use crate::{AUTHORIZATION, MESSAGE_BYTES_MAX, PROTOCOL_VERSION, proto};
use argosy_common::config::Job;
use argosy_common::events::{FromWorker, ToWorker};
use argosy_common::exit::Exit;
use argosy_common::ids::{Term, WorkerId};
use connector::Connector;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;

/// Messages that wait for the network before the sender has to.
const QUEUE: usize = 256;
/// The coordinator is on this machine or near: a connection, then a welcome, takes no longer.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// A ping so often, and so long until its answer: a host that is dead without a reset shows. Long, because a coordinator that
/// merely stood still (Ctrl-Z, a suspended machine) comes back.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Of a worker that has no id yet.
pub const NO_ID: WorkerId = WorkerId(0);

/// Who a worker says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The id its coordinator gave it; [`NO_ID`] asks for one.
    pub worker: WorkerId,
    /// The machine it runs on; where there are certificates, the one that its certificate names.
    pub node: String,
    /// Its process.
    pub pid: u32,
    /// Device, build and precision (rule N2).
    pub numeric_class: String,
    /// It was a worker before, lost its stream, and holds a state of this run.
    pub returning: Option<Returning>,
}

/// The run whose state a worker holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returning {
    /// Digest of its training configuration.
    pub config_hash: u64,
    /// Digest of its index.
    pub index_hash: u64,
}

/// What a worker has to know of its run.
#[derive(Clone, PartialEq)]
pub struct Welcome {
    /// The worker's id, from now on.
    pub worker: WorkerId,
    /// The run.
    pub run: String,
    /// The job.
    pub job: Job,
    /// Where the run's files lie for machines that share no folder with the coordinator.
    pub files_url: Option<String>,
    /// Folder that relative paths of the job start at.
    pub job_dir: String,
    /// The index file.
    pub index_path: String,
    /// Its digest.
    pub index_hash: u64,
    /// Lanes `Q`.
    pub lanes: u32,
    /// Window factor `m`, as fitted (rule L7).
    pub window_factor: u32,
    /// Length of the run in positions.
    pub total_positions: u64,
    /// The run folder; checkpoints lie under `run_dir/checkpoints`, and keys are relative to that.
    pub run_dir: String,
    /// A heartbeat is wanted so often.
    pub heartbeat_ms: u64,
    /// What generation secrets derive from.
    pub run_secret: Vec<u8>,
    /// Hint; 0 leaves the choice to the worker.
    pub decode_threads: u32,
    /// Hint; 0 leaves the choice to the worker.
    pub torch_threads: u32,
    /// Reign of the coordinator.
    pub term: Term,
    /// Steps need a lease (rule G5).
    pub leases: bool,
    /// A worker without a coordinator looks for one so long; 0: it ends at once (rule G9).
    pub orphan_max_ms: u64,
}

impl fmt::Debug for Welcome {
    /// Without the run's secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Welcome")
            .field("worker", &self.worker)
            .field("run", &self.run)
            .field("term", &self.term)
            .field("files_url", &self.files_url)
            .finish_non_exhaustive()
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// Not a URL.
    #[error("coordinator address `{endpoint}` is not a URL like http://127.0.0.1:4000: {reason}")]
    BadEndpoint {
        /// What was given.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// Not a token.
    #[error("the token holds characters that a header cannot carry; give it as it stands in the token file")]
    BadToken,
    /// What is said there would be heard by others.
    #[error(
        "refusing to send the token in clear to {endpoint}; use https:// with certificates made by `argosy pki`, or loopback"
    )]
    InClear {
        /// What was given.
        endpoint: String,
    },
    /// Either side does not believe the other's certificate.
    #[error("no trust between this worker and the coordinator at {endpoint}: {reason}")]
    Untrusted {
        /// Where.
        endpoint: String,
        /// Whose certificate, and what is wrong with it.
        reason: String,
    },
    /// Nobody answers.
    #[error("coordinator at {endpoint} cannot be reached: {reason}")]
    Unreachable {
        /// Where.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// The coordinator said no.
    #[error("the coordinator at {endpoint} refused worker: {message}")]
    Refused {
        /// Where.
        endpoint: String,
        /// gRPC status code.
        code: tonic::Code,
        /// Its sentence.
        message: String,
    },
    /// It speaks another version.
    #[error(
        "the coordinator speaks protocol version {theirs}, this worker {PROTOCOL_VERSION}; use binaries of one build"
    )]
    OtherVersion {
        /// The coordinator's.
        theirs: u32,
    },
    /// It leads another run than the one this worker holds a state of.
    #[error("the coordinator at {endpoint} leads another run: {reason}")]
    OtherRun {
        /// Where.
        endpoint: String,
        /// What differs.
        reason: String,
    },
    /// It broke the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl RpcError {
    /// The exit code of a worker that ends because of it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::BadEndpoint { .. } | Self::BadToken => Exit::Usage,
            Self::InClear { .. } => Exit::BadConfig,
            Self::Untrusted { .. } => Exit::Denied,
            Self::Unreachable { .. } => Exit::Unavailable,
            Self::Refused { code, .. } => match code {
                tonic::Code::Unauthenticated | tonic::Code::PermissionDenied => Exit::Denied,
                tonic::Code::ResourceExhausted => Exit::NoCapacity,
                tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => Exit::Unavailable,
                _ => Exit::Conflict,
            },
            Self::OtherVersion { .. } | Self::OtherRun { .. } | Self::Wire(_) => Exit::Conflict,
        }
    }
}

/// An open session. Dropping `outgoing` ends it.
#[derive(Debug)]
pub struct Session {
    /// What the coordinator said first.
    pub welcome: Welcome,
    /// The address of this machine that the session begins at: where its peers may find it, too.
    pub local: IpAddr,
    /// To the coordinator; bounded, fails when the stream is lost.
    pub outgoing: mpsc::Sender<FromWorker>,
    /// From the coordinator; closed when the stream is lost.
    pub incoming: mpsc::Receiver<ToWorker>,
}

impl Session {
    /// Ends the session after everything queued has been delivered, or after `patience`; true if it was delivered.
    pub async fn finish(self, patience: Duration) -> bool {
        let Self {
            outgoing, mut incoming, ..
        } = self;
        drop(outgoing);
        // The coordinator ends its half when it has read ours to the end.
        let drained = async { while incoming.recv().await.is_some() {} };
        tokio::time::timeout(patience, drained).await.is_ok()
    }
}

/// Opens a session at `endpoint` (`http://host:port`) for `hello.worker`.
///
/// # Errors
/// [`RpcError`]; [`RpcError::exit`] is the exit code that goes with it. Nothing is retried.
pub async fn connect(endpoint: &str, token: &str, hello: Hello) -> Result<Session, RpcError> {
    connect_as(endpoint, token, None, wire::encode_hello(&hello, PROTOCOL_VERSION)).await
}

/// As [`connect`], to an `https://` address with certificates on both sides.
///
/// # Errors
/// As [`connect`]; [`RpcError::Untrusted`] if one side does not believe the other's certificate.
pub async fn connect_with(endpoint: &str, token: &str, tls: &Tls, hello: Hello) -> Result<Session, RpcError> {
    connect_as(endpoint, token, Some(tls), wire::encode_hello(&hello, PROTOCOL_VERSION)).await
}

/// [`connect`] with any first message, for tests of a coordinator's doors.
///
/// # Errors
/// As [`connect`].
pub async fn connect_as(
    endpoint: &str,
    token: &str,
    tls: Option<&Tls>,
    hello: proto::WorkerMessage,
) -> Result<Session, RpcError> {
    let unreachable = |reason: String| RpcError::Unreachable {
        endpoint: endpoint.into(),
        reason,
    };
    let refused = |status: tonic::Status| RpcError::Refused {
        endpoint: endpoint.into(),
        code: status.code(),
        message: status.message().into(),
    };
    let mut bearer: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| RpcError::BadToken)?;
    bearer.set_sensitive(true);
    let bad = |e: tonic::transport::Error| RpcError::BadEndpoint {
        endpoint: endpoint.into(),
        reason: chain(&e),
    };
    let address = Endpoint::from_shared(endpoint.to_string()).map_err(bad)?;
    let secure = address.uri().scheme_str() == Some("https");
    if secure && tls.is_none() {
        return Err(RpcError::BadEndpoint {
            endpoint: endpoint.into(),
            reason: "https needs certificates; name their folder, as `argosy pki issue` makes it".into(),
        });
    }
    if !secure && !connector::is_local(address.uri()) {
        return Err(RpcError::InClear {
            endpoint: endpoint.into(),
        });
    }
    // The connector speaks TLS; tonic would want to do it by itself.
    let plain = endpoint.replacen("https://", "http://", 1);
    let connector = Connector::new(tls.filter(|_| secure).cloned());
    let local = connector.local();
    let channel = Endpoint::from_shared(plain)
        .map_err(bad)?
        .connect_timeout(CONNECT_PATIENCE)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|e| match connector::distrust(&e) {
            Some(reason) => RpcError::Untrusted {
                endpoint: endpoint.into(),
                reason,
            },
            None => unreachable(chain(&e)),
        })?;
    let (outgoing, queued) = mpsc::channel(QUEUE);
    let messages = tokio_stream::once(hello).chain(ReceiverStream::new(queued).map(wire::encode_from_worker));
    let mut request = tonic::Request::new(messages);
    request.metadata_mut().insert(AUTHORIZATION, bearer);
    let mut client = CoordinationClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let opening = async {
        let mut stream = client.session(request).await.map_err(refused)?.into_inner();
        let first = stream.message().await.map_err(refused)?;
        Ok::<_, RpcError>((first, stream))
    };
    let (first, stream) = tokio::time::timeout(CONNECT_PATIENCE, opening)
        .await
        .map_err(|_| unreachable(format!("no welcome within {} s", CONNECT_PATIENCE.as_secs())))??;
    let welcome = match first.and_then(|message| message.body) {
        Some(Body::Welcome(welcome)) if welcome.protocol_version == PROTOCOL_VERSION => wire::decode_welcome(welcome)?,
        Some(Body::Welcome(welcome)) => {
            return Err(RpcError::OtherVersion {
                theirs: welcome.protocol_version,
            });
        }
        _ => return Err(unreachable("it ended the session without a welcome".into())),
    };
    let (heard, incoming) = mpsc::channel(QUEUE);
    tokio::spawn(listen(stream, heard));
    Ok(Session {
        welcome,
        local: local(),
        outgoing,
        incoming,
    })
}

/// Hands on what the coordinator says until the stream ends, either side breaks the protocol, or nobody listens.
async fn listen(mut stream: tonic::Streaming<proto::CoordinatorMessage>, heard: mpsc::Sender<ToWorker>) {
    loop {
        let message = match stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(status) => {
                tracing::info!(code = ?status.code(), message = status.message(), "the coordinator's stream broke");
                return;
            }
        };
        match wire::decode_to_worker(message) {
            Ok(message) => {
                if heard.send(message).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::error!(%error, "the coordinator broke the protocol");
                return;
            }
        }
    }
}

/// An error with its causes on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}
