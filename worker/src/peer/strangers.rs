//! Who may not be a peer: refused in words on the side that calls, and nobody else is disturbed.

use super::testing::{DAY, Pki};
use super::{Hello, PeerError, PeerServer, Place, Purpose, connect};
use crate::collective::AbortHandle;
use argosy_common::ids::Generation;
use argosy_common::node::Role;
use argosy_common::plan::generation_secret;
use argosy_rpc::Tls;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::SystemTime;

const GENERATION: Generation = Generation(7);

fn call(server: &PeerServer, tls: Option<&Tls>) -> super::Result<super::PeerStream> {
    let hello = Hello {
        generation: GENERATION,
        secret: generation_secret(b"run", GENERATION),
        purpose: Purpose::Ring { from_rank: 0 },
    };
    connect(&server.addr(), &hello, tls, &AbortHandle::new())
}

fn listening(tls: Tls) -> PeerServer {
    let place = Place {
        tls: Some(tls),
        ..Place::default()
    };
    PeerServer::start_at(place, b"run".to_vec()).unwrap()
}

#[test]
fn caller_whose_certificate_is_not_good_is_refused_in_words_and_others_are_not() {
    let (pki, stranger) = (Pki::default(), Pki::default());
    let now = SystemTime::now();
    let revoked = pki.issue("gpu-9", Role::Worker, now + DAY);
    let list = pki.0.revoke([revoked.serial.as_str()], 1).unwrap();
    let server = listening(pki.tls(&pki.issue("gpu-1", Role::Worker, now + DAY), Some(list)));
    let foreign = stranger.issue("gpu-2", Role::Worker, now + DAY);
    let cases = [
        (
            pki.tls(&pki.issue("gpu-2", Role::Worker, now - DAY), None),
            "CertificateExpired",
        ),
        (pki.tls(&revoked, None), "CertificateRevoked"),
        (stranger.tls(&foreign, None), "its certificate is not good"),
    ];
    for (tls, word) in &cases {
        match call(&server, Some(tls)) {
            Err(PeerError::Untrusted { why, .. }) => assert!(why.contains(word), "{why}"),
            other => panic!("{word}: {other:?}"),
        }
    }
    // A coordinator's certificate is good, but not in a ring.
    let head = pki.tls(&pki.issue("head-1", Role::Coordinator, now + DAY), None);
    assert!(matches!(call(&server, Some(&head)), Err(PeerError::Refused { .. })));
    // The secret of the generation is not enough.
    assert!(matches!(call(&server, None), Err(PeerError::Refused { .. })));
    call(&server, Some(&pki.worker("gpu-2"))).unwrap();
}

#[test]
fn listener_that_is_no_worker_is_not_spoken_to() {
    let pki = Pki::default();
    let now = SystemTime::now();
    let head = pki.tls(&pki.issue("head-1", Role::Coordinator, now + DAY), None);
    match call(&listening(head), Some(&pki.worker("gpu-2"))) {
        Err(PeerError::Untrusted { why, .. }) => assert!(why.contains("its certificate is not good"), "{why}"),
        other => panic!("{other:?}"),
    }
    // One without certificates does not get this far either.
    let plain = PeerServer::start(b"run".to_vec()).unwrap();
    assert!(matches!(
        call(&plain, Some(&pki.worker("gpu-2"))),
        Err(PeerError::Lost { .. } | PeerError::Untrusted { .. })
    ));
}

#[test]
fn place_off_loopback_needs_certificates() {
    let open = Place {
        listen: SocketAddr::from(([0, 0, 0, 0], 0)),
        ..Place::default()
    };
    let refused = PeerServer::start_at(open.clone(), b"run".to_vec()).unwrap_err();
    assert!(refused.to_string().contains("argosy pki"), "{refused}");
    let place = Place {
        advertise: Some("gpu-1.example".into()),
        tls: Some(Pki::default().worker("gpu-1")),
        ..open
    };
    let server = PeerServer::start_at(place, b"run".to_vec()).unwrap();
    assert!(server.addr().starts_with("gpu-1.example:"), "{}", server.addr());
}

#[test]
fn garbage_ends_its_own_connection_and_no_other() {
    let pki = Pki::default();
    let server = listening(pki.worker("gpu-1"));
    let mut record = vec![22, 3, 3, 0xff, 0xff]; // a handshake record of 65535 bytes: more than TLS allows
    record.extend([0; 64]);
    for garbage in [&[0xff; 300][..], &[0; 300], b"GET / HTTP/1.1\r\n\r\n", &record] {
        let mut raw = TcpStream::connect(server.addr()).unwrap();
        let _ = raw.write_all(garbage);
        let mut answer = Vec::new();
        let _ = raw.read_to_end(&mut answer); // it ends
        call(&server, Some(&pki.worker("gpu-2"))).unwrap();
    }
}
