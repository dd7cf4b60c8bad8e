//! The coordinator's end of sessions: doors, limits and pumps. Who may come in is the [`Doorman`]'s decision.

mod connections;
mod rate;

use crate::client::{Hello, Welcome};
use crate::proto::coordination_server::{Coordination, CoordinationServer};
use crate::proto::worker_message::Body;
use crate::tls::{Tls, check_node, check_worker};
use crate::wire;
use crate::{AUTHORIZATION, MESSAGE_BYTES_MAX, PROTOCOL_VERSION, proto};
use argosy_common::events::{FromWorker, ToWorker};
use connections::{Connections, PeerInfo};
use rate::{Bucket, Penalties, WORDS_AT_ONCE, WORDS_PER_S};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Messages that wait for a worker's network before the session counts as stuck.
pub const QUEUE: usize = 256;

/// A worker that takes nothing for so long, with a full queue, is stuck.
const STUCK: Duration = Duration::from_secs(30);

/// A worker that was let in.
#[derive(Debug)]
pub struct Admission {
    /// What it is told first.
    pub welcome: Welcome,
    /// What it is told later; when the sender is dropped, the stream ends.
    pub outgoing: mpsc::Receiver<ToWorker>,
    /// What it says; dropped when the stream is lost.
    pub incoming: mpsc::Sender<FromWorker>,
}

/// Decides who comes in.
#[tonic::async_trait]
pub trait Doorman: Send + Sync + 'static {
    /// Lets a worker in whose token and protocol version are right, or says why not, in one sentence.
    async fn admit(&self, hello: Hello) -> Result<Admission, Status>;
}

/// What a server lets through.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most connections, with or without a session.
    pub connections_max: usize,
    /// A stream's hello must be there so soon.
    pub hello_within: Duration,
    /// A ping so often, and so long until its answer.
    pub keep_alive: Duration,
}

/// Why a server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// What is said there would be heard by others.
    #[error(
        "refusing to listen on {addr}: without TLS the coordinator listens on loopback only; use 127.0.0.1, or certificates made with `argosy pki`"
    )]
    NotLoopback {
        /// What was asked for.
        addr: SocketAddr,
    },
    /// The socket failed.
    #[error("the coordinator's socket failed: {0}")]
    Socket(#[from] std::io::Error),
    /// The server failed.
    #[error("the coordinator's server failed: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// Serves sessions on `listener` until `stop` is done; open sessions are given their time to end by tonic.
///
/// # Errors
/// [`ServeError`]; a listener that is not on loopback is refused.
pub async fn serve(
    listener: TcpListener,
    token: &str,
    limits: Limits,
    tls: Option<&Tls>,
    doorman: Arc<dyn Doorman>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let addr = listener.local_addr()?;
    if !addr.ip().is_loopback() && tls.is_none() {
        return Err(ServeError::NotLoopback { addr });
    }
    let service = CoordinationServer::new(Sessions {
        doorman,
        hello_within: limits.hello_within,
        places: Arc::new(Semaphore::new(limits.connections_max)),
    })
    .max_decoding_message_size(MESSAGE_BYTES_MAX)
    .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let expected = format!("Bearer {token}").into_bytes();
    // The interceptor sees headers only: without the token nothing of the body is decoded.
    let with_tls = tls.is_some();
    let guard = move |request: Request<()>| {
        let peer = request.extensions().get::<PeerInfo>().cloned();
        let judged = match &peer {
            Some(peer) if with_tls => check_worker(peer.chain.as_deref()),
            _ => Ok(()),
        };
        let judged = judged.and_then(|()| check_token(request, &expected));
        if let (Err(status), Some(peer)) = (&judged, &peer) {
            peer.penalties.note(peer.address.ip(), Instant::now());
            tracing::warn!(peer = %peer.address, reason = status.message(), "a caller was refused");
        }
        judged
    };
    let penalties = Arc::new(Penalties::default());
    let connections = Connections::new(listener, tls.cloned(), limits.connections_max, penalties);
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(limits.keep_alive))
        .http2_keepalive_timeout(Some(limits.keep_alive))
        .max_concurrent_streams(Some(8))
        .tcp_nodelay(true)
        .add_service(tonic::service::interceptor::InterceptedService::new(service, guard))
        .serve_with_incoming_shutdown(connections, stop)
        .await?;
    Ok(())
}

// A status is what tonic's interceptors return, whatever its size.
#[allow(clippy::result_large_err)]
fn check_token(request: Request<()>, expected: &[u8]) -> Result<Request<()>, Status> {
    let Some(given) = request.metadata().get(AUTHORIZATION) else {
        return Err(Status::unauthenticated(
            "no token: send the run's token as `authorization: Bearer TOKEN`",
        ));
    };
    if same_bytes(given.as_bytes(), expected) {
        return Ok(request);
    }
    Err(Status::unauthenticated(
        "wrong token: this coordinator belongs to another run or was started again; use the token of this run",
    ))
}

/// Equality in a time that does not depend on where the first difference is.
fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    let differing = a.iter().zip(b).fold(0u8, |sum, (x, y)| sum | (x ^ y));
    a.len() == b.len() && differing == 0
}

struct Sessions {
    doorman: Arc<dyn Doorman>,
    hello_within: Duration,
    /// Streams, over all connections; as many as connections are let in.
    places: Arc<Semaphore>,
}

#[tonic::async_trait]
impl Coordination for Sessions {
    type SessionStream = ReceiverStream<Result<proto::CoordinatorMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<proto::WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let place = Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("the coordinator has no place for another worker"))?;
        let chain = request.extensions().get::<PeerInfo>().and_then(|p| p.chain.clone());
        let mut stream = request.into_inner();
        let hello = tokio::time::timeout(self.hello_within, first(&mut stream))
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came in time"))??;
        if let Some(chain) = chain {
            check_node(&chain, &hello.node).inspect_err(|e| tracing::warn!("refused: {}", e.message()))?;
        }
        let admission = self.doorman.admit(hello).await?;
        let welcome = wire::encode_welcome(&admission.welcome).map_err(|e| Status::internal(e.to_string()))?;
        let (replies, out) = mpsc::channel(QUEUE);
        // The queue is new: the welcome is always its first.
        replies
            .try_send(Ok(welcome))
            .map_err(|_| Status::internal("the session ended before it began"))?;
        tokio::spawn(pump(stream, admission, replies, place));
        Ok(Response::new(ReceiverStream::new(out)))
    }
}

/// Reads and checks the hello; the version first, since other fields may mean something else in another one.
async fn first(stream: &mut Streaming<proto::WorkerMessage>) -> Result<Hello, Status> {
    match stream.message().await?.and_then(|message| message.body) {
        Some(Body::Hello(hello)) if hello.protocol_version == PROTOCOL_VERSION => {
            wire::decode_hello(hello).map_err(|e| Status::invalid_argument(e.to_string()))
        }
        Some(Body::Hello(hello)) => Err(Status::failed_precondition(format!(
            "this worker speaks protocol version {}, the coordinator {PROTOCOL_VERSION}; use binaries of one build",
            hello.protocol_version
        ))),
        _ => Err(Status::invalid_argument("the first message must be a hello")),
    }
}

/// Carries messages both ways until the worker or the coordinator ends the session.
async fn pump(
    mut stream: Streaming<proto::WorkerMessage>,
    mut admission: Admission,
    replies: mpsc::Sender<Result<proto::CoordinatorMessage, Status>>,
    _place: OwnedSemaphorePermit,
) {
    let mut words = Bucket::new(WORDS_AT_ONCE, WORDS_PER_S, Instant::now());
    loop {
        tokio::select! {
            message = admission.outgoing.recv() => {
                let Some(message) = message else {
                    return; // dismissed: both halves end
                };
                let sent = replies.send(Ok(wire::encode_to_worker(message)));
                if !matches!(tokio::time::timeout(STUCK, sent).await, Ok(Ok(()))) {
                    return;
                }
            }
            message = stream.message() => match message.map(|m| m.map(wire::decode_from_worker)) {
                Ok(Some(Ok(message))) => {
                    if let Some(wait) = words.take(Instant::now()) {
                        tokio::time::sleep(wait).await; // the network carries it back to who speaks too much
                    }
                    if admission.incoming.send(message).await.is_err() {
                        return;
                    }
                }
                Ok(Some(Err(error))) => {
                    tracing::warn!(%error, "a worker broke the protocol");
                    let _ = replies.try_send(Err(Status::invalid_argument(error.to_string())));
                    return;
                }
                Ok(None) => return,
                Err(status) => {
                    tracing::info!(code = ?status.code(), message = status.message(), "a worker's stream broke");
                    return;
                }
            },
        }
    }
}
