mod formats;

use super::*;

const GOOD: &str = r#"
version = 1
name = "tiny"
[model]
name = "ViT-B-32"
[[data.sources]]
shards = "/data/{00000..00003}.tar"
[data]
[train]
global_batch = 64
"#;

fn job(text: &str) -> Result<Job, ConfigError> {
    Job::from_toml("job.toml", text)
}

fn good() -> String {
    GOOD.replace("[data]\n", "")
}

#[test]
fn job_with_defaults_is_read_and_sources_get_names() {
    let job = job(&good()).expect("good job");
    assert_eq!(job.data.sources[0].name, "source-0");
    assert_eq!(job.train.beta2, 0.98);
    assert_eq!(job.workers.max, 64);
}

#[test]
fn unknown_key_is_refused_with_the_nearest_name_and_its_line() {
    let text = good().replace("global_batch = 64", "global_bach = 64");
    let error = job(&text).expect_err("typo");
    assert_eq!(
        error.to_string(),
        "job.toml:9: unknown key `train.global_bach`; did you mean `train.global_batch`?"
    );
}

#[test]
fn wrong_type_is_refused_with_its_line() {
    let text = good().replace("global_batch = 64", "global_batch = \"many\"");
    let error = job(&text).expect_err("wrong type").to_string();
    assert!(
        error.starts_with("job.toml:9: `train.global_batch`: invalid type: string"),
        "{error}"
    );
}

#[test]
fn values_out_of_range_name_the_key_and_the_range() {
    for (from, to, key) in [
        ("version = 1", "version = 2", "version"),
        ("name = \"tiny\"", "name = \"../../etc\"", "name"),
        ("global_batch = 64", "global_batch = 64\nlanes = 7", "train.lanes"),
        (
            "global_batch = 64",
            "global_batch = 131072\nlanes = 131072",
            "train.lanes",
        ),
        ("global_batch = 64", "global_batch = 64\nlr = nan", "train.lr"),
        ("global_batch = 64", "global_batch = 64\nepochs = 0", "train.epochs"),
        (
            "global_batch = 64",
            "global_batch = 64\ndevice = \"gpu\"",
            "train.device",
        ),
        (
            "global_batch = 64",
            "global_batch = 64\ntext_layer_decay = 1.5",
            "train.text_layer_decay",
        ),
        (
            "global_batch = 64",
            "global_batch = 64\nema_half_life_samples = 0",
            "train.ema_half_life_samples",
        ),
        (
            "global_batch = 64",
            "global_batch = 64\n[workers]\nmin = 3\ntarget = 2",
            "workers",
        ),
        (
            "global_batch = 64",
            "global_batch = 64\n[[evaluation.sets]]\nname = \"a b\"\ndata = \"d\"\nclasses = \"c\"\ntemplates = \"t\"",
            "evaluation.sets.name",
        ),
        (
            "global_batch = 64",
            "global_batch = 64\n[failure]\nfailure_budget_ms = 1",
            "failure.failure_budget_ms",
        ),
        (
            "global_batch = 64",
            "global_batch = 64\n[failure]\nunreadable_after_s = 0",
            "failure.unreadable_after_s",
        ),
        (
            "global_batch = 64",
            "global_batch = 64\n[cache]\nfolder = \"kept\"",
            "cache.bytes_max",
        ),
        (
            "global_batch = 64",
            "global_batch = 64\n[cache]\nfolder = \"s3://bucket\"\nbytes_max = 1",
            "cache.folder",
        ),
        (
            "global_batch = 64",
            "global_batch = 64\nbatch_norm = \"batch\"\n[workers]\ntarget = 1\nmax = 2",
            "train.batch_norm",
        ),
        (
            "global_batch = 64",
            "global_batch = 64\nbatch_norm = \"batch\"\nmicro_batch = 8\n[workers]\ntarget = 1\nmax = 1",
            "train.batch_norm",
        ),
        (
            "global_batch = 64",
            "global_batch = 64\nbatch_norm = \"batch\"\ndeterministic = true\n[workers]\ntarget = 1\nmax = 1",
            "train.batch_norm",
        ),
        (
            "global_batch = 64",
            "global_batch = 64\nlock_image_unlocked_groups = 1",
            "train.lock_image_unlocked_groups",
        ),
        (
            "global_batch = 64",
            "global_batch = 64\nlock_text = true\nlock_text_freeze_layer_norm = false",
            "train.lock_text_freeze_layer_norm",
        ),
        (
            "[[data.sources]]",
            "[data]\nresized_side = 288\n[[data.sources]]",
            "data.resized_side",
        ),
        ("version = 1", "version = 1\npriority = 5000", "priority"),
        ("shards =", "name = \"../../etc\"\nshards =", "data.sources.name"),
        ("[model]", "[model]\nimage_std = [0.5, nan, 0.5]", "model.image_std"),
        ("[model]", "[model]\nimage_mean = [0.5, inf, 0.5]", "model.image_mean"),
        (
            "global_batch = 64",
            "global_batch = 64\n[budgets]\nerrors_max = 1\nerrors_max_by_reason = { panicked = 2 }",
            "budgets.errors_max_by_reason",
        ),
    ] {
        let text = good().replacen(from, to, 1);
        match job(&text) {
            Err(ConfigError::Value { key: named, .. }) => assert_eq!(named, key),
            other => panic!("{to}: {other:?}"),
        }
    }
}

#[test]
fn batch_norm_of_the_whole_batch_is_taken_from_one_worker_that_holds_it_whole() {
    let alone = "global_batch = 64\nbatch_norm = \"batch\"\n[workers]\ntarget = 1\nmax = 1";
    let job = job(&good().replacen("global_batch = 64", alone, 1)).expect("taken");
    assert_eq!(job.train.batch_norm, BatchNorm::Batch);
}

#[test]
fn negative_count_is_an_error_and_not_a_panic() {
    assert!(job(&good().replace("global_batch = 64", "global_batch = -1")).is_err());
}

#[test]
fn config_hash_ignores_workers_and_cadence_but_not_the_learning_rate() {
    let base = job(&good()).expect("good");
    let mut other = base.clone();
    other.workers.target = 8;
    other.checkpoint.every_samples = 77;
    other.cache.bytes_max = 1;
    other.train.threads = Some(3);
    other.train.device = "cpu".into();
    other.train.grad_checkpointing = true;
    assert_eq!(base.config_hash(), other.config_hash());
    other.train.lr = 1.0;
    assert_ne!(base.config_hash(), other.config_hash());
    other.train.lr = base.train.lr;
    other.train.precision = Precision::AmpBf16;
    assert_ne!(base.config_hash(), other.config_hash());
}

#[test]
fn config_hash_of_deterministic_jobs_minds_what_decides_bits() {
    let mut base = job(&good()).expect("good");
    base.train.deterministic = true;
    let mut other = base.clone();
    other.workers.target = 8;
    other.train.state_hash_steps = 5;
    assert_eq!(base.config_hash(), other.config_hash());
    other.train.threads = Some(3);
    assert_ne!(base.config_hash(), other.config_hash());
}
