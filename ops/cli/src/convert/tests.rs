use super::flags::{FLAGS, Takes};
use super::*;
use crate::fail::Failure;
use std::collections::BTreeSet;

const GOLDEN: &str = include_str!("../../../../tests/goldens/flags.json");

fn convert(text: &str) -> Result<(Job, draft::Draft), Failure> {
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    let draft = draft::draft(&Line::read(&words)?, None)?;
    let job = Job::from_toml("j", &draft.text()).unwrap_or_else(|e| panic!("{e}\n{}", draft.text()));
    Ok((job, draft))
}

#[test]
fn flags_are_those_of_open_clip_train() {
    let golden: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
    let theirs = golden["flags"].as_object().unwrap();
    for (name, flag) in theirs {
        let ours = flags::find(name).unwrap_or_else(|| panic!("{name} is not in the table"));
        let takes = match ours.takes {
            Takes::None => "none",
            Takes::One => "one",
            Takes::Many => "many",
        };
        assert_eq!(
            (ours.name, takes, ours.main),
            (name.as_str(), flag["takes"].as_str().unwrap(), false)
        );
    }
    let released = FLAGS.iter().filter(|flag| !flag.main).count();
    assert_eq!(released, theirs.len());
    let names: BTreeSet<&str> = FLAGS.iter().map(|flag| flag.name).collect();
    assert_eq!(names.len(), FLAGS.len(), "a flag stands twice");
    assert!(
        FLAGS
            .iter()
            .all(|f| matches!(f.fate, Fate::Key(_)) || !f.note.is_empty()),
        "a flag has no reason"
    );
}

#[test]
fn defaults_are_those_of_open_clip_train() {
    let golden: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
    let default = |name: &str| golden["flags"][name]["default"].as_f64().unwrap();
    let (job, draft) = convert("torchrun --nproc_per_node 1 -m open_clip_train.main --train-data x.tar").unwrap();
    assert_eq!(job.model.name, golden["flags"]["--model"]["default"].as_str().unwrap());
    let train = &job.train;
    assert_eq!(f64::from(train.global_batch), default("--batch-size"));
    assert_eq!(
        (train.epochs as f64, train.warmup as f64),
        (default("--epochs"), default("--warmup"))
    );
    assert_eq!((train.wd, job.seed as f64), (default("--wd"), default("--seed")));
    // By the model's name, as `get_default_params` has it.
    assert_eq!(
        (train.lr, train.beta1, train.beta2, train.eps),
        (5e-4, 0.9, 0.999, 1e-8)
    );
    let (vit, _) = convert("--train-data x.tar --model ViT-B-32").unwrap();
    assert_eq!((vit.train.beta2, vit.train.eps), (0.98, 1e-6));
    assert!(draft.lost.is_empty(), "{:?}", draft.lost);
}

#[test]
fn command_line_of_the_readme_becomes_its_job() {
    let (job, draft) = convert(
        "torchrun --nproc_per_node 4 -m open_clip_train.main --save-frequency 1 --train-data /data/cc12m/{00000..01242}.tar \
         --dataset-resampled --train-num-samples 10968539 --dataset-type webdataset --batch-size 320 --precision amp_bfloat16 \
         --warmup 2000 --lr 1e-3 --wd 0.1 --epochs 30 --workers 8 --model RN50 --name cc12m/first --seed 3 --accum-freq 2 \
         --imagenet-val /data/imagenet --report-to tensorboard --grad-clip-norm 1 --remote-sync s3://b/runs --use-bn-sync \
         --aug-cfg scale=(0.4,1.0) color_jitter_prob=.8 use_timm=True --delete-previous-checkpoint",
    )
    .unwrap();
    assert_eq!(
        (job.name.as_str(), job.seed, job.model.name.as_str()),
        ("cc12m-first", 3, "RN50")
    );
    assert_eq!((job.train.global_batch, job.train.micro_batch), (2560, Some(320)));
    assert_eq!(
        (job.train.lr, job.train.wd, job.train.epochs, job.train.warmup),
        (1e-3, 0.1, 30, 2000)
    );
    assert_eq!((job.workers.target, job.data.train_num_samples), (4, Some(10_968_539)));
    assert_eq!(
        (job.checkpoint.every_samples, job.checkpoint.keep_last),
        (10_968_539, 1)
    );
    assert_eq!(job.checkpoint.url.as_deref(), Some("s3://b/runs"));
    assert_eq!(
        (job.data.aug_cfg.scale, job.data.aug_cfg.color_jitter_prob),
        ([0.4, 1.0], 0.8)
    );
    let lost: Vec<&str> = draft.lost.iter().map(|(flag, _)| flag.as_str()).collect();
    let expected = [
        "--dataset-resampled",
        "--imagenet-val /data/imagenet",
        "--use-bn-sync",
        "--aug-cfg use_timm=True",
    ];
    assert_eq!(lost, expected);
    assert!(
        expected
            .iter()
            .all(|flag| draft.text().contains(&format!("# not honoured: {flag}")))
    );
}

#[test]
fn every_flag_that_becomes_a_key_changes_the_job_and_every_other_is_named() {
    let base = "--train-data a.tar --model ViT-B-32 --precision fp32";
    let with = |more: &str| {
        convert(&format!(
            "torchrun --nproc_per_node 2 -m open_clip_train.main {base} {more}"
        ))
    };
    let (plain, _) = with("").unwrap();
    for flag in FLAGS {
        let value = match flag.name {
            "--train-data" | "--model" => "b.tar",
            "--dataset-type" => "auto",
            "--train-num-samples" => "77 --dataset-resampled",
            "--image-mean" | "--image-std" => "0.5 0.25 0.5",
            "--aug-cfg" => "gray_scale_prob=0.5",
            "--precision" => "pure_bf16",
            "--lr-scheduler" => "const",
            "--device" => "cpu",
            "--pretrained" => "w.pt",
            "--save-frequency" => "2 --train-num-samples 50",
            "--json-text-key" | "--text-key" | "--image-key" | "--name" => "word",
            "--json-text-key-probs" => "0.5;0.5 --json-text-key a;b",
            "--lock-image-unlocked-groups" => "1 --lock-image",
            "--lock-text-unlocked-layers" => "1 --lock-text",
            "--lock-image-freeze-bn-stats" => "--lock-image",
            "--remote-sync" => "s3://b/c",
            "--beta1" | "--beta2" | "--eps" | "--image-layer-decay" | "--visual-layer-decay" | "--text-layer-decay" => {
                "0.5"
            }
            _ if flag.takes == Takes::None => "",
            _ => "3",
        };
        let (mut job, draft) =
            with(&format!("{} {value}", flag.name)).unwrap_or_else(|e| panic!("{}: {}", flag.name, e.message));
        // That a flag is of the main branch changes the rule of decay by itself.
        job.train.decay_rule = plain.train.decay_rule;
        let named = draft.lost.iter().any(|(said, _)| said.starts_with(flag.name));
        match flag.fate {
            Fate::Key(_) => assert!(job != plain, "{} changes nothing", flag.name),
            Fate::Lost => assert!(named, "{} is lost without a word", flag.name),
            Fate::Needless => assert!(!named, "{} is called lost", flag.name),
        }
    }
}

#[test]
fn command_lines_that_make_no_job_are_refused_with_the_reason() {
    for (text, word) in [
        ("--model ViT-B-32", "--train-data is missing"),
        ("--train-data a.csv", "WebDataset"),
        ("--train-data a.tar --dataset-type synthetic", "WebDataset"),
        ("--train-data a.tar::b.tar", "--train-num-samples is missing"),
        ("--train-data a.tar --lr nan", "--lr nan"),
        (
            "--train-data a.tar --batch-size 4000000000 --accum-freq 4000000000",
            "too large",
        ),
        ("--train-data a.tar --batch-size -4", "--batch-size -4"),
        ("--train-data a.tar --epochs 99999999999999999999", "--epochs"),
    ] {
        let failure = convert(text).map(|_| ()).expect_err(text);
        assert!(failure.message.contains(word), "{text}: {}", failure.message);
    }
}

#[test]
fn pipes_become_the_address_that_they_read() {
    let words = ["--train-data", "pipe:aws s3 cp s3://b/{0..9}.tar -"].map(str::to_owned);
    let draft = draft::draft(&Line::read(&words).unwrap(), Some(1)).unwrap();
    assert!(
        draft.text().contains("shards = \"s3://b/{0..9}.tar\""),
        "{}",
        draft.text()
    );
    let words = ["--train-data", "pipe:cat x.tar"].map(str::to_owned);
    assert!(draft::draft(&Line::read(&words).unwrap(), Some(1)).is_err());
}

#[test]
fn migrating_page_is_what_the_table_says() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrating.md");
    let page = page::page();
    if std::env::var_os("ARGOSY_BLESS").is_some() {
        std::fs::write(&file, &page).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        kept == page,
        "ops/migrating.md is not what the table says; ARGOSY_BLESS=1 cargo test -p argosy migrating writes it"
    );
}
