use super::*;
use crate::clip::{ModelConfig, Params, weights};
use crate::engine::ToyEngine;
use crate::eval::ModelArgs;
use std::fs;

#[test]
fn score_counts_top1_top5_classes_and_subcategories() {
    // Class c has the unit vector e_c; the sample's features are its logits.
    let weights: Vec<f32> = (0..36).map(|i| if i % 7 == 0 { 1.0 } else { 0.0 }).collect();
    let names: Vec<String> = ["a", "a", "b", "b", "b", "c"].map(Into::into).to_vec();
    let mut score = Score::new(6, Some(&names));
    score.add(&[0.9, 0.5, 0.4, 0.3, 0.2, 0.1], &weights, 0); // right
    score.add(&[0.9, 0.5, 0.4, 0.3, 0.2, 0.1], &weights, 1); // second, same subcategory as the first
    score.add(&[0.9, 0.5, 0.4, 0.3, 0.2, 0.1], &weights, 5); // sixth
    score.add(&[0.5; 6], &weights, 0); // all equal: the lower class goes first
    let report = score.report();
    assert_eq!((report.samples, report.top1, report.top5), (4, 0.5, 0.75));
    assert!(
        (report.mean_per_class - 1.0 / 3.0).abs() < 1e-12,
        "{}",
        report.mean_per_class
    );
    let sub = report.subcategories.unwrap();
    assert_eq!((sub.top1, sub.count), (0.75, 3));
    assert!((sub.chance - (2.0 + 2.0 + 1.0 + 2.0) / 4.0 / 6.0).abs() < 1e-12);
    assert!((report.chance - 1.0 / 6.0).abs() < 1e-12);
}

#[test]
fn classifier_rows_are_normalised_means_of_normalised_prompts() {
    let mut engine = ToyEngine::new(2, 8, 3, 1);
    let (classes, templates) = (
        ["cat".to_owned(), "dog".into()],
        ["{}".to_owned(), "a {}".into(), "{} x".into()],
    );
    let tokenizer = Tokenizer::new(8);
    let weights = classifier(&mut engine, &tokenizer, &classes, &templates, 2).unwrap();
    for (class, row) in classes.iter().zip(weights.chunks(4)) {
        let mut sum = [0.0f64; 4];
        for template in &templates {
            let mut tokens = [0; 8];
            let length = tokenizer.row(&template.replace("{}", class), &mut tokens);
            let feature = engine.encode_text_eval(1, &tokens, &[length], 1).unwrap();
            sum.iter_mut().zip(feature).for_each(|(s, f)| *s += f64::from(f));
        }
        let norm = sum.iter().map(|v| v * v).sum::<f64>().sqrt();
        for (got, want) in row.iter().zip(sum) {
            assert!((f64::from(*got) - want / norm).abs() < 1e-6);
        }
    }
}

#[test]
fn lines_empty_one_is_allowed_at_the_end_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("classes.txt");
    fs::write(&path, "cat\r\ndog \n\n  \n").unwrap();
    assert_eq!(lines(&path).unwrap(), ["cat", "dog"]);
    fs::write(&path, "cat\n \ndog\n").unwrap();
    let (exit, message) = lines(&path).unwrap_err();
    assert_eq!(exit, Exit::Usage);
    assert!(
        message.contains("line 2 of ") && message.contains("classes.txt"),
        "{message}"
    );
    fs::write(&path, "\n\n").unwrap();
    assert_eq!(lines(&path).unwrap_err().0, Exit::BadConfig);
}

/// One tar record.
fn record(name: &str, data: &[u8]) -> Vec<u8> {
    let mut out = vec![0u8; 512];
    out[..name.len()].copy_from_slice(name.as_bytes());
    out[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    out[156] = b'0';
    out[257..263].copy_from_slice(b"ustar\0");
    out[148..156].fill(b' ');
    let sum: u32 = out.iter().map(|b| u32::from(*b)).sum();
    out[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().div_ceil(512) * 512, 0);
    out
}

/// Evaluates two pictures with a model of random weights; `change` is applied to its configuration and weights before.
fn evaluate(change: impl Fn(&mut serde_json::Value, &mut Params)) -> Result<Report, Failure> {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let config = ModelConfig::by_name("demo-tiny").unwrap();
    let mut params = Params::new(&config, 5).unwrap();
    let mut published = serde_json::json!({"model_cfg": config.source});
    change(&mut published, &mut params);
    fs::write(at("open_clip_config.json"), published.to_string()).unwrap();
    fs::write(at("open_clip_model.safetensors"), weights::save(&params).unwrap()).unwrap();
    fs::write(at("classes"), "red\ngreen\n").unwrap();
    fs::write(at("templates"), "{}\na {}\n").unwrap();
    let pictures = concat!(env!("CARGO_MANIFEST_DIR"), "/../shard-loader/tests/goldens/pictures");
    let picture = fs::read(format!("{pictures}/rgb.png")).unwrap();
    let members = [
        ("0.png", &picture[..]),
        ("0.cls", b"0"),
        ("1.png", &picture),
        ("1.cls", b"1"),
    ];
    let shard: Vec<u8> = members.iter().flat_map(|(name, data)| record(name, data)).collect();
    fs::write(at("t.tar"), [shard, vec![0; 1024]].concat()).unwrap();
    run(&EvalArgs {
        how: ModelArgs::default(),
        checkpoint: folder.path().to_path_buf(),
        data: at("t.tar").display().to_string(),
        classes: at("classes"),
        templates: at("templates"),
        subcategories: None,
        image_key: "png".into(),
        max_image_pixels: 1 << 20,
        predictions: None,
        batch: 4,
        threads: Some(1),
    })
}

#[test]
fn run_with_weights_that_are_not_finite_fails_and_says_where() {
    assert_eq!(evaluate(|_, _| {}).unwrap().samples, 2);
    for (tensor, value, whose) in [
        ("visual.proj", f32::NAN, "sample 0"),
        ("text_projection", f32::NAN, "class `red` with template `{}`"),
        ("visual.proj", f32::INFINITY, "sample 0"),
    ] {
        let (exit, message) = evaluate(|_, params| {
            let at = params.spec(tensor).unwrap().offset;
            params.values.as_mut_slice()[at] = value;
        })
        .unwrap_err();
        assert_eq!(exit, Exit::JobFailed);
        assert!(message.contains(whose) && message.contains("not finite"), "{message}");
    }
}

#[test]
fn run_refuses_what_the_configuration_asks_and_nobody_does() {
    let asks = |pointer: &'static str, key: &'static str, value: serde_json::Value| {
        evaluate(move |published, _| {
            published["preprocess_cfg"] = serde_json::json!({});
            published.pointer_mut(pointer).unwrap()[key] = value.clone();
        })
    };
    assert_eq!(
        asks("/preprocess_cfg", "resize_mode", "squash".into()).unwrap().samples,
        2
    );
    for (pointer, key, value) in [
        ("/preprocess_cfg", "resize_mode", "widest".into()),
        ("/preprocess_cfg", "interpolation", "nearest".into()),
        ("/model_cfg/text_cfg", "vocab_size", 512.into()),
        ("/model_cfg/text_cfg", "context_length", 1.into()),
    ] {
        let (exit, message) = asks(pointer, key, value).unwrap_err();
        assert_eq!(exit, Exit::BadConfig);
        assert!(message.contains(key), "{message} does not name {key}");
    }
}
