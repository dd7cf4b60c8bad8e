//! What befalls a world, drawn from the seed before it begins, so that a failing schedule can be cut down.

use crate::config::Config;
use crate::queue::Ms;
use crate::spot;
use argosy_common::rng::{Draws, Purpose};
use serde::Serialize;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal),* $(,)?) => {
        /// A kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum FaultKind { $($(#[$doc])* $kind),* }

        impl FaultKind {
            /// All kinds.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// Its name in counts and commands.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$kind => $name),* }
            }
        }
    };
}

kinds! {
    /// SIGKILL.
    MemberCrash = "member-crash",
    /// SIGSTOP, then SIGCONT.
    MemberHang = "member-hang",
    /// Its steps take many times longer.
    MemberSlow = "member-slow",
    /// Its trainer waits for a disk that does not answer; the process lives and beats.
    TrainerStuck = "trainer-stuck",
    /// SIGTERM.
    MemberDrain = "member-drain",
    /// Dies, comes back, dies again.
    MemberFlap = "member-flap",
    /// Dies and comes back with a state of some steps ago.
    MemberOldState = "member-old-state",
    /// Dies, or loses its connections, in the named phase; in this one it has a plan and connects to its peers.
    AbortPlan = "abort-plan",
    /// See [`Self::AbortPlan`].
    AbortLoad = "abort-load",
    /// See [`Self::AbortPlan`].
    AbortEncode = "abort-encode",
    /// See [`Self::AbortPlan`].
    AbortGather = "abort-gather",
    /// See [`Self::AbortPlan`].
    AbortLoss = "abort-loss",
    /// See [`Self::AbortPlan`].
    AbortBackward = "abort-backward",
    /// See [`Self::AbortPlan`].
    AbortReduce = "abort-reduce",
    /// See [`Self::AbortPlan`].
    AbortSentinel = "abort-sentinel",
    /// See [`Self::AbortPlan`].
    AbortApply = "abort-apply",
    /// The member that gives its state away dies while it does.
    HealSourceDies = "heal-source-dies",
    /// Rows of one lane and step are not finite on whoever computes them (rule G11).
    NanData = "nan-data",
    /// A member's results are not finite for one step (rule G11).
    NanMember = "nan-member",
    /// Rows cannot be read, by one member or by nobody (rule M2).
    LaneUnreadable = "lane-unreadable",
    /// The leading coordinator dies.
    CoordinatorCrash = "coordinator-crash",
    /// The leading coordinator stands still, its lease runs out, another takes over, then the first wakes up.
    CoordinatorPause = "coordinator-pause",
    /// The leading coordinator is cut off from the store only: two believe that they lead.
    TwoLeaders = "two-leaders",
    /// All of a fleet dies at once.
    AllGone = "all-gone",
    /// The leader and all members but some lose each other (second story of G5: nobody can be reached).
    MembersUnreachable = "members-unreachable",
    /// Messages of a process take longer.
    NetDelay = "net-delay",
    /// Packets of a process are lost.
    NetLoss = "net-loss",
    /// Messages of a process come twice.
    NetDuplicate = "net-duplicate",
    /// Messages of a process overtake each other.
    NetReorder = "net-reorder",
    /// A process hears the coordinator but is not heard, or the other way round.
    PartitionOneWay = "partition-one-way",
    /// A process and the coordinator lose each other.
    Partition = "partition",
    /// Two processes lose each other, one way only.
    PartitionPeers = "partition-peers",
    /// Transactions get no answer; half of them are done.
    StoreUnknown = "store-unknown",
    /// The store does not answer for a while.
    StoreDown = "store-down",
    /// The store forgets its history while the standby does not hear.
    StoreCompacted = "store-compacted",
    /// Renewals of the leader's lease are lost.
    LeaseLost = "lease-lost",
    /// The object store says 503.
    Object503 = "object-503",
    /// The object store is slow.
    ObjectSlow = "object-slow",
    /// The object store keeps half of what is written.
    ObjectTorn = "object-torn",
    /// The object store does what it is asked and does not say so.
    ObjectLostReply = "object-lost-reply",
    /// A spot reclaim: one or several get a notice, and are killed a little later.
    SpotReclaim = "spot-reclaim",
}

impl FaultKind {
    /// The kind with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|k| k.name() == name)
    }
}

impl Serialize for FaultKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// When, in milliseconds of the world.
    pub at_ms: Ms,
    /// Whom, taken modulo those there are then.
    pub who: u32,
    /// How long.
    pub for_ms: Ms,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}:{}:{}", self.kind.name(), self.at_ms, self.who, self.for_ms)
    }
}

impl std::str::FromStr for Fault {
    type Err = String;

    /// Reads what [`std::fmt::Display`] writes: `member-crash@1200:3:500`.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("a fault is KIND@MS:WHO:FOR_MS, like member-crash@1200:3:500, not {text:?}");
        let (kind, rest) = text.split_once('@').ok_or_else(bad)?;
        let kind = FaultKind::from_name(kind).ok_or_else(|| format!("there is no fault called {kind:?}"))?;
        let numbers: Vec<u64> = rest.split(':').map_while(|n| n.parse().ok()).collect();
        let &[at_ms, who, for_ms] = numbers.as_slice() else {
            return Err(bad());
        };
        let who = u32::try_from(who).map_err(|_| bad())?;
        Ok(Self {
            kind,
            at_ms,
            who,
            for_ms,
        })
    }
}

/// The faults of `seed`, in order of time. Reclaims follow one of the three spot traces.
#[must_use]
pub fn schedule(seed: u64, config: &Config) -> Vec<Fault> {
    let mut draws = Draws::new(seed, Purpose::Jitter, 0x6661, 0);
    let kinds = if config.kinds.is_empty() {
        FaultKind::ALL
    } else {
        &config.kinds
    };
    let mut faults = Vec::new();
    for _ in 0..config.faults {
        let kind = kinds[draws.below(kinds.len() as u64) as usize];
        let at_ms = draws.below(config.horizon_ms.max(1));
        if kind == FaultKind::SpotReclaim {
            let trace = spot::Trace::ALL[draws.below(3) as usize];
            faults.extend(reclaims(trace, at_ms, config, &mut draws));
            continue;
        }
        let long = draws.below(4) == 0;
        let for_ms = 100 + draws.below(config.failure_budget_ms * if long { 4 } else { 1 });
        let who = draws.below(1 << 16) as u32;
        faults.push(Fault {
            kind,
            at_ms,
            who,
            for_ms,
        });
    }
    faults.sort_by_key(|f| (f.at_ms, f.kind, f.who));
    faults
}

/// A few reclaims of a trace that is compressed to the world's horizon.
fn reclaims(trace: spot::Trace, from: Ms, config: &Config, draws: &mut Draws) -> Vec<Fault> {
    let rates = spot::Rates {
        workers: config.workers,
        mean_life_ms: config.horizon_ms.max(1) * 2,
        zones: 2,
        period_ms: config.horizon_ms.max(1),
    };
    let mut reclaims = spot::reclaims(trace, &rates, config.horizon_ms, draws.next_u64());
    reclaims.truncate(4);
    let fault = |r: &spot::Reclaim| Fault {
        kind: FaultKind::SpotReclaim,
        at_ms: from / 2 + r.at_ms / 2,
        who: r.worker,
        for_ms: 50 + draws.below(400),
    };
    reclaims.iter().map(fault).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_written_as_text_reads_back_the_same() {
        for fault in schedule(
            3,
            &Config {
                faults: 200,
                ..Config::default()
            },
        ) {
            assert_eq!(fault.to_string().parse(), Ok(fault));
        }
        for bad in [
            "",
            "member-crash",
            "nothing@1:2:3",
            "member-crash@1:2",
            "member-crash@1:2:3:4",
            "member-crash@x:2:3",
        ] {
            assert!(bad.parse::<Fault>().is_err(), "{bad}");
        }
    }
}
