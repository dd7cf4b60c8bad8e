//! Reads a folder made by `tests/peers/dump.py`.

use crate::clip::config::VisionKind;
use crate::clip::weights::append_f32;
use crate::clip::{ModelConfig, Preprocess};
use crate::engine::{ApplyHyper, Engine, EngineError, Result, TensorSpec, TorchEngine, TorchOptions};
use crate::optim::DecayRule;
use argosy_common::config::Loss;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// OpenCLIP's loss and gradients in double precision.
const DOUBLES: &str = "golden64.safetensors";

/// Inputs of one golden step.
#[derive(Debug, Clone)]
pub struct GoldenBatch {
    /// `[rows, 3, S, S]`, normalised.
    pub images: Vec<f32>,
    /// `[rows, context]`.
    pub tokens: Vec<i32>,
    /// `[rows]`, up to and including the largest id, where OpenCLIP pools.
    pub lengths: Vec<u16>,
    /// `[rows]`, from which dropped patches follow (rule X3); empty for a model that drops none.
    pub draws: Vec<u64>,
}

/// A golden folder in memory.
#[derive(Debug)]
pub struct Golden {
    dir: PathBuf,
    /// `golden.json`.
    pub meta: serde_json::Value,
    config: ModelConfig,
    preprocess: Preprocess,
    floats: BTreeMap<String, Vec<f32>>,
    doubles: BTreeMap<String, Vec<f64>>,
    tokens: BTreeMap<String, Vec<i32>>,
    draws: BTreeMap<String, Vec<u64>>,
    first: Vec<f32>,
    table: Vec<TensorSpec>,
    rows: usize,
    steps: usize,
    whole_steps: usize,
    /// Different batches, taken in turn; as many as there are steps unless `golden.json` says otherwise.
    distinct: usize,
}

impl Golden {
    /// Reads and checks all four files of `dir`.
    ///
    /// # Errors
    /// Names the file or key that is missing or unfit.
    pub fn open(dir: &Path) -> Result<Self> {
        let meta: serde_json::Value =
            serde_json::from_slice(&read(dir, "golden.json")?).map_err(|e| at(dir, "golden.json", e))?;
        let text =
            String::from_utf8(read(dir, "open_clip_config.json")?).map_err(|e| at(dir, "open_clip_config.json", e))?;
        let (mut config, preprocess) = ModelConfig::from_json(&text)?;
        if loss_of(&meta) == Loss::Siglip {
            // dump.py gives OpenCLIP scale and bias beside the configuration, as open_clip_train does.
            config.make_siglip();
        }
        let options = TorchOptions {
            loss: loss_of(&meta),
            ..TorchOptions::default()
        };
        let mut engine = TorchEngine::new(&config, &preprocess, options)?;
        engine
            .load_weights(&read(dir, "open_clip_model.safetensors")?)
            .map_err(|e| at(dir, "open_clip_model.safetensors", e))?;
        let mut this = Self {
            dir: dir.to_owned(),
            meta,
            config,
            preprocess,
            floats: BTreeMap::new(),
            doubles: BTreeMap::new(),
            tokens: BTreeMap::new(),
            draws: BTreeMap::new(),
            first: engine.params().values.as_slice().to_vec(),
            table: engine.params().trained().to_vec(),
            rows: 0,
            steps: 0,
            whole_steps: 0,
            distinct: usize::MAX,
        };
        this.read_tensors(&read(dir, "golden.safetensors")?)?;
        if dir.join(DOUBLES).is_file() {
            this.read_doubles(&read(dir, DOUBLES)?)?;
        }
        Ok(this)
    }

    fn read_doubles(&mut self, bytes: &[u8]) -> Result<()> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| at(&self.dir, DOUBLES, e))?;
        for (name, tensor) in file.iter().filter(|(_, t)| t.dtype() == Dtype::F64) {
            let values = tensor.data().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b));
            self.doubles.insert(name.to_owned(), values.collect());
        }
        Ok(())
    }

    fn read_tensors(&mut self, bytes: &[u8]) -> Result<()> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| at(&self.dir, "golden.safetensors", e))?;
        for (name, tensor) in file.iter() {
            if tensor.dtype() == Dtype::I64 {
                let whole = tensor.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b));
                if name.ends_with(".draws") {
                    self.draws.insert(name.to_owned(), whole.map(|n| n as u64).collect());
                } else {
                    self.tokens.insert(name.to_owned(), whole.map(|n| n as i32).collect());
                }
            } else {
                let mut values = Vec::new();
                append_f32(name, tensor.dtype(), tensor.data(), &mut values)?;
                self.floats.insert(name.to_owned(), values);
            }
        }
        self.steps = (0..)
            .take_while(|step| self.floats.contains_key(&format!("step{step}.loss")))
            .count();
        self.whole_steps = (0..self.steps)
            .take_while(|step| self.floats.contains_key(&format!("step{step}.param.logit_scale")))
            .count();
        if let Some(distinct @ 1..) = self.meta["args"]["distinct"].as_u64() {
            self.distinct = distinct as usize;
        }
        self.rows = self.tensor("step0.image_features")?.len() / self.config.embed_dim as usize;
        if self.rows < 2 {
            return Err(at(
                &self.dir,
                "golden.safetensors",
                format!("{} rows; two or more expected", self.rows),
            ));
        }
        Ok(())
    }

    /// Rows of the batch.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Steps that were dumped.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The first of them, of which there is more than the loss.
    #[must_use]
    pub fn whole_steps(&self) -> usize {
        self.whole_steps
    }

    /// OpenCLIP's loss of a step.
    ///
    /// # Errors
    /// When the file has none.
    pub fn loss(&self, step: usize) -> Result<f64> {
        let loss = self.tensor(&format!("step{step}.loss"))?;
        Ok(loss.first().map_or(f64::NAN, |v| f64::from(*v)))
    }

    /// The model's flat order.
    #[must_use]
    pub fn table(&self) -> &[TensorSpec] {
        &self.table
    }

    /// Lanes the golden values were made with; 1 says nothing about lanes for a model without BatchNorm.
    #[must_use]
    pub fn lanes(&self) -> Option<usize> {
        let lanes = self.meta["args"]["lanes"].as_u64().map_or(1, |n| n as usize);
        (lanes > 1 || self.has_batch_norm()).then_some(lanes)
    }

    /// Whether the model has BatchNorm.
    #[must_use]
    pub fn has_batch_norm(&self) -> bool {
        matches!(self.config.vision.kind, VisionKind::ResNet(_))
    }

    /// Loss and gradients of a step in double precision, where the folder has them.
    #[must_use]
    pub fn double(&self, key: &str) -> Option<&[f64]> {
        self.doubles.get(key).map(Vec::as_slice)
    }

    /// Learning rate and decay of the dump.
    #[must_use]
    pub fn hyper(&self) -> ApplyHyper {
        let arg = |key: &str, default: f64| self.meta["args"][key].as_f64().unwrap_or(default);
        super::hyper(arg("lr", 5e-4), arg("wd", 0.2))
    }

    /// Whether there is a float tensor of this key.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.floats.contains_key(key)
    }

    /// A float tensor by its key.
    ///
    /// # Errors
    /// When the file has no such key.
    pub fn tensor(&self, key: &str) -> Result<Vec<f32>> {
        let found = self.floats.get(key).cloned();
        found.ok_or_else(|| at(&self.dir, "golden.safetensors", format!("key {key:?} is missing")))
    }

    /// `stepN.{kind}.*` of all parameters in the flat order.
    ///
    /// # Errors
    /// Names the key that is missing or misshapen.
    pub fn flat(&self, step: usize, kind: &str) -> Result<Vec<f32>> {
        let mut out = Vec::with_capacity(self.first.len());
        for spec in &self.table {
            let key = format!("step{step}.{kind}.{}", spec.name);
            // What the loss does not see (a bias under the softmax loss) has no gradient, and no key.
            let unseen = kind == "grad" && !self.floats.contains_key(&key);
            let moved = || self.floats.contains_key(&format!("step{step}.param.{}", spec.name));
            let values = if unseen && moved() {
                vec![0.0; spec.len]
            } else {
                self.tensor(&key)?
            };
            if values.len() != spec.len {
                let why = format!("{key:?} has {} values, the model needs {}", values.len(), spec.len);
                return Err(at(&self.dir, "golden.safetensors", why));
            }
            out.extend(values);
        }
        Ok(out)
    }

    /// Parameters at the beginning of a step.
    ///
    /// # Errors
    /// As [`Golden::flat`].
    pub fn params_before(&self, step: usize) -> Result<Vec<f32>> {
        if step == 0 {
            Ok(self.first.clone())
        } else {
            let mut params = self.flat(step - 1, "param")?;
            // Running statistics have no say in training.
            params.extend_from_slice(&self.first[params.len()..]);
            Ok(params)
        }
    }

    /// Inputs of a step.
    ///
    /// # Errors
    /// When they are missing.
    pub fn batch(&self, step: usize) -> Result<GoldenBatch> {
        let draws = self.draws.get(&format!("step{step}.draws")).cloned();
        let drops = self.config.vision.vit().is_some_and(|vit| vit.patch_dropout > 0.0);
        if drops && draws.is_none() {
            let why = "the model drops patches, and only the project's own tests/peers/dump.py tells which";
            return Err(at(&self.dir, "golden.safetensors", why));
        }
        let step = step % self.distinct;
        let images = self.tensor(&format!("step{step}.images"))?;
        let key = format!("step{step}.texts");
        let tokens = self.tokens.get(&key).cloned();
        let tokens = tokens.ok_or_else(|| at(&self.dir, "golden.safetensors", format!("key {key:?} is missing")))?;
        let end = |row: &[i32]| {
            let best = row
                .iter()
                .enumerate()
                .max_by_key(|(i, id)| (**id, std::cmp::Reverse(*i)));
            best.map_or(0, |(i, _)| i as u16 + 1)
        };
        let lengths = tokens
            .chunks(self.config.text.context_length as usize)
            .map(end)
            .collect();
        Ok(GoldenBatch {
            images,
            tokens,
            lengths,
            draws: draws.unwrap_or_default(),
        })
    }

    /// A fresh engine with the first parameters.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn engine(&self, tile: usize) -> Result<TorchEngine> {
        let options = TorchOptions {
            decay: decay_of(&self.meta),
            tile,
            loss: loss_of(&self.meta),
            ..TorchOptions::default()
        };
        let mut engine = TorchEngine::new(&self.config, &self.preprocess, options)?;
        engine.set_params(&self.first)?;
        Ok(engine)
    }
}

/// What decays in the dump: OpenCLIP's released rule, or that of its main branch.
fn decay_of(meta: &serde_json::Value) -> DecayRule {
    match meta["args"]["decay"].as_str() {
        Some("main") => DecayRule::Main,
        _ => DecayRule::Classic,
    }
}

fn loss_of(meta: &serde_json::Value) -> Loss {
    match meta["args"]["siglip"].as_bool() {
        Some(true) => Loss::Siglip,
        _ => Loss::Clip,
    }
}

fn read(dir: &Path, name: &str) -> Result<Vec<u8>> {
    std::fs::read(dir.join(name)).map_err(|e| at(dir, name, format!("{e}; make the folder with tests/peers/dump.py")))
}

fn at(dir: &Path, name: &str, why: impl std::fmt::Display) -> EngineError {
    EngineError::State(format!("{}: {why}", dir.join(name).display()))
}
