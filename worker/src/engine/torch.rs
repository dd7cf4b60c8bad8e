//! The engine that trains: libtorch on one thread.

use super::{
    ApplyHyper, ApplyOut, Encoded, Engine, EngineError, GatheredLse, LossOut, OwnLse, Result, RowsIn,
    STATE_CHUNK_BYTES, SparseTable, TensorSpec, expect_len, hash_state_bytes,
};
use crate::clip::params::LOGIT_SCALE_MAX;
use crate::clip::text::TextOut;
use crate::clip::{Clip, Images, ModelConfig, Params, Preprocess, to_vec};
use crate::loss::{self, OwnRows};
use crate::optim::{AdamW, DecayRule};
use argosy_torch_ext::{FlatBuffer, backward};
use std::collections::BTreeMap;
use tch::Tensor;

/// What a [`TorchEngine`] needs to know beyond the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TorchOptions {
    /// Initial weights are a function of this and the configuration.
    pub seed: u64,
    /// Threads inside one operation, for the whole process; 0 leaves libtorch's choice.
    pub threads: usize,
    /// What decays.
    pub decay: DecayRule,
    /// Edge of a tile of logits.
    pub tile: usize,
}

impl Default for TorchOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            threads: 1,
            decay: DecayRule::Classic,
            tile: 2048,
        }
    }
}

/// CLIP on libtorch.
#[derive(Debug)]
pub struct TorchEngine {
    config: ModelConfig,
    options: TorchOptions,
    params: Params,
    clip: Clip,
    adam: AdamW,
    scale_at: usize,
    /// Rows of the token table that this step's captions use, ascending.
    touched: Vec<u32>,
    step: Option<Step>,
    /// Steps of lanes put aside, with the rows of the token table that each uses.
    parked: BTreeMap<u32, (Step, Vec<u32>)>,
}

/// What one step holds between calls.
#[derive(Debug)]
struct Step {
    pieces: Pieces,
    rows: usize,
    loss: Option<OwnRows>,
}

#[derive(Debug)]
enum Pieces {
    /// No rows of our own.
    None,
    /// Features with their graph.
    Kept { images: Tensor, texts: TextOut },
    /// Inputs, to be encoded again piece by piece (GradCache, Gao et al. 2021).
    Again { inputs: Inputs, micro_rows: usize },
}

#[derive(Debug)]
struct Inputs {
    images: Images,
    tokens: Vec<i32>,
    lengths: Vec<u16>,
}

/// Sets libtorch's threads inside one operation, for the whole process; 0 leaves its own choice.
pub fn set_threads(threads: usize) {
    if let Ok(threads @ 1..) = i32::try_from(threads) {
        tch::set_num_threads(threads);
    }
}

impl TorchEngine {
    /// A model with initial weights drawn from `options.seed`.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn new(config: &ModelConfig, preprocess: &Preprocess, options: TorchOptions) -> Result<Self> {
        set_threads(options.threads);
        let params = Params::new(config, options.seed)?;
        let clip = Clip::new(config, preprocess, &params)?;
        let adam = AdamW::new(&params, options.decay)?;
        let scale_at = params.spec("logit_scale")?.offset;
        Ok(Self {
            config: config.clone(),
            options,
            params,
            clip,
            adam,
            scale_at,
            touched: Vec::new(),
            step: None,
            parked: BTreeMap::new(),
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Parameters and gradients.
    #[must_use]
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Overwrites the weights from a safetensors file's bytes; moments become zero.
    ///
    /// # Errors
    /// Names the key that is missing, unexpected or misshapen; nothing is written then.
    pub fn load_weights(&mut self, bytes: &[u8]) -> Result<()> {
        let values = crate::clip::weights::read_flat(&self.params, bytes)?;
        self.set_params(&values)
    }

    /// Moments and the count of updates, for tools; training changes them through [`Engine::apply`] only.
    #[must_use]
    pub fn optimizer(&self) -> &AdamW {
        &self.adam
    }

    /// As [`Engine::encode`] for images that are floats already, `[n, 3, S, S]`, normalised.
    ///
    /// # Errors
    /// When lengths do not fit each other.
    pub fn encode_floats(
        &mut self,
        images: &[f32],
        tokens: &[i32],
        lengths: &[u16],
        micro_rows: usize,
    ) -> Result<Encoded> {
        let s = self.image_size();
        expect_len("images", lengths.len() * 3 * s * s, images.len())?;
        let shape = [lengths.len() as i64, 3, s as i64, s as i64];
        let images = Images::Floats(Tensor::f_from_slice(images)?.f_view(shape)?);
        self.begin(
            Inputs {
                images,
                tokens: tokens.to_vec(),
                lengths: lengths.to_vec(),
            },
            micro_rows,
        )
    }

    fn begin(&mut self, inputs: Inputs, micro_rows: usize) -> Result<Encoded> {
        self.step = None;
        let (rows, dim, micro_rows) = (inputs.lengths.len(), self.feature_dim(), micro_rows.max(1));
        expect_len("tokens", rows * self.context_length(), inputs.tokens.len())?;
        self.touched = used_ids(&inputs.tokens, &inputs.lengths, self.context_length());
        let mut out = Encoded {
            dim,
            f: Vec::new(),
            g: Vec::new(),
        };
        let pieces = if rows == 0 {
            Pieces::None
        } else if rows <= micro_rows {
            let images = self.clip.vision.encode(&inputs.images)?;
            let texts = self.clip.text.encode(&inputs.tokens, &inputs.lengths)?;
            (out.f, out.g) = (to_vec(&images)?, to_vec(&texts.features)?);
            Pieces::Kept { images, texts }
        } else {
            let _guard = tch::no_grad_guard();
            for (start, len) in pieces_of(rows, micro_rows) {
                let (images, texts) = self.encode_piece(&inputs, start, len)?;
                out.f.extend(to_vec(&images)?);
                out.g.extend(to_vec(&texts.features)?);
            }
            Pieces::Again { inputs, micro_rows }
        };
        self.step = Some(Step {
            pieces,
            rows,
            loss: None,
        });
        Ok(out)
    }

    fn encode_piece(&self, inputs: &Inputs, start: usize, len: usize) -> Result<(Tensor, TextOut)> {
        let context = self.context_length();
        let images = self
            .clip
            .vision
            .encode(&inputs.images.narrow(start as i64, len as i64)?)?;
        let tokens = &inputs.tokens[start * context..(start + len) * context];
        let texts = self.clip.text.encode(tokens, &inputs.lengths[start..start + len])?;
        Ok((images, texts))
    }

    fn byte_images(&self, rows: usize, pixels: &[u8]) -> Result<Images> {
        let s = self.image_size();
        expect_len("pixels", rows * s * s * 3, pixels.len())?;
        Ok(Images::Bytes(Tensor::f_from_slice(pixels)?.f_view([
            rows as i64,
            s as i64,
            s as i64,
            3,
        ])?))
    }

    /// Backward through the towers; adds into the flat gradient.
    fn towers_backward(&self, pieces: Pieces, rows: usize, d_f: &Tensor, d_g: &Tensor) -> Result<()> {
        match pieces {
            Pieces::None => Ok(()),
            Pieces::Kept { images, texts } => {
                backward(&[&images, &texts.features], &[d_f, d_g])?;
                self.clip.text.finish_backward(&texts)
            }
            Pieces::Again { inputs, micro_rows } => {
                for (start, len) in pieces_of(rows, micro_rows) {
                    let (images, texts) = self.encode_piece(&inputs, start, len)?;
                    let cut = |x: &Tensor| x.f_narrow(0, start as i64, len as i64);
                    backward(&[&images, &texts.features], &[&cut(d_f)?, &cut(d_g)?])?;
                    self.clip.text.finish_backward(&texts)?;
                }
                Ok(())
            }
        }
    }
}

fn pieces_of(rows: usize, micro_rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows)
        .step_by(micro_rows)
        .map(move |start| (start, micro_rows.min(rows - start)))
}

/// The different ids up to each caption's end, ascending.
fn used_ids(tokens: &[i32], lengths: &[u16], context: usize) -> Vec<u32> {
    let read = tokens
        .chunks(context)
        .zip(lengths)
        .flat_map(|(row, len)| row.iter().take(usize::from(*len)));
    let ids: std::collections::BTreeSet<u32> = read.filter_map(|id| u32::try_from(*id).ok()).collect();
    ids.into_iter().collect()
}

fn matrix(what: &'static str, values: &[f32], rows: usize, dim: usize) -> Result<Tensor> {
    expect_len(what, rows * dim, values.len())?;
    Ok(Tensor::f_from_slice(values)?.f_view([rows as i64, dim as i64])?)
}

impl Engine for TorchEngine {
    fn feature_dim(&self) -> usize {
        self.config.embed_dim as usize
    }

    fn image_size(&self) -> usize {
        self.config.vision.image_size as usize
    }

    fn context_length(&self) -> usize {
        self.config.text.context_length as usize
    }

    fn logit_scale(&self) -> f64 {
        f64::from(self.params.values.as_slice()[self.scale_at]).exp()
    }

    fn encode(&mut self, rows: &RowsIn<'_>, micro_rows: usize) -> Result<Encoded> {
        expect_len("lengths", rows.rows, rows.lengths.len())?;
        let images = self.byte_images(rows.rows, rows.pixels)?;
        self.begin(
            Inputs {
                images,
                tokens: rows.tokens.to_vec(),
                lengths: rows.lengths.to_vec(),
            },
            micro_rows,
        )
    }

    fn own_lse(&mut self, own: &[u32], valid_rows: usize, f_all: &[f32], g_all: &[f32]) -> Result<OwnLse> {
        let (dim, scale, tile) = (self.feature_dim(), self.logit_scale(), self.options.tile);
        let step = self
            .step
            .as_mut()
            .ok_or_else(|| EngineError::Protocol("own_lse before encode".into()))?;
        expect_len("own", step.rows, own.len())?;
        let (f, g) = (
            matrix("f_all", f_all, valid_rows, dim)?,
            matrix("g_all", g_all, valid_rows, dim)?,
        );
        let (rows, lse) = OwnRows::begin(&f, &g, own, scale, tile)?;
        step.loss = Some(rows);
        Ok(OwnLse {
            r: to_vec(&lse.r)?,
            c: to_vec(&lse.c)?,
            diag: to_vec(&lse.diag)?,
        })
    }

    fn loss_backward(&mut self, all: &GatheredLse<'_>) -> Result<LossOut> {
        let step = self
            .step
            .take()
            .ok_or_else(|| EngineError::Protocol("loss_backward before encode".into()))?;
        let own = step
            .loss
            .ok_or_else(|| EngineError::Protocol("loss_backward before own_lse".into()))?;
        expect_len("diag", all.r.len(), all.diag.len())?;
        self.params.grads.as_mut_slice().fill(0.0);
        let (r, c) = (Tensor::f_from_slice(all.r)?, Tensor::f_from_slice(all.c)?);
        let grads = own.finish(&r, &c, &Tensor::f_from_slice(all.diag)?)?;
        self.towers_backward(step.pieces, step.rows, &grads.d_f, &grads.d_g)?;
        self.params.grads.as_mut_slice()[self.scale_at] = grads.d_log_scale as f32;
        Ok(LossOut {
            loss: loss::value(all.r, all.c),
        })
    }

    fn park(&mut self, lane: u32) -> Result<()> {
        let step = self.step.take();
        let step = step.ok_or_else(|| EngineError::Protocol(format!("no step to put aside for lane {lane}")))?;
        self.parked.insert(lane, (step, std::mem::take(&mut self.touched)));
        Ok(())
    }

    fn resume(&mut self, lane: u32) -> Result<()> {
        let parked = self.parked.remove(&lane);
        let (step, touched) =
            parked.ok_or_else(|| EngineError::Protocol(format!("nothing was put aside for lane {lane}")))?;
        (self.step, self.touched) = (Some(step), touched);
        Ok(())
    }

    fn forget_parked(&mut self) {
        self.parked.clear();
    }

    fn grads_flat(&mut self) -> Result<&mut [f32]> {
        Ok(self.params.grads.as_mut_slice())
    }

    fn sparse_table(&self) -> Option<SparseTable> {
        let spec = self.params.spec("token_embedding.weight").ok()?;
        let width = self.config.text.width as usize;
        Some(SparseTable {
            offset: spec.offset,
            rows: spec.len / width,
            width,
        })
    }

    fn touched_rows(&self) -> &[u32] {
        &self.touched
    }

    fn apply(&mut self, hyper: &ApplyHyper) -> Result<ApplyOut> {
        self.step = None;
        let grad_norm = self.adam.step(&mut self.params, hyper)?;
        let scale = &mut self.params.values.as_mut_slice()[self.scale_at];
        *scale = scale.clamp(0.0, LOGIT_SCALE_MAX as f32);
        Ok(ApplyOut {
            grad_norm,
            logit_scale: self.logit_scale(),
        })
    }

    fn tensor_table(&self) -> Vec<TensorSpec> {
        self.params.table().to_vec()
    }

    fn state_elements(&self) -> usize {
        self.params.values.len()
    }

    fn applied_steps(&self) -> u64 {
        self.adam.applied
    }

    fn export_state(&self, out: &mut Vec<u8>) {
        out.clear();
        out.reserve(self.state_len());
        for buffer in [&self.params.values, &self.adam.exp_avg, &self.adam.exp_avg_sq] {
            out.extend_from_slice(buffer.as_bytes());
        }
        out.extend_from_slice(&self.adam.applied.to_le_bytes());
    }

    fn import_state(&mut self, bytes: &[u8], expected_hash: Option<u64>) -> Result<()> {
        expect_len("state bytes", self.state_len(), bytes.len())?;
        if expected_hash.is_some_and(|h| h != hash_state_bytes(bytes)) {
            return Err(EngineError::State(
                "the state's hash differs from the one announced; fetch it again".into(),
            ));
        }
        self.step = None;
        let (arrays, count) = bytes.split_at(12 * self.state_elements());
        let buffers = [
            &mut self.params.values,
            &mut self.adam.exp_avg,
            &mut self.adam.exp_avg_sq,
        ];
        for (buffer, bytes) in buffers.into_iter().zip(arrays.chunks(arrays.len() / 3)) {
            for (value, b) in buffer.as_mut_slice().iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_le_bytes(*b);
            }
        }
        self.adam.applied = count.as_chunks().0.first().map_or(0, |b| u64::from_le_bytes(*b));
        Ok(())
    }

    fn state_hash(&self) -> u64 {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for buffer in [&self.params.values, &self.adam.exp_avg, &self.adam.exp_avg_sq] {
            hash.update(buffer.as_bytes());
        }
        hash.update(&self.adam.applied.to_le_bytes());
        hash.digest()
    }

    fn chunk_hashes(&self) -> Vec<u64> {
        let arrays = [&self.params.values, &self.adam.exp_avg, &self.adam.exp_avg_sq].map(FlatBuffer::as_bytes);
        let chunks = arrays.into_iter().flat_map(|array| array.chunks(STATE_CHUNK_BYTES));
        let count = self.adam.applied.to_le_bytes();
        chunks.chain([&count[..]]).map(hash_state_bytes).collect()
    }

    fn set_params(&mut self, params: &[f32]) -> Result<()> {
        expect_len("parameters", self.state_elements(), params.len())?;
        self.step = None;
        self.params.values.as_mut_slice().copy_from_slice(params);
        self.adam.exp_avg.as_mut_slice().fill(0.0);
        self.adam.exp_avg_sq.as_mut_slice().fill(0.0);
        self.adam.applied = 0;
        Ok(())
    }

    fn encode_images_eval(&mut self, rows: usize, pixels: &[u8], micro_rows: usize) -> Result<Vec<f32>> {
        let images = self.byte_images(rows, pixels)?;
        let _guard = tch::no_grad_guard();
        let mut out = Vec::with_capacity(rows * self.feature_dim());
        for (start, len) in pieces_of(rows, micro_rows.max(1)) {
            out.extend(to_vec(
                &self.clip.vision.encode(&images.narrow(start as i64, len as i64)?)?,
            )?);
        }
        Ok(out)
    }

    fn encode_text_eval(
        &mut self,
        rows: usize,
        tokens: &[i32],
        lengths: &[u16],
        micro_rows: usize,
    ) -> Result<Vec<f32>> {
        let context = self.context_length();
        expect_len("tokens", rows * context, tokens.len())?;
        expect_len("lengths", rows, lengths.len())?;
        let _guard = tch::no_grad_guard();
        let mut out = Vec::with_capacity(rows * self.feature_dim());
        for (start, len) in pieces_of(rows, micro_rows.max(1)) {
            let texts = self.clip.text.encode(
                &tokens[start * context..][..len * context],
                &lengths[start..start + len],
            )?;
            out.extend(to_vec(&texts.features)?);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests;
