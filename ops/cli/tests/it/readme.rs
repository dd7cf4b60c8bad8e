//! What the README promises is there: its job is one that is read, its commands are ones that exist.

use crate::fixture::{Place, argosy, code};
use argosy_common::config::Job;

const README: &str = include_str!("../../../../README.md");

/// The text between two fences, the first of which names `language`.
fn block(language: &str) -> &'static str {
    let start = format!("```{language}\n");
    let (_, rest) = README
        .split_once(&start)
        .unwrap_or_else(|| panic!("no {language} block"));
    rest.split("```").next().unwrap_or_default()
}

#[test]
fn readme_job_is_one_that_is_read() {
    let job = Job::from_toml("README.md", block("toml")).unwrap();
    assert_eq!((job.workers.target, job.train.global_batch), (4, 1024));
}

#[test]
fn readme_commands_and_flags_are_ones_that_exist() {
    let place = Place::new();
    let calls: Vec<&str> = README
        .lines()
        .filter_map(|line| line.strip_prefix("| `argosy ")?.split('`').next())
        .collect();
    assert!(calls.len() >= 6, "{calls:?}");
    for call in calls {
        let mut words = call.split(' ');
        let command = words.next().unwrap();
        // Evaluation is carried out by the worker, whose own tests know its flags.
        let flags = words.filter(|word| word.starts_with("--") && command != "eval");
        let output = argosy(&place, &[command]).arg("--help").output().unwrap();
        assert_eq!(code(&output), 0, "argosy {call}");
        let help = String::from_utf8(output.stdout).unwrap();
        for flag in flags {
            assert!(help.contains(flag), "argosy {call}: {flag} is not in\n{help}");
        }
    }
}
