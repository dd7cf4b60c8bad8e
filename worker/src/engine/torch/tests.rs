use super::*;

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
fn engine_reduced_by_touched_rows_equals_the_whole_sum() {
    let all = batch(9);
    let (mut workers, mut bitmaps, mut bitmap) = (vec![engine(11), engine(11)], Vec::new(), Vec::new());
    let table = workers[0].sparse_table().unwrap();
    for (worker, rows) in workers.iter_mut().zip([0..4usize, 4..9]) {
        let part = Batch {
            pixels: all.pixels[rows.start * 972..rows.end * 972].to_vec(),
            tokens: all.tokens[rows.start * 9..rows.end * 9].to_vec(),
            lengths: all.lengths[rows].to_vec(),
        };
        forward_backward(worker, &part, 9);
        table.bitmap(worker.touched_rows(), &mut bitmap);
        bitmaps.extend_from_slice(&bitmap);
    }
    let union = table.union(&bitmaps);
    assert!(union.len() < table.rows && union.contains(&62) && union.contains(&63));
    let other = workers[1].grads_flat().unwrap().to_vec();
    let whole: Vec<f32> = workers[0]
        .grads_flat()
        .unwrap()
        .iter()
        .zip(&other)
        .map(|(a, b)| a + b)
        .collect();
    // The other worker's slices in the order in which they are asked for.
    let end = table.offset + table.rows * table.width;
    let row = |r: &u32| other[table.offset + *r as usize * table.width..][..table.width].to_vec();
    let mut slices = vec![
        other[end..].to_vec(),
        union.iter().flat_map(row).collect(),
        other[..table.offset].to_vec(),
    ];
    let sum = |values: &mut [f32]| -> Result<()> {
        let theirs = slices.pop().unwrap();
        expect_len("slice", theirs.len(), values.len())?;
        values.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
        Ok(())
    };
    crate::engine::reduce_rows(&mut workers[0], &union, &mut Vec::new(), sum).unwrap();
    assert_eq!(workers[0].grads_flat().unwrap(), whole);
}
