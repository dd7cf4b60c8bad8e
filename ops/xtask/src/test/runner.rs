//! Runs the tests with nextest where it is, else with Cargo's own runner, and reads counts from either.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::beside::Environment;
use super::{Wish, listen, skips};
use crate::cargo::{cargo, has_subcommand};
use crate::paths::Paths;

/// What a run of all tests came to.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct TestRun {
    pub(crate) runner: &'static str,
    pub(crate) passed: bool,
    pub(crate) counts: Counts,
    /// The last line to print.
    pub(crate) closing_line: String,
    /// Reasons of tests that skipped themselves.
    pub(crate) skips: Vec<String>,
    /// What randomised tests reported as their seeds.
    pub(crate) seeds: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

/// Runs the tests with `environment` set.
pub(crate) fn run(paths: &Paths, wish: Wish, environment: &Environment) -> Result<TestRun> {
    let run = if has_subcommand(paths, "nextest") {
        run_nextest(paths, wish, environment)
    } else {
        run_libtest(paths, wish, environment)
    }?;
    Ok(refuse_empty(run))
}

/// No test run at all is a broken set-up, whatever the runner says.
fn refuse_empty(mut run: TestRun) -> TestRun {
    if run.counts.passed == 0 {
        run.passed = false;
        if run.closing_line.is_empty() {
            run.closing_line = "no test was run".to_owned();
        }
    }
    run
}

fn run_nextest(paths: &Paths, wish: Wish, environment: &Environment) -> Result<TestRun> {
    let profile = if wish.long { "long" } else { "default" };
    // nextest shows nothing of a test that passes; what it printed, its SKIP lines among them, is in this file.
    let junit = paths.root.join("target/nextest").join(profile).join("junit.xml");
    if junit.exists() {
        fs::remove_file(&junit)?;
    }
    let mut command = cargo(paths);
    command.envs(environment.iter().map(|(name, path)| (name, path)));
    command.args(["nextest", "run", "--workspace", "--all-targets", "--profile", profile]);
    if wish.long {
        command.args(["--run-ignored", "all"]);
    }
    let mut run = TestRun {
        runner: "nextest",
        ..TestRun::default()
    };
    let status = listen::run(command, |line| {
        if let Some(counts) = parse_nextest_summary(line) {
            run.counts = counts;
            run.closing_line = line.trim().to_owned();
        }
    })?;
    run.passed = status.success();
    read_junit(&junit, &mut run);
    Ok(run)
}

/// A missing file means that nothing ran, which the exit status and the counts already say.
fn read_junit(path: &Path, run: &mut TestRun) {
    let text = fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    for line in text.lines() {
        let line = line
            .trim_start()
            .trim_start_matches("<system-out>")
            .trim_start_matches("<system-err>");
        let line = line.split("</system-").next().unwrap_or_default();
        note(&unescape(line), run);
    }
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&")
}

fn note(line: &str, run: &mut TestRun) {
    run.skips.extend(skips::parse(line, "SKIP "));
    run.seeds.extend(skips::parse(line, "SEED "));
}

fn run_libtest(paths: &Paths, wish: Wish, environment: &Environment) -> Result<TestRun> {
    let mut command = cargo(paths);
    command.envs(environment.iter().map(|(name, path)| (name, path)));
    // All binaries are run even if one fails, and what passing tests print is shown, for their SKIP lines.
    command.args([
        "test",
        "--workspace",
        "--all-targets",
        "--no-fail-fast",
        "--",
        "--show-output",
    ]);
    if wish.long {
        command.arg("--include-ignored");
    }
    let mut run = TestRun {
        runner: "cargo test",
        ..TestRun::default()
    };
    let status = listen::run(command, |line| {
        if let Some(counts) = parse_libtest_result(line) {
            run.counts.passed += counts.passed;
            run.counts.failed += counts.failed;
            run.counts.skipped += counts.skipped;
        }
        note(line, &mut run);
    })?;
    run.passed = status.success();
    run.closing_line = format!("{} passed, {} failed", run.counts.passed, run.counts.failed);
    Ok(run)
}

/// `Summary [   1.203s] 42 tests run: 41 passed (1 slow), 1 failed, 2 skipped`
fn parse_nextest_summary(line: &str) -> Option<Counts> {
    let (_, rest) = line.trim_start().strip_prefix("Summary [")?.split_once(']')?;
    let (_, counts) = rest.split_once("run:")?;
    let mut total = Counts::default();
    for piece in counts.split(", ") {
        let mut words = piece.split_whitespace();
        let (Some(Ok(number)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else {
            continue;
        };
        match what {
            "passed" => total.passed += number,
            "failed" | "timed" | "exec" => total.failed += number,
            "skipped" => total.skipped += number,
            _ => {}
        }
    }
    Some(total)
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`
fn parse_libtest_result(line: &str) -> Option<Counts> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |what: &str| {
        let piece = counts.split("; ").find_map(|piece| piece.strip_suffix(what))?;
        piece.trim().parse::<u64>().ok()
    };
    Some(Counts {
        passed: number("passed")?,
        failed: number("failed")?,
        skipped: number("ignored")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nextest_summary_is_read_with_all_its_kinds() {
        let line = "     Summary [   1.203s] 42 tests run: 38 passed (1 slow), 2 failed, 1 exec failed, 1 timed out, 2 skipped";
        assert_eq!(
            parse_nextest_summary(line),
            Some(Counts {
                passed: 38,
                failed: 4,
                skipped: 2
            })
        );
        assert_eq!(parse_nextest_summary("        PASS [   0.1s] xtask tests::a"), None);
    }

    #[test]
    fn libtest_result_is_read_and_other_lines_are_not() {
        let line = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(
            parse_libtest_result(line),
            Some(Counts {
                passed: 3,
                failed: 2,
                skipped: 1
            })
        );
        assert_eq!(parse_libtest_result("test a::b ... ok"), None);
    }

    #[test]
    fn junit_lines_give_skips_and_seeds_with_their_text_unescaped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("junit.xml");
        let text = "<testcase name=\"a\">\n<system-out>\nrunning 1 test\nSKIP no &lt;GPU&gt; here\nSEED sim 7\n</system-out>\n\
                    <system-out>SKIP at once</system-out>\n<system-out>nothing about SKIP here</system-out>\n";
        fs::write(&path, text).unwrap();
        let mut run = TestRun::default();
        read_junit(&path, &mut run);
        assert_eq!(run.skips, ["no <GPU> here", "at once"]);
        assert_eq!(run.seeds, ["sim 7"]);
    }

    #[test]
    fn run_without_a_test_does_not_pass() {
        let run = refuse_empty(TestRun {
            passed: true,
            ..TestRun::default()
        });
        assert!(!run.passed);
        assert_eq!(run.closing_line, "no test was run");
    }
}
