//! What etcd promises, as far as a coordinator relies on it: revisions, leases, transactions that compare, watches that
//! begin at a revision, and compaction that ends those which lag behind.

use crate::queue::Ms;
use argosy_common::events::Record;
use argosy_common::ids::{Term, WorkerId};

/// Who leads, by lease. The term is the revision at which the leader's key was created, as etcd's elections do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    pub coordinator: usize,
    pub life: u32,
    pub term: Term,
    /// The key is deleted then, unless it is renewed.
    pub expires: Ms,
}

/// What is asked of the store in one transaction.
#[derive(Clone, Debug)]
pub enum Op {
    /// Create the leader's key if nobody has it.
    Campaign,
    /// Renew the lease of the leader's key.
    Renew { term: Term },
    /// Append a record if the leader's key is still of this term and nobody else has appended.
    Append {
        term: Term,
        expected: usize,
        record: Box<Record>,
    },
}

/// What it answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Elected {
        term: Term,
    },
    /// Somebody else leads; watch from this revision on.
    Taken {
        revision: u64,
    },
    Renewed {
        until: Ms,
    },
    Appended,
    /// The comparison failed: another leader reigns, or records were appended by somebody else.
    Refused,
}

/// A change of the leader's key that watchers hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: u64,
    pub deleted: bool,
}

/// The store.
#[derive(Debug)]
pub struct Etcd {
    revision: u64,
    compacted: u64,
    leader: Option<Leadership>,
    records: Vec<Record>,
    /// Term under which each record was written, beside `records`.
    terms: Vec<Term>,
    changes: Vec<Change>,
    ttl: Ms,
    /// Worker ids given so far.
    named: u32,
    /// Fencing by term is on; a planted bug turns it off.
    fenced: bool,
}

/// The watch's revision was compacted away: read the key again and watch from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted;

impl Etcd {
    pub fn new(ttl: Ms, fenced: bool) -> Self {
        Self {
            revision: 1,
            compacted: 0,
            leader: None,
            records: Vec::new(),
            terms: Vec::new(),
            changes: Vec::new(),
            ttl,
            named: 0,
            fenced,
        }
    }

    pub fn records(&self) -> &[Record] {
        &self.records
    }

    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    pub fn leader(&self) -> Option<Leadership> {
        self.leader
    }

    pub fn ttl(&self) -> Ms {
        self.ttl
    }

    /// The next worker id: counted here and not by a leader, so that no id has two lives.
    pub fn name_worker(&mut self) -> WorkerId {
        self.named += 1;
        WorkerId(self.named)
    }

    /// Its lease is gone at once: every renewal was lost.
    pub fn forget_leader(&mut self) {
        if self.leader.take().is_some() {
            self.change(true);
        }
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Deletes the leader's key when its lease has run out; true if it did.
    pub fn expire(&mut self, now: Ms) -> bool {
        let gone = self.leader.is_some_and(|l| l.expires <= now);
        if gone {
            self.leader = None;
            self.change(true);
        }
        gone
    }

    fn change(&mut self, deleted: bool) {
        self.revision += 1;
        self.changes.push(Change {
            revision: self.revision,
            deleted,
        });
    }

    /// Executes one transaction at `now`.
    pub fn execute(&mut self, op: Op, coordinator: usize, life: u32, now: Ms) -> Reply {
        self.expire(now);
        match op {
            Op::Campaign => {
                if self.leader.is_some() {
                    return Reply::Taken {
                        revision: self.revision,
                    };
                }
                self.change(false);
                let term = Term(self.revision);
                self.leader = Some(Leadership {
                    coordinator,
                    life,
                    term,
                    expires: now + self.ttl,
                });
                Reply::Elected { term }
            }
            Op::Renew { term } => match &mut self.leader {
                Some(leader) if leader.term == term => {
                    leader.expires = now + self.ttl;
                    Reply::Renewed { until: leader.expires }
                }
                _ => Reply::Refused,
            },
            Op::Append { term, expected, record } => {
                let reigns = self.leader.is_some_and(|l| l.term == term);
                let alone = self.records.len() == expected;
                if self.fenced && !(reigns && alone) {
                    return Reply::Refused;
                }
                self.revision += 1;
                self.records.push(*record);
                self.terms.push(term);
                Reply::Appended
            }
        }
    }

    /// Changes after `revision`, if they are still there.
    pub fn watch(&self, revision: u64) -> Result<Vec<Change>, Compacted> {
        if revision < self.compacted {
            return Err(Compacted);
        }
        Ok(self.changes.iter().filter(|c| c.revision > revision).copied().collect())
    }

    /// Forgets the history up to now.
    pub fn compact(&mut self) {
        self.compacted = self.revision;
        self.changes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use argosy_common::events::Record;
    use argosy_common::ids::StateName;

    fn record() -> Box<Record> {
        Box::new(Record::RunFinished {
            name: StateName::INITIAL,
        })
    }

    #[test]
    fn etcd_append_of_a_leader_whose_lease_ran_out_is_refused() {
        let mut etcd = Etcd::new(100, true);
        let Reply::Elected { term } = etcd.execute(Op::Campaign, 0, 0, 0) else {
            panic!("nobody led")
        };
        let append = |expected| Op::Append {
            term,
            expected,
            record: record(),
        };
        assert_eq!(etcd.execute(append(0), 0, 0, 50), Reply::Appended);
        assert_eq!(
            etcd.execute(append(0), 0, 0, 60),
            Reply::Refused,
            "one writer's revision"
        );
        assert_eq!(etcd.execute(append(1), 0, 0, 100), Reply::Refused, "the lease is over");
        assert!(matches!(etcd.execute(Op::Campaign, 1, 0, 101), Reply::Elected { term: t } if t > term));
        assert_eq!(etcd.execute(append(1), 0, 0, 102), Reply::Refused, "another term");
    }

    #[test]
    fn etcd_watch_behind_a_compaction_is_told_to_read_again() {
        let mut etcd = Etcd::new(100, true);
        let before = etcd.revision();
        etcd.execute(Op::Campaign, 0, 0, 0);
        assert!(etcd.expire(100));
        assert_eq!(etcd.watch(before).map(|c| c.len()), Ok(2));
        etcd.compact();
        assert_eq!(etcd.watch(before), Err(Compacted));
        assert_eq!(etcd.watch(etcd.revision()), Ok(Vec::new()));
    }
}
