//! One step, top to bottom. Replicated state changes in APPLY only, and only behind a complete sentinel (rules G2, G4).

use super::gather::{Layout, Whole, pack_lse};
use super::overlap::unless_aborted;
use super::{BatchSource, Cause, Halt, Held, InGeneration, Trainer};
use crate::engine::{ApplyHyper, ApplyOut, Encoded, Engine, RowsIn, all_finite};
use argosy_common::config::BatchNorm;
use argosy_common::events::{FromWorker, NotFinite, StepReport};
use argosy_common::follower::Event;
use argosy_common::ids::StateName;
use argosy_common::schedule::hyper_at;
use argosy_common::steplog::{RowState, StepRecord};
use argosy_shard_loader::LaneBatch;
use std::collections::BTreeMap;
use std::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Phases of a step in the order they are gone through, as reports name them.
pub const PHASES: [&str; 11] = [
    "load",
    "encode",
    "gather",
    "loss",
    "backward",
    "reduce",
    "sentinel",
    "checkpoint",
    "lease",
    "apply",
    "hash",
];

/// Milliseconds by phase.
pub(super) struct Timer {
    last: Instant,
    phase_ms: BTreeMap<String, f32>,
}

impl Timer {
    fn start() -> Self {
        Self {
            last: Instant::now(),
            phase_ms: BTreeMap::new(),
        }
    }

    /// The time since the last lap goes to `phase`; gives it in milliseconds.
    pub(super) fn lap(&mut self, phase: &str) -> f32 {
        let now = Instant::now();
        let ms = (now - self.last).as_secs_f32() * 1e3;
        *self.phase_ms.entry(phase.to_owned()).or_default() += ms;
        self.last = now;
        ms
    }
}

/// What the step came to before APPLY.
enum Outcome {
    /// The reduced gradient lies in the engine.
    Update { loss: f64 },
    /// Only the name changes, for this reason.
    PassedOver(String),
}

impl<E: Engine, S: BatchSource> Trainer<E, S> {
    /// Makes the next step of the generation.
    pub(super) fn step(&mut self) -> Result<(), Halt> {
        let Some(mut inside) = self.inside.take() else {
            return Ok(());
        };
        let result = self.step_inside(&mut inside);
        self.inside = Some(inside);
        result
    }

    fn step_inside(&mut self, inside: &mut InGeneration) -> Result<(), Halt> {
        let Held::Clean(name) = self.held else { return Ok(()) };
        let step = name.step;
        let mut timer = Timer::start();
        inside.collective.begin_step(step);

        self.hit("load", step);
        let batches = self.load(inside, step)?;
        timer.lap("load");

        self.hit("encode", step);
        let mut encoded = if self.setup.train.deterministic {
            self.encode_lanes(&batches)?
        } else {
            self.encode(&batches)?
        };
        self.spoil(step, &batches, &mut encoded);
        timer.lap("encode");

        self.hit("gather", step);
        let whole = self.gather(inside, &batches, &encoded)?;
        let skip = inside.plan.skip.clone().filter(|_| step == inside.plan.base.step);
        if skip.is_none() {
            refuse_non_finite_rows(&batches, &whole)?;
        }
        timer.lap("gather");

        let (outcome, own_finite) = if let Some(why) = skip {
            (Outcome::PassedOver(why), true)
        } else if whole.valid < 2 {
            (
                Outcome::PassedOver(format!("{} valid rows, a contrast needs two", whole.valid)),
                true,
            )
        } else if self.setup.train.deterministic {
            let (loss, finite) = self.lanes_to_gradient(inside, &batches, &whole, step, &mut timer)?;
            (Outcome::Update { loss }, finite)
        } else {
            let (loss, finite) = self.loss_to_gradient(inside, &whole, step, &mut timer)?;
            (Outcome::Update { loss }, finite)
        };

        self.hit("sentinel", step);
        self.sentinel(inside, own_finite, &outcome)?;
        timer.lap("sentinel");

        self.hit("apply", step);
        let next = StateName {
            step: step + 1,
            applied_gen: inside.plan.generation,
        };
        // A checkpoint's copy may still read the weights (rule K2); this lap is its whole cost.
        self.engine.wait_for_readers();
        let copy_wait_ms = timer.lap("checkpoint");
        if copy_wait_ms >= 1.0 {
            tracing::info!(step, copy_wait_ms, "APPLY waited for a checkpoint's copy");
        }
        if !self.setup.lease.allows(inside.plan.generation, &inside.abort) {
            return Err(Halt::Left(None));
        }
        timer.lap("lease");
        let hyper = hyper_at(&self.setup.train, step, self.setup.shape.total_steps());
        let applied = self.apply(&outcome, &hyper, next)?;
        timer.lap("apply");

        self.record(inside, &batches, &whole, &outcome, next)?;
        for message in self.engine.take_notices() {
            self.emit(Event::Passed(FromWorker::Notice { message }));
        }
        let loss = match outcome {
            Outcome::Update { loss } => Some(loss),
            Outcome::PassedOver(_) => None,
        };
        let every = self.setup.train.state_hash_steps;
        let compare = every > 0 && next.step.is_multiple_of(every);
        let state_hashes = if compare {
            self.engine.chunk_hashes()
        } else {
            Vec::new()
        };
        timer.lap("hash");
        let report = StepReport {
            generation: inside.plan.generation,
            name: next,
            loss,
            lr: hyper.lr,
            logit_scale: applied.logit_scale,
            grad_norm: applied.grad_norm,
            valid: whole.valid as u32,
            masked: count_masked(&whole),
            phase_ms: timer.phase_ms,
            state_hashes,
        };
        self.emit(Event::Stepped { report });
        Ok(())
    }

    pub(super) fn hit(&mut self, phase: &'static str, step: u64) {
        self.phase = phase;
        self.setup.failpoint.hit(phase, step);
    }

    /// What a failpoint asks for: the first valid row of a lane gets a feature that is no number.
    fn spoil(&self, step: u64, batches: &[LaneBatch], encoded: &mut Encoded) {
        let lanes: Vec<u32> = batches.iter().map(|b| b.lane).collect();
        let Some(lane) = self.setup.failpoint.spoils(step, &lanes) else {
            return;
        };
        let valid = |b: &LaneBatch| b.states.iter().filter(|s| **s == RowState::Valid).count();
        let before: usize = batches.iter().take_while(|b| b.lane != lane).map(valid).sum();
        if let Some(value) = encoded.f.get_mut(before * encoded.dim) {
            *value = f32::NAN;
        }
    }

    /// ENCODE: valid rows only, in lane order.
    pub(super) fn encode(&mut self, batches: &[LaneBatch]) -> Result<Encoded, Halt> {
        let micro_rows = self.setup.train.micro_batch.map_or(usize::MAX, |n| n as usize);
        self.encode_rows(batches, micro_rows)
    }

    pub(super) fn encode_rows(&mut self, batches: &[LaneBatch], micro_rows: usize) -> Result<Encoded, Halt> {
        let size = self.engine.image_size();
        let (pixel_stride, context) = (size * size * 3, self.engine.context_length());
        let buffers = &mut self.buffers;
        buffers.pixels.clear();
        buffers.tokens.clear();
        buffers.lengths.clear();
        let (mut lane_rows, mut draws) = (Vec::with_capacity(batches.len()), Vec::new());
        for batch in batches {
            let before = buffers.lengths.len();
            for (row, _) in batch.states.iter().enumerate().filter(|(_, s)| **s == RowState::Valid) {
                buffers
                    .pixels
                    .extend_from_slice(&batch.pixels[row * pixel_stride..(row + 1) * pixel_stride]);
                buffers
                    .tokens
                    .extend_from_slice(&batch.tokens[row * context..(row + 1) * context]);
                buffers.lengths.push(batch.lengths[row]);
                draws.push(draw_of(self.setup.shape.seed, batch, row));
            }
            lane_rows.push(buffers.lengths.len() - before);
        }
        if self.setup.train.batch_norm == BatchNorm::Batch {
            lane_rows = vec![lane_rows.iter().sum()];
        }
        self.engine.begin_lanes(&lane_rows, &draws);
        let rows = RowsIn {
            rows: buffers.lengths.len(),
            pixels: &buffers.pixels,
            tokens: &buffers.tokens,
            lengths: &buffers.lengths,
        };
        Ok(self.engine.encode(&rows, micro_rows)?)
    }

    /// GATHER: features, valid bits, finite flags and digests of all lanes.
    fn gather(&mut self, inside: &mut InGeneration, batches: &[LaneBatch], own: &Encoded) -> Result<Whole, Halt> {
        let rows = self.setup.shape.lane_rows() as usize;
        let layout = Layout::new(&inside.plan, rows, self.engine.feature_dim());
        layout.pack(batches, own, &mut self.buffers.mine);
        let lens = layout.lens();
        self.exchange(inside, &lens)?;
        layout.unpack(inside.rank, &self.buffers.all).map_err(Halt::left)
    }

    /// Gathers everybody's `mine`, of `lens[rank]` bytes each, into `all`.
    pub(super) fn exchange(&mut self, inside: &mut InGeneration, lens: &[usize]) -> Result<(), Halt> {
        let buffers = &mut self.buffers;
        buffers.all.resize(lens.iter().sum(), 0);
        inside.collective.all_gather(&buffers.mine, lens, &mut buffers.all)?;
        Ok(())
    }

    /// LOSS, BACKWARD and REDUCE: leaves the sum over all workers in the engine's flat gradient. Gives the loss, and whether the
    /// own gradient is finite.
    fn loss_to_gradient(
        &mut self,
        inside: &mut InGeneration,
        whole: &Whole,
        step: u64,
        timer: &mut Timer,
    ) -> Result<(f64, bool), Halt> {
        self.hit("loss", step);
        let own = self.engine.own_lse(&whole.own, whole.valid, &whole.f, &whole.g)?;
        let members = inside.plan.members.len();
        let lens = whole.lse_lens(members);
        pack_lse(&own, &mut self.buffers.mine);
        self.exchange(inside, &lens)?;
        let all = whole.unpack_lse(members, &self.buffers.all);
        timer.lap("loss");

        self.hit("backward", step);
        let (turns, of) = match self.setup.train.batch_norm {
            BatchNorm::Lane => whole.turns(inside.plan.lanes_of(inside.rank)),
            BatchNorm::Batch => (vec![0], 1),
        };
        self.engine.lane_turns(&turns, of);
        if members == 1 {
            let mut go_on = unless_aborted(&inside.abort);
            let loss = self.engine.loss_backward_overlapped(&all.view(), &mut go_on)?.loss;
            let finite = all_finite(self.engine.grads_flat()?);
            timer.lap("backward");
            timer.lap("reduce");
            return Ok((loss, finite));
        }
        let touched = self.engine.touched_rows().to_vec();
        let union = self.union_of_touched(inside, &touched)?;
        let (loss, finite, late) = self.backward_and_reduce(inside, &all)?;
        timer.lap("backward");
        self.hit("reduce", step);
        self.reduce_rest(inside, &union, late)?;
        timer.lap("reduce");
        Ok((loss, finite))
    }

    /// Rows of the token table that some worker reached, `touched` by this one; ascending, the same for all.
    pub(super) fn union_of_touched(&mut self, inside: &mut InGeneration, touched: &[u32]) -> Result<Vec<u32>, Halt> {
        let Some(table) = self.engine.sparse_table() else {
            return Ok(Vec::new());
        };
        table.bitmap(touched, &mut self.buffers.mine);
        let lens = vec![self.buffers.mine.len(); inside.collective.size()];
        self.exchange(inside, &lens)?;
        Ok(table.union(&self.buffers.all))
    }

    /// SENTINEL: everybody has come so far, and every gradient was finite.
    fn sentinel(&mut self, inside: &mut InGeneration, own_finite: bool, outcome: &Outcome) -> Result<(), Halt> {
        let sentinel = inside.collective.sentinel(own_finite)?;
        let plan = &inside.plan;
        let size = plan.members.len();
        if sentinel.count != size {
            return Err(Halt::left(format!(
                "{} of {size} members reached the sentinel",
                sentinel.count
            )));
        }
        let not_finite = |why: String, lanes: Vec<u32>, sum| {
            let not_finite = Some(NotFinite { lanes, sum });
            Err(Halt::Left(Some(Cause {
                not_finite,
                ..Cause::from(why)
            })))
        };
        let guilty = &sentinel.not_finite;
        if !guilty.is_empty() {
            let lanes: Vec<u32> = guilty.iter().flat_map(|rank| plan.lanes_of(*rank)).collect();
            return not_finite(format!("the gradient of lanes {lanes:?} is not finite"), lanes, false);
        }
        // Alone, the sum is the own gradient, which was looked at.
        if size > 1 && matches!(outcome, Outcome::Update { .. }) && !all_finite(self.engine.grads_flat()?) {
            let why = "the sum of finite gradients is not finite".into();
            return not_finite(why, Vec::new(), true);
        }
        Ok(())
    }

    /// APPLY: the only place where a step changes replicated state.
    fn apply(
        &mut self,
        outcome: &Outcome,
        hyper: &argosy_common::schedule::Hyper,
        next: StateName,
    ) -> Result<ApplyOut, Halt> {
        // From here to the end of this function the state is shown to nobody; an error in between ends the process.
        self.held = Held::Dirty;
        let applied = match outcome {
            Outcome::Update { .. } => self.engine.apply(&ApplyHyper {
                lr: hyper.lr,
                beta1: hyper.beta1,
                beta2: hyper.beta2,
                eps: hyper.eps,
                weight_decay: hyper.weight_decay,
                clip_norm: hyper.clip_norm,
                ema_decay: hyper.ema_decay,
            })?,
            Outcome::PassedOver(_) => ApplyOut {
                grad_norm: 0.0,
                logit_scale: self.engine.logit_scale(),
            },
        };
        self.held = Held::Clean(next);
        Ok(applied)
    }

    /// Writes the step's line before anybody hears of the new name (rule AU1).
    fn record(
        &mut self,
        inside: &InGeneration,
        batches: &[LaneBatch],
        whole: &Whole,
        outcome: &Outcome,
        name: StateName,
    ) -> Result<(), Halt> {
        for batch in batches {
            debug_assert_eq!(
                whole.digests.get(batch.lane as usize),
                Some(&batch.digest),
                "own lanes come back"
            );
        }
        let (loss, skipped) = match outcome {
            Outcome::Update { loss } => (Some(*loss), None),
            Outcome::PassedOver(why) => (None, Some(why.clone())),
        };
        self.hit("log", name.step.saturating_sub(1));
        self.write_log(&StepRecord::Applied {
            name,
            plan_hash: inside.plan_hash,
            lanes: whole.digests.clone(),
            valid: whole.valid as u32,
            masked: whole.masked.clone(),
            skipped,
            loss,
        })
    }
}

/// A row's own number in this step: a function of seed, step and sample, whoever computes it (rule X3).
fn draw_of(seed: u64, batch: &LaneBatch, row: usize) -> u64 {
    let sample = batch.samples.get(row);
    let name = sample.map_or_else(String::new, ToString::to_string);
    xxh3_64_with_seed(format!("{}/{name}", batch.step).as_bytes(), seed)
}

/// A row that is not finite aborts the step before LOSS (rule G11). Everybody has seen it in the gather; its owner can name
/// the sample.
fn refuse_non_finite_rows(batches: &[LaneBatch], whole: &Whole) -> Result<(), Halt> {
    let Some((lane, row)) = whole.not_finite.first() else {
        return Ok(());
    };
    let mut lanes: Vec<u32> = whole.not_finite.iter().map(|(lane, _)| *lane).collect();
    lanes.dedup(); // they come in the order of lanes
    let own = batches.iter().find(|b| b.lane == *lane);
    let sample = own.and_then(|b| b.samples.get(*row as usize));
    let sample = sample.map_or_else(String::new, |id| format!(", sample {id} (source/shard/row)"));
    let rows = whole.not_finite.len();
    let why = format!("lane {lane}, row {row}{sample} has features that are not finite ({rows} rows in all)");
    Err(Halt::Left(Some(Cause {
        not_finite: Some(NotFinite { lanes, sum: false }),
        ..Cause::from(why)
    })))
}

fn count_masked(whole: &Whole) -> BTreeMap<argosy_common::steplog::MaskReason, u32> {
    let mut masked = BTreeMap::new();
    for row in &whole.masked {
        *masked.entry(row.reason).or_default() += 1;
    }
    masked
}
