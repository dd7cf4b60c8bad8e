//! Sessions over loopback: the doors, the limits, and what happens when either side goes.

// Clippy knows test functions, not their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod hostile;
mod secrets;
mod tls;

use argosy_common::config::Job;
use argosy_common::events::{FromWorker, ToWorker};
use argosy_common::exit::Exit;
use argosy_common::ids::{Generation, StateName, Term, WorkerId};
use argosy_rpc::client::connect_as;
use argosy_rpc::server::{Admission, Doorman, Limits, ServeError, serve};
use argosy_rpc::{Hello, PROTOCOL_VERSION, Returning, RpcError, Session, Welcome, connect, proto, wire};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::{Code, Status};

const TOKEN: &str = "s3cret";
const DEADLINE: Duration = Duration::from_secs(30);

fn welcome() -> Welcome {
    let job = "version = 1\nname = \"j\"\n[model]\nname = \"ViT-B-32\"\n[data]\nsources = [{ shards = \"a.tar\" }]\n\
               [train]\nlr = 0.1234567890123456789\n";
    Welcome {
        worker: WorkerId(1),
        files_url: None,
        run: "r".into(),
        job: Job::from_toml("job.toml", job).unwrap(),
        job_dir: "/jobs".into(),
        index_path: "/index".into(),
        index_hash: u64::MAX,
        lanes: 32,
        window_factor: 4,
        total_positions: 1000,
        run_dir: "/run".into(),
        heartbeat_ms: 1000,
        run_secret: vec![7; 32],
        decode_threads: 2,
        torch_threads: 1,
        term: Term(7),
        leases: true,
        orphan_max_ms: 9,
    }
}

/// Lets everybody in but worker 13, and shows the far ends.
struct Porch(mpsc::Sender<Guest>);

struct Guest {
    hello: Hello,
    to_worker: mpsc::Sender<ToWorker>,
    words: mpsc::Receiver<FromWorker>,
}

#[tonic::async_trait]
impl Doorman for Porch {
    async fn admit(&self, hello: Hello) -> Result<Admission, Status> {
        if hello.worker == WorkerId(13) {
            return Err(Status::not_found("worker id w13 is not expected"));
        }
        let (to_worker, outgoing) = mpsc::channel(8);
        let (incoming, words) = mpsc::channel(8);
        let guest = Guest {
            hello,
            to_worker,
            words,
        };
        self.0.send(guest).await.map_err(|_| Status::unavailable("over"))?;
        Ok(Admission {
            welcome: welcome(),
            outgoing,
            incoming,
        })
    }
}

async fn server_with(connections_max: usize, hello_within: Duration) -> (String, mpsc::Receiver<Guest>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (porch, guests) = mpsc::channel(8);
    let limits = Limits {
        connections_max,
        hello_within,
        keep_alive: Duration::from_secs(5),
    };
    tokio::spawn(serve(
        listener,
        TOKEN,
        limits,
        None,
        Arc::new(Porch(porch)),
        std::future::pending(),
    ));
    (endpoint, guests)
}

async fn server() -> (String, mpsc::Receiver<Guest>) {
    server_with(16, Duration::from_secs(20)).await
}

fn hello(worker: u32) -> Hello {
    Hello {
        worker: WorkerId(worker),
        node: "gpu-1".into(),
        pid: 99,
        numeric_class: "cpu".into(),
        returning: (worker == 12).then_some(Returning {
            config_hash: 3,
            index_hash: 4,
        }),
    }
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

async fn open() -> (Session, Guest) {
    let (endpoint, mut guests) = server().await;
    let session = in_time(connect(&endpoint, TOKEN, hello(1))).await.unwrap();
    (session, in_time(guests.recv()).await.unwrap())
}

fn refusal(result: Result<Session, RpcError>) -> (Code, String, Exit) {
    let error = result.expect_err("a refusal");
    let exit = error.exit();
    match error {
        RpcError::Refused { code, message, .. } => (code, message, exit),
        other => panic!("not a refusal: {other}"),
    }
}

#[tokio::test]
async fn session_carries_words_both_ways_in_order() {
    let (mut session, mut guest) = open().await;
    assert_eq!(guest.hello, hello(1));
    assert_eq!(session.welcome, welcome(), "floats and all");
    let ready = FromWorker::Ready {
        addr: "127.0.0.1:1".into(),
        name: StateName::INITIAL,
    };
    for word in [ready, FromWorker::Heartbeat] {
        session.outgoing.send(word.clone()).await.unwrap();
        assert_eq!(in_time(guest.words.recv()).await, Some(word));
    }
    for generation in 1..200 {
        let generation = Generation(generation);
        guest.to_worker.send(ToWorker::Activate { generation }).await.unwrap();
        assert_eq!(
            in_time(session.incoming.recv()).await,
            Some(ToWorker::Activate { generation })
        );
    }
}

#[tokio::test]
async fn finished_session_delivers_the_last_word_first() {
    let (session, mut guest) = open().await;
    let last = FromWorker::Failed {
        exit: 78,
        message: "bad config".into(),
    };
    session.outgoing.send(last.clone()).await.unwrap();
    let (delivered, word) = tokio::join!(in_time(session.finish(DEADLINE)), in_time(guest.words.recv()));
    assert!(delivered);
    assert_eq!(word, Some(last));
    assert_eq!(in_time(guest.words.recv()).await, None);
}

#[tokio::test]
async fn dropped_worker_closes_the_words() {
    let (session, mut guest) = open().await;
    drop(session);
    assert_eq!(in_time(guest.words.recv()).await, None);
}

#[tokio::test]
async fn dismissed_worker_gets_what_was_queued_and_then_the_end() {
    let (mut session, guest) = open().await;
    guest.to_worker.send(ToWorker::Finish).await.unwrap();
    drop(guest);
    assert_eq!(in_time(session.incoming.recv()).await, Some(ToWorker::Finish));
    assert_eq!(in_time(session.incoming.recv()).await, None);
    in_time(session.outgoing.closed()).await;
}

#[tokio::test]
async fn wrong_token_is_denied_before_anything_is_decoded() {
    let (endpoint, mut guests) = server().await;
    // The first message is none at all; with the right token that would be the complaint.
    let nothing = proto::WorkerMessage { body: None };
    for token in ["", "wrong", "s3cretX"] {
        let (code, message, exit) = refusal(in_time(connect_as(&endpoint, token, None, nothing.clone())).await);
        assert_eq!((code, exit), (Code::Unauthenticated, Exit::Denied), "{message}");
        assert!(message.contains("wrong token"), "{message}");
    }
    assert_eq!(
        refusal(in_time(connect_as(&endpoint, TOKEN, None, nothing)).await).0,
        Code::InvalidArgument
    );
    assert!(guests.try_recv().is_err());
}

#[tokio::test]
async fn other_protocol_version_is_refused_with_both_versions() {
    let (endpoint, _guests) = server().await;
    let newer = wire::encode_hello(&hello(1), PROTOCOL_VERSION + 6);
    let (code, message, exit) = refusal(in_time(connect_as(&endpoint, TOKEN, None, newer)).await);
    assert_eq!((code, exit), (Code::FailedPrecondition, Exit::Conflict));
    assert!(message.contains("version 7, the coordinator 1"), "{message}");
}

/// A coordinator of another build: it lets everybody in and says its own version.
struct Older;

#[tonic::async_trait]
impl proto::coordination_server::Coordination for Older {
    type SessionStream = tokio_stream::Once<Result<proto::CoordinatorMessage, Status>>;

    async fn session(
        &self,
        _: tonic::Request<tonic::Streaming<proto::WorkerMessage>>,
    ) -> Result<tonic::Response<Self::SessionStream>, Status> {
        let welcome = proto::Welcome {
            protocol_version: PROTOCOL_VERSION + 4,
            ..proto::Welcome::default()
        };
        let body = Some(proto::coordinator_message::Body::Welcome(welcome));
        Ok(tonic::Response::new(tokio_stream::once(Ok(
            proto::CoordinatorMessage { body },
        ))))
    }
}

#[tokio::test]
async fn coordinator_of_another_protocol_version_is_refused_by_the_worker_with_both_versions() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let older = proto::coordination_server::CoordinationServer::new(Older);
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(older)
            .serve_with_incoming(incoming),
    );
    let refused = in_time(connect(&endpoint, TOKEN, hello(1))).await.unwrap_err();
    assert!(matches!(refused, RpcError::OtherVersion { theirs: 5 }), "{refused}");
    assert_eq!(refused.exit(), Exit::Conflict);
    let message = refused.to_string();
    assert!(message.contains("version 5, this worker 1"), "{message}");
}

#[tokio::test]
async fn unknown_worker_gets_the_doormans_sentence() {
    let (endpoint, _guests) = server().await;
    let (code, message, _) = refusal(in_time(connect(&endpoint, TOKEN, hello(13))).await);
    assert_eq!(code, Code::NotFound);
    assert_eq!(message, "worker id w13 is not expected");
}

#[tokio::test]
async fn oversized_message_ends_the_session() {
    let (session, mut guest) = open().await;
    let huge = FromWorker::Ready {
        addr: "x".repeat(argosy_rpc::MESSAGE_BYTES_MAX + 1),
        name: StateName::INITIAL,
    };
    session.outgoing.send(huge).await.unwrap();
    assert_eq!(in_time(guest.words.recv()).await, None);
}

#[tokio::test]
async fn oversized_hello_is_refused() {
    let (endpoint, mut guests) = server().await;
    let huge = Hello {
        numeric_class: "x".repeat(wire::NAME_BYTES_MAX + 1),
        ..hello(1)
    };
    let (code, message, _) = refusal(in_time(connect(&endpoint, TOKEN, huge)).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.contains("hello.numeric_class"), "{message}");
    assert!(guests.try_recv().is_err());
}

#[tokio::test]
async fn stream_without_a_hello_is_ended_in_time() {
    let (endpoint, mut guests) = server_with(16, Duration::from_millis(50)).await;
    let channel = tonic::transport::Endpoint::from_shared(endpoint)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = proto::coordination_client::CoordinationClient::new(channel);
    let mut request = tonic::Request::new(tokio_stream::pending());
    let bearer = format!("Bearer {TOKEN}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    let status = in_time(client.session(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(guests.try_recv().is_err());
}

#[tokio::test]
async fn bad_word_ends_the_session() {
    let (session, mut guest) = open().await;
    let nameless = FromWorker::Formed {
        generation: Generation(0),
    };
    session.outgoing.send(nameless).await.unwrap();
    assert_eq!(in_time(guest.words.recv()).await, None);
}

#[tokio::test]
async fn session_beyond_the_limit_is_turned_away_until_one_leaves() {
    let (endpoint, mut guests) = server_with(1, Duration::from_secs(20)).await;
    let first = in_time(connect(&endpoint, TOKEN, hello(1))).await.unwrap();
    let mut guest = in_time(guests.recv()).await.unwrap();
    assert!(in_time(connect(&endpoint, TOKEN, hello(2))).await.is_err());
    drop(first);
    assert_eq!(in_time(guest.words.recv()).await, None);
    // The place is given back when the connection is closed, a moment after the stream.
    let again = async {
        loop {
            match connect(&endpoint, TOKEN, hello(3)).await {
                Ok(session) => break session,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    assert_eq!(in_time(again).await.welcome, welcome());
}

#[tokio::test]
async fn nobody_at_the_address_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = in_time(connect(&endpoint, TOKEN, hello(1))).await.unwrap_err();
    assert_eq!(error.exit(), Exit::Unavailable, "{error}");
    let error = in_time(connect("not a url", TOKEN, hello(1))).await.unwrap_err();
    assert_eq!(error.exit(), Exit::Usage, "{error}");
}

#[tokio::test]
async fn listener_off_loopback_is_refused() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let (porch, _guests) = mpsc::channel(1);
    let limits = Limits {
        connections_max: 1,
        hello_within: DEADLINE,
        keep_alive: DEADLINE,
    };
    let served = serve(
        listener,
        TOKEN,
        limits,
        None,
        Arc::new(Porch(porch)),
        std::future::pending(),
    );
    assert!(matches!(in_time(served).await, Err(ServeError::NotLoopback { .. })));
}
