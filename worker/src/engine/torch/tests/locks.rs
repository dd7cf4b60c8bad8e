use super::*;
use crate::clip::locks::Locks;

fn locked(image: Option<u32>, text: Option<u32>) -> TorchEngine {
    engine_with(TorchOptions {
        seed: 5,
        locks: Locks {
            image,
            text,
            freeze_bn_stats: false,
        },
        ..TorchOptions::default()
    })
}

#[test]
fn engine_locked_gradient_is_the_whole_ones_where_it_is_trained_and_zero_elsewhere() {
    let (mut free, batch) = (locked(None, None), batch(7));
    let loss = forward_backward(&mut free, &batch, 7);
    let whole = free.grads_flat().unwrap().to_vec();
    for (image, text) in [
        (Some(0), None),
        (Some(1), None),
        (Some(2), Some(0)),
        (Some(3), Some(1)),
        (Some(9), Some(2)),
        (Some(0), Some(3)),
        (Some(0), Some(0)),
    ] {
        for micro in [7, 3] {
            let mut engine = locked(image, text);
            // A step before leaves nothing that is taken for this one's.
            forward_backward(&mut engine, &super::batch(4), 4);
            let mut told = Vec::new();
            let out = engine.encode(&batch.rows(), micro).unwrap();
            let own: Vec<u32> = (0..7).collect();
            let lse = engine.own_lse(&own, 7, &out.f, &out.g).unwrap();
            let gathered = GatheredLse {
                r: &lse.r,
                c: &lse.c,
                diag: &lse.diag,
            };
            let mut ready = |at: usize, part: &[f32]| {
                told.push((at, part.to_vec()));
                Ok(())
            };
            let now = engine.loss_backward_overlapped(&gathered, &mut ready).unwrap().loss;
            assert!((now - loss).abs() <= 1e-5, "{image:?} {text:?}: {now} {loss}");
            let table = engine.params().trained().to_vec();
            let frozen = engine.options.locks.frozen(&engine.config).unwrap();
            let got = engine.grads_flat().unwrap().to_vec();
            for spec in &table {
                let range = spec.offset..spec.offset + spec.len;
                let (ours, theirs) = (&got[range.clone()], &whole[range]);
                if frozen.contains(&spec.name) {
                    assert!(ours.iter().all(|v| *v == 0.0), "{image:?} {text:?} {}", spec.name);
                } else {
                    let far = theirs.iter().zip(ours).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(far <= 1e-5, "{image:?} {text:?} {}: {far}", spec.name);
                }
            }
            for (at, part) in told {
                assert!(got[at..at + part.len()] == part, "{image:?} {text:?}: told too early");
            }
        }
    }
}

#[test]
fn engine_locked_weights_keep_their_bits_and_take_no_part_in_the_norm() {
    let (mut engine, mut free, batch) = (locked(Some(1), Some(2)), locked(None, None), batch(8));
    let frozen = engine.options.locks.frozen(&engine.config).unwrap();
    let before = engine.params().values.as_slice().to_vec();
    forward_backward(&mut free, &batch, 8);
    let table = engine.params().trained().to_vec();
    let trained = table.iter().filter(|spec| !frozen.contains(&spec.name));
    let whole = free.grads_flat().unwrap();
    let squares: f64 = trained
        .flat_map(|spec| &whole[spec.offset..spec.offset + spec.len])
        .map(|v| f64::from(*v).powi(2))
        .sum();
    for step in 0..4 {
        forward_backward(&mut engine, &batch, 8);
        let done = engine.apply(&HYPER).unwrap();
        if step == 0 {
            let norm = squares.sqrt();
            assert!(
                (done.grad_norm - norm).abs() <= 1e-5 * norm,
                "{} {norm}",
                done.grad_norm
            );
        }
    }
    for spec in &table {
        let range = spec.offset..spec.offset + spec.len;
        let same = engine.params().values.as_slice()[range.clone()] == before[range.clone()];
        assert_eq!(same, frozen.contains(&spec.name), "{}", spec.name);
        if frozen.contains(&spec.name) {
            assert!(engine.optimizer().exp_avg.as_slice()[range].iter().all(|v| *v == 0.0));
        }
    }
    assert!(engine.touched_rows().is_empty(), "the token table is locked");
}

fn resnet(freeze_bn_stats: bool) -> TorchEngine {
    let text = r#"{"embed_dim": 8, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 4, "head_width": 8},
        "text_cfg": {"context_length": 9, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}}"#;
    let (config, preprocess) = ModelConfig::from_json(text).unwrap();
    let options = TorchOptions {
        locks: Locks {
            image: Some(0),
            text: None,
            freeze_bn_stats,
        },
        ..TorchOptions::default()
    };
    let mut engine = TorchEngine::new(&config, &preprocess, options).unwrap();
    // Statistics that a pass of its own would not give.
    let mut values = engine.params().values.as_slice().to_vec();
    for spec in engine.params().buffers().to_vec() {
        values[spec.offset..spec.offset + spec.len].fill(if spec.name.ends_with("_var") { 2.0 } else { 0.25 });
    }
    engine.set_params(&values).unwrap();
    engine
}

#[test]
fn engine_locked_resnet_uses_its_statistics_as_they_are_only_where_they_are_frozen() {
    let mut batch = batch(6);
    batch.pixels = (0..6 * 32 * 32 * 3).map(|k| ((k * k / 7) % 251) as u8).collect();
    for frozen in [true, false] {
        let mut engine = resnet(frozen);
        let before = engine.params().values.as_slice().to_vec();
        let evaluated = engine.encode_images_eval(6, &batch.pixels, 6).unwrap();
        let own: Vec<u32> = (0..6).collect();
        let out = engine.encode(&batch.rows(), 6).unwrap();
        assert_eq!(out.f == evaluated, frozen, "features in training");
        let lse = engine.own_lse(&own, 6, &out.f, &out.g).unwrap();
        let gathered = GatheredLse {
            r: &lse.r,
            c: &lse.c,
            diag: &lse.diag,
        };
        engine.loss_backward(&gathered).unwrap();
        engine.apply(&HYPER).unwrap();
        for spec in engine.params().table() {
            let range = spec.offset..spec.offset + spec.len;
            let same = engine.params().values.as_slice()[range.clone()] == before[range];
            let image = spec.name.starts_with("visual.");
            let statistic = engine.params().buffers().iter().any(|buffer| buffer.name == spec.name);
            assert_eq!(same, image && (frozen || !statistic), "{} frozen {frozen}", spec.name);
        }
    }
}
