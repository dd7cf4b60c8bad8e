use super::*;
use crate::engine::hash_state_bytes;
use argosy_common::config::Precision;

mod locks;
mod memory;

const HYPER: ApplyHyper = ApplyHyper {
    lr: 2e-3,
    beta1: 0.9,
    beta2: 0.98,
    eps: 1e-6,
    weight_decay: 0.1,
    clip_norm: Some(1.0),
    ema_decay: None,
};

fn engine(seed: u64) -> TorchEngine {
    let text = r#"{"embed_dim": 16, "vision_cfg": {"image_size": 18, "layers": 2, "width": 32, "head_width": 16,
        "patch_size": 8}, "text_cfg": {"context_length": 9, "vocab_size": 64, "width": 24, "heads": 2, "layers": 2}}"#;
    let (config, preprocess) = ModelConfig::from_json(text).unwrap();
    TorchEngine::new(
        &config,
        &preprocess,
        TorchOptions {
            seed,
            ..TorchOptions::default()
        },
    )
    .unwrap()
}

fn engine_with(options: TorchOptions) -> TorchEngine {
    let mut config = engine(0).config().clone();
    if options.loss == Loss::Siglip {
        config.make_siglip();
    }
    TorchEngine::new(&config, &Preprocess::default(), options).unwrap()
}

/// Relative difference of two gradients in the norm over all parameters.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / norm(&mut b.iter().map(|v| f64::from(*v)))
}

/// Rows whose picture and caption both follow from a class, so that there is something to learn.
struct Batch {
    pixels: Vec<u8>,
    tokens: Vec<i32>,
    lengths: Vec<u16>,
}

fn batch(rows: usize) -> Batch {
    let mut out = Batch {
        pixels: Vec::new(),
        tokens: Vec::new(),
        lengths: Vec::new(),
    };
    for row in 0..rows {
        out.pixels
            .extend((0..18 * 18 * 3).map(|k| ((row * 53 + k * (row + 3)) % 256) as u8));
        let len = 3 + row % 6;
        let mut ids: Vec<i32> = (0..len as i32).map(|k| 1 + (row as i32 * 7 + k * 5) % 60).collect();
        ids[0] = 62;
        ids[len - 1] = 63;
        ids.resize(9, 0);
        out.tokens.extend(ids);
        out.lengths.push(len as u16);
    }
    out
}

impl Batch {
    fn rows(&self) -> RowsIn<'_> {
        RowsIn {
            rows: self.lengths.len(),
            pixels: &self.pixels,
            tokens: &self.tokens,
            lengths: &self.lengths,
        }
    }
}

/// Everything but `apply` for one worker that holds all rows.
fn forward_backward(engine: &mut TorchEngine, batch: &Batch, micro_rows: usize) -> f64 {
    let rows = batch.lengths.len();
    let out = engine.encode(&batch.rows(), micro_rows).unwrap();
    let own: Vec<u32> = (0..rows as u32).collect();
    let lse = engine.own_lse(&own, rows, &out.f, &out.g).unwrap();
    engine
        .loss_backward(&GatheredLse {
            r: &lse.r,
            c: &lse.c,
            diag: &lse.diag,
        })
        .unwrap()
        .loss
}

#[test]
fn engine_thirty_steps_on_one_batch_lower_the_loss() {
    let (mut engine, batch) = (engine(1), batch(12));
    let mut losses = Vec::new();
    for _ in 0..30 {
        losses.push(forward_backward(&mut engine, &batch, 12));
        engine.apply(&HYPER).unwrap();
    }
    assert!(losses[29] < 0.3 * losses[0], "{losses:?}");
    assert_eq!(engine.applied_steps(), 30);
}

#[test]
fn engine_micro_batches_give_the_gradient_of_the_whole() {
    let (mut engine, batch) = (engine(2), batch(11));
    let whole_loss = forward_backward(&mut engine, &batch, 11);
    let whole = engine.grads_flat().unwrap().to_vec();
    let size = whole.iter().map(|v| v.abs()).fold(0.0, f32::max);
    for micro in [1, 4, 10] {
        let loss = forward_backward(&mut engine, &batch, micro);
        let worst = engine
            .grads_flat()
            .unwrap()
            .iter()
            .zip(&whole)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(
            (loss - whole_loss).abs() < 1e-5 && worst < 1e-5 * size.max(1.0),
            "micro {micro}: {loss} {worst}"
        );
    }
}

#[test]
fn engine_byte_images_equal_floats_normalised_outside() {
    let (mut engine, batch) = (engine(3), batch(5));
    let bytes = engine.encode(&batch.rows(), 5).unwrap();
    let pre = Preprocess::default();
    let mut floats = vec![0.0f32; batch.pixels.len()];
    for (at, value) in batch.pixels.iter().enumerate() {
        let (row, pixel, channel) = (at / (324 * 3), at / 3 % 324, at % 3);
        let value = (f64::from(*value) / 255.0 - pre.mean[channel]) / pre.std[channel];
        floats[(row * 3 + channel) * 324 + pixel] = value as f32;
    }
    let other = engine.encode_floats(&floats, &batch.tokens, &batch.lengths, 5).unwrap();
    let worst = bytes
        .f
        .iter()
        .zip(&other.f)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(worst < 2e-6 && bytes.g == other.g, "{worst}");
}

#[test]
fn engine_rows_in_another_order_or_longer_padding_give_the_same_features() {
    let (mut engine, batch) = (engine(4), batch(10));
    let all = engine.encode_text_eval(10, &batch.tokens, &batch.lengths, 10).unwrap();
    for row in [0usize, 3, 9] {
        let one = engine
            .encode_text_eval(1, &batch.tokens[row * 9..][..9], &batch.lengths[row..=row], 1)
            .unwrap();
        let worst = one
            .iter()
            .zip(&all[row * 16..][..16])
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst < 2e-6, "row {row}: {worst}");
    }
}

#[test]
fn engine_two_workers_of_which_one_has_no_rows_equal_one() {
    let batch = batch(6);
    let (mut all, mut none) = (engine(5), engine(5));
    let out = all.encode(&batch.rows(), 6).unwrap();
    let empty = none
        .encode(
            &RowsIn {
                rows: 0,
                pixels: &[],
                tokens: &[],
                lengths: &[],
            },
            6,
        )
        .unwrap();
    assert!(empty.f.is_empty() && empty.g.is_empty());
    let lse = all.own_lse(&[0, 1, 2, 3, 4, 5], 6, &out.f, &out.g).unwrap();
    assert!(none.own_lse(&[], 6, &out.f, &out.g).unwrap().r.is_empty());
    let gathered = GatheredLse {
        r: &lse.r,
        c: &lse.c,
        diag: &lse.diag,
    };
    let (a, b) = (
        all.loss_backward(&gathered).unwrap(),
        none.loss_backward(&gathered).unwrap(),
    );
    assert_eq!(a, b);
    assert!(none.grads_flat().unwrap().iter().all(|g| *g == 0.0));
    assert!(all.grads_flat().unwrap().iter().any(|g| *g != 0.0));
}

#[test]
fn engine_state_travels_to_another_engine_bit_for_bit() {
    let (mut a, mut b, batch) = (engine(6), engine(7), batch(8));
    assert_ne!(a.state_hash(), b.state_hash());
    for _ in 0..2 {
        forward_backward(&mut a, &batch, 8);
        a.apply(&HYPER).unwrap();
    }
    let mut bytes = Vec::new();
    a.export_state(&mut bytes);
    assert_eq!((bytes.len(), hash_state_bytes(&bytes)), (a.state_len(), a.state_hash()));
    let before = b.state_hash();
    bytes[100] ^= 4;
    assert!(b.import_state(&bytes, Some(a.state_hash())).is_err() && b.state_hash() == before);
    assert!(b.import_state(&bytes[1..], None).is_err());
    bytes[100] ^= 4;
    b.import_state(&bytes, Some(a.state_hash())).unwrap();
    // The towers must see the new weights, and the next update must be the same.
    for engine in [&mut a, &mut b] {
        forward_backward(engine, &batch, 8);
        engine.apply(&HYPER).unwrap();
    }
    assert_eq!((a.state_hash(), b.applied_steps()), (b.state_hash(), 3));
}

#[test]
fn engine_nothing_before_apply_changes_the_state() {
    let (mut engine, batch) = (engine(8), batch(7));
    let before = engine.state_hash();
    forward_backward(&mut engine, &batch, 3);
    let gradient = engine.grads_flat().unwrap().to_vec();
    assert_eq!(engine.state_hash(), before);
    forward_backward(&mut engine, &batch, 3);
    assert_eq!(
        engine.grads_flat().unwrap(),
        gradient,
        "a step done again gives the same bits"
    );
}

#[test]
fn engine_scale_is_clamped_to_a_hundred() {
    let mut engine = engine(9);
    let mut params = engine.params().values.as_slice().to_vec();
    params[engine.scale_at] = 4.6;
    engine.set_params(&params).unwrap();
    let scale_at = engine.scale_at;
    engine.grads_flat().unwrap().fill(0.0);
    engine.grads_flat().unwrap()[scale_at] = -1.0;
    let out = engine.apply(&ApplyHyper { lr: 0.1, ..HYPER }).unwrap();
    assert!((out.logit_scale - 100.0).abs() < 1e-4, "{out:?}");
}

#[test]
fn engine_calls_out_of_order_or_of_wrong_size_are_refused() {
    let (mut engine, batch) = (engine(10), batch(4));
    assert!(engine.own_lse(&[0], 1, &[0.0; 16], &[0.0; 16]).is_err());
    let out = engine.encode(&batch.rows(), 4).unwrap();
    assert!(
        engine.own_lse(&[0, 1, 2], 4, &out.f, &out.g).is_err(),
        "three places for four rows"
    );
    assert!(engine.own_lse(&[0, 1, 2, 3], 4, &out.f[1..], &out.g).is_err());
    assert!(
        engine
            .encode(
                &RowsIn {
                    pixels: &batch.pixels[1..],
                    ..batch.rows()
                },
                4
            )
            .is_err()
    );
    let mut tokens = batch.tokens.clone();
    tokens[9] = 64;
    let error = engine
        .encode(
            &RowsIn {
                tokens: &tokens,
                ..batch.rows()
            },
            4,
        )
        .unwrap_err()
        .to_string();
    assert!(error.contains("caption 1") && error.contains("64"), "{error}");
}

#[test]
fn engine_short_of_memory_halves_its_micro_batches_and_says_so() {
    for loss in [Loss::Clip, Loss::Siglip] {
        let options = TorchOptions {
            loss,
            ..TorchOptions::default()
        };
        let (mut roomy, mut short, batch) = (engine_with(options), engine_with(options), batch(9));
        short.rows_allowed = 3;
        let want = forward_backward(&mut roomy, &batch, usize::MAX);
        let got = forward_backward(&mut short, &batch, usize::MAX);
        assert!((want - got).abs() < 1e-5, "{want} and {got}");
        let difference = apart(short.grads_flat().unwrap(), roomy.grads_flat().unwrap());
        assert!(difference < 1e-5, "{loss:?}: {difference}");
        let notices = short.take_notices();
        assert!(
            notices[0].contains("9 rows") && notices.last().unwrap().contains("micro-batches of 3"),
            "{notices:?}"
        );
        // It remembers: the next step begins with what fits.
        forward_backward(&mut short, &batch, usize::MAX);
        assert!(short.take_notices().is_empty() && roomy.take_notices().is_empty());
    }
}

#[test]
fn engine_without_memory_for_one_row_or_with_fixed_shapes_gives_up() {
    for (allowed, fixed_shapes) in [(0, false), (3, true)] {
        let mut engine = engine_with(TorchOptions {
            fixed_shapes,
            ..TorchOptions::default()
        });
        engine.rows_allowed = allowed;
        let batch = batch(4);
        let own = [0u32, 1, 2, 3];
        let error = engine.encode(&batch.rows(), usize::MAX).and_then(|out| {
            let lse = engine.own_lse(&own, 4, &out.f, &out.g)?;
            let (r, c, diag) = (&lse.r, &lse.c, &lse.diag);
            engine.loss_backward(&GatheredLse { r, c, diag })
        });
        assert!(error.unwrap_err().is_out_of_memory());
    }
}

#[test]
fn engine_checkpointed_gradients_have_the_same_bits() {
    let batch = batch(7);
    let gradient = |grad_checkpointing, micro_rows| {
        let mut engine = engine_with(TorchOptions {
            grad_checkpointing,
            ..TorchOptions::default()
        });
        forward_backward(&mut engine, &batch, micro_rows);
        engine.grads_flat().unwrap().to_vec()
    };
    for micro_rows in [3, 7] {
        assert!(gradient(true, micro_rows) == gradient(false, micro_rows));
    }
}

#[test]
fn engine_in_bfloat16_stays_near_single_precision_and_holds_rounded_weights() {
    let batch = batch(8);
    let run = |precision| {
        let mut engine = engine_with(TorchOptions {
            precision,
            ..TorchOptions::default()
        });
        let loss = forward_backward(&mut engine, &batch, 8);
        let gradient = engine.grads_flat().unwrap().to_vec();
        engine.apply(&HYPER).unwrap();
        (loss, gradient, engine)
    };
    let (loss, gradient, _) = run(Precision::Fp32);
    for precision in [Precision::AmpBf16, Precision::Bf16, Precision::PureBf16] {
        let (other, others, engine) = run(precision);
        assert!((loss - other).abs() < 2e-2 * loss, "{precision:?}: {loss} and {other}");
        let difference = apart(&others, &gradient);
        assert!(difference > 1e-6 && difference < 8e-2, "{precision:?}: {difference}");
        let whole = |v: &f32| v.to_bits() & 0xffff == 0;
        let rounded = engine.params().values.as_slice().iter().all(whole);
        assert_eq!(rounded, precision == Precision::PureBf16, "{precision:?}");
    }
}

#[test]
fn engine_average_of_weights_follows_its_decay_and_travels_with_the_state() {
    let options = TorchOptions {
        ema: true,
        ..TorchOptions::default()
    };
    let (mut engine, batch) = (engine_with(options), batch(6));
    let hyper = ApplyHyper {
        ema_decay: Some(0.75),
        ..HYPER
    };
    assert!(engine.apply(&HYPER).is_err(), "an average without its decay");
    let mut want: Vec<f32> = engine.params().values.as_slice().to_vec();
    for _ in 0..3 {
        forward_backward(&mut engine, &batch, 6);
        engine.apply(&hyper).unwrap();
        let values = engine.params().values.as_slice();
        want.iter_mut().zip(values).for_each(|(e, v)| *e += 0.25 * (v - *e));
    }
    let average = engine.ema().unwrap().as_slice();
    assert!(average.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-6));
    let mut bytes = Vec::new();
    engine.export_state(&mut bytes);
    assert_eq!(bytes.len(), engine.state_len());
    let mut other = engine_with(TorchOptions { seed: 5, ..options });
    other.import_state(&bytes, Some(engine.state_hash())).unwrap();
    for engine in [&mut engine, &mut other] {
        forward_backward(engine, &batch, 6);
        engine.apply(&hyper).unwrap();
    }
    assert_eq!(engine.state_hash(), other.state_hash());
}

#[test]
fn engine_told_to_give_up_makes_no_other_block_and_begins_anew() {
    let (mut engine, batch) = (engine(13), batch(6));
    forward_backward(&mut engine, &batch, 6);
    let want = engine.grads_flat().unwrap().to_vec();
    // At the first block, and in the first piece of a way back in pieces.
    for micro_rows in [6, 2] {
        let out = engine.encode(&batch.rows(), micro_rows).unwrap();
        let lse = engine.own_lse(&[0, 1, 2, 3, 4, 5], 6, &out.f, &out.g).unwrap();
        let (r, c, diag) = (&lse.r, &lse.c, &lse.diag);
        let mut asked = 0;
        let ended = engine.loss_backward_overlapped(&GatheredLse { r, c, diag }, &mut |_, _| {
            asked += 1;
            if asked > 1 { Err(EngineError::GivenUp) } else { Ok(()) }
        });
        assert!(
            matches!(ended, Err(EngineError::GivenUp)) && asked == 2,
            "{ended:?}, asked {asked} times"
        );
        assert!(engine.take_notices().is_empty());
    }
    forward_backward(&mut engine, &batch, 6);
    assert!(engine.grads_flat().unwrap() == want);
}

#[test]
fn engine_tells_of_every_block_once_with_its_final_gradient() {
    let (mut engine, batch) = (engine(12), batch(5));
    for micro_rows in [2, 5] {
        let out = engine.encode(&batch.rows(), micro_rows).unwrap();
        let lse = engine.own_lse(&[0, 1, 2, 3, 4], 5, &out.f, &out.g).unwrap();
        let (r, c, diag) = (&lse.r, &lse.c, &lse.diag);
        let mut heard: Vec<(usize, Vec<f32>)> = Vec::new();
        engine
            .loss_backward_overlapped(&GatheredLse { r, c, diag }, &mut |at, values| {
                if !values.is_empty() {
                    heard.push((at, values.to_vec()));
                }
                Ok(())
            })
            .unwrap();
        assert_eq!(heard.len(), 4, "two towers of two blocks");
        let flat = engine.grads_flat().unwrap();
        for (at, values) in &heard {
            assert!(flat[*at..*at + values.len()] == **values);
        }
        heard.sort_by_key(|(at, _)| *at);
        assert!(heard.windows(2).all(|pair| pair[0].0 + pair[0].1.len() <= pair[1].0));
    }
}
