//! The program from outside: exit codes, sentences, files. Nothing here needs libtorch.

mod canary;
mod fixture;
mod formats;
mod hostile;
mod jobs;
mod readme;
mod shards;

use fixture::{Place, argosy, code};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

#[test]
fn help_lists_the_commands_on_stdout() {
    let place = Place::new();
    let output = argosy(&place, &["--help"]).output().unwrap();
    assert_eq!(code(&output), 0);
    let text = String::from_utf8(output.stdout).unwrap();
    for word in ["run", "index", "eval", "parity", "audit", "sim", "doctor"] {
        assert!(
            text.lines().any(|l| l.trim_start().starts_with(word)),
            "{word} is missing in\n{text}"
        );
    }
    assert!(!text.contains("unpack"), "hidden commands stay hidden");
}

#[test]
fn usage_errors_exit_2_and_name_what_is_near() {
    let place = Place::new();
    for (args, word) in [
        (&["rum"][..], "run"),
        (&["run", "j.toml", "--worker", "2"], "--workers"),
        (&["run", "j.toml", "--workers", "0"], "1..=1024"),
        (&["index"], "SHARDS"),
    ] {
        let output = argosy(&place, args).output().unwrap();
        assert_eq!(code(&output), 2, "{args:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(word), "{args:?} does not say {word}: {text}");
    }
}

#[test]
fn bad_jobs_are_refused_with_file_key_and_exit_78() {
    let place = Place::new();
    for (more, words) in [
        (
            "[train]\nepoch = 3\n",
            &["job.toml", "train.epoch", "`train.epochs`"][..],
        ),
        ("[train]\nepochs = \"three\"\n", &["job.toml:", "string"]),
        ("[train]\nglobal_batch = 10\nlanes = 3\n", &["train.lanes", "divisor"]),
        ("[workers]\nmin = 3\n", &["workers", "min <= target"]),
        ("x = [[[[", &["job.toml:"]),
    ] {
        let job = place.job(more);
        let failed = place.fails(&["run", &job], 78);
        for word in words {
            assert!(failed.contains(word), "{more:?} does not say {word}: {failed}");
        }
        assert!(failed.starts_with("error: "), "{failed}");
    }
    assert!(!place.path("runs").exists(), "a refused job leaves nothing");
}

#[test]
fn what_is_missing_exits_3_and_is_named() {
    let place = Place::new();
    let failed = place.fails(&["run", "nowhere.toml"], 3);
    assert!(failed.contains("nowhere.toml") && failed.contains("help:"), "{failed}");
    let job = place.job("");
    std::fs::remove_dir_all(place.path("shards")).unwrap();
    let failed = place.fails(&["run", &job], 3);
    assert!(
        failed.contains("shards") && failed.contains("does not exist"),
        "{failed}"
    );
    assert!(place.fails(&["audit", "runs/none"], 3).contains("runs/none"));
    assert!(place.fails(&["run", &job, "--resume"], 3).contains("no run"));
    assert!(place.fails(&["parity", "none"], 3).contains("none"));
    assert!(place.fails(&["index", "none.tar"], 3).contains("none.tar"));
}

#[test]
fn set_reaches_the_job_and_bad_ones_are_refused() {
    let place = Place::new();
    let job = place.job("");
    assert!(
        place
            .fails(&["run", &job, "--set", "train.epochs=0"], 78)
            .contains("train.epochs")
    );
    assert!(
        place
            .fails(&["run", &job, "--set", "train.epohcs=1"], 78)
            .contains("`train.epochs`")
    );
    place.fails(&["run", &job, "--set", "nonsense"], 2);
}

#[test]
fn run_folder_that_is_not_empty_is_a_conflict_with_a_way_out() {
    let place = Place::new();
    let job = place.job("");
    std::fs::create_dir_all(place.path("runs/tiny")).unwrap();
    std::fs::write(place.path("runs/tiny/thesis.txt"), "precious").unwrap();
    let failed = place.fails(&["run", &job], 4);
    assert!(
        failed.contains("thesis.txt") && failed.contains("--run DIR"),
        "{failed}"
    );
    assert_eq!(std::fs::read(place.path("runs/tiny/thesis.txt")).unwrap(), b"precious");
}

#[test]
fn run_without_its_worker_program_says_how_to_get_it() {
    let place = Place::new();
    let job = place.job("");
    let output = argosy(&place, &["run", &job])
        .env("ARGOSY_WORKER", place.path("gone"))
        .output()
        .unwrap();
    assert_eq!(code(&output), 3);
    assert!(String::from_utf8(output.stderr).unwrap().contains("gone"));
}

#[test]
fn run_whose_model_the_worker_refuses_ends_with_its_sentence_and_code() {
    let place = Place::new();
    let job = place.job("");
    place.worker("echo 'error: model \"demo-tiny\" is not built in' >&2; exit 78");
    let failed = place.fails(&["run", &job], 78);
    assert_eq!(failed.matches("error:").count(), 1, "{failed}");
    assert!(failed.contains("is not built in"), "{failed}");
    // Nothing stands in the way of the next try.
    let again = place.fails(&["run", &job], 78);
    assert!(again.contains("is not built in"), "{again}");
}

#[test]
fn run_whose_workers_cannot_start_fails_and_can_be_resumed_and_audited() {
    let place = Place::new();
    let job = place.job("[failure]\nworker_errors_max = 2\n");
    place.describing_worker();
    let output = argosy(&place, &["run", &job, "--workers", "2"]).output().unwrap();
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!output.status.success() && code(&output) != 101, "{said}");
    assert!(said.contains("100 rows") && said.contains("--resume"), "{said}");
    let run = place.path("runs/tiny");
    let mode = |name: &str| run.join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("token")), (0o700, 0o600));
    assert!(
        std::fs::read_to_string(run.join("logs/w1.log"))
            .unwrap()
            .contains("broken glass")
    );
    let again = place.fails(&["run", &job], 4);
    assert!(again.contains("--resume"), "{again}");
    let other = place.fails(&["run", &job, "--resume", "--set", "train.lr=0.5"], 4);
    assert!(other.contains("train.lr: 0.0005 -> 0.5"), "{other}");
    let audit = argosy(&place, &["audit", "runs/tiny", "-o", "json"]).output().unwrap();
    assert_eq!(code(&audit), 0, "{audit:?}");
    let report: serde_json::Value = serde_json::from_slice(&audit.stdout).unwrap();
    assert_eq!(
        (&report["holds"], &report["finished"]),
        (&true.into(), &false.into()),
        "{report}"
    );
}

#[test]
fn eval_and_parity_pass_on_arguments_output_and_exit_code() {
    let place = Place::new();
    place.worker("echo \"$@\"; exit 75");
    let output = argosy(&place, &["eval", "zero-shot", "--run", "x", "-o", "json", "--help"])
        .output()
        .unwrap();
    assert_eq!(code(&output), 75);
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "eval-zero-shot --run x -o json --help\n"
    );
    let output = argosy(&place, &["parity", ".", "--workers", "3", "-o", "json"])
        .output()
        .unwrap();
    assert_eq!(code(&output), 75);
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "parity . --workers 3 -o json\n"
    );
}

#[test]
fn index_of_good_and_damaged_shards_counts_both() {
    let place = Place::new();
    let good = std::fs::read(place.path("shards/00000.tar")).unwrap();
    std::fs::write(place.path("shards/00002.tar"), &good[..good.len() / 2 + 600]).unwrap();
    std::fs::write(place.path("shards/00003.tar"), b"").unwrap();
    let output = argosy(&place, &["index", "shards", "--out", "i.argosy", "-o", "json"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(code(&output), 0, "{said}");
    assert!(said.contains("2 shards are damaged"), "{said}");
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&made["damaged"], &made["version"]), (&2.into(), &1.into()));
    assert!(
        made["rows"].as_u64().unwrap() > 100 && made["rows"].as_u64().unwrap() < 150,
        "{made}"
    );
    let shown = argosy(&place, &["index", "--show", "i.argosy", "-o", "json"])
        .output()
        .unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(made, shown);
    let table = argosy(&place, &["index", "--show", "i.argosy"])
        .env("COLUMNS", "40")
        .output()
        .unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(
        table.starts_with("SHARD") && table.contains("00003.tar") && table.contains("4 shards"),
        "{table}"
    );
    assert!(!table.contains('\x1b'), "no colours without a terminal");
    place.fails(&["index", "--show", "shards/00000.tar"], 1);
}

#[test]
fn reader_that_goes_away_is_no_panic() {
    let place = Place::new();
    argosy(&place, &["index", "shards", "--out", "i.argosy"])
        .output()
        .unwrap();
    for args in [
        &["index", "--show", "i.argosy", "-o", "json"][..],
        &["--help"],
        &["doctor"],
    ] {
        let mut child = argosy(&place, args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap();
        assert!(
            status.code().is_some_and(|c| c != 101) && !said.contains("panic"),
            "{args:?}: {said}"
        );
    }
}

#[test]
fn doctor_says_what_is_there_and_exits_5_when_something_is_missing() {
    let place = Place::new();
    let output = argosy(&place, &["doctor", "-o", "json"])
        .env("ARGOSY_WORKER", "/gone")
        .output()
        .unwrap();
    assert_eq!(code(&output), 5);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["checks"][1]["holds"], false, "{answer}");
    place.worker("echo argosy-worker 9");
    let output = argosy(&place, &["doctor"]).output().unwrap();
    assert_eq!(code(&output), 0);
    assert!(String::from_utf8(output.stdout).unwrap().contains("argosy-worker 9"));
}

#[test]
fn doctor_says_whether_jobs_run_on_a_gpu_and_what_is_missing_for_it() {
    let place = Place::new();
    for (devices, wanted) in [
        (
            r#"{"library":"/t/libtorch_cuda.so","devices":2,"gpu":"sm_90 H100 CUDA 13.0","missing":null}"#,
            "2, the first sm_90 H100 CUDA 13.0; jobs run on it unless they say device = \"cpu\"",
        ),
        (
            r#"{"library":null,"devices":0,"gpu":"none","missing":"no NVIDIA device or driver is here"}"#,
            "none, jobs run on the CPU: no NVIDIA device or driver is here",
        ),
        (
            "not what is asked",
            "none, jobs run on the CPU: argosy-worker does not say why",
        ),
    ] {
        let answer = format!("case \"$1\" in devices) echo '{devices}';; *) echo argosy-worker 9;; esac");
        place.worker(&answer);
        let output = argosy(&place, &["doctor", "-o", "json"]).output().unwrap();
        assert_eq!(code(&output), 0, "a machine without a GPU lacks nothing");
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let line = &answer["checks"][3];
        assert_eq!(
            (&line["name"], &line["detail"]),
            (&"GPUs".into(), &wanted.into()),
            "{answer}"
        );
    }
}

#[test]
fn unpack_of_something_else_is_refused_in_a_sentence() {
    let place = Place::new();
    std::fs::write(place.path("x.tar.zst"), b"no archive").unwrap();
    let failed = place.fails(&["unpack", "x.tar.zst", "out"], 1);
    assert!(failed.contains("x.tar.zst") && failed.contains("damaged"), "{failed}");
}
