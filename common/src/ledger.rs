//! The checkpoint ledger: one attempt at a time, `Open`, then `Committed` or `Abandoned` (rule K3).

use crate::conductor::{Head, Restored, Settings};
use crate::events::PartInfo;
use crate::ids::{StateName, WorkerId};
use crate::rules::Rules;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq)]
struct Attempt {
    number: u64,
    at_step: u64,
    owners: Vec<WorkerId>,
    parts: BTreeMap<u32, PartInfo>,
    name: Option<StateName>,
}

/// What the conductor knows of checkpoints.
#[derive(Debug)]
pub struct Ledger {
    open: Option<Attempt>,
    /// Its manifest is written or its commit is under way; it can no longer be given up.
    sealed: bool,
    head: Option<Head>,
    last: u64,
    misses: u32,
    committed: Vec<u64>,
    keep_last: u32,
    parts_total: u32,
}

impl Ledger {
    /// The ledger as the durable records have it. Attempts left open by a coordinator that died are garbage.
    #[must_use]
    pub fn new(settings: &Settings, restored: &Restored) -> Self {
        Self {
            open: None,
            sealed: false,
            head: restored.head.clone(),
            last: restored.attempt,
            misses: 0,
            committed: restored.committed.clone(),
            keep_last: settings.keep_last,
            parts_total: settings.parts_total,
        }
    }

    /// Last committed checkpoint.
    #[must_use]
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Whether an attempt is under way.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// State of the attempt under way, if all its parts are there: its manifest is being written or committed.
    #[must_use]
    pub fn sealed_name(&self) -> Option<StateName> {
        self.open.as_ref().filter(|_| self.sealed).and_then(|a| a.name)
    }

    /// Attempts since the last commit whose order came after its boundary.
    #[must_use]
    pub fn misses(&self) -> u32 {
        self.misses
    }

    /// Number and boundary of the attempt under way.
    #[must_use]
    pub fn opened(&self) -> Option<(u64, u64)> {
        self.open.as_ref().map(|a| (a.number, a.at_step))
    }

    /// Opens the next attempt and returns its number, which no other attempt of the run ever has.
    pub fn open(&mut self, at_step: u64) -> u64 {
        debug_assert!(self.open.is_none(), "one attempt at a time");
        self.last += 1;
        self.sealed = false;
        self.open = Some(Attempt {
            number: self.last,
            at_step,
            owners: Vec::new(),
            parts: BTreeMap::new(),
            name: None,
        });
        self.last
    }

    /// Notes who owns which part.
    pub fn assign(&mut self, owners: Vec<WorkerId>) {
        if let Some(attempt) = &mut self.open {
            attempt.owners = owners;
        }
    }

    /// The attempt under way, if `worker` owes it a part that has not come.
    #[must_use]
    pub fn owned_by(&self, worker: WorkerId) -> Option<u64> {
        let attempt = self.open.as_ref()?;
        let owes = |(part, owner): (usize, &WorkerId)| *owner == worker && !attempt.parts.contains_key(&(part as u32));
        attempt.owners.iter().enumerate().any(owes).then_some(attempt.number)
    }

    /// Takes a part. `Ok(Some(..))` when it was the last: the state's name and all parts in order.
    ///
    /// # Errors
    /// Why the attempt must be given up: parts of different states, or of a step that was not asked for.
    pub fn part_uploaded<R: Rules>(
        &mut self,
        worker: WorkerId,
        number: u64,
        part: PartInfo,
        name: StateName,
    ) -> Result<Option<(StateName, Vec<PartInfo>)>, String> {
        let Some(attempt) = self.open.as_mut().filter(|a| a.number == number) else {
            return Ok(None);
        };
        if attempt.owners.get(part.index as usize) != Some(&worker) {
            return Ok(None); // not its part: an answer to an order that was never given
        }
        if name.step != attempt.at_step {
            return Err(format!(
                "part {} is of {name}, not of step {}",
                part.index, attempt.at_step
            ));
        }
        if *attempt.name.get_or_insert(name) != name {
            return Err(format!(
                "part {} is of {name}, others are not: states with one step differ",
                part.index
            ));
        }
        attempt.parts.insert(part.index, part);
        if !R::manifest_ready(attempt.parts.len(), self.parts_total) || self.sealed {
            return Ok(None);
        }
        self.sealed = true;
        Ok(Some((name, attempt.parts.values().cloned().collect())))
    }

    /// Name of the complete attempt `number`, if that is the one under way.
    #[must_use]
    pub fn complete_name(&self, number: u64) -> Option<StateName> {
        self.open
            .as_ref()
            .filter(|a| a.number == number && self.sealed)
            .and_then(|a| a.name)
    }

    /// The attempt is the head now. Returns attempts that fell out of `keep_last`.
    pub fn committed(&mut self, number: u64, key: String, name: StateName) -> Vec<u64> {
        self.open = None;
        self.sealed = false;
        self.misses = 0;
        self.head = Some(Head { key, name });
        self.committed.push(number);
        if self.keep_last == 0 || self.committed.len() <= self.keep_last as usize {
            return Vec::new();
        }
        let surplus = self.committed.len() - self.keep_last as usize;
        self.committed.drain(..surplus).collect()
    }

    /// Gives the attempt up; false if it is not under way or can no longer be given up.
    pub fn abandon(&mut self, number: u64) -> bool {
        if self.sealed || self.open.as_ref().is_none_or(|a| a.number != number) {
            return false;
        }
        self.open = None;
        true
    }

    /// A worker was past the boundary when the order came: the next one is given further ahead.
    pub fn missed(&mut self, number: u64) {
        if !self.sealed && self.open.as_ref().is_some_and(|a| a.number == number) {
            self.misses += 1;
        }
    }

    /// The manifest of a sealed attempt could not be written: it may be given up after all.
    pub fn unseal(&mut self, number: u64) {
        if self.open.as_ref().is_some_and(|a| a.number == number) {
            self.sealed = false;
        }
    }

    /// What it holds in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let parts = self.open.as_ref().map_or(0, |a| {
            let keys: usize = a.parts.values().map(|p| p.key.len()).sum();
            a.owners.capacity() * size_of::<WorkerId>() + a.parts.len() * size_of::<(u32, PartInfo)>() + keys
        });
        size_of::<Self>() + self.committed.capacity() * size_of::<u64>() + parts
    }
}
