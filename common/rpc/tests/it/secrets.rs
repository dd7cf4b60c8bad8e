//! No secret is in anything that is logged or said, at the finest level and when everything goes wrong.

use crate::{Porch, hello, in_time, welcome};
use argosy_common::node::Role;
use argosy_pki::Authority;
use argosy_rpc::server::{Limits, serve};
use argosy_rpc::{Pem, Tls, connect_with};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tracing_subscriber::fmt::MakeWriter;

const CANARY: &str = "canary-token-5c1d83aa";

/// Everything that was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn secrets_are_in_no_log_line_and_no_error() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);

    let day = Duration::from_secs(86_400);
    let authority = Authority::new(day).unwrap();
    let now = SystemTime::now();
    let mut keys = vec![authority.key().to_owned()];
    let mut tls = |node: &str, role, until| {
        let made = authority.issue(node, role, now - 2 * day, until).unwrap();
        keys.push(made.key.clone());
        let pem = Pem {
            ca: authority.certificate().into(),
            certificate: made.certificate,
            key: made.key,
            revoked: None,
        };
        Tls::new(&pem).unwrap()
    };
    let head = tls("head-1", Role::Coordinator, now + day);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let (porch, mut guests) = mpsc::channel(8);
    let limits = Limits {
        connections_max: 4,
        hello_within: Duration::from_secs(5),
        keep_alive: Duration::from_secs(5),
    };
    let serving = async {
        let porch = Arc::new(Porch(porch));
        serve(listener, CANARY, limits, Some(&head), porch, std::future::pending()).await
    };
    let good = tls("gpu-1", Role::Worker, now + day);
    let expired = tls("gpu-1", Role::Worker, now - day);
    let wrong = format!("{CANARY}-wrong");
    let mut said = String::new();
    let knocking = async {
        let session = connect_with(&endpoint, CANARY, &good, hello(1)).await.unwrap();
        said += &format!("{session:?}\n");
        guests.recv().await.unwrap();
        for (token, tls) in [(wrong.as_str(), &good), (CANARY, &expired), ("\n", &good)] {
            let error = connect_with(&endpoint, token, tls, hello(1)).await.unwrap_err();
            said += &format!("{error} {error:?}\n");
        }
    };
    // On this thread, where the log is kept.
    in_time(async {
        tokio::select! {
            ended = serving => panic!("{ended:?}"),
            () = knocking => {}
        }
    })
    .await;

    said += &format!("{head:?} {good:?} {authority:?}\n");
    said += &String::from_utf8_lossy(&log.0.lock().unwrap());
    assert!(said.contains("a caller was refused"), "the log is kept: {said}");
    let secret = format!("{:?}", welcome().run_secret);
    assert!(
        !said.contains(CANARY) && !said.contains(secret.trim_matches(['[', ']'])),
        "{said}"
    );
    for line in keys.iter().flat_map(|key| key.lines()).filter(|line| line.len() > 40) {
        assert!(!said.contains(line), "a key was said");
    }
}
