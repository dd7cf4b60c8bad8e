//! Who gets in with which certificate, on both sides.

use crate::{DEADLINE, Guest, Porch, TOKEN, hello, in_time};
use argosy_common::exit::Exit;
use argosy_rpc::server::{Limits, serve};
use argosy_rpc::tls::{COORDINATOR_NAME, WORKER_NAME};
use argosy_rpc::{RpcError, Session, Tls, connect, connect_with};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tonic::Code;

const DAY: Duration = Duration::from_secs(86_400);

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { pem, issuer }
    }

    /// A certificate with that name, valid until `until`.
    fn issue(&self, name: &str, until: SystemTime) -> Tls {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = (SystemTime::now() - 10 * DAY).into();
        params.not_after = until.into();
        Tls {
            ca: self.pem.clone(),
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    fn valid(&self, name: &str) -> Tls {
        self.issue(name, SystemTime::now() + DAY)
    }
}

async fn secured(tls: Tls) -> (String, mpsc::Receiver<Guest>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let (porch, guests) = mpsc::channel(8);
    let limits = Limits {
        connections_max: 16,
        hello_within: DEADLINE,
        keep_alive: Duration::from_secs(5),
    };
    tokio::spawn(async move {
        let porch = Arc::new(Porch(porch));
        serve(listener, TOKEN, limits, Some(&tls), porch, std::future::pending()).await
    });
    (endpoint, guests)
}

async fn knock(endpoint: &str, token: &str, tls: &Tls) -> Result<Session, RpcError> {
    in_time(connect_with(endpoint, token, tls, hello(1))).await
}

#[tokio::test]
async fn worker_with_a_certificate_of_its_role_and_the_token_gets_in() {
    let authority = Authority::new();
    let (endpoint, mut guests) = secured(authority.valid(COORDINATOR_NAME)).await;
    let _session = knock(&endpoint, TOKEN, &authority.valid(WORKER_NAME)).await.unwrap();
    assert_eq!(in_time(guests.recv()).await.unwrap().hello, hello(1));
}

#[tokio::test]
async fn certificates_that_are_not_good_are_refused_and_others_still_get_in() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (endpoint, _guests) = secured(authority.valid(COORDINATOR_NAME)).await;

    let role = knock(&endpoint, TOKEN, &authority.valid(COORDINATOR_NAME))
        .await
        .unwrap_err();
    assert_eq!(role.exit(), Exit::Denied);
    assert!(
        role.to_string().contains("not a worker's") && role.to_string().contains("--role worker"),
        "{role}"
    );

    let expired = authority.issue(WORKER_NAME, SystemTime::now() - DAY);
    let mut foreign = stranger.valid(WORKER_NAME);
    foreign.ca.clone_from(&authority.pem);
    for tls in [expired, foreign] {
        let refused = knock(&endpoint, TOKEN, &tls).await.unwrap_err();
        assert_ne!(refused.exit(), Exit::Ok);
        assert!(!matches!(refused, RpcError::Wire(_)), "{refused}");
    }

    let wrong = knock(&endpoint, "another token", &authority.valid(WORKER_NAME))
        .await
        .unwrap_err();
    assert!(
        matches!(
            &wrong,
            RpcError::Refused {
                code: Code::Unauthenticated,
                ..
            }
        ),
        "{wrong}"
    );
    assert!(!wrong.to_string().contains("another token"), "{wrong}");

    // Without TLS, and with a frame of four gigabytes: nothing of it is decoded.
    let plain = endpoint.replace("https", "http");
    assert!(in_time(connect(&plain, TOKEN, hello(1))).await.is_err());
    let mut raw = TcpStream::connect(endpoint.trim_start_matches("https://"))
        .await
        .unwrap();
    let _ = raw.write_all(&[0xff; 64]).await;

    knock(&endpoint, TOKEN, &authority.valid(WORKER_NAME)).await.unwrap();
}

#[tokio::test]
async fn coordinator_that_is_none_is_not_spoken_to() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let worker = authority.valid(WORKER_NAME);
    let posing = [
        authority.valid(WORKER_NAME),
        authority.issue(COORDINATOR_NAME, SystemTime::now() - DAY),
        Tls {
            ca: authority.pem.clone(),
            ..stranger.valid(COORDINATOR_NAME)
        },
    ];
    for tls in posing {
        let (endpoint, mut guests) = secured(tls).await;
        let refused = knock(&endpoint, TOKEN, &worker).await.unwrap_err();
        assert!(matches!(refused, RpcError::Unreachable { .. }), "{refused}");
        assert!(refused.to_string().contains("certificate"), "{refused}");
        assert!(guests.try_recv().is_err());
    }
}
