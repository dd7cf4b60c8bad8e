//! Who gets in with which certificate, on both sides, and what happens when certificates change.

use crate::{DEADLINE, Guest, Porch, TOKEN, hello, in_time};
use argosy_common::exit::Exit;
use argosy_common::node::Role;
use argosy_pki::{Authority, Issued};
use argosy_rpc::server::{Limits, serve};
use argosy_rpc::{Pem, RpcError, Session, Tls, connect, connect_with};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tonic::Code;

const DAY: Duration = Duration::from_secs(86_400);

/// An authority and what is made with it.
struct Pki(Authority);

impl Pki {
    fn new() -> Self {
        Self(Authority::new(30 * DAY).unwrap())
    }

    fn issue(&self, node: &str, role: Role, until: SystemTime) -> Issued {
        self.0.issue(node, role, SystemTime::now() - 10 * DAY, until).unwrap()
    }

    fn tls(&self, issued: &Issued) -> Tls {
        Tls::new(&self.pem(issued)).unwrap()
    }

    fn pem(&self, issued: &Issued) -> Pem {
        Pem {
            ca: self.0.certificate().into(),
            certificate: issued.certificate.clone(),
            key: issued.key.clone(),
            revoked: None,
        }
    }

    fn valid(&self, node: &str, role: Role) -> Tls {
        self.tls(&self.issue(node, role, SystemTime::now() + DAY))
    }

    fn expired(&self, node: &str, role: Role) -> Tls {
        self.tls(&self.issue(node, role, SystemTime::now() - DAY))
    }
}

/// A TLS folder as a node has it.
fn lay_down(folder: &Path, pem: &Pem) {
    std::fs::create_dir_all(folder).unwrap();
    for (file, text) in [
        ("ca.pem", &pem.ca),
        ("node.pem", &pem.certificate),
        ("node.key", &pem.key),
    ] {
        std::fs::write(folder.join(file), text).unwrap();
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
async fn worker_with_a_certificate_of_its_role_and_node_and_the_token_gets_in() {
    let pki = Pki::new();
    let (endpoint, mut guests) = secured(pki.valid("head-1", Role::Coordinator)).await;
    let worker = pki.valid("gpu-1", Role::Worker);
    assert_eq!(worker.node(), "gpu-1");
    assert!(worker.is_for(Role::Worker) && !worker.is_for(Role::Coordinator));
    let session = knock(&endpoint, TOKEN, &worker).await.unwrap();
    assert!(session.local.is_loopback());
    assert_eq!(in_time(guests.recv()).await.unwrap().hello, hello(1));
}

#[tokio::test]
async fn certificates_that_are_not_good_are_refused_in_words_and_others_still_get_in() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    let (endpoint, mut guests) = secured(pki.valid("head-1", Role::Coordinator)).await;

    let role = knock(&endpoint, TOKEN, &pki.valid("gpu-1", Role::Coordinator)).await;
    let node = knock(&endpoint, TOKEN, &pki.valid("gpu-2", Role::Worker)).await;
    for (refused, words) in [
        (role, ["not a worker's", "--role worker"]),
        (node, ["`gpu-1`", "gpu-2"]),
    ] {
        let refused = refused.unwrap_err();
        let text = refused.to_string();
        assert_eq!(refused.exit(), Exit::Denied, "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }

    let expired = pki.expired("gpu-1", Role::Worker);
    let foreign = stranger.issue("gpu-1", Role::Worker, SystemTime::now() + DAY);
    let foreign = Tls::new(&Pem {
        ca: pki.0.certificate().into(),
        ..stranger.pem(&foreign)
    })
    .unwrap();
    for (tls, word) in [
        (expired, "CertificateExpired"),
        (foreign, "refuses this worker's certificate"),
    ] {
        let refused = knock(&endpoint, TOKEN, &tls).await.unwrap_err();
        assert!(matches!(refused, RpcError::Untrusted { .. }), "{refused}");
        assert_eq!(refused.exit(), Exit::Denied);
        assert!(refused.to_string().contains(word), "{refused}");
    }

    let wrong = knock(&endpoint, "another token", &pki.valid("gpu-1", Role::Worker)).await;
    let wrong = wrong.unwrap_err();
    let code = |error: &RpcError| match error {
        RpcError::Refused { code, .. } => *code,
        other => panic!("{other}"),
    };
    assert_eq!(code(&wrong), Code::Unauthenticated);
    assert!(!wrong.to_string().contains("another token"), "{wrong}");

    // Without TLS, and with bytes that are nothing.
    let plain = endpoint.replace("https", "http");
    assert!(in_time(connect(&plain, TOKEN, hello(1))).await.is_err());
    let mut raw = TcpStream::connect(endpoint.trim_start_matches("https://"))
        .await
        .unwrap();
    let _ = raw.write_all(&[0xff; 64]).await;
    let https = in_time(connect(&endpoint, TOKEN, hello(1))).await.unwrap_err();
    assert_eq!(https.exit(), Exit::Usage, "{https}");

    assert!(guests.try_recv().is_err());
    knock(&endpoint, TOKEN, &pki.valid("gpu-1", Role::Worker))
        .await
        .unwrap();
}

#[tokio::test]
async fn coordinator_that_is_none_is_not_spoken_to() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    let worker = pki.valid("gpu-1", Role::Worker);
    let foreign = stranger.issue("head-1", Role::Coordinator, SystemTime::now() + DAY);
    let posing = [
        pki.valid("gpu-2", Role::Worker),
        pki.expired("head-1", Role::Coordinator),
        stranger.tls(&foreign),
    ];
    for tls in posing {
        let (endpoint, mut guests) = secured(tls).await;
        let refused = knock(&endpoint, TOKEN, &worker).await.unwrap_err();
        assert!(matches!(refused, RpcError::Untrusted { .. }), "{refused}");
        assert!(refused.to_string().contains("its certificate is not good"), "{refused}");
        assert!(guests.try_recv().is_err());
    }
}

#[tokio::test]
async fn token_is_never_sent_in_clear_to_another_machine() {
    // 192.0.2.0/24 is nobody's (RFC 5737): that it was refused and not tried is seen by the answer.
    let refused = in_time(connect("http://192.0.2.1:7070", TOKEN, hello(1)))
        .await
        .unwrap_err();
    assert!(matches!(refused, RpcError::InClear { .. }), "{refused}");
    assert_eq!(refused.exit(), Exit::BadConfig);
}

#[tokio::test]
async fn renewed_certificates_of_either_side_hold_for_the_next_session_without_a_restart() {
    let (pki, temp) = (Pki::new(), tempfile::tempdir().unwrap());
    let (theirs, ours) = (temp.path().join("head-1"), temp.path().join("gpu-1"));
    let past = SystemTime::now() - DAY;
    lay_down(&theirs, &pki.pem(&pki.issue("head-1", Role::Coordinator, past)));
    lay_down(&ours, &pki.pem(&pki.issue("gpu-1", Role::Worker, past)));
    let worker = Tls::open(&ours).unwrap();
    let (endpoint, _guests) = secured(Tls::open(&theirs).unwrap()).await;
    let refused = knock(&endpoint, TOKEN, &worker).await.unwrap_err();
    assert!(refused.to_string().contains("its certificate is not good"), "{refused}");

    let future = SystemTime::now() + DAY;
    lay_down(&theirs, &pki.pem(&pki.issue("head-1", Role::Coordinator, future)));
    let refused = knock(&endpoint, TOKEN, &worker).await.unwrap_err();
    assert!(refused.to_string().contains("CertificateExpired"), "{refused}");

    // A key without its certificate is a folder in the middle of a change: what was read before still holds.
    let renewed = pki.pem(&pki.issue("gpu-1", Role::Worker, future));
    std::fs::write(ours.join("node.key"), &renewed.key).unwrap();
    let refused = knock(&endpoint, TOKEN, &worker).await.unwrap_err();
    assert!(refused.to_string().contains("CertificateExpired"), "{refused}");
    lay_down(&ours, &renewed);
    knock(&endpoint, TOKEN, &worker).await.unwrap();
}

#[tokio::test]
async fn revoked_worker_is_cut_off_and_kept_out_and_others_are_not() {
    let (pki, temp) = (Pki::new(), tempfile::tempdir().unwrap());
    let until = SystemTime::now() + DAY;
    let folder = temp.path().join("head-1");
    lay_down(&folder, &pki.pem(&pki.issue("head-1", Role::Coordinator, until)));
    let (endpoint, mut guests) = secured(Tls::open(&folder).unwrap()).await;
    let (bad, good) = (
        pki.issue("gpu-1", Role::Worker, until),
        pki.issue("gpu-1", Role::Worker, until),
    );
    let bad_session = knock(&endpoint, TOKEN, &pki.tls(&bad)).await.unwrap();
    let mut bad_guest = in_time(guests.recv()).await.unwrap();
    let good_session = knock(&endpoint, TOKEN, &pki.tls(&good)).await.unwrap();
    let mut good_guest = in_time(guests.recv()).await.unwrap();

    let list = pki.0.revoke([bad.serial.as_str()], 1).unwrap();
    std::fs::write(folder.join("revoked.pem"), list).unwrap();
    assert_eq!(in_time(bad_guest.words.recv()).await, None);
    in_time(bad_session.outgoing.closed()).await;
    let refused = knock(&endpoint, TOKEN, &pki.tls(&bad)).await.unwrap_err();
    assert!(refused.to_string().contains("CertificateRevoked"), "{refused}");
    assert_eq!(refused.exit(), Exit::Denied);

    let word = argosy_common::events::FromWorker::Heartbeat;
    good_session.outgoing.send(word.clone()).await.unwrap();
    assert_eq!(in_time(good_guest.words.recv()).await, Some(word));
    knock(&endpoint, TOKEN, &pki.tls(&good)).await.unwrap();
}

/// A wall clock that somebody sets while the process runs: off by so many seconds.
#[derive(Debug, Default)]
struct Jumping(AtomicI64);

impl TimeProvider for Jumping {
    fn current_time(&self) -> Option<UnixTime> {
        let now = UnixTime::now()
            .as_secs()
            .checked_add_signed(self.0.load(Ordering::SeqCst))?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(now)))
    }
}

#[tokio::test]
async fn clocks_that_jump_an_hour_forward_and_back_disturb_no_session_and_no_handshake() {
    let pki = Pki::new();
    // Made this moment, so that a clock that goes back stands before it.
    let now = SystemTime::now();
    let made = |node: &str, role| pki.pem(&pki.0.issue(node, role, now, now + DAY).unwrap());
    let (theirs, ours) = (Arc::new(Jumping::default()), Arc::new(Jumping::default()));
    let head = Tls::judged_by(&made("head-1", Role::Coordinator), theirs.clone()).unwrap();
    let worker = Tls::judged_by(&made("gpu-1", Role::Worker), ours.clone()).unwrap();
    let (endpoint, mut guests) = secured(head).await;
    let session = knock(&endpoint, TOKEN, &worker).await.unwrap();
    let mut guest = in_time(guests.recv()).await.unwrap();
    for (their, our) in [
        (3_600, 0),
        (-3_600, 0),
        (0, 3_600),
        (0, -3_600),
        (3_600, -3_600),
        (-3_600, 3_600),
    ] {
        theirs.0.store(their, Ordering::SeqCst);
        ours.0.store(our, Ordering::SeqCst);
        let word = argosy_common::events::FromWorker::Heartbeat;
        session.outgoing.send(word.clone()).await.unwrap();
        assert_eq!(in_time(guest.words.recv()).await, Some(word), "{their} and {our} s off");
        knock(&endpoint, TOKEN, &worker).await.unwrap();
    }
    // Days are judged all the same.
    theirs.0.store(2 * 86_400, Ordering::SeqCst);
    let refused = knock(&endpoint, TOKEN, &worker).await.unwrap_err();
    assert!(refused.to_string().contains("CertificateExpired"), "{refused}");
}

#[tokio::test]
async fn list_of_another_authority_revokes_nothing_of_this_one() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    let head = pki.issue("head-1", Role::Coordinator, SystemTime::now() + DAY);
    let worker = pki.issue("gpu-1", Role::Worker, SystemTime::now() + DAY);
    let forged = stranger.0.revoke([worker.serial.as_str()], 1).unwrap();
    let tls = Tls::new(&Pem {
        revoked: Some(forged),
        ..pki.pem(&head)
    });
    let (endpoint, _guests) = secured(tls.unwrap()).await;
    knock(&endpoint, TOKEN, &pki.tls(&worker)).await.unwrap();
}

#[test]
fn folder_that_is_not_whole_is_refused_with_the_file() {
    let (pki, temp) = (Pki::new(), tempfile::tempdir().unwrap());
    let pem = pki.pem(&pki.issue("gpu-1", Role::Worker, SystemTime::now() + DAY));
    let other = pki.issue("gpu-1", Role::Worker, SystemTime::now() + DAY);
    let cases: [(&str, Option<&str>, &str); 5] = [
        ("ca.pem", None, "ca.pem"),
        ("node.pem", Some(""), "node.pem holds no certificate"),
        ("node.key", Some("garbage"), "node.key"),
        ("node.key", Some(&other.key), "node.pem and node.key"),
        (
            "revoked.pem",
            Some("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"),
            "revoked.pem",
        ),
    ];
    for (file, text, word) in cases {
        lay_down(temp.path(), &pem);
        let path = temp.path().join(file);
        match text {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let error = Tls::open(temp.path()).unwrap_err().to_string();
        assert!(error.contains(word), "{file}: {error}");
        assert!(!error.contains("BEGIN"), "no key in an error: {error}");
        let _ = std::fs::remove_file(&path);
    }
    lay_down(temp.path(), &pem);
    assert!(!format!("{:?}", Tls::open(temp.path()).unwrap()).contains("PRIVATE"));
}
