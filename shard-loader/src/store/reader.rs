//! One ranged read that gets through: from the failed byte on, with pauses, a second request for a slow first, and an eye
//! on stalls. All waiting follows tokio's clock, so tests need no time.

use super::policy::{Latency, RetryPolicy, Verdict, verdict};
use super::{ObjectFacts, facts_of};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use object_store::path::Path as Key;
use object_store::{Error, GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta, ObjectStore};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Why a read ended without its bytes.
#[derive(Debug)]
pub(super) enum ReadError {
    /// No such object.
    Missing,
    /// The object is another one now.
    Changed(String),
    /// The store refused us.
    Denied(String),
    /// All else, with what was tried.
    Unreadable(String),
}

/// What an object must still be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pinned<'a> {
    pub(super) bytes: u64,
    pub(super) etag: Option<&'a str>,
}

/// Counts what reads cost.
#[derive(Debug, Default)]
pub(super) struct ReadCounters {
    pub(super) requests: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) hedges: AtomicU64,
    pub(super) stalls: AtomicU64,
}

impl ReadCounters {
    fn one(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A store with what is needed to read from it well.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    pub(super) objects: &'a dyn ObjectStore,
    pub(super) policy: &'a RetryPolicy,
    /// None for files, which no second request makes faster.
    pub(super) latency: Option<&'a Latency>,
    pub(super) counters: &'a ReadCounters,
}

/// Failures of one read.
#[derive(Debug)]
struct Tries {
    began: Instant,
    in_a_row: u32,
    denied: bool,
}

impl Tries {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            in_a_row: 0,
            denied: false,
        }
    }
}

/// What one request came to.
enum Outcome {
    Done,
    /// All of a file's range in one piece, which need not be copied.
    Whole(Bytes),
    /// It failed; this is why, and whether it may be tried again.
    Failed(Verdict, String),
}

impl Reader<'_> {
    /// The bytes of `range`, which is not empty and lies within the pinned size.
    pub(super) async fn read(&self, key: &Key, range: Range<u64>, pinned: Pinned<'_>) -> Result<Bytes, ReadError> {
        let length = range.end - range.start;
        let room = if self.latency.is_some() { length } else { 0 };
        let mut got = BytesMut::with_capacity(usize::try_from(room).unwrap_or(0));
        let mut tries = Tries::new();
        loop {
            let had = got.len();
            let rest = range.start + had as u64..range.end;
            match self.request(key, rest, pinned, &mut got).await {
                Outcome::Done => return Ok(got.freeze()),
                Outcome::Whole(bytes) if got.is_empty() => return Ok(bytes),
                Outcome::Whole(bytes) => {
                    got.extend_from_slice(&bytes);
                    return Ok(got.freeze());
                }
                Outcome::Failed(verdict, why) => {
                    if got.len() > had {
                        tries.in_a_row = 0;
                    }
                    if verdict == Verdict::Final {
                        self.same_still(key, pinned).await?;
                    }
                    self.again_or_give_up(key, verdict, why, &mut tries).await?;
                }
            }
        }
    }

    /// Size, etag and age of an object.
    pub(super) async fn facts(&self, key: &Key) -> Result<ObjectFacts, ReadError> {
        let head = || async {
            let options = GetOptions {
                head: true,
                ..GetOptions::default()
            };
            let got = self.objects.get_opts(key, options).await?;
            Ok(facts_of(&got.meta))
        };
        self.retrying(key, head).await
    }

    /// Does `work`, which is one short request, until it succeeds or must not be tried again.
    pub(super) async fn retrying<T, F>(&self, key: &Key, work: impl Fn() -> F) -> Result<T, ReadError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut tries = Tries::new();
        loop {
            ReadCounters::one(&self.counters.requests);
            let (verdict, why) = match timeout(self.stall(), work()).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(error)) => (self.verdict(&error), error.to_string()),
                Err(_) => self.stalled("no answer"),
            };
            self.again_or_give_up(key, verdict, why, &mut tries).await?;
        }
    }

    /// Every object under `prefix`, as the store lists them: page after page, each with a stall's time of its own.
    ///
    /// A failure goes on behind the last key, and with a new budget, as long as pages bring new keys. Where keys did not come
    /// in order nobody can say what is behind the last one, and the list begins anew.
    pub(super) async fn list(&self, prefix: &Key) -> Result<Vec<ObjectMeta>, ReadError> {
        let mut listed: Vec<ObjectMeta> = Vec::new();
        let (mut tries, mut most) = (Tries::new(), 0);
        loop {
            ReadCounters::one(&self.counters.requests);
            let mut pages = match listed.last() {
                Some(last) => self.objects.list_with_offset(Some(prefix), &last.location),
                None => self.objects.list(Some(prefix)),
            };
            let (verdict, why) = loop {
                match timeout(self.stall(), pages.next()).await {
                    Ok(Some(Ok(meta))) => listed.push(meta),
                    Ok(Some(Err(error))) => break (self.verdict(&error), error.to_string()),
                    Ok(None) => return Ok(listed),
                    Err(_) => break self.stalled("no page of the list"),
                }
            };
            if listed.len() > most {
                most = listed.len();
                tries = Tries::new();
            }
            if !listed.is_sorted_by(|a, b| a.location < b.location) {
                listed.clear();
            }
            self.again_or_give_up(prefix, verdict, why, &mut tries).await?;
        }
    }

    /// A file that cannot be read now cannot be read in a second either.
    fn verdict(&self, error: &Error) -> Verdict {
        match verdict(error) {
            Verdict::Again if self.latency.is_none() => Verdict::Final,
            other => other,
        }
    }

    fn stall(&self) -> Duration {
        Duration::from_millis(self.policy.stall_ms)
    }

    fn stalled(&self, what: &str) -> (Verdict, String) {
        ReadCounters::one(&self.counters.stalls);
        (Verdict::Again, format!("{what} within {} ms", self.policy.stall_ms))
    }

    /// Waits before the next try, or says why there is none.
    async fn again_or_give_up(
        &self,
        key: &Key,
        verdict: Verdict,
        why: String,
        tries: &mut Tries,
    ) -> Result<(), ReadError> {
        tries.in_a_row += 1;
        match verdict {
            Verdict::Missing => return Err(ReadError::Missing),
            Verdict::Changed => return Err(ReadError::Changed(why)),
            Verdict::Final => return Err(ReadError::Unreadable(why)),
            // Credentials may have been renewed between two requests; asking more often only makes noise.
            Verdict::Denied if tries.denied => return Err(ReadError::Denied(why)),
            Verdict::Denied => tries.denied = true,
            Verdict::Again => {}
        }
        let tried_ms = u64::try_from(tries.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if tries.in_a_row >= self.policy.failures_max || tried_ms >= self.policy.budget_ms {
            return Err(ReadError::Unreadable(format!(
                "{why} (given up after {} failures in a row and {tried_ms} ms)",
                tries.in_a_row
            )));
        }
        ReadCounters::one(&self.counters.retries);
        tracing::debug!(%key, failures = tries.in_a_row, %why, "reading again");
        sleep(self.policy.pause(tries.in_a_row)).await;
        Ok(())
    }

    /// An object that shrank below the range fails before its size can be compared; says which of the two it is.
    pub(super) async fn same_still(&self, key: &Key, pinned: Pinned<'_>) -> Result<(), ReadError> {
        let now = self.facts(key).await?;
        changed(&now, pinned).map_or(Ok(()), |change| Err(ReadError::Changed(change)))
    }

    /// One request for `range`, whose bytes are appended to `got` as they come.
    async fn request(&self, key: &Key, range: Range<u64>, pinned: Pinned<'_>, got: &mut BytesMut) -> Outcome {
        let length = range.end - range.start;
        let answer = match self.answer(key, range.clone(), pinned).await {
            Ok(answer) => answer,
            Err(failed) => return failed,
        };
        if let Some(failed) = unlike(&answer, &range, pinned) {
            return failed;
        }
        if matches!(answer.payload, GetResultPayload::File(..)) {
            return match answer.bytes().await {
                Ok(bytes) if bytes.len() as u64 == length => Outcome::Whole(bytes),
                Ok(bytes) => Outcome::Failed(Verdict::Final, format!("asked for {length} bytes, got {}", bytes.len())),
                Err(error) => Outcome::Failed(Verdict::Final, error.to_string()),
            };
        }
        let mut body = answer.into_stream();
        let mut taken = 0u64;
        while taken < length {
            // Enough for the clock to begin anew, so that a body that trickles is noticed as well as one that stops.
            let enough = (taken + self.policy.stall_bytes_min).min(length);
            let more = timeout(self.stall(), async {
                while taken < enough {
                    match body.next().await {
                        Some(Ok(piece)) => {
                            taken += piece.len() as u64;
                            got.extend_from_slice(&piece);
                        }
                        Some(Err(error)) => return Some((self.verdict(&error), error.to_string())),
                        None => {
                            return Some((
                                Verdict::Again,
                                format!("the body ended after {taken} of {length} bytes"),
                            ));
                        }
                    }
                }
                None
            })
            .await;
            match more {
                Ok(None) => {}
                Ok(Some((verdict, why))) => return Outcome::Failed(verdict, why),
                Err(_) => {
                    let (verdict, why) = self.stalled(&format!("less than {} bytes came", self.policy.stall_bytes_min));
                    return Outcome::Failed(verdict, why);
                }
            }
        }
        if taken > length {
            got.truncate(got.len() - (taken - length) as usize);
            return Outcome::Failed(
                Verdict::Final,
                format!("{taken} bytes came where {length} were asked for"),
            );
        }
        Outcome::Done
    }

    /// The first answer of one request or, if that is slow, of two.
    async fn answer(&self, key: &Key, range: Range<u64>, pinned: Pinned<'_>) -> Result<GetResult, Outcome> {
        let ask = || {
            ReadCounters::one(&self.counters.requests);
            let options = GetOptions {
                range: Some(GetRange::Bounded(range.clone())),
                // A weak etag never matches there (RFC 9110, 13.1.1); the answer's own is compared instead.
                if_match: pinned.etag.filter(|etag| !is_weak(etag)).map(str::to_owned),
                ..GetOptions::default()
            };
            async move {
                let began = Instant::now();
                let answer = self.objects.get_opts(key, options).await;
                if let (Some(latency), Ok(_)) = (self.latency, &answer) {
                    latency.answered(began.elapsed());
                }
                answer
            }
        };
        let slow = self.latency.and_then(|latency| latency.hedge_after(self.policy));
        let first = std::pin::pin!(ask());
        let hedged = async {
            let Some(slow) = slow else { return first.await };
            let mut first = first;
            if let Ok(answer) = timeout(slow, &mut first).await {
                return answer;
            }
            ReadCounters::one(&self.counters.hedges);
            if let Some(latency) = self.latency {
                latency.hedged();
            }
            let second = std::pin::pin!(ask());
            either(first, second).await
        };
        match timeout(self.stall(), hedged).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Outcome::Failed(self.verdict(&error), error.to_string())),
            Err(_) => {
                let (verdict, why) = self.stalled("no answer");
                Err(Outcome::Failed(verdict, why))
            }
        }
    }
}

/// The first that succeeds, or the second failure.
async fn either<A, B>(first: A, second: B) -> Result<GetResult, Error>
where
    A: Future<Output = Result<GetResult, Error>> + Unpin,
    B: Future<Output = Result<GetResult, Error>> + Unpin,
{
    use futures_util::future::{Either, select};
    match select(first, second).await {
        Either::Left((Ok(answer), _)) | Either::Right((Ok(answer), _)) => Ok(answer),
        Either::Left((Err(_), other)) => other.await,
        Either::Right((Err(_), other)) => other.await,
    }
}

/// What in an answer is not as pinned: another object (rule M3), or none at all, as when a portal answers for the store.
fn unlike(answer: &GetResult, asked: &Range<u64>, pinned: Pinned<'_>) -> Option<Outcome> {
    let now = facts_of(&answer.meta);
    if pinned.etag.is_some() && now.etag.is_none() {
        let why = "the answer has no etag: something else answered for the store";
        return Some(Outcome::Failed(Verdict::Again, why.into()));
    }
    if let Some(change) = changed(&now, pinned) {
        return Some(Outcome::Failed(Verdict::Changed, change));
    }
    if answer.range != *asked {
        let why = format!("asked for bytes {asked:?}, the answer has {:?}", answer.range);
        return Some(Outcome::Failed(Verdict::Again, why));
    }
    None
}

/// How an object differs from the pinned one.
fn changed(now: &ObjectFacts, pinned: Pinned<'_>) -> Option<String> {
    if now.bytes != pinned.bytes {
        return Some(format!("{} bytes then, {} now", pinned.bytes, now.bytes));
    }
    match (pinned.etag, now.etag.as_deref()) {
        (Some(then), Some(now)) if !same_version(then, now) => Some(format!("etag {then} then, {now} now")),
        _ => None,
    }
}

fn is_weak(etag: &str) -> bool {
    etag.starts_with("W/")
}

/// Whether an etag still names the version that was pinned. Web servers drop and add the mark of a weak one as they please; only
/// who pinned a strong one has to get it.
fn same_version(then: &str, now: &str) -> bool {
    then == now || is_weak(then) && bare(then) == bare(now)
}

fn bare(etag: &str) -> &str {
    etag.strip_prefix("W/").unwrap_or(etag)
}
