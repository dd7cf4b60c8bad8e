//! Bytes that no worker of ours would send, behind a good token: they end the stream that sent them and nothing else.

use crate::{DEADLINE, Guest, TOKEN, hello, in_time, server};
use argosy_common::events::FromWorker;
use argosy_rpc::{Session, connect};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

const PATH: &str = "/argosy.v1.Coordination/Session";

/// The body of one call as it stands, with the right token; the status that gRPC ends it with.
async fn call(endpoint: &str, body: &[u8]) -> String {
    let socket = TcpStream::connect(endpoint.trim_start_matches("http://"))
        .await
        .unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(socket))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("{endpoint}{PATH}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {TOKEN}"))
        .body(Full::new(Bytes::copy_from_slice(body)))
        .unwrap();
    let response: Response<_> = in_time(sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let (parts, body) = response.into_parts();
    let trailers = in_time(body.collect()).await.unwrap().trailers().cloned();
    let status = trailers.unwrap_or(parts.headers).get("grpc-status").cloned();
    status.unwrap().to_str().unwrap().to_owned()
}

/// A session that is open while others misbehave.
struct Bystander {
    endpoint: String,
    session: Session,
    guest: Guest,
    guests: mpsc::Receiver<Guest>,
}

impl Bystander {
    async fn new() -> Self {
        let (endpoint, mut guests) = server().await;
        let session = in_time(connect(&endpoint, TOKEN, hello(1))).await.unwrap();
        let guest = in_time(guests.recv()).await.unwrap();
        Self {
            endpoint,
            session,
            guest,
            guests,
        }
    }

    /// Nobody else came in, and this session has noticed nothing.
    async fn is_undisturbed(&mut self) {
        assert!(self.guests.try_recv().is_err());
        self.session.outgoing.send(FromWorker::Heartbeat).await.unwrap();
        assert_eq!(in_time(self.guest.words.recv()).await, Some(FromWorker::Heartbeat));
    }
}

#[tokio::test]
async fn message_that_claims_four_gigabytes_is_refused_before_anything_is_kept_for_it() {
    let mut bystander = Bystander::new().await;
    let mut body = vec![0, 0xff, 0xff, 0xff, 0xff];
    body.extend([7; 100]);
    // OUT_OF_RANGE: the length alone is judged.
    assert_eq!(call(&bystander.endpoint, &body).await, "11");
    bystander.is_undisturbed().await;
}

#[tokio::test]
async fn garbage_in_place_of_a_hello_is_refused() {
    let mut bystander = Bystander::new().await;
    let message = |bytes: &[u8]| {
        let mut body = vec![0];
        body.extend((bytes.len() as u32).to_be_bytes());
        body.extend(bytes);
        body
    };
    let compressed = [&[1][..], &message(b"x")[1..]].concat();
    let cases = [
        message(&[0xff; 64]),                           // no protobuf
        message(&[]),                                   // a message without a body
        message(&[0x1a, 0x00]),                         // a heartbeat before a hello
        message(&[0x0a, 0x7f, 1, 2, 3]),                // a hello that is longer than its message
        message(&[0x0a, 0x04, 0x22, 0x02, 0xc3, 0x28]), // a text that is not UTF-8
        compressed,
        vec![0, 0, 0, 0, 9, 1, 2], // cut short
        Vec::new(),
    ];
    for body in cases {
        let status = call(&bystander.endpoint, &body).await;
        assert_ne!(status, "0", "{body:02x?}");
        bystander.is_undisturbed().await;
    }
}

#[tokio::test]
async fn garbage_in_place_of_http_ends_its_connection_only() {
    let mut bystander = Bystander::new().await;
    let address = bystander.endpoint.trim_start_matches("http://").to_owned();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let giant = [&preface[..], &[0xff, 0xff, 0xff, 4, 0, 0, 0, 0, 0]].concat();
    for bytes in [&[0xff; 200][..], b"GET / HTTP/1.1\r\n\r\n", &giant] {
        let mut raw = TcpStream::connect(&address).await.unwrap();
        let _ = raw.write_all(bytes).await;
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(DEADLINE, raw.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "the connection is closed");
        bystander.is_undisturbed().await;
    }
}
