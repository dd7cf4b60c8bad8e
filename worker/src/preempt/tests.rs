//! The three formats, spoken by a server on loopback.

use super::{Notice, Provider, Watch, watch_every};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;

/// What a fake service answers: status, more headers, body.
type Reply = (u16, &'static str, String);

/// One request: its first line and its headers, in lower case.
#[derive(Clone, Debug)]
struct Asked {
    line: String,
    headers: String,
}

/// Answers every request by `script`, which gets it and how many came before; remembers all.
fn serve(script: impl Fn(&Asked, usize) -> Reply + Send + 'static) -> (String, Arc<Mutex<Vec<Asked>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
    let theirs = asked.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let Some(request) = read_request(&socket) else { continue };
            let mut all = theirs.lock().unwrap();
            let (status, headers, body) = script(&request, all.len());
            all.push(request);
            drop(all);
            let head = format!(
                "HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            // A client that is gone needs no answer.
            let _ = (&socket).write_all((head + &body).as_bytes());
        }
    });
    (url, asked)
}

fn read_request(mut socket: &TcpStream) -> Option<Asked> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let text = String::from_utf8(head).ok()?;
    let (line, headers) = text.split_once("\r\n")?;
    Some(Asked {
        line: line.into(),
        headers: headers.to_lowercase(),
    })
}

/// The first notice of `provider` at `url`.
async fn first_notice(provider: Provider, url: &str) -> Notice {
    let (said, mut heard) = mpsc::unbounded_channel();
    let watch = Watch {
        provider,
        url: Some(url.into()),
    };
    tokio::select! {
        () = watch_every(&watch, Duration::from_millis(1), |notice| said.send(notice).unwrap()) => unreachable!(),
        notice = heard.recv() => notice.unwrap(),
    }
}

fn ok(body: &str) -> Reply {
    (200, "", body.into())
}

fn none() -> Reply {
    (404, "", "<html>not found</html>".into())
}

#[tokio::test]
async fn aws_interruption_is_heard_with_a_token_that_is_renewed_when_it_ran_out() {
    let action = r#"{"action": "terminate", "time": "2026-09-18T08:22:00Z"}"#;
    let (url, asked) = serve(move |request, _| match request.line.as_str() {
        line if line.starts_with("PUT /latest/api/token ") => match request.headers.contains("ttl-seconds: 21600") {
            true => ok("token-2"),
            false => (400, "", String::new()),
        },
        line if line.starts_with("GET /latest/meta-data/spot/instance-action ") => {
            match request.headers.contains("x-aws-ec2-metadata-token: token-2") {
                true => ok(action),
                false => (401, "", String::new()),
            }
        }
        _ => none(),
    });
    let notice = first_notice(Provider::Aws, &url).await;
    assert_eq!(notice.grace, Duration::from_secs(110));
    assert!(
        notice.reason.contains("terminate") && notice.reason.contains("08:22"),
        "{notice:?}"
    );
    assert!(
        asked.lock().unwrap().iter().all(|a| !a.line.contains("rebalance")),
        "not asked for"
    );
}

#[tokio::test]
async fn aws_token_that_is_refused_later_is_asked_for_again() {
    let (url, _) = serve(|request, before| match (request.line.starts_with("PUT"), before) {
        (true, before) => ok(&format!("token-{before}")),
        (false, 1) => none(),
        (false, 2) => (401, "", String::new()),
        (false, _) => match request.headers.contains("metadata-token: token-3") {
            true => ok(r#"{"action": "hibernate", "time": ""}"#),
            false => (403, "", String::new()),
        },
    });
    let notice = first_notice(Provider::Aws, &url).await;
    assert_eq!(notice.grace, Duration::from_secs(5), "hibernation begins at once");
}

#[tokio::test]
async fn aws_rebalance_is_heard_where_it_is_asked_for_and_an_interruption_behind_it_as_well() {
    let (url, _) = serve(|request, before| match request.line.as_str() {
        line if line.starts_with("PUT") => ok("t"),
        line if line.contains("/events/recommendations/rebalance ") => ok(r#"{"noticeTime": "2026-10-27T08:22:00Z"}"#),
        _ if before > 8 => ok(r#"{"action": "stop", "time": "x"}"#),
        _ => none(),
    });
    let (said, mut heard) = mpsc::unbounded_channel();
    let watch = Watch {
        provider: Provider::AwsRebalance,
        url: Some(url),
    };
    let both = async { [heard.recv().await.unwrap(), heard.recv().await.unwrap()] };
    let [first, second] = tokio::select! {
        () = watch_every(&watch, Duration::from_millis(1), |notice| said.send(notice).unwrap()) => unreachable!(),
        both = both => both,
    };
    assert!(
        first.reason.contains("rebalance") && first.grace > second.grace,
        "{first:?}"
    );
    assert!(second.reason.contains("stop"), "{second:?}");
}

#[tokio::test]
async fn gcp_preemption_is_waited_for_behind_the_mark_of_the_last_answer() {
    let (url, asked) = serve(|request, before| {
        let google = "Metadata-Flavor: Google\r\nETag: 411ab\r\n";
        match (request.headers.contains("metadata-flavor: google"), before) {
            (false, _) => (403, "", String::new()),
            (true, 0) => (200, google, "FALSE".into()),
            (true, 1) => (503, "", "busy".into()),
            (true, 2) => (200, "", "TRUE".into()), // somebody else who answers to everything
            (true, 3) => (200, google, "FALSE".into()),
            (true, _) => (200, google, "TRUE\n".into()),
        }
    });
    let notice = first_notice(Provider::Gcp, &url).await;
    assert_eq!(notice.grace, Duration::from_secs(25));
    let asked = asked.lock().unwrap();
    let waits = |n: usize| {
        asked[n]
            .line
            .contains("wait_for_change=true&timeout_sec=60&last_etag=411ab ")
    };
    assert!(!waits(0) && waits(1) && !waits(2) && waits(4), "{asked:?}");
}

#[tokio::test]
async fn azure_events_of_others_and_those_that_a_process_survives_are_not_heeded() {
    let event = |kind: &str, who: &str| {
        format!(
            r#"{{"EventId": "e", "EventStatus": "Scheduled", "EventType": "{kind}", "ResourceType": "VirtualMachine",
            "Resources": ["{who}"], "NotBefore": "Mon, 19 Sep 2026 18:29:47 GMT", "DurationInSeconds": -1}}"#
        )
    };
    let document =
        move |events: &[String]| format!(r#"{{"DocumentIncarnation": 2, "Events": [{}]}}"#, events.join(","));
    let (url, _) = serve(move |request, before| {
        if !request.headers.contains("metadata: true") {
            return (400, "", String::new());
        }
        if request.line.contains("/metadata/instance/compute/name?") {
            return ok("node_2");
        }
        assert!(request.line.contains("api-version=2020-07-01"));
        match before {
            1 => ok(&document(&[])),
            2 => ok("no JSON"),
            3 => ok(&document(&[event("Preempt", "node_1"), event("Freeze", "node_2")])),
            _ => ok(&document(&[event("Terminate", "node_2"), event("Preempt", "node_2")])),
        }
    });
    let notice = first_notice(Provider::Azure, &url).await;
    assert_eq!(notice.grace, Duration::from_secs(25), "the nearest end counts");
    assert!(notice.reason.contains("Preempt of node_2"), "{notice:?}");
}
