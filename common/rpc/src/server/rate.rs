//! How often something may happen: words of one worker, and failures of one address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Words of one worker that may come at once, and every second. A report a step and heartbeats are far fewer.
pub(super) const WORDS_AT_ONCE: f64 = 4_000.0;
pub(super) const WORDS_PER_S: f64 = 2_000.0;
/// Failed handshakes and tokens of one address that cost it nothing, and how soon one is forgotten.
const FAILURES_AT_ONCE: f64 = 32.0;
const FAILURES_PER_S: f64 = 0.5;
/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 4_096;

/// A bucket of tokens: full at first, filled again with time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    size: f64,
    per_s: f64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(size: f64, per_s: f64, now: Instant) -> Self {
        Self {
            size,
            per_s,
            tokens: size,
            at: now,
        }
    }

    fn refill(&mut self, now: Instant) {
        let came = now.saturating_duration_since(self.at).as_secs_f64() * self.per_s;
        self.tokens = (self.tokens + came).min(self.size);
        self.at = now;
    }

    /// Takes a token that may have to come yet; how long to wait for it.
    pub(super) fn take(&mut self, now: Instant) -> Option<Duration> {
        self.refill(now);
        self.tokens -= 1.0;
        (self.tokens < 0.0).then(|| Duration::from_secs_f64(-self.tokens / self.per_s))
    }
}

/// Failures by address. An address that has failed too often is not listened to for a while; who never failed never waits.
#[derive(Debug, Default)]
pub(super) struct Penalties(Mutex<BTreeMap<IpAddr, Bucket>>);

impl Penalties {
    pub(super) fn note(&self, address: IpAddr, now: Instant) {
        // Every change is one entry: a panic elsewhere leaves nothing half done.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= ADDRESSES_MAX {
            known.retain(|_, bucket| {
                bucket.refill(now);
                bucket.tokens < bucket.size
            });
        }
        if known.len() < ADDRESSES_MAX || known.contains_key(&address) {
            let fresh = Bucket::new(FAILURES_AT_ONCE, FAILURES_PER_S, now);
            let bucket = known.entry(address).or_insert(fresh);
            if bucket.tokens > -FAILURES_AT_ONCE {
                bucket.take(now);
            }
        }
    }

    pub(super) fn keeps_out(&self, address: IpAddr, now: Instant) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bucket) = known.get_mut(&address) else {
            return false;
        };
        bucket.refill(now);
        bucket.tokens < 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn bucket_lets_a_burst_through_and_then_so_many_a_second() {
        let now = Instant::now();
        let mut bucket = Bucket::new(3.0, 10.0, now);
        for _ in 0..3 {
            assert_eq!(bucket.take(now), None);
        }
        let wait = bucket.take(now).unwrap();
        assert!((wait.as_secs_f64() - 0.1).abs() < 1e-6, "{wait:?}");
        assert_eq!(bucket.take(now + Duration::from_secs(1)), None);
    }

    #[test]
    fn address_that_fails_too_often_is_kept_out_for_a_while_and_others_are_not() {
        let penalties = Penalties::default();
        let (bad, good) = (Ipv4Addr::new(10, 0, 0, 1).into(), Ipv4Addr::new(10, 0, 0, 2).into());
        let now = Instant::now();
        for _ in 0..31 {
            penalties.note(bad, now);
            assert!(!penalties.keeps_out(bad, now));
        }
        penalties.note(bad, now);
        assert!(penalties.keeps_out(bad, now) && !penalties.keeps_out(good, now));
        assert!(!penalties.keeps_out(bad, now + Duration::from_secs(3)));
        // However many it makes, a minute or two are enough.
        (0..100_000).for_each(|_| penalties.note(bad, now));
        assert!(penalties.keeps_out(bad, now + Duration::from_secs(3)));
        assert!(!penalties.keeps_out(bad, now + Duration::from_secs(130)));
    }
}
