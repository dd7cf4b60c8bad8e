//! The virtual clock: what happens next, and when. Ties are broken by the order of scheduling, so equal seeds give equal
//! runs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Milliseconds of simulated time.
pub type Ms = u64;

struct Entry<E> {
    at: Ms,
    seq: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
    }
}

impl<E> Eq for Entry<E> {}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Events to come, earliest first.
pub(crate) struct Queue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    now: Ms,
    seq: u64,
}

impl<E> Queue<E> {
    pub(crate) fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            now: 0,
            seq: 0,
        }
    }

    pub(crate) fn now(&self) -> Ms {
        self.now
    }

    /// Schedules `event`; the past is now.
    pub(crate) fn at(&mut self, at: Ms, event: E) {
        self.seq += 1;
        let at = at.max(self.now);
        self.heap.push(Reverse(Entry {
            at,
            seq: self.seq,
            event,
        }));
    }

    pub(crate) fn after(&mut self, wait: Ms, event: E) {
        self.at(self.now + wait, event);
    }

    /// The next event; the clock jumps to it.
    pub(crate) fn pop(&mut self) -> Option<E> {
        let Reverse(entry) = self.heap.pop()?;
        debug_assert!(entry.at >= self.now, "time never goes back");
        self.now = entry.at;
        Some(entry.event)
    }
}

impl<E> std::fmt::Debug for Queue<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("now", &self.now)
            .field("waiting", &self.heap.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_of_equal_times_keeps_the_order_of_scheduling() {
        let mut queue = Queue::new();
        queue.at(5, 'b');
        queue.at(5, 'c');
        queue.at(1, 'a');
        let order: Vec<char> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, vec!['a', 'b', 'c']);
        assert_eq!(queue.now(), 5);
        queue.at(2, 'd');
        queue.pop();
        assert_eq!(queue.now(), 5, "the past is now");
    }
}
