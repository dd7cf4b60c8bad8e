//! Through the towers and back, whole or in micro-batches, smaller ones when memory is short.
//!
//! Rows that do not fit at once are encoded without keeping anything, and encoded again piece by piece on the way back
//! (GradCache, Gao et al. 2021). What is dropped at random is drawn from the rows' own numbers, so both passes give the same
//! bits.

use super::statistics::pieces_of_lanes;
use super::{TorchEngine, used_ids};
use crate::clip::ops::Sink;
use crate::clip::text::SavedText;
use crate::clip::vision::SavedImages;
use crate::clip::{Images, Training, to_vec};
use crate::engine::{Encoded, Engine, EngineError, Ready, Result, expect_len};
use crate::loss::{OwnRows, SigmoidGrads};
use tch::Tensor;

/// What one step holds between calls.
#[derive(Debug)]
pub(super) struct Step {
    inputs: Inputs,
    /// What the way back needs, where all rows went at once.
    kept: Option<Kept>,
    micro_rows: usize,
    pub(super) loss: Option<StepLoss>,
}

impl Step {
    pub(super) fn rows(&self) -> usize {
        self.inputs.lengths.len()
    }

    /// Rows of each lane.
    pub(super) fn lanes(&self) -> &[usize] {
        &self.inputs.lanes
    }
}

#[derive(Debug)]
struct Kept {
    images: SavedImages,
    texts: SavedText,
}

/// Between the loss's two phases.
#[derive(Debug)]
pub(super) enum StepLoss {
    Softmax(OwnRows),
    /// Its gradients are known at once.
    Sigmoid(SigmoidGrads),
}

#[derive(Debug)]
pub(super) struct Inputs {
    images: Images,
    tokens: Vec<i32>,
    lengths: Vec<u16>,
    /// Rows of each lane, in order.
    pub(super) lanes: Vec<usize>,
    /// A number of its own for every row, or none.
    draws: Vec<u64>,
}

impl Inputs {
    pub(super) fn new(images: Images, tokens: &[i32], lengths: &[u16]) -> Self {
        Self {
            images,
            tokens: tokens.to_vec(),
            lengths: lengths.to_vec(),
            lanes: vec![lengths.len()],
            draws: Vec::new(),
        }
    }
}

/// Rows of the lanes that lie in `start..start + len`, as far as they do.
fn lanes_within(lanes: &[usize], start: usize, len: usize) -> Vec<usize> {
    let (mut at, mut out) = (0, Vec::new());
    for lane in lanes {
        let (from, to) = (at.max(start), (at + lane).min(start + len));
        if from < to {
            out.push(to - from);
        }
        at += lane;
    }
    out
}

pub(super) fn pieces_of(rows: usize, micro_rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows)
        .step_by(micro_rows)
        .map(move |start| (start, micro_rows.min(rows - start)))
}

impl TorchEngine {
    pub(super) fn begin(&mut self, mut inputs: Inputs, micro_rows: usize) -> Result<Encoded> {
        self.step = None;
        let rows = inputs.lengths.len();
        if let Some((lanes, draws)) = self.coming.take() {
            expect_len("rows of lanes", rows, lanes.iter().sum())?;
            (inputs.lanes, inputs.draws) = (lanes, draws);
        }
        if !inputs.draws.is_empty() {
            expect_len("draws", rows, inputs.draws.len())?;
        }
        let read = self.clip.text.read(&inputs.tokens, &inputs.lengths)?;
        // Of a table that is not trained no row has a gradient.
        self.touched = match self.params.trains(&self.table_name()) {
            true => used_ids(&inputs.tokens, &read, self.context_length()),
            false => Vec::new(),
        };
        let mut micro_rows = micro_rows.max(1);
        loop {
            micro_rows = micro_rows.min(self.rows_fit);
            match self.encode_all(&inputs, micro_rows) {
                Ok((out, kept)) => {
                    self.step = Some(Step {
                        inputs,
                        kept,
                        micro_rows,
                        loss: None,
                    });
                    return Ok(out);
                }
                Err(error) => self.halve(rows, micro_rows, error)?,
            }
        }
    }

    /// Features of all rows, and what the way back needs if they went at once.
    fn encode_all(&self, inputs: &Inputs, micro_rows: usize) -> Result<(Encoded, Option<Kept>)> {
        let rows = inputs.lengths.len();
        let mut out = Encoded {
            dim: self.feature_dim(),
            f: Vec::new(),
            g: Vec::new(),
        };
        let mut last = None;
        for (start, len) in self.pieces(inputs, micro_rows) {
            let (images, texts, kept) = self.encode_piece(inputs, start, len, rows <= micro_rows)?;
            out.f.extend(to_vec(&images)?);
            out.g.extend(to_vec(&texts)?);
            last = Some(kept);
        }
        Ok((out, last.filter(|_| rows <= micro_rows)))
    }

    /// What goes through the towers at once; whole lanes where rows reach each other.
    fn pieces(&self, inputs: &Inputs, micro_rows: usize) -> Vec<(usize, usize)> {
        if self.clip.vision.has_batch_norm() {
            pieces_of_lanes(&inputs.lanes, micro_rows)
        } else {
            pieces_of(inputs.lengths.len(), micro_rows).collect()
        }
    }

    fn encode_piece(&self, inputs: &Inputs, start: usize, len: usize, keep: bool) -> Result<(Tensor, Tensor, Kept)> {
        #[cfg(test)]
        self.run_out_of_memory(len, keep)?;
        let (context, lean) = (self.context_length(), self.options.grad_checkpointing);
        let piece = inputs.images.narrow(start as i64, len as i64)?;
        let lanes = lanes_within(&inputs.lanes, start, len);
        let training = Training {
            lanes: &lanes,
            draws: inputs.draws.get(start..start + len).unwrap_or_default(),
        };
        let (images, saved_images) = self.clip.vision.forward(&piece, Some(training), keep, lean)?;
        let tokens = &inputs.tokens[start * context..(start + len) * context];
        let (texts, saved_texts) = self
            .clip
            .text
            .forward(tokens, &inputs.lengths[start..start + len], keep, lean)?;
        let kept = Kept {
            images: saved_images,
            texts: saved_texts,
        };
        Ok((images, texts, kept))
    }

    /// Fails as libtorch does when more rows than a test allows are kept at once.
    #[cfg(test)]
    fn run_out_of_memory(&self, rows: usize, keep: bool) -> Result<()> {
        if keep && rows > self.rows_allowed {
            let message = format!("DefaultCPUAllocator: not enough memory: {rows} rows");
            return Err(EngineError::Tch(tch::TchError::Torch(message)));
        }
        Ok(())
    }

    /// Goes on with half as many rows at once if memory was short, else hands the error on.
    fn halve(&mut self, rows: usize, micro_rows: usize, error: EngineError) -> Result<()> {
        let now = micro_rows.min(rows);
        if !error.is_out_of_memory() || now < 2 || self.options.fixed_shapes {
            return Err(error);
        }
        self.rows_fit = now.div_ceil(2);
        let notice = format!(
            "out of memory with {now} rows at once: going on with micro-batches of {}; set train.micro_batch to begin so",
            self.rows_fit
        );
        tracing::warn!(%error, rows = now, next = self.rows_fit, "{notice}");
        self.notices.push(notice);
        Ok(())
    }

    /// Runs `work`; if memory is short, once more without the activations that were kept for the way back.
    pub(super) fn retry<T>(&mut self, mut work: impl FnMut(&Self) -> Result<T>) -> Result<T> {
        let error = match work(self) {
            Err(error) if error.is_out_of_memory() => error,
            other => return other,
        };
        let Some(step) = self.step.as_mut().filter(|step| step.kept.is_some()) else {
            return Err(error);
        };
        step.kept = None;
        let rows = step.rows();
        self.halve(rows, rows, error)?;
        work(self)
    }

    /// Backward through the towers into the flat gradient, whose old content is lost.
    pub(super) fn towers_backward(
        &mut self,
        step: Step,
        d_f: &Tensor,
        d_g: &Tensor,
        ready: &mut Ready<'_>,
    ) -> Result<()> {
        let Step {
            inputs,
            kept,
            mut micro_rows,
            ..
        } = step;
        let rows = inputs.lengths.len();
        if rows == 0 {
            self.params.grads.as_mut_slice().fill(0.0);
            return Ok(());
        }
        self.check_turns(&inputs.lanes)?;
        if kept.is_none() {
            // The loss may have found out that fewer rows fit.
            micro_rows = micro_rows.min(self.rows_fit);
        }
        let mut attempt = self.backward_all(&inputs, kept, micro_rows, [d_f, d_g], ready);
        while let Err(error) = attempt {
            self.halve(rows, micro_rows, error)?;
            micro_rows = self.rows_fit;
            // What was said to be ready once is not said again.
            let mut ask = |at: usize, _: &[f32]| ready(at, &[]);
            attempt = self.backward_all(&inputs, None, micro_rows, [d_f, d_g], &mut ask);
        }
        self.params.fetch_grads()
    }

    fn backward_all(
        &self,
        inputs: &Inputs,
        kept: Option<Kept>,
        micro_rows: usize,
        gradients: [&Tensor; 2],
        ready: &mut Ready<'_>,
    ) -> Result<()> {
        let rows = inputs.lengths.len();
        // All others are replaced by the first piece; of this one only the rows in use are written.
        // (What is not trained is never written: zero since the buffer was made.)
        if self.params.trains(&self.table_name()) {
            let _ = self.params.leaf(&self.table_name())?.grad.f_zero_()?;
        }
        let (mut sink, mut kept) = (Sink::Replace, kept);
        let mut statistics = Vec::new();
        for (start, len) in self.pieces(inputs, micro_rows) {
            ready(0, &[])?;
            let piece = match kept.take() {
                Some(kept) => kept,
                None => self.encode_piece(inputs, start, len, true)?.2,
            };
            statistics.extend_from_slice(piece.images.statistics());
            let cut = |x: &Tensor| x.f_narrow(0, start as i64, len as i64);
            let last = start + len == rows;
            let mut done = |prefix: &str| match last {
                true => self.tell_ready(prefix, ready),
                false => ready(0, &[]),
            };
            self.clip
                .vision
                .backward(piece.images, &cut(gradients[0])?, sink, &mut done)?;
            self.clip
                .text
                .backward(piece.texts, &cut(gradients[1])?, sink, &mut done)?;
            sink = Sink::Add;
        }
        self.stage_statistics(&statistics)
    }

    /// Tells of a block's gradients; they lie together, since names are sorted. Where they are not in main memory yet, it only
    /// asks whether to go on.
    fn tell_ready(&self, prefix: &str, ready: &mut Ready<'_>) -> Result<()> {
        if self.params.device() != tch::Device::Cpu {
            return ready(0, &[]);
        }
        let own = |name: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'));
        let table = self.params.table();
        let Some(first) = table.iter().position(|spec| own(&spec.name)) else {
            return ready(0, &[]);
        };
        let start = table[first].offset;
        let end = table[first..]
            .iter()
            .take_while(|spec| own(&spec.name))
            .map(|spec| spec.offset + spec.len)
            .last()
            .unwrap_or(start);
        ready(start, &self.params.grads.as_slice()[start..end])
    }
}
