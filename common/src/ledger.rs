//! The checkpoint ledger: one attempt at a time, `Open`, then `Committed` or `Abandoned` (rule K3).

use crate::conductor::{Head, Restored, Settings};
use crate::events::PartInfo;
use crate::ids::{StateName, WorkerId};
use crate::invariants::{debug_assert_holds, head_complete, one_attempt};
use crate::rules::Rules;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq)]
struct Attempt {
    number: u64,
    at_step: u64,
    owners: Vec<WorkerId>,
    /// Who holds a copy of each part besides its owner.
    buddies: Vec<Option<WorkerId>>,
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
    failures: u32,
    committed: Vec<Committed>,
    keep: Keep,
    parts_total: u32,
}

/// A checkpoint that was committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Committed {
    /// Its attempt.
    pub attempt: u64,
    /// Key of its manifest.
    pub key: String,
    /// Its state.
    pub name: StateName,
}

/// Which committed checkpoints stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// The newest so many; 0: all.
    pub last: u32,
    /// Besides, the first at or behind every multiple of so many steps; 0: none.
    pub every_steps: u64,
}

impl Keep {
    /// Attempts of `committed`, oldest first, that need not stay.
    #[must_use]
    pub fn expired(self, committed: &[Committed]) -> Vec<u64> {
        if self.last == 0 {
            return Vec::new();
        }
        let old = committed.len().saturating_sub(self.last as usize);
        let mut before = 0;
        let mut expired = Vec::new();
        for (at, checkpoint) in committed.iter().enumerate() {
            let passed = checkpoint.name.step.checked_div(self.every_steps).unwrap_or(0);
            if at < old && passed <= before {
                expired.push(checkpoint.attempt);
            }
            before = before.max(passed);
        }
        expired
    }
}

/// What the loss of a worker means for the attempt under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing.
    None,
    /// Buddies have to upload these parts.
    Spare(BTreeMap<WorkerId, Vec<u32>>),
    /// The attempt with this number lacks a part for good.
    Hopeless(u64),
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
            failures: 0,
            committed: restored.committed.clone(),
            keep: settings.keep,
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
    pub fn open<R: Rules>(&mut self, at_step: u64) -> u64 {
        debug_assert_holds::<R>(|| one_attempt(self.last, self.last + 1, self.open.is_some()));
        self.last += 1;
        self.sealed = false;
        self.open = Some(Attempt {
            number: self.last,
            at_step,
            owners: Vec::new(),
            buddies: Vec::new(),
            parts: BTreeMap::new(),
            name: None,
        });
        self.last
    }

    /// Notes who owns which part, and who its buddy is.
    pub fn assign(&mut self, owners: Vec<WorkerId>, buddies: Vec<Option<WorkerId>>) {
        if let Some(attempt) = &mut self.open {
            attempt.owners = owners;
            attempt.buddies = buddies;
        }
    }

    /// `worker` is lost. Parts that it owed and that have not come pass to their buddies.
    pub fn lost(&mut self, worker: WorkerId) -> Loss {
        let Some(attempt) = self.open.as_mut().filter(|_| !self.sealed) else {
            return Loss::None;
        };
        for buddy in attempt.buddies.iter_mut().filter(|b| **b == Some(worker)) {
            *buddy = None;
        }
        let mut spare: BTreeMap<WorkerId, Vec<u32>> = BTreeMap::new();
        for (part, owner) in attempt.owners.iter_mut().enumerate() {
            if *owner != worker || attempt.parts.contains_key(&(part as u32)) {
                continue;
            }
            let Some(buddy) = attempt.buddies.get_mut(part).and_then(Option::take) else {
                return Loss::Hopeless(attempt.number);
            };
            *owner = buddy;
            spare.entry(buddy).or_default().push(part as u32);
        }
        match spare.is_empty() {
            true => Loss::None,
            false => Loss::Spare(spare),
        }
    }

    /// Whether the attempt under way is `number` and still needs something of `worker`.
    #[must_use]
    pub fn owes(&self, worker: WorkerId, number: u64) -> bool {
        let attempt = self.open.as_ref().filter(|a| a.number == number && !self.sealed);
        attempt.is_some_and(|a| a.owners.contains(&worker) || a.buddies.contains(&Some(worker)))
    }

    /// Whether a part that has not come would be lost with `worker` and with all who leave besides: nobody else holds a copy.
    #[must_use]
    pub fn last_copy_goes(&self, worker: WorkerId, leaves: impl Fn(WorkerId) -> bool) -> bool {
        let Some(attempt) = self.open.as_ref().filter(|_| !self.sealed) else {
            return false;
        };
        let mut held = attempt.owners.iter().zip(&attempt.buddies).zip(0u32..);
        held.any(|((owner, buddy), part)| {
            let holders = [Some(*owner), *buddy];
            let goes = |holder: &Option<WorkerId>| holder.is_none_or(|w| w == worker || leaves(w));
            holders.contains(&Some(worker)) && holders.iter().all(goes) && !attempt.parts.contains_key(&part)
        })
    }

    /// The attempt under way, if `worker` cannot have copied its state: it left its generation before the boundary.
    #[must_use]
    pub fn never_copied(&self, worker: WorkerId, name: StateName) -> Option<u64> {
        let attempt = self.open.as_ref().filter(|_| !self.sealed)?;
        let holds = attempt.owners.contains(&worker) || attempt.buddies.contains(&Some(worker));
        (holds && name.step < attempt.at_step).then_some(attempt.number)
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
        debug_assert_holds::<R>(|| {
            let parts: Vec<(u32, StateName)> = attempt.parts.keys().map(|index| (*index, name)).collect();
            head_complete(name, &parts, self.parts_total, self.head.as_ref().map(|h| h.name))
        });
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

    /// The attempt is the head now. Returns attempts that need not stay.
    pub fn committed(&mut self, number: u64, key: String, name: StateName) -> Vec<u64> {
        self.open = None;
        self.sealed = false;
        self.misses = 0;
        self.failures = 0;
        self.head = Some(Head { key: key.clone(), name });
        self.committed.push(Committed {
            attempt: number,
            key,
            name,
        });
        let expired = self.keep.expired(&self.committed);
        self.committed.retain(|c| !expired.contains(&c.attempt));
        expired
    }

    /// The head is damaged: the one before it is the head. Returns its attempt; `None` if `key` is not the head's.
    pub fn reject(&mut self, key: &str) -> Option<u64> {
        self.head.as_ref().filter(|head| head.key == key)?;
        let rejected = self.committed.pop_if(|c| c.key == key).map_or(0, |c| c.attempt);
        self.head = self.committed.last().map(|c| Head {
            key: c.key.clone(),
            name: c.name,
        });
        Some(rejected)
    }

    /// Attempts since the last commit that the store did not take.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The store did not take a part or the manifest.
    pub fn failed(&mut self, number: u64) {
        if self.open.as_ref().is_some_and(|a| a.number == number) {
            self.failures += 1;
        }
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
            let keys: usize = a.parts.values().map(|p| p.key.capacity()).sum();
            let holders =
                a.owners.capacity() * size_of::<WorkerId>() + a.buddies.capacity() * size_of::<Option<WorkerId>>();
            // Nodes of a map are at least half full.
            holders + 2 * a.parts.len() * size_of::<(u32, PartInfo)>() + keys
        });
        let keys: usize = self.committed.iter().map(|c| c.key.capacity()).sum();
        size_of::<Self>() + self.committed.capacity() * size_of::<Committed>() + keys + parts
    }
}

#[cfg(test)]
mod tests;
