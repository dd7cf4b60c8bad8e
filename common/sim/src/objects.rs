//! What an object store does to those who trust it: answers slowly, says 503, keeps half of a write, loses its reply.

use crate::queue::Ms;
use argosy_common::ids::StateName;
use std::collections::BTreeMap;

/// What befalls the store for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// 503: nothing is done.
    Unavailable,
    /// Everything takes so much longer.
    Slow(Ms),
    /// A write keeps half of its bytes and fails; a read gives half of them.
    Torn,
    /// The write is done, the answer never comes.
    LostReply,
}

/// An object: the state it was copied from, and whether all of it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) name: StateName,
    pub(crate) bits: u64,
    pub(crate) whole: bool,
}

/// How a request ended, as its sender sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    Stored,
    /// Create-only, and something is there.
    Exists,
    /// Try again.
    Failed,
}

/// The store.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    objects: BTreeMap<String, Object>,
}

impl Objects {
    /// Writes; `create` refuses to overwrite. A torn object may be overwritten in any case: it was never committed.
    pub(crate) fn put(&mut self, key: &str, object: Object, create: bool, trouble: Option<Trouble>) -> Put {
        if trouble == Some(Trouble::Unavailable) {
            return Put::Failed;
        }
        if create && self.objects.get(key).is_some_and(|o| o.whole) {
            return Put::Exists;
        }
        let whole = trouble != Some(Trouble::Torn);
        self.objects.insert(key.into(), Object { whole, ..object });
        match trouble {
            Some(Trouble::Torn | Trouble::LostReply) => Put::Failed,
            _ => Put::Stored,
        }
    }

    /// Reads a whole object; `Err(true)` when it may be tried again.
    pub(crate) fn get(&self, key: &str, trouble: Option<Trouble>) -> Result<Object, bool> {
        if matches!(trouble, Some(Trouble::Unavailable | Trouble::Torn | Trouble::LostReply)) {
            return Err(true);
        }
        self.objects.get(key).filter(|o| o.whole).cloned().ok_or(false)
    }

    pub(crate) fn peek(&self, key: &str) -> Option<&Object> {
        self.objects.get(key)
    }

    /// Deletes everything an attempt has written.
    pub(crate) fn delete_attempt(&mut self, attempt: u64) {
        let prefix = format!("{attempt}/");
        self.objects.retain(|key, _| !key.starts_with(&prefix));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(bits: u64) -> Object {
        Object {
            name: StateName::INITIAL,
            bits,
            whole: true,
        }
    }

    #[test]
    fn put_whose_reply_is_lost_is_found_by_the_second_try() {
        let mut objects = Objects::default();
        assert_eq!(
            objects.put("1/m", object(1), true, Some(Trouble::LostReply)),
            Put::Failed
        );
        assert_eq!(objects.put("1/m", object(1), true, None), Put::Exists);
        assert_eq!(objects.get("1/m", None).map(|o| o.bits), Ok(1));
    }

    #[test]
    fn torn_object_is_never_read_as_whole() {
        let mut objects = Objects::default();
        assert_eq!(objects.put("1/p", object(1), false, Some(Trouble::Torn)), Put::Failed);
        assert_eq!(objects.get("1/p", None), Err(false));
        assert_eq!(objects.put("1/p", object(1), false, None), Put::Stored);
        assert!(objects.get("1/p", None).is_ok());
        objects.delete_attempt(1);
        assert!(objects.peek("1/p").is_none());
    }
}
