//! What is done with a job before it is run: its schema, its layers, checks, a plan, and jobs of open_clip_train.

use crate::fixture::{Place, argosy, code};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn schema_is_one_that_knows_the_keys() {
    let schema = json(&Place::new().tells(&["schema"]));
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert!(schema["properties"]["train"].is_object() && schema["additionalProperties"] == false);
}

#[test]
fn job_in_another_format_is_the_same_job_and_can_be_written_as_one() {
    let place = Place::new();
    let job = place.job("lr = 1e-3\n");
    let first = place.tells(&["config", "show", &job]);
    let mut last = job;
    for (format, file) in [("yaml", "job.yaml"), ("json", "job.json"), ("table", "again.toml")] {
        let text = place.tells(&["config", "show", &last, "-o", format]);
        last = place.path(file).to_str().unwrap().to_owned();
        std::fs::write(&last, text).unwrap();
        assert_eq!(place.tells(&["config", "show", &last]), first, "{format}");
    }
}

#[test]
fn config_show_tells_the_origin_of_each_value_and_flags_win() {
    let place = Place::new();
    let job = place.job("lr = 1e-3\nwarmup = 7\n");
    let output = argosy(
        &place,
        &[
            "config",
            "show",
            &job,
            "--origin",
            "--set",
            "train.wd=0.5",
            "-o",
            "json",
        ],
    )
    .env("ARGOSY_JOB__TRAIN__WD", "0.25")
    .env("ARGOSY_JOB__TRAIN__WARMUP", "8")
    .output()
    .unwrap();
    assert_eq!(code(&output), 0, "{output:?}");
    let shown = json(&String::from_utf8(output.stdout).unwrap());
    let key = |key: &str| {
        shown["keys"]
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["key"] == key)
            .unwrap()
            .clone()
    };
    assert!(
        key("train.lr")["origin"].as_str().unwrap().ends_with("job.toml:8"),
        "{shown}"
    );
    assert_eq!(key("train.wd")["origin"], "--set train.wd=0.5");
    assert_eq!(
        key("train.warmup")["origin"],
        "environment variable ARGOSY_JOB__TRAIN__WARMUP"
    );
    assert_eq!(
        (&key("train.warmup")["value"], &key("train.beta2")["origin"]),
        (&8.into(), &"default".into())
    );
}

#[test]
fn kept_job_of_a_run_minds_no_environment() {
    let place = Place::new();
    place.describing_worker();
    let job = place.job("[failure]\nworker_errors_max = 0\n");
    argosy(&place, &["run", &job]).output().unwrap();
    // The run has the learning rate that it began with, whatever the environment says of jobs now.
    let output = argosy(&place, &["plan", &job, "--run", "runs/tiny", "-o", "json"])
        .env("ARGOSY_JOB__TRAIN__LR", "0.25")
        .output()
        .unwrap();
    assert_eq!(code(&output), 0, "{output:?}");
    let plan = json(&String::from_utf8(output.stdout).unwrap());
    let changes = plan["changes"].as_array().unwrap();
    let keys: Vec<&str> = changes.iter().map(|c| c["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["train.lr"], "{plan}");
    assert_eq!(
        (&changes[0]["new"], &changes[0]["allowed"]),
        (&0.25.into(), &false.into())
    );
}

#[test]
fn validate_names_all_that_is_wrong_in_three_layers() {
    let place = Place::new();
    place.describing_worker();
    let job = place.job("[checkpoint]\nevery_s = 9\n[workers]\nmax = 4\n");
    let checks = json(&place.tells(&["validate", &job, "-o", "json"]));
    let checks = checks["checks"].as_array().unwrap();
    let layers: Vec<&str> = checks.iter().map(|c| c["layer"].as_str().unwrap()).collect();
    for layer in ["fields", "topology", "environment"] {
        assert!(layers.contains(&layer), "{checks:?}");
    }
    assert!(checks.iter().all(|c| c["verdict"] == "ok"), "{checks:?}");
    assert!(!place.path("runs").exists(), "nothing is left behind");
    // What is missing is listed with what else is, and the first error's code is the exit code.
    let more = "[checkpoint]\nurl = \"job.toml/runs\"\n[[evaluation.sets]]\nname = \"a\"\ndata = \"d\"\nclasses = \"none\"\n\
                templates = \"t\"\n";
    let job = place.job(more);
    std::fs::remove_dir_all(place.path("shards")).unwrap();
    place.worker("echo 'error: model \"demo-tiny\" is not built in' >&2; exit 78");
    let output = argosy(&place, &["validate", &job, "-o", "json"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    let checks = json(&String::from_utf8(output.stdout).unwrap());
    let wrong = |check: &str| {
        let mut all = checks["checks"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|c| c["layer"] == "environment");
        all.find(|c| c["check"] == check)
            .unwrap_or_else(|| panic!("no {check} in {checks}"))["verdict"]
            == "error"
    };
    assert!(
        wrong("model") && wrong("data") && wrong("evaluation") && wrong("checkpoints"),
        "{checks}"
    );
}

#[test]
fn validate_without_environment_looks_at_nothing_and_can_deny_warnings() {
    let place = Place::new();
    let job = place.job("[checkpoint]\nevery_s = 9\n[workers]\nmax = 4\n");
    std::fs::remove_dir_all(place.path("shards")).unwrap();
    place.tells(&["validate", &job, "--no-environment", "--deny-warnings"]);
    let job = place.job("");
    place.tells(&["validate", &job, "--no-environment"]);
    let output = argosy(&place, &["validate", &job, "--no-environment", "--deny-warnings"])
        .output()
        .unwrap();
    assert_eq!(code(&output), 78);
    assert!(String::from_utf8(output.stdout).unwrap().contains("WARNING"));
}

#[test]
fn validate_of_a_bucket_leaves_nothing_and_says_which_right_is_missing() {
    let place = Place::new();
    place.describing_worker();
    let job = place.job("[checkpoint]\nevery_s = 9\nurl = \"ftp://nowhere/runs\"\n");
    let output = argosy(&place, &["validate", &job, "-o", "json"]).output().unwrap();
    assert_ne!(code(&output), 0);
    let checks = json(&String::from_utf8(output.stdout).unwrap());
    let row = checks["checks"]
        .as_array()
        .unwrap()
        .iter()
        .rfind(|c| c["check"] == "checkpoints")
        .unwrap()
        .clone();
    assert!(row["detail"].as_str().unwrap().contains("ftp://"), "{row}");
}

#[test]
fn plan_reads_the_shards_and_says_steps_shares_days_and_cost() {
    let place = Place::new();
    place.describing_worker();
    let job = place.job("global_batch = 10\nlanes = 10\nepochs = 4\nwarmup = 3\n[workers]\ntarget = 2\nmax = 5\n");
    let plan = json(&place.tells(&["plan", &job, "--speed", "2", "--price", "3.5", "-o", "json"]));
    assert_eq!(
        (&plan["rows"], &plan["positions"], &plan["steps"]),
        (&100.into(), &400.into(), &40.into())
    );
    assert_eq!((&plan["shards"], &plan["state_bytes"]), (&2.into(), &60.into()));
    let sizes = plan["sizes"].as_array().unwrap();
    let workers: Vec<_> = sizes.iter().map(|s| s["workers"].as_u64().unwrap()).collect();
    assert_eq!(workers, [1, 2, 5]);
    let days = 400.0 / 4.0 / 86_400.0;
    assert!((sizes[1]["days"].as_f64().unwrap() - days).abs() < 1e-9, "{plan}");
    assert!(
        (sizes[1]["cost"].as_f64().unwrap() - days * 24.0 * 2.0 * 3.5).abs() < 1e-9,
        "{plan}"
    );
    assert!(
        !place.path("runs").exists() && !place.path("index.argosy").exists(),
        "nothing is left behind"
    );
    let said = place.fails(&["plan", &job, "--no-environment"], 2);
    assert!(said.contains("--samples"), "{said}");
    std::fs::remove_dir_all(place.path("shards")).unwrap();
    let plan = json(&place.tells(&["plan", &job, "--no-environment", "--samples", "1000", "-o", "json"]));
    assert_eq!((&plan["positions"], &plan["bytes"]), (&4000.into(), &Value::Null));
}

#[test]
fn convert_args_prints_a_job_that_is_read_and_names_what_is_lost() {
    let place = Place::new();
    let line = "torchrun --nproc_per_node 2 -m open_clip_train.main --train-data shards --model ViT-B-32 --lr 1e-3 \
                --batch-size 16 --imagenet-val /x --local-loss --precision fp32 --train-num-samples 100";
    let words: Vec<&str> = ["convert-args"].into_iter().chain(line.split_whitespace()).collect();
    let output = argosy(&place, &words).output().unwrap();
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(code(&output), 0, "{said}");
    assert!(
        said.contains("not honoured: --imagenet-val /x") && said.contains("needless: --local-loss"),
        "{said}"
    );
    std::fs::write(place.path("made.toml"), &output.stdout).unwrap();
    let made = place.path("made.toml").to_str().unwrap().to_owned();
    let shown = json(&place.tells(&["config", "show", &made, "-o", "json"]));
    assert_eq!(
        (&shown["train"]["global_batch"], &shown["workers"]["target"]),
        (&32.into(), &2.into())
    );
    let failed = place.fails(&["convert-args", "--train-dada", "x"], 2);
    assert!(failed.contains("--train-data"), "{failed}");
}

#[test]
fn clean_removes_runs_only_when_told_and_nothing_that_is_not_of_a_run() {
    let place = Place::new();
    place.describing_worker();
    let job = place.job("[failure]\nworker_errors_max = 0\n");
    argosy(&place, &["run", &job]).output().unwrap();
    let run = place.path("runs/tiny");
    place.tells(&["clean", "runs/tiny"]);
    assert!(run.join("run.json").is_file(), "only listed");
    std::fs::write(run.join("thesis.txt"), "precious").unwrap();
    assert!(place.fails(&["clean", "runs/tiny", "--yes"], 4).contains("thesis.txt"));
    std::fs::remove_file(run.join("thesis.txt")).unwrap();
    std::os::unix::fs::symlink(&run, place.path("link")).unwrap();
    place.fails(&["clean", "link", "--yes"], 4);
    place.fails(&["clean", "shards", "--yes"], 3);
    place.fails(&["clean", "../../etc", "--yes"], 3);
    assert!(run.join("run.json").is_file());
    place.tells(&["clean", "runs/tiny", "--yes"]);
    assert!(!run.exists());
}
