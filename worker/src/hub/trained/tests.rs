use super::*;
use crate::model::{resolve, resolve_towers};
use serde_json::{Value, json};

/// Released under this name: QuickGELU, OpenAI's pixels.
const QUICK: &str = "x/vit_b_32-quickgelu-laion400m_e32-46683a32.pt";

fn job(name: &str, tag: &str) -> config::ModelConfig {
    config::ModelConfig {
        name: name.into(),
        pretrained: Some("weights.pt".into()),
        pretrained_tag: Some(tag.into()),
        ..config::ModelConfig::default()
    }
}

fn named(name: &str) -> config::ModelConfig {
    config::ModelConfig {
        name: name.into(),
        ..config::ModelConfig::default()
    }
}

fn refused(job: &config::ModelConfig) -> String {
    resolve_towers(job, Path::new(".")).unwrap_err().to_string()
}

fn preprocess(job: &config::ModelConfig) -> Preprocess {
    resolve_towers(job, Path::new(".")).unwrap().1
}

/// A folder with a configuration, and a file of weights that nobody reads.
fn hub(model: &Value, preprocess: &Value) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let text = json!({"model_cfg": model, "preprocess_cfg": preprocess});
    std::fs::write(folder.path().join(HUB_CONFIG), text.to_string()).unwrap();
    std::fs::write(folder.path().join("epoch_9.pt"), "weights").unwrap();
    let path = folder.path().to_string_lossy().into_owned();
    (folder, path)
}

fn model_of(name: &str) -> Value {
    ModelConfig::by_name(name).unwrap().source
}

#[test]
fn weights_under_the_wrong_activation_are_refused_with_the_published_cost() {
    let wrong = job("ViT-B-32", "laion400m_e32");
    let error = refused(&wrong);
    assert!(
        error.contains("62.9 -> 60.2 %") && error.contains("pretrained_mismatch"),
        "{error}"
    );
    resolve(&job("ViT-B-32-quickgelu", "laion400m_e32"), Path::new(".")).unwrap();
    for allowed in [
        config::ModelConfig {
            force_quick_gelu: true,
            ..wrong.clone()
        },
        config::ModelConfig {
            pretrained_mismatch: true,
            ..wrong
        },
    ] {
        resolve(&allowed, Path::new(".")).unwrap();
    }
    let other = job("ViT-B-32-quickgelu", "laion2b_s34b_b79k");
    let error = refused(&other);
    assert!(
        error.contains("trained with GELU") && error.contains("for laion400m_e32 62.9"),
        "{error}"
    );
    let file = config::ModelConfig {
        pretrained: Some(QUICK.into()),
        ..named("ViT-B-32")
    };
    assert!(refused(&file).contains("62.9 -> 60.2 %"));
}

#[test]
fn towers_under_the_wrong_activation_are_refused_by_their_own_key() {
    let image = config::ModelConfig {
        pretrained_image_path: Some(QUICK.into()),
        ..named("ViT-B-32")
    };
    let text = config::ModelConfig {
        pretrained_text_path: Some(QUICK.into()),
        ..named("ViT-B-16")
    };
    for (key, job) in [("pretrained_image_path", &image), ("pretrained_text_path", &text)] {
        let error = refused(job);
        assert!(error.contains(key) && error.contains("62.9 -> 60.2 %"), "{error}");
        let allowed = config::ModelConfig {
            pretrained_mismatch: true,
            ..job.clone()
        };
        resolve(&allowed, Path::new(".")).unwrap();
    }
    // No activation of CLIP's ResNets is a GELU.
    let (_folder, quick) = hub(&model_of("RN50-quickgelu"), &Value::Null);
    let resnet = config::ModelConfig {
        pretrained_image_path: Some(quick.clone()),
        ..named("RN50")
    };
    resolve(&resnet, Path::new(".")).unwrap();
    let whole = config::ModelConfig {
        pretrained: Some(quick),
        ..named("RN50")
    };
    assert!(refused(&whole).contains("trained with QuickGELU"));
}

#[test]
fn towers_of_two_activations_are_refused_whatever_the_model_has() {
    let (_folder, plain) = hub(&model_of("ViT-B-32"), &Value::Null);
    for name in ["ViT-B-32", "ViT-B-32-quickgelu"] {
        let both = config::ModelConfig {
            pretrained_image_path: Some(plain.clone()),
            pretrained_text_path: Some(QUICK.into()),
            ..named(name)
        };
        let error = refused(&both);
        assert!(
            error.contains("model.pretrained_text_path")
                && error.contains("model.pretrained_image_path")
                && error.contains("one activation"),
            "{error}"
        );
        // Of a whole model whose towers are both replaced nothing is left that could differ.
        let replaced = config::ModelConfig {
            pretrained: Some(QUICK.into()),
            pretrained_text_path: Some(plain.clone()),
            ..both
        };
        assert_eq!(resolve_towers(&replaced, Path::new(".")).is_ok(), name == "ViT-B-32");
    }
}

#[test]
fn weights_bring_their_normalisation_and_refuse_another() {
    let large = job("ViT-L-14", "laion2b_s32b_b82k");
    let (_, preprocess) = resolve(&large, Path::new(".")).unwrap();
    assert_eq!((preprocess.mean, preprocess.std), ([0.5; 3], [0.5; 3]));
    let wrong = config::ModelConfig {
        image_mean: Some([0.48145466, 0.4578275, 0.40821073]),
        ..large
    };
    let error = refused(&wrong);
    assert!(
        error.contains("model.image_mean") && error.contains("[0.5, 0.5, 0.5]"),
        "{error}"
    );
}

#[test]
fn image_tower_brings_its_normalisation_and_the_text_tower_does_not() {
    let (model, mean) = (
        model_of("ViT-B-32"),
        |m: f64| json!({"mean": [m, m, m], "std": [m, m, m]}),
    );
    let (_whole, whole) = hub(&model, &mean(0.25));
    let (_image, image) = hub(&model, &mean(0.5));
    let (_text, text) = hub(&model, &mean(0.75));
    let job = |pretrained: bool, towers: [bool; 2]| config::ModelConfig {
        pretrained: pretrained.then(|| whole.clone()),
        pretrained_image_path: towers[0].then(|| image.clone()),
        pretrained_text_path: towers[1].then(|| text.clone()),
        ..named("ViT-B-32")
    };
    let own = Preprocess::default().mean[0];
    for (pretrained, towers, want) in [
        (true, [false, false], 0.25),
        (true, [true, false], 0.5),
        (true, [false, true], 0.25),
        (true, [true, true], 0.5),
        (false, [true, true], 0.5),
        (false, [false, true], own),
    ] {
        let mean = preprocess(&job(pretrained, towers)).mean;
        assert!((mean[0] - want).abs() < 1e-12, "{pretrained} {towers:?}: {mean:?}");
    }
    let wrong = config::ModelConfig {
        image_std: Some([0.25; 3]),
        ..job(true, [true, false])
    };
    let error = refused(&wrong);
    assert!(
        error.contains("model.pretrained_image_path") && error.contains("std"),
        "{error}"
    );
}

#[test]
fn tag_that_is_unknown_or_without_a_file_says_what_there_is() {
    let error = refused(&job("ViT-B-32", "laion400m_e33"));
    assert!(error.contains("laion400m_e32"), "{error}");
    let alone = config::ModelConfig {
        pretrained: None,
        ..job("ViT-B-32", "laion2b_s34b_b79k")
    };
    let instead = config::ModelConfig {
        pretrained: Some("laion2b_s34b_b79k".into()),
        pretrained_tag: None,
        ..alone.clone()
    };
    for job in [alone, instead] {
        let error = refused(&job);
        assert!(
            error.contains("nothing is downloaded") && error.contains("laion/CLIP-ViT-B-32"),
            "{error}"
        );
    }
}

#[test]
fn tag_of_a_model_by_its_file_is_looked_for_alone_and_must_mean_one_thing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.json");
    std::fs::write(&file, model_of("ViT-B-32").to_string()).unwrap();
    let with = |name: &str, tag: &str| config::ModelConfig {
        config: Some(file.to_string_lossy().into_owned()),
        ..job(name, tag)
    };
    for name in ["", "my-own"] {
        resolve(&with(name, "laion2b_s34b_b79k"), Path::new(".")).unwrap();
        let error = refused(&with(name, "nobodys"));
        assert!(error.contains("\"nobodys\" is none of open_clip's tags"), "{error}");
        // Of many models, all trained alike; what it costs this one is not known.
        let error = refused(&with(name, "openai"));
        assert!(
            error.contains("trained with QuickGELU")
                && error.contains("openai in open_clip")
                && error.contains("not published for these"),
            "{error}"
        );
        let error = refused(&with(name, "laion400m_e32"));
        assert!(
            error.contains("ViT-B-32, ViT-B-16") && error.contains("different ways") && error.contains("model.name"),
            "{error}"
        );
    }
    assert!(refused(&with("ViT-B-32", "laion400m_e32")).contains("62.9 -> 60.2 %"));
    let nothing = config::ModelConfig {
        pretrained: None,
        ..with("", "laion2b_s34b_b79k")
    };
    assert!(refused(&nothing).contains("nothing is downloaded"));
}

#[test]
fn folder_or_file_whose_configuration_differs_from_the_job_is_refused_by_what_differs() {
    let (folder, path) = hub(&model_of("ViT-B-32-quickgelu"), &json!({"mean": [0.1, 0.2, 0.3]}));
    let file = folder.path().join("epoch_9.pt").to_string_lossy().into_owned();
    for place in [path, file] {
        let of = |name: &str| config::ModelConfig {
            pretrained: Some(place.clone()),
            ..named(name)
        };
        assert!(refused(&of("ViT-B-32")).contains("trained with QuickGELU"));
        assert_eq!(preprocess(&of("ViT-B-32-quickgelu")).mean, [0.1, 0.2, 0.3]);
        // Its model as well, where the job names none.
        let (built, read) = resolve(&of(""), Path::new(".")).unwrap();
        assert!(built.quick_gelu && read.mean == [0.1, 0.2, 0.3]);
    }
    // What is not there lies beside nothing.
    let missing = config::ModelConfig {
        pretrained: Some(folder.path().join("epoch_8.pt").to_string_lossy().into_owned()),
        ..named("")
    };
    assert!(refused(&missing).contains(HUB_CONFIG));
}

#[test]
fn configuration_of_a_model_that_is_not_built_still_says_how_its_pixels_were_normalised() {
    let timm = json!({"embed_dim": 8, "vision_cfg": {"timm_model_name": "vit_base"}, "text_cfg": {}});
    let (_folder, path) = hub(&timm, &json!({"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}));
    let strict = config::ModelConfig {
        pretrained: Some(path),
        ..named("ViT-B-32")
    };
    assert!(refused(&strict).contains("timm_model_name"));
    let lenient = config::ModelConfig {
        pretrained_mismatch: true,
        ..strict
    };
    let read = preprocess(&lenient);
    assert_eq!((read.mean, read.std), ([0.5; 3], [0.5; 3]));
    // One tower of it needs nothing of the other.
    let (_folder, path) = hub(&timm, &json!({"interpolation": "lanczos"}));
    let text = config::ModelConfig {
        pretrained_text_path: Some(path.clone()),
        ..named("ViT-B-32")
    };
    assert_eq!(preprocess(&text), Preprocess::default());
    // Where nothing can be read of the pixels either, the job has to say it.
    let unread = config::ModelConfig {
        pretrained: Some(path),
        ..lenient
    };
    let error = refused(&unread);
    assert!(
        error.contains("interpolation") && error.contains("model.image_mean"),
        "{error}"
    );
    let said = config::ModelConfig {
        image_mean: Some([0.25; 3]),
        image_std: Some([0.75; 3]),
        ..unread
    };
    assert_eq!(preprocess(&said).mean, [0.25; 3]);
}

/// A job whose model is the file's, and starts from the folder `from`.
fn of_file(file: &Path, model: &Value, from: &str) -> config::ModelConfig {
    std::fs::write(file, model.to_string()).unwrap();
    config::ModelConfig {
        config: Some(file.to_string_lossy().into_owned()),
        pretrained: Some(from.into()),
        ..config::ModelConfig::default()
    }
}

#[test]
fn tokenizer_of_another_name_is_refused_unless_the_weights_bring_the_file_that_is_used() {
    let named = |name: &str, kwargs: Value| {
        let mut model = model_of("ViT-B-32");
        model["text_cfg"]["hf_tokenizer_name"] = name.into();
        model["text_cfg"]["tokenizer_kwargs"] = kwargs;
        model
    };
    let (folder, path) = hub(&named("a/bert", json!({})), &Value::Null);
    let file = folder.path().join("model.json");
    let same = of_file(
        &file,
        &named("a/bert", json!({"clean": "whitespace", "strip_sep_token": false})),
        &path,
    );
    resolve_towers(&same, Path::new(".")).unwrap();
    let other = of_file(&file, &named("b/bert", json!({})), &path);
    assert!(refused(&other).contains("another tokenizer (a/bert)"));
    let beside = folder.path().join(HUB_TOKENIZER);
    std::fs::write(&beside, "{}").unwrap();
    resolve_towers(&other, Path::new(".")).unwrap();
    // Another file is not known to be theirs.
    let elsewhere = config::ModelConfig {
        tokenizer: Some("elsewhere.json".into()),
        ..other
    };
    assert!(refused(&elsewhere).contains("another tokenizer"));
    // What is done with captions counts whatever the file is.
    for kwargs in [json!({"clean": "canonicalize"}), json!({"strip_sep_token": true})] {
        let cleaned = of_file(&file, &named("b/bert", kwargs), &path);
        assert!(refused(&cleaned).contains("another tokenizer"));
    }
    let mut clips = named("b/bert", json!({}));
    clips["text_cfg"]["tokenizer_mode"] = "clips".into();
    assert!(refused(&of_file(&file, &clips, &path)).contains("mode clips"));
    // CLIP's own reads no file.
    assert!(refused(&of_file(&file, &model_of("ViT-B-32"), &path)).contains("CLIP's own"));
}

#[test]
fn preprocessing_that_the_jobs_own_configuration_says_is_compared_and_not_overruled() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.json");
    let with = |preprocess: Value| {
        let text = json!({"model_cfg": model_of("ViT-L-14"), "preprocess_cfg": preprocess});
        config::ModelConfig {
            pretrained_tag: Some("laion2b_s32b_b82k".into()),
            name: "ViT-L-14".into(),
            ..of_file(&file, &text, "weights.pt")
        }
    };
    let inception = json!({"mean": [0.5, 0.5, 0.5], "resize_mode": "shortest", "interpolation": "bicubic"});
    for agrees in [Value::Null, json!({}), json!({"std": null}), inception] {
        assert_eq!(preprocess(&with(agrees)).mean, [0.5; 3]);
    }
    for (differs, key) in [
        (json!({"mean": [0.4, 0.5, 0.5]}), "preprocess_cfg.mean"),
        (json!({"std": [0.4, 0.5, 0.5]}), "preprocess_cfg.std"),
        (json!({"resize_mode": "squash"}), "bicubic squash"),
    ] {
        let job = with(differs.clone());
        let error = refused(&job);
        assert!(error.contains(key) && error.contains("pretrained_mismatch"), "{error}");
        let allowed = config::ModelConfig {
            pretrained_mismatch: true,
            ..job
        };
        let want = Preprocess::default()
            .overlaid(&json!({"mean": 0.5, "std": 0.5}), None)
            .and_then(|own| own.overlaid(&differs, None));
        assert_eq!(preprocess(&allowed), want.unwrap());
    }
}
