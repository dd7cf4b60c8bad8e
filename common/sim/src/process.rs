//! A worker process of the world: the real follower over a toy trainer whose arithmetic is exact.

use crate::clock::Clock;
use crate::queue::Ms;
use argosy_common::events::PartInfo;
use argosy_common::follower::Follower;
use argosy_common::ids::{Generation, StateName, WorkerId};
use argosy_common::plan::Plan;
use argosy_common::rules::{Fence, Rules};
use std::collections::{BTreeSet, VecDeque};

/// Parts of a step, as in the worker's trainer; `Lse` is the second gather of LOSS. `Plan` comes before the first: who is
/// doomed there dies while it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Plan,
    Load,
    Encode,
    Gather,
    Loss,
    Lse,
    Backward,
    Reduce,
    Sentinel,
    Apply,
}

impl Stage {
    /// Which exchange a collective stage waits for.
    pub(crate) fn exchange(self) -> Option<Exchange> {
        match self {
            Self::Gather => Some(Exchange::Gather),
            Self::Lse => Some(Exchange::Lse),
            Self::Reduce => Some(Exchange::Reduce),
            Self::Sentinel => Some(Exchange::Sentinel),
            Self::Plan | Self::Load | Self::Encode | Self::Loss | Self::Backward | Self::Apply => None,
        }
    }

    /// Hundredths of a step that its own work takes.
    pub(crate) fn percent(self) -> u64 {
        match self {
            Self::Load | Self::Loss => 10,
            Self::Encode => 25,
            Self::Backward => 40,
            Self::Apply => 15,
            Self::Plan | Self::Gather | Self::Lse | Self::Reduce | Self::Sentinel => 0,
        }
    }
}

/// Exchanges between all members of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Exchange {
    Connect,
    Gather,
    Lse,
    Reduce,
    Sentinel,
}

/// What one member sends another in an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) fence: Fence,
    pub(crate) exchange: Exchange,
    pub(crate) from: usize,
    /// Digests of the ids of the sender's lanes (GATHER).
    pub(crate) lanes: Vec<(u32, u64)>,
    /// The sender's lanes that are not finite (GATHER).
    pub(crate) bad: Vec<u32>,
    /// The sender's part of the sum (REDUCE, SENTINEL).
    pub(crate) sum: u64,
}

/// Frames that a process keeps; older ones fall out.
pub(crate) const FRAMES_MAX: usize = 256;

/// Where the trainer stands in its generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Takes the base state: from a process, or from the object store.
    Healing { source: Option<usize> },
    /// Waits for all members' connections.
    Connecting,
    /// Waits for orders.
    Formed,
    /// The step is complete, but there is no lease to apply it under.
    Unleased,
    /// In a step.
    In(Stage),
}

/// The generation a trainer is in.
#[derive(Clone, Debug)]
pub(crate) struct Inside {
    pub(crate) plan: Plan,
    pub(crate) plan_hash: u64,
    pub(crate) rank: usize,
    /// Processes by rank.
    pub(crate) peers: Vec<usize>,
    pub(crate) at: At,
    pub(crate) running: bool,
    pub(crate) stop_after: Option<u64>,
    /// It was cut off, with the cause unless it was asked to; acted on when the work at hand ends.
    pub(crate) cut_off: Option<Option<String>>,
    /// Collectives entered in this step, and processes whose link broke.
    pub(crate) entered: u32,
    pub(crate) lost: Vec<usize>,
    /// It said that it cannot read rows.
    pub(crate) blocked: bool,
    /// Digests of all lanes after GATHER.
    pub(crate) gathered: Vec<u64>,
    /// The sum after REDUCE.
    pub(crate) reduced: u64,
}

impl Inside {
    /// Whether the plan passes over the step that follows `step` applied ones.
    pub(crate) fn skips(&self, step: u64) -> bool {
        self.plan.skip.is_some() && step == self.plan.base.step
    }

    pub(crate) fn fence(&self, step: u64) -> Fence {
        Fence {
            generation: self.plan.generation,
            plan_hash: self.plan_hash,
            step,
        }
    }
}

/// An order to copy parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CopyOrder {
    pub(crate) attempt: u64,
    pub(crate) at_step: u64,
    pub(crate) parts: Vec<u32>,
}

/// A part on its way to the object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Upload {
    pub(crate) attempt: u64,
    pub(crate) part: PartInfo,
    pub(crate) name: StateName,
    pub(crate) bits: u64,
    pub(crate) tries: u32,
}

/// The trainer: a state of exact integers.
#[derive(Clone, Debug)]
pub(crate) struct Trainer {
    pub(crate) name: StateName,
    pub(crate) bits: u64,
    /// Inside APPLY (rule G2).
    pub(crate) dirty: bool,
    pub(crate) inside: Option<Inside>,
    pub(crate) checkpoint: Option<CopyOrder>,
    /// The attempt whose state was copied last: number, state, bits. What it would upload for a lost owner.
    pub(crate) copied: Option<(u64, StateName, u64)>,
    /// Work scheduled under another token is over.
    pub(crate) token: u64,
    /// It may apply in this generation until then, by its process's clock (rule G5).
    pub(crate) lease: (Generation, Ms),
    /// Lanes whose first rows it has fetched for the next generation (rule L8).
    pub(crate) primed: BTreeSet<u32>,
    /// Names that its log holds.
    pub(crate) logged: BTreeSet<StateName>,
    /// States it held before, newest last.
    pub(crate) history: VecDeque<(StateName, u64)>,
}

/// A process.
#[derive(Debug)]
pub(crate) struct Process<R: Rules> {
    pub(crate) alive: bool,
    pub(crate) clock: Clock,
    /// When its follower is ticked next.
    pub(crate) armed: Option<Ms>,
    pub(crate) asleep_until: Ms,
    pub(crate) slow_until: Ms,
    pub(crate) stuck_until: Ms,
    pub(crate) follower: Follower<R>,
    pub(crate) worker: Option<WorkerId>,
    pub(crate) session: Option<usize>,
    pub(crate) warm: bool,
    pub(crate) trainer: Trainer,
    /// Its step log has yet to say that it began with nothing.
    pub(crate) log_opens: bool,
    pub(crate) frames: VecDeque<Frame>,
    /// Given by the parent on one machine.
    pub(crate) reserved: Option<(WorkerId, u32)>,
    /// Dies again this long after it is warm.
    pub(crate) flaps: Option<Ms>,
}

impl<R: Rules> Process<R> {
    pub(crate) fn new(name: StateName, bits: u64, clock: Clock) -> Self {
        Self {
            alive: true,
            clock,
            armed: None,
            asleep_until: 0,
            slow_until: 0,
            stuck_until: 0,
            follower: Follower::default(),
            worker: None,
            session: None,
            warm: false,
            trainer: Trainer {
                name,
                bits,
                dirty: false,
                inside: None,
                checkpoint: None,
                copied: None,
                token: 0,
                lease: (Generation(0), 0),
                primed: BTreeSet::new(),
                logged: BTreeSet::from([name]),
                history: VecDeque::new(),
            },
            log_opens: name == StateName::INITIAL,
            frames: VecDeque::new(),
            reserved: None,
            flaps: None,
        }
    }

    /// Frames of the exchange that the trainer waits for, by rank; `None` until all are there.
    pub(crate) fn exchange_frames(&self, exchange: Exchange, step: u64) -> Option<Vec<&Frame>> {
        let inside = self.trainer.inside.as_ref()?;
        let waiting = inside.fence(step);
        let of = |peer: &usize| {
            let fits = |f: &&Frame| f.from == *peer && f.exchange == exchange && R::accepts_frame(waiting, f.fence);
            self.frames.iter().find(fits)
        };
        inside.peers.iter().map(of).collect()
    }
}
