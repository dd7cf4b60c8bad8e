//! What goes wrong when.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// Reading bytes of an object.
    Get,
    /// Asking for its size and etag.
    Head,
    /// Writing an object whole.
    Put,
    /// Writing one in parts: beginning, a part, the end.
    Multipart,
    /// Listing keys.
    List,
    /// Deleting keys.
    Delete,
    /// Copying an object.
    Copy,
}

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An error status instead of an answer; nothing happens in the store. 503 is `SlowDown`, 400 `ExpiredToken`.
    Status(u16),
    /// The body of the answer breaks off after so many bytes, and its connection with it.
    CutAfter(u64),
    /// The body stops after so many bytes and nothing more comes until [`Faults::release`].
    StallAfter(u64),
    /// No answer at all until [`Faults::release`].
    Hang,
    /// The body comes in pieces of `piece_bytes`, one every `gap_ms` of tokio's clock; the page of a list of
    /// [`crate::FaultyStore`] as long after its request.
    Slow {
        /// Bytes of a piece.
        piece_bytes: usize,
        /// Time before each piece.
        gap_ms: u64,
    },
    /// A write stores only the first bytes, and its reply is lost.
    Torn(u64),
    /// The request is carried out, its reply is lost.
    LostReply,
    /// Just before the request the object's content is replaced by this, and its etag with it.
    Changed(Bytes),
    /// Status 200 with this body instead of the object, as a captive portal answers.
    WrongContent(Bytes),
    /// One bit of the body is turned, so many bytes after its begin.
    Flipped(u64),
    /// A list names every key twice, the second time in reverse order.
    ListedTwice,
    /// A list comes in reverse order.
    ListedReversed,
}

impl Fault {
    /// Its name in [`Faults::fired`].
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Status(_) => "status",
            Self::CutAfter(_) => "cut",
            Self::StallAfter(_) => "stall",
            Self::Hang => "hang",
            Self::Slow { .. } => "slow",
            Self::Torn(_) => "torn",
            Self::LostReply => "lost_reply",
            Self::Changed(_) => "changed",
            Self::WrongContent(_) => "wrong_content",
            Self::Flipped(_) => "flipped",
            Self::ListedTwice => "listed_twice",
            Self::ListedReversed => "listed_reversed",
        }
    }
}

/// A fault and the requests that meet it: by default the first request of its kind.
#[derive(Clone, Debug)]
pub struct Rule {
    op: Op,
    fault: Fault,
    key_part: String,
    after: u32,
    times: u32,
}

impl Rule {
    /// `fault` for the first request that does `op`.
    #[must_use]
    pub fn new(op: Op, fault: Fault) -> Self {
        Self {
            op,
            fault,
            key_part: String::new(),
            after: 0,
            times: 1,
        }
    }

    /// Only for keys that hold `part`.
    #[must_use]
    pub fn key(mut self, part: &str) -> Self {
        part.clone_into(&mut self.key_part);
        self
    }

    /// Lets so many requests pass first.
    #[must_use]
    pub fn after(mut self, requests: u32) -> Self {
        self.after = requests;
        self
    }

    /// For so many requests.
    #[must_use]
    pub fn times(mut self, requests: u32) -> Self {
        self.times = requests;
        self
    }

    /// From then on for every request.
    #[must_use]
    pub fn forever(self) -> Self {
        self.times(u32::MAX)
    }
}

/// Passing faults of reads at random: 503, 429, 500, cut bodies and lost replies. The same seed and order of requests give
/// the same faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storm {
    /// Of the draws; print it when a test fails.
    pub seed: u64,
    /// How many requests of a thousand fail.
    pub per_mille: u32,
}

/// A request as the store saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What it wanted.
    pub op: Op,
    /// Of which key, with the bucket in front for [`crate::StoreDouble`]; a prefix for lists.
    pub key: String,
    /// Which bytes, as far as it said.
    pub range: Option<Range<u64>>,
    /// What went wrong.
    pub fault: Option<&'static str>,
}

/// The plan of faults and the log of requests. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Faults {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Counts requests.
    seen: watch::Sender<usize>,
    /// Counts releases.
    released: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    storm: Option<Storm>,
    calls: Vec<Call>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                seen: watch::Sender::new(0),
                released: watch::Sender::new(0),
            }),
        }
    }
}

impl Faults {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a rule. The first rule that fits a request decides; rules that are used up fit none.
    pub fn add(&self, rule: Rule) {
        self.lock().rules.push(rule);
    }

    /// Lets faults of reads happen at random, where no rule fits.
    pub fn storm(&self, storm: Storm) {
        self.lock().storm = Some(storm);
    }

    /// Ends all rules and the storm; the log stays.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.rules.clear();
        state.storm = None;
    }

    /// Lets everything go on that hangs now.
    pub fn release(&self) {
        self.shared.released.send_modify(|n| *n += 1);
    }

    /// Every request so far, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// Requests so far that did `op`.
    #[must_use]
    pub fn count(&self, op: Op) -> usize {
        self.lock().calls.iter().filter(|c| c.op == op).count()
    }

    /// Faults that happened, by name. A test that planned a fault asks whether it came.
    #[must_use]
    pub fn fired(&self) -> BTreeMap<&'static str, u64> {
        let mut fired = BTreeMap::new();
        for name in self.lock().calls.iter().filter_map(|c| c.fault) {
            *fired.entry(name).or_default() += 1;
        }
        fired
    }

    /// Waits until `enough` holds of the requests so far; looked at after every request.
    pub async fn until(&self, enough: impl Fn(&[Call]) -> bool) {
        let mut seen = self.shared.seen.subscribe();
        while !enough(&self.lock().calls) {
            if seen.changed().await.is_err() {
                return;
            }
        }
    }

    /// Notes a request and says what goes wrong with it.
    pub(crate) fn meet(&self, op: Op, key: &str, range: Option<Range<u64>>) -> Met {
        // Read before the request is seen in the log: whoever waits for it there and releases then, releases it.
        let since = *self.shared.released.borrow();
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut fault = None;
        for rule in &mut state.rules {
            if rule.op != op || rule.times == 0 || !key.contains(&rule.key_part) {
                continue;
            }
            if rule.after > 0 {
                rule.after -= 1;
                continue;
            }
            if rule.times != u32::MAX {
                rule.times -= 1;
            }
            fault = Some(rule.fault.clone());
            break;
        }
        if fault.is_none()
            && op == Op::Get
            && let Some(storm) = state.storm
        {
            fault = drawn(storm, state.calls.len() as u64);
        }
        state.calls.push(Call {
            op,
            key: key.to_owned(),
            range,
            fault: fault.as_ref().map(Fault::name),
        });
        let calls = state.calls.len();
        drop(guard);
        self.shared.seen.send_replace(calls);
        Met { fault, since }
    }

    /// Waits for a [`Faults::release`] that came after `since`.
    pub(crate) async fn held(&self, since: u64) {
        let mut released = self.shared.released.subscribe();
        // The sender lives in `self`, so an error cannot come.
        let _ = released.wait_for(|n| *n > since).await;
    }
}

/// What goes wrong with one request.
#[derive(Clone, Debug)]
pub(crate) struct Met {
    pub(crate) fault: Option<Fault>,
    /// Releases before it.
    pub(crate) since: u64,
}

/// What the storm does to the `request`-th request.
fn drawn(storm: Storm, request: u64) -> Option<Fault> {
    let bits = xxh3_64_with_seed(&request.to_le_bytes(), storm.seed);
    if bits % 1000 >= u64::from(storm.per_mille) {
        return None;
    }
    let detail = bits / 1000;
    Some(match detail % 5 {
        0 => Fault::Status(503),
        1 => Fault::Status(429),
        2 => Fault::Status(500),
        3 => Fault::LostReply,
        _ => Fault::CutAfter(detail / 5 % 4096),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_meet_the_requests_they_name_and_no_others() {
        let faults = Faults::default();
        faults.add(Rule::new(Op::Get, Fault::Status(503)).key("b").after(1).times(2));
        let met: Vec<bool> = ["a", "b", "b", "b", "b"]
            .iter()
            .map(|key| faults.meet(Op::Get, key, None).fault.is_some())
            .collect();
        assert_eq!(met, [false, false, true, true, false]);
        assert_eq!(faults.meet(Op::Head, "b", None).fault, None);
        assert_eq!(faults.fired(), BTreeMap::from([("status", 2)]));
        assert_eq!((faults.count(Op::Get), faults.count(Op::Head)), (5, 1));
    }

    #[test]
    fn storm_of_one_seed_is_the_same_and_hits_its_share() {
        let fates =
            |seed| -> Vec<Option<Fault>> { (0..4000).map(|i| drawn(Storm { seed, per_mille: 250 }, i)).collect() };
        assert_eq!(fates(1), fates(1));
        assert_ne!(fates(1), fates(2));
        let hit = fates(1).iter().flatten().count();
        assert!((850..1150).contains(&hit), "{hit}");
    }
}
