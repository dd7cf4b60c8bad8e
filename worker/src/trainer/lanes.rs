//! Deterministic mode (rule N4): every lane goes through towers and loss by itself, so all shapes depend on the lane alone,
//! and the lanes' gradients are added in a fixed tree. Who owns a lane leaves no trace in any bit.

use super::gather::{Whole, pack_lse};
use super::overlap::unless_aborted;
use super::step::Timer;
use super::{BatchSource, Halt, InGeneration, Trainer};
use crate::collective::tree::{self, LaneTree};
use crate::engine::{Encoded, Engine, EngineError, OwnLse, SparseTable, all_finite};
use argosy_common::steplog::RowState;
use argosy_shard_loader::LaneBatch;

impl<E: Engine, S: BatchSource> Trainer<E, S> {
    /// ENCODE, lane by lane.
    pub(super) fn encode_lanes(&mut self, batches: &[LaneBatch]) -> Result<Encoded, Halt> {
        self.engine.forget_parked();
        let mut all = Encoded {
            dim: self.engine.feature_dim(),
            ..Encoded::default()
        };
        let micro_rows = self.lane_micro_rows();
        if batches.is_empty() {
            // A spare begins a step of no rows: it hears the loss and adds nothing.
            return self.encode_rows(batches, micro_rows);
        }
        for batch in batches {
            let one = self.encode_rows(std::slice::from_ref(batch), micro_rows)?;
            all.f.extend(one.f);
            all.g.extend(one.g);
            self.engine.park(batch.lane)?;
        }
        Ok(all)
    }

    /// Rows of a lane that go through the towers at once. A job that asks for micro-batches cannot hold the graphs of all its
    /// lanes, so a lane is then cut at least in two and keeps none; the cut must not depend on how many lanes a worker has.
    fn lane_micro_rows(&self) -> usize {
        let rows = self.setup.shape.lane_rows() as usize;
        self.setup
            .train
            .micro_batch
            .map_or(usize::MAX, |micro| (micro as usize).min(rows.div_ceil(2)))
    }

    /// LOSS, BACKWARD and REDUCE: leaves the sum over all lanes in the engine's flat gradient. Gives the loss, and whether the
    /// own lanes' gradients are finite.
    pub(super) fn lanes_to_gradient(
        &mut self,
        inside: &mut InGeneration,
        batches: &[LaneBatch],
        whole: &Whole,
        step: u64,
        timer: &mut Timer,
    ) -> Result<(f64, bool), Halt> {
        self.hit("loss", step);
        let (own, touched) = self.lanes_lse(batches, whole)?;
        let members = inside.plan.members.len();
        pack_lse(&own, &mut self.buffers.mine);
        self.exchange(inside, &whole.lse_lens(members))?;
        let all = whole.unpack_lse(members, &self.buffers.all);
        timer.lap("loss");

        self.hit("backward", step);
        // Known before the first gradient, so that a lane's vector holds the table's used rows alone.
        let union = self.union_of_touched(inside, &touched)?;
        let table = self.engine.sparse_table();
        let mut sums = LaneTree::new(self.setup.shape.lanes);
        let (mut loss, mut finite) = (f64::NAN, true);
        for batch in batches {
            self.engine.resume(batch.lane)?;
            let (turns, of) = whole.turns([batch.lane]);
            self.engine.lane_turns(&turns, of);
            let mut go_on = unless_aborted(&inside.abort);
            loss = self.engine.loss_backward_overlapped(&all.view(), &mut go_on)?.loss;
            let grads = self.engine.grads_flat()?;
            // Before the sums mix, so that it is known whose it was (rule G11).
            finite &= all_finite(grads);
            let compact = compact(table.as_ref(), &union, grads)?;
            sums.lane(batch.lane, compact, |left, right: Vec<f32>| tree::add(left, &right));
        }
        if batches.is_empty() {
            self.engine.lane_turns(&[], whole.turns([]).1);
            loss = self.engine.loss_backward(&all.view())?.loss;
        }
        timer.lap("backward");

        self.hit("reduce", step);
        let lanes_of: Vec<Vec<u32>> = (0..members).map(|rank| inside.plan.lanes_of(rank)).collect();
        let len = compact_len(table.as_ref(), &union, self.engine.state_elements());
        self.buffers.rows.resize(len, 0.0);
        tree::sum(inside.collective.as_mut(), &sums, &lanes_of, &mut self.buffers.rows)?;
        spread(table.as_ref(), &union, &self.buffers.rows, self.engine.grads_flat()?);
        timer.lap("reduce");
        Ok((loss, finite))
    }

    /// Log-sum-exps of the own lanes, and the rows of the token table that they use.
    fn lanes_lse(&mut self, batches: &[LaneBatch], whole: &Whole) -> Result<(OwnLse, Vec<u32>), Halt> {
        let (mut own, mut touched, mut next) = (OwnLse::default(), Vec::new(), 0);
        if batches.is_empty() {
            own = self.engine.own_lse(&[], whole.valid, &whole.f, &whole.g)?;
        }
        for batch in batches {
            let rows = batch.states.iter().filter(|s| **s == RowState::Valid).count();
            let places = whole
                .own
                .get(next..next + rows)
                .ok_or_else(|| EngineError::Protocol(format!("lane {} has rows that were not gathered", batch.lane)))?;
            next += rows;
            self.engine.resume(batch.lane)?;
            touched.extend_from_slice(self.engine.touched_rows());
            let lse = self.engine.own_lse(places, whole.valid, &whole.f, &whole.g)?;
            self.engine.park(batch.lane)?;
            own.r.extend(lse.r);
            own.c.extend(lse.c);
            own.diag.extend(lse.diag);
        }
        Ok((own, touched))
    }
}

/// The flat gradient without the rows of the sparse table that nobody reached.
fn compact(table: Option<&SparseTable>, union: &[u32], grads: &[f32]) -> Result<Vec<f32>, EngineError> {
    let Some(table) = table else { return Ok(grads.to_vec()) };
    let end = table.offset + table.rows * table.width;
    let mut out = Vec::with_capacity(compact_len(Some(table), union, grads.len()));
    out.extend_from_slice(&grads[..table.offset]);
    for row in union {
        let from = table.offset + *row as usize * table.width;
        out.extend_from_slice(&grads[from..from + table.width]);
    }
    out.extend_from_slice(&grads[end..]);
    Ok(out)
}

fn compact_len(table: Option<&SparseTable>, union: &[u32], elements: usize) -> usize {
    table.map_or(elements, |t| elements - (t.rows - union.len()) * t.width)
}

/// The inverse of [`compact`].
fn spread(table: Option<&SparseTable>, union: &[u32], values: &[f32], grads: &mut [f32]) {
    let Some(table) = table else {
        grads.copy_from_slice(values);
        return;
    };
    let (head, rest) = values.split_at(table.offset);
    let (rows, tail) = rest.split_at(union.len() * table.width);
    let end = table.offset + table.rows * table.width;
    grads[..table.offset].copy_from_slice(head);
    grads[table.offset..end].fill(0.0);
    for (row, values) in union.iter().zip(rows.chunks(table.width)) {
        let from = table.offset + *row as usize * table.width;
        grads[from..from + table.width].copy_from_slice(values);
    }
    grads[end..].copy_from_slice(tail);
}
