//! The virtual clock: what happens next, and when. Ties are broken by the order of scheduling, so equal seeds give equal
//! runs.

use std::collections::{BTreeMap, VecDeque};

/// Milliseconds of simulated time.
pub type Ms = u64;

/// Events to come, earliest first.
///
/// Those of one millisecond wait in one line: a fleet that is told something answers all at once, and nobody has to be
/// compared with anybody for that.
pub(crate) struct Queue<E> {
    /// What is left of this millisecond.
    today: VecDeque<E>,
    /// What comes later; no line is empty.
    later: BTreeMap<Ms, VecDeque<E>>,
    /// Short lines that ran out, to be used again.
    spare: Vec<VecDeque<E>>,
    now: Ms,
}

/// So many lines that ran out are kept, if they have room for so many events at most: a long line under a single event
/// would only take memory.
const SPARE: usize = 64;
const SPARE_LENGTH: usize = 64;

impl<E> Queue<E> {
    pub(crate) fn new() -> Self {
        Self {
            today: VecDeque::new(),
            later: BTreeMap::new(),
            spare: Vec::new(),
            now: 0,
        }
    }

    pub(crate) fn now(&self) -> Ms {
        self.now
    }

    /// Schedules `event`; the past is now.
    pub(crate) fn at(&mut self, at: Ms, event: E) {
        if at <= self.now {
            self.today.push_back(event);
            return;
        }
        let line = self.later.entry(at);
        let line = line.or_insert_with(|| self.spare.pop().unwrap_or_default());
        line.push_back(event);
    }

    pub(crate) fn after(&mut self, wait: Ms, event: E) {
        self.at(self.now + wait, event);
    }

    /// The next event; the clock jumps to it.
    pub(crate) fn pop(&mut self) -> Option<E> {
        if self.today.is_empty() {
            let (at, line) = self.later.pop_first()?;
            debug_assert!(at > self.now, "time never goes back");
            self.now = at;
            let done = std::mem::replace(&mut self.today, line);
            if self.spare.len() < SPARE && done.capacity() <= SPARE_LENGTH {
                self.spare.push(done);
            }
        }
        self.today.pop_front()
    }
}

impl<E> std::fmt::Debug for Queue<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting: usize = self.today.len() + self.later.values().map(VecDeque::len).sum::<usize>();
        f.debug_struct("Queue")
            .field("now", &self.now)
            .field("waiting", &waiting)
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
