//! The program itself, as `argosy` and people call it.

use argosy_worker::clip::{ModelConfig, Params, weights};
use std::path::Path;
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

/// A tar archive of small files.
pub(crate) fn tar(path: &Path, files: &[(&str, &[u8])]) {
    let mut out = Vec::new();
    for (name, data) in files {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(data);
        out.resize(out.len().div_ceil(512) * 512, 0);
    }
    out.resize(out.len() + 1024, 0);
    std::fs::write(path, out).unwrap();
}

/// A PNG of one colour: 8 bits, RGB, one stored block.
pub(crate) fn png(side: u32, rgb: [u8; 3]) -> Vec<u8> {
    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, b| {
            (0..8).fold(crc ^ u32::from(*b), |c, _| {
                if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 }
            })
        })
    }
    fn adler(bytes: &[u8]) -> u32 {
        let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), x| {
            let a = (a + u32::from(*x)) % 65_521;
            (a, (b + a) % 65_521)
        });
        b << 16 | a
    }
    let row = [vec![0], rgb.repeat(side as usize)].concat();
    let raw = row.repeat(side as usize);
    let mut zlib = vec![0x78, 0x01, 0x01];
    zlib.extend((raw.len() as u16).to_le_bytes());
    zlib.extend((!(raw.len() as u16)).to_le_bytes());
    zlib.extend(&raw);
    zlib.extend(adler(&raw).to_be_bytes());
    let head = [&side.to_be_bytes()[..], &side.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(&b"IHDR"[..], head), (b"IDAT", zlib), (b"IEND", Vec::new())] {
        let body = [kind, &data].concat();
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(&body);
        out.extend(crc(&body).to_be_bytes());
    }
    out
}

#[test]
fn describe_model_prints_size_and_parts_and_names_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let job = dir.path().join("job.toml");
    let write = |model: &str| {
        let source = r#"{ name = "s", shards = "x.tar" }"#;
        std::fs::write(
            &job,
            format!("version = 1\nname = \"j\"\n[model]\nname = \"{model}\"\n[data]\nsources = [{source}]\n[train]\n"),
        )
        .unwrap();
        worker(&["describe-model", "--job", job.to_str().unwrap()])
    };
    let good = write("ViT-B-32");
    assert!(good.status.success(), "{}", text(&good.stderr));
    let said: serde_json::Value = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!(
        (said["parameters"].as_u64(), said["parts_total"].as_u64()),
        (Some(151_277_313), Some(29))
    );
    assert_eq!(
        (said["image_size"].as_u64(), said["context_length"].as_u64()),
        (Some(224), Some(77))
    );
    let bad = write("ViT-B-23");
    assert_eq!(bad.status.code(), Some(78));
    assert!(text(&bad.stderr).contains("ViT-B-23"), "{}", text(&bad.stderr));
}

#[test]
fn join_without_coordinator_or_token_ends_with_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap(); // closed again at once
    let endpoint = format!("http://{free}");
    let join = |file: &Path| {
        worker(&[
            "join",
            "--endpoint",
            &endpoint,
            "--token-file",
            file.to_str().unwrap(),
            "--worker",
            "1",
        ])
    };
    let missing = join(&token);
    assert_eq!(missing.status.code(), Some(3), "{}", text(&missing.stderr));
    std::fs::write(&token, "abc").unwrap();
    let alone = join(&token);
    assert_eq!(alone.status.code(), Some(5), "{}", text(&alone.stderr));
    assert!(!text(&alone.stderr).contains("abc"), "the token stays out of messages");
}

#[test]
fn eval_zero_shot_of_a_hub_folder_reports_samples_and_what_was_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let config = ModelConfig::by_name("demo-tiny").unwrap();
    let params = Params::new(&config, 5).unwrap();
    std::fs::write(
        path("open_clip_config.json"),
        serde_json::json!({"model_cfg": config.source}).to_string(),
    )
    .unwrap();
    std::fs::write(path("open_clip_model.safetensors"), weights::save(&params).unwrap()).unwrap();
    std::fs::write(path("classes"), "red\ngreen\nblue\n").unwrap();
    std::fs::write(path("templates"), "{}\na {} thing\n").unwrap();
    std::fs::write(path("subcategories"), "warm\ncold\ncold\n").unwrap();
    tar(
        dir.path().join("t.tar").as_path(),
        &[
            ("0.png", &png(20, [255, 0, 0])),
            ("0.cls", b"0"),
            ("1.png", &png(20, [0, 255, 0])),
            ("1.cls", b"1\n"),
            ("2.png", b"no picture"),
            ("2.cls", b"2"),
            ("3.png", &png(20, [0, 0, 255])),
        ],
    );
    let eval = |classes: &str| {
        worker(&[
            "eval-zero-shot",
            "--checkpoint",
            dir.path().to_str().unwrap(),
            "--data",
            &path("t.tar"),
            "--classes",
            classes,
            "--templates",
            &path("templates"),
            "--subcategories",
            &path("subcategories"),
            "--threads",
            "1",
            "-o",
            "json",
        ])
    };
    let good = eval(&path("classes"));
    assert!(good.status.success(), "{}", text(&good.stderr));
    let said: serde_json::Value = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!(
        (
            said["samples"].as_u64(),
            said["unlabelled"].as_u64(),
            said["classes"].as_u64()
        ),
        (Some(2), Some(1), Some(3))
    );
    assert_eq!(
        (said["left_out"]["format"].as_u64(), said["top5"].as_f64()),
        (Some(1), Some(1.0)),
        "{said}"
    );
    assert!((said["chance"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-12);
    assert_eq!(said["subcategories"]["count"].as_u64(), Some(2));

    std::fs::write(path("one"), "red\n").unwrap();
    let short = eval(&path("one"));
    assert_eq!(short.status.code(), Some(78), "{}", text(&short.stderr));
    assert!(
        text(&short.stderr).contains("3 lines for 1 classes"),
        "{}",
        text(&short.stderr)
    );
    let missing = eval(&path("none"));
    assert_eq!(missing.status.code(), Some(3), "{}", text(&missing.stderr));
}

/// A tensor of a safetensors file as floats.
fn floats(file: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(file).unwrap();
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = read.tensor(name).unwrap().data().to_vec();
    data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Features of a hub folder that OpenCLIP wrote equal OpenCLIP's own, and what we export of it is the same model.
#[test]
fn embed_and_export_of_openclips_folder_agree_with_openclip() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/vit-gelu");
    let all = std::fs::read(golden.join("golden.safetensors")).unwrap();
    let all = safetensors::SafeTensors::deserialize(&all).unwrap();
    let inputs = ["images", "texts"].map(|name| (name, all.tensor(&format!("step0.{name}")).unwrap()));
    std::fs::write(path("in.safetensors"), safetensors::serialize(inputs, None).unwrap()).unwrap();

    let run = |args: &[&str]| {
        let done = worker(args);
        assert!(done.status.success(), "{args:?}: {}", text(&done.stderr));
    };
    run(&["export", golden.to_str().unwrap(), "-o", &path("hub")]);
    let config = std::fs::read_to_string(path("hub/open_clip_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["model_cfg"]["embed_dim"], 20, "{config}");
    let weights = |folder: &Path| {
        let bytes = std::fs::read(folder.join("open_clip_model.safetensors")).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensors = read.tensors().into_iter();
        let plain = tensors.map(|(name, t)| (name, t.shape().to_vec(), t.data().to_vec()));
        plain.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(
        weights(Path::new(&path("hub"))),
        weights(&golden),
        "no key is missing, none is new"
    );
    assert!(
        std::fs::read_to_string(path("hub/README.md"))
            .unwrap()
            .contains("library_name: open_clip")
    );

    let again = worker(&["export", golden.to_str().unwrap(), "-o", &path("hub")]);
    assert_eq!(
        again.status.code(),
        Some(4),
        "a folder that holds something is left alone"
    );
    for (checkpoint, out) in [(golden.to_str().unwrap(), "a"), (&path("hub"), "b")] {
        let out = path(&format!("{out}.safetensors"));
        run(&[
            "embed",
            "--checkpoint",
            checkpoint,
            "--tensors",
            &path("in.safetensors"),
            "-o",
            &out,
            "--batch",
            "4",
        ]);
        for name in ["image_features", "text_features"] {
            let ours = floats(Path::new(&out), name);
            let theirs = floats(&golden.join("golden.safetensors"), &format!("step0.{name}"));
            let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(ours.len() == theirs.len() && worst <= 1e-5, "{name} differs by {worst}");
        }
    }
    run(&[
        "embed",
        "--checkpoint",
        &path("hub"),
        "--tensors",
        &path("in.safetensors"),
        "-o",
        &path("c.npy"),
    ]);
    let npy = std::fs::read(path("c.image_features.npy")).unwrap();
    assert_eq!(npy.len(), 128 + 9 * 20 * 4, "nine rows of twenty behind the header");
    let wrong = worker(&[
        "embed",
        "--checkpoint",
        &path("hub"),
        "--tensors",
        &path("c.image_features.npy"),
        "-o",
        &path("d.npy"),
    ]);
    assert_eq!(wrong.status.code(), Some(1), "{}", text(&wrong.stderr));
}
