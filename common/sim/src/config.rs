//! What a small world is made of. Everything a seed does not name is drawn from it.

use crate::faults::FaultKind;
use crate::queue::Ms;
use argosy_common::rng::{Draws, Purpose};

/// One world. [`Config::for_seed`] draws one of many kinds; a test may write its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Workers that are wanted.
    pub workers: u32,
    /// No more than these train at once; the others of a fleet are spare.
    pub workers_max: u32,
    /// Below this nothing trains.
    pub workers_min: u32,
    /// The last worker of a fleet comes so much later than the others.
    pub last_comes_ms: Ms,
    /// One machine whose parent starts and reaps the workers; else a fleet whose workers come by themselves.
    pub spawns: bool,
    /// Coordinators that stand by, the leading one included.
    pub coordinators: usize,
    /// Lanes `Q`.
    pub lanes: u32,
    /// Rows of one lane in one step.
    pub lane_rows: u32,
    /// Steps of the run.
    pub steps: u64,
    /// A checkpoint every so many steps.
    pub checkpoint_steps: u64,
    /// Parts of a checkpoint.
    pub parts: u32,
    /// The one knob of time-outs.
    pub failure_budget_ms: Ms,
    /// Undisturbed length of a step.
    pub step_ms: Ms,
    /// Steps need a lease (rule G5).
    pub leases: bool,
    /// So long a step lease lasts.
    pub lease_ms: Ms,
    /// So long workers keep their state without a coordinator (rule G9); 0: they end at once.
    pub orphan_max_ms: Ms,
    /// So long a worker that is asked to leave stays for a boundary (rule G13); 0: it ends at once.
    pub grace_ms: Ms,
    /// A worker may notice a broken stream long after its coordinator did, and train on meanwhile.
    pub late_members: bool,
    /// Rows that nobody can read for so long are given up (rule M2).
    pub unreadable_after_ms: Ms,
    /// How many faults, of which kinds.
    pub faults: u32,
    /// Kinds to draw from; all when empty.
    pub kinds: Vec<FaultKind>,
    /// Faults begin before this.
    pub horizon_ms: Ms,
    /// Keep what happens as lines to read.
    pub log: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: 3,
            workers_max: 4,
            workers_min: 1,
            last_comes_ms: 0,
            spawns: false,
            coordinators: 2,
            lanes: 6,
            lane_rows: 2,
            steps: 40,
            checkpoint_steps: 8,
            parts: 3,
            failure_budget_ms: 2_000,
            step_ms: 50,
            leases: false,
            lease_ms: 10_000,
            orphan_max_ms: 0,
            grace_ms: 0,
            late_members: false,
            unreadable_after_ms: 4_000,
            faults: 6,
            kinds: Vec::new(),
            horizon_ms: 6_000,
            log: false,
        }
    }
}

impl Config {
    /// A world drawn from `seed`: one machine or a fleet, one to six workers, more or fewer lanes than workers. On some single
    /// machines workers end with their stream and train without a lease, as those of `argosy run` do.
    #[must_use]
    pub fn for_seed(seed: u64) -> Self {
        let mut draws = Draws::new(seed, Purpose::Jitter, 0x636f, 0);
        let spawns = draws.below(3) == 0;
        let workers = 1 + draws.below(6) as u32;
        let steps = 16 + draws.below(32);
        let mut others = Draws::new(seed, Purpose::Jitter, 0x636f, 1);
        let tied = spawns && others.below(3) == 0;
        let last_comes_ms = if others.below(3) == 0 { others.below(4_000) } else { 0 };
        let mut config = Self {
            workers,
            workers_min: 1 + draws.below(u64::from(workers.min(3))) as u32,
            spawns,
            coordinators: if spawns { 1 } else { 2 },
            lanes: 2 + draws.below(8) as u32,
            lane_rows: 1 + draws.below(3) as u32,
            steps,
            checkpoint_steps: 3 + draws.below(10),
            parts: 1 + draws.below(5) as u32,
            failure_budget_ms: 1_000 + 500 * draws.below(5),
            step_ms: 20 + draws.below(80),
            faults: 1 + draws.below(12) as u32,
            leases: !tied,
            orphan_max_ms: if tied { 0 } else { 60_000 },
            last_comes_ms,
            grace_ms: 500,
            late_members: true,
            ..Self::default()
        };
        // One more may join than is wanted; in some fleets there is room for fewer than come.
        config.workers_max = workers + 1;
        if !spawns && Draws::new(seed, Purpose::Jitter, 0x636f, 2).below(8) == 0 {
            config.workers_max = (workers - 1).max(config.workers_min);
        }
        // Faults strike while it trains, or somewhat later for those that came before.
        config.horizon_ms = 1_500 + steps * config.step_ms * 2;
        // From three renewals to five budgets: runs are short, and some leases have to run out in them.
        config.lease_ms = config.failure_budget_ms * (3 + others.below(18)) / 4;
        config
    }

    /// Without faults.
    #[must_use]
    pub fn calm(self) -> Self {
        Self { faults: 0, ..self }
    }
}
