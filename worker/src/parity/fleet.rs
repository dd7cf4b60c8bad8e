//! `W` workers in one thread, on uneven lanes: what collectives would carry is concatenated and added in lane order.

use super::Options;
use super::golden::{Golden, GoldenBatch};
use crate::engine::{ApplyHyper, Engine, EngineError, GatheredLse, Result, TorchEngine};

/// A planted error: changes a worker's gradient before it is added; arguments are its rows, all rows, its gradient.
pub type Tamper = fn(usize, usize, &mut [f32]);

/// Whole-batch results of one step.
#[derive(Debug)]
pub(super) struct StepOut {
    pub(super) f: Vec<f32>,
    pub(super) g: Vec<f32>,
    pub(super) loss: f64,
    pub(super) gradient: Vec<f32>,
}

#[derive(Debug)]
struct Member {
    engine: TorchEngine,
    /// Places of own rows among all rows.
    own: Vec<u32>,
}

/// The workers.
#[derive(Debug)]
pub(super) struct Fleet {
    members: Vec<Member>,
    rows: usize,
    lanes: usize,
    options: Options,
}

impl Fleet {
    pub(super) fn new(golden: &Golden, options: &Options) -> Result<Self> {
        let rows = golden.rows();
        let lanes = options.lanes.or(golden.lanes()).unwrap_or(rows);
        if lanes == 0 || lanes > rows || options.workers == 0 || options.workers > lanes {
            let workers = options.workers;
            let why = format!("{rows} rows in {lanes} lanes for {workers} workers: 1 <= workers <= lanes <= rows");
            return Err(EngineError::Protocol(why));
        }
        let mut members = Vec::new();
        for worker in 0..options.workers {
            let own = own_rows(worker, options.workers, lanes, rows);
            members.push(Member {
                engine: golden.engine(options.tile)?,
                own,
            });
        }
        Ok(Self {
            members,
            rows,
            lanes,
            options: *options,
        })
    }

    pub(super) fn lanes(&self) -> usize {
        self.lanes
    }

    pub(super) fn rows_of_worker(&self) -> Vec<usize> {
        self.members.iter().map(|m| m.own.len()).collect()
    }

    pub(super) fn set_params(&mut self, params: &[f32]) -> Result<()> {
        self.members.iter_mut().try_for_each(|m| m.engine.set_params(params))
    }

    /// Encode, gather, loss, backward, reduce; leaves the sum in every worker's flat gradient.
    pub(super) fn step(&mut self, batch: &GoldenBatch) -> Result<StepOut> {
        let (rows, micro_rows) = (self.rows, self.options.micro_rows);
        let (mut f, mut g) = (Vec::new(), Vec::new());
        for member in &mut self.members {
            let images = pick(&batch.images, &member.own, rows);
            let tokens = pick(&batch.tokens, &member.own, rows);
            let lengths = pick(&batch.lengths, &member.own, rows);
            let out = member.engine.encode_floats(&images, &tokens, &lengths, micro_rows)?;
            place(&out.f, &member.own, rows, &mut f);
            place(&out.g, &member.own, rows, &mut g);
        }
        let (mut r, mut c, mut diag) = (Vec::new(), Vec::new(), Vec::new());
        for member in &mut self.members {
            let lse = member.engine.own_lse(&member.own, rows, &f, &g)?;
            place(&lse.r, &member.own, rows, &mut r);
            place(&lse.c, &member.own, rows, &mut c);
            place(&lse.diag, &member.own, rows, &mut diag);
        }
        let (mut gradient, mut losses) = (Vec::<f32>::new(), Vec::new());
        for member in &mut self.members {
            losses.push(
                member
                    .engine
                    .loss_backward(&GatheredLse {
                        r: &r,
                        c: &c,
                        diag: &diag,
                    })?
                    .loss,
            );
            let own = member.engine.grads_flat()?;
            if let Some(tamper) = self.options.tamper {
                tamper(member.own.len(), rows, own);
            }
            gradient.resize(own.len(), 0.0);
            gradient.iter_mut().zip(own.iter()).for_each(|(sum, v)| *sum += v);
        }
        for member in &mut self.members {
            member.engine.grads_flat()?.copy_from_slice(&gradient);
        }
        let loss = losses.first().copied().unwrap_or(f64::NAN);
        if losses.iter().any(|l| l.to_bits() != loss.to_bits()) {
            return Err(EngineError::Protocol(format!(
                "workers disagree on the loss: {losses:?}"
            )));
        }
        Ok(StepOut { f, g, loss, gradient })
    }

    pub(super) fn apply(&mut self, hyper: &ApplyHyper) -> Result<()> {
        self.members
            .iter_mut()
            .try_for_each(|m| m.engine.apply(hyper).map(drop))
    }

    /// Parameters of the first worker, after making sure that all states are equal.
    pub(super) fn params(&self) -> Result<Vec<f32>> {
        let hashes: Vec<u64> = self.members.iter().map(|m| m.engine.state_hash()).collect();
        if hashes.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(EngineError::State(format!(
                "workers ended in different states: {hashes:x?}"
            )));
        }
        let first = self
            .members
            .first()
            .map(|m| m.engine.params().values.as_slice().to_vec());
        Ok(first.unwrap_or_default())
    }
}

/// Rows of a worker: lane `q` is the `q`-th of `lanes` nearly equal pieces; every worker has a lane, the rest is dealt
/// one, two, three, ... at a time, so that shares are uneven and rows lie apart.
fn own_rows(worker: usize, workers: usize, lanes: usize, rows: usize) -> Vec<u32> {
    let pattern: Vec<usize> = (0..workers).flat_map(|w| std::iter::repeat_n(w, w + 1)).collect();
    let owner = |lane: usize| {
        if lane < workers {
            lane
        } else {
            pattern[(lane - workers) % pattern.len()]
        }
    };
    let start = |lane: usize| lane * rows / lanes;
    (0..lanes)
        .filter(|q| owner(*q) == worker)
        .flat_map(|q| start(q)..start(q + 1))
        .map(|row| row as u32)
        .collect()
}

/// The named rows of a row-major array with `rows` rows.
fn pick<T: Copy>(all: &[T], own: &[u32], rows: usize) -> Vec<T> {
    let width = all.len() / rows;
    own.iter()
        .flat_map(|&row| &all[row as usize * width..][..width])
        .copied()
        .collect()
}

/// Puts a worker's rows in their places.
fn place(part: &[f32], own: &[u32], rows: usize, all: &mut Vec<f32>) {
    let Some(width) = part.len().checked_div(own.len()) else {
        return;
    };
    all.resize(rows * width, 0.0);
    for (row, values) in own.iter().zip(part.chunks(width.max(1))) {
        all[*row as usize * width..][..width].copy_from_slice(values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_rows_of_all_workers_are_uneven_and_cover_the_batch_once() {
        for (workers, lanes, rows) in [(1, 9, 9), (2, 9, 9), (3, 9, 9), (3, 4, 9), (4, 4, 8)] {
            let shares: Vec<Vec<u32>> = (0..workers).map(|w| own_rows(w, workers, lanes, rows)).collect();
            let mut all: Vec<u32> = shares.iter().flatten().copied().collect();
            all.sort_unstable();
            assert_eq!(all, (0..rows as u32).collect::<Vec<_>>());
            assert!(shares.iter().all(|s| !s.is_empty()));
        }
        assert_ne!(own_rows(0, 3, 9, 9).len(), own_rows(2, 3, 9, 9).len());
    }
}
