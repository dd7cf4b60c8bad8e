//! The collective between threads of one process: for tests and for parity runs. Sums are made in rank order by each rank
//! for itself, so all have the same bits.

use super::{
    AbortHandle, Collective, CollectiveError, Result, Sentinel, block_places, check_root, chunk_range, owned_chunk,
    read_sentinel, sentinel_word,
};
use argosy_rpc::frame::FrameError;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Where ranks meet: each lays down its bytes, the last one in opens the round for reading, the last one out closes it.
#[derive(Debug, Default)]
struct Table {
    laid: Vec<Option<(u64, Vec<u8>)>>,
    left: usize,
    reading: bool,
    gone: Option<usize>,
    aborted: bool,
}

#[derive(Debug)]
struct Room {
    table: Mutex<Table>,
    changed: Condvar,
}

impl Room {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One rank's end.
#[derive(Debug)]
pub struct LocalCollective {
    rank: usize,
    size: usize,
    step: u64,
    room: Arc<Room>,
}

/// A collective of as many ranks as there are handles; using any handle aborts it for all.
#[must_use]
pub fn connect(handles: &[AbortHandle]) -> Vec<LocalCollective> {
    let size = handles.len();
    let table = Table {
        laid: (0..size).map(|_| None).collect(),
        ..Table::default()
    };
    let room = Arc::new(Room {
        table: Mutex::new(table),
        changed: Condvar::new(),
    });
    for handle in handles {
        let room = room.clone();
        handle.on_abort(move || {
            room.lock().aborted = true;
            room.changed.notify_all();
        });
    }
    (0..size)
        .map(|rank| LocalCollective {
            rank,
            size,
            step: 0,
            room: room.clone(),
        })
        .collect()
}

impl LocalCollective {
    /// Waits until the round is open for reading, or until it is not.
    fn wait_until<'a>(&self, reading: bool, mut table: MutexGuard<'a, Table>) -> Result<MutexGuard<'a, Table>> {
        // A rank may leave as soon as it has read; what is on the table stays good for those who have not.
        while table.reading != reading {
            table = self.check(table)?;
            table = self.room.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(table)
    }

    fn check<'a>(&self, table: MutexGuard<'a, Table>) -> Result<MutexGuard<'a, Table>> {
        match table.gone {
            _ if table.aborted => Err(CollectiveError::Aborted),
            Some(rank) => Err(CollectiveError::PeerLost {
                rank,
                why: "it left".into(),
            }),
            None => Ok(table),
        }
    }

    /// Exchanges one message with everybody; `read` sees all of them in rank order.
    fn meet<T>(&self, mine: Vec<u8>, read: impl FnOnce(&[&[u8]]) -> Result<T>) -> Result<T> {
        let mut table = self.wait_until(false, self.check(self.room.lock())?)?;
        table.laid[self.rank] = Some((self.step, mine));
        if table.laid.iter().all(Option::is_some) {
            table.reading = true;
            table.left = self.size;
            self.room.changed.notify_all();
        }
        table = self.wait_until(true, table)?;
        let mut all: Vec<&[u8]> = Vec::with_capacity(self.size);
        for (rank, laid) in table.laid.iter().enumerate() {
            let Some((step, bytes)) = laid else {
                return Err(CollectiveError::Mismatch(format!("rank {rank} took its message back")));
            };
            if *step != self.step {
                let error = FrameError::Foreign {
                    what: "step",
                    expected: self.step,
                    got: *step,
                };
                return Err(CollectiveError::Frame { rank, error });
            }
            all.push(bytes);
        }
        let out = read(&all);
        table.left -= 1;
        if table.left == 0 {
            table.laid.iter_mut().for_each(|laid| *laid = None);
            table.reading = false;
        }
        self.room.changed.notify_all();
        out
    }
}

impl Drop for LocalCollective {
    fn drop(&mut self) {
        let mut table = self.room.lock();
        table.gone.get_or_insert(self.rank);
        self.room.changed.notify_all();
    }
}

fn same_length(rank: usize, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    let error = FrameError::Foreign {
        what: "length",
        expected: expected as u64,
        got: got as u64,
    };
    Err(CollectiveError::Frame { rank, error })
}

impl Collective for LocalCollective {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn begin_step(&mut self, step: u64) {
        self.step = step;
    }

    fn all_gather(&mut self, mine: &[u8], lens: &[usize], out: &mut [u8]) -> Result<()> {
        let places = block_places(self.rank, mine, lens, self.size, out)?;
        self.meet(mine.to_vec(), |all| {
            for (rank, (place, block)) in places.into_iter().zip(all).enumerate() {
                same_length(rank, place.len(), block.len())?;
                out[place].copy_from_slice(block);
            }
            Ok(())
        })
    }

    fn all_reduce_sum(&mut self, values: &mut [f32]) -> Result<()> {
        let mine = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.meet(mine, |all| {
            values.fill(0.0);
            for (rank, block) in all.iter().enumerate() {
                same_length(rank, values.len() * 4, block.len())?;
                for (sum, bytes) in values.iter_mut().zip(block.as_chunks().0) {
                    *sum += f32::from_le_bytes(*bytes);
                }
            }
            Ok(())
        })
    }

    fn reduce_scatter_sum(&mut self, values: &mut [f32]) -> Result<Range<usize>> {
        self.all_reduce_sum(values)?;
        Ok(chunk_range(owned_chunk(self.rank, self.size), self.size, values.len()))
    }

    fn all_gather_chunks(&mut self, values: &mut [f32]) -> Result<()> {
        let chunk = |rank: usize| chunk_range(owned_chunk(rank, self.size), self.size, values.len());
        let chunks: Vec<Range<usize>> = (0..self.size).map(chunk).collect();
        let mine = values[chunks[self.rank].clone()]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        self.meet(mine, |all| {
            for (rank, (chunk, block)) in chunks.into_iter().zip(all).enumerate() {
                same_length(rank, chunk.len() * 4, block.len())?;
                for (value, bytes) in values[chunk].iter_mut().zip(block.as_chunks().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Ok(())
        })
    }

    fn broadcast(&mut self, root: usize, bytes: &mut [u8]) -> Result<()> {
        check_root(root, self.size)?;
        let mine = if self.rank == root { bytes.to_vec() } else { Vec::new() };
        self.meet(mine, |all| {
            same_length(root, bytes.len(), all[root].len())?;
            bytes.copy_from_slice(all[root]);
            Ok(())
        })
    }

    fn sentinel(&mut self, finite: bool) -> Result<Sentinel> {
        self.meet(vec![sentinel_word(finite)], |all| Ok(read_sentinel(&all.concat())))
    }
}
