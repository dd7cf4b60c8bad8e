//! Models by name, bare weight files, and models whose captions a file's tokenizer reads.

use argosy_worker::clip::{ModelConfig, Params, weights};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn worker(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_argosy-worker"))
        .args(args)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn models_as_json_tell_activation_normalisation_tokenizer_and_accuracy() {
    let said = worker(&["models", "ViT-B-32-quickgelu", "-o", "json"]);
    assert!(said.status.success(), "{}", text(&said.stderr));
    let value: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    let model = &value["models"][0];
    assert_eq!(
        (model["name"].as_str(), model["activation"].as_str()),
        (Some("ViT-B-32-quickgelu"), Some("QuickGELU"))
    );
    let tags = model["pretrained"].as_array().unwrap();
    let weights = tags.iter().find(|row| row["tag"] == "laion400m_e32").unwrap();
    assert_eq!(
        (weights["imagenet"].as_f64(), weights["mean"][0].as_f64()),
        (Some(0.6293), Some(0.481_454_66))
    );
    assert_eq!(
        (weights["interpolation"].as_str(), weights["tokenizer"].as_str()),
        (Some("bicubic"), Some("CLIP"))
    );
}

/// A small model that takes a file's ids, with its weights.
fn folder(dir: &Path) -> PathBuf {
    let text = r#"{"model_cfg": {"embed_dim": 16, "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8,
        "patch_size": 8}, "text_cfg": {"context_length": 12, "vocab_size": 240, "width": 16, "heads": 2, "layers": 1,
        "hf_tokenizer_name": "some/bert", "tokenizer_kwargs": {"strip_sep_token": true}, "no_causal_mask": true,
        "pool_type": "last"}}}"#;
    let (config, _) = ModelConfig::from_json(text).unwrap();
    let params = Params::new(&config, 3).unwrap();
    std::fs::write(dir.join("open_clip_config.json"), text).unwrap();
    std::fs::write(dir.join("open_clip_model.safetensors"), weights::save(&params).unwrap()).unwrap();
    dir.to_owned()
}

#[test]
fn embed_reads_captions_by_the_tokenizer_beside_the_weights_or_says_what_to_give() {
    let dir = tempfile::tempdir().unwrap();
    let hub = folder(dir.path());
    let at = |name: &str| hub.join(name).to_str().unwrap().to_owned();
    std::fs::write(at("captions.txt"), "a photo of a cat\na red ship, don't\n").unwrap();
    let embed = |checkpoint: &str, out: &str, more: &[&str]| {
        let mut args = vec!["embed", "--checkpoint", checkpoint, "--threads", "1"];
        let (captions, out) = (at("captions.txt"), at(out));
        args.extend(["--texts", &captions, "-o", &out]);
        args.extend(more);
        worker(&args)
    };
    let without = embed(hub.to_str().unwrap(), "none.safetensors", &[]);
    assert_eq!(without.status.code(), Some(78), "{}", text(&without.stderr));
    let said = text(&without.stderr);
    assert!(
        said.contains("some/bert") && said.contains("nothing is downloaded"),
        "{said}"
    );

    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shard-loader/tests/goldens/tokenizers/wordpiece");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(goldens.join(name), at(name)).unwrap();
    }
    let good = embed(hub.to_str().unwrap(), "beside.safetensors", &[]);
    assert!(good.status.success(), "{}", text(&good.stderr));
    // The same weights as a bare file, whose model and tokenizer are named.
    let (model, tokenizer) = (at("open_clip_config.json"), at("tokenizer.json"));
    let bare = at("open_clip_model.safetensors");
    let alone = embed(
        &bare,
        "bare.safetensors",
        &["--model", &model, "--tokenizer", &tokenizer],
    );
    assert!(alone.status.success(), "{}", text(&alone.stderr));
    assert!(std::fs::read(at("beside.safetensors")).unwrap() == std::fs::read(at("bare.safetensors")).unwrap());
    // What lies beside a file is as good as what lies in the folder.
    let beside = embed(&bare, "file.safetensors", &[]);
    assert!(beside.status.success(), "{}", text(&beside.stderr));
    assert!(std::fs::read(at("beside.safetensors")).unwrap() == std::fs::read(at("file.safetensors")).unwrap());
    std::fs::create_dir(at("elsewhere")).unwrap();
    let away = at("elsewhere/model.safetensors");
    std::fs::copy(&bare, &away).unwrap();
    let nameless = embed(&away, "x.safetensors", &[]);
    assert_eq!(nameless.status.code(), Some(2), "{}", text(&nameless.stderr));

    let out = at("exported");
    let exported = worker(&["export", hub.to_str().unwrap(), "-o", &out]);
    assert!(exported.status.success(), "{}", text(&exported.stderr));
    for name in ["tokenizer.json", "tokenizer_config.json", "open_clip_model.safetensors"] {
        let same = std::fs::read(Path::new(&out).join(name)).unwrap() == std::fs::read(at(name)).unwrap();
        assert!(same, "{name} changed on its way");
    }
}

#[test]
#[ignore = "runs Python's open_clip: half a minute, and needs PEERS_VENV"]
fn published_table_and_locks_equal_those_of_the_installed_open_clip() {
    let Some(venv) = std::env::var_os("PEERS_VENV") else {
        println!("SKIP PEERS_VENV names no venv made by tests/peers/setup.sh");
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let python = |args: &[&Path]| {
        let said = Command::new(Path::new(&venv).join("bin/python"))
            .args(args)
            .output()
            .unwrap();
        assert!(said.status.success(), "{}", text(&said.stderr));
        text(&said.stdout)
    };
    let peers = root.join("tests/peers");
    let table = root.join("worker/src/clip/pretrained.json");
    let said = python(&[&peers.join("pretrained.py"), Path::new("check"), &table]);
    assert!(said.contains("196 tags equal"), "{said}");
    let cases = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["cases"].clone();
    let golden = std::fs::read_to_string(root.join("tests/goldens/locks.json")).unwrap();
    assert!(cases(&python(&[&peers.join("locks.py")])) == cases(&golden));
}
