//! `W` workers in one thread, on uneven lanes: what collectives would carry is concatenated and added in lane order.

use super::Options;
use super::golden::{Golden, GoldenBatch};
use crate::clip::{Images, embed_images, to_vec};
use crate::engine::{ApplyHyper, Engine, EngineError, GatheredLse, Result, TensorSpec, TorchEngine};
use tch::Tensor;

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
    /// Rows of each own lane, and the lanes.
    lane_rows: Vec<usize>,
    own_lanes: Vec<usize>,
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
            let own_lanes = own_lanes(worker, options.workers, lanes);
            let rows_of = |lane: &usize| lane * rows / lanes..(lane + 1) * rows / lanes;
            members.push(Member {
                engine: golden.engine(options.tile)?,
                own: own_lanes.iter().flat_map(rows_of).map(|row| row as u32).collect(),
                lane_rows: own_lanes.iter().map(|lane| rows_of(lane).len()).collect(),
                own_lanes,
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
            let draws = pick(&batch.draws, &member.own, rows);
            member.engine.begin_lanes(&member.lane_rows, &draws);
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
            let turn = |lane: &usize| (self.options.turn)(*lane, self.lanes);
            let turns: Vec<usize> = member.own_lanes.iter().map(turn).collect();
            member.engine.lane_turns(&turns, self.lanes);
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

    /// Places of running statistics.
    pub(super) fn buffers(&self) -> Vec<TensorSpec> {
        let first = self.members.first();
        first.map(|m| m.engine.params().buffers().to_vec()).unwrap_or_default()
    }

    /// Features of images and texts as evaluation makes them, by the first worker.
    pub(super) fn eval(&mut self, batch: &GoldenBatch) -> Result<[Vec<f32>; 2]> {
        let Some(member) = self.members.first() else {
            return Ok([Vec::new(), Vec::new()]);
        };
        let size = member.engine.image_size() as i64;
        let images = Tensor::f_from_slice(&batch.images)?.f_view([-1, 3, size, size])?;
        let clip = member.engine.clip();
        let texts = clip.text.encode(&batch.tokens, &batch.lengths)?;
        Ok([embed_images(clip, &Images::Floats(images))?, to_vec(&texts)?])
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

/// Lanes of a worker: every worker has one, the rest is dealt one, two, three, ... at a time, so that shares are uneven and
/// rows lie apart. Lane `q` is the `q`-th of `lanes` nearly equal pieces of the rows.
fn own_lanes(worker: usize, workers: usize, lanes: usize) -> Vec<usize> {
    let pattern: Vec<usize> = (0..workers).flat_map(|w| std::iter::repeat_n(w, w + 1)).collect();
    let owner = |lane: usize| {
        if lane < workers {
            lane
        } else {
            pattern[(lane - workers) % pattern.len()]
        }
    };
    (0..lanes).filter(|q| owner(*q) == worker).collect()
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
    fn own_lanes_of_all_workers_are_uneven_and_cover_all_once() {
        for (workers, lanes) in [(1, 9), (2, 9), (3, 9), (3, 4), (4, 4)] {
            let shares: Vec<Vec<usize>> = (0..workers).map(|w| own_lanes(w, workers, lanes)).collect();
            let mut all: Vec<usize> = shares.iter().flatten().copied().collect();
            all.sort_unstable();
            assert_eq!(all, (0..lanes).collect::<Vec<_>>());
            assert!(shares.iter().all(|s| !s.is_empty()));
        }
        assert_ne!(own_lanes(0, 3, 9).len(), own_lanes(2, 3, 9).len());
    }
}
