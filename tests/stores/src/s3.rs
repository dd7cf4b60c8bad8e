//! An S3 server on loopback, over memory, whose requests meet faults.
//!
//! Knows what `object_store` and boto ask for: GET and HEAD with ranges and If-Match, PUT with If-Match and
//! `If-None-Match: *`, uploads in parts, lists by page, copies, single and bulk deletes. Path style only. Plain GETs need no
//! signature, so it serves `http://` addresses too; signatures are not checked beyond their access key.

use crate::body::{self, Broken};
use crate::faults::{Fault, Faults, Met, Op};
use crate::listing;
use crate::s3_objects::{Conditions, Objects};
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use object_store::ObjectStore;
use object_store::RetryConfig;
use object_store::aws::AmazonS3Builder;
use percent_encoding::percent_decode_str;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// The access key that the double knows.
const ACCESS_KEY: &str = "TESTACCESSKEY";
/// Its secret, long and odd so that a test can search logs for it.
const SECRET_KEY: &str = "canary-secret-7f3a91c2";
const MODIFIED: &str = "Mon, 01 Jan 2024 00:00:00 GMT";

type Body = UnsyncBoxBody<Bytes, Broken>;
type Answer = Result<Response<Body>, Broken>;

/// The server. Ends when dropped.
#[derive(Debug)]
pub struct S3Double {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    objects: Mutex<Objects>,
    faults: Faults,
    page_keys: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl S3Double {
    /// Starts a server on a free port of loopback, with pages of 1000 keys.
    ///
    /// # Errors
    /// When there is no port or no thread.
    pub fn start(faults: Faults) -> io::Result<Self> {
        Self::start_with_pages(faults, 1000)
    }

    /// The same, with at most `page_keys` keys in a page of a list.
    ///
    /// # Errors
    /// When there is no port or no thread.
    pub fn start_with_pages(faults: Faults, page_keys: usize) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            objects: Mutex::default(),
            faults,
            page_keys,
        });
        let (stop, stopped) = oneshot::channel();
        // A thread of its own: tests that block need an answer too.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("s3-double".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, serving) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self {
            address,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What a process needs in its environment to reach it as S3.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_REGION", "us-east-1".into()),
        ]
    }

    /// A client of `bucket` that retries nothing.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub fn client(&self, bucket: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
        // Only the first one counts; another one that was chosen before is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let no_retry = RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        };
        let client = AmazonS3Builder::new()
            .with_endpoint(self.endpoint())
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_bucket_name(bucket)
            .with_access_key_id(ACCESS_KEY)
            .with_secret_access_key(SECRET_KEY)
            .with_retry(no_retry)
            .build()?;
        Ok(Arc::new(client))
    }

    /// Stores an object without a request.
    pub fn insert(&self, bucket: &str, key: &str, bytes: impl Into<Bytes>) {
        // Without conditions nothing can be refused.
        let _ = self
            .shared
            .lock()
            .put(&format!("{bucket}/{key}"), bytes.into(), &Conditions::default());
    }

    /// Removes an object without a request.
    pub fn remove(&self, bucket: &str, key: &str) {
        self.shared.lock().stored.remove(&format!("{bucket}/{key}"));
    }

    /// An object's content.
    #[must_use]
    pub fn content(&self, bucket: &str, key: &str) -> Option<Bytes> {
        let objects = self.shared.lock();
        objects.stored.get(&format!("{bucket}/{key}")).map(|o| o.bytes.clone())
    }

    /// The keys of a bucket, sorted.
    #[must_use]
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        let root = format!("{bucket}/");
        let objects = self.shared.lock();
        objects
            .stored
            .keys()
            .filter_map(|k| k.strip_prefix(&root))
            .map(str::to_owned)
            .collect()
    }

    /// Uploads in parts that were neither completed nor aborted.
    #[must_use]
    pub fn open_uploads(&self) -> usize {
        self.shared.lock().open_uploads()
    }

    /// Its faults and its log of requests.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }
}

impl Drop for S3Double {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    while let Ok((socket, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&shared), request));
            // A connection that a fault breaks ends in an error here; that is the point.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

/// A request in the double's words.
#[derive(Debug)]
struct Asked {
    method: Method,
    /// `bucket/key`, or the bucket alone.
    path: String,
    query: BTreeMap<String, String>,
    headers: HeaderMap,
    body: Bytes,
}

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    fn has(&self, name: &str) -> bool {
        self.query.contains_key(name)
    }

    fn op(&self) -> Op {
        let whole_bucket = !self.path.contains('/');
        match self.method {
            Method::GET if whole_bucket => Op::List,
            Method::GET => Op::Get,
            Method::HEAD => Op::Head,
            Method::DELETE if self.has("uploadId") => Op::Multipart,
            Method::DELETE => Op::Delete,
            Method::POST if self.has("delete") => Op::Delete,
            Method::POST => Op::Multipart,
            _ if self.has("uploadId") => Op::Multipart,
            _ if self.header("x-amz-copy-source").is_some() => Op::Copy,
            _ => Op::Put,
        }
    }

    fn conditions(&self) -> Conditions {
        Conditions {
            if_match: self.header("if-match").map(str::to_owned),
            create_only: self.header("if-none-match") == Some("*"),
        }
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pairs = head
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|p| !p.is_empty());
    let asked = Asked {
        path: decoded(head.uri.path()).trim_matches('/').to_owned(),
        query: pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (decoded(name), decoded(&value.replace('+', " "))))
            .collect(),
        method: head.method,
        headers: head.headers,
        body,
    };
    let op = asked.op();
    let range = asked.header("range").and_then(bounded);
    let name = match op {
        Op::List => format!(
            "{}/{}",
            asked.path,
            asked.query.get("prefix").cloned().unwrap_or_default()
        ),
        _ => asked.path.clone(),
    };
    let met = shared.faults.meet(op, &name, range);
    if !allowed(&asked, op) {
        return Ok(status(403));
    }
    match &met.fault {
        Some(Fault::Status(code)) => return Ok(status(*code)),
        Some(Fault::Hang) => shared.faults.held(met.since).await,
        Some(Fault::Changed(content)) => {
            let _ = shared.lock().put(&asked.path, content.clone(), &Conditions::default());
        }
        Some(Fault::Torn(kept)) => {
            let kept = usize::try_from(*kept).unwrap_or(usize::MAX).min(asked.body.len());
            let _ = shared
                .lock()
                .put(&asked.path, asked.body.slice(..kept), &Conditions::default());
            return Err(Broken);
        }
        _ => {}
    }
    let response = carry_out(&shared, op, &asked, &met);
    match met.fault {
        Some(Fault::LostReply) => Err(Broken),
        Some(Fault::WrongContent(content)) => Ok(wrong_content(content)),
        _ => Ok(response),
    }
}

/// Reads of a key need no signature; what is signed must be by the key we know.
fn allowed(asked: &Asked, op: Op) -> bool {
    match asked.header("authorization") {
        Some(signature) => signature.contains(&format!("Credential={ACCESS_KEY}/")),
        None => matches!(op, Op::Get | Op::Head),
    }
}

fn carry_out(shared: &Shared, op: Op, asked: &Asked, met: &Met) -> Response<Body> {
    let mut objects = shared.lock();
    match op {
        Op::Get | Op::Head => read(shared, &objects, op, asked, met),
        Op::List => {
            let reversed = met.fault == Some(Fault::ListedReversed);
            let twice = met.fault == Some(Fault::ListedTwice);
            let page = listing::page(&objects, &asked.path, &asked.query, shared.page_keys, reversed, twice);
            xml(200, page)
        }
        Op::Put => written(objects.put(&asked.path, asked.body.clone(), &asked.conditions())),
        Op::Copy => {
            let from = asked.header("x-amz-copy-source").unwrap_or_default();
            let from = percent_decode_str(from.trim_start_matches('/')).decode_utf8_lossy();
            let Some(object) = objects.stored.get(from.as_ref()).cloned() else {
                return status(404);
            };
            match objects.put(&asked.path, object.bytes, &asked.conditions()) {
                Ok(etag) => xml(200, result("CopyObjectResult", "ETag", &etag)),
                Err(code) => status(code),
            }
        }
        Op::Delete => {
            let text = String::from_utf8_lossy(&asked.body);
            let keys = match asked.method {
                Method::POST => listing::texts(&text, "Key"),
                _ => Vec::new(),
            };
            objects.stored.remove(&asked.path);
            for key in &keys {
                objects.stored.remove(&format!("{}/{key}", asked.path));
            }
            let deleted: String = keys
                .iter()
                .map(|k| format!("<Deleted><Key>{}</Key></Deleted>", listing::escape(k)))
                .collect();
            match asked.method {
                Method::POST => xml(200, format!("<DeleteResult>{deleted}</DeleteResult>")),
                _ => status(204),
            }
        }
        Op::Multipart => multipart(&mut objects, asked),
    }
}

fn multipart(objects: &mut Objects, asked: &Asked) -> Response<Body> {
    let id = asked.query.get("uploadId").map_or("", String::as_str);
    match asked.method {
        Method::POST if asked.has("uploads") => {
            let id = objects.begin();
            xml(200, result("InitiateMultipartUploadResult", "UploadId", &id))
        }
        Method::POST => match objects.complete(id, &asked.path, &asked.conditions()) {
            Ok(etag) => xml(200, result("CompleteMultipartUploadResult", "ETag", &etag)),
            Err(code) => status(code),
        },
        Method::DELETE => {
            objects.abort(id);
            status(204)
        }
        _ => {
            let number = asked.query.get("partNumber").and_then(|n| n.parse().ok());
            let etag = number.and_then(|n| objects.part(id, n, asked.body.clone()));
            written(etag.ok_or(404))
        }
    }
}

fn read(shared: &Shared, objects: &Objects, op: Op, asked: &Asked, met: &Met) -> Response<Body> {
    let Some(object) = objects.stored.get(&asked.path) else {
        return status(404);
    };
    if asked.header("if-match").is_some_and(|wanted| wanted != object.etag) {
        return status(412);
    }
    let size = object.bytes.len() as u64;
    let part = match asked.header("range") {
        None => None,
        Some(text) => match resolve(text, size) {
            Some(range) => Some(range),
            None => return status(416),
        },
    };
    let range = part.clone().unwrap_or(0..size);
    let bytes = object.bytes.slice(range.start as usize..range.end as usize);
    let mut response = Response::builder()
        .status(if part.is_some() { 206 } else { 200 })
        .header("etag", &object.etag)
        .header("last-modified", MODIFIED)
        .header("accept-ranges", "bytes")
        .header("content-length", bytes.len());
    if part.is_some() {
        response = response.header(
            "content-range",
            format!("bytes {}-{}/{size}", range.start, range.end - 1),
        );
    }
    let body = match op {
        Op::Head => full(Bytes::new()),
        _ => StreamBody::new(body::stream(bytes, met, &shared.faults).map(|p| p.map(Frame::data))).boxed_unsync(),
    };
    response.body(body).unwrap_or_else(|_| status(500))
}

fn wrong_content(content: Bytes) -> Response<Body> {
    let mut response = Response::new(full(content));
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("text/html"));
    headers.insert("last-modified", HeaderValue::from_static(MODIFIED));
    response
}

/// `bytes=a-b` as a range, without knowing the size.
fn bounded(text: &str) -> Option<Range<u64>> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    let from = from.parse().ok()?;
    Some(from..to.parse().map_or(u64::MAX, |to: u64| to + 1))
}

/// A range header within an object of `size` bytes; `None` when it lies outside.
fn resolve(text: &str, size: u64) -> Option<Range<u64>> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    if from.is_empty() {
        let last: u64 = to.parse().ok()?;
        return Some(size.saturating_sub(last)..size);
    }
    let start: u64 = from.parse().ok()?;
    let end = to.parse().map_or(size, |to: u64| (to + 1).min(size));
    (start < end).then_some(start..end)
}

fn written(done: Result<String, u16>) -> Response<Body> {
    match done {
        Ok(etag) => Response::builder()
            .status(200)
            .header("etag", etag)
            .body(full(Bytes::new()))
            .unwrap_or_else(|_| status(500)),
        Err(code) => status(code),
    }
}

fn result(name: &str, field: &str, value: &str) -> String {
    format!("<{name}><{field}>{}</{field}></{name}>", listing::escape(value))
}

fn status(code: u16) -> Response<Body> {
    match code {
        204 => xml(code, String::new()),
        _ => xml(code, listing::error(code)),
    }
}

fn xml(code: u16, text: String) -> Response<Body> {
    let mut response = Response::new(full(text.into()));
    *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    response
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
