//! How long a training step of a model takes here: a few real ones on random rows.

use super::Failure;
use crate::clip::{ModelConfig, Preprocess};
use crate::engine::{ApplyHyper, Engine, EngineError, GatheredLse, RowsIn, TorchEngine, TorchOptions};
use crate::model;
use argosy_common::exit::Exit;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Ids of a caption: what captions of the web have on average.
const CAPTION_IDS: usize = 14;
const ROWS_MAX: usize = 64;
/// No more steps once so much time has gone.
const ENOUGH: Duration = Duration::from_secs(2);
const STEPS_MAX: usize = 8;

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// The model.
    pub model: String,
    /// Rows of each step.
    pub rows: usize,
    /// Steps that were timed.
    pub steps: usize,
    /// Threads of one tensor operation.
    pub threads: usize,
    /// Images a second, of the median step.
    pub images_per_second: f64,
    /// Trained numbers.
    pub parameters: u64,
    /// Edge of an image in pixels.
    pub image_size: u32,
}

/// Trains a built-in model for about three seconds; the first step, which warms up, does not count.
///
/// # Errors
/// When there is no such model, or it does not fit here.
pub fn measure(name: &str, threads: usize) -> Result<Speed, Failure> {
    let config = ModelConfig::by_name(name).map_err(|e| (Exit::BadConfig, e.to_string()))?;
    let preprocess = Preprocess::default();
    let facts = model::describe(&config, &preprocess, false);
    let options = TorchOptions {
        threads,
        ..TorchOptions::default()
    };
    let failed = |e: EngineError| (Exit::JobFailed, e.to_string());
    let mut engine = TorchEngine::new(&config, &preprocess, options).map_err(failed)?;
    // Few rows first: how many make a step worth timing depends on the model.
    let mut rows = 4;
    let mut took = step(&mut engine, rows).map_err(failed)?;
    while rows < ROWS_MAX && took * 4 < ENOUGH {
        rows *= 2;
        took = step(&mut engine, rows).map_err(failed)?;
    }
    let mut times = Vec::new();
    let began = Instant::now();
    while times.is_empty() || (times.len() < STEPS_MAX && began.elapsed() < ENOUGH) {
        times.push(step(&mut engine, rows).map_err(failed)?);
    }
    times.sort();
    Ok(Speed {
        model: name.to_owned(),
        rows,
        steps: times.len(),
        threads,
        images_per_second: rows as f64 / times[times.len() / 2].as_secs_f64(),
        parameters: facts.parameters,
        image_size: facts.image_size,
    })
}

fn step(engine: &mut TorchEngine, rows: usize) -> Result<Duration, EngineError> {
    let (size, context) = (engine.image_size(), engine.context_length());
    let length = CAPTION_IDS.min(context);
    let pixels: Vec<u8> = (0..rows * size * size * 3)
        .map(|k| (k.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut tokens = vec![0i32; rows * context];
    for (row, ids) in tokens.chunks_mut(context).enumerate() {
        for (k, id) in ids[..length].iter_mut().enumerate() {
            *id = 1 + ((row * 131 + k * 977) % 49_000) as i32;
        }
        (ids[0], ids[length - 1]) = (49_406, 49_407);
    }
    let input = RowsIn {
        rows,
        pixels: &pixels,
        tokens: &tokens,
        lengths: &vec![length as u16; rows],
    };
    let own: Vec<u32> = (0..rows as u32).collect();
    let hyper = ApplyHyper {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.98,
        eps: 1e-6,
        weight_decay: 0.1,
        clip_norm: None,
        ema_decay: None,
    };
    let began = Instant::now();
    let features = engine.encode(&input, rows)?;
    let lse = engine.own_lse(&own, rows, &features.f, &features.g)?;
    let gathered = GatheredLse {
        r: &lse.r,
        c: &lse.c,
        diag: &lse.diag,
    };
    engine.loss_backward(&gathered)?;
    engine.apply(&hyper)?;
    Ok(began.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_speed_is_a_number_and_an_unknown_model_is_named() {
        let speed = measure("demo-tiny", 1).unwrap();
        assert!(
            speed.images_per_second > 0.0 && speed.images_per_second.is_finite(),
            "{speed:?}"
        );
        let (exit, message) = measure("ViT-Q-7", 1).unwrap_err();
        assert_eq!(exit, Exit::BadConfig);
        assert!(message.contains("ViT-Q-7"), "{message}");
    }
}
