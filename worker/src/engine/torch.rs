//! The engine that trains: libtorch on one thread.

mod options;
mod passes;
mod state;
mod statistics;

pub use options::TorchOptions;

use super::{
    ApplyHyper, ApplyOut, Encoded, Engine, EngineError, GatheredLse, LossOut, OwnLse, Ready, Result, RowsIn,
    SparseTable, TensorSpec, expect_len,
};
use crate::clip::params::LOGIT_SCALE_MAX;
use crate::clip::{Clip, Images, ModelConfig, Params, Preprocess, to_vec};
use crate::engine::state::{ReadGate, StateRead};
use crate::loss::{self, OwnRows};
use crate::optim::{AdamW, Treatment};
use crate::weights::WeightFile;
use crate::weights::fit::{Part, fit};
use argosy_common::config::Loss;
use argosy_torch_ext::{FlatBuffer, exact_cuda, pool_install};
use passes::{Inputs, Step, StepLoss, pieces_of};
use std::collections::BTreeMap;
use tch::{Device, Tensor};

/// CLIP on libtorch.
#[derive(Debug)]
pub struct TorchEngine {
    config: ModelConfig,
    options: TorchOptions,
    params: Params,
    clip: Clip,
    adam: AdamW,
    /// Moving average of the weights `[P]`, where one is kept.
    ema: Option<FlatBuffer>,
    scale_at: usize,
    bias_at: Option<usize>,
    /// Rows of the token table that this step's captions use, ascending.
    touched: Vec<u32>,
    /// Who copies the state for a checkpoint; everything that writes it waits for them.
    gate: ReadGate,
    step: Option<Step>,
    /// Lanes and draws of the step that comes next, where they were told.
    coming: Option<(Vec<usize>, Vec<u64>)>,
    /// Turn of each own lane among all lanes with rows, and how many those are (rule BN1).
    turns: Option<(Vec<usize>, usize)>,
    /// Steps of lanes put aside, with the rows of the token table that each uses.
    parked: BTreeMap<u32, (Step, Vec<u32>)>,
    /// Rows that memory holds at once, as far as is known.
    rows_fit: usize,
    /// What people should hear of, since they were last told.
    notices: Vec<String>,
    /// Rows beyond which a test wants memory to be short.
    #[cfg(test)]
    rows_allowed: usize,
}

/// Sets libtorch's threads inside one operation, for the whole process; 0 leaves its own choice.
pub fn set_threads(threads: usize) {
    if let Ok(threads @ 1..) = i32::try_from(threads) {
        tch::set_num_threads(threads);
    }
}

impl TorchEngine {
    /// A model with initial weights drawn from `options.seed`. The sigmoid loss needs a model with a bias: see
    /// [`ModelConfig::make_siglip`].
    ///
    /// # Errors
    /// When memory cannot be had, or the model does not fit the loss.
    pub fn new(config: &ModelConfig, preprocess: &Preprocess, options: TorchOptions) -> Result<Self> {
        set_threads(options.threads);
        pool_install();
        if options.device != Device::Cpu {
            exact_cuda(options.fixed_shapes);
        }
        let mut params = Params::held(config, options.seed, options.held())?;
        params.lock(options.locks.frozen(config)?, options.locks.freeze_bn_stats);
        let clip = Clip::new(config, preprocess, &params)?;
        let (images, texts) = (config.vision.depth(), config.text.stack.layers);
        let adam = AdamW::new(&params, |spec| {
            params.trains(&spec.name).then(|| Treatment {
                decays: options.decay.decays(&spec.name, &spec.shape),
                lr_factor: options.layer_decay.factor(&spec.name, images, texts),
            })
        })?;
        let scale_at = params.spec("logit_scale")?.offset;
        let bias_at = params.spec("logit_bias").ok().map(|spec| spec.offset);
        // (The softmax loss does not see a bias; its gradient is zero there.)
        if options.loss == Loss::Siglip && bias_at.is_none() {
            let why = "the sigmoid loss needs a model with init_logit_bias";
            return Err(EngineError::State(why.into()));
        }
        let mut ema = options
            .ema
            .then(|| FlatBuffer::zeros(params.values.len()))
            .transpose()?;
        if let Some(ema) = &mut ema {
            ema.as_mut_slice().copy_from_slice(params.values.as_slice());
        }
        Ok(Self {
            config: config.clone(),
            options,
            params,
            clip,
            adam,
            ema,
            scale_at,
            bias_at,
            touched: Vec::new(),
            gate: ReadGate::default(),
            step: None,
            coming: None,
            turns: None,
            parked: BTreeMap::new(),
            rows_fit: usize::MAX,
            notices: Vec::new(),
            #[cfg(test)]
            rows_allowed: usize::MAX,
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Both towers.
    pub(crate) fn clip(&self) -> &Clip {
        &self.clip
    }

    /// Parameters and gradients.
    #[must_use]
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Moving average of the weights `[P]`, where one is kept.
    #[must_use]
    pub fn ema(&self) -> Option<&FlatBuffer> {
        self.ema.as_ref()
    }

    /// Overwrites the weights from a weight file's bytes; moments become zero.
    ///
    /// # Errors
    /// As [`TorchEngine::load`].
    pub fn load_weights(&mut self, bytes: &[u8]) -> Result<()> {
        self.load(&WeightFile::of_bytes(bytes.to_vec())?, Part::Whole)
    }

    /// Overwrites the weights of `part` from a file; moments become zero.
    ///
    /// # Errors
    /// Lists what is missing, unexpected or misshapen; nothing is written then.
    pub fn load(&mut self, file: &WeightFile, part: Part) -> Result<()> {
        let mut values = self.params.values.as_slice().to_vec();
        fit(file, &self.config, &self.params, part, &mut values)?;
        self.set_params(&values)
    }

    /// Sets what one more length group of captions costs, in token positions; for benches that look for the best.
    pub fn set_group_cost(&mut self, positions: usize) {
        self.clip.text.set_group_cost(positions);
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
        self.begin(Inputs::new(images, tokens, lengths), micro_rows)
    }

    fn byte_images(&self, rows: usize, pixels: &[u8]) -> Result<Images> {
        let s = self.image_size();
        expect_len("pixels", rows * s * s * 3, pixels.len())?;
        let shape = [rows as i64, s as i64, s as i64, 3];
        Ok(Images::Bytes(Tensor::f_from_slice(pixels)?.f_view(shape)?))
    }

    /// Name of the token table.
    fn table_name(&self) -> String {
        format!("{}token_embedding.weight", self.config.text_prefix())
    }

    /// The learned bias of the logits, where there is one.
    fn logit_bias(&self) -> f64 {
        self.bias_at
            .map_or(0.0, |at| f64::from(self.params.values.as_slice()[at]))
    }
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
        self.begin(Inputs::new(images, rows.tokens, rows.lengths), micro_rows)
    }

    fn own_lse(&mut self, own: &[u32], valid_rows: usize, f_all: &[f32], g_all: &[f32]) -> Result<OwnLse> {
        let dim = self.feature_dim();
        let rows = self
            .step
            .as_ref()
            .map(Step::rows)
            .ok_or_else(|| EngineError::Protocol("own_lse before encode".into()))?;
        expect_len("own", rows, own.len())?;
        let device = self.options.device;
        let (f, g) = (
            matrix("f_all", f_all, valid_rows, dim)?.f_to_device(device)?,
            matrix("g_all", g_all, valid_rows, dim)?.f_to_device(device)?,
        );
        let (scale, bias, tile) = (self.logit_scale(), self.logit_bias(), self.options.tile);
        let (out, begun) = match self.options.loss {
            Loss::Clip => {
                let (rows, lse) = self.retry(|_| OwnRows::begin(&f, &g, own, scale, tile))?;
                let out = OwnLse {
                    r: to_vec(&lse.r)?,
                    c: to_vec(&lse.c)?,
                    diag: to_vec(&lse.diag)?,
                };
                (out, StepLoss::Softmax(rows))
            }
            Loss::Siglip => {
                let done = self.retry(|_| loss::sigmoid(&f, &g, own, scale, bias, tile))?;
                let zeros = vec![0.0; own.len()];
                let out = OwnLse {
                    r: to_vec(&done.rows)?,
                    c: zeros.clone(),
                    diag: zeros,
                };
                (out, StepLoss::Sigmoid(done))
            }
        };
        if let Some(step) = &mut self.step {
            step.loss = Some(begun);
        }
        Ok(out)
    }

    fn loss_backward(&mut self, all: &GatheredLse<'_>) -> Result<LossOut> {
        self.loss_backward_overlapped(all, &mut |_, _| Ok(()))
    }

    fn loss_backward_overlapped(&mut self, all: &GatheredLse<'_>, ready: &mut Ready<'_>) -> Result<LossOut> {
        let step = self
            .step
            .as_mut()
            .ok_or_else(|| EngineError::Protocol("loss_backward before encode".into()))?;
        let begun = step
            .loss
            .take()
            .ok_or_else(|| EngineError::Protocol("loss_backward before own_lse".into()))?;
        expect_len("diag", all.r.len(), all.diag.len())?;
        let (grads, d_bias, value) = match begun {
            StepLoss::Softmax(mut rows) => {
                let on_device =
                    |v: &[f32]| -> Result<Tensor> { Ok(Tensor::f_from_slice(v)?.f_to_device(self.options.device)?) };
                let (r, c, diag) = (on_device(all.r)?, on_device(all.c)?, on_device(all.diag)?);
                // The step is still in its place, so that what it keeps can be given up for the tiles.
                let grads = self.retry(|_| rows.finish(&r, &c, &diag))?;
                (grads, 0.0, loss::value(all.r, all.c))
            }
            StepLoss::Sigmoid(done) => (done.grads, done.d_bias, loss::sigmoid_value(all.r)),
        };
        let step = self
            .step
            .take()
            .ok_or_else(|| EngineError::Protocol("loss_backward without its step".into()))?;
        argosy_torch_ext::record::mark(crate::profile::TOWERS_BACKWARD);
        self.turns_default(step.lanes());
        self.towers_backward(step, &grads.d_f, &grads.d_g, ready)?;
        let flat = self.params.grads.as_mut_slice();
        flat[self.scale_at] = grads.d_log_scale as f32;
        if let Some(at) = self.bias_at {
            flat[at] = d_bias as f32;
        }
        Ok(LossOut { loss: value })
    }

    fn begin_lanes(&mut self, rows: &[usize], draws: &[u64]) {
        self.coming = Some((rows.to_vec(), draws.to_vec()));
    }

    fn lane_turns(&mut self, turns: &[usize], of: usize) {
        self.turns = Some((turns.to_vec(), of));
    }

    fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
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
        let spec = self.params.spec(&self.table_name()).ok()?;
        let width = self.config.text.stack.width as usize;
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
        self.gate.wait();
        self.step = None;
        if hyper.ema_decay.is_some() != self.ema.is_some() {
            let why = "a moving average needs its decay at every update, and only then is there one";
            return Err(EngineError::Protocol(why.into()));
        }
        let grad_norm = self.adam.step(&mut self.params, hyper)?;
        let scale = &mut self.params.values.as_mut_slice()[self.scale_at];
        *scale = scale.clamp(0.0, LOGIT_SCALE_MAX as f32);
        self.apply_statistics();
        self.params.round()?;
        if let (Some(ema), Some(decay)) = (&self.ema, hyper.ema_decay) {
            let mut average = ema.tensor().shallow_clone();
            let _ = average.f_lerp_(self.params.values.tensor(), 1.0 - decay)?;
            self.copy_counts()?;
        }
        self.params.refresh()?;
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

    fn state_arrays(&self) -> usize {
        self.arrays().len()
    }

    fn export_state(&self, out: &mut Vec<u8>) {
        self.export_bytes(out);
    }

    fn state_reader(&self) -> Box<dyn StateRead> {
        Box::new(self.reader())
    }

    fn wait_for_readers(&self) {
        self.gate.wait();
    }

    fn import_state(&mut self, bytes: &[u8], expected_hash: Option<u64>) -> Result<()> {
        self.import_bytes(bytes, expected_hash)
    }

    fn state_hash(&self) -> u64 {
        self.hash_bytes()
    }

    fn chunk_hashes(&self) -> Vec<u64> {
        self.hash_chunks()
    }

    fn set_params(&mut self, params: &[f32]) -> Result<()> {
        self.start_from(params)
    }

    fn encode_images_eval(&mut self, rows: usize, pixels: &[u8], micro_rows: usize) -> Result<Vec<f32>> {
        let images = self.byte_images(rows, pixels)?;
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
        let mut out = Vec::with_capacity(rows * self.feature_dim());
        for (start, len) in pieces_of(rows, micro_rows.max(1)) {
            let tokens = &tokens[start * context..][..len * context];
            out.extend(to_vec(&self.clip.text.encode(tokens, &lengths[start..start + len])?)?);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests;
