//! What the doubles of all stores have in common: a server on loopback, over memory, whose requests meet faults.

use crate::body::{self, Broken};
use crate::faults::{Fault, Faults, Met, Op};
use crate::listing;
use crate::objects::{Conditions, Objects};
use crate::{azure, s3};
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
use percent_encoding::percent_decode_str;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Whose words a double understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Amazon's.
    S3,
    /// Google's XML interface.
    Gcs,
    /// Azure's blobs. Copies and deletes are not among the words.
    Azure,
}

pub(crate) const MODIFIED: &str = "Mon, 01 Jan 2024 00:00:00 GMT";

pub(crate) type Body = UnsyncBoxBody<Bytes, Broken>;
type Answer = Result<Response<Body>, Broken>;

/// The server. Ends when dropped.
#[derive(Debug)]
pub struct StoreDouble {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The one that most tests want.
pub type S3Double = StoreDouble;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) kind: Kind,
    objects: Mutex<Objects>,
    pub(crate) faults: Faults,
    pub(crate) page_keys: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoreDouble {
    /// Starts an S3 server on a free port of loopback, with pages of 1000 keys.
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
        Self::start_as(Kind::S3, faults, page_keys)
    }

    /// A server of that kind.
    ///
    /// # Errors
    /// When there is no port or no thread.
    pub fn start_as(kind: Kind, faults: Faults, page_keys: usize) -> io::Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), kind, faults, page_keys)
    }

    /// The same at an address of one's own choice, where network namespaces reach it.
    ///
    /// # Errors
    /// When there is no such address or no thread.
    pub fn start_at(address: SocketAddr, kind: Kind, faults: Faults, page_keys: usize) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            kind,
            objects: Mutex::default(),
            faults,
            page_keys,
        });
        let (stop, stopped) = oneshot::channel();
        // A thread of its own: tests that block need an answer too.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("store-double".into()).spawn(move || {
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

    /// What a process needs in its environment to reach it as the store it stands for.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        match self.shared.kind {
            Kind::S3 | Kind::Gcs => s3::environment(self.shared.kind, &self.endpoint()),
            Kind::Azure => azure::environment(&self.endpoint()),
        }
    }

    /// A client of `bucket` that retries nothing.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub fn client(&self, bucket: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
        // Only the first one counts; another one that was chosen before is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        match self.shared.kind {
            Kind::S3 | Kind::Gcs => s3::client(self.shared.kind, &self.endpoint(), bucket),
            Kind::Azure => azure::client(&self.endpoint(), bucket),
        }
    }

    /// Stores an object without a request.
    pub fn insert(&self, bucket: &str, key: &str, bytes: impl Into<Bytes>) {
        // Without conditions nothing can be refused.
        let _ = self
            .shared
            .lock()
            .put(&format!("{bucket}/{key}"), bytes.into(), &Conditions::default());
    }

    /// Makes an object's etag a weak one, as web servers give: no If-Match holds for it.
    pub fn weaken(&self, bucket: &str, key: &str) {
        if let Some(object) = self.shared.lock().stored.get_mut(&format!("{bucket}/{key}")) {
            object.etag.insert_str(0, "W/");
        }
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

impl Drop for StoreDouble {
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
pub(crate) struct Asked {
    pub(crate) method: Method,
    /// `bucket/key`, or the bucket alone.
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
    headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.query.contains_key(name)
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
    let azure = shared.kind == Kind::Azure;
    let op = if azure { azure::op(&asked) } else { s3::op(&asked) };
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
    let allowed = if azure {
        azure::allowed(&asked)
    } else {
        s3::allowed(shared.kind, &asked, op)
    };
    if !allowed {
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
    let mut objects = shared.lock();
    let response = match op {
        Op::Get | Op::Head => read(&shared, &objects, op, &asked, &met),
        _ if azure => azure::carry_out(&shared, &mut objects, op, &asked, &met),
        _ => s3::carry_out(&shared, &mut objects, op, &asked, &met),
    };
    drop(objects);
    match met.fault {
        Some(Fault::LostReply) => Err(Broken),
        Some(Fault::WrongContent(content)) => Ok(wrong_content(content)),
        _ => Ok(response),
    }
}

fn read(shared: &Shared, objects: &Objects, op: Op, asked: &Asked, met: &Met) -> Response<Body> {
    let Some(object) = objects.stored.get(&asked.path) else {
        return status(404);
    };
    let matches = |wanted: &str| wanted == object.etag && !wanted.starts_with("W/");
    if asked.header("if-match").is_some_and(|wanted| !matches(wanted)) {
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
        .header("x-goog-generation", object.generation)
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

pub(crate) fn status(code: u16) -> Response<Body> {
    match code {
        204 => xml(code, String::new()),
        _ => xml(code, listing::error(code)),
    }
}

pub(crate) fn xml(code: u16, text: String) -> Response<Body> {
    let mut response = Response::new(full(text.into()));
    *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    response
}

pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
