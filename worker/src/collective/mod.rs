//! Sums and gathers over the members of one generation.
//!
//! Two implementations, [`local`] (threads of one process) and [`ring`] (TCP), pass one suite of tests. Each is made for one
//! generation and dropped with it; every error ends the generation for this worker (rule G6), and none leaves a trace in
//! replicated state, because that changes behind the sentinel only (rule G4).

mod abort;
pub mod local;
pub mod ring;
pub mod tree;

pub use abort::AbortHandle;

use argosy_rpc::frame::FrameError;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;

/// Elements that always travel together: chunks of a sum are whole blocks of the flat order, whatever the world size.
pub const BLOCK_ELEMENTS: usize = 1 << 14;

/// Why a collective did not come about.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// The abort handle was used.
    #[error("the generation was aborted")]
    Aborted,
    /// A peer is gone, or cut the connection because it left the generation.
    #[error("the connection with rank {rank} broke: {why}")]
    PeerLost {
        /// The peer's rank.
        rank: usize,
        /// What the socket said.
        why: String,
    },
    /// A frame that must not be used.
    #[error("from rank {rank}: {error}")]
    Frame {
        /// The sender's rank.
        rank: usize,
        /// What is wrong with it.
        error: FrameError,
    },
    /// Callers disagree on lengths; a bug.
    #[error("{0}")]
    Mismatch(String),
}

/// Result of a collective.
pub type Result<T> = std::result::Result<T, CollectiveError>;

/// What the sentinel tells (rule G4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentinel {
    /// Ranks that arrived; must be the world size.
    pub count: usize,
    /// Ranks whose own gradient was not finite.
    pub not_finite: Vec<usize>,
}

impl Sentinel {
    /// Whether the step may be applied.
    #[must_use]
    pub fn all_finite(&self) -> bool {
        self.not_finite.is_empty()
    }
}

/// How far a member has come in a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Collectives entered.
    pub entered: u32,
    /// Bytes received, by rank.
    pub received: BTreeMap<usize, u64>,
}

/// What the members of a generation do together. All of them call the same methods in the same order.
pub trait Collective: Debug + Send {
    /// This member's rank, `0..size`.
    fn rank(&self) -> usize;

    /// Members.
    fn size(&self) -> usize;

    /// Frames from now on belong to this step.
    fn begin_step(&mut self, step: u64);

    /// Puts the blocks of all ranks one behind the other into `out`. `lens[r]` is the length of rank `r`'s block in bytes,
    /// known to all; `mine` is the own block.
    ///
    /// # Errors
    /// Any [`CollectiveError`]; `out` is worthless then.
    fn all_gather(&mut self, mine: &[u8], lens: &[usize], out: &mut [u8]) -> Result<()>;

    /// Adds up `values` over all ranks, in place. Every rank ends with the same bits.
    ///
    /// # Errors
    /// Any [`CollectiveError`]; `values` is worthless then.
    fn all_reduce_sum(&mut self, values: &mut [f32]) -> Result<()>;

    /// The collecting half of [`Collective::all_reduce_sum`]: the chunk that is returned holds the whole sum here, what lies
    /// outside it is worthless. Chunks are whole blocks of [`BLOCK_ELEMENTS`] (rule N1).
    ///
    /// # Errors
    /// Any [`CollectiveError`]; `values` is worthless then.
    fn reduce_scatter_sum(&mut self, values: &mut [f32]) -> Result<Range<usize>>;

    /// The sharing half: puts every rank's chunk of [`Collective::reduce_scatter_sum`] into its place everywhere.
    ///
    /// # Errors
    /// Any [`CollectiveError`]; `values` is worthless then.
    fn all_gather_chunks(&mut self, values: &mut [f32]) -> Result<()>;

    /// Gives everybody the bytes of rank `root`; all pass buffers of one length.
    ///
    /// # Errors
    /// Any [`CollectiveError`]; `bytes` is worthless then.
    fn broadcast(&mut self, root: usize, bytes: &mut [u8]) -> Result<()>;

    /// How far this member has come in the step at hand (rule G10).
    fn progress(&self) -> Progress {
        Progress::default()
    }

    /// Last collective of a step: tells that this rank has come so far, and whether its own gradient was finite.
    ///
    /// # Errors
    /// Any [`CollectiveError`]; the step must not be applied then.
    fn sentinel(&mut self, finite: bool) -> Result<Sentinel>;
}

/// Checks the arguments of an all-gather; gives the place of every rank's block.
fn block_places(rank: usize, mine: &[u8], lens: &[usize], size: usize, out: &[u8]) -> Result<Vec<Range<usize>>> {
    let mut places = Vec::with_capacity(lens.len());
    let mut at = 0;
    for len in lens {
        places.push(at..at + len);
        at += len;
    }
    if lens.len() != size || lens.get(rank) != Some(&mine.len()) || at != out.len() {
        return Err(CollectiveError::Mismatch(format!(
            "all-gather over {size} ranks: lengths {lens:?} do not fit {} own bytes and {} in all",
            mine.len(),
            out.len()
        )));
    }
    Ok(places)
}

/// Elements of chunk `chunk` out of `size` in a buffer of `len`: whole blocks, shared as evenly as whole blocks allow.
fn chunk_range(chunk: usize, size: usize, len: usize) -> Range<usize> {
    let blocks = len.div_ceil(BLOCK_ELEMENTS);
    let edge = |c: usize| (blocks * c / size * BLOCK_ELEMENTS).min(len);
    edge(chunk)..edge(chunk + 1)
}

/// The chunk that a rank ends with after the collecting half of a sum.
fn owned_chunk(rank: usize, size: usize) -> usize {
    (rank + 1) % size
}

fn check_root(root: usize, size: usize) -> Result<()> {
    if root < size {
        return Ok(());
    }
    Err(CollectiveError::Mismatch(format!(
        "a broadcast from rank {root} of {size}"
    )))
}

/// A rank's word in the sentinel: it came, and whether its gradient was finite.
const CAME: u8 = 1;
const FINITE: u8 = 2;

fn sentinel_word(finite: bool) -> u8 {
    CAME | if finite { FINITE } else { 0 }
}

fn read_sentinel(words: &[u8]) -> Sentinel {
    Sentinel {
        count: words.iter().filter(|w| **w & CAME != 0).count(),
        not_finite: (0..words.len()).filter(|r| words[*r] & FINITE == 0).collect(),
    }
}

#[cfg(test)]
mod conformance;
