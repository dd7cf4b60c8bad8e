//! Files and words that mean no good: an error with its code, never a panic, and nothing half done.

use crate::fixture::{Place, argosy, code};
use std::io::Write;
use std::process::Stdio;

/// Every verb that reads a job.
const READERS: [&[&str]; 6] = [
    &["run"],
    &["prepare"],
    &["profile"],
    &["plan"],
    &["validate"],
    &["config", "show"],
];

fn all_refuse(place: &Place, file: &str, exit: i32) {
    for verb in READERS {
        let args = [verb, &[file]].concat();
        let said = place.fails(&args, exit);
        assert!(said.starts_with("error: ") && said.len() < 1_000, "{args:?}: {said}");
    }
    assert!(!place.path("runs").exists(), "a refused job leaves nothing");
}

#[test]
fn files_that_are_no_jobs_are_refused_by_every_verb() {
    let place = Place::new();
    let nested = |open: &str, close: &str| format!("{}{}", open.repeat(100_000), close.repeat(100_000));
    let texts = [
        ("deep.toml", format!("x = {}", nested("[", "]"))),
        ("deep.json", nested("[", "]")),
        ("deep.yaml", format!("x: {}", nested("[", "]"))),
        ("empty.toml", String::new()),
        ("empty.yaml", String::new()),
        ("empty.json", String::new()),
        ("list.json", "[1]".into()),
    ];
    for (file, text) in texts {
        std::fs::write(place.path(file), text).unwrap();
        all_refuse(&place, file, 78);
    }
    std::fs::write(place.path("bytes.toml"), b"\xff\xfe\x00").unwrap();
    all_refuse(&place, "bytes.toml", 78);
    all_refuse(&place, "shards", 78);
    all_refuse(&place, "none.toml", 3);
}

#[test]
fn file_of_a_hundred_megabytes_is_refused_without_being_read() {
    let place = Place::new();
    for file in ["large.toml", "large.yaml", "large.json"] {
        let sparse = std::fs::File::create(place.path(file)).unwrap();
        sparse.set_len(100 << 20).unwrap();
        all_refuse(&place, file, 78);
    }
    // A file without an end, such as a device, is no longer either.
    assert!(place.fails(&["validate", "/dev/zero"], 78).contains("too large"));
}

#[test]
fn values_out_of_all_bounds_are_refused_by_their_keys() {
    let place = Place::new();
    for (more, key) in [
        ("lr = nan\n", "train.lr"),
        ("lr = -inf\n", "train.lr"),
        ("epochs = -1\n", "train.epochs"),
        ("global_batch = 99999999999999999999\n", "train.global_batch"),
        ("global_batch = 4294967295\n", "train.global_batch"),
        ("[workers]\nmin = 3\ntarget = 2\n", "workers"),
        ("[workers]\nmax = 4000000000\n", "workers"),
        (
            "[[evaluation.sets]]\nname = \"../../etc\"\ndata = \"d\"\nclasses = \"c\"\ntemplates = \"t\"\n",
            "evaluation.sets.name",
        ),
        ("[checkpoint]\nurl = \"https://me:canary-pw@h/x\"\n", "checkpoint.url"),
    ] {
        let job = place.job(more);
        let said = place.fails(&["validate", &job, "--no-environment"], 78);
        assert!(said.contains(key) && !said.contains("canary"), "{more}: {said}");
    }
    let job = place.job("");
    let said = place.fails(&["run", &job, "--set", "name=../../etc"], 78);
    assert!(said.contains("`name`"), "{said}");
    // More positions than can be counted are found when the rows are known.
    place.describing_worker();
    let job = place.job("epochs = 9223372036854775807\n");
    assert!(place.fails(&["run", &job], 78).contains("train.epochs"));
    assert!(place.fails(&["plan", &job], 78).contains("train.epochs"));
    for bad in ["nan", "-1", "0", "inf", "x"] {
        assert_eq!(
            code(&argosy(&place, &["plan", &job, "--speed", bad]).output().unwrap()),
            2,
            "{bad}"
        );
    }
}

#[test]
fn commands_end_well_whose_reader_goes_away_or_whose_terminal_is_narrow_or_none() {
    let place = Place::new();
    let job = place.job("");
    for args in [
        &["config", "show", &job, "--origin"][..],
        &["schema"],
        &["validate", &job, "--no-environment"],
        &["plan", &job, "--samples", "100", "--no-environment", "-o", "yaml"],
        &["convert-args", "--train-data", "x.tar"],
        &["completions", "bash"],
    ] {
        // Nobody reads, neither data nor chatter, and there is nobody to ask.
        let mut child = argosy(&place, args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        let status = child.wait().unwrap();
        assert!(status.code().is_some_and(|c| c != 101), "{args:?}: {status}");
        let output = argosy(&place, args)
            .env("COLUMNS", "40")
            .env("TERM", "dumb")
            .output()
            .unwrap();
        assert_eq!(code(&output), 0, "{args:?}");
        let said = [output.stdout, output.stderr].concat();
        assert!(!said.contains(&0x1b), "{args:?}: colours without a terminal");
    }
}

#[test]
fn full_disk_behind_stdout_is_an_error_and_no_panic() {
    let place = Place::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = argosy(&place, &["schema"]).stdout(full).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write to stdout"), "{said}");
}

#[test]
fn run_folder_full_of_nonsense_is_refused_by_its_file() {
    let place = Place::new();
    let job = place.job("");
    std::fs::create_dir_all(place.path("runs/bad")).unwrap();
    for text in ["", "[[[[", "{\"version\": 99}", "{\"version\": 2}", "\u{0}"] {
        let mut file = std::fs::File::create(place.path("runs/bad/run.json")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        for args in [
            &["checkpoints", "runs/bad"][..],
            &["audit", "runs/bad"],
            &["clean", "runs/bad"],
            &["plan", &job, "--samples", "9", "--no-environment", "--run", "runs/bad"],
        ] {
            let said = place.fails(args, 78);
            assert!(said.contains("run.json"), "{args:?}: {said}");
        }
    }
}
