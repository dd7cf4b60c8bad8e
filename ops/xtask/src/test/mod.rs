//! `cargo xtask test`: every check that a change must pass, one stage after the other.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

mod listen;
mod report;
mod runner;
mod skips;

use crate::cargo::{cargo, has_subcommand};
use crate::paths::Paths;
use runner::TestRun;

pub(crate) const USAGE: &str = "[--long] [--strict]";

/// What was asked for on the command line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    /// Ignored tests too, and a report that is committed.
    pub(crate) long: bool,
    /// No skips at all, not even those on the list.
    pub(crate) strict: bool,
}

/// One stage that has ended.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    pub(crate) seconds: f64,
    pub(crate) passed: bool,
    pub(crate) note: String,
}

/// How a stage ended, and what to say beside it.
type End = Result<(bool, String)>;

pub(crate) fn run(paths: &Paths, args: &[String]) -> Result<ExitCode> {
    let switches = crate::parse_switches("test", &["--long", "--strict"], args)?;
    let wish = Wish {
        long: switches[0],
        strict: switches[1],
    };
    let mut suite = Suite::default();
    suite.run_all(paths, wish);
    print!("\n{}", report::table(&suite.stages));
    if wish.long && suite.tests.is_some() {
        let path = report::write_json(paths, wish, &suite.stages, suite.tests.as_ref())?;
        println!("wrote {}", path.display());
    }
    // The runner's own closing line stays the last one: that is what a reader of a long log looks at.
    if let Some(tests) = &suite.tests {
        println!("{}", tests.closing_line);
    }
    let passed = suite.stages.iter().all(|stage| stage.passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Debug, Default)]
struct Suite {
    stages: Vec<Stage>,
    tests: Option<TestRun>,
}

impl Suite {
    /// Stops at the first stage that fails: what follows would only bury its message.
    fn run_all(&mut self, paths: &Paths, wish: Wish) {
        let mut tests = None;
        let all: [(&'static str, &mut dyn FnMut() -> End); 9] = [
            ("setup", &mut || {
                crate::setup::lay(paths, false).map(|()| (true, String::new()))
            }),
            ("fmt", &mut || run_cargo(paths, &["fmt", "--all", "--check"])),
            ("clippy", &mut || {
                run_cargo(
                    paths,
                    &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
                )
            }),
            ("build", &mut || {
                run_cargo(paths, &["build", "--workspace", "--all-targets"])
            }),
            ("demo", &mut || {
                crate::demo::quick(paths).map(|()| (true, String::new()))
            }),
            ("control", &mut || {
                if !wish.long {
                    return Ok((true, "a run on shuffled captions: with --long only".to_owned()));
                }
                crate::demo::control(paths).map(|()| (true, String::new()))
            }),
            ("test", &mut || run_tests(paths, wish, &mut tests)),
            ("release", &mut || {
                if !wish.long {
                    return Ok((true, "simulated worlds without assertions: with --long only".to_owned()));
                }
                // The same seeds give the same hashes in a release build, without assertions and checks for overflow.
                let worlds = "stories::worlds_have_the_hashes_that_are_committed";
                run_cargo(
                    paths,
                    &["test", "--release", "-p", "argosy-sim", "--test", "it", worlds],
                )
            }),
            ("deny", &mut || run_deny(paths)),
        ];
        for (name, stage) in all {
            println!("== {name}");
            let started = Instant::now();
            let (passed, note) = stage().unwrap_or_else(|error| (false, format!("{error:#}")));
            let seconds = started.elapsed().as_secs_f64();
            let how = if passed { "ok" } else { "FAILED" };
            let tail = if note.is_empty() {
                String::new()
            } else {
                format!(" ({note})")
            };
            println!("== {name}: {how} in {seconds:.1} s{tail}");
            self.stages.push(Stage {
                name,
                seconds,
                passed,
                note,
            });
            if !passed {
                break;
            }
        }
        self.tests = tests;
    }
}

fn run_cargo(paths: &Paths, args: &[&str]) -> End {
    let status = cargo(paths).args(args).status().context("cannot start cargo")?;
    Ok((status.success(), String::new()))
}

fn run_tests(paths: &Paths, wish: Wish, out: &mut Option<TestRun>) -> End {
    let run = runner::run(paths, wish)?;
    let allowed = skips::read_list(&paths.root)?;
    let verdict = skips::judge(&run.skips, &allowed, wish.strict);
    let passed = run.passed && verdict.is_ok();
    let note = match verdict {
        Ok(note) | Err(note) => format!("with {}; {note}", run.runner),
    };
    *out = Some(run);
    Ok((passed, note))
}

/// Licences, bans and sources, from what lies on this machine: the advisory database would need a network.
fn run_deny(paths: &Paths) -> End {
    if !has_subcommand(paths, "deny") {
        return Ok((true, "NOT CHECKED: cargo-deny is not on this machine".to_owned()));
    }
    run_cargo(paths, &["deny", "--offline", "check", "bans", "licenses", "sources"])
}
