//! One schema in three formats, what lies over a file, and texts that mean no good.

use super::*;

const TOML: &str = r#"version = 1
name = "tiny"
[model]
name = "ViT-B-32"
image_mean = [0.5, 0.5, 0.5]
[data]
sources = [{ shards = "/data/{00000..00003}.tar" }]
text_key = "txt;json:caption"
[data.filter]
caption_chars = [1, 200]
[train]
global_batch = 64
lr = 1e-3
precision = "amp_bf16"
epohcs = { }
"#;

const YAML: &str = r#"version: 1
name: tiny
model:
  name: ViT-B-32
  image_mean: [0.5, 0.5, 0.5]
data:
  sources:
    - shards: /data/{00000..00003}.tar
  text_key: "txt;json:caption"
  filter: {caption_chars: [1, 200]}
train:
  global_batch: 64
  lr: 1e-3
  precision: amp_bf16
  epohcs: {}
"#;

const JSON: &str = r#"{
  "version": 1, "name": "tiny",
  "model": {"name": "ViT-B-32", "image_mean": [0.5, 0.5, 5e-1]},
  "data": {
    "sources": [{"shards": "/data/{00000..00003}.tar"}],
    "text_key": "txt;json:\u0063aption",
    "filter": {"caption_chars": [1, 200]}
  },
  "train": {
    "global_batch": 64,
    "lr": 1e-3,
    "precision": "amp_bf16",
    "epohcs": {}
  }
}"#;

/// The three texts without the line that only tests of unknown keys want.
fn texts() -> [(&'static str, String); 3] {
    [
        ("j.toml", TOML.replace("epohcs = { }\n", "")),
        ("j.yaml", YAML.replace("  epohcs: {}\n", "")),
        ("j.json", JSON.replace(",\n    \"epohcs\": {}", "")),
    ]
}

fn read(file: &str, text: &str) -> Result<Job, ConfigError> {
    Job::read(file, text, &Layers::default()).map(|settled| settled.job)
}

fn refused(file: &str, text: &str) -> String {
    match read(file, text) {
        Ok(job) => panic!("{file} is taken: {job:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn job_in_three_formats_is_one_job() {
    let jobs = texts().map(|(file, text)| read(file, &text).expect(file));
    assert_eq!(jobs[0].data.filter.caption_chars, Some([1, 200]));
    assert_eq!(jobs[0], jobs[1]);
    assert_eq!(jobs[0], jobs[2]);
    assert_eq!(jobs[0].config_hash(), jobs[2].config_hash());
}

#[test]
fn job_written_as_toml_is_read_as_the_same_job() {
    let [(file, text), ..] = texts();
    let job = read(file, &text).expect("good");
    assert_eq!(
        Job::from_toml("again", &toml::to_string(&job).expect("TOML")).expect("good"),
        job
    );
    assert_eq!(
        read("again.json", &serde_json::to_string(&job).expect("JSON")).expect("good"),
        job
    );
}

#[test]
fn unknown_key_is_refused_with_its_line_in_every_format() {
    for (file, text, line) in [("j.toml", TOML, 15), ("j.yml", YAML, 15), ("j.json", JSON, 13)] {
        let said = refused(file, text);
        assert_eq!(
            said,
            format!("{file}:{line}: unknown key `train.epohcs`; did you mean `train.epochs`?")
        );
    }
}

#[test]
fn unknown_key_of_another_section_is_answered_with_its_place() {
    let said = refused("j.toml", &TOML.replace("epohcs = { }", "shards = 3"));
    assert!(said.ends_with("did you mean `data.sources.shards`?"), "{said}");
    let said = refused("j.toml", &TOML.replace("shards =", "weight = 2.0, shards ="));
    assert!(said.contains(":7: ") && said.contains("not weighted yet"), "{said}");
}

#[test]
fn wrong_type_and_wrong_value_are_refused_with_their_line_in_every_format() {
    let changes = [
        (
            "j.toml",
            "global_batch = 64",
            "global_batch = \"many\"",
            "global_batch = 1",
            12,
        ),
        (
            "j.yaml",
            "global_batch: 64",
            "global_batch: many",
            "global_batch: 1",
            12,
        ),
        (
            "j.json",
            "\"global_batch\": 64",
            "\"global_batch\": \"many\"",
            "\"global_batch\": 1",
            10,
        ),
    ];
    for ((file, text), (_, from, wrong, low, line)) in texts().into_iter().zip(changes) {
        let said = refused(file, &text.replace(from, wrong));
        assert!(
            said.starts_with(&format!("{file}:{line}: `train.global_batch`: invalid type")),
            "{said}"
        );
        let said = refused(file, &text.replace(from, low));
        assert!(
            said.starts_with(&format!("{file}:{line}: `train.global_batch` is 1")),
            "{said}"
        );
    }
}

#[test]
fn list_of_the_wrong_type_names_the_entry() {
    let said = refused("j.yaml", &texts()[1].1.replace("[1, 200]", "[1, many]"));
    assert!(
        said.starts_with("j.yaml:10: `data.filter.caption_chars[1]`: invalid type"),
        "{said}"
    );
}

#[test]
fn numbers_that_are_none_are_refused_in_every_format() {
    let numbers = [
        ("j.toml", "lr = 1e-3", ["lr = nan", "lr = inf", "lr = -1", "lr = 1e400"]),
        ("j.yaml", "lr: 1e-3", ["lr: .nan", "lr: -.inf", "lr: -1", "lr: 1e400"]),
        (
            "j.json",
            "\"lr\": 1e-3",
            ["\"lr\": NaN", "\"lr\": -1", "\"lr\": 1e400", "\"lr\": null"],
        ),
    ];
    for ((file, text), (_, from, bad)) in texts().into_iter().zip(numbers) {
        for to in bad {
            refused(file, &text.replace(from, to));
        }
    }
    let counts = [
        "-1",
        "4294967296",
        "18446744073709551616",
        "1e2000",
        "340282366920938463463374607431768211456",
        "1.5",
    ];
    for ((file, text), mark) in texts().into_iter().zip(["= 64", ": 64", ": 64"]) {
        for count in counts {
            let changed = text.replace(mark, &mark.replace("64", count));
            assert_ne!(changed, text);
            refused(file, &changed);
        }
    }
}

#[test]
fn key_that_stands_twice_is_refused_in_every_format() {
    for (file, text, double) in [
        ("j.toml", TOML, TOML.replace("lr = 1e-3", "lr = 1e-3\nlr = 2e-3")),
        ("j.yaml", YAML, YAML.replace("  lr: 1e-3", "  lr: 1e-3\n  lr: 2e-3")),
        (
            "j.json",
            JSON,
            JSON.replace("\"lr\": 1e-3", "\"lr\": 1e-3, \"lr\": 2e-3"),
        ),
    ] {
        assert_ne!(text, double);
        assert!(refused(file, &double).starts_with(file));
    }
}

#[test]
fn yaml_that_is_more_than_values_is_refused() {
    for (from, to, word) in [
        ("name: tiny", "name: !!str tiny", "tags"),
        ("name: tiny", "name: &a tiny\nx: *a", "aliases"),
        ("name: tiny", "name: tiny\n---\nname: b", "second document"),
        ("name: tiny", "? [a, b]\n: tiny", "a key is expected"),
        ("name: tiny", "\tname: tiny", "found a tab"),
    ] {
        let said = refused("j.yaml", &YAML.replace(from, to));
        assert!(said.contains(word), "{to}: {said}");
    }
    // What YAML 1.1 took for a truth is a word.
    let said = refused("j.yaml", &texts()[1].1.replace("data:\n", "data:\n  fast_decode: no\n"));
    assert!(
        said.contains("`data.fast_decode`: invalid type: string \"no\""),
        "{said}"
    );
}

#[test]
fn texts_nested_without_end_are_refused_and_nothing_overflows() {
    const DEEP: usize = 100_000;
    let nested = |open: &str, close: &str| format!("{}{}", open.repeat(DEEP), close.repeat(DEEP));
    let texts = [
        ("j.toml", format!("x = {}", nested("[", "]"))),
        ("j.toml", format!("x = {}", nested("{a=", "}"))),
        ("j.toml", format!("{}x = 1", "a.".repeat(DEEP))),
        ("j.toml", format!("[{}x]", "a.".repeat(DEEP))),
        ("j.json", nested("[", "]")),
        ("j.json", format!("{}1{}", "{\"a\":".repeat(DEEP), "}".repeat(DEEP))),
        ("j.json", "[".repeat(DEEP)),
        ("j.yaml", format!("x: {}", nested("[", "]"))),
        ("j.yaml", format!("x: {}", nested("{a: ", "}"))),
        ("j.yaml", "- ".repeat(DEEP)),
        ("j.yaml", "? ".repeat(DEEP)),
    ];
    for (file, text) in texts {
        let said = refused(file, &text);
        assert!(said.len() < 400, "{} bytes of error", said.len());
    }
}

#[test]
fn text_of_a_hundred_megabytes_is_refused_unread() {
    let text = "#".repeat(100 << 20);
    for file in ["j.toml", "j.yaml", "j.json"] {
        assert!(refused(file, &text).contains("too large"));
    }
}

#[test]
fn layers_go_over_the_file_in_order_and_each_value_knows_its_place() {
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let flag = |key: &str, value: &str| Setting {
        key: key.into(),
        value: value.into(),
        flag: format!("--set {key}={value}"),
    };
    let layers = Layers {
        environment: vec![
            variable("ARGOSY_JOB__TRAIN__LR", "0.5"),
            variable("ARGOSY_JOB__TRAIN__EPOCHS", "7"),
            variable("ARGOSY_LOG", "info"),
            variable("ARGOSY_JOB__DATA__SOURCES__0__NAME", "first"),
        ],
        flags: vec![flag("train.lr", "0.25"), flag("name", "b-2"), flag("workers.max", "80")],
    };
    let settled = Job::read("j.yaml", &texts()[1].1, &layers).expect("good");
    let job = &settled.job;
    assert_eq!((job.train.lr, job.train.epochs, job.workers.max), (0.25, 7, 80));
    assert_eq!((job.name.as_str(), job.data.sources[0].name.as_str()), ("b-2", "first"));
    let place = |key: &str| settled.said.place_of(key).map(ToString::to_string);
    assert_eq!(place("train.lr").as_deref(), Some("--set train.lr=0.25"));
    assert_eq!(
        place("train.epochs").as_deref(),
        Some("environment variable ARGOSY_JOB__TRAIN__EPOCHS")
    );
    assert_eq!(place("train.global_batch").as_deref(), Some("j.yaml:12"));
    assert_eq!(place("data.sources[0].shards").as_deref(), Some("j.yaml:8"));
    assert_eq!(place("train.wd"), None);
}

#[test]
fn layer_that_does_not_fit_is_refused_by_its_name() {
    let environment = |name: &str, value: &str| Layers {
        environment: vec![(name.to_owned(), value.to_owned())],
        flags: Vec::new(),
    };
    let [(file, text), ..] = texts();
    for (name, value, words) in [
        (
            "ARGOSY_JOB__TRAIN__EPOCH",
            "3",
            &["ARGOSY_JOB__TRAIN__EPOCH", "did you mean `train.epochs`"][..],
        ),
        (
            "ARGOSY_JOB__TRAIN__EPOCHS",
            "three",
            &["ARGOSY_JOB__TRAIN__EPOCHS", "`train.epochs`: invalid type"],
        ),
        (
            "ARGOSY_JOB__TRAIN__EPOCHS",
            "0",
            &["ARGOSY_JOB__TRAIN__EPOCHS", "at least 1"],
        ),
        (
            "ARGOSY_JOB__NAME__X",
            "1",
            &["ARGOSY_JOB__NAME__X", "`name` is not a section"],
        ),
        ("ARGOSY_JOB__TRAIN__EPOCHS", "3\nlr = 1", &["ARGOSY_JOB__TRAIN__EPOCHS"]),
    ] {
        let said = Job::read(file, &text, &environment(name, value))
            .expect_err("refused")
            .to_string();
        for word in words {
            assert!(said.contains(word), "{name}={value}: {said}");
        }
    }
}

proptest::proptest! {
    /// Whatever a few bytes are made, there is a job or an error and nothing else.
    #[test]
    fn bytes_changed_anywhere_are_read_or_refused(
        which in 0usize..3,
        cuts in proptest::collection::vec((0usize..700, "[\\x00-\\x7f]{0,4}|[{}\\[\\]:,&*!|>\"'#\\n\\t -]{1,6}"), 1..6),
    ) {
        let (file, mut text) = texts()[which].clone();
        for (at, new) in cuts {
            let at = at.min(text.len());
            let end = (at + new.len() / 2).min(text.len());
            text.replace_range(at..end, &new);
        }
        let _ = read(file, &text);
    }
}
